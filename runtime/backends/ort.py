"""ONNX Runtime on the CPU and on CUDA.

Inputs and outputs are bound to the caller's own memory (IOBinding on raw pointers), so a stage neither allocates its
results nor copies its arguments. On a CPU all stages of a process share one arena: each stage's scratch space is reused
by the next one, so resident memory is that of the largest stage, not of the sum.
"""

from __future__ import annotations

import ctypes
import io
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import versions
from ..bundle.manifest import StageSpec
from ..device.array import DeviceArray
from ..device.base import Array, Cpu, Device
from ..device.cuda import Cuda
from ..device.workers import Workers, count_cores, has_small_objects, limited_cores
from ..errors import BackendError, BundleError, InternalError, summarize

log = logging.getLogger("runtime")

CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"

SHAPE_OPS = {"Add", "Cast", "Concat", "Div", "Equal", "Expand", "Gather", "Mul", "Range", "Reshape", "Shape", "Slice"}
SHAPE_OPS |= {"ConstantOfShape", "Max", "Min", "Mod", "ReduceProd", "Size", "Squeeze", "Sub", "Unsqueeze", "Where"}
"""Arithmetic on shapes, a few numbers each, which ONNX Runtime moves to the CPU although CUDA kernels exist."""

_arena_registered = False
_libraries_loaded = False


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise BackendError("backend 'ort' needs onnxruntime: pip install 'samwise-runtime[cpu]'") from None
    return onnxruntime


class OrtBackend:
    """The CPU. `threads` None means one per physical core, as ONNX Runtime decides, or per core that it may use."""

    name = "ort"
    variants: tuple[str, ...] = ("ort", "default")
    memory = "cpu"
    """ONNX Runtime's name of the memory that the device's arrays are in."""
    keeps_memory = True
    """Whether scratch space stays in the arena of the process, for the next stage. Without, each call allocates it."""

    def __init__(self, threads: int | None = None) -> None:
        self._ort = _import()
        if threads is not None and threads < 1:
            raise BackendError(f"threads must be 1 or more, not {threads}")
        self.threads = threads
        self._session_threads = limited_cores() if threads is None else threads
        self.device: Device = self._create_device()
        self._share_arena()

    def _create_device(self) -> Device:
        return Cpu(count_cores() if self.threads is None else min(self.threads, count_cores()))

    def _share_arena(self) -> None:
        global _arena_registered
        if _arena_registered:
            return
        memory = self._ort.OrtMemoryInfo(
            "Cpu", self._ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, self._ort.OrtMemType.DEFAULT
        )
        # grow by the requested size, not to the next power of two: activations are hundreds of megabytes
        self._ort.create_and_register_allocator(memory, self._ort.OrtArenaCfg(0, 1, -1, -1))
        _arena_registered = True

    def _providers(self) -> list[Any]:
        return ["CPUExecutionProvider"]

    def load(self, file: Path, spec: StageSpec) -> OrtStage:
        """Load one graph. Raises BundleError when ONNX Runtime refuses it or its signature is not the manifest's."""
        session = self._open(file, 1 if self.memory == "cpu" and has_small_objects(spec) else self._session_threads)
        self._check_provider(session, file)
        have = {i.name for i in session.get_inputs()} | {o.name for o in session.get_outputs()}
        want = {t.name for t in (*spec.inputs, *spec.outputs)}
        if have != want:
            raise BundleError(
                f"{file}: tensors {sorted(have ^ want)} differ from the manifest's; export the bundle again"
            )
        open_single = partial(self._open, file, 1)
        return OrtStage(session, spec, self.memory, self._run_options(), self.device.workers, open_single)

    def _open(self, file: Path, threads: int | None) -> Any:
        """Return a session of ONNX Runtime on a graph."""
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = self.keeps_memory
        options.add_session_config_entry("session.use_env_allocators", str(int(self.keeps_memory)))
        # every stage has its own threads: spinning after a call, they would take cores from the next stage and the
        # caller
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._configure(options)
        try:
            return self._ort.InferenceSession(str(file), options, **self._session_arguments())
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            advice = versions.remedy(self._ort)
            raise BundleError(f"{file}: ONNX Runtime cannot load it ({summarize(error, 300)}); {advice}") from None

    def _session_arguments(self) -> dict[str, Any]:
        # on the CPU, a normalization that is fused with a sum takes three to five times as long as the two (1.32)
        return {"providers": self._providers(), "disabled_optimizers": ["SkipLayerNormFusion"]}

    def _configure(self, options: Any) -> None:
        pass

    def _check_provider(self, session: Any, file: Path) -> None:
        pass

    def _run_options(self) -> Any:
        return None


