"""SAM 2 and SAM 2.1 for export: checkpoint, stages, settings and parity clip."""

from __future__ import annotations

from typing import Any

from ..checkpoints.sam2 import load_sam2 as load
from ..models.sam import Sam
from ..models.sam2 import Sam2, Sam2Config
from ..models.samwise import Samwise, SamwiseConfig
from ..stage import Stage, tensor
from ..stages.image_encoder import ImageEncoderStage
from ..stages.mask_decoder import NO_OBJECT_LOGIT
from ..verify.references import sam2_clip as clip
from .base import IMAGENET, StageFactory, attention_variants, trunk_name
from .tracker import features, tracker_bounds, tracker_ranges, tracker_stages

__all__ = ["clip", "load", "settings", "stages", "variant"]

MAX_FRAMES = 8
"""Maximum images in one call of the image encoder."""

MAX_POINTS = 64
"""Maximum tokens of a prompt, its padding point included."""


def variant(model: Sam2 | Samwise) -> str:
    """Return the name of the trunk."""
    return trunk_name(model.config.sam.hiera)


def settings(model: Sam2 | Samwise) -> dict[str, Any]:
    """Return the settings of SAM 2, also for a SAMWISE that was trained for points, boxes and masks."""
    config = model.config
    size = config.sam.image_size
    pointers = (config if isinstance(config, Sam2Config) else Sam2Config()).pointers
    own = {
        "resize": {"rule": "square", "short": size, "max": size},
        **IMAGENET,
        "memory": {"num_maskmem": config.sam.ages, "max_obj_ptrs": pointers},
        "resample": {"video": "bicubic", "image": "float"},
        "no_object_logit": NO_OBJECT_LOGIT,
    }
    return {"sam2": own}


def stage_factory(model: Sam2 | Samwise) -> StageFactory:
    """Return the factory of SAM 2's stages; engines are tuned for two clicks and a full memory."""
    c, memory = model.config, settings(model)["sam2"]["memory"]
    frames = (1, c.window if isinstance(c, SamwiseConfig) else MAX_FRAMES)
    bounds = {"frames": frames, **tracker_bounds(MAX_POINTS)}
    typical = {"prompt_tokens": 4, "slots": memory["num_maskmem"], "pointers": memory["max_obj_ptrs"]}
    return StageFactory(bounds, typical, tracker_ranges(c.sam), c.sam.image_size)


def stages(model: Sam2 | Samwise) -> list[Stage]:
    """Split the network into stages, in the order of execution, and put it in eval mode."""
    sam, factory = model.eval().sam, stage_factory(model)
    return [_image_encoder(sam, factory), *tracker_stages(sam, factory)]


def _image_encoder(sam: Sam, factory: StageFactory) -> Stage:
    c, decoder = sam.config, sam.sam_mask_decoder
    size = c.image_size
    module = ImageEncoderStage(sam.trunk, sam.neck, decoder.conv_s0, decoder.conv_s1, sam.no_mem_embed, size)
    inputs = (tensor("pixels", "frames", 3, size, size, keep_fp32=True),)
    attributes: dict[str, Any] = {"role": "image_encoder", "bf16_ok": True, "stride": c.stride}
    return factory("image_encoder", inputs, features(c), module, attention_variants(module), **attributes)
