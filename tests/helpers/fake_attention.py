"""Launches of the attention kernels computed on the host by `kernels/reference.py`, for `fake_cuda.HostKernels`."""

from __future__ import annotations

import ctypes
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np

from helpers.fake_cuda import HostKernels, view
from runtime.bundle.manifest import Manifest, SplitStageSpec, StageSpec, TensorSpec
from runtime.device.cubin import FOLDER, INDEX
from runtime.kernels import plan, plan_step, reference

SIGNATURES = {
    "memory_attention_prepare": "p" * 14 + "iiiif",
    "memory_attention_flash": "p" * 8 + "iiii",
    "memory_attention_combine": "pppii",
    "window_attention_project": "p" * 8 + "iiiiff",
    "window_attention_attend": "p" * 5 + "iiii",
    "window_attention_fused": "p" * 10 + "iiiiffi",
    "window_attention_step_project": "p" * 11 + "iiiiff",
    "window_attention_step_attend": "p" * 6 + "iiii",
    "window_attention_step_fused": "p" * 12 + "iiiiffi",
}
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int32, "f": ctypes.c_float}


def signature(kernel: str, dtype: str) -> list[str]:
    """Types of a kernel's arguments as an index of compiled kernels has them, for arrays of `dtype`."""
    single = {
        "memory_attention_prepare": {2: "i32", 4: "i32", 9: "fp32", 10: "fp32"},
        "memory_attention_flash": {3: "i32", 4: "i32", 6: "fp32", 7: "fp32"},
        "memory_attention_combine": {0: "fp32", 1: "fp32"},
        "window_attention_step_project": {2: "i64"},
        "window_attention_step_fused": {2: "i64"},
    }.get(kernel, {})
    kind = {"float32": "fp32", "float16": "fp16"}[dtype]
    return [
        "*" + single.get(i, kind) if letter == "p" else {"i": "i32", "f": "fp32"}[letter]
        for i, letter in enumerate(SIGNATURES[kernel])
    ]


_ROLES = ("embedding", "map_index", "memory", "maskmem_tpos_index", "obj_ptrs", "conditioned", "ages")
MEMORY_SPLIT = SplitStageSpec(
    "memory_attention",
    ("a", "b"),
    "x.npz",
    {role: role for role in _ROLES} | {role: f"{role}_{{layer}}" for role in ("residual", "queries", "attended")},
)


def window_split(i, patch, subgraphs=()):
    """Entry of adapter `i` among the split stages."""
    roles = {role: f"{role}_{i}" for role in ("vision", "text", "narrow", "selected")}
    return SplitStageSpec("window_attention", subgraphs, "x.npz", roles, {"patch": patch})


def step_split(i, patch, subgraphs=()):
    """Entry of the step of adapter `i` among the split stages."""
    roles = {**window_split(i, patch).tensors, "kept": f"kept_{i}", "index": "kept_index"}
    return SplitStageSpec("window_attention_step", subgraphs, "x.npz", roles, {"patch": patch})


def published_manifest():
    """SAMWISE's split stages in half, of published widths, on a small image: its size is no constant of a kernel."""
    half, b = "float16", "objects"
    inputs = (
        TensorSpec("embedding", half, ("maps", 256, 256)),
        TensorSpec("map_index", "int64", (b,)),
        TensorSpec("memory", half, (b, "slots", 256, 64)),
        TensorSpec("maskmem_tpos_index", "int64", (b, "slots")),
        TensorSpec("obj_ptrs", half, (b, "pointers", 256)),
    )
    conditioned = TensorSpec("conditioned", half, (b, 256, 256))
    stages = {"memory_attention": StageSpec("memory_attention", inputs, (conditioned,))}
    stages |= {name: StageSpec(name, (), ()) for name in MEMORY_SPLIT.subgraphs}
    split = {"memory_attention": MEMORY_SPLIT}
    for i, patch in enumerate((8, 4, 2)):
        shape = ("frames", 32 >> i, 32 >> i)
        narrow, selected = (TensorSpec(f"{n}_{i}", half, (*shape, 256)) for n in ("narrow", "selected"))
        vision = TensorSpec(f"vision_{i}", half, (*shape, 192))
        text = TensorSpec(f"text_{i}", half, ("tokens", 768))
        down, up = f"adapter_{i}_0", f"adapter_{i}_1"
        stages[f"adapter_{i}"] = StageSpec(f"adapter_{i}", (vision, text), ())
        stages[down] = StageSpec(down, (vision,), (narrow,))
        stages[up] = StageSpec(up, (vision, text, narrow, selected), ())
        split[f"adapter_{i}"] = window_split(i, patch, (down, up))
    bounds = {"frames": (1, 8), "slots": (1, 6), "pointers": (1, 15), "maps": (1, 4), b: (1, 4), "tokens": (1, 32)}
    return Manifest({"toy": {}}, "toy", "fp16", 256, stages, bounds, split)


class Names(dict):
    """Stand-in for every array of a plan."""

    def __missing__(self, key):
        return key


