"""Stages whose attention a compiled kernel takes: graphs, launches between them, behind the face of a `Stage`.

A bundle made with `python -m export ... --cuts` names such stages in `Manifest.split_stages`; its compiled kernels come
from `python -m export.kernels`. The whole stages are in the bundle, too, and are what runs unless kernels are switched on.
Everything is allocated when the bundle is loaded, so that a frame may be recorded as a CUDA graph.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.bundle import Bundle
from ..bundle.manifest import SplitStageSpec, StageSpec
from ..device.array import DeviceArray
from ..device.cubin import BoundLaunches, Kernels
from ..device.kernels import plan, reference
from ..device.scratch import GrowableBuffers
from ..errors import BundleError
from .base import load_stage

log = logging.getLogger("runtime")

BOUND = 512
"""Most packed launches that a stage keeps: one per address of the memory, number of slots, pointers and layer."""


class CutStage:
    """What the cut stages share: parts, constants, and launches that are packed once per set of arguments."""

    def __init__(
        self, spec: StageSpec, parts: Sequence[Any], constants: Mapping[str, np.ndarray], kernels: Kernels, device: Any
    ) -> None:
        self.spec, self._parts, self._kernels, self._device = spec, list(parts), kernels, device
        self._plan, self._reference = plan, reference
        self._constants = {name: device.constant(array) for name, array in constants.items()}
        self._bound: dict[Any, BoundLaunches] = {}

    def _launch(self, key: Any, launches: Any) -> None:
        """Enqueue `launches()`, which is called once per `key`."""
        if key not in self._bound:
            if len(self._bound) >= BOUND:
                self._bound.clear()
            self._bound[key] = self._kernels.bind(launches())
        self._bound[key].run(self._device.stream)

    def _need(self, names: Sequence[str]) -> None:
        if missing := sorted(set(names) - set(self._constants)):
            raise BundleError(
                f"the constants of stage {self.spec.name} lack {', '.join(missing)}; export the bundle again"
            )


class MemoryAttention(CutStage):
    """Graph, kernel, graph, kernel ... graph: a kernel per layer, between two parts."""

    def __init__(
        self,
        spec: StageSpec,
        parts: Sequence[Any],
        constants: Mapping[str, np.ndarray],
        kernels: Kernels,
        device: Any,
        buffers: GrowableBuffers,
        limits: Mapping[str, int],
        split: SplitStageSpec,
    ) -> None:
        super().__init__(spec, parts, constants, kernels, device)
        layers, memory = range(len(parts) - 1), spec.input("memory")
        self._need(
            [
                "position",
                "temporal",
                "cosine",
                "sine",
                *(f"key_weight_{i}" for i in layers),
                *(f"key_bias_{i}" for i in layers),
            ]
        )
        _, tokens, width = spec.output("conditioned").shape
        self._width, self._narrow, self._tokens = width, memory.shape[3], tokens
        most, self._slots, pointers = limits["objects"], limits["slots"], limits["pointers"]
        self._split = spec.input("obj_ptrs").shape[2] // self._narrow
        take, kind = buffers.take, memory.dtype
        # two residuals: a part reads one and writes the other
        self._residuals = [take(f"residual_{i}", (most, tokens, width), kind) for i in (0, 1)]
        self._queries = take("queries", (most, tokens, width), kind)
        self._attended = take("attended", (most, tokens, self._narrow), kind)
        self._ages = take("ages", (most * self._slots,), "int32")
        sizes = self._sizes(most, self._slots, pointers)
        shapes = sizes.scratch(1)
        # an object or two leave multiprocessors idle unless their keys are split
        shares = max(n * self._config(self._sizes(n, 1, 0)).splits for n in range(1, most + 1))
        shapes |= {"partial": ((shares, tokens, self._narrow), "float32"), "lse": ((shares, tokens), "float32")}
        self._scratch = {name: take(name, shape, kind if of == "same" else of) for name, (shape, of) in shapes.items()}
        counts = self._split * np.arange(pointers + 1, dtype=np.int32)
        # rows of a multiple of 16 bytes: kernels are compiled for arrays that begin there
        self._counts = device.constant(np.repeat(counts[:, None], -(-most // 4) * 4, 1))
        # one object may split its keys and many may not: every kernel that can be asked for is loaded now, or refused
        for n in sorted({1, most}):
            sizes = self._sizes(n, self._slots, pointers)
            kernels.bind(self._launches(0, sizes, self._scratch["values"], self._queries))

    def _sizes(self, objects: int, slots: int, pointers: int) -> Any:
        return self._plan.MemorySizes(
            objects, self._tokens, slots, pointers * self._split, self._width, self._narrow, self._slots
        )

    def _config(self, sizes: Any) -> Any:
        return self._plan.flash_config(self._kernels.target, sizes, self._device.multiprocessors)

    def run(self, **arrays: Any) -> None:
        """Run on these arrays; see `backends.Stage`."""
        memory, pointers = arrays["memory"], arrays["obj_ptrs"]
        n, slots = memory.shape[:2]
        ages = self._ages[: n * slots].reshape(n, slots)
        queries, attended = self._queries[:n], self._attended[:n]
        residual = [array[:n] for array in self._residuals]
        last = len(self._parts) - 1
        given = {name: arrays[name] for name in ("embedding", "map_index", "maskmem_tpos_index")}
        self._parts[0].run(**given, residual_0=residual[0], queries_0=queries, ages=ages)
        for i in range(1, last + 1):
            self._attend(i - 1, memory, pointers)
            given = {f"residual_{i - 1}": residual[(i - 1) % 2], f"attended_{i - 1}": attended}
            taken = (
                {f"residual_{i}": residual[i % 2], f"queries_{i}": queries}
                if i < last
                else {"conditioned": arrays["conditioned"]}
            )
            self._parts[i].run(**given, **taken)

    def _attend(self, layer: int, memory: DeviceArray, pointers: DeviceArray) -> None:
        (n, slots), p = memory.shape[:2], pointers.shape[1]
        key = (layer, memory.ptr, pointers.ptr, n, slots, p)
        self._launch(key, lambda: self._launches(layer, self._sizes(n, slots, p), memory, pointers))

    def _launches(self, layer: int, sizes: Any, memory: DeviceArray, pointers: DeviceArray) -> list[Any]:
        constants = self._constants
        inputs = {
            "queries": self._queries,
            "memory": memory,
            "ages": self._ages,
            "pointers": pointers,
            "pointer_counts": self._counts[sizes.pointers // self._split, : sizes.objects],
            "key_weight": constants[f"key_weight_{layer}"],
            "key_bias": constants[f"key_bias_{layer}"],
            **{name: constants[name] for name in ("position", "temporal", "cosine", "sine")},
        }
        return self._plan.memory_attention(inputs, self._scratch, self._attended, sizes, self._config(sizes))


class WindowAttention(CutStage):
    """An adapter: down to the narrow width, hierarchical selective attention by the kernel, the rest."""

    def __init__(
        self,
        spec: StageSpec,
        parts: Sequence[Any],
        constants: Mapping[str, np.ndarray],
        kernels: Kernels,
        device: Any,
        buffers: GrowableBuffers,
        limits: Mapping[str, int],
        split: SplitStageSpec,
    ) -> None:
        super().__init__(spec, parts, constants, kernels, device)
        self._need(["position", "norm_weight", "norm_bias", "qkv_weight", "qkv_bias", "out_weight", "out_bias"])
        names = split.tensors
        self._vision, self._text = names["vision"], names["text"]
        self._narrow_name, self._selected_name = names["narrow"], names["selected"]
        narrow = parts[0].spec.output(self._narrow_name)
        self._shape, self._patch, frames = narrow.shape[1:], split.sizes["patch"], limits["frames"]
        channels = narrow.shape[3]
        self._narrow, self._selected = (
            buffers.take(f"{name}_maps", (frames, *self._shape), narrow.dtype) for name in ("narrow", "selected")
        )
        # shorter clips need less, or nothing where a program holds a window
        self._scratch = {
            name: buffers.take(name, shape, narrow.dtype) for name, (shape, _) in self._sizes(frames).scratch().items()
        }
        self._times = {
            n: device.constant(self._reference.time_embedding(n, channels).astype(narrow.dtype))
            for n in range(1, frames + 1)
        }
        for n in range(1, frames + 1):  # load, or refuse, what clips of any length need
            self._bound[n] = kernels.bind(self._launches(n))

    def _launches(self, frames: int) -> list[Any]:
        return self._plan.window_attention(
            {**self._constants, "x": self._narrow, "time": self._times[frames]},
            self._scratch,
            self._selected,
            self._sizes(frames),
            self._plan.WINDOW[self._kernels.target],
        )

    def _sizes(self, frames: int) -> Any:
        return self._plan.WindowSizes(frames, *self._shape[:2], self._patch, self._shape[2])

    def run(self, **arrays: Any) -> None:
        """Run on these arrays; see `backends.Stage`."""
        vision, text = arrays[self._vision], arrays[self._text]
        frames = vision.shape[0]
        narrow, selected = self._narrow[:frames], self._selected[:frames]
        self._parts[0].run(**{self._vision: vision, self._narrow_name: narrow})
        self._bound[frames].run(self._device.stream)
        fused = {tensor.name: arrays[tensor.name] for tensor in self.spec.outputs}
        self._parts[1].run(
            **{self._vision: vision, self._text: text, self._narrow_name: narrow, self._selected_name: selected},
            **fused,
        )


KERNELS = {"memory_attention": MemoryAttention, "window_attention": WindowAttention}
"""Kernels that `Manifest.split_stages` may name."""


def load(bundle: Bundle, backend: Any, kernels: Kernels, objects: int) -> dict[str, CutStage]:
    """Every cut stage of the bundle, by the name of the stage that it replaces; `objects`: rows of the memory pool.

    Raises BundleError for settings, constants or parts that are not what they should be.
    """
    manifest, buffers = bundle.manifest, GrowableBuffers(backend.device)
    limits = {symbol: high for symbol, (_, high) in manifest.bounds.items()}
    limits["objects"] = min(objects, limits.get("objects", objects))
    found = {}
    for name, split in manifest.split_stages.items():
        try:
            spec, make = manifest.stages[name], KERNELS[split.kernel]
            stages = [load_stage(bundle, backend, subgraph) for subgraph in split.subgraphs]
            fixed = constants(bundle, split.constants, spec)
            found[name] = make(spec, stages, fixed, kernels, backend.device, buffers, limits, split)
        except (KeyError, TypeError, ValueError, IndexError, StopIteration, ArithmeticError) as error:
            raise BundleError(
                f"{bundle.folder}: split_stages.{name} is not understood ({type(error).__name__}: "
                f"{error}); export the bundle again, or leave --kernels on away"
            ) from None
    return found


def constants(bundle: Bundle, file: str, spec: StageSpec) -> dict[str, np.ndarray]:
    """Arrays of a cut stage's file. Raises BundleError."""
    if file not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.folder}: split_stages.{spec.name} names {file!r}, which is not among the bundle's "
            "files; export it again"
        )
    path = Path(bundle.folder) / file
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise BundleError(f"{path}: not readable ({error}); export the bundle again") from None


def kernel_stages(bundle, backend, kernels, mode: str, objects: int) -> dict:
    """Stages of the bundle whose attention its compiled kernels take, by name: all that are cut for it where `mode` is
    `on`, none otherwise, which is said in one line. Which is faster has yet to be measured on a GPU; until then `auto`
    runs the whole graphs. Raises BundleError for cuts that are not what they should be, BackendError for a kernel that is
    missing."""
    split = bundle.manifest.split_stages
    if not split or kernels is None:
        return {}
    if mode != "on":
        log.info("whole graphs for %s; --kernels on lets the compiled kernels take their attention", ", ".join(split))
        return {}
    return load(bundle, backend, kernels, objects)
