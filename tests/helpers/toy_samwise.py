"""A SAMWISE-shaped bundle of toy graphs: 32 px, a few adds and means per stage, the real signatures.

It runs in milliseconds and needs no weights; schedule, memory, input and output are tested on it. A mask is where the
red channel is bright; every other path (text, memory, pointers, ages) shifts the logits a little, so that a wrong
schedule changes the numbers. `helpers.samwise_schedule` repeats the arithmetic in plain numpy.
"""

from __future__ import annotations

from pathlib import Path

from helpers import toy_bundle

SIZE, WINDOW, SLOTS, POINTERS = 32, 4, 3, 5
VOCABULARY = 100

FUSE = """adapter_{k} (float[T,{s},{s},3] vision_{k}, float[L,3] text_{k})
=> (float[T,{s},{s},3] vision_{k}_fused, float[L,3] text_{k}_fused) {{
  a = ReduceMean<keepdims=0>(text_{k})
  vision_{k}_fused = Add(vision_{k}, a)
  b = ReduceMean<keepdims=0>(vision_{k})
  text_{k}_fused = Add(text_{k}, b)
}}"""
STEP = """adapter_{k}_step
(float[1,{s},{s},3] vision_{k}, float[L,3] text_{k}, float[V,{s},{s},3] kept_{k}, int64[V] kept_index)
=> (float[1,{s},{s},3] vision_{k}_fused, float[L,3] text_{k}_fused, float[1,{s},{s},3] narrow_{k}) {{
  shape = Constant<value = int64[4] {{0, 1, 1, 1}}>()
  tenth = Constant<value = float {{0.1}}>()
  a = ReduceMean<keepdims=0>(text_{k})
  index = Cast<to=1>(kept_index)
  column = Reshape(index, shape)
  placed = Mul(kept_{k}, column)
  mean = ReduceMean<keepdims=0>(placed)
  small = Mul(mean, tenth)
  both = Add(a, small)
  vision_{k}_fused = Add(vision_{k}, both)
  clip = Concat<axis=0>(kept_{k}, vision_{k})
  b = ReduceMean<keepdims=0>(clip)
  text_{k}_fused = Add(text_{k}, b)
  narrow_{k} = Identity(vision_{k})
}}"""
TRUNK = """hiera_{k} (float[T,{a},{a},3] vision_{j}_fused) => (float[T,{b},{b},3] vision_{k}) {{
  x = Transpose<perm=[0,3,1,2]>(vision_{j}_fused)
  y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)
  vision_{k} = Transpose<perm=[0,2,3,1]>(y)
}}"""
TEXT = """text_{k} (float[L,3] text_{j}_fused) => (float[L,3] text_{k}) {{
  half = Constant<value = float {{0.5}}>()
  text_{k} = Mul(text_{j}_fused, half)
}}"""

