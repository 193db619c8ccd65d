"""Demonstration clip of a bundle: a video, sentences about it, and the true masks.

A folder with `clip.mp4`, `demo.json` ({"sentences": [{"text": ..., "object": id}, ...]}) and `masks.npz`, whose array
`masks` (T, H, W) uint8 holds object ids, 0 for the background.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import BundleError
from ..metrics import boundary_f, jaccard
from ..prompts import Text
from ..results import Result

CLIP, SENTENCES, MASKS = "clip.mp4", "demo.json", "masks.npz"


@dataclass(frozen=True, slots=True)
class Demo:
    """`objects[k]` is the id, in `masks`, of the object that sentence k describes."""

    clip: Path
    prompts: list[Text]
    objects: list[int]
    masks: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> Demo:
        """Load the demonstration in `folder`. Raises BundleError."""
        try:
            entries = json.loads((folder / SENTENCES).read_text(encoding="utf-8"))["sentences"]
            with np.load(folder / MASKS) as arrays:
                masks = arrays["masks"]
            prompts = [Text(entry["text"]) for entry in entries]
            return cls(folder / CLIP, prompts, [int(entry["object"]) for entry in entries], masks)
        except (OSError, KeyError, TypeError, ValueError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise BundleError(f"{folder}: the demonstration is damaged ({cause}); copy the bundle again") from None


@dataclass(slots=True)
class Quality:
    """J and F of the results of a demonstration against its masks, accumulated frame by frame."""

    demo: Demo
    stride: int = 1
    scores: list[np.ndarray] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Compare one frame. The objects that a sentence has found count together."""
        frame = result.frame_index * self.stride
        if frame >= len(self.demo.masks) or self.demo.masks.shape[1:] != result.masks.shape[1:]:
            raise BundleError(f"{self.demo.clip}: its masks do not fit the clip; copy the bundle again")
        truth = np.stack([self.demo.masks[frame] == obj for obj in self.demo.objects])
        prompt_ids = np.asarray(result.prompt_ids, int)
        found = np.stack([result.masks[prompt_ids == k].any(axis=0) for k in range(1, len(truth) + 1)])
        self.scores.append(np.stack([jaccard(found, truth), boundary_f(found, truth)]))

    def table(self) -> list[dict[str, float]]:
        """Return J, F and their mean per sentence, over the frames so far."""
        if not self.scores:
            return []
        mean = np.array(self.scores).mean(axis=0)  # (2, sentences)
        return [{"J": float(j), "F": float(f), "J&F": float(j + f) / 2} for j, f in mean.T]
