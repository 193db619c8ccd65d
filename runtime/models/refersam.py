"""ReferSAM: the order of its stages (IEEE TCSVT 2024, 10.1109/TCSVT.2024.3524543).

A picture is encoded once, a sentence once, and every pair of the two is fused; sentences on one picture share a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle.bundle import Bundle
from ..device.base import Device
from ..device.scratch import ScratchBuffers
from ..imaging.masks import boxes_and_areas
from ..imaging.preprocess import preprocess, resized_size
from ..imaging.upsample import MaskUpsampler, _Bands
from ..prompts import Text
from ..results import Result
from ..tokenizer import Tokenizer, encode

if TYPE_CHECKING:
    from ..backends.base import Stage

SENTENCES = 256
"""Sentences whose features are kept, 60 kB each: an evaluation or a live prompt asks the same ones again."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An encoded picture: outputs of `image` by name, and the way from logits to masks at its own size."""

    maps: Mapping[str, Any]
    upsampler: CornerUpsampler


class CornerUpsampler(MaskUpsampler):
    """Low-res logits (N,side,side) straight to the source size, bilinear with align_corners true; zero is inside.

    The official code goes to the input size and stops there. Its grid spans corner to corner, so the source size is the
    same grid with other steps.
    """

    def __init__(self, low_side: int, source_hw: tuple[int, int]) -> None:
        super().__init__(low_side, low_side, (low_side, low_side), source_hw)
        self.rows, self.columns = (corner_matrix(low_side, n) for n in source_hw)
        self._rows, self._columns = _Bands(self.rows), _Bands(self.columns)

    def masks(self, low_nss: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Bool (N,H,W), true where the sigmoid of the logit is at least one half."""
        out = np.empty((len(low_nss), *self.source_hw), bool) if out is None else out
        for low, mask in zip(low_nss, out):
            self._one(low, self._full)
            np.greater_equal(self._full, 0, out=mask)
        return out


def corner_matrix(source: int, target: int) -> np.ndarray:
    """(target, source) float64 weights of one axis of PyTorch's bilinear resize, align_corners true.

    Coordinates are rounded to float32 at the places where PyTorch rounds them.
    """
    step = np.float32(source - 1) / np.float32(target - 1) if target > 1 else np.float32(0)
    position = (step * np.arange(target, dtype=np.float32)).astype(np.float32)
    left = np.minimum(position.astype(np.int64), source - 1)
    right = np.minimum(left + 1, source - 1)
    weight = (position - left.astype(np.float32)).astype(np.float64)
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    np.add.at(matrix, (rows, left), 1 - weight)
    np.add.at(matrix, (rows, right), weight)
    return matrix


class ReferSam:
    """Stages and buffers of one ReferSAM bundle."""

    STAGES = ("image", "text", "fuse")

    def __init__(self, bundle: Bundle, stages: Mapping[str, Stage], device: Device, objects: int) -> None:
        manifest = bundle.manifest
        settings = manifest.networks["refersam"]
        self._bundle, self._device = bundle, device
        self._stages = {name: stages[name] for name in self.STAGES}
        self._tokenizer: Any = None
        self.image_size = manifest.image_size
        self.mean, self.std = tuple(settings["mean"]), tuple(settings["std"])
        self._resize = settings["resize"]
        specs = {name: stage.spec for name, stage in self._stages.items()}
        self.low_res_side: int = specs["fuse"].output("low_res_logits").shape[1]
        # a batch never exceeds what the graph was exported for; more sentences run in several batches
        self.batch = min(objects, manifest.bounds["objects"][1])
        self._work = ScratchBuffers(device, {"fuse": specs["fuse"]}, {"objects": self.batch})
        pixels, text = specs["image"].input("pixels"), specs["fuse"].input("text")
        self._pixels = device.empty(pixels.shape, pixels.dtype)
        self._width: int = text.shape[2]
        # padding is read, with weight zero: it must hold numbers
        self._text = device.constant(np.zeros(self.batch * settings["text"]["max_tokens"] * self._width, text.dtype))
        self._sentences: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def see(self, frame_hwc: np.ndarray) -> Seen:
        """Encode a picture, uint8 RGB (H,W,3)."""
        size = frame_hwc.shape[:2]
        host, resized = self._device.staging(self._pixels), resized_size(*size, **self._resize)
        preprocess(frame_hwc, resized, self.image_size, self.mean, self.std, out=host[0])
        self._device.upload(host, self._pixels)
        outputs = self._stages["image"].spec.outputs
        maps = {t.name: self._device.empty(t.shape, t.dtype) for t in outputs}
        self._stages["image"].run(pixels=self._pixels, **maps)
        return Seen(maps, CornerUpsampler(self.low_res_side, size))

    def refer(self, seen: Seen, prompts: Sequence[Text], logits: bool) -> Result:
        """One mask per sentence. Raises PromptError for a sentence the bundle cannot take."""
        manifest = self._bundle.manifest
        self._tokenizer = self._tokenizer or Tokenizer.of(self._bundle.folder, manifest)
        texts = [self._read(encode(p, manifest, self._tokenizer)) for p in prompts]
        parts = [self._fuse(seen, texts[i : i + self.batch]) for i in range(0, len(texts), self.batch)]
        low_res, coarse, iou = (np.concatenate(part) for part in zip(*parts))
        masks = seen.upsampler.masks(low_res)
        boxes = boxes_and_areas(masks)[0].astype(np.float32)
        return Result(
            0,
            tuple(range(1, len(texts) + 1)),
            masks,
            iou,
            iou,
            boxes,
            low_res if logits else None,
            coarse if logits else None,
        )

    def _read(self, tokens: np.ndarray) -> Any:
        """Features of a sentence (L,W), without padding."""
        key = tuple(tokens.tolist())
        if key not in self._sentences:
            while len(self._sentences) >= SENTENCES:
                self._sentences.popitem(last=False)
            text = self._stages["text"].spec.output("text")
            features = self._device.empty((len(tokens), self._width), text.dtype)
            self._stages["text"].run(tokens=tokens, text=features)
            self._sentences[key] = features
        self._sentences.move_to_end(key)
        return self._sentences[key]

    def _fuse(self, seen: Seen, texts: list[Any]) -> tuple[np.ndarray, ...]:
        """Low-res and coarse logits (n,s,s), predicted IoU (n,), on the host. Sentences are padded to the longest."""
        n, length = len(texts), max(len(t) for t in texts)
        batch = texts[0][None]
        if n > 1:
            batch = self._text[: n * length * self._width].reshape(n, length, self._width)
            for row, text in zip(batch, texts):
                self._device.copy(text, row[: len(text)])
        counts = np.array([len(t) for t in texts], np.int64)
        outputs = {t.name: self._work.view(t.name, n) for t in self._stages["fuse"].spec.outputs}
        self._stages["fuse"].run(**seen.maps, text=batch, text_count=counts, **outputs)
        # a view of a scratch buffer is overwritten by the next batch
        wanted = ("low_res_logits", "coarse_logits", "iou")
        return tuple(np.array(self._device.download(outputs[name])) for name in wanted)