def compiled(folder, slots, width, memory_width, tokens=16, patches=(4, 2, 1), extra=(), dtype="float32") -> None:
    """An index of kernels as `export.kernels` writes it, for arrays of `dtype` and sm_89; no code is behind it."""
    sizes = plan.MemorySizes(1, tokens, slots, 4, width, memory_width)
    flash = plan.flash_config(89, sizes, 4)
    launches = [
        launch
        for splits in (1, 2)
        for launch in plan.memory_attention(Names(), Names(), "out", sizes, replace(flash, splits=splits))
    ]
    for patch in patches:
        for frames in range(1, 9):
            window = plan.WindowSizes(frames, patch, patch, patch, width)
            launches += plan.window_attention(Names(), Names(), "out", window, plan.WINDOW[89])
            launches += plan_step.window_attention_step(Names(), Names(), "out", window, plan.WINDOW[89])
    kernels = [(launch.kernel, signature(launch.kernel, dtype), dict(launch.constants)) for launch in launches]
    kernels += [(name, *entry) for name, entry in dict(extra).items()]
    entries = [
        {
            "kernel": name,
            "capability": 89,
            "constants": constants,
            "file": "code.cubin",
            "symbol": name,
            "signature": kinds,
            "extra_pointers": 0,
            "threads": 128,
            "shared": 0,
        }
        for name, kinds, constants in kernels
    ]
    (folder / FOLDER).mkdir(exist_ok=True)
    (folder / FOLDER / "code.cubin").write_bytes(b"\x7fELF")
    (folder / FOLDER / INDEX).write_text(json.dumps({"format": 1, "kernels": entries}))


