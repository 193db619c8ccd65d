"""Conversion of what callers give as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PromptError, summarize


def integers(values: Any, name: str) -> tuple[int, ...]:
    """Return a flat list of integers as a tuple. Raises PromptError that calls it `name`."""
    check_unmasked(values, name)
    try:
        array = np.asarray(values)
    except ValueError:
        raise PromptError(f"{name} must be a flat list of integers") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise PromptError(f"{name} must be a flat list of integers")
    return tuple(int(v) for v in array)


def floats(values: Any, name: str) -> np.ndarray:
    """Return finite numbers as float64. Raises PromptError that calls them `name`."""
    check_unmasked(values, name)
    try:
        array = np.asarray(values)
        array = array.astype(np.float64, casting="unsafe" if array.dtype.kind != "c" else "safe")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise PromptError(f"{name} must be numbers ({summarize(error)})") from None
    if not np.isfinite(array).all():
        raise PromptError(f"{name} must be finite numbers, not {listed(array)}")
    return array


def check_unmasked(values: Any, name: str) -> None:
    """Raise PromptError for a masked array of NumPy, whose hidden values would count."""
    if np.ma.is_masked(values):
        raise PromptError(
            f"{name} must be plain numbers, not a masked array; give array.filled(0) or array.compressed()"
        )


def listed(values: npt.ArrayLike) -> str:
    """Return values as text, for messages."""
    return summarize(str(np.asarray(values).tolist()), 80)
