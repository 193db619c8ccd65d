"""Geometry encoder of SAM 3: exemplar boxes of a picture as prompt tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.attention import PreNormLayer
from ..layers.positions import sine_grid, sine_values
from ..layers.roi_align import roi_align

ROI = 7
"""Side of the features that are pooled from a box in the published network."""


class GeometryLayer(PreNormLayer):
    """Self-attention of the tokens, attention to the map, feed-forward."""

    def forward(self, x_bkd: Tensor, level_bnd: Tensor, grid_nd: Tensor, mask_bk: Tensor) -> Tensor:
        normed = self.norm1(x_bkd)
        x_bkd = x_bkd + self.self_attn(normed, normed, mask_bk)
        x_bkd = x_bkd + self.cross_attn_image(self.norm2(x_bkd), level_bnd + grid_nd, v_bsc=level_bnd)
        return self.feed_forward(x_bkd)


class GeometryEncoder(nn.Module):
    """Trainable module. `side` is the side of the map, `roi` that of the features that are pooled from a box."""

    def __init__(self, side: int, width: int, heads: int, hidden: int, layers: int, roi: int = ROI) -> None:
        super().__init__()
        self.side, self.roi = side, roi
        self.label_embed, self.cls_embed = nn.Embedding(2, width), nn.Embedding(1, width)
        self.boxes_direct_project = nn.Linear(4, width)
        self.boxes_pool_project = nn.Conv2d(width, width, roi)
        self.boxes_pos_enc_project = nn.Linear(width + 2, width)
        self.final_proj = nn.Linear(width, width)
        self.norm, self.img_pre_norm, self.encode_norm = (nn.LayerNorm(width) for _ in range(3))
        self.encode = nn.ModuleList(GeometryLayer(width, heads, hidden) for _ in range(layers))
        self.register_buffer("grid", sine_grid(side, width), persistent=False)

    def box_tokens(self, level_bnd: Tensor, boxes_bk4: Tensor, labels_bk: Tensor) -> Tensor:
        """Embed boxes cx, cy, w, h in [0,1] with labels 1 (positive) or 0 as (B,K,D)."""
        cx, cy, w, h = boxes_bk4.unbind(-1)
        channels = self.boxes_pos_enc_project.in_features // 2 - 1
        code = torch.cat((sine_values(cy, channels), sine_values(cx, channels), h[..., None], w[..., None]), -1)
        corners = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1) * self.side
        maps = self.img_pre_norm(level_bnd).unflatten(1, (self.side, self.side))
        pooled = roi_align(maps, corners, self.roi).flatten(0, 1)
        pooled = self.boxes_pool_project(pooled).flatten(1).unflatten(0, boxes_bk4.shape[:2])
        direct = self.boxes_direct_project(boxes_bk4) + pooled + self.boxes_pos_enc_project(code)
        return direct + self.label_embed(labels_bk)

    def forward(self, level_bnd: Tensor, boxes_bk4: Tensor, labels_bk: Tensor, mask_bk: Tensor) -> Tensor:
        """Encode K-1 boxes on maps (B,N,D) as K tokens (B,K,D): those of the boxes, then the CLS token.

        The CLS token is always there; the last box only keeps its place, so that no size is 0 and one symbol is enough.
        `mask_bk` is true for tokens that are not padding.
        """
        tokens = self.box_tokens(level_bnd, boxes_bk4, labels_bk)
        x = torch.cat((tokens[:, :-1], self.cls_embed.weight.expand(tokens.shape[0], 1, -1)), 1)
        x = self.norm(self.final_proj(x))
        for layer in self.encode:
            x = layer(x, level_bnd, self.grid, mask_bk)
        return self.encode_norm(x)


class GeometryEncoderStage(nn.Module):
    """level (E,N,D), map_index (P), boxes (P,K,4), box_labels (P,K), box_mask (P,K) -> geometry (P,K,D).

    The last of the K rows is that of the CLS token.
    """

    def __init__(self, encoder: GeometryEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, level: Tensor, map_index: Tensor, boxes: Tensor, box_labels: Tensor, box_mask: Tensor
    ) -> tuple[Tensor]:
        return (self.encoder(level[map_index], boxes, box_labels, box_mask),)
