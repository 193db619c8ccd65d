"""SAM 3's detector on nano's trunk, with nano's SAM 2 modules as the tracker, for export: a small network for SAM 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoints.nano_concepts import load_nano_concepts
from ..models.nano_concepts import NanoConcepts
from ..stage import Stage, tensor
from ..stages.packed_neck import PackedFineLevelsStage, PackedImageStage, PackedTrackerNeckStage
from ..verify.references import sam3_clip as clip
from .base import IMAGENET, StageFactory, attention_variants, trunk_name
from .sam3 import detection_stages, prompt_stages, stage_factory
from .sam3 import settings as settings_of_sam3
from .tracker import features, tracker_stages

__all__ = ["clip", "load", "settings", "stages", "variant"]


def load(path: str | Path) -> NanoConcepts:
    """Load a checkpoint of `python -m export.nano.train_concepts` in eval mode. Raises UserError."""
    return load_nano_concepts(path)


def variant(model: NanoConcepts) -> str:
    """Return the name of the trunk."""
    return trunk_name(model.config.tracker.hiera)


def settings(model: NanoConcepts) -> dict[str, Any]:
    """Return the settings of SAM 3, with the pixels and the tokenizer of nano."""
    own = settings_of_sam3(model)["sam3"]
    return {"sam3": own | IMAGENET | {"text": own["text"] | {"padding": model.config.padding}}}


def stages(model: NanoConcepts) -> list[Stage]:
    """Split the network into stages, in the order of execution, and put it in eval mode."""
    factory = stage_factory(model.eval())
    return [
        *_image(model, factory),
        *prompt_stages(model, factory),
        *detection_stages(model, factory),
        *tracker_stages(model.tracker, factory),
    ]


def _image(model: NanoConcepts, factory: StageFactory) -> list[Stage]:
    c, sam, levels = model.config, model.tracker, model.detector.levels
    size, side, tokens = c.trunk.image_size, c.trunk.side, c.trunk.side**2
    trunk = tensor("trunk", "frames", tokens, c.trunk.width)
    encoder = PackedImageStage(sam.trunk, sam.neck, levels, size)
    decoder = sam.sam_mask_decoder
    tracker_neck = PackedTrackerNeckStage(sam.neck, levels, decoder.conv_s0, decoder.conv_s1, sam.no_mem_embed)
    inputs = (tensor("pixels", "frames", 3, size, size, keep_fp32=True),)
    outputs = (trunk, tensor("level", "frames", tokens, c.width))
    fine = tuple(tensor(f"level_{n}", "frames", c.width, n * side, n * side) for n in (2, 4))
    attributes: dict[str, Any] = {"bf16_ok": True, "stride": c.trunk.patch}
    variants = attention_variants(encoder)
    return [
        factory("image_encoder", inputs, outputs, encoder, variants, role="image_encoder", **attributes),
        factory("fine_levels", (trunk,), fine, PackedFineLevelsStage(levels), role="neck", **attributes),
        factory("tracker_neck", (trunk,), features(c.tracker), tracker_neck, role="neck", **attributes),
    ]
