"""Stages split around attention: subgraphs with precompiled Triton kernels between them.

A bundle made with `python -m export ... --split-attention` lists them in `Manifest.split_stages`; `python -m
export.kernels` compiles their kernels. The bundle has the whole stages as well, which run unless kernels are switched
on. Everything is allocated when the bundle is loaded, so that a frame can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle.manifest import SplitStageSpec, StageSpec
from ..device.array import DeviceArray
from ..device.cubin import Kernels, Launch, LaunchCache
from ..device.cuda import Cuda
from ..device.kernels import plan, plan_step, reference
from ..device.scratch import GrowableBuffers
from ..errors import BundleError
from .base import Stage


@dataclass(frozen=True, slots=True)
class SplitResources:
    """Resources shared by the split stages of a bundle. `limits`: symbol -> its largest size."""

    device: Cuda
    kernels: Kernels
    buffers: GrowableBuffers
    limits: Mapping[str, int]


class SplitStage:
    """Base class: subgraphs, constants of the kernel, and launches that are packed once per set of arguments."""

    def __init__(
        self,
        spec: StageSpec,
        split: SplitStageSpec,
        subgraphs: Sequence[Stage],
        constants: Mapping[str, np.ndarray],
        resources: SplitResources,
    ) -> None:
        self.spec = spec
        self._tensors, self._subgraphs = split.tensors, list(subgraphs)
        self._kernels, self._device = resources.kernels, resources.device
        self._constants = {name: resources.device.constant(array) for name, array in constants.items()}
        self.launches = LaunchCache(self._kernels)
        self._allocate(split, resources)

    def _allocate(self, split: SplitStageSpec, resources: SplitResources) -> None:
        """Check the constants, allocate all arrays, and load all kernels. Raises BundleError, BackendError."""
        raise NotImplementedError

    def run(self, **arrays: Any) -> None:
        """Run on these arrays; see `backends.base.Stage`."""
        raise NotImplementedError

    def _name(self, role: str, layer: int | None = None) -> str:
        """Return the name of the tensor that has this role in the kernel's schedule."""
        return self._tensors[role].format(layer=layer)

    def _require_constants(self, names: Iterable[str]) -> None:
        if missing := sorted(set(names) - set(self._constants)):
            raise BundleError(
                f"the constants of stage {self.spec.name} lack {', '.join(missing)}; export the bundle again"
            )


