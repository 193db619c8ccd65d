"""Heads that only training has: what an inner map should already know, asked of it directly.

A sentence teaches one object of a clip; these teach all of them at once, and reach layers that the masks' gradient reaches
only through the decoder. Nothing of them is shipped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import PackedAttention
from ..models.samwise import Samwise, SamwiseConfig
from ..stages.cross_modal_adapter import from_patches, to_patches
from .loader import APPEARANCE_CLASSES, MOTION_SIZE

BACKGROUND = 0.2
"""Weight of a cell in which nothing stands."""
QUICK = 3.0
"""Weight of a speed that a viewer would notice: most are nearly nothing."""


class AppearanceHead(nn.Module):
    """Tells noun, colour and motion of what stands in each cell of a map, without a sentence."""

    def __init__(self, width: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, sum(APPEARANCE_CLASSES[n] for n in names))

    def forward(self, map_bnd: Tensor, instances_bii: Tensor, looks_bo3: Tensor) -> dict[str, Tensor]:
        """Losses for maps (B,N,D) against instance_map (B,I,I) uint8 and the table of `data.looks`; background counts a fifth."""
        cells = cell_instances(instances_bii, map_bnd.shape[1])
        labels = looks_bo3.gather(1, cells[..., None].expand(-1, -1, 3)).unbind(2)
        weight = torch.where(cells > 0, 1.0, BACKGROUND).flatten()
        parts = (
            self.classes(self.norm(map_bnd)).float().flatten(0, 1).split([APPEARANCE_CLASSES[n] for n in self.names], 1)
        )
        out = {}
        for name, logits in zip(self.names, parts):
            label = labels[tuple(APPEARANCE_CLASSES).index(name)].flatten()
            loss = F.cross_entropy(logits, label, reduction="none")
            shown = label > (name == "move")  # most objects stand still, and count less there
            wanted = weight if name != "move" else weight * torch.where(shown, 1.0, 0.3)
            out[name] = (loss * wanted).sum() / wanted.sum()
            out[f"_{name}_right"] = ((logits.argmax(1) == label) & shown).sum() / shown.sum().clamp(min=1)
        return out


class MotionHead(nn.Module):
    """Tells how fast what stands in a cell moves, turns and grows, from the output of hierarchical selective attention.

    The only place where one frame sees another within a window; a motion that is not found there is found nowhere.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.speeds = nn.Linear(width, MOTION_SIZE)

    def forward(self, map_bnd: Tensor, instances_bii: Tensor, speeds_bom: Tensor) -> dict[str, Tensor]:
        """Losses for maps (B,N,D) of all frames against instance_map (B,I,I) uint8 and `data.speeds` (B,MAX_INSTANCES,M)."""
        cells = cell_instances(instances_bii, map_bnd.shape[1])
        wanted = speeds_bom.gather(1, cells[..., None].expand(-1, -1, speeds_bom.shape[2]))
        found = self.speeds(map_bnd).float()
        weight = torch.where(cells > 0, 1.0, BACKGROUND)
        quick = (wanted.abs() > 0.5) & (cells > 0)[..., None]
        loss = F.smooth_l1_loss(found, wanted, reduction="none", beta=0.5) * torch.where(quick, QUICK, 1.0)
        return {
            "speed": (loss.sum(2) * weight).sum() / weight.sum(),
            "_speed_right": ((found - wanted).abs() < 0.5)[quick].float().mean() if quick.any() else loss.new_zeros(()),
        }


