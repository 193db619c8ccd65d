"""The vocabulary of the world and how its sentences are worded.

A sentence is a noun phrase that picks one object of a clip. Kinds (`KINDS`) say what tells the object apart; results are
reported per kind. Nouns and attributes are kept as data so that a held-out pair of them can be named and kept out of
training.
"""

from __future__ import annotations

import zlib

import numpy as np

NOUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    # name: (character of Noto Color Emoji, other names for it)
    "dog": ("\U0001f415", ("puppy",)),
    "cat": ("\U0001f408", ("kitty",)),
    "horse": ("\U0001f40e", ()),
    "elephant": ("\U0001f418", ()),
    "penguin": ("\U0001f427", ()),
    "turtle": ("\U0001f422", ("tortoise",)),
    "fish": ("\U0001f420", ()),
    "crab": ("\U0001f980", ()),
    "butterfly": ("\U0001f98b", ()),
    "lion": ("\U0001f981", ()),
    "car": ("\U0001f697", ("automobile",)),
    "bus": ("\U0001f68c", ()),
    "airplane": ("\u2708", ("plane",)),
    "sailboat": ("\u26f5", ("boat",)),
    "apple": ("\U0001f34e", ()),
    "banana": ("\U0001f34c", ()),
    "pizza": ("\U0001f355", ()),
    "donut": ("\U0001f369", ()),
    "guitar": ("\U0001f3b8", ()),
    "umbrella": ("\u2602", ()),
    "ball": ("\u26bd", ("football",)),
    "cactus": ("\U0001f335", ()),
    "house": ("\U0001f3e0", ()),
    "robot": ("\U0001f916", ()),
}
NOUN_NAMES = tuple(NOUNS)

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

MOTIONS: dict[str, tuple[tuple[str, str, str], ...]] = {
    # motion: ways to say it, each as (present participle, "that ...", bare verb after "starts to")
    "left": (
        ("moving left", "moves left", "move left"),
        ("going to the left", "goes to the left", "go to the left"),
        ("heading left", "heads left", "head left"),
    ),
    "right": (
        ("moving right", "moves right", "move right"),
        ("going to the right", "goes to the right", "go to the right"),
        ("heading right", "heads right", "head right"),
    ),
    "up": (("moving up", "moves up", "move up"), ("rising", "rises", "rise"), ("going up", "goes up", "go up")),
    "down": (
        ("moving down", "moves down", "move down"),
        ("sinking", "sinks", "sink"),
        ("going down", "goes down", "go down"),
    ),
    "spin": (
        ("spinning", "spins", "spin"),
        ("rotating", "rotates", "rotate"),
        ("turning around", "turns around", "turn around"),
    ),
    "grow": (
        ("growing", "grows", "grow"),
        ("getting bigger", "gets bigger", "get bigger"),
        ("coming closer", "comes closer", "come closer"),
    ),
    "shrink": (("shrinking", "shrinks", "shrink"), ("getting smaller", "gets smaller", "get smaller")),
    "bounce": (
        ("jumping", "jumps", "jump"),
        ("bouncing", "bounces", "bounce"),
        ("jumping up and down", "jumps up and down", "jump up and down"),
    ),
}
STILL = (("standing still", "stands still"), ("not moving", "does not move"), ("staying in place", "stays in place"))
LEAVE = ("leaving", "that leaves", "that goes away", "that leaves the picture", "that disappears")
RETURN = ("that comes back", "that leaves and comes back", "that returns", "that goes away and comes back")
GONE = ("that leaves and does not come back", "that leaves for good", "that goes away and stays away")
ENTER = ("that enters", "entering", "that comes in", "that appears", "that enters the picture")
STAY = ("that stays", "that is always there", "that does not leave")
NOT_NEW = ("that is there from the start", "that was already there")

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
FRAMES = ("{}", "{}", "{}", "{}", "{} in the video", "find {}", "segment {}", "track {}", "{} please")

ATTRIBUTES = (*COLOURS, *MOTIONS)


def held_out(noun: str, attribute: str | None) -> bool:
    """Whether this pair of noun and colour or motion never occurs in training (about one pair of nine)."""
    return attribute in ATTRIBUTES and zlib.crc32(f"{noun}/{attribute}".encode()) % 9 == 0


def pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def name(rng: np.random.Generator, noun: str) -> str:
    """The noun or, one time in four, another name for it."""
    other = NOUNS[noun][1]
    return pick(rng, other) if other and rng.random() < 0.25 else noun


def phrase(
    rng: np.random.Generator,
    kind: str,
    noun: str,
    attribute: str | None,
    colour: str | None = None,
    anchor: str | None = None,
) -> str:
    """Words for one meaning. `colour` is added where the object has one that does not tell it apart."""
    plain = name(rng, noun)
    n = f"{colour} {plain}" if colour and rng.random() < 0.3 else plain
    if kind == "noun":
        text = f"the {n}"
    elif kind == "colour":
        text = pick(
            rng,
            (
                f"the {attribute} {plain}",
                f"the {attribute} {plain}",
                f"the {plain} that is {attribute}",
                f"the {plain} colored {attribute}",
            ),
        )
    elif kind == "size":
        text = f"the {pick(rng, SIZE[attribute])} {n}"
    elif kind == "position":
        text = pick(rng, POSITION[attribute]).format(n=n)
    elif kind == "relation":
        text = f"the {n} {pick(rng, RELATION[attribute])} the {name(rng, anchor)}"
    elif kind == "motion":
        text = _motion(rng, n, attribute)
    elif kind == "border":
        text = f"the {n} " + pick(
            rng,
            {"leave": LEAVE, "return": RETURN, "gone": GONE, "enter": ENTER, "stay": STAY, "there": NOT_NEW}[attribute],
        )
    else:
        text = _timed(rng, n, kind, attribute)
    return pick(rng, FRAMES).format(text)


def _motion(rng: np.random.Generator, n: str, attribute: str) -> str:
    if attribute == "still":
        doing, does = pick(rng, STILL)
    else:
        doing, does, _ = pick(rng, MOTIONS[attribute])
    return pick(rng, (f"the {n} {doing}", f"the {n} that is {doing}", f"the {n} that {does}"))


def _timed(rng: np.random.Generator, n: str, kind: str, attribute: str) -> str:
    if attribute == "stop":
        return pick(rng, (f"the {n} that stops", f"the {n} that stops moving", f"the {n} that comes to a halt"))
    doing, does, do = pick(rng, MOTIONS[attribute])
    if kind == "later":
        return pick(
            rng,
            (
                f"the {n} that starts {doing}",
                f"the {n} that later {does}",
                f"the {n} that starts to {do}",
                f"the {n} that {does} later",
                f"the {n} that begins to {do}",
            ),
        )
    return pick(
        rng,
        (
            f"the {n} that was {doing} at first",
            f"the {n} that first {does}",
            f"the {n} that {does} at the start",
            f"the {n} {doing} at the beginning",
        ),
    )


def absent(rng: np.random.Generator, nouns: set[str]) -> str:
    """A sentence about a noun that is not among `nouns`."""
    noun = pick(rng, [n for n in NOUN_NAMES if n not in nouns])
    kind = pick(rng, ("noun", "colour", "size", "position", "motion"))
    attribute = {
        "noun": None,
        "colour": pick(rng, tuple(COLOURS)),
        "size": pick(rng, tuple(SIZE)),
        "position": pick(rng, tuple(POSITION)),
        "motion": pick(rng, tuple(MOTIONS)),
    }[kind]
    return phrase(rng, kind, noun, attribute)
