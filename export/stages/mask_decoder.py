"""Mask decoder of SAM: two-way transformer between prompt tokens and the image map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import Attention
from ..layers.common import MLP, LayerNorm2d, Pointwise
from .prompt_encoder import PromptEncoder

MASKS = 4
"""Mask tokens of a SAM decoder: one for unambiguous prompts, three for ambiguous ones."""

NO_OBJECT_LOGIT = -1024.0
"""Mask logit of every pixel when the object is absent."""


@dataclass(frozen=True, slots=True)
class MaskDecoderOutput:
    """`logits` (B,n,S4,S4), `iou` (B,4) in 0..1, `score` (B) logit, `tokens` and `early` (B,4,D).

    `early` are the mask tokens after the first block of the transformer.
    """

    logits: Tensor
    iou: Tensor
    score: Tensor
    tokens: Tensor
    early: Tensor


class TwoWayBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, heads)
        self.cross_attn_token_to_image = Attention(width, heads, width // 2)
        self.cross_attn_image_to_token = Attention(width, heads, width // 2)
        self.mlp = MLP(width, hidden, width, 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))

    def forward(
        self, x_bkd: Tensor, image_bnd: Tensor, query_pe_bkd: Tensor, grid_nd: Tensor, mask_bk: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Update tokens (B,K,D) and image (B,N,D).

        `query_pe_bkd` are the tokens before the first block, `grid_nd` the positions of the map; both are added to
        queries and keys only.
        """
        if self.first:
            x_bkd = self.self_attn(x_bkd, x_bkd, x_bkd, mask_bk)
        else:
            q = x_bkd + query_pe_bkd
            x_bkd = x_bkd + self.self_attn(q, q, x_bkd, mask_bk)
        x_bkd = self.norm1(x_bkd)
        image_with_pe = image_bnd + grid_nd
        x_bkd = self.norm2(x_bkd + self.cross_attn_token_to_image(x_bkd + query_pe_bkd, image_with_pe, image_bnd))
        x_bkd = self.norm3(x_bkd + self.mlp(x_bkd))
        image_bnd = image_bnd + self.cross_attn_image_to_token(image_with_pe, x_bkd + query_pe_bkd, x_bkd, mask_bk)
        return x_bkd, self.norm4(image_bnd)


