"""Vocabulary and sentence templates of the synthetic dataset.

A sentence is a noun phrase that refers to one object of a clip. `KINDS` lists what can distinguish that object; results
are reported per kind. Some pairs of noun and attribute are held out of training (`held_out`).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

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
# fmt: on

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (224, 36, 36),
    "orange": (246, 138, 20),
    "yellow": (246, 220, 40),
    "green": (40, 170, 60),
    "blue": (40, 90, 230),
    "purple": (140, 60, 200),
    "pink": (250, 130, 190),
    "gray": (140, 140, 140),
}


def _conjugate(verb: str) -> tuple[str, str, str]:
    """Expand "going/goes/go up" to ("going up", "goes up", "go up")."""
    forms, _, rest = verb.partition(" ")
    doing, does, do = (f"{form} {rest}".strip() for form in forms.split("/"))
    return doing, does, do


_VERBS = {
    "left": ("moving/moves/move left", "going/goes/go to the left", "heading/heads/head left"),
    "right": ("moving/moves/move right", "going/goes/go to the right", "heading/heads/head right"),
    "up": ("moving/moves/move up", "rising/rises/rise", "going/goes/go up"),
    "down": ("moving/moves/move down", "sinking/sinks/sink", "going/goes/go down"),
    "spin": ("spinning/spins/spin", "rotating/rotates/rotate", "turning/turns/turn around"),
    "grow": ("growing/grows/grow", "getting/gets/get bigger", "coming/comes/come closer"),
    "shrink": ("shrinking/shrinks/shrink", "getting/gets/get smaller"),
    "bounce": ("jumping/jumps/jump", "bouncing/bounces/bounce", "jumping/jumps/jump up and down"),
}
MOTIONS = {name: tuple(map(_conjugate, verbs)) for name, verbs in _VERBS.items()}
"""Motion -> ways to say it: (present participle, "that ...", bare verb after "starts to")."""
STILL = (
    ("standing still", "stands still", "stand still"),
    ("not moving", "does not move", "not move"),
    ("staying in place", "stays in place", "stay in place"),
)

KINDS = ("noun", "colour", "size", "position", "relation", "motion", "border", "earlier", "later")

POSITION = {
    "left": ("the {n} on the left", "the left {n}", "the leftmost {n}", "the {n} on the left side"),
    "right": ("the {n} on the right", "the right {n}", "the rightmost {n}", "the {n} on the right side"),
    "top": ("the {n} at the top", "the upper {n}", "the top {n}", "the higher {n}"),
    "bottom": ("the {n} at the bottom", "the lower {n}", "the bottom {n}", "the {n} further down"),
}
SIZE = {"big": ("big", "large", "bigger", "larger", "huge"), "small": ("small", "little", "smaller", "tiny")}
RELATION = {
    "next to": ("next to", "beside", "close to", "near"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "behind": ("behind", "partly hidden by"),
    "in front of": ("in front of", "covering"),
}
BORDER = {
    "leave": ("leaving", "that leaves", "that goes away", "that leaves the picture", "that disappears"),
    "return": ("that comes back", "that leaves and comes back", "that returns", "that goes away and comes back"),
    "gone": ("that leaves and does not come back", "that leaves for good", "that goes away and stays away"),
    "enter": ("that enters", "entering", "that comes in", "that appears", "that enters the picture"),
    "stay": ("that stays", "that is always there", "that does not leave"),
    "there": ("that is there from the start", "that was already there"),
}
COLOUR = ("the {colour} {n}", "the {colour} {n}", "the {n} that is {colour}", "the {n} colored {colour}")
ACTION = {
    "motion": ("the {n} {doing}", "the {n} that is {doing}", "the {n} that {does}"),
    "later": (
        "the {n} that starts {doing}",
        "the {n} that later {does}",
        "the {n} that starts to {do}",
        "the {n} that {does} later",
        "the {n} that begins to {do}",
    ),
    "earlier": (
        "the {n} that was {doing} at first",
        "the {n} that first {does}",
        "the {n} that {does} at the start",
        "the {n} {doing} at the beginning",
    ),
}
STOP = ("the {n} that stops", "the {n} that stops moving", "the {n} that comes to a halt")
TEMPLATES = ("{}", "{}", "{}", "{}", "{} in the video", "find {}", "segment {}", "track {}", "{} please")

ATTRIBUTES = (*COLOURS, *MOTIONS)


def held_out(noun: str, attribute: str | None) -> bool:
    """Tell whether this pair of noun and colour or motion is excluded from training (about one pair in nine)."""
    return attribute in ATTRIBUTES and zlib.crc32(f"{noun}/{attribute}".encode()) % 9 == 0


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def synonym(rng: np.random.Generator, noun: str) -> str:
    """Return the noun or, one time in four, another name for it."""
    return SYNONYMS[noun] if noun in SYNONYMS and rng.random() < 0.25 else noun


def phrase(
    rng: np.random.Generator,
    kind: str,
    noun: str,
    attribute: str | None,
    colour: str | None = None,
    anchor: str | None = None,
) -> str:
    """Word one meaning. `colour` may be added if the object has one that does not distinguish it."""
    bare = synonym(rng, noun)
    n = f"{colour} {bare}" if colour and rng.random() < 0.3 else bare
    if kind == "noun":
        text = f"the {n}"
    elif kind == "colour":
        text = pick(rng, COLOUR).format(n=bare, colour=attribute)
    elif kind == "size":
        text = f"the {pick(rng, SIZE[attribute])} {n}"
    elif kind == "position":
        text = pick(rng, POSITION[attribute]).format(n=n)
    elif kind == "relation":
        text = f"the {n} {pick(rng, RELATION[attribute])} the {synonym(rng, anchor)}"
    elif kind == "border":
        text = f"the {n} {pick(rng, BORDER[attribute])}"
    elif attribute == "stop":
        text = pick(rng, STOP).format(n=n)
    else:
        doing, does, do = pick(rng, STILL if attribute == "still" else MOTIONS[attribute])
        text = pick(rng, ACTION[kind]).format(n=n, doing=doing, does=does, do=do)
    return pick(rng, TEMPLATES).format(text)


def absent_sentence(rng: np.random.Generator, nouns: set[str]) -> str:
    """Draw a sentence about a noun that is not among `nouns`."""
    noun = pick(rng, [n for n in NOUNS if n not in nouns])
    kind = pick(rng, ("noun", "colour", "size", "position", "motion"))
    tables = {"colour": COLOURS, "size": SIZE, "position": POSITION, "motion": MOTIONS}
    attributes = {name: pick(rng, tuple(table)) for name, table in tables.items()}
    return phrase(rng, kind, noun, attributes.get(kind))
