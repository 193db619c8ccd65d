"""A small network with the typical parts of stages, to publish as a bundle."""

import torch
from torch import nn

from export.layers.attention import attend
from export.networks.base import ExportSource
from export.stage import Variant, stage, tensor

WIDTH = 64


BOUNDS = {"objects": (1, 64), "slots": (1, 7)}


class Mixer(nn.Module):
    """Embedding, norm, attention, GELU: what stages are made of, in small."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Embedding(9, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, 2))
        self.gain = gain

    def forward(self, x_bsnc, age_bs):
        y = (x_bsnc + self.table(age_bs)[:, :, None]).flatten(1, 2)
        q, k, v = self.qkv(self.norm(y)).chunk(3, -1)
        y = y + self.out(attend(q, k, v, heads=4))
        squares = (y * self.gain) * (y * self.gain)  # beyond float16 for a large gain
        return y.view_as(x_bsnc), self.head(y.mean(1)) + (squares / self.gain**2).mean((1, 2))[:, None]


def mixer(gain=1.0, variants=None, name="mixer", **attributes):
    torch.manual_seed(0)
    module = Mixer(gain)
    return stage(
        name,
        (tensor("x", "objects", "slots", 16, WIDTH), tensor("age", "objects", "slots", dtype="int64")),
        (tensor("y", "objects", "slots", 16, WIDTH), tensor("y_logits", "objects", 2, keep_fp32=True)),
        module,
        lambda n, g: {
            "x": torch.randn(n["objects"], n["slots"], 16, WIDTH, generator=g),
            "age": torch.randint(0, 9, (n["objects"], n["slots"]), generator=g),
        },
        BOUNDS,
        {"objects": 3, "slots": 5},
        variants and {k: Variant(module, v) for k, v in variants.items()},
        **attributes,
    )


def network(*stages):
    return ExportSource(
        "toy", "toy", 64, {"toy": {"window": 2}}, lambda: iter(stages), provenance={"checkpoint": "none"}
    )
