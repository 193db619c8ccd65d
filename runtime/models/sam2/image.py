"""Image prediction of SAM 2: masks for points, boxes and mask logits, or for everything in an image.

The rules are those of SAM 2's image predictor, which differ from a video's: the image is resized without rounding to
bytes, there is no object score, and a prompt without points has no point tokens at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...device.array import DeviceArray
from ...device.base import Array
from ...errors import PromptError
from ...imaging.upsample import square_upsampler
from ...prompts import Box, Points
from ...prompts.numbers import check_unmasked
from ...results import Prediction, Segment
from ...tracking.prompt_inputs import PADDING_POINT, PointInputs
from ...tracking.requests import DecodeRequest
from ...tracking.step import TrackerNetwork
from ..options import AutomaticMaskOptions
from .automatic_masks import segment_all

MAX_LOGIT = 32.0
"""Low-res logits are returned within this range, and may come back as `mask_input`."""


class Sam2ImagePredictor:
    """An image, encoded once for any number of prompts. Made by `Engine.image`."""

    def __init__(self, network: TrackerNetwork, frame_hwc: Array) -> None:
        self._network, self._frame = network, frame_hwc
        self.size: tuple[int, int] = frame_hwc.shape[:2]
        self._features = network.new_features()
        network.encode_image(self._frame, self._features, network.resample["image"])
        self._upsampler = square_upsampler(network.low_res_side, self.size)

    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask: bool = True,
        normalized: bool = False,
    ) -> Prediction:
        """Predict masks for a prompt, or for a batch; see `runtime.ImagePredictor.predict`. Raises PromptError."""
        point_inputs, many_points = self._point_inputs(points, labels, box, normalized)
        mask_inputs, many_masks = self._mask_inputs(mask_input)
        if not point_inputs and not mask_inputs:
            raise PromptError("no prompt: give points, box or mask_input")
        count = max(len(point_inputs), len(mask_inputs))
        if {len(point_inputs) or 1, len(mask_inputs) or 1} - {1, count}:
            raise PromptError(
                f"{len(point_inputs)} prompts and {len(mask_inputs)} mask inputs do not go together; give as many"
            )
        requests = self._requests(_repeated(point_inputs, count), _repeated(mask_inputs, count), multimask)
        on_device = self._network.device_masks(self.size)
        outputs = self._decoded([replace(request, masks=on_device) for request in requests])
        logits, scores = (np.stack(part) for part in zip(*((x, ious) for x, ious, _ in outputs), strict=True))
        masks = np.stack(
            [
                self._upsampler.masks(x) if bits is None or on_device is None else on_device.masks(bits)
                for x, _, bits in outputs
            ]
        )
        logits = logits.clip(-MAX_LOGIT, MAX_LOGIT)
        if many_points or many_masks:
            return Prediction(masks, scores, logits)
        return Prediction(masks[0], scores[0], logits[0])

    def segment_all(self, options: AutomaticMaskOptions) -> list[Segment]:
        """Segment everything in the image, without prompts."""
        return segment_all(self._frame, self, options)

    # -- parts that automatic masks use ---------------------------------------------------------------------------

    def crop(self, crop: tuple[int, int, int, int]) -> Sam2ImagePredictor:
        """Encode a crop (x0, y0, x1, y1) of the image."""
        x0, y0, x1, y1 = crop
        if isinstance(self._frame, DeviceArray):  # whose views have no gaps
            self._frame = np.array(self._network.device.download(self._frame))
        return Sam2ImagePredictor(self._network, self._frame[y0:y1, x0:x1].copy())

    def point(self, xy: np.ndarray) -> PointInputs:
        """Convert one point on an object, (x, y) in pixels."""
        return self._network.prompt_encoder.scale(xy[None], np.ones(1), self.size, False)

    def decode(
        self, points: Sequence[PointInputs | None], mask_logits: Sequence[np.ndarray | None], multimask: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (B,M,s,s) logits, not clipped, and (B,M) predicted IoUs."""
        outputs = self._decoded(self._requests(points, mask_logits, multimask))
        return np.stack([logits for logits, _, _ in outputs]), np.stack([ious for _, ious, _ in outputs])

    def _requests(
        self, points: Sequence[PointInputs | None], mask_logits: Sequence[np.ndarray | None], multimask: bool
    ) -> list[DecodeRequest]:
        return [
            DecodeRequest(None if p is None else p + PADDING_POINT, multimask, logits)
            for p, logits in zip(points, mask_logits, strict=True)
        ]

    def _decoded(self, requests: Sequence[DecodeRequest]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """Return logits, predicted IoUs and, where the device makes masks, their bits, of the chosen masks of each."""
        found = []
        for request, output in zip(requests, self._network.decode(self._features, requests, True), strict=True):
            assert output.all_logits is not None
            chosen = slice(1, 4) if request.multimask else slice(output.selected, output.selected + 1)
            bits = None if output.mask_bits is None else output.mask_bits.packed[chosen]
            found.append((output.all_logits[chosen], output.ious[chosen], bits))
        return found

    def upsample(self, logits: np.ndarray) -> np.ndarray:
        """Upsample logits (N,s,s) to the size of the image, (N,H,W)."""
        return self._upsampler.logits(logits)

    # -- prompts --------------------------------------------------------------------------------------------------

    def _point_inputs(self, points: Any, labels: Any, box: Any, normalized: bool) -> tuple[list[PointInputs], bool]:
        """Return the points of each prompt, a box before them, and whether they are a batch."""
        if (points is None) != (labels is None):
            raise PromptError("give points and labels together, or neither")
        sets: list[list[PointInputs]] = []
        batched = False
        if box is not None:
            array = _array(box)
            batched = array.ndim == 2
            rows = list(array) if array.ndim == 2 else [array]
            sets.append([self._convert(Box(row, normalized)) for row in rows])
        if points is not None:
            array = _array(points)
            batched = batched or array.ndim == 3
            rows = list(array) if array.ndim == 3 else [array]
            check_unmasked(labels, "labels")
            marks = list(np.asarray(labels)) if array.ndim == 3 else [labels]
            if len(marks) != len(rows):
                raise PromptError(f"{len(rows)} sets of points need as many sets of labels, not {len(marks)}")
            sets.append([self._convert(Points(r, m, normalized)) for r, m in zip(rows, marks, strict=True)])
        if len(sets) == 2 and len(sets[0]) != len(sets[1]):
            raise PromptError(
                f"{len(sets[0])} boxes and {len(sets[1])} sets of points do not go together; give as many"
            )
        check = self._network.prompt_encoder.check
        return [check(sum(parts[1:], parts[0])) for parts in zip(*sets, strict=True)], batched

    def _convert(self, part: Points | Box) -> PointInputs:
        return self._network.prompt_encoder.points(part, self.size)

    def _mask_inputs(self, mask_input: Any) -> tuple[list[np.ndarray], bool]:
        """Return the mask logits of each prompt, and whether they are a batch."""
        if mask_input is None:
            return [], False
        array, side = _array(mask_input).astype(np.float32), self._network.low_res_side
        leading = array.shape[:-2]
        fits = array.shape[-2:] == (side, side) and leading[-1:] in ((), (1,)) and len(leading) <= 2
        if not fits or not array.size:
            raise PromptError(f"mask_input must be ({side},{side}) logits of an earlier prediction, not {array.shape}")
        return list(array.reshape(-1, side, side)), array.ndim == 4


def _repeated(inputs: list[Any], count: int) -> list[Any]:
    """Repeat a single input, or none, for `count` prompts."""
    inputs = inputs or [None]
    return inputs * (count // len(inputs))


def _array(values: Any) -> np.ndarray:
    check_unmasked(values, "points, boxes and mask inputs")
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise PromptError("points, labels, boxes and mask inputs must be arrays of numbers") from None
