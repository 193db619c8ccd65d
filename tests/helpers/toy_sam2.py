"""A SAM-2-shaped bundle of toy graphs: 32 px, a few adds and means per stage, the real signatures.

It runs in milliseconds and needs no weights. A mask is where the red channel is bright; prompts, memory, ages,
pointers and distances all shift the logits a little, so that a wrong schedule changes the numbers. The object is absent
where the image is dark. `Arithmetic` is the same in numpy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers import toy_bundle
from runtime.imaging.preprocess import preprocess

SIZE, SLOTS, POINTERS = 32, 4, 5
MEAN, STD = [0.5] * 3, [0.25] * 3

GRAPHS = {
    "image_encoder": """image_encoder (float[T,3,32,32] pixels) => (float[T,4,3] embedding,
  float[T,4,3] embedding_no_memory, float[T,3,8,8] high_res_0, float[T,3,4,4] high_res_1) {
  tenth = Constant<value = float {0.1}>()
  shape = Constant<value = int64[3] {0, 3, 4}>()
  high_res_0 = AveragePool<kernel_shape=[4,4], strides=[4,4]>(pixels)
  high_res_1 = AveragePool<kernel_shape=[8,8], strides=[8,8]>(pixels)
  x = AveragePool<kernel_shape=[16,16], strides=[16,16]>(pixels)
  y = Reshape(x, shape)
  embedding = Transpose<perm=[0,2,1]>(y)
  embedding_no_memory = Add(embedding, tenth)
}""",
    "prompt_encoder": """prompt_encoder (float[B,K,2] points, int64[B,K] labels, float[B,8,8] prompt_logits,
  bool[B] has_mask) => (float[B,K,3] sparse, float[B,4,3] dense) {
  axes2 = Constant<value = int64[1] {2}>()
  axes12 = Constant<value = int64[2] {1, 2}>()
  small = Constant<value = float {0.03125}>()
  shape = Constant<value = int64[3] {1, 4, 3}>()
  half = Constant<value = float {0.5}>()
  places = Mul(points, small)
  kinds = Cast<to=1>(labels)
  column = Unsqueeze(kinds, axes2)
  sparse = Concat<axis=2>(places, column)
  mean = ReduceMean<keepdims=1>(prompt_logits, axes12)
  flag = Cast<to=1>(has_mask)
  flags = Unsqueeze(flag, axes12)
  with = Mul(mean, flags)
  shifted = Add(with, flags)
  halved = Mul(shifted, half)
  dense = Expand(halved, shape)
}""",
    "mask_prompt": """mask_prompt (float[B,32,32] mask) => (float[B,8,8] mask_logits, float[B,8,8] prompt_logits) {
  axis = Constant<value = int64[1] {1}>()
  twenty = Constant<value = float {20.0}>()
  ten = Constant<value = float {10.0}>()
  x = Unsqueeze(mask, axis)
  y = AveragePool<kernel_shape=[4,4], strides=[4,4]>(x)
  prompt_logits = Squeeze(y, axis)
  scaled = Mul(prompt_logits, twenty)
  mask_logits = Sub(scaled, ten)
}""",
    "prompt_decoder": """prompt_decoder (float[B,4,3] conditioned, float[B,K,3] sparse, int64[B] sparse_count,
  float[B,4,3] dense, float[U,3,8,8] high_res_0, int64[B] picture_index, float[E,3,4,4] high_res_1, int64[B] map_index,
  bool[B] multimask) => (float[B,8,8] low_res_logits, float[B,4,8,8] all_logits, float[B,4] ious, int64[B] selected,
  float[B] score, float[B,3] obj_ptr) {
  zero = Constant<value = int64 {0}>()
  one = Constant<value = int64 {1}>()
  first = Constant<value = int64[1] {0}>()
  ones = Constant<value = int64[1] {1}>()
  fours = Constant<value = int64[1] {4}>()
  axes12 = Constant<value = int64[2] {1, 2}>()
  axes123 = Constant<value = int64[3] {1, 2, 3}>()
  axis1 = Constant<value = int64[1] {1}>()
  axis2 = Constant<value = int64[1] {2}>()
  tenth = Constant<value = float {0.1}>()
  offsets = Constant<value = float[4] {0.0, 0.25, -0.25, 0.5}>()
  shape = Constant<value = int64[4] {1, 4, 1, 1}>()
  gone = Constant<value = float {-1024.0}>()
  limit = Constant<value = float {-0.3}>()
  fine = Gather(high_res_0, picture_index)
  red = Gather<axis=1>(fine, zero)
  maps = Gather(high_res_1, map_index)
  h = ReduceMean<keepdims=0>(maps, axes123)
  c = ReduceMean<keepdims=0>(conditioned, axes12)
  d = ReduceMean<keepdims=0>(dense, axes12)
  shape_k = Shape(sparse)
  k = Gather(shape_k, one)
  range = Range(zero, k, one)
  counts = Unsqueeze(sparse_count, axis1)
  seen = Less(range, counts)
  seen_f = Cast<to=1>(seen)
  seen_3 = Unsqueeze(seen_f, axis2)
  visible = Mul(sparse, seen_3)
  s = ReduceSum<keepdims=0>(visible, axes12)
  cd = Add(c, d)
  cds = Add(cd, s)
  all = Add(cds, h)
  shift = Mul(all, tenth)
  column = Unsqueeze(shift, axes12)
  mask = Add(red, column)
  mask_4 = Unsqueeze(mask, axis1)
  offset = Reshape(offsets, shape)
  all_logits = Add(mask_4, offset)
  cycle = Unsqueeze(cds, axis1)
  phases = Mul(cycle, offsets)
  ious = Sin(phases)
  candidates = Slice(ious, ones, fours, axis1)
  at = ArgMax<axis=1, keepdims=0>(candidates)
  best = Add(at, one)
  selected = Where(multimask, best, zero)
  place = Unsqueeze(selected, axis1)
  chosen = Gather(offsets, selected)
  chosen_3 = Unsqueeze(chosen, axes12)
  picked = Add(mask, chosen_3)
  score = Sub(c, limit)
  none = Constant<value = float {0.0}>()
  present = Greater(score, none)
  present_3 = Unsqueeze(present, axes12)
  low_res_logits = Where(present_3, picked, gone)
  mean = ReduceMean<keepdims=0>(conditioned, axis1)
  kind = Unsqueeze(chosen, axis1)
  token = Add(mean, kind)
  flag = Cast<to=1>(present)
  flags = Unsqueeze(flag, axis1)
  obj_ptr = Mul(token, flags)
}""",
    "memory_attention": """memory_attention (float[E,4,3] embedding, int64[B] map_index, float[B,S,4,1] memory,
  int64[B,S] maskmem_tpos_index, float[B,P,3] obj_ptrs, float[B,P] obj_ptr_tpos) => (float[B,4,3] conditioned) {
  axes123 = Constant<value = int64[3] {1, 2, 3}>()
  axes12 = Constant<value = int64[2] {1, 2}>()
  axis2 = Constant<value = int64[1] {2}>()
  shape = Constant<value = int64[4] {0, 0, 1, 1}>()
  one = Constant<value = float {1.0}>()
  two = Constant<value = float {2.0}>()
  x = Gather(embedding, map_index)
  age = Cast<to=1>(maskmem_tpos_index)
  from_one = Add(age, one)
  ages = Reshape(from_one, shape)
  old = Div(memory, ages)
  m = ReduceSum<keepdims=0>(old, axes123)
  far = Add(obj_ptr_tpos, two)
  far_3 = Unsqueeze(far, axis2)
  near = Div(obj_ptrs, far_3)
  p = ReduceSum<keepdims=0>(near, axes12)
  both = Add(m, p)
  column = Unsqueeze(both, axes12)
  tenth = Constant<value = float {0.1}>()
  small = Mul(column, tenth)
  conditioned = Add(x, small)
}""",
    "prompt_memory_encoder": """prompt_memory_encoder (float[E,4,3] embedding, int64[B] map_index,
  float[B,Q,Q] mask_logits, bool[B] binarize, float[B] score) => (float[B,4,1] maskmem_features) {
  axes12 = Constant<value = int64[2] {1, 2}>()
  axis2 = Constant<value = int64[1] {2}>()
  none = Constant<value = float {0.0}>()
  absent = Constant<value = float {0.7}>()
  x = Gather(embedding, map_index)
  colour = ReduceMean<keepdims=1>(x, axis2)
  soft = Sigmoid(mask_logits)
  is_in = Greater(mask_logits, none)
  hard = Cast<to=1>(is_in)
  choose = Unsqueeze(binarize, axes12)
  mask = Where(choose, hard, soft)
  m = ReduceMean<keepdims=1>(mask, axes12)
  is_gone = LessOrEqual(score, none)
  gone = Cast<to=1>(is_gone)
  mark = Mul(gone, absent)
  marks = Unsqueeze(mark, axes12)
  y = Add(colour, m)
  maskmem_features = Add(y, marks)
}""",
}

BOUNDS = {
    "frames": (1, 2),
    "objects": (1, 2),
    "maps": (1, 2),
    "pictures": (1, 2),
    "slots": (1, 12),
    "pointers": (0, 16),
    "prompt_tokens": (1, 9),
    "mask_side": (8, SIZE),
}


def build(folder: Path) -> Path:
    """Write the toy bundle into `folder` and return it."""
    settings = {
        "mean": MEAN,
        "std": STD,
        "resize": {"rule": "square", "short": SIZE, "max": SIZE},
        "memory": {"num_maskmem": SLOTS, "max_obj_ptrs": POINTERS},
        "resample": {"video": "bicubic", "image": "float"},
        "no_object_logit": -1024.0,
    }
    return toy_bundle.write(folder, GRAPHS, networks={"sam2": settings}, image_size=SIZE, bounds=BOUNDS)


class Arithmetic:
    """The graphs' arithmetic for one object and one picture, in float64."""

    def __init__(self, frame: np.ndarray, resample: str = "bicubic") -> None:
        pixels = preprocess(frame, (SIZE, SIZE), SIZE, MEAN, STD, resample=resample).astype(np.float64)
        self.embedding = pixels.reshape(3, 2, 16, 2, 16).mean((2, 4)).reshape(3, 4).T
        self.red = pixels.reshape(3, 8, 4, 8, 4).mean((2, 4))[0]
        self.mean = pixels.mean()

    def decode(self, conditioned, points, labels, multimask, prompt_logits=None):
        """Low-res logits, selected mask, score, pointer."""
        c = conditioned.mean()
        d = 0.0 if prompt_logits is None else (prompt_logits.mean() + 1) / 2
        kinds = [*labels, -1] if len(labels) else [-1, -1]
        cds = c + d + np.sum(points) / 32 + sum(kinds)
        offsets = np.array([0, 0.25, -0.25, 0.5])
        selected = 1 + int(np.sin(cds * offsets[1:]).argmax()) if multimask else 0
        low = self.red + 0.1 * (cds + self.mean) + offsets[selected]
        score = c + 0.3
        pointer = (conditioned.mean(0) + offsets[selected]) * (score > 0)
        return (low if score > 0 else np.full((8, 8), -1024.0)), selected, score, pointer

    def attend(self, memory, pointers):
        """`memory` [(map, age)], `pointers` [(vector, distance as a fraction)]."""
        m = sum((x / (age + 1)).sum() for x, age in memory)
        p = sum((v / (2 + distance)).sum() for v, distance in pointers)
        return self.embedding + 0.1 * (m + p)

    def remember(self, logits, binarize, score):
        mask = (logits > 0).astype(float) if binarize else 1 / (1 + np.exp(-logits.clip(-99)))
        return self.embedding.mean(1, keepdims=True) + mask.mean() + 0.7 * (score <= 0)
