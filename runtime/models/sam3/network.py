"""SAM 3: concepts in images and videos, and its tracker for points, boxes and masks."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np

from ...bundle.schema import COUNT, NORMALIZATION, RESAMPLE, RESIZE, TEXT, Group, number
from ...device.base import Array
from ...errors import PromptError
from ...imaging.masks import probability
from ...media.random_access import FrameSequence
from ...prompts import Concept, Text
from ...results import Result
from ...tokenizer import Tokenizer, encode_concept
from ...tracking.frames import FrameReader
from ...tracking.live import LiveSession
from ...tracking.object_memory import BlockPool
from ...tracking.state import TrackingOptions
from ...tracking.video import VideoSession
from ..base import Capability, Signature
from ..context import NetworkContext
from ..options import ConceptOptions
from ..sam2.image import Sam2ImagePredictor
from .concept_prompt import ConceptPrompt
from .detector import Detections, Detector
from .session import ConceptSession
from .tracker import Sam3Tracker
from .video import Sam3VideoSession

EXEMPLAR_WORD = "visual"
"""Text of a concept that only exemplars describe."""

TRACKER_STAGES = (
    "tracker_neck",
    "prompt_encoder",
    "mask_prompt",
    "prompt_decoder",
    "memory_attention",
    "prompt_memory_encoder",
)
"""Stages that a checkpoint without tracker does not have."""

IMAGE_TASKS = frozenset({Capability.CONCEPT_IMAGE})
TRACKER_TASKS = frozenset({Capability.CONCEPT_VIDEO, Capability.PROMPT_VIDEO, Capability.PROMPT_IMAGE})


class ConceptImagePredictor:
    """An image, encoded once for any number of concepts. Made by `Engine.image`."""

    def __init__(self, network: Sam3, frame_hwc: Array) -> None:
        size: tuple[int, int] = frame_hwc.shape[:2]
        self._network, self._size = network, size
        self._features = network.detector.encode_once(frame_hwc, network.resample["image"])
        self._upsampler = network.detector.upsampler(size)

    def detect(self, concepts: Sequence[Concept], threshold: float, logits: bool, semantic: bool) -> list[Result]:
        """Find all objects of each concept; see `runtime.ImagePredictor.detect`. Raises PromptError."""
        prompts = [self._network.encode_prompt(concept, self._size) for concept in concepts]
        found = self._network.detector.detect(self._features, prompts, threshold, semantic)
        return [self._result(i + 1, detections, logits) for i, detections in enumerate(found)]

    def _result(self, number: int, found: Detections, logits: bool) -> Result:
        """Resize the kept masks to the image. A mask is where the logit is above 0, which is a probability of 0.5."""
        height, width = self._size
        cx, cy, w, h = found.boxes[found.kept].T
        corners = np.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), 1)
        semantic = found.semantic_logits
        return Result(
            frame_index=0,
            object_ids=tuple(range(1, len(found.kept) + 1)),
            prompt_ids=(number,) * len(found.kept),
            masks=self._upsampler.masks(found.low_res_logits),
            scores=found.probability[found.kept],
            boxes=corners * np.array([width, height, width, height], np.float32),
            score_logits=found.score_logits[found.kept],
            low_res_logits=found.low_res_logits if logits else None,
            presence=float(probability([found.presence])[0]),
            semantic_mask=None if semantic is None else self._upsampler.masks(semantic[None])[0],
        )


class Sam3:
    """Stages and buffers of one SAM 3 bundle."""

    required_stages: ClassVar[tuple[str, ...]] = (
        "image_encoder",
        "fine_levels",
        "text_encoder",
        "geometry_encoder",
        "detr",
        "mask_head",
    )
    optional_stages: ClassVar[tuple[str, ...]] = TRACKER_STAGES
    uses_kernels: ClassVar[bool] = True
    records_stages: ClassVar[bool] = True
    settings_schema: ClassVar[Group] = Group(
        {
            **NORMALIZATION,
            "resize": RESIZE,
            "text": TEXT,
            "resample": Group({"image": RESAMPLE, "video": RESAMPLE}, optional=("video",)),
            "memory": Group({"num_maskmem": COUNT, "max_obj_ptrs": COUNT}),
            "no_object_logit": number,
        },
        optional=("memory", "no_object_logit"),
    )
    signature: ClassVar[Signature] = Signature(
        bounds=("concepts", "geometry_tokens"),
        tensors={
            "pixels": "t 3 I I",
            "trunk": "t N W",
            "level": "t N D",
            "level_2": "t D H H",
            "level_4": "t D S S",
            "tokens": "int64: p L",
            "text": "p L D",
            "map_index": "int64: p",
            "geometry_encoder.boxes": "p k 4",
            "box_labels": "int64: p k",
            "box_mask": "bool: p k",
            "geometry": "p k D",
            "prompt": "p l D",
            "prompt_mask": "bool: p l",
            "encoded": "p N D",
            "queries": "p Q D",
            "detr.boxes": "p Q 4",
            "scores": "p Q",
            "presence": "p",
            "kept_queries": "p k D",
            "detected_logits": "p k S S",
            "semantic_logits": "p S S",
        },
        inputs={
            "image_encoder": "pixels",
            "text_encoder": "tokens",
            "geometry_encoder": "level map_index boxes box_labels box_mask",
            "detr": "level map_index prompt prompt_mask",
            "mask_head": "encoded prompt prompt_mask level_2 level_4 map_index kept_queries",
        },
        outputs={
            "image_encoder": "trunk level",
            "fine_levels": "level_2 level_4",
            "text_encoder": "text",
            "geometry_encoder": "geometry",
            "detr": "encoded queries boxes scores presence",
            "mask_head": "detected_logits semantic_logits",
        },
    )

    def __init__(self, context: NetworkContext) -> None:
        manifest, settings = context.bundle.manifest, context.settings
        self._bundle, self.device = context.bundle, context.device
        self.frame_reader = FrameReader(context.device, context.kernels)
        self.resample: Mapping[str, str] = settings["resample"]
        self._tokenizer: Tokenizer | None = None
        self._max_boxes = manifest.bounds["geometry_tokens"][1] - 1
        self.detector = Detector(context)
        self.tracking_defaults = Sam3Tracker.tracking_defaults
        self.low_res_side = int(context.stages["mask_head"].spec.output("detected_logits").shape[2])
        self.tracker = Sam3Tracker(context, self.detector) if "memory" in settings else None
        self.pools: Collection[BlockPool] = () if self.tracker is None else self.tracker.pools

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Tasks of the bundle; a checkpoint without tracker does images only."""
        return IMAGE_TASKS if self.tracker is None else IMAGE_TASKS | TRACKER_TASKS

    def open_concept_image(self, frame_hwc: Array) -> ConceptImagePredictor:
        """Encode an image, uint8 RGB (H,W,3); see `Engine.image`."""
        return ConceptImagePredictor(self, frame_hwc)

    def open_concept_session(
        self, concepts: Sequence[Concept], logits: bool, options: ConceptOptions
    ) -> ConceptSession:
        """Start following concepts through a new video; see `Engine.session`."""
        return ConceptSession(self, self._tracker, concepts, logits, options)

    def open_video(self, frames: FrameSequence, logits: bool, options: TrackingOptions) -> VideoSession:
        """Open a video whose frames are known; see `Engine.video`."""
        return Sam3VideoSession(self._tracker, frames, logits, options)

    def open_live(self, logits: bool, options: TrackingOptions) -> LiveSession:
        """Open a video whose frames come one by one; see `Engine.live`."""
        return LiveSession(self._tracker, logits, options)

    def open_image(self, frame_hwc: Array) -> Sam2ImagePredictor:
        """Encode an image, uint8 RGB (H,W,3), for points, boxes and mask logits; see `Engine.image`."""
        return Sam2ImagePredictor(self._tracker, frame_hwc)

    @property
    def _tracker(self) -> Sam3Tracker:
        assert self.tracker is not None  # capabilities say so
        return self.tracker

    def encode_prompt(self, concept: Concept, size: tuple[int, int] | None) -> ConceptPrompt:
        """Convert a concept for an image of `size` (H, W); None: not known yet, and exemplars are added later.

        Raises PromptError; warns of words that are cut.
        """
        if (count := np.asarray(concept.labels).size) > self._max_boxes:
            raise PromptError(f"{count} exemplars are more than the {self._max_boxes} that {self._bundle.name} takes")
        manifest = self._bundle.manifest
        self._tokenizer = self._tokenizer or Tokenizer.of(self._bundle.folder, manifest)
        tokens, cut = encode_concept(concept.words or Text(EXEMPLAR_WORD), manifest, self._tokenizer)
        if cut:
            warnings.warn(f"the concept {concept.label!r} is cut to {len(tokens)} tokens", stacklevel=2)
        prompt = ConceptPrompt(tokens)
        return prompt if size is None else prompt.with_exemplars(concept, size)
