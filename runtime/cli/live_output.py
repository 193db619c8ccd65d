"""Output while a run goes on: a line of JSON per frame on standard output, and a window."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .window import Window, unavailable_reason


def print_event(with_masks: bool, record: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Print a frame's record as one line, flushed: its objects with their prompts, and masks if requested."""
    objects = []
    for entry, label in zip(record["objects"], labels, strict=True):
        kept = {key: value for key, value in entry.items() if with_masks or key != "segmentation"}
        objects.append({"id": kept.pop("id"), "prompt": label, **kept})
    print(json.dumps({**record, "objects": objects}, ensure_ascii=False, separators=(",", ":")), flush=True)


@contextmanager
def open_window(title: str, wanted: bool) -> Iterator[Callable[[np.ndarray], None] | None]:
    """Return the function that shows an image in a window; None without one, which standard error then explains."""
    reason = unavailable_reason() if wanted else None
    if not wanted or reason is not None:
        if reason is not None:
            print(f"note: --show: {reason}; the run goes on without a window", file=sys.stderr)
        yield None
        return
    window = Window(title)
    try:
        yield window.show
    finally:
        window.close()