class TextMatchHead(nn.Module):
    """Tells from each cell of the map that a sentence has changed how much of it the sentence's object covers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.covered = nn.Linear(width, 1)

    def forward(self, map_bnd: Tensor, truth_bii: Tensor) -> dict[str, Tensor]:
        """Losses for maps (B,N,D) against ground truth (B,I,I) bool."""
        side = int(map_bnd.shape[1] ** 0.5)
        wanted = F.avg_pool2d(truth_bii[:, None].float(), truth_bii.shape[1] // side).flatten(1)
        logits = self.covered(self.norm(map_bnd)).float().squeeze(2)
        weight = torch.where(wanted > 0.1, 1.0, BACKGROUND)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return {"told": (loss * weight).sum() / weight.sum()}


def cell_instances(instances_bii: Tensor, count: int) -> Tensor:
    """Owner in the middle of each of `count` cells: (B,I,I) -> int64 (B,count)."""
    step = instances_bii.shape[1] // int(count**0.5)
    return instances_bii[:, step // 2 :: step, step // 2 :: step].flatten(1).long()


def build_heads(config: SamwiseConfig) -> nn.ModuleDict:
    """Heads on the map that all sentences share, on the one that a sentence has changed (`fused`, `told`), on the one
    without sentence, and on the attention over frames."""
    width, both = config.sam.width, ("noun", "colour")
    return nn.ModuleDict(
        {
            "shared": AppearanceHead(config.sam.hiera.widths[1], both),
            "plain": AppearanceHead(width, both),
            "fused": AppearanceHead(width, (*both, "move")),
            "told": TextMatchHead(width),
            "speed": MotionHead(config.adapter.width),
        }
    )


class FeatureHook:
    """Keeps what goes into and comes out of the attention over frames at stride 16, window by window, until it is asked."""

    def __init__(self, model: Samwise) -> None:
        self.heard: list[Tensor] = []
        self.said: list[Tensor] = []
        self.side, adapter = model.config.sam.side, model.cmt_adapters[1]
        self.patch, self.attention = adapter.patch, adapter.hsa.self_attn
        adapter.hsa.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if module.training:
            self.heard.append(args[0])
            self.said.append(output)

    def take(self) -> tuple[Tensor, list[Tensor]]:
        """The output (O,T,N,C) for the clip that was encoded last, and the input of each window (O*patches,T*side*side,C)."""
        output = torch.cat([from_patches(x, self.patch, self.side, self.side).flatten(2, 3) for x in self.said], 1)
        heard, self.heard, self.said = self.heard, [], []
        return output, heard

    def follow(self, heard: list[Tensor], instances_btii: Tensor, every: int) -> Tensor:
        """`object_attention_loss` of what `take` gave, mean of its windows. `instances_btii` (B,T,I,I) uint8; one in `every` of the O is
        enough."""
        cells = cell_instances(instances_btii.flatten(0, 1), self.side**2).view(
            *instances_btii.shape[:2], self.side, self.side, 1
        )
        frames, losses = [x.shape[1] // self.patch**2 for x in heard], []
        for x, part in zip(heard, cells.split(frames, 1)):
            x = x.unflatten(0, (every * len(instances_btii), -1))[::every].flatten(0, 1)
            losses.append(
                object_attention_loss(self.attention, x, to_patches(part, self.patch).flatten(1), part.shape[1])
            )
        return sum(losses) / len(losses)


def object_attention_loss(attention: PackedAttention, x_bnc: Tensor, instances_bn: Tensor, frames: int) -> Tensor:
    """-log of the attention that the first head gives to later pictures of what stands in a cell, the second to earlier ones.

    Attention that is spread evenly learns nearly nothing from a mask; told once whom to follow, its values differ by where
    the object was and will be, which is a motion. Sequences (B,N,C) are frame-major.
    """
    q, k = (
        F.linear(x_bnc, w, b).float()
        for w, b in zip(attention.in_proj_weight.chunk(3)[:2], attention.in_proj_bias.chunk(3))
    )
    q, k = (y.unflatten(2, (attention.heads, -1))[:, :, :2].transpose(1, 2) for y in (q, k))
    scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).log_softmax(-1)
    time = torch.arange(frames, device=x_bnc.device).repeat_interleave(x_bnc.shape[1] // frames)
    same = (instances_bn[:, :, None] == instances_bn[:, None]) & (instances_bn > 0)[:, :, None]
    wanted = torch.stack((same & (time > time[:, None]), same & (time < time[:, None])), 1)
    has = wanted.any(-1)
    missed = -scores.masked_fill(~wanted, -1e4).logsumexp(-1)
    return (missed * has).sum() / has.sum().clamp(min=1)