class MemoryAttention(SplitStage):
    """Memory attention: a kernel per layer, between two subgraphs."""

    def _allocate(self, split: SplitStageSpec, resources: SplitResources) -> None:
        per_layer = [f"{kind}_{i}" for kind in ("key_weight", "key_bias") for i in range(len(self._subgraphs) - 1)]
        self._require_constants(["position", "temporal", "cosine", "sine", *per_layer])
        spec, limits, take = self.spec, resources.limits, resources.buffers.take
        memory = spec.input(self._name("memory"))
        objects, self._slots, self._tokens, self._memory_width = memory.resolve(limits)
        conditioned = spec.output(self._name("conditioned")).resolve(limits)
        _, pointers, pointer_width = spec.input(self._name("obj_ptrs")).resolve(limits)
        self._width = conditioned[2]
        self._tokens_per_pointer = pointer_width // self._memory_width
        # two residuals: a subgraph reads one and writes the other
        self._residuals = [take(f"residual_{i}", conditioned, memory.dtype) for i in (0, 1)]
        self._queries = take("queries", conditioned, memory.dtype)
        self._attended = take("attended", (*conditioned[:2], self._memory_width), memory.dtype)
        self._ages = take("ages", (objects * self._slots,), "int32")
        self._scratch = {
            name: take(name, shape, memory.dtype if dtype == "same" else dtype)
            for name, (shape, dtype) in self._scratch_shapes(objects, pointers).items()
        }
        counts = self._tokens_per_pointer * np.arange(pointers + 1, dtype=np.int32)
        # rows of a multiple of 16 bytes: kernels are compiled for arrays that begin there
        self._counts = self._device.constant(np.repeat(counts[:, None], -(-objects // 4) * 4, 1))
        # one object may split its keys and many may not: load every kernel that a frame can need, or fail now
        for n in sorted({1, objects}):
            sizes = self._sizes(n, self._slots, pointers)
            self._kernels.bind(self._launches(0, sizes, self._scratch["values"], self._queries))

    def _scratch_shapes(self, objects: int, pointers: int) -> dict[str, tuple[tuple[int, ...], str]]:
        shapes: dict[str, tuple[tuple[int, ...], str]] = self._sizes(objects, self._slots, pointers).scratch(1)
        # one object or two leave multiprocessors idle unless their keys are split
        splits = max(n * self._config(self._sizes(n, 1, 0)).splits for n in range(1, objects + 1))
        partial, lse = (splits, self._tokens, self._memory_width), (splits, self._tokens)
        return shapes | {"partial": (partial, "float32"), "lse": (lse, "float32")}

    def _sizes(self, objects: int, slots: int, pointers: int) -> plan.MemorySizes:
        pointer_tokens = pointers * self._tokens_per_pointer
        widths = (self._width, self._memory_width)
        return plan.MemorySizes(objects, self._tokens, slots, pointer_tokens, *widths, self._slots)

    def _config(self, sizes: plan.MemorySizes) -> plan.FlashConfig:
        return plan.flash_config(self._kernels.target, sizes, self._device.multiprocessors)

    def run(self, **arrays: Any) -> None:
        """Run on these arrays; see `backends.base.Stage`."""
        memory, pointers = arrays[self._name("memory")], arrays[self._name("obj_ptrs")]
        n, slots = memory.shape[:2]
        ages = self._ages[: n * slots].reshape(n, slots)
        queries, attended = self._queries[:n], self._attended[:n]
        residuals = [array[:n] for array in self._residuals]
        inputs = {name: arrays[name] for name in map(self._name, ("embedding", "map_index", "maskmem_tpos_index"))}
        inputs[self._name("ages")] = ages
        last = len(self._subgraphs) - 1
        for i, subgraph in enumerate(self._subgraphs):
            if i:
                self._attend(i - 1, memory, pointers)
                residual = residuals[(i - 1) % 2]
                inputs = {self._name("residual", i - 1): residual, self._name("attended", i - 1): attended}
            if i < last:
                outputs = {self._name("residual", i): residuals[i % 2], self._name("queries", i): queries}
            else:
                outputs = {self._name("conditioned"): arrays[self._name("conditioned")]}
            subgraph.run(**inputs, **outputs)

    def _attend(self, layer: int, memory: DeviceArray, pointers: DeviceArray) -> None:
        (n, slots), p = memory.shape[:2], pointers.shape[1]
        key = (layer, memory.ptr, pointers.ptr, n, slots, p)
        self.launches.run(
            key, lambda: self._launches(layer, self._sizes(n, slots, p), memory, pointers), self._device.stream
        )

    def _launches(
        self, layer: int, sizes: plan.MemorySizes, memory: DeviceArray, pointers: DeviceArray
    ) -> list[Launch]:
        constants = self._constants
        inputs = {
            "queries": self._queries,
            "memory": memory,
            "ages": self._ages,
            "pointers": pointers,
            "pointer_counts": self._counts[sizes.pointers // self._tokens_per_pointer, : sizes.objects],
            "key_weight": constants[f"key_weight_{layer}"],
            "key_bias": constants[f"key_bias_{layer}"],
            **{name: constants[name] for name in ("position", "temporal", "cosine", "sine")},
        }
        launches: list[Launch] = plan.memory_attention(
            inputs, self._scratch, self._attended, sizes, self._config(sizes)
        )
        return launches


WINDOW_CONSTANTS = (*("position", "norm_weight", "norm_bias"), *("qkv_weight", "qkv_bias", "out_weight", "out_bias"))


class WindowAttention(SplitStage):
    """Cross-modal adapter: projection to the narrow width, hierarchical selective attention by the kernel, the rest."""

    def _allocate(self, split: SplitStageSpec, resources: SplitResources) -> None:
        self._require_constants(WINDOW_CONSTANTS)
        self._down, self._up = self._subgraphs
        narrow, take = self._down.spec.output(self._name("narrow")), resources.buffers.take
        shape, self._patch = narrow.resolve(resources.limits), split.sizes["patch"]
        frames, *self._map_shape = shape
        self._narrow, self._selected = (take(f"{role}_maps", shape, narrow.dtype) for role in ("narrow", "selected"))
        # shorter clips need less, or nothing where one program holds a window
        scratch = self._sizes(frames).scratch()
        self._scratch = {name: take(name, shape, narrow.dtype) for name, (shape, _) in scratch.items()}
        self._times = {
            n: self._device.constant(reference.time_embedding(n, shape[3]).astype(narrow.dtype))
            for n in range(1, frames + 1)
        }
        for n in range(1, frames + 1):  # load the kernels of clips of every length, or fail now
            self._kernels.bind(self._launches(n))

    def _launches(self, frames: int) -> list[Launch]:
        inputs = {**self._constants, "x": self._narrow, "time": self._times[frames]}
        config = plan.WINDOW[self._kernels.target]
        launches: list[Launch] = plan.window_attention(
            inputs, self._scratch, self._selected, self._sizes(frames), config
        )
        return launches

    def _sizes(self, frames: int) -> plan.WindowSizes:
        height, width, channels = self._map_shape
        return plan.WindowSizes(frames, height, width, self._patch, channels)

    def run(self, **arrays: Any) -> None:
        """Run on these arrays; see `backends.base.Stage`."""
        vision, text = self._name("vision"), self._name("text")
        frames = arrays[vision].shape[0]
        narrow = {self._name("narrow"): self._narrow[:frames]}
        selected = {self._name("selected"): self._selected[:frames]}
        self._down.run(**{vision: arrays[vision]}, **narrow)
        self.launches.run(frames, lambda: self._launches(frames), self._device.stream)
        outputs = {tensor.name: arrays[tensor.name] for tensor in self.spec.outputs}
        self._up.run(**{vision: arrays[vision], text: arrays[text]}, **narrow, **selected, **outputs)


class WindowAttentionStep(SplitStage):
    """Step of a cross-modal adapter with low latency: the same for one frame behind kept maps."""

    def _allocate(self, split: SplitStageSpec, resources: SplitResources) -> None:
        self._require_constants(WINDOW_CONSTANTS)
        self._down, self._up = self._subgraphs
        kept, take = self.spec.input(self._name("kept")), resources.buffers.take
        (most, *self._map_shape), self._patch = kept.resolve(resources.limits), split.sizes["patch"]
        self._selected = take("selected_map", (1, *self._map_shape), kept.dtype)
        scratch = plan_step.step_scratch(self._sizes(most + 1))
        self._scratch = {name: take(f"step_{name}", shape, kept.dtype) for name, (shape, _) in scratch.items()}
        self._times = {
            n: self._device.constant(reference.time_embedding(n + 1, self._map_shape[2]).astype(kept.dtype))
            for n in range(1, most + 1)
        }
        index = take("kept_index", (most,), "int64")
        for n in self._times:  # load the kernels of windows of every length, or fail now
            self._kernels.bind(self._launches(n, self._selected, self._selected, index))

    def _launches(self, kept: int, x: DeviceArray, maps: DeviceArray, index: DeviceArray) -> list[Launch]:
        inputs = {**self._constants, "x": x, "kept": maps, "index": index, "time": self._times[kept]}
        config = plan.WINDOW[self._kernels.target]
        launches: list[Launch] = plan_step.window_attention_step(
            inputs, self._scratch, self._selected, self._sizes(kept + 1), config
        )
        return launches

    def _sizes(self, frames: int) -> plan.WindowSizes:
        height, width, channels = self._map_shape
        return plan.WindowSizes(frames, height, width, self._patch, channels)

    def run(self, **arrays: Any) -> None:
        """Run on these arrays; see `backends.base.Stage`."""
        given = {name: arrays[name] for name in map(self._name, ("vision", "text", "kept", "narrow"))}
        vision, _, maps, narrow = given.values()
        index, kept = arrays[self._name("index")], maps.shape[0]
        self._down.run(**{self._name("vision"): vision, self._name("narrow"): narrow})
        key = (narrow.ptr, maps.ptr, index.ptr, kept)
        self.launches.run(key, lambda: self._launches(kept, narrow, maps, index), self._device.stream)
        outputs = {tensor.name: arrays[tensor.name] for tensor in self._up.spec.outputs}
        self._up.run(**given, **{self._name("selected"): self._selected}, **outputs)
