"""Memory attention: the current map attends to remembered maps and object pointers.

Softmax is invariant to the order of its keys, so slots and pointers may be in any order; `maskmem_tpos_index` selects
the temporal embedding of each slot. Values are not rotated, hence softmax(QK')(M Wv) = (softmax(QK') M) Wv: the narrow
variant attends over the M-wide memory itself and projects afterwards (the bias of Wv passes through, because a softmax
row sums to 1, and with one head Wv and the output projection are one matrix). The wide variant projects first, for
backends that fuse attention only when keys and values are equally wide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.attention import Attention, attend
from ..layers.fold import compose, reordered
from ..layers.fused_operators import add_norm, rotate
from ..layers.positions import pairs_to_halves, rotate_halves, rotate_pairs, rotation_tables, sine_distance, sine_grid


def num_query_chunks(tokens: int) -> int:
    """Return the number of chunks of about 512 queries for chunked attention."""
    return max((n for n in (1, 2, 4, 8) if tokens % n == 0 and tokens // n >= 512), default=1)


class MemoryLayer(nn.Module):
    """Pre-norm: self-attention, cross-attention, feed-forward. One head, rotated queries and keys."""

    def __init__(self, width: int, memory_width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, 1)
        self.cross_attn_image = Attention(width, 1, key_width=memory_width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, x_bnd: Tensor, keys_bsnm: Tensor, pointer_keys_bpm: Tensor, values_bsm: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        normed, attn = self.norm1(x_bnd), self.self_attn
        q, k = rotate_pairs(attn.q_proj(normed), cos, sin), rotate_pairs(attn.k_proj(normed), cos, sin)
        x_bnd = x_bnd + attn.out_proj(attend(q, k, attn.v_proj(normed)))
        cross = self.cross_attn_image
        q = rotate_pairs(cross.q_proj(self.norm2(x_bnd)), cos, sin)
        k = rotate_pairs(cross.k_proj(keys_bsnm), cos, sin).flatten(1, 2)
        k = torch.cat((k, cross.k_proj(pointer_keys_bpm)), 1)
        x_bnd = x_bnd + cross.out_proj(attend(q, k, cross.v_proj(values_bsm)))
        return x_bnd + self.linear2(self.linear1(self.norm3(x_bnd)).relu())


def memory_tokens(
    memory_bsnm: Tensor,
    grid_nm: Tensor,
    ages_bsm: Tensor,
    pointers_bpd: Tensor,
    pointer_positions_bpm: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys of the maps (B,S,N,M), keys of the pointers (B,P*D/M,M) and all values (B,S*N + P*D/M,M).

    Positions are added to keys only: the grid and a temporal embedding per slot to maps, `pointer_positions` (if any)
    to pointers. A pointer is split into D/M tokens, which share its position.
    """
    keys = memory_bsnm + grid_nm + ages_bsm[:, :, None]
    width = memory_bsnm.shape[3]
    split = pointers_bpd.unflatten(2, (pointers_bpd.shape[2] // width, width))
    pointer_keys = split if pointer_positions_bpm is None else split + pointer_positions_bpm[:, :, None]
    values = torch.cat((memory_bsnm.flatten(1, 2), split.flatten(1, 2)), 1)
    return keys, pointer_keys.flatten(1, 2), values


class MemoryAttention(nn.Module):
    """Trainable module. `side` is the side of a map, `width` D, `memory_width` M."""

    def __init__(self, side: int, width: int, memory_width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryLayer(width, memory_width, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        cos, sin = rotation_tables(side, width)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("grid", 0.1 * sine_grid(side, width), persistent=False)
        self.register_buffer("memory_grid", sine_grid(side, memory_width), persistent=False)

    def forward(
        self,
        x_bnd: Tensor,
        memory_bsnm: Tensor,
        ages_bsm: Tensor,
        pointers_bpd: Tensor,
        pointer_positions_bpm: Tensor | None = None,
    ) -> Tensor:
        """Condition a map (B,N,D) on memory (B,S,N,M), temporal embeddings (B,S,M) and pointers (B,P,D)."""
        tokens = memory_tokens(memory_bsnm, self.memory_grid, ages_bsm, pointers_bpd, pointer_positions_bpm)
        x_bnd = x_bnd + self.grid
        for layer in self.layers:
            x_bnd = layer(x_bnd, *tokens, self.cos, self.sin)
        return self.norm(x_bnd)


class FoldedMemoryLayer(nn.Module):
    """`MemoryLayer` for export: rotates channels of q and k without interleaving, and merges projections."""

    def __init__(self, layer: MemoryLayer, wide: bool) -> None:
        super().__init__()
        attn, cross = layer.self_attn, layer.cross_attn_image
        self.wide = wide
        order = pairs_to_halves(attn.q_proj.out_features)
        self.self_q, self.self_k = reordered(attn.q_proj, order), reordered(attn.k_proj, order)
        self.self_v, self.self_out = attn.v_proj, attn.out_proj
        self.q, self.k = reordered(cross.q_proj, order), reordered(cross.k_proj, order)
        if wide:
            self.v, self.out = cross.v_proj, cross.out_proj
        else:
            self.out = compose(cross.v_proj, cross.out_proj)
        self.linear1, self.linear2 = layer.linear1, layer.linear2
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3

    def self_attention(self, x_bnd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply the first part of the layer: self-attention."""
        normed = self.norm1(x_bnd)
        q, k = rotate(self.self_q(normed), cos, sin), rotate(self.self_k(normed), cos, sin)
        return x_bnd + self.self_out(attend(q, k, self.self_v(normed), split=(1, num_query_chunks(x_bnd.shape[1]))))

    def forward(
        self, x_bnd: Tensor, keys_bsnm: Tensor, pointer_keys_bpm: Tensor, values_bsm: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Apply the rest of the layer: cross-attention to the memory and feed-forward."""
        split = (1, num_query_chunks(x_bnd.shape[1]))
        q = rotate_halves(self.q(self.norm2(x_bnd)), cos, sin)
        k = rotate_halves(self.k(keys_bsnm), cos, sin).flatten(1, 2)
        k = torch.cat((k, self.k(pointer_keys_bpm)), 1)
        x_bnd = x_bnd + self.out(attend(q, k, self.v(values_bsm) if self.wide else values_bsm, split=split))
        return x_bnd + self.linear2(self.linear1(self.norm3(x_bnd)).relu())


class MemoryAttentionStage(nn.Module):
    """embedding (E,N,D), map_index (B), memory (B,S,N,M), maskmem_tpos_index (B,S), obj_ptrs (B,P,D) -> conditioned
    (B,N,D).

    With `pointer_projection` (SAM 2.1) a further input `obj_ptr_tpos` (B,P) float gives each pointer's distance as
    a fraction of the longest one. The first self-attention does not depend on the memory: it runs once per map, before
    `map_index` distributes the maps to objects.
    """

    def __init__(
        self, attention: MemoryAttention, ages: Tensor, wide: bool = False, pointer_projection: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FoldedMemoryLayer(layer, wide) for layer in attention.layers)
        self.norm = attention.norm
        self.pointer_projection = pointer_projection
        self.register_buffer("ages", ages.detach().flatten(1).clone())
        self.register_buffer("grid", attention.grid)
        self.register_buffer("memory_grid", attention.memory_grid)
        self.register_buffer("cos", attention.cos)
        self.register_buffer("sin", attention.sin)

    def tokens(
        self, memory: Tensor, maskmem_tpos_index: Tensor, obj_ptrs: Tensor, obj_ptr_tpos: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `memory_tokens` of the inputs."""
        positions = None
        if self.pointer_projection is not None:
            positions = self.pointer_projection(sine_distance(obj_ptr_tpos, self.pointer_projection.in_features))
        return memory_tokens(memory, self.memory_grid, self.ages[maskmem_tpos_index], obj_ptrs, positions)

    def forward(
        self,
        embedding: Tensor,
        map_index: Tensor,
        memory: Tensor,
        maskmem_tpos_index: Tensor,
        obj_ptrs: Tensor,
        obj_ptr_tpos: Tensor | None = None,
    ) -> tuple[Tensor]:
        tokens = self.tokens(memory, maskmem_tpos_index, obj_ptrs, obj_ptr_tpos)
        x = self.layers[0].self_attention(embedding + self.grid, self.cos, self.sin)[map_index]
        for i, layer in enumerate(self.layers):
            x = layer(layer.self_attention(x, self.cos, self.sin) if i else x, *tokens, self.cos, self.sin)
        return (self.norm(x),)


class FusedMemoryAttentionStage(MemoryAttentionStage):
    """`MemoryAttentionStage` with few launches: value and output projection of the self-attention are one matrix, and
    `layers.fused_operators` rotates, and adds biases and residuals while it normalizes."""

    def __init__(self, attention: MemoryAttention, ages: Tensor, pointer_projection: nn.Linear | None = None) -> None:
        super().__init__(attention, ages, False, pointer_projection)
        self.self_out = nn.ModuleList(compose(layer.self_v, layer.self_out) for layer in self.layers)

    def forward(
        self,
        embedding: Tensor,
        map_index: Tensor,
        memory: Tensor,
        maskmem_tpos_index: Tensor,
        obj_ptrs: Tensor,
        obj_ptr_tpos: Tensor | None = None,
    ) -> tuple[Tensor]:
        keys, pointer_keys, values = self.tokens(memory, maskmem_tpos_index, obj_ptrs, obj_ptr_tpos)
        keys = keys.flatten(0, 1)
        x = embedding + self.grid
        normed = self.layers[0].norm1(x)
        following = [*(layer.norm1 for layer in self.layers[1:]), self.norm]
        for i, (layer, out, norm) in enumerate(zip(self.layers, self.self_out, following, strict=True)):
            q, k = (rotate(project(normed), self.cos, self.sin) for project in (layer.self_q, layer.self_k))
            normed, x = add_norm(x, attend(q, k, normed @ out.weight.T), out.bias, layer.norm2)
            q = rotate(layer.q(normed), self.cos, self.sin)
            if i == 0:  # up to here nothing depends on the object
                q, x = q[map_index], x[map_index]
            k = rotate(layer.k(keys), self.cos, self.sin).view(memory.shape[0], -1, q.shape[2])
            k = torch.cat((k, layer.k(pointer_keys)), 1)
            normed, x = add_norm(x, attend(q, k, values) @ layer.out.weight.T, layer.out.bias, layer.norm3)
            normed, x = add_norm(x, layer.linear1(normed).relu() @ layer.linear2.weight.T, layer.linear2.bias, norm)
        return (normed,)
