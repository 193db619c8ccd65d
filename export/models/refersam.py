"""ReferSAM: referring image segmentation on SAM (IEEE TCSVT 2024, 10.1109/TCSVT.2024.3524543).

`ReferSam` is the whole network and loads official checkpoints by name; `config_of` reads every size out of the tensors;
`stages` cuts it in three. The official code publishes the model only: size, preprocessing and tokens follow CARIS, the
predecessor by the same authors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import UserError

from ..layers.text_towers import HEAD_WIDTH, TOWERS, TowerConfig
from ..layers.vit import VitConfig
from ..stage import Stage, stage, tensor
from ..stages.prompt_encoder import PromptEncoder
from ..stages.refersam import FuseStage, ImageStage, TextStage
from ..stages.refersam_adapter import Adapter, AdapterConfig, Grid
from ..stages.refersam_decoder import SamDecoder

IMAGE_SIZE = 448
"""28 ViT cells a side: two windows of 14, and CARIS's input size."""

MAX_TOKENS = 20
"""Length that CARIS cuts sentences to, special tokens included."""

SENTENCES = 16
"""Largest batch of sentences on one picture."""

SUBDIVISION = 32
"""The input size is a multiple of it: the coarsest level of the pyramid has a whole number of cells."""


@dataclass(frozen=True, slots=True)
class ReferSamConfig:
    """Everything that sizes a ReferSAM but the input, which is chosen when it is exported."""

    vit: VitConfig = field(default_factory=VitConfig)
    text: TowerConfig = field(default_factory=TowerConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    decoder_heads: int = 8
    decoder_hidden: int = 2048
    decoder_depth: int = 2
    mask_channels: int = 16

    @property
    def variant(self) -> str:
        names = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
        return f"{names.get(self.vit.width, f'vit_{self.vit.width}')}-{self.text.kind}"


class ReferSam(nn.Module):
    def __init__(self, config: ReferSamConfig) -> None:
        super().__init__()
        self.config = config
        width = config.vit.out
        self.text_encoder = TOWERS[config.text.kind](config.text)
        self.vl_adapter = Adapter(config.vit, config.adapter)
        self.sam_prompt_encoder = PromptEncoder(IMAGE_SIZE, width, config.mask_channels)
        self.sam_mask_decoder = SamDecoder(width, config.decoder_heads, config.decoder_hidden, config.decoder_depth)
        self.mask_embedding = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.mask_scaling = nn.Conv2d(1, 1, 1)
        self.sparse_embedding = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width, 1e-6))

    def sentence(self, text_blo: Tensor, count_b: Tensor) -> Tensor:
        """The token that stands for the sentence (B,out): BERT's first, CLIP's last."""
        if self.config.text.kind == "bert":
            return text_blo[:, 0]
        return text_blo[torch.arange(text_blo.shape[0], device=text_blo.device), count_b - 1]

    def forward(self, pixels_b3ii: Tensor, tokens_bl: Tensor, count_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One picture (1,3,I,I) and B sentences (B,L) with their lengths (B), padded on the right.

        Returns logits (B,I/4,I/4), coarse logits (B,I/4,I/4) and predicted IoU (B), nothing folded.
        """
        grid = Grid(self.vl_adapter, pixels_b3ii.shape[-1])
        mask = torch.arange(tokens_bl.shape[1], device=tokens_bl.device) < count_b[:, None]
        vit, pyramid, stem = self.vl_adapter.image(pixels_b3ii, grid)
        return FuseStage(self, grid, folded=False)(vit, pyramid, stem, self.text_encoder(tokens_bl, mask), count_b)


def config_of(tensors: Mapping[str, Tensor], activation: str | None = None) -> ReferSamConfig:
    """Sizes from the tensors of a checkpoint. Raises UserError when they are not ReferSAM's.

    `activation` of a CLIP tower cannot be seen in its tensors; None means quick_gelu, OpenAI's.
    """
    try:
        return ReferSamConfig(vit=_vit(tensors), text=_text(tensors, activation), adapter=_adapter(tensors),
                              decoder_hidden=len(tensors["sam_mask_decoder.transformer.layers.0.mlp.layers.0.bias"]),
                              decoder_depth=_count(tensors, "sam_mask_decoder.transformer.layers."),
                              mask_channels=len(tensors["sam_prompt_encoder.mask_downscaling.3.bias"]))
    except KeyError as error:
        raise UserError(f"not a ReferSAM checkpoint: it has no tensor {error}; give the file that training wrote") from None


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules there are under `prefix`."""
    return 1 + max((int(k[len(prefix):].split(".")[0]) for k in tensors if k.startswith(prefix)), default=-1)


def _vit(tensors: Mapping[str, Tensor]) -> VitConfig:
    root = "vl_adapter.vis_model."
    positions, width = tensors[root + "pos_embed"].shape[1::2]
    rows = [len(tensors[f"{root}blocks.{i}.attn.rel_pos_h"]) for i in range(_count(tensors, root + "blocks."))]
    # a block is global where its table spans the whole grid that SAM was trained on
    windows = tuple(0 if n == 2 * positions - 1 else (n + 1) // 2 for n in rows)
    return VitConfig(
        width=width, heads=width // tensors[root + "blocks.0.attn.rel_pos_h"].shape[1], windows=windows,
        hidden=len(tensors[root + "blocks.0.mlp.lin1.bias"]), positions=positions,
        patch=tensors[root + "patch_embed.proj.weight"].shape[2], out=len(tensors[root + "neck.0.weight"]))


def _text(tensors: Mapping[str, Tensor], activation: str | None) -> TowerConfig:
    if "text_encoder.embeddings.word_embeddings.weight" in tensors:
        kind, table, places = "bert", "embeddings.word_embeddings", "embeddings.position_embeddings"
        layers, hidden = "encoder.layer.", "encoder.layer.0.intermediate.dense.bias"
    else:
        kind, table = "clip", "text_model.embeddings.token_embedding"
        places = "text_model.embeddings.position_embedding"
        layers, hidden = "text_model.encoder.layers.", "text_model.encoder.layers.0.mlp.fc1.bias"
    vocabulary, width = tensors[f"text_encoder.{table}.weight"].shape
    return TowerConfig(
        kind=kind, vocabulary=vocabulary, positions=len(tensors[f"text_encoder.{places}.weight"]), width=width,
        hidden=len(tensors[f"text_encoder.{hidden}"]), layers=_count(tensors, "text_encoder." + layers),
        heads=max(1, width // HEAD_WIDTH), activation=activation or ("gelu" if kind == "bert" else "quick_gelu"))


def _adapter(tensors: Mapping[str, Tensor]) -> AdapterConfig:
    root, first = "vl_adapter.", "vl_adapter.interactions.0."
    levels = len(tensors[root + "level_embed"])
    heads = len(tensors[first + "vl_extractor.l2v_cross_attn.level_weights.bias"]) // levels
    runs = _count(tensors, root + "interactions.")
    return AdapterConfig(
        text_width=tensors[root + "lang_prompts.weight"].shape[1], stem=len(tensors[root + "spm.stem.0.weight"]), runs=runs,
        extra=_count(tensors, f"{root}interactions.{runs - 1}.extra_extractors."),
        points=len(tensors[first + "extractor.attn.attention_weights.bias"]) // heads, heads=heads,
        value_width=len(tensors[first + "extractor.attn.value_proj.bias"]),
        context=len(tensors[root + "lang_prompts.weight"]), prompts=len(tensors[root + "sparse_prompts.weight"]),
        prompt_layers=_count(tensors, root + "prompt_blocks."),
        prompt_heads=len(tensors[root + "prompt_blocks.0.p2v_cross_attn.level_weights.bias"]) // levels)


UNUSED = ("text_encoder.pooler.", "text_encoder.embeddings.position_ids", "text_encoder.embeddings.token_type_ids",
          "text_encoder.text_model.embeddings.position_ids")
"""Tensors that old libraries wrote and no result depends on."""


def build(tensors: Mapping[str, Tensor], activation: str | None = None) -> ReferSam:
    """The network with these weights. Raises UserError for tensors that are missing, left over or of another shape."""
    tensors = {_renamed(k): v for k, v in tensors.items()}
    tensors = {k: v for k, v in tensors.items() if not k.startswith(UNUSED)}
    model = ReferSam(config_of(tensors, activation))
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    wrong = sorted(k for k in wanted.keys() | tensors.keys()
                   if k not in tensors or wanted.get(k) != tuple(tensors[k].shape))
    if wrong:
        raise UserError(f"checkpoint does not fit ReferSAM: {len(wrong)} tensors are missing, left over or of another "
                        f"shape, the first {wrong[0]}; give the file that training wrote")
    model.load_state_dict(tensors)
    return model.float().eval().requires_grad_(False)


def _renamed(name: str) -> str:
    """Our names: no parallel wrapper, one name for the decoder's MLP, CLIP's inner prefix that new releases dropped."""
    name = name.removeprefix("module.")
    if name.startswith("sam_mask_decoder."):
        return name.replace(".mlp.lin1.", ".mlp.layers.0.").replace(".mlp.lin2.", ".mlp.layers.1.")
    head, _, tail = name.partition("text_encoder.")
    if not head and tail.startswith(("embeddings.token_embedding", "embeddings.position_embedding.", "encoder.layers.",
                                     "final_layer_norm")):
        return f"text_encoder.text_model.{tail}"
    return name


def check_size(size: int) -> int:
    """The input size, if the network takes it. Raises UserError."""
    if size % SUBDIVISION or not SUBDIVISION <= size <= 2048:
        raise UserError(f"image size {size} is not a multiple of {SUBDIVISION} in {SUBDIVISION}..2048; try {IMAGE_SIZE}")
    return size


def stages(model: ReferSam, image_size: int = IMAGE_SIZE, max_tokens: int = MAX_TOKENS, folded: bool = True) -> list[Stage]:
    """`image` once per picture, `text` once per sentence, `fuse` once per pair, batched over sentences."""
    config, grid = model.config, Grid(model.vl_adapter, check_size(image_size))
    model.vl_adapter.vis_model.freeze(grid.side)
    side, d, w, fine = grid.side, config.vit.width, config.text.width, image_size // 4
    vit, pyramid = tensor("vit", 1, side, side, d), tensor("pyramid", 1, sum(grid.sizes), d)
    stem = tensor("stem", 1, config.adapter.stem, fine, fine)
    bounds = {"objects": (1, SENTENCES), "tokens": (1, max_tokens)}
    sizes = {"objects": 2, "tokens": min(7, max_tokens)}
    pixels, tokens = tensor("pixels", 1, 3, image_size, image_size), tensor("tokens", "tokens", dtype="int64")
    fused = (vit, pyramid, stem, tensor("text", "objects", "tokens", w), tensor("text_count", "objects", dtype="int64"))
    masks = (tensor("low_res_logits", "objects", fine, fine), tensor("coarse_logits", "objects", fine, fine),
             tensor("iou", "objects"))
    image = stage("image", (pixels,), (vit, pyramid, stem), ImageStage(model, grid),
                  lambda s, g: {"pixels": _smooth(image_size, g)}, bounds, sizes)
    text = stage("text", (tokens,), (tensor("text", "tokens", w),), TextStage(model),
                 lambda s, g: {"tokens": _tokens(config.text, s["tokens"], g)}, bounds, sizes)

    def pair(s: Mapping[str, int], g: torch.Generator) -> dict[str, Tensor]:
        seen = image.run({"pixels": _smooth(image_size, g)})
        rows = [text.run({"tokens": _tokens(config.text, s["tokens"], g)})["text"] for _ in range(s["objects"])]
        # the first sentence is the shorter one, so that padding is covered
        count = torch.tensor([max(1, s["tokens"] - 2), *[s["tokens"]] * (s["objects"] - 1)])
        return {**seen, "text": torch.stack(rows), "text_count": count}

    return [image, text, stage("fuse", fused, masks, FuseStage(model, grid, folded), pair, bounds, sizes)]


def _smooth(size: int, generator: torch.Generator) -> Tensor:
    """A normalised picture (1,3,size,size): soft blobs with a little grain."""
    coarse = torch.randn(1, 3, 8, 8, generator=generator)
    picture = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return picture + 0.1 * torch.randn(1, 3, size, size, generator=generator)


def _tokens(text: TowerConfig, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1, text.vocabulary, (count,), generator=generator)


def settings(model: ReferSam, max_tokens: int = MAX_TOKENS, image_size: int = IMAGE_SIZE) -> dict[str, Any]:
    """What a schedule must know; see `docs/architecture.md`."""
    return {"resize": {"rule": "square", "max": image_size}, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
            "text": {"max_tokens": max_tokens, "vocabulary": model.config.text.vocabulary, "motion": False}}
