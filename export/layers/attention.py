"""Attention in the implementations that backends need, and its projection layers.

Every attention of every network goes through `attend`, so that `attention_impl` alone decides how a graph computes it:

  plain    torch's own kernel when run, matmul-softmax-matmul when traced (the pattern that TensorRT fuses)
  chunked  as plain, but large problems are split along a static axis, which bounds the size of a score matrix
  ort      ONNX Runtime's fused `com.microsoft::MultiHeadAttention`; values may be narrower than keys
  cuda     as ort, where a graph for a GPU differs from one for a CPU: see `targets_cpu` and `targets_cuda`
  explicit maximum, exponentials, sum and division between the products: a softmax that TensorRT does not match, float32
           in half graphs (`export.precision`)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_IMPLS = ("plain", "chunked", "ort", "cuda", "explicit")
_impl: ContextVar[str] = ContextVar("attention_impl", default="plain")

MASKED = -1e4
"""Added to hidden keys: exp() of it is 0 in float32 and in float16, and it is a number in both."""


@contextmanager
def attention_impl(name: str) -> Iterator[None]:
    """Trace attention as `name`, one of `ATTENTION_IMPLS`, inside the block."""
    if name not in ATTENTION_IMPLS:
        raise ValueError(f"attention implementation {name!r} is not one of {', '.join(ATTENTION_IMPLS)}")
    token = _impl.set(name)
    try:
        yield
    finally:
        _impl.reset(token)


def targets_cpu() -> bool:
    """Tell whether the graph is for a CPU, where activations that stay in the cache are worth more nodes."""
    return _impl.get() == "ort"


def targets_cuda() -> bool:
    """Tell whether the graph is being exported for ONNX Runtime on CUDA, where each operator costs a launch."""
    return _impl.get() == "cuda" and torch.compiler.is_exporting()


def attend(
    q_blc: Tensor,
    k_bsc: Tensor,
    v_bsv: Tensor,
    heads: int = 1,
    mask_bs: Tensor | None = None,
    split: tuple[int, int] | None = None,
) -> Tensor:
    """Compute softmax(q k' / sqrt(width of a head)) v per head.

    q (B,L,heads*d), k (B,S,heads*d), v (B,S,heads*e) -> (B,L,heads*e). `mask_bs` is true where a key is visible.
    `split` = (axis of q, number of chunks) applies to the chunked implementation: axis 0 splits q, k and v, axis 1
    splits q alone. The size of that axis must be static and a multiple of the number of chunks.
    """
    name = _impl.get()
    if name in ("ort", "cuda") and mask_bs is None:
        return _fused(q_blc, k_bsc, v_bsv, heads)
    if name == "chunked" and split is not None and split[1] > 1:
        axis, chunks = split
        qs = q_blc.chunk(chunks, axis)
        ks = k_bsc.chunk(chunks, axis) if axis == 0 else (k_bsc,) * chunks
        vs = v_bsv.chunk(chunks, axis) if axis == 0 else (v_bsv,) * chunks
        outputs = [_plain(q, k, v, heads, mask_bs, True) for q, k, v in zip(qs, ks, vs, strict=True)]
        return torch.cat(outputs, axis)
    if name == "explicit":
        return _explicit(q_blc, k_bsc, v_bsv, heads, mask_bs)
    return _plain(q_blc, k_bsc, v_bsv, heads, mask_bs, name == "chunked" or torch.compiler.is_exporting())


def _heads(x_blc: Tensor, heads: int) -> Tensor:
    return x_blc.unflatten(2, (heads, x_blc.shape[2] // heads)).transpose(1, 2)


def _plain(q: Tensor, k: Tensor, v: Tensor, heads: int, mask_bs: Tensor | None, explicit: bool) -> Tensor:
    """Compute attention with torch's kernel, or as `explicit` matmul-softmax-matmul."""
    q, k, v = _heads(q, heads), _heads(k, heads), _heads(v, heads)
    if not explicit:
        mask = None if mask_bs is None else mask_bs[:, None, None, :]
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            # the backward pass of torch's CPU kernel is eight times slower in bfloat16 than in float32 (torch 2.13)
            with torch.autocast("cpu", enabled=False):
                mixed = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask)
            return mixed.to(q.dtype).transpose(1, 2).flatten(2)
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    if mask_bs is not None:
        scores = scores + torch.where(mask_bs, 0.0, MASKED)[:, None, None, :]
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _explicit(q: Tensor, k: Tensor, v: Tensor, heads: int, mask_bs: Tensor | None) -> Tensor:
    q, k, v = _heads(q, heads), _heads(k, heads), _heads(v, heads)
    root = q.shape[-1] ** 0.25
    # half products of moderate size; the division makes float32 of them
    scores = (q / root) @ k.transpose(2, 3) / root
    if mask_bs is not None:
        scores = scores + torch.where(mask_bs, 0.0, MASKED)[:, None, None, :]
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return ((weights / weights.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(2)


def _fused(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    if not torch.compiler.is_exporting():
        return _plain(q, k, v, heads, None, False)
    return torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (q, k, v),
        {"num_heads": heads},
        dtype=q.dtype,
        shape=(q.shape[0], q.shape[1], v.shape[2]),
        version=1,
    )


class Attention(nn.Module):
    """Attention with four separate projections, as in SAM; `inner` is the projected width, `key_width` that of keys."""

    def __init__(self, width: int, heads: int, inner: int | None = None, key_width: int | None = None) -> None:
        super().__init__()
        inner, key_width = inner or width, key_width or width
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(key_width, inner)
        self.v_proj = nn.Linear(key_width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q_blc: Tensor, k_bsc: Tensor, v_bsc: Tensor, mask_bs: Tensor | None = None) -> Tensor:
        mixed = attend(self.q_proj(q_blc), self.k_proj(k_bsc), self.v_proj(v_bsc), self.heads, mask_bs)
        return self.out_proj(mixed)


class PackedAttention(nn.Module):
    """Attention with packed projections; parameter names of torch's MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def project(self, q_blc: Tensor, k_bsc: Tensor, v_bsc: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project queries, keys and values; the keys are also the values unless those are given."""
        inputs = q_blc, k_bsc, k_bsc if v_bsc is None else v_bsc
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        return q, k, v

    def forward(
        self, q_blc: Tensor, k_bsc: Tensor, mask_bs: Tensor | None = None, v_bsc: Tensor | None = None, chunks: int = 1
    ) -> Tensor:
        """Attend from queries (B,L,C) to keys (B,S,C); `chunks` of queries bound the size of a score matrix."""
        q, k, v = self.project(q_blc, k_bsc, v_bsc)
        return self.out_proj(attend(q, k, v, self.heads, mask_bs, split=(1, chunks)))


class PreNormLayer(nn.Module):
    """Modules of a layer of DETR's encoder and of the geometry encoder: two attentions and a feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn, self.cross_attn_image = PackedAttention(width, heads), PackedAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def feed_forward(self, x_blc: Tensor) -> Tensor:
        """Apply the last part of the layer."""
        return x_blc + self.linear2(self.linear1(self.norm3(x_blc)).relu())