class HostAttention(HostKernels):
    """`launched` lists kernel and grid. Widths and type, which real kernels are compiled for, are told."""

    def __init__(self, driver, dtype=np.float32, width=256, memory_width=64, patches=None) -> None:
        super().__init__(driver)
        self.dtype, self.width, self.memory_width = np.dtype(dtype), width, memory_width
        self.patches = patches or {}
        """Height of a map -> its patch, a constant of the real kernels."""
        self.launched: list[tuple[str, tuple[int, ...]]] = []
        self.executed: Counter[str] = Counter()
        """Executions of each kernel, those of replayed graphs included."""
        self._attended: dict[int, tuple] = {}

    def launch(self, function, grid, threads, shared, stream, params) -> None:
        if function not in SIGNATURES:
            return super().launch(function, grid, threads, shared, stream, params)
        self._driver.calls[function] += 1
        self.launched.append((function, tuple(grid)))
        # arguments are read when the launch is made, as a driver reads them
        values = [TYPES[letter].from_address(params[i]).value for i, letter in enumerate(SIGNATURES[function])]
        pointers = [value for value, letter in zip(values, SIGNATURES[function], strict=True) if letter == "p"]
        assert all(pointers), "a null pointer"
        # kernels are compiled for arrays that begin at multiples of 16 bytes
        assert not any(address % 16 for address in pointers), [address % 16 for address in pointers]
        work = getattr(self, function)

        def execute() -> None:
            self.executed[function] += 1
            work(grid, *values)

        self._driver.enqueue(execute)

    def _array(self, address, *shape, dtype=None):
        return view(address, shape, dtype or self.dtype)

    def memory_attention_prepare(
        self,
        grid,
        queries,
        memory,
        ages,
        pointers,
        counts,
        weight,
        bias,
        position,
        temporal,
        cosine,
        sine,
        rotated,
        keys,
        values,
        tokens,
        slots,
        most,
        capacity,
        scale,
    ) -> None:
        d, m, b = self.width, self.memory_width, grid[2]
        assert grid[:2] == (plan.cdiv(max(tokens, most), 64), slots + 2) and capacity == slots * tokens + most
        assert math.isclose(scale, plan.LOG2_E / math.sqrt(d), rel_tol=1e-6)
        found = self._array(ages, b, slots, dtype=np.int32)
        counts = self._array(counts, b, dtype=np.int32)
        assert (counts <= most).all() and (found >= 0).all()
        wide = np.float64
        result = reference.memory_attention(
            self._array(queries, b, tokens, d).astype(wide),
            self._array(memory, b, slots, tokens, m).astype(wide),
            found,
            self._array(pointers, b, most, m).astype(wide),
            counts,
            self._array(weight, d, m).astype(wide),
            self._array(bias, d).astype(wide),
            self._array(position, tokens, m).astype(wide),
            self._array(temporal, found.max() + 1, m).astype(wide),
            self._array(cosine, tokens, d // 2, dtype=np.float32),
            self._array(sine, tokens, d // 2, dtype=np.float32),
        )
        # a real kernel writes keys and values, so the scratch memory must be large enough for them
        for address, width in ((keys, d), (values, m)):
            self._array(address, b, capacity, width)[...] = np.nan
        self._array(rotated, b, tokens, d)[...] = np.nan
        self._attended[keys] = (rotated, values, result)

    def memory_attention_flash(
        self, grid, rotated, keys, values, ages, counts, out, partial, lse, tokens, slots, capacity, splits
    ) -> None:
        assert self._attended[keys][:2] == (rotated, values)
        result, m = self._attended.pop(keys)[2], self.memory_width
        b = len(result)
        assert grid[1:] == (splits, b)
        if splits == 1:
            self._array(out, b, tokens, m)[...] = result
            return
        sums = self._array(lse, b, splits, tokens, dtype=np.float32)
        parts = self._array(partial, b, splits, tokens, m, dtype=np.float32)
        sums[...], parts[...] = -np.inf, 0
        sums[:, 1], parts[:, 1] = 0, result

    def memory_attention_combine(self, grid, partial, lse, out, tokens, splits) -> None:
        b, m = grid[1], self.memory_width
        share = np.exp2(self._array(lse, b, splits, tokens, dtype=np.float32))
        parts = self._array(partial, b, splits, tokens, m, dtype=np.float32)
        self._array(out, b, tokens, m)[...] = (share[..., None] * parts).sum(1) / share.sum(1)[..., None]

    def _select(
        self,
        x,
        time,
        position,
        norm_weight,
        norm_bias,
        qkv_weight,
        qkv_bias,
        out_weight,
        out_bias,
        y,
        frames,
        height,
        width,
        windows,
    ) -> None:
        c, p = self.width, self.patches[height]
        assert windows == (height // p) * (width // p)
        shapes = [(frames, height, width, c), (frames, c), (p * p, c), (c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,)]
        addresses = (x, time, position, norm_weight, norm_bias, qkv_weight, qkv_bias, out_weight, out_bias)
        arrays = [self._array(a, *shape).astype(np.float64) for a, shape in zip(addresses, shapes, strict=True)]
        self._array(y, frames, height, width, c)[...] = reference.window_attention(
            arrays[0], p, *arrays[1:], heads=c // plan.HEAD
        )

    def window_attention_fused(self, grid, *arguments) -> None:
        pointers, (frames, height, width, windows), (_, epsilon, group) = (
            arguments[:10],
            arguments[10:14],
            arguments[14:],
        )
        assert math.isclose(epsilon, 1e-5, rel_tol=1e-6) and grid == (plan.cdiv(windows, group), 1, 1)
        self._select(*pointers, frames, height, width, windows)

    def window_attention_project(self, grid, *arguments) -> None:
        pointers, sizes = arguments[:8], arguments[8:12]
        frames, height, width, _ = sizes
        self._array(pointers[7], 3, frames, height, width, self.width)[...] = np.nan
        self._attended[pointers[7]] = pointers[:7]

    def window_attention_attend(self, grid, x, qkv, out_weight, out_bias, y, frames, height, width, windows) -> None:
        projected = self._attended.pop(qkv)
        assert projected[0] == x and grid[1] == windows
        self._select(*projected, out_weight, out_bias, y, frames, height, width, windows)

    def _select_step(self, x, kept, index, time, position, *arguments, count, height, width, windows) -> None:
        """`arguments`: the weights, and the output."""
        c, p = self.width, self.patches[height]
        assert windows == (height // p) * (width // p)
        *weights, y = arguments
        shapes = [(height, width, c), (count, height, width, c), (count + 1, c), (p * p, c), (c,), (c,)]
        shapes += [(3 * c, c), (3 * c,), (c, c), (c,)]
        addresses = (x, kept, time, position, *weights)
        maps, clip, times, *others = (
            self._array(a, *shape).astype(np.float64) for a, shape in zip(addresses, shapes, strict=True)
        )
        places = self._array(index, count, dtype=np.int64)
        assert ((places >= 0) & (places < count)).all()
        self._array(y, height, width, c)[...] = reference.window_attention_step(
            maps, clip, places, p, times, *others, c // plan.HEAD
        )

    def window_attention_step_fused(self, grid, *arguments) -> None:
        (count, height, width, windows), (_, epsilon, group) = arguments[12:16], arguments[16:]
        assert math.isclose(epsilon, 1e-5, rel_tol=1e-6) and grid == (plan.cdiv(windows, group), 1, 1)
        self._select_step(*arguments[:12], count=count, height=height, width=width, windows=windows)

    def window_attention_step_project(self, grid, *arguments) -> None:
        (queries, keys), (count, height, width, _) = arguments[9:11], arguments[11:15]
        assert grid[1] == count + 1
        self._array(queries, height, width, self.width)[...] = np.nan
        self._array(keys, 2, count + 1, height, width, self.width)[...] = np.nan
        self._attended[keys] = (queries, arguments[:9])

    def window_attention_step_attend(
        self, grid, x, queries, keys, out_weight, out_bias, y, frames, height, width, windows
    ) -> None:
        known, projected = self._attended.pop(keys)
        assert (known, projected[0]) == (queries, x) and grid[1] == windows
        sizes = {"count": frames - 1, "height": height, "width": width, "windows": windows}
        self._select_step(*projected, out_weight, out_bias, y, **sizes)
