"""Hypothesis strategies of damaged inputs: bytes, and JSON that stays JSON."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

INTEGERS = (0, 1, -1, 2, 3, 7, 255, 65536, 2**31, -(2**31), 2**63, 10**12, 10**30)
FLOATS = (0.5, -1.5, 1e308, float("nan"), float("inf"))
STRINGS = (
    *("", " ", "x", "a\nb", "\0", "\ud800", "../../x", "/etc/passwd", "C:\\x", "9" * 40),
    *("float16", "int64", "frames", "square", "samwise"),
)
CONTAINERS: tuple[Any, ...] = ([], {}, [[]], [0], [1, 2], ["a"], {"a": 1})
UNEXPECTED: tuple[Any, ...] = (None, True, False, *INTEGERS, *FLOATS, *STRINGS, *CONTAINERS)
"""Values that often break code which expects another type or range."""

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(UNEXPECTED) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
DELETE = "\0delete"
"""As the new value of `replaced`: remove the field."""


def replaced(data: Any, path: Sequence[Any], value: Any) -> Any:
    """Copy of the JSON `data` with `value` at `path`; a path that does not exist changes nothing."""
    if not path:
        return value
    key = path[0]
    if isinstance(data, dict) and isinstance(key, str):
        rest = {k: v for k, v in data.items() if k != key}
        return rest if len(path) == 1 and value == DELETE else rest | {key: replaced(data.get(key), path[1:], value)}
    if isinstance(data, list) and isinstance(key, int) and 0 <= key < len(data):
        return [*data[:key], replaced(data[key], path[1:], value), *data[key + 1 :]]
    return data


@st.composite
def damaged_bytes(draw: Callable[..., Any], examples: Callable[[], list[bytes]], words: Sequence[bytes]) -> bytes:
    """An example with up to three changes: bytes replaced, inserted, cut off, removed or repeated."""
    data = draw(st.sampled_from(examples()))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        head, tail, count = data[:at], data[at:], draw(st.integers(1, 64))
        action = draw(st.sampled_from(("replace", "insert", "cut", "remove", "repeat")))
        if action == "replace":
            piece = draw(st.binary(min_size=1, max_size=4))
            data = head + piece + tail[len(piece) :]
        elif action == "insert":
            data = head + draw(st.sampled_from(words)) + tail
        else:
            data = head + {"cut": b"", "remove": tail[count:], "repeat": tail[:count] + tail}[action]
    return data


@st.composite
def damaged_json(draw: Callable[..., Any], examples: Callable[[], list[Any]], words: Sequence[str]) -> Any:
    """An example with one to three values changed, removed, added or repeated."""
    value, rng = draw(st.sampled_from(examples())), draw(st.randoms(use_true_random=False))
    for _ in range(rng.randint(1, 3)):
        value = _changed(value, rng, words)
    return value


def _changed(value: Any, rng: random.Random, words: Sequence[str]) -> Any:
    """One change at a place that is chosen by walking down; every level may be the last."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key, action = rng.choice(sorted(value)), rng.random()
        if action < 0.06:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.12:
            return {**value, rng.choice(words): _new(rng, words)}
        return {**value, key: _changed(value[key], rng, words)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at, action = rng.randrange(len(value)), rng.random()
        pieces = [] if action < 0.1 else [_new(rng, words), value[at]] if action < 0.25 else [value[at]] * 2
        pieces = pieces if action < 0.35 else [_changed(value[at], rng, words)]
        return [*value[:at], *pieces, *value[at + 1 :]]
    if isinstance(value, str) and rng.random() < 0.7:
        at, to = sorted((rng.randint(0, len(value)), rng.randint(0, len(value))))
        letter = chr(rng.choice((0, 9, 10, 34, 44, 45, 46, 47, 64, 35, 233, 0x663, 0x1F600)))
        piece = rng.choice([*words, "", letter, value[at:to], str(rng.choice((-1, 0, 3, 10**12)))])
        return value[:at] + piece + value[to if rng.random() < 0.5 else at :]
    if isinstance(value, int) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 2, 16, -value, value, 1 << rng.randint(0, 40)))
    return _new(rng, words)


def _new(rng: random.Random, words: Sequence[str]) -> Any:
    return rng.choice(words) if rng.random() < 0.3 else rng.choice(UNEXPECTED)
