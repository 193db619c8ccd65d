"""Adapter of ReferSAM: a convolutional pyramid beside SAM's ViT, and deformable attention between the two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.deformable import Deformable, cell_centres
from ..layers.group_norm import OneGroupNorm
from ..layers.positions import sine_grid
from ..layers.vit import Vit, VitConfig
from .refersam_fusion import EPS, PromptLayer, VisionLanguage


@dataclass(frozen=True, slots=True)
class ReferSamAdapterConfig:
    """Sizes of the adapter: `runs` equal runs of ViT blocks, `extra` rounds of extraction after the last run."""

    text_width: int = 768
    stem: int = 64
    runs: int = 4
    extra: int = 2
    points: int = 4
    heads: int = 12
    value_width: int = 384
    context: int = 16
    prompts: int = 4
    prompt_layers: int = 2
    prompt_heads: int = 8


class Grid(nn.Module):
    """Sizes, locations and position encodings of one input size: constants of the graphs."""

    centres: Tensor
    references: Tensor
    positions: Tensor
    prompter_positions: Tensor
    vit_positions: Tensor

    def __init__(self, adapter: Adapter, image_size: int) -> None:
        super().__init__()
        self.image_size, self.patch = image_size, adapter.vis_model.config.patch
        constants = {
            "centres": cell_centres(self.side),
            "references": torch.cat([cell_centres(s) for s in self.sides]),
            "positions": self._encode(adapter.level_embed),
            "prompter_positions": self._encode(adapter.level_embed_prompter),
            "vit_positions": adapter.vis_model.positions(self.side),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.detach().contiguous(), persistent=False)

    def _encode(self, levels_3d: Tensor) -> Tensor:
        """Encode the position of every pyramid token (N,D): the embedding of its level plus a sine encoding."""
        return torch.cat([row + sine_grid(s, levels_3d.shape[1]) for s, row in zip(self.sides, levels_3d, strict=True)])

    @property
    def side(self) -> int:
        """Side of the ViT's map."""
        return self.image_size // self.patch

    @property
    def sides(self) -> tuple[int, int, int]:
        """Sides of the pyramid's maps, fine to coarse: at half, once and twice the stride of the ViT."""
        return self.image_size * 2 // self.patch, self.side, self.image_size // (2 * self.patch)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens per level of the pyramid."""
        return tuple(s * s for s in self.sides)


def _step(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), OneGroupNorm(outputs), nn.ReLU()]


class SpatialPrior(nn.Module):
    """Pixels (B,3,I,I) -> stem (B,C,I/4,I/4) and pyramid tokens (B,N,D)."""

    def __init__(self, width: int, c: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_step(3, c, 2), *_step(c, c, 1), *_step(c, c, 1), nn.MaxPool2d(3, 2, 1))
        self.conv2 = nn.Sequential(*_step(c, 2 * c, 2))
        self.conv3 = nn.Sequential(*_step(2 * c, 4 * c, 2))
        self.conv4 = nn.Sequential(*_step(4 * c, 4 * c, 2))
        self.fc2, self.fc3, self.fc4 = (nn.Conv2d(k * c, width, 1) for k in (2, 4, 4))

    def forward(self, pixels_b3ii: Tensor) -> tuple[Tensor, Tensor]:
        c1 = self.stem(pixels_b3ii)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        maps = self.fc2(c2), self.fc3(c3), self.fc4(c4)
        return c1, torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2)


class Injector(nn.Module):
    """Attention from ViT tokens v to the pyramid a: v + gamma * attention(norm(v), a)."""

    def __init__(self, width: int, config: ReferSamAdapterConfig) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, EPS)
        self.attn = Deformable(width, config.heads, 3, config.points, config.value_width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, vit_bqd: Tensor, pyramid_bnd: Tensor, grid: Grid) -> Tensor:
        return vit_bqd + self.gamma * self.attn(self.query_norm(vit_bqd), pyramid_bnd, grid.centres, grid.sides)


class Extractor(nn.Module):
    """Attention from the pyramid a to ViT tokens v: norm(a + attention(a, norm(v)))."""

    def __init__(self, width: int, config: ReferSamAdapterConfig) -> None:
        super().__init__()
        self.query_norm, self.value_norm = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attn = Deformable(width, config.heads, 1, config.points, config.value_width)

    def forward(self, pyramid_bnd: Tensor, vit_bqd: Tensor, grid: Grid) -> Tensor:
        attended = self.attn(pyramid_bnd, self.value_norm(vit_bqd), grid.references, (grid.side,))
        return self.query_norm(pyramid_bnd + attended)


class Interaction(nn.Module):
    """Injection, extraction and fusion around one run of ViT blocks, with `extra` further rounds of the last two."""

    def __init__(self, width: int, config: ReferSamAdapterConfig, extra: int) -> None:
        super().__init__()
        self.injector = Injector(width, config)
        self.extractor = Extractor(width, config)
        self.vl_extractor = VisionLanguage(width, config.text_width, config.heads)
        if extra:
            self.extra_extractors = nn.ModuleList(Extractor(width, config) for _ in range(extra))
            self.extra_vl_extractors = nn.ModuleList(
                VisionLanguage(width, config.text_width, config.heads) for _ in range(extra)
            )

    def inject(self, vit_bhwd: Tensor, pyramid_bnd: Tensor, grid: Grid) -> Tensor:
        """Inject the pyramid into the ViT map (B,h,w,D)."""
        return self.injector(vit_bhwd.flatten(1, 2), pyramid_bnd, grid).unflatten(1, (grid.side, grid.side))

    def rounds(self) -> list[tuple[Extractor, VisionLanguage]]:
        """Return pairs of extraction and fusion, in order; the first extraction is part of the ViT run."""
        rounds = [(self.extractor, self.vl_extractor)]
        if hasattr(self, "extra_extractors"):
            rounds += zip(self.extra_extractors, self.extra_vl_extractors, strict=True)
        return rounds


