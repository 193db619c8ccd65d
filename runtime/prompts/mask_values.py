"""Meaning of the values of a mask prompt: bools, probabilities, logits, soft edges, or numbers of objects."""

from __future__ import annotations

import numpy as np

from ..errors import PromptError, summarize

NO_LABEL = 0
"""Label of a mask that is one object, without a number of its own."""

_NUMBERING = "number the objects 1, 2, 3, or give one object of 0 and 1"


def masks_by_label(values_hw: np.ndarray) -> dict[int, np.ndarray]:
    """Split a mask of any kind of numbers into a bool mask per object, by label; `NO_LABEL` if it is one object.

    The highest value of 8 or 16 bits beside low labels is DAVIS's void label and left out. Raises PromptError for
    values without a clear meaning.
    """
    if values_hw.dtype.kind == "b":
        return {NO_LABEL: values_hw}
    low, high = values_hw.min(), values_hw.max()
    if not np.isfinite([low, high]).all():
        raise PromptError(f"the mask prompt has values that are not finite: {low:g} to {high:g}")
    if values_hw.dtype.kind == "f" and (low < 0 or high <= 1 or (values_hw % 1).any()):
        return {NO_LABEL: values_hw > _float_threshold(float(low), float(high))}
    if low < 0 or high > 0xFFFF:
        raise PromptError(f"the mask prompt has integers from {low:g} to {high:g}; give 0 outside, 1 inside the object")
    top = 0xFF if high <= 0xFF else 0xFFFF
    found = np.unique(values_hw[values_hw > 0]).astype(int)
    labels = found[found < top]
    if len(found) < 2 and not any(1 < label <= top // 2 for label in labels):
        return {NO_LABEL: values_hw > 0}
    if _has_soft_edges(values_hw, labels, top):
        return {NO_LABEL: values_hw > top // 2}
    return {int(label): values_hw == label for label in labels}


def _float_threshold(low: float, high: float) -> float:
    """Return the threshold of a mask of floats. Raises PromptError unless they are probabilities or logits."""
    margin = 1e-3  # of interpolation
    if -margin <= low and high <= 1 + margin:
        if 0 < high <= 0.5:
            raise PromptError(f"the mask prompt is empty: its probabilities are {high:g} at most, none above 0.5")
        return 0.5
    if low >= 0 or (low > -0.25 and high < 1.25):
        raise PromptError(
            f"the mask prompt has values of {low:g} to {high:g}: neither probabilities, 0 to 1, nor logits, below and "
            "above 0; give bools, like array > threshold"
        )
    return 0.0


def _has_soft_edges(values_hw: np.ndarray, labels: np.ndarray, top: int) -> bool:
    """Tell the grey levels of one object with soft edges from numbers of objects, which fill areas.

    Raises PromptError for areas of high values, which may be either.
    """
    is_grey, num_top = (values_hw > 0) & (values_hw < top), (values_hw == top).sum()
    if not num_top and np.array_equal(labels, np.arange(1, len(labels) + 1)):
        return False  # counted from 1, and the highest grey level of a soft edge is missing
    are_low = labels.max() <= top // (4 if num_top else 2)
    if are_low and num_top <= is_grey.sum():
        return False
    padded = np.pad(values_hw.astype(np.int32), 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    contrast = windows.max(axis=(2, 3)) - windows.min(axis=(2, 3))
    if are_low:
        return not (is_grey & (contrast == 0)).any()
    middle = contrast[(values_hw > top // 8) & (values_hw < top - top // 8)]
    high = np.unique(values_hw[(contrast == 0) & (values_hw >= top - top // 8)])
    if len(high) > 1 and high[0] < top - 1:
        raise PromptError(f"the mask prompt has areas of the values {summarize(str(high.tolist()), 80)}; {_NUMBERING}")
    if (middle == 0).any() and (middle > top // 32).sum() > ((middle > 0) & (middle <= top // 32)).sum():
        areas = f"the mask prompt has areas of the grey values {summarize(str(labels.tolist()), 80)}"
        raise PromptError(f"{areas}; {_NUMBERING}")
    return True
