"""ReferSAM: the order of its stages (IEEE TCSVT 2024, 10.1109/TCSVT.2024.3524543).

An image is encoded once, a sentence once, and every pair of the two is fused; sentences on one image share a batch.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import ClassVar

import numpy as np

from ..bundle.schema import NORMALIZATION, RESIZE, TEXT, Group
from ..device.base import Array
from ..device.inputs import InputBlock
from ..device.scratch import GrowableBuffers, OutputBlock
from ..imaging.frame_input import FrameInput
from ..imaging.gpu import DeviceMasks, mask_sizes
from ..imaging.masks import boxes_and_areas
from ..imaging.upsample import CornerAlignedUpsampler
from ..prompts import Text
from ..results import Result
from ..tokenizer import Tokenizer, encode
from ..tracking.object_memory import BlockPool
from .base import Capability, Signature
from .context import NetworkContext

MAX_CACHED_SENTENCES = 256
"""Sentences whose features are kept, 60 kB each: an evaluation or a live prompt repeats them."""


class EncodedImage:
    """An encoded image, segmented by sentences: outputs of the stage `image` by name, and source size."""

    def __init__(self, network: ReferSam, features: Mapping[str, Array], source_hw: tuple[int, int]) -> None:
        self._network, self.features = network, features
        self._upsampler = network.mask_upsampler(source_hw)

    def refer(self, prompts: Sequence[Text], logits: bool = False) -> Result:
        """Find one mask per sentence. Raises PromptError for a sentence that the bundle cannot take."""
        on_device = self._network.device_masks(self._upsampler.source_hw)
        low_res, coarse, ious, *bits = self._network.fuse(self, prompts, on_device)
        masks = on_device.masks(bits[0]) if on_device else self._upsampler.masks(low_res)
        ids = tuple(range(1, len(prompts) + 1))
        return Result(
            frame_index=0,
            object_ids=ids,
            prompt_ids=ids,
            masks=masks,
            scores=ious,
            ious=ious,
            boxes=boxes_and_areas(masks)[0].astype(np.float32),
            low_res_logits=low_res if logits else None,
            coarse_logits=coarse if logits else None,
        )


class ReferSam:
    """Stages and buffers of one ReferSAM bundle."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.TEXT_IMAGE})
    pools: ClassVar[Collection[BlockPool]] = ()
    required_stages: ClassVar[tuple[str, ...]] = ("image", "text", "fuse")
    optional_stages: ClassVar[tuple[str, ...]] = ()
    uses_kernels: ClassVar[bool] = True
    records_stages: ClassVar[bool] = True
    settings_schema: ClassVar[Group] = Group({**NORMALIZATION, "resize": RESIZE, "text": TEXT})
    signature: ClassVar[Signature] = Signature(
        bounds=("objects",),
        tensors={
            "pixels": "1 3 I I",
            "vit": "1 v v D",
            "pyramid": "1 N P",
            "stem": "1 C S S",
            "tokens": "int64: l",
            "text.text": "l W",
            "fuse.text": "b l W",
            "text_count": "int64: b",
            "low_res_logits": "b S S",
            "coarse_logits": "b S S",
            "iou": "b",
        },
        inputs={"image": "pixels", "text": "tokens", "fuse": "vit pyramid stem text text_count"},
        outputs={"image": "vit pyramid stem", "text": "text", "fuse": "low_res_logits coarse_logits iou"},
    )

    def __init__(self, context: NetworkContext) -> None:
        manifest, settings, device = context.bundle.manifest, context.settings, context.device
        self._bundle, self._device, self._stages = context.bundle, device, context.stages
        self._tokenizer: Tokenizer | None = None
        specs = {name: stage.spec for name, stage in self._stages.items()}
        self.low_res_side = int(specs["fuse"].output("low_res_logits").shape[1])
        # a batch never exceeds what the graph was exported for; more sentences run in several batches
        self._batch = min(context.max_objects, manifest.bounds["objects"][1])
        self._readback = OutputBlock(device)
        pixels, text = specs["image"].input("pixels"), specs["fuse"].input("text")
        inputs, logits = InputBlock(device), specs["fuse"].output("low_res_logits")
        inputs.reserve(prod(pixels.resolve({})) * np.dtype(pixels.dtype).itemsize)
        self._frame_input = FrameInput(inputs, pixels, settings, device, context.kernels, settings["resize"])
        self.device_masks = mask_sizes(device, context.kernels, logits.dtype, self.mask_upsampler)
        """What makes masks of a size (H, W) on the device; None: the host does."""
        self._width = int(text.shape[2])
        # padding is read, with weight zero: it must hold numbers
        self._text = device.constant(np.zeros(self._batch * settings["text"]["max_tokens"] * self._width, text.dtype))
        self._sentences: OrderedDict[tuple[int, ...], Array] = OrderedDict()
        recorded = device.records_stages and device.supports_graph_capture and specs["fuse"].graph_safe
        self._fixed = GrowableBuffers(device) if recorded else None
        """Where recorded stages find the maps of whatever image and write a sentence; None: in arrays of its own."""
        self._present: weakref.ref[EncodedImage] | None = None
        """The image whose maps are there."""

    def encode_image(self, frame_hwc: Array) -> EncodedImage:
        """Encode an image, uint8 RGB (H,W,3)."""
        pixels = self._frame_input.upload(frame_hwc, "bilinear")
        outputs = self._stages["image"].spec.outputs
        features = {t.name: self._device.empty(t.resolve({}), t.dtype) for t in outputs}
        fixed = self._maps() or features
        self._stages["image"].run(pixels=pixels, **fixed)
        image = EncodedImage(self, features, frame_hwc.shape[:2])
        if fixed is not features:
            self._copy(fixed, features)
            self._present = weakref.ref(image)
        return image

    def _maps(self) -> dict[str, Array]:
        """Return the maps that recorded stages read; empty where none is recorded."""
        if self._fixed is None:
            return {}
        return {t.name: self._fixed.take(t.name, t.resolve({}), t.dtype) for t in self._stages["image"].spec.outputs}

    def _maps_of(self, image: EncodedImage) -> Mapping[str, Array]:
        """Return the maps of an image where `fuse` reads them."""
        fixed = self._maps()
        if fixed and (self._present is None or self._present() is not image):
            self._copy(image.features, fixed)
            self._present = weakref.ref(image)
        return fixed or image.features

    def _copy(self, maps: Mapping[str, Array], to: Mapping[str, Array]) -> None:
        for name, array in maps.items():
            self._device.copy(array, to[name])

    def mask_upsampler(self, size: tuple[int, int]) -> CornerAlignedUpsampler:
        """Return the upsampler of low-res logits to masks of images of `size` (H, W)."""
        return CornerAlignedUpsampler(self.low_res_side, size)

    def fuse(self, image: EncodedImage, prompts: Sequence[Text], masks: DeviceMasks | None = None) -> list[np.ndarray]:
        """Return low-res and coarse logits (N,s,s) and predicted IoUs (N,) of sentences on an encoded image, and the
        bits of their masks where `masks` makes them."""
        manifest = self._bundle.manifest
        self._tokenizer = self._tokenizer or Tokenizer.of(self._bundle.folder, manifest)
        texts = [self._encode_text(encode(prompt, manifest, self._tokenizer)) for prompt in prompts]
        maps = self._maps_of(image)
        starts = range(0, len(texts), self._batch)
        batches = [self._fuse_batch(maps, texts[i : i + self._batch], masks) for i in starts]
        return [np.concatenate(part) for part in zip(*batches, strict=True)]

    def _encode_text(self, tokens: np.ndarray) -> Array:
        """Return the features of a sentence (L,W), without padding; those of the latest sentences are cached."""
        key = tuple(tokens.tolist())
        if key not in self._sentences:
            while len(self._sentences) >= MAX_CACHED_SENTENCES:
                self._sentences.popitem(last=False)
            text = self._stages["text"].spec.output("text")
            features = self._device.empty((len(tokens), self._width), text.dtype)
            fixed = self._fixed.take("text", features.shape, text.dtype) if self._fixed is not None else features
            self._stages["text"].run(tokens=tokens, text=fixed)
            if fixed is not features:
                self._device.copy(fixed, features)
            self._sentences[key] = features
        self._sentences.move_to_end(key)
        return self._sentences[key]

    def _fuse_batch(self, maps: Mapping[str, Array], texts: list[Array], masks: DeviceMasks | None) -> list[np.ndarray]:
        """Fuse sentences, padded to the longest, with an image; the results are copies on the host."""
        n, length = len(texts), max(len(t) for t in texts)
        batch = texts[0][None]
        if n > 1 or self._fixed is not None:
            batch = self._text[: n * length * self._width].reshape(n, length, self._width)
            for row, text in zip(batch, texts, strict=True):
                self._device.copy(text, row[: len(text)])
        counts = np.array([len(t) for t in texts], np.int64)
        made = masks.fields(n) if masks else []
        outputs = self._readback.reserve([*self._stages["fuse"].spec.outputs, *made], {"objects": n})
        bits = {t.name: outputs.pop(t.name) for t in made}
        self._stages["fuse"].run(**maps, text=batch, text_count=counts, **outputs)
        if masks is not None:
            masks.enqueue(outputs["low_res_logits"], **bits)
        host = self._readback.read()
        names = ("low_res_logits", "coarse_logits", "iou", "packed")
        return [np.array(host[name]) for name in names if name in host]