class Adapter(nn.Module):
    """Modules under `vl_adapter.`: ViT, pyramid, interactions, projections, prompter."""

    def __init__(self, vit: VitConfig, config: ReferSamAdapterConfig) -> None:
        super().__init__()
        d, out = vit.width, vit.out
        self.config = config
        self.vis_model = Vit(vit)
        self.level_embed, self.level_embed_prompter = nn.Parameter(torch.randn(3, d)), nn.Parameter(torch.randn(3, out))
        self.spm = SpatialPrior(d, config.stem)
        self.lang_prompts = nn.Embedding(config.context, config.text_width)
        self.interactions = nn.ModuleList(
            Interaction(d, config, config.extra if i == config.runs - 1 else 0) for i in range(config.runs)
        )
        self.adapter_proj = nn.ModuleList(nn.Sequential(nn.Linear(d, out), nn.LayerNorm(out, EPS)) for _ in range(3))
        self.lang_proj = nn.Sequential(
            nn.Linear(config.text_width, out), nn.GELU(), nn.Linear(out, out), nn.LayerNorm(out, EPS)
        )
        self.sparse_prompts = nn.Embedding(config.prompts, out)
        self.prompt_pos = nn.Embedding(1 + config.prompts, out)
        self.prompt_blocks = nn.ModuleList(PromptLayer(out, config.prompt_heads) for _ in range(config.prompt_layers))
        self.c1_conv = nn.Conv2d(config.stem, out, 1, bias=False)
        self.c1_norm = OneGroupNorm(out)
        self.out_conv = nn.Sequential(
            nn.Conv2d(out, out, 3, padding=1, bias=False), OneGroupNorm(out), nn.GELU(), nn.Conv2d(out, out, 1)
        )

    def run(self, index: int, vit_bhwd: Tensor, pyramid_bnd: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Apply injection, one run of ViT blocks, and extraction."""
        length = len(self.vis_model.blocks) // self.config.runs
        interaction = self.interactions[index]
        vit = interaction.inject(vit_bhwd, pyramid_bnd, grid)
        vit = self.vis_model.run(index * length, (index + 1) * length, vit)
        return vit, interaction.extractor(pyramid_bnd, vit.flatten(1, 2), grid)

    def image(self, pixels_b3ii: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Encode the image: ViT (B,s,s,D) and pyramid (B,N,D) after the first run, stem (B,C,I/4,I/4)."""
        stem, pyramid = self.spm(pixels_b3ii)
        vit, pyramid = self.run(0, self.vis_model.embed(pixels_b3ii) + grid.vit_positions, pyramid, grid)
        return vit, pyramid, stem

    def fuse(
        self, vit_bhwd: Tensor, pyramid_bnd: Tensor, text_blw: Tensor, bias_bm: Tensor, grid: Grid, folded: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the rest of ViT and interactions; returns ViT map (B,s,s,D), pyramid (B,N,D), text (B,L,out)."""
        context = self.lang_prompts.weight.expand(text_blw.shape[0], -1, -1)
        rows = torch.cat((text_blw, context), 1)
        # a product of one image and several texts would upload a table of pointers on CUDA
        vit, pyramid = (x.expand(text_blw.shape[0], *x.shape[1:]) for x in (vit_bhwd, pyramid_bnd))
        for index, interaction in enumerate(self.interactions):
            if index:
                vit, pyramid = self.run(index, vit, pyramid, grid)
            for number, (extractor, layer) in enumerate(interaction.rounds()):
                if number:
                    pyramid = extractor(pyramid, vit.flatten(1, 2), grid)
                pyramid, rows = layer(pyramid, rows, bias_bm, grid.positions, grid.sizes, folded)
        return vit, pyramid, self.lang_proj(rows[:, : text_blw.shape[1]])

    def levels(self, pyramid_bnd: Tensor, grid: Grid) -> list[Tensor]:
        """Project each level of the pyramid to the width of the decoder, fine to coarse."""
        width = pyramid_bnd.shape[2]
        # along the last axis, where CUDA's split of three unequal parts uploads no table of pointers
        levels = pyramid_bnd.flatten(1).split([size * width for size in grid.sizes], 1)
        return [project(x.unflatten(1, (-1, width))) for project, x in zip(self.adapter_proj, levels, strict=True)]

    def fine(self, stem_bcss: Tensor, level_8_bno: Tensor, grid: Grid) -> Tensor:
        """Return the stride-4 map before the last convolution of `out_conv` (B,out,I/4,I/4)."""
        level = level_8_bno.transpose(1, 2).unflatten(2, (grid.sides[0], grid.sides[0]))
        level = F.interpolate(level, scale_factor=2, mode="bilinear", align_corners=False)
        return self.out_conv[:3](self.c1_norm(self.c1_conv(stem_bcss)) + level)

    def prompt(
        self,
        levels: list[Tensor],
        text_blo: Tensor,
        mask_bl: Tensor,
        sentence_bo: Tensor,
        grid: Grid,
        folded: bool = False,
    ) -> Tensor:
        """Aggregate pyramid and text into the sentence and learned prompts (B,1+P,out)."""
        learned = self.sparse_prompts.weight.expand(text_blo.shape[0], -1, -1)
        prompts, pyramid = torch.cat((sentence_bo[:, None], learned), 1), torch.cat(levels, 1)
        for block in self.prompt_blocks:
            prompts = block(
                prompts, pyramid, text_blo, mask_bl, self.prompt_pos.weight, grid.prompter_positions, grid.sizes, folded
            )
        return prompts
