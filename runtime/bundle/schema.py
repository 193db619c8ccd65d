"""Schema of a manifest: checks of types and ranges, applied when a bundle is read.

A check takes a value and its place in the file and raises BundleError that names the place. Keys that no schema names
are accepted, so that a bundle may carry more. The settings of a network are checked by the schema that it carries
(`settings_schema`), made of the parts here.
The settings are described in `docs/architecture.md`, "Settings of a manifest".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BundleError

Check = Callable[[Any, str], None]


def whole(low: int, high: int) -> Check:
    """Accept a whole number in low..high. A bool, which is an int in Python, is refused."""

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise BundleError(f"{where} must be a whole number in {low}..{high}, not {value!r}")

    return check


def one_of(*words: str) -> Check:
    """Accept one of these strings."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in words:
            raise BundleError(f"{where} must be one of {', '.join(words)}, not {value!r}")

    return check


def flag(value: Any, where: str) -> None:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise BundleError(f"{where} must be true or false, not {value!r}")


def number(value: Any, where: str) -> None:
    """Accept a finite number that float32 can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -1e30 < value < 1e30:
        raise BundleError(f"{where} must be a number, not {value!r}")


def string(value: Any, where: str) -> None:
    """Accept any string."""
    if not isinstance(value, str):
        raise BundleError(f"{where} must be a string, not {value!r}")


def path(value: Any, where: str) -> None:
    """Accept a relative path that stays inside the bundle's folder."""
    if (
        not isinstance(value, str)
        or not value
        or not value.isprintable()
        or value.startswith(("/", "\\"))
        or ":" in value
        or ".." in value.replace("\\", "/").split("/")
    ):
        raise BundleError(f"{where}: {value!r} is not a path inside the bundle")


def colors(low: float) -> Check:
    """Accept three numbers above `low`, one per color channel."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) != 3:
            raise BundleError(f"{where} must be three numbers, not {value!r}")
        for v in value:
            number(v, where)
            if not low < v:
                raise BundleError(f"{where} must be numbers above {low:g}, not {value!r}")

    return check


def nullable(inner: Check) -> Check:
    """Accept null, or a value that `inner` accepts."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def array_of(inner: Check) -> Check:
    """Accept a list whose items all pass `inner`."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise BundleError(f"{where} must be a list, not {value!r}")
        for index, item in enumerate(value):
            inner(item, f"{where}[{index}]")

    return check


def map_of(inner: Check, key: Check = string) -> Check:
    """Accept an object whose keys pass `key` and whose values pass `inner`."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"{where} must be an object, not {value!r}")
        for name, item in value.items():
            key(name, where)
            inner(item, f"{where}.{name}")

    return check


@dataclass(frozen=True, slots=True)
class Group:
    """An object with these fields; all are required but those in `optional`."""

    fields: Mapping[str, Check]
    optional: tuple[str, ...] = ()

    def __call__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"{where} must be an object, not {value!r}")
        for name, check in self.fields.items():
            if name in value:
                check(value[name], f"{where}.{name}")
            elif name not in self.optional:
                raise BundleError(f"{where}.{name} is missing")


COUNT = whole(1, 65_536)
NORMALIZATION: Mapping[str, Check] = {"mean": colors(-math.inf), "std": colors(1e-6)}
RESIZE = Group(
    {"rule": one_of("samwise_video", "square"), "short": whole(1, 8192), "max": whole(1, 8192)}, optional=("short",)
)
TEXT = Group(
    {
        "max_tokens": COUNT,
        "vocabulary": whole(1, 1 << 31),
        "motion": flag,
        "keep_end": flag,
        "lowercase": flag,
        "padding": whole(0, 1 << 31),
    },
    optional=("keep_end", "lowercase", "padding"),
)
RESAMPLE = one_of("bilinear", "bicubic", "float", "uint8", "half")


def networks(value: Any, where: str) -> None:
    """Accept network name -> settings, at least one network."""
    map_of(Group({}))(value, where)
    if not value:
        raise BundleError(f"{where} must name at least one network")
