"""One picture: masks for clicks, boxes and mask logits, or for everything in it.

The rules are those of SAM 2's image predictor, which differ from a video's: the picture is resized without rounding to
bytes, there is no object score, and a prompt without points has no point tokens at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import PromptError
from ...imaging.upsample import MaskUpsampler
from ...media.image_files import check_frame
from ...prompts import Box, Points
from ...results import Prediction, Segment
from ...tracking.state import Clicks
from .automatic_masks import segment_all

CLAMP = 32.0
"""Low-res logits are returned within this range, and may come back as `mask_input`."""


class ImageSession:
    """A picture, encoded once, that answers any number of prompts. `Engine.image` makes it when asked for clicks."""

    def __init__(self, network: Any, picture: Any) -> None:
        frame = check_frame(picture, 0, None)
        self._network, self._frame = network, frame
        self.size = frame.shape[:2]
        self._maps = network.picture()
        network.encode(frame, self._maps, network.resample["image"])
        side = network.low_res_side
        self._upsampler = MaskUpsampler(side, side, (side, side), self.size)

    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask: bool = True,
        normalized: bool = False,
    ) -> Prediction:
        """Masks for a prompt, or for a batch of B prompts of one kind.

        points      (K,2) x, y in pixels, or (B,K,2); labels (K,) or (B,K), 1 on the object, 0 beside it
        box         (4,) left, top, right, bottom, or (B,4)
        mask_input  (s,s) or (1,s,s) logits of an earlier prediction, or (B,1,s,s)
        multimask   three candidates; else one, mask 0 or the best candidate where mask 0 is unstable
        normalized  points and boxes are given in 0..1
        Raises PromptError.
        """
        clicks, batched = self._clicks(points, labels, box, normalized)
        inputs, more = self._inputs(mask_input)
        if clicks is None and inputs is None:
            raise PromptError("no prompt: give points, box or mask_input")
        count = max(len(x) for x in (clicks, inputs) if x is not None)
        clicks, inputs = clicks or [None], inputs or [None]
        if {len(clicks), len(inputs)} - {1, count}:
            raise PromptError(f"{len(clicks)} prompts and {len(inputs)} mask inputs do not go together; give as many")
        clicks, inputs = clicks * (count // len(clicks)), inputs * (count // len(inputs))
        logits, scores = self.decode(clicks, inputs, multimask)
        masks = np.stack([self._upsampler.masks(x) for x in logits])
        result = masks, scores, logits.clip(-CLAMP, CLAMP)
        return Prediction(*(result if batched or more else (x[0] for x in result)))

    def segment_all(self, **options: Any) -> list[Segment]:
        """Masks of everything in the picture, without prompts; see `automatic.Settings` for the options."""
        return segment_all(self._network, self._frame, self, **options)

    # -- what the network is asked --------------------------------------------------------------------------------

    def decode(
        self, clicks: list[Clicks | None], inputs: list[np.ndarray | None], multimask: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B,M,s,s) unclamped logits and (B,M) expected IoUs."""
        queries = [self._network.image_query(c, logits, multimask) for c, logits in zip(clicks, inputs)]
        answers = self._network.ask(self._maps, queries, all_logits=True)
        chosen = [slice(1, 4) if multimask else slice(a.selected, a.selected + 1) for a in answers]
        return (
            np.stack([a.all_logits[c] for a, c in zip(answers, chosen)]),
            np.stack([a.ious[c] for a, c in zip(answers, chosen)]),
        )

    def upsample(self, logits: np.ndarray) -> np.ndarray:
        """Logits (N,s,s) at the picture's size, (N,H,W)."""
        return self._upsampler.logits(logits)

    def _clicks(self, points: Any, labels: Any, box: Any, normalized: bool) -> tuple[list[Clicks] | None, bool]:
        """One set of clicks per prompt, a box before its points; and whether a batch was asked for."""
        if (points is None) != (labels is None):
            raise PromptError("give points and labels together, or neither")
        sets, batched = [], False
        for values, deep in ((box, 2), (points, 3)):
            if values is None:
                continue
            array = _array(values)
            batched = batched or array.ndim == deep
            rows = list(array) if array.ndim == deep else [array]
            if deep == 2:
                sets.append([self._one(Box(row, normalized)) for row in rows])
            else:
                marks = list(np.asarray(labels)) if array.ndim == deep else [labels]
                if len(marks) != len(rows):
                    raise PromptError(f"{len(rows)} sets of points need as many sets of labels, not {len(marks)}")
                sets.append([self._one(Points(row, mark, normalized)) for row, mark in zip(rows, marks)])
        if not sets:
            return None, False
        if len(sets) == 2 and len(sets[0]) != len(sets[1]):
            raise PromptError(
                f"{len(sets[0])} boxes and {len(sets[1])} sets of points do not go together; give as many"
            )
        return [self._network.checked(sum(parts[1:], parts[0])) for parts in zip(*sets)], batched

    def _one(self, part: Points | Box) -> Clicks:
        part.scaled(*self.size)  # raises for what lies outside
        if isinstance(part, Box):
            xy, labels = np.array(part.xyxy).reshape(2, 2), np.array([2, 3])
        else:
            xy, labels = np.array(part.points), np.array(part.labels)
        return self._network.clicks(xy, labels, self.size, part.normalized)

    def _inputs(self, mask_input: Any) -> tuple[list[np.ndarray] | None, bool]:
        if mask_input is None:
            return None, False
        array, side = _array(mask_input).astype(np.float32), self._network.low_res_side
        if (
            array.ndim not in (2, 3, 4)
            or array.shape[-2:] != (side, side)
            or (array.ndim == 3 and len(array) != 1)
            or (array.ndim == 4 and array.shape[1] != 1)
            or not len(array)
        ):
            raise PromptError(f"mask_input must be ({side},{side}) logits of an earlier prediction, not {array.shape}")
        return list(array.reshape(-1, side, side)), array.ndim == 4


def _array(values: Any) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise PromptError("points, labels, boxes and mask inputs must be arrays of numbers") from None