GRAPHS = {
    "hiera_0": """hiera_0 (float[T,3,32,32] pixels) => (float[T,4,4,3] vision_0, float[T,3,8,8] high_res_0) {
  x = AveragePool<kernel_shape=[8,8], strides=[8,8]>(pixels)
  vision_0 = Transpose<perm=[0,2,3,1]>(x)
  high_res_0 = AveragePool<kernel_shape=[4,4], strides=[4,4]>(pixels)
}""",
    "text_0": """text_0 (int64[L] tokens) => (float[L,3] text_0) {
  scale = Constant<value = float[1,3] {0.01, 0.02, 0.03}>()
  axis = Constant<value = int64[1] {1}>()
  x = Cast<to=1>(tokens)
  y = Unsqueeze(x, axis)
  text_0 = Mul(y, scale)
}""",
    "adapter_0": FUSE.format(k=0, s=4),
    "adapter_1": FUSE.format(k=1, s=2),
    "adapter_2": FUSE.format(k=2, s=1),
    **{f"adapter_{k}_step": STEP.format(k=k, s=4 >> k) for k in range(3)},
    "hiera_1": TRUNK.format(k=1, j=0, a=4, b=2),
    "hiera_2": TRUNK.format(k=2, j=1, a=2, b=1),
    "text_1": TEXT.format(k=1, j=0),
    "text_2": TEXT.format(k=2, j=1),
    "neck": """neck (float[T,4,4,3] vision_0_fused, float[T,2,2,3] vision_1_fused, float[T,1,1,3] vision_2_fused)
=> (float[T,4,3] embedding, float[T,4,3] embedding_no_memory, float[T,3,4,4] high_res_1) {
  shape = Constant<value = int64[3] {0, 4, 3}>()
  tenth = Constant<value = float {0.1}>()
  x = Add(vision_1_fused, vision_2_fused)
  embedding = Reshape(x, shape)
  embedding_no_memory = Add(embedding, tenth)
  high_res_1 = Transpose<perm=[0,3,1,2]>(vision_0_fused)
}""",
    "text_prompt": """text_prompt (float[L,3] text_2_fused) => (float[1,3,3] sparse) {
  zero = Constant<value = int64 {0}>()
  shape = Constant<value = int64[3] {1, 3, 3}>()
  x = Gather(text_2_fused, zero)
  sparse = Expand(x, shape)
}""",
    "memory_attention": """memory_attention (float[E,4,3] embedding, int64[B] map_index, float[B,S,4,2] memory,
  int64[B,S] maskmem_tpos_index, float[B,P,3] obj_ptrs) => (float[B,4,3] conditioned) {
  tenth = Constant<value = float {0.1}>()
  one = Constant<value = float {1.0}>()
  axes3 = Constant<value = int64[3] {1, 2, 3}>()
  axes2 = Constant<value = int64[2] {1, 2}>()
  shape = Constant<value = int64[4] {0, 0, 1, 1}>()
  x = Gather(embedding, map_index)
  age = Cast<to=1>(maskmem_tpos_index)
  from_one = Add(age, one)
  ages = Reshape(from_one, shape)
  old = Div(memory, ages)
  m = ReduceMean<keepdims=0>(old, axes3)
  p = ReduceMean<keepdims=0>(obj_ptrs, axes2)
  small = Mul(p, tenth)
  both = Add(m, small)
  column = Unsqueeze(both, axes2)
  conditioned = Add(x, column)
}""",
    "mask_decoder": """mask_decoder (float[B,4,3] conditioned, float[B,3,3] sparse, int64[B] sparse_count,
  float[U,3,8,8] high_res_0, int64[B] picture_index, float[E,3,4,4] high_res_1, int64[B] map_index)
=> (float[B,8,8] low_res_logits, float[B] iou, float[B] score, float[B,3] obj_ptr, float[B,3] early_token) {
  zero = Constant<value = int64 {0}>()
  axes2 = Constant<value = int64[2] {1, 2}>()
  axes3 = Constant<value = int64[3] {1, 2, 3}>()
  axis1 = Constant<value = int64[1] {1}>()
  tenth = Constant<value = float {0.1}>()
  fine = Gather(high_res_0, picture_index)
  red = Gather<axis=1>(fine, zero)
  c = ReduceMean<keepdims=0>(conditioned, axes2)
  s = ReduceMean<keepdims=0>(sparse, axes2)
  maps = Gather(high_res_1, map_index)
  h = ReduceMean<keepdims=0>(maps, axes3)
  count = Cast<to=1>(sparse_count)
  weighted = Mul(s, count)
  a = Add(c, weighted)
  iou = Add(a, h)
  shift = Mul(iou, tenth)
  column = Unsqueeze(shift, axes2)
  low_res_logits = Add(red, column)
  score = Identity(c)
  obj_ptr = ReduceMean<keepdims=0>(conditioned, axis1)
  early_token = Mul(obj_ptr, tenth)
}""",
    "conditional_memory": """conditional_memory (float[B,3] obj_ptr, float[B,3] early_token,
  float[B,8,8] low_res_logits, float[B,8,8] memoryless_logits)
=> (float[B,32,32] remembered_logits, float[B,2] decision, bool[B] switched) {
  zero = Constant<value = int64 {0}>()
  two = Constant<value = int64[1] {2}>()
  origin = Constant<value = int64[1] {0}>()
  axis1 = Constant<value = int64[1] {1}>()
  thirteen = Constant<value = float {13.0}>()
  scales = Constant<value = float[4] {1.0, 1.0, 4.0, 4.0}>()
  early = Mul(early_token, thirteen)
  difference = Sub(obj_ptr, early)
  decision = Slice(difference, origin, two, axis1)
  first = Gather<axis=1>(obj_ptr, zero)
  other = Gather<axis=1>(early, zero)
  switched = Greater(first, other)
  both = Add(low_res_logits, memoryless_logits)
  image = Unsqueeze(both, axis1)
  big = Resize<mode="nearest">(image, , scales)
  remembered_logits = Squeeze(big, axis1)
}""",
    "memory_encoder": """memory_encoder (float[E,4,3] embedding, int64[B] map_index, float[B,Q,Q] mask_logits)
=> (float[B,4,2] maskmem_features) {
  axes2 = Constant<value = int64[2] {1, 2}>()
  origin = Constant<value = int64[1] {0}>()
  two = Constant<value = int64[1] {2}>()
  axis = Constant<value = int64[1] {2}>()
  x = Gather(embedding, map_index)
  y = Slice(x, origin, two, axis)
  m = ReduceMean<keepdims=1>(mask_logits, axes2)
  maskmem_features = Add(y, m)
}""",
}

BOUNDS = {
    "frames": (1, WINDOW),
    "kept": (1, WINDOW - 1),
    "tokens": (1, 16),
    "objects": (1, 2),
    "maps": (1, 2),
    "pictures": (1, 2),
    "slots": (1, SLOTS),
    "pointers": (1, POINTERS),
    "mask_side": (8, SIZE),
}


def build(folder: Path, conditional_memory: bool = True, **fields) -> Path:
    """Write the toy bundle into `folder` and return it. `fields` override fields of the manifest."""
    graphs = {name: text for name, text in GRAPHS.items() if conditional_memory or name != "conditional_memory"}
    settings = {
        "window": WINDOW,
        "resize": {"rule": "samwise_video", "short": SIZE - 1, "max": SIZE},
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "memory": {"num_maskmem": SLOTS + 1, "max_obj_ptrs": POINTERS + 1},
        "conditional_memory": {"first": 2, "every": 2} if conditional_memory else None,
        "text": {"max_tokens": 16, "vocabulary": VOCABULARY, "motion": False},
        "no_object_logit": -1024.0,
    }
    manifest = {"networks": {"samwise": settings}, "image_size": SIZE, "bounds": BOUNDS}
    return toy_bundle.write(folder, graphs, **(manifest | fields))
