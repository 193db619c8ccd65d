"""Toy SAM 3 that finds some objects of every concept: random weights, scores spread around one half."""

from __future__ import annotations

import torch

from export.models.sam3 import Sam3, tiny_test_config

PRESENCE, SPREAD = 6.0, 12.0


def toy_sam3(tracker: bool = True) -> Sam3:
    """Return the toy; its detector has the same weights with and without tracker."""
    torch.manual_seed(0)
    model = Sam3(tiny_test_config()).eval()
    scoring, head = model.detector.dot_prod_scoring.prompt_proj, model.detector.transformer.decoder.presence_token_head
    with torch.no_grad():
        head.layers[-1].bias += PRESENCE
        for parameter in scoring.parameters():
            parameter *= SPREAD
    if tracker:
        return model
    image_only = Sam3(tiny_test_config(tracker=False)).eval()
    image_only.load_state_dict({name: model.state_dict()[name] for name in image_only.state_dict()})
    return image_only
