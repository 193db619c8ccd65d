"""DETR encoder and decoder of SAM 3: from a map and prompt tokens to boxes, scores and presence.

The decoder attends to the map with a bias that depends on the distance of each row and column from the edges of the
current boxes. The bias of a cell is a sum of one number for its row and one for its column, hence a dot product: q is
extended by the numbers, k by the cell's row and column as unit vectors, and any fused attention can compute it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..layers.attention import PackedAttention, PreNormLayer, attend
from ..layers.common import MLP, Group
from ..layers.positions import sine_grid, sine_values

BOX_LOGIT_FLOOR = 1e-3
"""Smallest coordinate, and smallest distance from 1, whose logit a box update starts from."""

MAX_SCORE_LOGIT = 12.0


def box_logit(x: Tensor) -> Tensor:
    """Return the logit of coordinates in [0,1], both sides clamped to `BOX_LOGIT_FLOOR`."""
    return (x.clamp(min=BOX_LOGIT_FLOOR) / (1 - x).clamp(min=BOX_LOGIT_FLOOR)).log()


class EncoderLayer(PreNormLayer):
    """Self-attention of the map, attention to the prompt (named `cross_attn_image`), feed-forward."""

    def self_attention(self, x_bnd: Tensor, grid_nd: Tensor) -> Tensor:
        """Apply the first part of the layer, which does not depend on the prompt."""
        normed = self.norm1(x_bnd)
        q = normed + grid_nd
        tokens = x_bnd.shape[1]
        return x_bnd + self.self_attn(q, q, v_bsc=normed, chunks=8 if tokens % 8 == 0 and tokens >= 2048 else 1)

    def forward(self, x_bnd: Tensor, prompt_btd: Tensor, mask_bt: Tensor) -> Tensor:
        """Apply the rest of the layer."""
        x_bnd = x_bnd + self.cross_attn_image(self.norm2(x_bnd), prompt_btd, mask_bt)
        return self.feed_forward(x_bnd)


class DecoderLayer(nn.Module):
    """Post-norm: self-attention of the queries, attention to the prompt, attention to the map, feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn, self.ca_text, self.cross_attn = (PackedAttention(width, heads) for _ in range(3))
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2, self.norm3, self.catext_norm = (nn.LayerNorm(width) for _ in range(4))

    def forward(
        self,
        x_bqd: Tensor,
        positions_bqd: Tensor,
        prompt_btd: Tensor,
        mask_bt: Tensor,
        keys_bnd: Tensor,
        map_bnd: Tensor,
        bias_bqhc: Tensor,
        cells_nc: Tensor,
    ) -> Tensor:
        """Update queries. `keys_bnd` is the map with positions, `bias_bqhc` and `cells_nc` are those of `biased`."""
        q = x_bqd + positions_bqd
        x_bqd = self.norm2(x_bqd + self.self_attn(q, q, v_bsc=x_bqd))
        x_bqd = self.catext_norm(x_bqd + self.ca_text(x_bqd + positions_bqd, prompt_btd, mask_bt))
        attention = self.cross_attn
        q, k, v = attention.project(x_bqd + positions_bqd, keys_bnd, map_bnd)
        q, k = biased(q, k, attention.heads, bias_bqhc, cells_nc)
        x_bqd = self.norm1(x_bqd + attention.out_proj(attend(q, k, v, attention.heads)))
        return self.norm3(x_bqd + self.linear2(self.linear1(x_bqd).relu()))


def biased(q_bqd: Tensor, k_bnd: Tensor, heads: int, bias_bqhc: Tensor, cells_nc: Tensor) -> tuple[Tensor, Tensor]:
    """Extend q and k so that their scaled product is increased by bias . cell for every query, head and key."""
    q, k = q_bqd.unflatten(2, (heads, -1)), k_bnd.unflatten(2, (heads, -1))
    longer = q.shape[-1] + cells_nc.shape[-1]
    # `attend` divides by the root of the longer width
    q = torch.cat((q * (longer / q.shape[-1]) ** 0.5, bias_bqhc * longer**0.5), -1)
    k = torch.cat((k, cells_nc[:, None].expand(k.shape[0], -1, heads, -1)), -1)
    return q.flatten(2), k.flatten(2)


