"""Detector of SAM 3: all instances of a concept in one image, with scores, boxes and masks.

An image is encoded once for any number of concepts, words are encoded once and cached, and concepts share a batch.
Masks are computed only for queries that pass the threshold.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod

import numpy as np

from ...device.base import Array
from ...device.inputs import HostArrays, InputBlock, numbered, of_number
from ...device.scratch import GrowableBuffers, OutputBlock
from ...imaging.frame_input import FrameInput
from ...imaging.gpu import upsamplers
from ...imaging.masks import probability
from ...imaging.upsample import square_upsampler
from ..context import NetworkContext
from .concept_prompt import ConceptPrompt, box_inputs, prompt_mask
from .mask_heads import ConceptFeatures, MaskHeads

MAX_CACHED_CONCEPTS = 256
"""Concepts whose text tokens are kept, 32 kB each."""


@dataclass(frozen=True, slots=True)
class Detections:
    """Queries of one concept on one image; K of Q are kept.

    score_logits  (Q,) float32, `presence` the logit of the concept being there at all
    boxes         (Q,4) float32 cx, cy, w, h in [0,1]
    kept          (K,) indices of queries whose joint probability passes the threshold, ascending
    probability   (Q,) float32 joint probability
    low_res_logits  (K,s,s) float32 mask logits of the kept queries
    semantic_logits (s,s) float32 logits of the concept as a whole; None unless requested
    """

    score_logits: np.ndarray
    presence: float
    boxes: np.ndarray
    kept: np.ndarray
    probability: np.ndarray
    low_res_logits: np.ndarray
    semantic_logits: np.ndarray | None


class Detector:
    """Runs the stages of the detector."""

    def __init__(self, context: NetworkContext) -> None:
        settings, self._stages, self._device = context.settings, context.stages, context.device
        self._padding = settings["text"]["padding"]
        self._specs = {name: stage.spec for name, stage in self._stages.items()}
        self._batch = context.bundle.manifest.bounds["concepts"][1]
        pixels = self._specs["image_encoder"].input("pixels")
        self.inputs = InputBlock(self._device)
        """What frames are uploaded through, and with them what the calls on them take."""
        self.inputs.reserve(prod(pixels.resolve({"frames": 1})) * np.dtype(pixels.dtype).itemsize)
        self._frame_input = FrameInput(self.inputs, pixels, settings, self._device, context.kernels)
        low_res_side = int(self._specs["mask_head"].output("detected_logits").shape[2])
        self.upsampler = upsamplers(self._device, context.kernels, partial(square_upsampler, low_res_side))
        """Makes an upsampler of low-res logits of the host to masks of a size (H, W)."""
        self._scratch = GrowableBuffers(self._device)
        self._readback = OutputBlock(self._device)
        self._mask_heads = MaskHeads(self._stages, self._device, self._scratch)
        self._latest: tuple[weakref.ref[Array] | None, ConceptFeatures | None] = None, None
        self._texts: OrderedDict[tuple[int, ...], Array] = OrderedDict()

    @cached_property
    def frame_features(self) -> ConceptFeatures:
        """Features of the frame that is computed, of any session: under one lock, at fixed addresses."""
        return self.new_features()

    def new_features(self) -> ConceptFeatures:
        """Allocate the features of one frame."""
        return ConceptFeatures(**self._new_outputs("image_encoder"))

    def encode_once(self, frame_hwc: Array, resample: str) -> ConceptFeatures:
        """Return the features of an image that does not change: the same array is encoded once."""
        image, features = self._latest
        if image is None or image() is not frame_hwc:
            features = self.new_features()
            self.encode_image(frame_hwc, resample, features)
            self._latest = weakref.ref(frame_hwc), features
        assert features is not None
        return features

    def encode_image(
        self,
        frame_hwc: Array,
        resample: str,
        features: ConceptFeatures,
        ahead: Sequence[tuple[object, HostArrays]] = (),
    ) -> None:
        """Write the features of a frame, uint8 RGB (H,W,3); `resample` as in `imaging.preprocess`; `ahead`: what calls
        on the frame take."""
        pixels = self._frame_input.upload(frame_hwc, resample, ahead)
        outputs = {t.name: getattr(features, t.name) for t in self._specs["image_encoder"].outputs}
        self._stages["image_encoder"].run(pixels=pixels, **outputs)
        features.fine_levels_valid = False

    def encode_geometry(self, features: ConceptFeatures, prompt: ConceptPrompt) -> Array:
        """Encode exemplars on the image that they lie on, for use on other images: (K+1,D)."""
        encoded = self._encode_boxes(features, box_inputs([prompt], len(prompt.boxes)))[0]
        kept: Array = self._device.empty(tuple(encoded.shape), self._specs["geometry_encoder"].output("geometry").dtype)
        self._device.copy(encoded, kept)
        return kept

    def inputs_of(self, prompts: Sequence[ConceptPrompt]) -> Sequence[tuple[object, HostArrays]]:
        """Return what `detect` takes for prompts, for `InputBlock.upload`."""
        batches = [prompts[start : start + self._batch] for start in range(0, len(prompts), self._batch)]
        return [(prompts, numbered(map(self._batch_inputs, batches)))] if prompts else []

    def _batch_inputs(self, prompts: Sequence[ConceptPrompt]) -> dict[str, np.ndarray]:
        boxes = max(len(prompt.boxes) for prompt in prompts)
        mask = prompt_mask(prompts, boxes, self._padding)
        return {**box_inputs(prompts, boxes), "prompt_mask": mask, "map_index": np.zeros(len(prompts), np.int64)}

    def detect(
        self,
        features: ConceptFeatures,
        prompts: Sequence[ConceptPrompt],
        threshold: float,
        semantic: bool = False,
        others: Sequence[OutputBlock] = (),
    ) -> list[Detections]:
        """Find all instances of concepts on one image, in batches: two waits each, one where nothing is found.
        `semantic`: compute their semantic masks as well; `others` are read with the first wait."""
        found: list[Detections] = []
        inputs = self.inputs.take(prompts, lambda: self.inputs_of(prompts)[0][1]) if prompts else {}
        own = [of_number(inputs, number) for number in range(-(-len(prompts) // self._batch))]
        for number, batch_inputs in enumerate(own):
            batch = prompts[number * self._batch : (number + 1) * self._batch]
            found += self._detect_batch(features, batch, batch_inputs, threshold, semantic, others)
        return found

    def _detect_batch(
        self,
        features: ConceptFeatures,
        prompts: Sequence[ConceptPrompt],
        inputs: Mapping[str, Array],
        threshold: float,
        semantic: bool,
        others: Sequence[OutputBlock],
    ) -> Iterable[Detections]:
        prompt = {"prompt": self._encode_prompts(features, prompts, inputs), "prompt_mask": inputs["prompt_mask"]}
        sizes, tensors = {"concepts": len(prompts)}, self._specs["detr"].outputs
        encoded = self._outputs("detr", sizes, ["encoded"])
        outputs = self._readback.reserve([t for t in tensors if t.name not in encoded], sizes)
        self._stages["detr"].run(level=features.level, map_index=inputs["map_index"], **prompt, **outputs, **encoded)
        host = {name: np.array(array) for name, array in self._readback.read(*others).items()}
        joint = probability(host["scores"]) * probability(host["presence"])[:, None]
        kept = [np.flatnonzero(row > threshold) for row in joint]
        masks, semantics = self._mask_heads.masks(features, encoded["encoded"], prompt, host["queries"], kept, semantic)
        for i, rows in enumerate(kept):
            yield Detections(
                score_logits=host["scores"][i],
                presence=float(host["presence"][i]),
                boxes=host["boxes"][i],
                kept=rows,
                probability=joint[i],
                low_res_logits=masks[i],
                semantic_logits=semantics[i],
            )

    def _encode_prompts(
        self, features: ConceptFeatures, prompts: Sequence[ConceptPrompt], inputs: Mapping[str, Array]
    ) -> Array:
        """Return the prompt tokens of concepts (P,T,D): words, exemplar boxes, CLS."""
        boxes = max(len(prompt.boxes) for prompt in prompts)
        geometry = self._encode_boxes(features, inputs)
        words = len(prompts[0].tokens)
        tensor = self._specs["detr"].input("prompt")
        sizes = {"concepts": len(prompts), "prompt_length": words + boxes + 1}
        tokens = self._scratch.take(tensor.name, tensor.resolve(sizes), tensor.dtype)
        for i, prompt in enumerate(prompts):
            self._device.copy(self._encode_text(prompt.tokens), tokens[i, :words])
            if prompt.geometry is None:
                self._device.copy(geometry[i if boxes else 0], tokens[i, words:])
            else:
                self._device.copy(prompt.geometry[:-1], tokens[i, words : words + len(prompt.boxes)])
                self._device.copy(prompt.geometry[-1], tokens[i, -1])
        return tokens

    def _encode_text(self, tokens: np.ndarray) -> Array:
        """Return the text tokens (L,D) of a concept; those of the latest concepts are cached."""
        key = tuple(tokens.tolist())
        if key not in self._texts:
            while len(self._texts) >= MAX_CACHED_CONCEPTS:
                self._texts.popitem(last=False)
            tensor = self._specs["text_encoder"].output("text")
            text = self._device.empty(tensor.resolve({"concepts": 1}), tensor.dtype)
            self._stages["text_encoder"].run(tokens=tokens[None], text=text)
            self._texts[key] = text[0]
        self._texts.move_to_end(key)
        return self._texts[key]

    def _encode_boxes(self, features: ConceptFeatures, inputs: Mapping[str, Array]) -> Array:
        """Return the geometry tokens (P,boxes+1,D) of `box_inputs`; without boxes one CLS token (1,1,D)."""
        count, tokens = inputs["box_labels"].shape
        outputs = self._outputs("geometry_encoder", {"concepts": count, "geometry_tokens": tokens})
        boxes = {name: inputs[name] for name in ("boxes", "box_labels", "box_mask")}
        self._stages["geometry_encoder"].run(
            level=features.level, map_index=inputs["box_map_index"], **boxes, **outputs
        )
        return outputs["geometry"]

    def _outputs(self, stage: str, sizes: Mapping[str, int], names: Collection[str] | None = None) -> dict[str, Array]:
        """Return scratch for the outputs of a stage, or for those of them that `names` has."""
        outputs = [t for t in self._specs[stage].outputs if names is None or t.name in names]
        return {t.name: self._scratch.take(f"{stage}.{t.name}", t.resolve(sizes), t.dtype) for t in outputs}

    def _new_outputs(self, stage: str) -> dict[str, Array]:
        outputs = self._specs[stage].outputs
        return {t.name: self._device.empty(t.resolve({"frames": 1}), t.dtype) for t in outputs}
