"""A bundle of SAM 3 whose stages are numpy: 32 px, microseconds, the real signatures, objects that a test can draw.

A concept finds every quadrant of a picture that is bright in its colour: token 1 is red, 2 green, 3 blue. An object is
tracked where the picture stays bright near the place that was remembered.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from helpers.fake_cuda import Enqueued, FakeDriver, view
from runtime.bundle.bundle import choose
from runtime.bundle.manifest import Manifest, StageSpec, TensorSpec
from runtime.device.base import Cpu
from runtime.device.cuda import Cuda
from runtime.engine import Engine

SIDE, IMAGE, MASK, WORDS, QUERIES = 16, 32, 64, 4, 4
"""Sides of logits, network input and mask prompts; tokens of a concept; queries of the detector."""
HIDDEN, ABSENT = -16.0, -10.0
"""Logits where the picture is not remembered, and of an object that is gone."""

STAGES = {
    "image_encoder": ("pixels:T,3,I,I", "trunk:T,N,3 level:T,N,4"),
    "fine_levels": ("trunk:T,N,3", "level_2:T,4,8,8 level_4:T,4,S,S"),
    "text_encoder": ("tokens:C,L:int64", "text:C,L,4"),
    "geometry_encoder": (
        "level:E,N,4 map_index:C:int64 boxes:C,K,4 box_labels:C,K:int64 box_mask:C,K:bool",
        "geometry:C,K,4",
    ),
    "detr": (
        "level:E,N,4 map_index:C:int64 prompt:C,P,4 prompt_mask:C,P:bool",
        "encoded:C,N,4 queries:C,Q,4 boxes:C,Q,4 scores:C,Q presence:C",
    ),
    "mask_head": (
        "encoded:C,N,4 prompt:C,P,4 prompt_mask:C,P:bool level_2:E,4,8,8 level_4:E,4,S,S map_index:C:int64 "
        "kept_queries:C,kept,4",
        "detected_logits:C,kept,S,S semantic_logits:C,S,S",
    ),
    "tracker_neck": ("trunk:T,N,3", "embedding:T,N,4 embedding_no_memory:T,N,4 high_res_0:T,1,S,S high_res_1:T,1,8,8"),
    "prompt_encoder": (
        "points:B,points,2 labels:B,points:int64 prompt_logits:B,S,S has_mask:B:bool",
        "sparse:B,points,4 dense:B,N,4",
    ),
    "mask_prompt": ("mask:B,M,M", "prompt_logits:B,S,S no_obj_ptr:B,4"),
    "prompt_decoder": (
        "conditioned:B,N,4 sparse:B,points,4 sparse_count:B:int64 dense:B,N,4 high_res_0:pictures,1,S,S "
        "picture_index:B:int64 high_res_1:E,1,8,8 map_index:B:int64 multimask:B:bool",
        "low_res_logits:B,S,S all_logits:B,4,S,S ious:B,4 selected:B:int64 score:B obj_ptr:B,4",
    ),
    "memory_attention": (
        "embedding:E,N,4 map_index:B:int64 memory:B,slots,N,1 maskmem_tpos_index:B,slots:int64 obj_ptrs:B,pointers,4 "
        "obj_ptr_tpos:B,pointers",
        "conditioned:B,N,4",
    ),
    "prompt_memory_encoder": (
        "embedding:E,N,4 map_index:B:int64 mask_logits:B,side,side binarize:B:bool score:B direct:B:bool",
        "maskmem_features:B,N,1",
    ),
}
"""Stage -> inputs and outputs, each `name:shape[:dtype]`."""
SIZES: dict[str, int | str] = {"I": IMAGE, "N": SIDE * SIDE, "S": SIDE, "M": MASK, "L": WORDS, "Q": QUERIES}
SYMBOLS = {"T": "frames", "C": "concepts", "K": "geometry_tokens", "P": "prompt_length", "E": "maps", "B": "objects"}
SYMBOLS |= {"points": "prompt_tokens", "side": "mask_side"}
BOUNDS = {
    "frames": (1, 8),
    "concepts": (1, 2),
    "geometry_tokens": (1, 4),
    "prompt_length": (WORDS + 1, WORDS + 4),
    "kept": (1, QUERIES),
    "maps": (1, 4),
    "objects": (1, 4),
    "pictures": (1, 4),
    "slots": (1, 32),
    "pointers": (0, 48),
    "prompt_tokens": (1, 24),
    "mask_side": (SIDE, MASK),
}
SETTINGS = {
    "resize": {"rule": "square", "short": IMAGE, "max": IMAGE},
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
    "text": {"max_tokens": WORDS, "vocabulary": 60, "motion": False, "padding": 0},
    "resample": {"image": "uint8", "video": "half"},
    "memory": {"num_maskmem": 7, "max_obj_ptrs": 16},
    "no_object_logit": -1024.0,
}

ROWS, COLUMNS = np.divmod(np.arange(SIDE * SIDE), SIDE)
QUADRANTS = np.array([(q // 2 == ROWS // 8) & (q % 2 == COLUMNS // 8) for q in range(QUERIES)], np.float32)
"""(Q,N): cells of each quadrant."""


def pool(maps: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Average (..., h, h) to (..., side, side)."""
    n = maps.shape[-1] // side
    return maps.reshape(*maps.shape[:-2], side, n, side, n).mean((-3, -1))