class TwoWayTransformer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, heads, hidden, i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(width, heads, width // 2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(
        self, tokens_bkd: Tensor, image_bnd: Tensor, grid_nd: Tensor, mask_bk: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, image, and the tokens after the first block."""
        x, early = tokens_bkd, tokens_bkd
        for layer in self.layers:
            x, image_bnd = layer(x, image_bnd, tokens_bkd, grid_nd, mask_bk)
            early = x if layer.first else early
        x = x + self.final_attn_token_to_image(x + tokens_bkd, image_bnd + grid_nd, image_bnd)
        return self.norm_final_attn(x), image_bnd, early


def upscaling(width: int) -> nn.Sequential:
    """Return layers (B,D,h,w) -> (B,D/8,4h,4w)."""
    first, second = nn.ConvTranspose2d(width, width // 4, 2, 2), nn.ConvTranspose2d(width // 4, width // 8, 2, 2)
    return nn.Sequential(first, LayerNorm2d(width // 4), nn.GELU(), second, nn.GELU())


class MaskDecoder(nn.Module):
    """Trainable module. Without `object_score` the object always counts as present (score 10)."""

    def __init__(
        self, width: int, heads: int, hidden: int, depth: int, iou_hidden: int, object_score: bool = True
    ) -> None:
        super().__init__()
        self.object_score = object_score
        self.transformer = TwoWayTransformer(width, heads, hidden, depth)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(MASKS, width)
        fine, finest = width // 4, width // 8
        self.output_upscaling = upscaling(width)
        self.conv_s0, self.conv_s1 = Pointwise(width, finest), Pointwise(width, fine)
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(width, width, finest, 3) for _ in range(MASKS))
        self.iou_prediction_head = MLP(width, iou_hidden, MASKS, 3)
        if object_score:
            self.obj_score_token = nn.Embedding(1, width)
            self.pred_obj_score_head = MLP(width, width, 1, 3)

    def upscale(self, image_bnd: Tensor, high_res_0: Tensor, high_res_1: Tensor) -> Tensor:
        """Upsample image tokens (B,N,D) and add the fine maps: (B,D/8,S4,S4)."""
        up_1, norm, _, up_0, _ = self.output_upscaling
        side = high_res_1.shape[2] // 2
        x = up_1(image_bnd.transpose(1, 2).unflatten(2, (side, side))) + high_res_1
        return F.gelu(up_0(F.gelu(norm(x))) + high_res_0)

    def forward(
        self,
        image_bnd: Tensor,
        grid_nd: Tensor,
        sparse_bkd: Tensor,
        high_res_0: Tensor,
        high_res_1: Tensor,
        mask_bk: Tensor | None = None,
        masks: int = MASKS,
    ) -> MaskDecoderOutput:
        """Decode the first `masks` masks.

        `image_bnd` has the dense prompt added; `mask_bk` is true for prompt tokens that are not padding.
        """
        heads = [self.obj_score_token.weight] if self.object_score else []
        output_tokens = torch.cat((*heads, self.iou_token.weight, self.mask_tokens.weight))
        tokens = torch.cat((output_tokens.expand(sparse_bkd.shape[0], -1, -1), sparse_bkd), 1)
        if mask_bk is not None:
            mask_bk = torch.cat((mask_bk.new_ones(1, len(output_tokens)).expand(mask_bk.shape[0], -1), mask_bk), 1)
        x, image_bnd, early = self.transformer(tokens, image_bnd, grid_nd, mask_bk)
        s = len(heads)
        picked = x[:, s + 1 : s + 1 + MASKS]
        fine = self.upscale(image_bnd, high_res_0, high_res_1)
        hyper = torch.stack([self.output_hypernetworks_mlps[i](picked[:, i]) for i in range(masks)], 1)
        logits = (hyper @ fine.flatten(2)).unflatten(2, fine.shape[2:])
        score = self.pred_obj_score_head(x[:, 0])[:, 0] if heads else torch.full_like(x[:, 0, 0], 10.0)
        iou = self.iou_prediction_head(x[:, s]).sigmoid()
        return MaskDecoderOutput(logits, iou, score, picked, early[:, s + 1 : s + 1 + MASKS])


def gate(score_b: Tensor, logits: Tensor, pointer_bd: Tensor, no_pointer_d: Tensor) -> tuple[Tensor, Tensor]:
    """Set mask logits (B,...) to -1024 and the pointer to the learned one where the object is absent (score <= 0)."""
    present = score_b > 0
    logits = torch.where(present.reshape(-1, *[1] * (logits.dim() - 1)), logits, NO_OBJECT_LOGIT)
    return logits, torch.where(present[:, None], pointer_bd, no_pointer_d)


class MaskDecoderStage(nn.Module):
    """Single-mask decode, gated by the object score; `docs/architecture.md`, row `mask_decoder`, has the signature."""

    def __init__(
        self, decoder: MaskDecoder, prompts: PromptEncoder, pointer: MLP, no_pointer: Tensor, side: int
    ) -> None:
        super().__init__()
        self.decoder, self.pointer = decoder, pointer
        self.register_buffer("dense", prompts.no_mask_embed.weight.detach()[0].clone())
        self.register_buffer("grid", prompts.pe_layer.grid(side).detach())
        self.register_buffer("no_pointer", no_pointer.detach()[0].clone())

    def forward(
        self,
        conditioned: Tensor,
        sparse: Tensor,
        sparse_count: Tensor,
        high_res_0: Tensor,
        picture_index: Tensor,
        high_res_1: Tensor,
        map_index: Tensor,
    ) -> tuple[Tensor, ...]:
        mask = torch.arange(sparse.shape[1], device=sparse.device) < sparse_count[:, None]
        out = self.decoder(
            conditioned + self.dense, self.grid, sparse, high_res_0[picture_index], high_res_1[map_index], mask, masks=1
        )
        logits, pointer = out.logits[:, 0], self.pointer(out.tokens[:, 0])
        if self.decoder.object_score:
            logits, pointer = gate(out.score, logits, pointer, self.no_pointer)
        return logits, out.iou[:, 0], out.score, pointer, out.early[:, 0]
