"""Toy networks in torch whose exports are compared with them."""

from __future__ import annotations

from dataclasses import replace

import torch

from export.models.samwise import CrossModalAdapterConfig, Samwise
from helpers.toy_networks import toy_samwise_config


def samwise(adapter: CrossModalAdapterConfig | None = None) -> Samwise:
    """Return a SAMWISE with every part of the real one; `adapter` changes the adapters and leaves the rest equal."""
    torch.manual_seed(3)
    config = toy_samwise_config(motion=True)
    model = Samwise(config).eval()
    with torch.no_grad():  # an object that is seen, and a memory that matters
        model.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias += 5
        model.sam.maskmem_tpos_enc *= 20
    if adapter is None:
        return model
    other = Samwise(replace(config, adapter=adapter)).eval()
    shared = {k: v for k, v in model.state_dict().items() if not k.startswith("cmt_adapters.")}
    assert not other.load_state_dict(shared, strict=False).unexpected_keys
    return other
