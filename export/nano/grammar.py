"""Vocabulary and sentence templates of the synthetic dataset.

A sentence is a noun phrase that refers to one object of a clip. `KINDS` lists what can distinguish that object; results
are reported per kind. Some pairs of noun and attribute are held out of training (`held_out`).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

from numpy.random import Generator

T = TypeVar("T")

# fmt: off
# noun: character of Noto Color Emoji
GLYPHS = {
    "dog": "🐕", "cat": "🐈", "horse": "🐎", "elephant": "🐘", "penguin": "🐧", "turtle": "🐢",
    "fish": "🐠", "crab": "🦀", "butterfly": "🦋", "lion": "🦁", "car": "🚗", "bus": "🚌",
    "airplane": "✈", "sailboat": "⛵", "apple": "🍎", "banana": "🍌", "pizza": "🍕", "donut": "🍩",
    "guitar": "🎸", "umbrella": "☂", "ball": "⚽", "cactus": "🌵", "house": "🏠", "robot": "🤖",
}
NOUNS = tuple(GLYPHS)
SYNONYMS = {
    "dog": "puppy", "cat": "kitty", "turtle": "tortoise", "car": "automobile", "airplane": "plane",
    "sailboat": "boat", "ball": "football",
}
COLOURS = {
    "red": (224, 36, 36), "orange": (246, 138, 20), "yellow": (246, 220, 40), "green": (40, 170, 60),
    "blue": (40, 90, 230), "purple": (140, 60, 200), "pink": (250, 130, 190), "gray": (140, 140, 140),
}
# present participle / third person / bare verb | rest of all three
_VERBS = {
    "left": ("moving/moves/move|left", "going/goes/go|to the left", "heading/heads/head|left"),
    "right": ("moving/moves/move|right", "going/goes/go|to the right", "heading/heads/head|right"),
    "up": ("moving/moves/move|up", "rising/rises/rise", "going/goes/go|up"),
    "down": ("moving/moves/move|down", "sinking/sinks/sink", "going/goes/go|down"),
    "spin": ("spinning/spins/spin", "rotating/rotates/rotate", "turning/turns/turn|around"),
    "grow": ("growing/grows/grow", "getting/gets/get|bigger", "coming/comes/come|closer"),
    "shrink": ("shrinking/shrinks/shrink", "getting/gets/get|smaller"),
    "bounce": ("jumping/jumps/jump", "bouncing/bounces/bounce", "jumping/jumps/jump|up and down"),
    "still": ("standing/stands/stand|still", "not moving/does not move/not move", "staying/stays/stay|in place"),
}
MOTIONS = tuple(_VERBS)[:-1]
_ACTION = {
    "motion": ("the {n} {doing}", "the {n} that is {doing}", "the {n} that {does}"),
    "later": (
        "the {n} that starts {doing}", "the {n} that later {does}", "the {n} that starts to {do}",
        "the {n} that {does} later", "the {n} that begins to {do}",
    ),
    "earlier": (
        "the {n} that was {doing} at first", "the {n} that first {does}", "the {n} that {does} at the start",
        "the {n} {doing} at the beginning",
    ),
}
_COLOUR = ("the {colour} {n}", "the {colour} {n}", "the {n} that is {colour}", "the {n} colored {colour}")
_SIZE = {"big": ("big", "large", "bigger", "larger", "huge"), "small": ("small", "little", "smaller", "tiny")}
_RELATION = {
    "next to": ("next to", "beside", "close to", "near"),
    "above": ("above", "over"), "below": ("below", "under"),
    "left of": ("to the left of", "left of"), "right of": ("to the right of", "right of"),
    "behind": ("behind", "partly hidden by"), "in front of": ("in front of", "covering"),
}
_BORDER = {
    "leave": ("leaving", "that leaves", "that goes away", "that leaves the picture", "that disappears"),
    "return": ("that comes back", "that leaves and comes back", "that returns", "that goes away and comes back"),
    "gone": ("that leaves and does not come back", "that leaves for good", "that goes away and stays away"),
    "enter": ("that enters", "entering", "that comes in", "that appears", "that enters the picture"),
    "stay": ("that stays", "that is always there", "that does not leave"),
    "there": ("that is there from the start", "that was already there"),
}
_WORDING: dict[str, dict[str, tuple[str, ...]]] = {
    "noun": {"": ("the {n}",)},
    "colour": dict.fromkeys(COLOURS, _COLOUR),
    "size": {size: tuple(f"the {word} {{n}}" for word in words) for size, words in _SIZE.items()},
    "position": {
        "left": ("the {n} on the left", "the left {n}", "the leftmost {n}", "the {n} on the left side"),
        "right": ("the {n} on the right", "the right {n}", "the rightmost {n}", "the {n} on the right side"),
        "top": ("the {n} at the top", "the upper {n}", "the top {n}", "the higher {n}"),
        "bottom": ("the {n} at the bottom", "the lower {n}", "the bottom {n}", "the {n} further down"),
    },
    "relation": {name: tuple(f"the {{n}} {word} the {{other}}" for word in words) for name, words in _RELATION.items()},
    "motion": dict.fromkeys((*MOTIONS, "still"), _ACTION["motion"]),
    "border": {name: tuple(f"the {{n}} {word}" for word in words) for name, words in _BORDER.items()},
    "earlier": dict.fromkeys(MOTIONS, _ACTION["earlier"]),
    "later": dict.fromkeys(MOTIONS, _ACTION["later"])
    | {"stop": ("the {n} that stops", "the {n} that stops moving", "the {n} that comes to a halt")},
}
"""Kind -> attribute -> templates."""
# fmt: on
KINDS = {kind: tuple(attributes) for kind, attributes in _WORDING.items()}
"""Kind of sentence -> what it can say."""
ATTRIBUTES = (*COLOURS, *MOTIONS)
_FRAMES = ("{}", "{}", "{}", "{}", "{} in the video", "find {}", "segment {}", "track {}", "{} please")


def held_out(noun: str, attribute: str | None) -> bool:
    """Tell whether this pair of noun and colour or motion is excluded from training (about one pair in nine)."""
    return attribute in ATTRIBUTES and zlib.crc32(f"{noun}/{attribute}".encode()) % 9 == 0


def pick(rng: Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _synonym(rng: Generator, noun: str) -> str:
    """Return the noun or, one time in four, another name for it."""
    return SYNONYMS[noun] if noun in SYNONYMS and rng.random() < 0.25 else noun


def phrase(rng: Generator, kind: str, noun: str, attribute: str, colour: str | None = None, anchor: str = "") -> str:
    """Word one meaning. `colour` may be added if the object has one that does not distinguish it."""
    n, verbs = _synonym(rng, noun), {}
    if colour and rng.random() < 0.3 and kind != "colour":
        n = f"{colour} {n}"
    if kind in _ACTION and attribute != "stop":
        forms, _, rest = pick(rng, _VERBS[attribute]).partition("|")
        named = zip(("doing", "does", "do"), forms.split("/"), strict=True)
        verbs = {name: f"{form} {rest}".strip() for name, form in named}
    text = pick(rng, _WORDING[kind][attribute])
    other = _synonym(rng, anchor) if kind == "relation" else ""
    return pick(rng, _FRAMES).format(text.format(n=n, colour=attribute, other=other, **verbs))


def concept_phrase(rng: Generator, concept: str) -> str:
    """Word a concept, `noun` or `attribute noun`, in one of several ways."""
    attribute, _, noun = concept.rpartition(" ")
    n = _synonym(rng, noun)
    if attribute in COLOURS:
        text = pick(rng, _COLOUR).removeprefix("the ").format(colour=attribute, n=n)
    else:
        text = f"{pick(rng, _SIZE[attribute])} {n}" if attribute else n
    return pick(rng, ("{}", "{}", "{}", "{}", "the {}", "a {}")).format(text)


def absent_sentence(rng: Generator, nouns: set[str]) -> str:
    """Draw a sentence about a noun that is not among `nouns`."""
    noun = pick(rng, [n for n in NOUNS if n not in nouns])
    kind = pick(rng, ("noun", "colour", "size", "position", "motion"))
    attributes = {name: pick(rng, KINDS[name]) for name in ("colour", "size", "position")}
    attributes["motion"] = pick(rng, MOTIONS)
    return phrase(rng, kind, noun, attributes.get(kind, ""))
