"""Detector of SAM 3: all instances of a concept in one image, with scores, boxes and masks.

An image is encoded once for any number of concepts, words are encoded once and cached, and concepts share a batch.
Masks are computed only for queries that pass the threshold.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from ...device.base import Array
from ...device.inputs import Filled, HostArrays, InputBlock
from ...device.scratch import GrowableBuffers
from ...imaging.masks import probability
from ...imaging.preprocess import preprocess
from ...prompts import Concept
from ..context import NetworkContext

MAX_CACHED_CONCEPTS = 256
"""Concepts whose text tokens are kept, 32 kB each."""


@dataclass(frozen=True, slots=True)
class ConceptPrompt:
    """A concept as the detector takes it.

    tokens  (L,) int64 token ids, padded
    boxes   (K,4) float32 exemplars cx, cy, w, h in [0,1]; `labels` (K,) int64, 1 positive, 0 negative
    geometry  (K+1,D) encoded exemplars of another image; None: those of the image itself
    """

    tokens: np.ndarray
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    geometry: Array | None = None

    def with_exemplars(self, concept: Concept, size: tuple[int, int]) -> ConceptPrompt:
        """Return the prompt with the exemplars of a concept on an image of `size` (H, W). Raises PromptError."""
        return replace(self, boxes=concept.scaled_boxes(*size), labels=np.asarray(concept.labels, np.int64))


@dataclass(slots=True)
class ConceptFeatures:
    """Encoded image: the trunk's map (1,N,W), the detector's coarse level (1,N,D), and its fine levels, computed when
    a mask is."""

    trunk: Array
    level: Array
    fine_levels: Mapping[str, Array] | None = None
    fine_levels_valid: bool = False


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
        self._mean, self._std = settings["mean"], settings["std"]
        self._specs = {name: stage.spec for name, stage in self._stages.items()}
        self._batch = context.bundle.manifest.bounds["concepts"][1]
        pixels = self._specs["image_encoder"].input("pixels")
        self._pixels = pixels.resolve({"frames": 1}), np.dtype(pixels.dtype)
        self.inputs = InputBlock(self._device)
        """What frames are uploaded through, and with them what the calls on them take."""
        self.inputs.reserve(prod(self._pixels[0]) * self._pixels[1].itemsize)
        self._scratch = GrowableBuffers(self._device)
        self._latest: tuple[weakref.ref[np.ndarray] | None, ConceptFeatures | None] = None, None
        self._texts: OrderedDict[tuple[int, ...], Array] = OrderedDict()

    def new_features(self) -> ConceptFeatures:
        """Allocate the features of one frame."""
        return ConceptFeatures(**self._new_outputs("image_encoder"))

    def encode_once(self, frame_hwc: np.ndarray, resample: str) -> ConceptFeatures:
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
        frame_hwc: np.ndarray,
        resample: str,
        features: ConceptFeatures,
        ahead: Sequence[tuple[object, HostArrays]] = (),
    ) -> None:
        """Write the features of a frame, uint8 RGB (H,W,3); `resample` as in `imaging.preprocess`; `ahead`: what calls
        on the frame take."""
        side = self._pixels[0][-1]

        def write(pixels: np.ndarray) -> None:
            preprocess(frame_hwc, (side, side), side, self._mean, self._std, out=pixels[0], resample=resample)

        pixels = self.inputs.upload({"pixels": Filled(*self._pixels, write)}, *ahead)["pixels"]
        outputs = {t.name: getattr(features, t.name) for t in self._specs["image_encoder"].outputs}
        self._stages["image_encoder"].run(pixels=pixels, **outputs)
        features.fine_levels_valid = False

    def encode_geometry(self, features: ConceptFeatures, prompt: ConceptPrompt) -> Array:
        """Encode exemplars on the image that they lie on, for use on other images: (K+1,D)."""
        encoded = self._encode_boxes(features, [prompt], len(prompt.boxes))[0]
        kept: Array = self._device.empty(tuple(encoded.shape), self._specs["geometry_encoder"].output("geometry").dtype)
        self._device.copy(encoded, kept)
        return kept

    def detect(
        self, features: ConceptFeatures, prompts: Sequence[ConceptPrompt], threshold: float, semantic: bool = False
    ) -> list[Detections]:
        """Find all instances of concepts on one image, in batches. `semantic`: compute their semantic masks as well."""
        found: list[Detections] = []
        for start in range(0, len(prompts), self._batch):
            found += self._detect_batch(features, prompts[start : start + self._batch], threshold, semantic)
        return found

    def _detect_batch(
        self, features: ConceptFeatures, prompts: Sequence[ConceptPrompt], threshold: float, semantic: bool
    ) -> Iterable[Detections]:
        prompt = self._encode_prompts(features, prompts)
        maps = np.zeros(len(prompts), np.int64)
        sizes = {"concepts": len(prompts)}
        outputs = self._outputs("detr", sizes)
        self._stages["detr"].run(level=features.level, map_index=maps, **prompt, **outputs)
        host = {name: np.array(self._device.download(outputs[name])) for name in outputs if name != "encoded"}
        joint = probability(host["scores"]) * probability(host["presence"])[:, None]
        kept = [np.flatnonzero(row > threshold) for row in joint]
        masks, semantics = self._masks(features, outputs["encoded"], prompt, host["queries"], kept, semantic)
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

    def _masks(
        self,
        features: ConceptFeatures,
        encoded: Array,
        prompt: Mapping[str, Array],
        queries: np.ndarray,
        kept: Sequence[np.ndarray],
        semantic: bool,
    ) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
        """Compute the masks of kept queries, and the semantic masks where wanted, concept by concept."""
        side = int(self._specs["mask_head"].output("detected_logits").shape[2])
        masks: list[np.ndarray] = []
        semantics: list[np.ndarray | None] = []
        for i, rows in enumerate(kept):
            if not len(rows) and not semantic:
                masks.append(np.zeros((0, side, side), np.float32))
                semantics.append(None)
                continue
            chosen = queries[i, rows] if len(rows) else queries[i, :1]
            outputs = self._outputs("mask_head", {"concepts": 1, "kept": len(chosen)})
            self._stages["mask_head"].run(
                encoded=encoded[i : i + 1],
                **{name: array[i : i + 1] for name, array in prompt.items()},
                **self._fine_levels(features),
                map_index=np.zeros(1, np.int64),
                kept_queries=np.ascontiguousarray(chosen)[None],
                **outputs,
            )
            masks.append(np.array(self._device.download(outputs["detected_logits"])[0][: len(rows)]))
            semantics.append(np.array(self._device.download(outputs["semantic_logits"])[0]) if semantic else None)
        return masks, semantics

    def _fine_levels(self, features: ConceptFeatures) -> Mapping[str, Array]:
        if features.fine_levels is None:
            features.fine_levels = self._new_outputs("fine_levels")
        if not features.fine_levels_valid:
            self._stages["fine_levels"].run(trunk=features.trunk, **features.fine_levels)
            features.fine_levels_valid = True
        return features.fine_levels

    def _encode_prompts(self, features: ConceptFeatures, prompts: Sequence[ConceptPrompt]) -> dict[str, Array]:
        """Return the prompt tokens of concepts (P,T,D): words, exemplar boxes, CLS; and which are no padding (P,T)."""
        boxes = max(len(prompt.boxes) for prompt in prompts)
        geometry = self._encode_boxes(features, prompts, boxes)
        words = len(prompts[0].tokens)
        tensor = self._specs["detr"].input("prompt")
        sizes = {"concepts": len(prompts), "prompt_length": words + boxes + 1}
        tokens = self._scratch.take(tensor.name, tensor.resolve(sizes), tensor.dtype)
        mask = np.ones(tuple(tokens.shape[:2]), bool)
        for i, prompt in enumerate(prompts):
            self._device.copy(self._encode_text(prompt.tokens), tokens[i, :words])
            if prompt.geometry is None:
                self._device.copy(geometry[i if boxes else 0], tokens[i, words:])
            else:
                self._device.copy(prompt.geometry[:-1], tokens[i, words : words + len(prompt.boxes)])
                self._device.copy(prompt.geometry[-1], tokens[i, -1])
            mask[i, :words] = prompt.tokens != self._padding
            mask[i, words + len(prompt.boxes) : words + boxes] = False
        return {"prompt": tokens, "prompt_mask": mask}

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

    def _encode_boxes(self, features: ConceptFeatures, prompts: Sequence[ConceptPrompt], boxes: int) -> Array:
        """Return the geometry tokens (P,boxes+1,D); without boxes they are one CLS token (1,1,D) for all concepts."""
        count = len(prompts) if boxes else 1
        coordinates = np.full((count, boxes + 1, 4), 0.5, np.float32)
        labels, mask = np.zeros((count, boxes + 1), np.int64), np.zeros((count, boxes + 1), bool)
        mask[:, -1] = True
        for i, prompt in enumerate(prompts[:count]):
            n = len(prompt.boxes)
            coordinates[i, :n], labels[i, :n], mask[i, :n] = prompt.boxes, prompt.labels, True
        outputs = self._outputs("geometry_encoder", {"concepts": count, "geometry_tokens": boxes + 1})
        self._stages["geometry_encoder"].run(
            level=features.level,
            map_index=np.zeros(count, np.int64),
            boxes=coordinates,
            box_labels=labels,
            box_mask=mask,
            **outputs,
        )
        return outputs["geometry"]

    def _outputs(self, stage: str, sizes: Mapping[str, int]) -> dict[str, Array]:
        outputs = self._specs[stage].outputs
        return {t.name: self._scratch.take(f"{stage}.{t.name}", t.resolve(sizes), t.dtype) for t in outputs}

    def _new_outputs(self, stage: str) -> dict[str, Array]:
        outputs = self._specs[stage].outputs
        return {t.name: self._device.empty(t.resolve({"frames": 1}), t.dtype) for t in outputs}
