"""SAM 3 for export: checkpoint, stages, settings and parity clip."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.backends.trt import EXPLICIT
from runtime.bundle.manifest import TensorSpec

from ..checkpoints.sam3 import load_sam3
from ..layers.rotary_vit import fold_rotations
from ..models.nano_concepts import NanoConcepts
from ..models.sam3 import Sam3
from ..stage import Stage, Variant, tensor
from ..stages.concept_neck import ConceptImageStage, FineLevelsStage, TrackerNeckStage
from ..stages.concept_text import ConceptTextStage
from ..stages.detr import DetrStage
from ..stages.geometry_encoder import GeometryEncoderStage
from ..stages.mask_decoder import NO_OBJECT_LOGIT
from ..stages.mask_head import MaskHeadStage
from ..verify.references import sam3_clip as clip
from .base import StageFactory, attention_variants
from .tracker import features, tracker_bounds, tracker_ranges, tracker_stages

__all__ = ["clip", "load", "settings", "stages", "variant"]

MAX_CONCEPTS = 8
"""Maximum concepts in one call of the detector."""

MAX_BOXES = 16
"""Maximum exemplar boxes of a concept."""

MAX_POINTS = 24
"""Maximum tokens of a prompt: 16 points, the corners of a box, padding."""

POINTERS = 16
"""Maximum object pointers (max_obj_ptrs_in_encoder): they reach back one frame less."""

PADDING = 0
"""Token id behind a concept's words; such tokens are masked."""

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
"""Normalisation of pixels."""


def load(path: str | Path, image_size: int | None = None) -> Sam3:
    """Load an official checkpoint in eval mode, for images of another size if given. Raises UserError."""
    return load_sam3(path, image_size)


def variant(model: Sam3) -> str:
    """Return the size of the trunk, and whether the tracker is missing."""
    trunk = model.config.trunk
    name = "" if (trunk.width, trunk.blocks) == (1024, 32) else f"vit_{trunk.width}x{trunk.blocks}"
    return "-".join(part for part in (name, "" if model.config.tracker else "image") if part) or "large"


def settings(model: Sam3 | NanoConcepts) -> dict[str, Any]:
    """Return the settings of SAM 3."""
    c = model.config
    size, text = c.trunk.image_size, c.text
    own: dict[str, Any] = {
        "resize": {"rule": "square", "short": size, "max": size},
        **HALF,
        "text": {"max_tokens": text.positions, "vocabulary": text.vocabulary, "motion": False, "padding": PADDING},
        "resample": {"image": "uint8"},
    }
    if c.tracker:
        own["memory"] = {"num_maskmem": c.tracker.ages, "max_obj_ptrs": POINTERS}
        own["no_object_logit"] = NO_OBJECT_LOGIT
        own["resample"] = {"image": "uint8", "video": "half"}
    return {"sam3": own}


