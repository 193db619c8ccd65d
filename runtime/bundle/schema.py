"""The settings of a manifest, checked when it is read: types and ranges of every number that a schedule takes from it.

Which of them a network needs, the network says (`models/signatures.py`); settings that are not known here pass, so
that a bundle may carry more. What the fields mean stands in `docs/architecture.md`, "Settings of a manifest".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BundleError

Check = Callable[[Any, str], None]


def whole(low: int, high: int) -> Check:
    """A whole number in low..high."""

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise BundleError(f"{where} must be a whole number in {low}..{high}, not {value!r}")

    return check


def one_of(*words: str) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in words:
            raise BundleError(f"{where} must be one of {', '.join(words)}, not {value!r}")

    return check


def flag(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise BundleError(f"{where} must be true or false, not {value!r}")


def number(value: Any, where: str) -> None:
    """A finite number that float32 can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -1e30 < value < 1e30:
        raise BundleError(f"{where} must be a number, not {value!r}")


def colours(low: float) -> Check:
    """Three numbers above `low`, one per colour."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) != 3:
            raise BundleError(f"{where} must be three numbers, not {value!r}")
        for v in value:
            number(v, where)
            if not low < v:
                raise BundleError(f"{where} must be numbers above {low:g}, not {value!r}")

    return check


@dataclass(frozen=True, slots=True)
class Group:
    """An object with these fields, all of which it must have but those in `optional`. `null`: it may be missing."""

    fields: Mapping[str, Any]
    optional: tuple[str, ...] = ()
    null: bool = False

    def __call__(self, value: Any, where: str) -> None:
        if value is None and self.null:
            return
        if not isinstance(value, dict):
            raise BundleError(f"{where} must be an object, not {value!r}")
        for name, check in self.fields.items():
            if name in value:
                check(value[name], f"{where}.{name}")
            elif name not in self.optional:
                raise BundleError(f"{where}.{name} is missing")


COUNT = whole(1, 65_536)
SETTINGS = Group(
    {
        "window": whole(1, 1024),
        "mean": colours(-math.inf),
        "std": colours(1e-6),
        "resize": Group(
            {"rule": one_of("samwise_video", "square"), "short": whole(1, 8192), "max": whole(1, 8192)},
            optional=("short",),
        ),
        "memory": Group({"slots": COUNT, "pointers": whole(0, 65_536)}),
        "conditional_memory": Group({"first": whole(0, 1 << 31), "every": whole(1, 1 << 31)}, null=True),
        "text": Group(
            {"max_tokens": COUNT, "vocabulary": whole(1, 1 << 31), "motion": flag, "keep_end": flag, "lowercase": flag},
            optional=("keep_end", "lowercase"),
        ),
        "no_object_logit": number,
        "sam2": Group(
            {
                "memory": Group({"slots": COUNT, "pointers": whole(0, 65_536)}),
                "resample": Group(
                    {"video": one_of("bilinear", "bicubic", "float"), "image": one_of("bilinear", "bicubic", "float")}
                ),
            }
        ),
    },
    optional=("window", "mean", "std", "resize", "memory", "conditional_memory", "text", "no_object_logit", "sam2"),
)
"""Every setting that the runtime knows. At the top all are optional: which are needed is the network's affair."""


def check(settings: Any) -> None:
    """Raise BundleError that names the first setting of a wrong type or out of range."""
    SETTINGS(settings, "settings")