class Decoder(nn.Module):
    """Queries, boxes and the presence token, refined by every layer. `side` is the side of the map."""

    def __init__(self, side: int, width: int, heads: int, hidden: int, layers: int, queries: int) -> None:
        super().__init__()
        self.side = side
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden) for _ in range(layers))
        self.norm, self.presence_token_out_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_embed, self.reference_points = nn.Embedding(queries, width), nn.Embedding(queries, 4)
        self.presence_token = nn.Embedding(1, width)
        self.bbox_embed = MLP(width, width, 4, 3)
        self.ref_point_head = MLP(2 * width, width, width, 2)
        self.presence_token_head = MLP(width, width, 1, 3)
        self.boxRPB_embed_x, self.boxRPB_embed_y = MLP(2, width, heads, 2), MLP(2, width, heads, 2)
        cell = torch.arange(side * side)
        row, column = cell.div(side, rounding_mode="floor"), cell % side
        units = torch.cat((nn.functional.one_hot(row, side), nn.functional.one_hot(column, side)), 1)
        self.register_buffer("cells", units.float(), persistent=False)

    def query_positions(self, boxes_bq4: Tensor) -> Tensor:
        """Encode boxes cx, cy, w, h as positions (B,Q,D) of their queries."""
        cx, cy, w, h = boxes_bq4.unbind(-1)
        channels = self.ref_point_head.layers[0].in_features // 4
        return self.ref_point_head(torch.cat([sine_values(x, channels) for x in (cy, cx, w, h)], -1))

    def box_bias(self, boxes_bq4: Tensor) -> Tensor:
        """Return the bias of every row, then of every column of the map: (B,Q,heads,2*side)."""
        centre, half = boxes_bq4[..., :2], boxes_bq4[..., 2:] / 2
        edges_x, edges_y = torch.stack((centre - half, centre + half), -1).unbind(-2)  # (B,Q,2) low and high
        rows = self.boxRPB_embed_y(self._log_distance(edges_y))
        columns = self.boxRPB_embed_x(self._log_distance(edges_x))
        return torch.cat((rows, columns), 2).transpose(2, 3)

    def _log_distance(self, edges_bq2: Tensor) -> Tensor:
        steps = torch.arange(self.side, dtype=torch.float32, device=edges_bq2.device) / self.side
        distance = steps[:, None] - edges_bq2[:, :, None]
        return distance.sign() * (8 * distance.abs() + 1).log2() / math.log2(8)

    def run_layers(
        self, map_bnd: Tensor, grid_nd: Tensor, prompt_btd: Tensor, mask_bt: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield queries (B,Q,D), boxes cx, cy, w, h (B,Q,4) in [0,1] and the presence token (B,D) after every layer."""
        batch = map_bnd.shape[0]
        boxes = self.reference_points.weight.sigmoid().expand(batch, -1, -1)
        x = torch.cat((self.presence_token.weight, self.query_embed.weight)).expand(batch, -1, -1)
        keys = map_bnd + grid_nd
        for layer in self.layers:
            positions, bias = self.query_positions(boxes), self.box_bias(boxes)
            positions = torch.cat((torch.zeros_like(positions[:, :1]), positions), 1)
            bias = torch.cat((torch.zeros_like(bias[:, :1]), bias), 1)
            x = layer(x, positions, prompt_btd, mask_bt, keys, map_bnd, bias, self.cells)
            queries = self.norm(x[:, 1:])
            boxes = (self.bbox_embed(queries) + box_logit(boxes)).sigmoid()
            yield queries, boxes, x[:, 0]
            if self.training:  # each layer learns from its own correction
                boxes = boxes.detach()

    def presence(self, token_bd: Tensor) -> Tensor:
        """Return the presence logits (B) of presence tokens."""
        return self.presence_token_head(self.presence_token_out_norm(token_bd))[:, 0]

    def forward(
        self, map_bnd: Tensor, grid_nd: Tensor, prompt_btd: Tensor, mask_bt: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B,Q,D), boxes cx, cy, w, h (B,Q,4) in [0,1] and presence logits (B)."""
        *_, (queries, boxes, token) = self.run_layers(map_bnd, grid_nd, prompt_btd, mask_bt)
        return queries, boxes, self.presence(token)


class Scoring(nn.Module):
    """Score of every query: its dot product with the average of the prompt tokens."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.prompt_mlp = MLP(width, hidden, width, 2)
        self.prompt_mlp.out_norm = nn.LayerNorm(width)
        self.prompt_proj, self.hs_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, queries_bqd: Tensor, prompt_btd: Tensor, mask_bt: Tensor) -> Tensor:
        """Return score logits (B,Q)."""
        prompt = self.prompt_mlp.out_norm(prompt_btd + self.prompt_mlp(prompt_btd))
        valid = mask_bt.to(prompt.dtype)[..., None]
        mean = self.prompt_proj((prompt * valid).sum(1) / valid.sum(1).clamp(min=1))
        queries = self.hs_proj(queries_bqd)
        scores = (queries @ mean[..., None])[..., 0] / queries.shape[-1] ** 0.5
        return scores.clamp(-MAX_SCORE_LOGIT, MAX_SCORE_LOGIT)


def transformer(
    side: int, width: int, heads: int, hidden: int, encoder_layers: int, decoder_layers: int, queries: int
) -> Group:
    """Return the trainable modules of encoder and decoder, named as in the official `transformer`."""
    layers = nn.ModuleList(EncoderLayer(width, heads, hidden) for _ in range(encoder_layers))
    return Group(encoder=Group(layers=layers), decoder=Decoder(side, width, heads, hidden, decoder_layers, queries))


class DetrStage(nn.Module):
    """level (E,N,D), map_index (P), prompt (P,T,D), prompt_mask (P,T) -> encoded (P,N,D), queries (P,Q,D), boxes
    (P,Q,4), scores (P,Q), presence (P). The first self-attention runs once per map."""

    def __init__(self, modules: Group, scoring: Scoring) -> None:
        super().__init__()
        self.layers, self.decoder, self.scoring = modules.encoder.layers, modules.decoder, scoring
        self.register_buffer("grid", sine_grid(self.decoder.side, self.decoder.norm.normalized_shape[0]))

    def forward(
        self, level: Tensor, map_index: Tensor, prompt: Tensor, prompt_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        first, *rest = self.layers
        x = first(first.self_attention(level, self.grid)[map_index], prompt, prompt_mask)
        for layer in rest:
            x = layer(layer.self_attention(x, self.grid), prompt, prompt_mask)
        queries, boxes, presence = self.decoder(x, self.grid, prompt, prompt_mask)
        return x, queries, boxes, self.scoring(queries, prompt, prompt_mask), presence
