"""A ReferSAM-shaped bundle of toy graphs: 32 px, the real signatures, milliseconds.

A mask is where the red channel is bright, moved by the mean of the sentence's tokens; `text_count` says how many count.
"""

from __future__ import annotations

from pathlib import Path

from helpers import toy_bundle

SIZE, SENTENCES, TOKENS, VOCABULARY = 32, 3, 8, 100

GRAPHS = {
    "image": """image (float[1,3,32,32] pixels) => (float[1,2,2,3] vit, float[1,21,3] pyramid, float[1,3,8,8] stem) {
  shape = Constant<value = int64[3] {1, 21, 3}>()
  small = AveragePool<kernel_shape=[16,16], strides=[16,16]>(pixels)
  vit = Transpose<perm=[0,2,3,1]>(small)
  stem = AveragePool<kernel_shape=[4,4], strides=[4,4]>(pixels)
  mean = GlobalAveragePool(pixels)
  row = Squeeze(mean)
  pyramid = Expand(row, shape)
}""",
    "text": """text (int64[L] tokens) => (float[L,3] text) {
  scale = Constant<value = float[1,3] {0.01, 0.02, 0.03}>()
  axis = Constant<value = int64[1] {1}>()
  x = Cast<to=1>(tokens)
  y = Unsqueeze(x, axis)
  text = Mul(y, scale)
}""",
    "fuse": """fuse (float[1,2,2,3] vit, float[1,21,3] pyramid, float[1,3,8,8] stem, float[B,L,3] text,
  int64[B] text_count)
=> (float[B,8,8] low_res_logits, float[B,8,8] coarse_logits, float[B] iou) {
  zero = Constant<value = int64 {0}>()
  one = Constant<value = int64 {1}>()
  axis1 = Constant<value = int64[1] {1}>()
  axes = Constant<value = int64[2] {1, 2}>()
  half = Constant<value = float {0.5}>()
  shape = Shape(text)
  length = Gather(shape, one)
  steps = Range(zero, length, one)
  column = Unsqueeze(text_count, axis1)
  shown = Less(steps, column)
  weight = Cast<to=1>(shown)
  first = Gather<axis=2>(text, zero)
  counted = Mul(first, weight)
  sum = ReduceSum<keepdims=0>(counted, axis1)
  count = Cast<to=1>(text_count)
  iou = Div(sum, count)
  shift = Unsqueeze(iou, axes)
  red = Gather<axis=1>(stem, zero)
  p = ReduceMean<keepdims=0>(pyramid)
  v = ReduceMean<keepdims=0>(vit)
  both = Sub(p, v)
  low = Sub(red, shift)
  low_res_logits = Add(low, both)
  coarse_logits = Mul(low_res_logits, half)
}""",
}


def build(folder: Path, **fields) -> Path:
    """Write the toy bundle into `folder` and return it. `fields` override fields of the manifest."""
    settings = {
        "resize": {"rule": "square", "max": SIZE},
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "text": {"max_tokens": TOKENS, "vocabulary": VOCABULARY, "motion": False, "keep_end": False},
    }
    bounds = {"objects": (1, SENTENCES), "tokens": (1, TOKENS)}
    manifest = {"networks": {"refersam": settings}, "image_size": SIZE, "bounds": bounds}
    return toy_bundle.write(folder, GRAPHS, **(manifest | fields))
