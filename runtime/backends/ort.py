"""ONNX Runtime on the CPU.

Inputs and outputs are bound to the caller's own memory (IOBinding on raw pointers), so a stage neither allocates its
results nor copies its arguments. All stages of a process share one arena: each stage's scratch space is reused by the
next one, and resident memory is that of the largest stage, not of the sum.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..device import Cpu
from ..errors import BackendError, BundleError, RuntimeFault
from ..spec import StageSpec

_arena_registered = False


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise BackendError("backend 'ort' needs onnxruntime: pip install 'samwise-runtime[cpu]'") from None
    return onnxruntime


class OrtBackend:
    """`threads` None means one per physical core, as ONNX Runtime decides."""

    name = "ort"
    forms = ("ort", "default")

    def __init__(self, threads: int | None = None) -> None:
        self._ort = _import()
        self.device = Cpu()
        if threads is not None and threads < 1:
            raise BackendError(f"threads must be 1 or more, not {threads}")
        self.threads = threads
        self._share_arena()

    def _share_arena(self) -> None:
        global _arena_registered
        if _arena_registered:
            return
        memory = self._ort.OrtMemoryInfo("Cpu", self._ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
                                         self._ort.OrtMemType.DEFAULT)
        # grow by what is asked for, not to the next power of two: activations are hundreds of megabytes
        self._ort.create_and_register_allocator(memory, self._ort.OrtArenaCfg(0, 1, -1, -1))
        _arena_registered = True

    def load(self, file: Path, spec: StageSpec) -> OrtStage:
        """Load one graph. Raises BundleError when ONNX Runtime refuses it or its signature is not the manifest's."""
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.use_env_allocators", "1")
        try:
            session = self._ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise BundleError(f"{file}: ONNX Runtime cannot load it ({_first_line(error)})") from None
        have = {i.name for i in session.get_inputs()} | {o.name for o in session.get_outputs()}
        want = {t.name for t in (*spec.inputs, *spec.outputs)}
        if have != want:
            raise BundleError(f"{file}: tensors {sorted(have ^ want)} differ from the manifest's; export the bundle again")
        return OrtStage(session, spec)


class OrtStage:
    """One session with its bindings."""

    def __init__(self, session: Any, spec: StageSpec) -> None:
        self.spec = spec
        self._session = session
        self._binding = session.io_binding()
        self._inputs = {t.name: np.dtype(t.dtype) for t in spec.inputs}
        self._outputs = {t.name: np.dtype(t.dtype) for t in spec.outputs}

    def run(self, **arrays: np.ndarray) -> None:
        """Run on these arrays; see `backends.Stage`. Raises RuntimeFault with the stage's name."""
        binding = self._binding
        for name, dtype in self._inputs.items():
            a = _check(self.spec.name, name, arrays.pop(name), dtype)
            binding.bind_input(name, "cpu", 0, dtype.type, a.shape, a.ctypes.data)
        for name, dtype in self._outputs.items():
            a = _check(self.spec.name, name, arrays.pop(name), dtype)
            binding.bind_output(name, "cpu", 0, dtype.type, a.shape, a.ctypes.data)
        if arrays:
            raise RuntimeFault(f"stage {self.spec.name}: no such tensor {', '.join(arrays)}")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise RuntimeFault(f"stage {self.spec.name} failed: {_first_line(error)}") from None


def _check(stage: str, name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    # a raw pointer is handed over: a wrong type or a strided view would be read as garbage, silently
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise RuntimeFault(f"stage {stage}: {name} must be contiguous {dtype}, got {array.dtype}, strides {array.strides}")
    return array


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