def stage_factory(model: Sam3 | NanoConcepts) -> StageFactory:
    """Return the factory of SAM 3's stages; engines are tuned for one concept without exemplars."""
    c, tracker = model.config, model.config.tracker

    def ranges(sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        indices = tracker_ranges(tracker)(sizes) if tracker else {"map_index": (0, sizes.get("maps", 1))}
        return {"tokens": (1, c.text.vocabulary), "box_labels": (0, 2), **indices}

    bounds = {
        "frames": (1, 8),
        "concepts": (1, MAX_CONCEPTS),
        "geometry_tokens": (1, MAX_BOXES + 1),
        "prompt_length": (c.text.positions + 1, c.text.positions + MAX_BOXES + 1),
        "kept": (1, c.queries),
        **(tracker_bounds(MAX_POINTS) if tracker else {}),
    }
    typical = {"concepts": 1, "geometry_tokens": 1, "prompt_length": c.text.positions + 1, "kept": 8}
    if tracker:
        typical |= {"prompt_tokens": 4, "slots": tracker.ages, "pointers": POINTERS}
    # two frames: the attention of one takes 2 GB in graphs that do not fuse it
    sizes = {"frames": 2, "concepts": 2, "geometry_tokens": 3, "prompt_length": c.text.positions + 3, "kept": 5}
    return StageFactory(bounds, typical, ranges, c.trunk.image_size, sizes)


def stages(model: Sam3) -> list[Stage]:
    """Split the network into stages, in the order of execution, and put it in eval mode."""
    detector, factory = model.eval().detector, stage_factory(model)
    fold_rotations(detector.trunk)
    tracker = [_tracker_neck(model, factory), *tracker_stages(model.tracker, factory)] if model.config.tracker else []
    return [*_image(model, factory), *prompt_stages(model, factory), *detection_stages(model, factory), *tracker]


def _concepts(name: str, *shape: int | str, dtype: str = "float32", **attributes: bool) -> TensorSpec:
    return tensor(name, "concepts", *shape, dtype=dtype, **attributes)


_exact = partial(_concepts, keep_fp32=True)
"""A tensor that the schedule reads on the host or compares, or a position in the image."""


def _image(model: Sam3, factory: StageFactory) -> list[Stage]:
    c = model.config
    necks: Any = model.detector.necks
    size, side, tokens = c.trunk.image_size, c.trunk.side, c.trunk.side**2
    attributes: dict[str, Any] = {"bf16_ok": True, "stride": c.trunk.patch}
    trunk = tensor("trunk", "frames", tokens, c.trunk.width)
    encoder = ConceptImageStage(model.detector.trunk, necks.convs[2])
    inputs = (tensor("pixels", "frames", 3, size, size, keep_fp32=True),)
    outputs = (trunk, tensor("level", "frames", tokens, c.width))
    levels = tuple(tensor(f"level_{n}", "frames", c.width, n * side, n * side) for n in (2, 4))
    fine = FineLevelsStage(necks.convs, side)
    variants = attention_variants(encoder) | {EXPLICIT: Variant(encoder, "explicit")}
    return [
        factory("image_encoder", inputs, outputs, encoder, variants, role="image_encoder", **attributes),
        factory("fine_levels", (trunk,), levels, fine, role="neck", **attributes),
    ]


def prompt_stages(model: Sam3 | NanoConcepts, factory: StageFactory) -> list[Stage]:
    """Return the stages of words and exemplars."""
    c = model.config
    language: Any = model.detector.backbone.language_backbone
    tokens = (_concepts("tokens", c.text.positions, dtype="int64"),)
    text = ConceptTextStage(language.encoder, language.resizer)
    of_boxes: dict[str, Any] = {"role": "prompt_encoder", "int8_ok": False}
    geometry = GeometryEncoderStage(model.detector.geometry_encoder)
    inputs = (
        tensor("level", "maps", c.trunk.side**2, c.width),
        _concepts("map_index", dtype="int64"),
        _exact("boxes", "geometry_tokens", 4),
        _concepts("box_labels", "geometry_tokens", dtype="int64"),
        _concepts("box_mask", "geometry_tokens", dtype="bool"),
    )
    outputs = (_concepts("geometry", "geometry_tokens", c.width),)
    draws = {"boxes": _boxes, "box_mask": _prompt_mask}
    return [
        factory("text_encoder", tokens, (_concepts("text", c.text.positions, c.width),), text, role="text_encoder"),
        factory("geometry_encoder", inputs, outputs, geometry, draws=draws, graph_safe=True, **of_boxes),
    ]


def _boxes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw boxes cx, cy, w, h of 0.05 to 0.35 of the image."""
    low, span = torch.tensor([0.2, 0.2, 0.05, 0.05]), torch.tensor([0.6, 0.6, 0.3, 0.3])
    return low + span * torch.rand(shape, generator=generator)


def detection_stages(model: Sam3 | NanoConcepts, factory: StageFactory) -> list[Stage]:
    """Return the stages from prompts to masks."""
    c, detector = model.config, model.detector
    side, tokens = c.trunk.side, c.trunk.side**2
    prompt = (_concepts("prompt", "prompt_length", c.width), _concepts("prompt_mask", "prompt_length", dtype="bool"))
    level, map_index = tensor("level", "maps", tokens, c.width), _concepts("map_index", dtype="int64")
    encoded = _concepts("encoded", tokens, c.width)
    detr = DetrStage(detector.transformer, detector.dot_prod_scoring)
    found = (
        encoded,
        _exact("queries", c.queries, c.width),
        _exact("boxes", c.queries, 4),
        _exact("scores", c.queries),
        _exact("presence"),
    )
    levels = tuple(tensor(f"level_{n}", "maps", c.width, n * side, n * side) for n in (2, 4))
    head_inputs = (encoded, *prompt, *levels, map_index, _exact("kept_queries", "kept", c.width))
    masks = _exact("detected_logits", "kept", 4 * side, 4 * side), _exact("semantic_logits", 4 * side, 4 * side)
    attributes: dict[str, Any] = {"draws": {"prompt_mask": _prompt_mask}, "bf16_ok": True, "stride": c.trunk.patch}
    head = MaskHeadStage(detector.segmentation_head)
    return [
        factory("detr", (level, map_index, *prompt), found, detr, attention_variants(detr), role="detr", **attributes),
        factory("mask_head", head_inputs, masks, head, role="mask_head", **attributes),
    ]


def _prompt_mask(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw masks of prompts whose first and last tokens are visible, as start and CLS tokens are."""
    mask = torch.rand(shape, generator=generator) < 0.6
    mask[:, 0] = mask[:, -1] = True
    return mask


def _tracker_neck(model: Sam3, factory: StageFactory) -> Stage:
    c, sam = model.config, model.tracker
    necks: Any = model.detector.necks
    decoder = sam.sam_mask_decoder
    module = TrackerNeckStage(necks.sam2_convs, c.trunk.side, decoder.conv_s0, decoder.conv_s1, sam.no_mem_embed)
    inputs = (tensor("trunk", "frames", c.trunk.side**2, c.trunk.width),)
    attributes: dict[str, Any] = {"role": "neck", "bf16_ok": True, "stride": c.trunk.patch}
    return factory("tracker_neck", inputs, features(sam.config), module, **attributes)