class OrtCudaBackend(OrtBackend):
    """CUDA, on the device's own stream. Refuses ONNX Runtime's silent fallback to the CPU."""

    name = "ort-cuda"
    variants = ("cuda", "default")
    memory = "cuda"

    def _create_device(self) -> Device:
        if "CUDAExecutionProvider" not in self._ort.get_available_providers():
            raise BackendError(
                "this onnxruntime has no CUDA: pip uninstall onnxruntime, then pip install 'samwise-runtime[gpu]'"
            )
        load_cuda_libraries(self._ort)
        self._stream = (device := Cuda()).stream
        return device

    def _providers(self) -> list[Any]:
        # strict: sums of a fused normalization are float32, as those of LayerNormalization are
        exact = {"use_tf32": "0", "enable_skip_layer_norm_strict_mode": "1"}
        return [("CUDAExecutionProvider", {"user_compute_stream": str(self._stream), **exact})]

    def _session_arguments(self) -> dict[str, Any]:
        # a split into unequal parts uploads a table of pointers, which may not be recorded as a CUDA graph
        return {**super()._session_arguments(), "disabled_optimizers": ["GatherSliceToSplitFusion"]}

    def _configure(self, options: Any) -> None:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")

    def _check_provider(self, session: Any, file: Path) -> None:
        if session.get_providers()[0] != "CUDAExecutionProvider":
            raise BackendError(
                f"{file}: ONNX Runtime would run it on the CPU; its CUDA libraries are missing or too old: "
                f"pip install 'onnxruntime-gpu[cuda,cudnn]=={self._ort.__version__}', or use --backend ort to run on "
                "the CPU on purpose"
            )
        misplaced = nodes_on_cpu(session)
        if misplaced:
            ops = ", ".join(f"{count} {op}" for op, count in sorted(misplaced.items()))
            raise BackendError(
                f"{file}: onnxruntime-gpu {self._ort.__version__} has no CUDA kernel for {ops} and would run them "
                "on the CPU; pip install --upgrade onnxruntime-gpu, or use --backend ort to run on the CPU on purpose"
            )

    def _run_options(self) -> Any:
        options = self._ort.RunOptions()
        # everything is on one stream, and the download waits for it
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options


def load_cuda_libraries(ort: Any) -> None:
    """Load the CUDA libraries that pip installs where the system does not look, once per process.

    Raises BackendError without cuDNN: ONNX Runtime opens it at the first convolution only, and fails there.
    """
    global _libraries_loaded
    if _libraries_loaded:
        return
    preload = getattr(ort, "preload_dlls", None)  # versions before 1.21 find only what the system's loader finds
    if preload is not None:
        with redirect_stdout(io.StringIO()) as printed:
            preload()
        for line in printed.getvalue().splitlines():
            log.info("onnxruntime: %s", line)
    try:
        ctypes.CDLL(CUDNN)
    except OSError as error:
        raise BackendError(
            f"CUDA convolutions need cuDNN 9, which cannot be loaded ({summarize(error)}): pip install "
            f"'onnxruntime-gpu[cuda,cudnn]=={ort.__version__}', or use --backend ort"
        ) from None
    _libraries_loaded = True


def nodes_on_cpu(session: Any) -> Counter[str]:
    """Count the nodes that compute on the CPU, by operator; nothing where the library is too old to tell."""
    assignment = getattr(session, "get_provider_graph_assignment_info", None)
    if assignment is None:
        return Counter()
    others = (part for part in assignment() if part.ep_name != "CUDAExecutionProvider")
    operators = (node.op_type for part in others for node in part.get_nodes())
    return Counter(operator for operator in operators if operator not in SHAPE_OPS)


class OrtStage:
    """One session with its bindings, and one of a single thread for calls side by side.

    memory       ONNX Runtime's name of the memory that the device's arrays are in
    open_single  opens the session of a single thread, when it is needed first
    """

    def __init__(
        self,
        session: Any,
        spec: StageSpec,
        memory: str,
        run_options: Any,
        workers: Workers,
        open_single: Callable[[], Any],
    ) -> None:
        self.spec = spec
        self._session, self._memory, self._run_options = session, memory, run_options
        self._workers, self._open_single = workers, open_single
        self._binding = session.io_binding()
        self._lock = threading.Lock()
        self._single: Any = None
        self._bindings: dict[int, Any] = {}
        """Bindings of the session of a single thread, by the thread that calls it."""
        self._inputs = {t.name: np.dtype(t.dtype) for t in spec.inputs}
        self._outputs = {t.name: np.dtype(t.dtype) for t in spec.outputs}

    def run(self, **arrays: Array) -> None:
        """Run on these arrays; see `backends.base.Stage`. Raises InternalError with the stage's name."""
        session, binding = self._beside() if self._workers.is_beside else (self._session, self._binding)
        for name, dtype in self._inputs.items():
            a = arrays.pop(name)
            binding.bind_input(name, self._memory, 0, dtype.type, a.shape, self._pointer(name, a, dtype))
        for name, dtype in self._outputs.items():
            a = arrays.pop(name)
            binding.bind_output(name, self._memory, 0, dtype.type, a.shape, self._pointer(name, a, dtype))
        if arrays:
            raise InternalError(f"stage {self.spec.name}: no such tensor {', '.join(arrays)}")
        try:
            session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise InternalError(f"stage {self.spec.name} failed: {summarize(error, 300)}") from None

    def _beside(self) -> tuple[Any, Any]:
        """Return the session of a single thread, and its binding for the thread that calls."""
        with self._lock:
            if self._single is None:
                self._single = self._open_single()
            thread = threading.get_ident()
            if thread not in self._bindings:
                self._bindings[thread] = self._single.io_binding()
            return self._single, self._bindings[thread]

    def _pointer(self, name: str, array: Array, dtype: np.dtype) -> int:
        # ONNX Runtime gets a raw pointer: a wrong type or a strided view would be misread without an error
        if array.dtype != dtype:
            raise InternalError(f"stage {self.spec.name}: {name} must be {dtype}, not {array.dtype}")
        if isinstance(array, DeviceArray):
            return array.ptr
        if not array.flags.c_contiguous:
            raise InternalError(f"stage {self.spec.name}: {name} has gaps (strides {array.strides})")
        return int(array.ctypes.data)