def image_encoder(pixels):
    trunk = pool(pixels).reshape(len(pixels), 3, -1).transpose(0, 2, 1)
    return {"trunk": trunk, "level": np.pad(trunk, ((0, 0), (0, 0), (0, 1)))}


def fine_levels(trunk):
    level_4 = np.pad(trunk, ((0, 0), (0, 0), (0, 1))).transpose(0, 2, 1).reshape(-1, 4, SIDE, SIDE)
    return {"level_2": pool(level_4, 8), "level_4": level_4}


def text_encoder(tokens):
    return {"text": np.eye(4)[np.where(tokens > 0, (tokens - 1) % 3, 3)]}


def geometry_encoder(boxes, box_labels, box_mask, **_):
    """A positive exemplar adds a little to the colour that it lies on, whichever that is; a negative one takes it."""
    sign = np.where(box_mask, 2 * box_labels - 1, 0)[..., None]
    return {"geometry": sign * np.array([0.01, 0.01, 0.01, 0]) * (boxes[..., 2:3] < 1)}


def detr(level, map_index, prompt, prompt_mask):
    colour = (prompt * prompt_mask[..., None]).sum(1)
    seen = np.einsum("qn,cnd,cd->cq", QUADRANTS / QUADRANTS.sum(1, keepdims=True), level[map_index], colour)
    centres = np.array([(0.25 + q % 2 / 2, 0.25 + q // 2 / 2, 0.5, 0.5) for q in range(QUERIES)])
    n = len(prompt)
    return {
        "encoded": level[map_index],
        "queries": np.tile(np.eye(4), (n, 1, 1)),
        "boxes": np.tile(centres, (n, 1, 1)),
        "scores": 8 * seen,
        "presence": np.full(n, 9),
    }


def mask_head(prompt, prompt_mask, level_4, map_index, kept_queries, **_):
    colour = (prompt * prompt_mask[..., None]).sum(1)
    bright = np.einsum("cdij,cd->cij", level_4[map_index], colour) * 4
    inside = (kept_queries @ QUADRANTS).reshape(*kept_queries.shape[:2], SIDE, SIDE)
    return {"detected_logits": np.where(inside > 0, bright[:, None], HIDDEN), "semantic_logits": bright}


def tracker_neck(trunk):
    embedding = np.pad(trunk, ((0, 0), (0, 0), (0, 1)))
    return {"embedding": embedding, "embedding_no_memory": embedding, "high_res_0": 0, "high_res_1": 0}


def prompt_encoder(points, labels, prompt_logits, has_mask):
    """Channel 3 of the dense map is the mask that prompts."""
    dense = np.zeros((len(points), SIDE * SIDE, 4))
    dense[..., 3] = np.sign(prompt_logits.reshape(len(points), -1)) * has_mask[:, None]
    return {"sparse": np.concatenate((points, labels[..., None], 0 * labels[..., None]), -1), "dense": dense}


def mask_prompt(mask):
    return {"prompt_logits": pool(mask) * 20 - 10, "no_obj_ptr": -1}


def prompt_decoder(conditioned, sparse, dense, multimask, **_):
    """Bright cells, where the prompt's mask or the memory is, or in the quadrants of positive points."""
    where = conditioned[..., 3] + dense[..., 3]
    clicked = np.zeros(where.shape, bool)
    for mask, tokens in zip(clicked, sparse, strict=True):
        for x, y, label, _ in tokens:
            if label > 0:
                mask |= QUADRANTS[int(np.clip(y // 16, 0, 1) * 2 + np.clip(x // 16, 0, 1))] > 0
    any_click = clicked.any(1, keepdims=True)
    logits = np.where(np.where(any_click, clicked, where >= 0), conditioned[..., :3].max(-1) * 4, HIDDEN)
    logits = logits.reshape(-1, SIDE, SIDE)
    score = np.clip(logits.max((1, 2)), ABSENT, 10)
    return {
        "low_res_logits": np.where(score[:, None, None] > 0, logits, -1024),
        "all_logits": np.repeat(logits[:, None], 4, 1),
        "ious": 0.9,
        "selected": multimask,
        "score": score,
        "obj_ptr": conditioned.mean(1),
    }


def memory_attention(embedding, map_index, memory, **_):
    conditioned = embedding[map_index]
    conditioned[..., 3] = np.sign(memory.mean((1, 3)) + 1e-3) if memory.shape[1] else 0
    return {"conditioned": conditioned}


def prompt_memory_encoder(mask_logits, score, **_):
    seen = (pool(mask_logits) > 0).reshape(len(score), -1) & (score > 0)[:, None]
    return {"maskmem_features": np.where(seen, 1, -1)[..., None]}


class NumpyStage:
    def __init__(self, spec: StageSpec) -> None:
        self.spec, self.inputs = spec, [tensor.name for tensor in spec.inputs]

    def run(self, **arrays: Any) -> None:
        for tensor in (*self.spec.inputs, *self.spec.outputs):
            assert arrays[tensor.name].dtype == tensor.dtype, tensor.name
        for name, value in globals()[self.spec.name](**{name: arrays[name] for name in self.inputs}).items():
            arrays[name][...] = value


class NumpyBackend:
    name, variants = "numpy", ("default",)

    def __init__(self) -> None:
        self.device = Cpu()

    def load(self, file: Path, spec: StageSpec) -> NumpyStage:
        return NumpyStage(spec)


class FakeCudaNumpyBackend(NumpyBackend):
    """The stages on the fake device, which hands them pointers."""

    name = "fake-cuda"

    def __init__(self) -> None:
        self.device = Cuda(FakeDriver())

    def load(self, file: Path, spec: StageSpec) -> Enqueued:
        stage = super().load(file, spec)

        def run(**arrays: Any) -> None:
            stage.run(**{name: view(array.ptr, array.shape, array.dtype) for name, array in arrays.items()})

        return Enqueued(SimpleNamespace(spec=spec, run=run), self.device.driver)


def _tensors(text: str) -> tuple[TensorSpec, ...]:
    parts = ((*item.split(":"), "float32")[:3] for item in text.split())
    return tuple(TensorSpec(name, dtype, tuple(_size(d) for d in shape.split(","))) for name, shape, dtype in parts)


def _size(text: str) -> int | str:
    return int(text) if text.isdigit() else SIZES.get(text) or SYMBOLS.get(text, text)


def build(folder: Path, tracker: bool = True) -> Path:
    """Write the bundle into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(STAGES) if tracker else list(STAGES)[:6]
    stages = {name: StageSpec(name, *map(_tensors, STAGES[name]), files={"default": f"{name}.none"}) for name in names}
    for name in names:
        (folder / f"{name}.none").write_bytes(b"")
    files = {f"{name}.none": hashlib.sha256(b"").hexdigest() for name in names}
    settings = {k: v for k, v in SETTINGS.items() if tracker or k not in ("memory", "no_object_logit")}
    fields = {"variant": "numpy", "precision": "fp32", "image_size": IMAGE, "bounds": BOUNDS}
    Manifest(networks={"sam3": settings}, stages=stages, files=files, **fields).dump(folder)
    return folder


def load(folder: Path, max_objects: int = 16) -> Engine:
    """Return an engine on the bundle."""
    return Engine(choose(folder), NumpyBackend(), max_objects)


def picture(*quadrants: int, channel: int = 0, size: tuple[int, int] = (24, 40)) -> np.ndarray:
    """Return a dark picture (H,W,3) with bright quadrants of a colour."""
    frame = np.zeros((*size, 3), np.uint8)
    half = size[0] // 2, size[1] // 2
    for q in quadrants:
        top, left = half[0] * (q // 2), half[1] * (q % 2)
        frame[top : top + half[0], left : left + half[1], channel] = 255
    return frame
