"""Mutations of JSON that stay JSON: what a byte-wise mutator almost never does to a manifest."""

from __future__ import annotations

import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    65536,
    2**31,
    -(2**31),
    2**63,
    10**12,
    10**30,
    0.5,
    -1.5,
    1e308,
    "",
    " ",
    "x",
    "a\nb",
    "\u0000",
    "\ud800",
    "../../x",
    "/etc/passwd",
    "C:\\x",
    "9" * 40,
    [],
    {},
    [[]],
    [0],
    [1, 2],
    ["a"],
    {"a": 1},
    "float16",
    "int64",
    "frames",
    "square",
    "samwise+sam2",
    float("nan"),
    float("inf"),
)
"""Values that code which expects something else stumbles over."""

FIELDS = ("x", "type", "vocab", "window", "text", "memory", "resize", "mean", "std", "conditional_memory", "sam2")


def mutated(data: bytes, rng: random.Random, words: tuple[bytes, ...] = ()) -> bytes | None:
    """The JSON with one to three changes; None when it is no JSON."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    strings = [w for w in map(_string, words) if w is not None]
    for _ in range(rng.randint(1, 3)):
        value = _changed(value, rng, strings)
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return None


def _string(word: bytes) -> str | None:
    """A word of the dictionary as a string value."""
    try:
        value = json.loads(word)
    except ValueError:
        return word.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


def _changed(value: Any, rng: random.Random, strings: list[str]) -> Any:
    """One change at a place picked by walking down; every level may be the last."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value, key=str))
        action = rng.random()
        if action < 0.06:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.12:
            return {**value, rng.choice([*FIELDS, *strings]): _new(rng, strings)}
        return {**value, key: _changed(value[key], rng, strings)}
    if isinstance(value, list) and rng.random() < 0.9:
        return _changed_list(value, rng, strings)
    if isinstance(value, str) and rng.random() < 0.7:
        return _changed_string(value, rng, strings)
    if isinstance(value, int) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 2, 16, -value, value, 1 << rng.randint(0, 40)))
    return _new(rng, strings)


def _changed_list(value: list[Any], rng: random.Random, strings: list[str]) -> list[Any]:
    at = rng.randrange(len(value) + 1)
    action = rng.random()
    if action < 0.15 or not value:
        return [*value[:at], _new(rng, strings), *value[at:]]
    at = min(at, len(value) - 1)
    if action < 0.25:
        return [*value[:at], *value[at + 1 :]]
    if action < 0.35:
        return [*value[:at], value[at], *value[at:]]
    return [*value[:at], _changed(value[at], rng, strings), *value[at + 1 :]]


def _changed_string(value: str, rng: random.Random, strings: list[str]) -> str:
    at, to = sorted((rng.randrange(len(value) + 1), rng.randrange(len(value) + 1)))
    piece = rng.choice(
        [
            *strings,
            "",
            chr(rng.choice((0, 9, 10, 34, 44, 45, 46, 47, 64, 35, 233, 0x663, 0x1F600))),
            value[at:to],
            str(rng.choice((-1, 0, 3, 10**12))),
        ]
    )
    return value[:at] + piece + value[to if rng.random() < 0.5 else at :]


def _new(rng: random.Random, strings: list[str]) -> Any:
    return rng.choice(strings) if strings and rng.random() < 0.3 else rng.choice(ODD)
