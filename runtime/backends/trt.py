"""TensorRT, and the base of TensorRT-RTX (`trt_rtx.py`), which has the same API under another module name.

Stages run from the engine files of a bundle on the device's stream, by pointer. All contexts share one scratch buffer,
because stages run one after another on one stream.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..bundle import engine_index
from ..bundle.manifest import MANIFEST, Manifest, StageSpec, TensorSpec
from ..device.array import DeviceArray
from ..device.cuda import Cuda
from ..device.scratch import GrowableBuffers
from ..errors import BackendError, BundleError, InternalError, summarize

log = logging.getLogger("runtime")

TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "int32": "INT32",
    "uint8": "UINT8",
    "bool": "BOOL",
}
"""Names of a manifest's types in TensorRT."""


EXPLICIT = "trt_explicit"
"""Variant whose attention TensorRT does not match into its fused kernel."""


class TensorRtBackend:
    """Base class. A subclass defines `name`, `library` (the module) and `extra` (of `pip install`)."""

    name: str
    library: str
    extra: str
    variants: tuple[str, ...] = ("trt", "default")

    def __init__(self, threads: int | None = None, device: Cuda | None = None) -> None:
        self.module = self._import()
        self.version = str(self.module.__version__)
        self.device = Cuda() if device is None else device
        # a graph is valid while its context keeps its shapes, and a stage has one context for all of its shapes
        self.device.records_stages = False
        self._logger = _logger(self.module)
        self._runtime = self.module.Runtime(self._logger)
        self._scratch = GrowableBuffers(self.device)
        self._manifests: dict[Path, Manifest] = {}

    def _import(self) -> ModuleType:
        try:
            return importlib.import_module(self.library)
        except (ImportError, OSError):
            raise BackendError(
                f"backend {self.name!r} needs {self.library}: pip install 'samwise-runtime[{self.extra}]'"
            ) from None

    def load(self, file: Path, spec: StageSpec) -> EngineStage:
        """Load the engine built from the graph `file`. Raises BundleError when there is none that fits here."""
        folder, manifest = self._bundle(file)
        graph = file.relative_to(folder).as_posix()
        # variants may share a graph, and the build takes the other form of attention where this one is wrong
        variants = [name for name, path in spec.files.items() if path == graph or name == EXPLICIT]
        built = engine_index.find(folder, manifest, spec, variants, self.library, self.version, self.device.capability)
        return self.open(folder / engine_index.FOLDER / built.file, spec, folder)

    def open(self, path: Path, spec: StageSpec, folder: Path) -> EngineStage:
        """Load an engine file of the bundle in `folder`. Raises BundleError."""
        self._logger.last = ""
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            reason = summarize(self._logger.last or "no reason given", 300)
            raise BundleError(
                f"{path}: {self.library} {self.version} refuses it ({reason}); run `python -m export.tensorrt.build "
                f"{folder} --backend {self.library}`"
            )
        self._check_signature(engine, spec, path)
        return EngineStage(engine, self._context(engine, folder), spec, self.device.stream, self._scratch)

    def _bundle(self, file: Path) -> tuple[Path, Manifest]:
        folder = next((parent for parent in file.parents if (parent / MANIFEST).is_file()), None)
        if folder is None:
            raise BundleError(f"{file}: not inside a bundle; export it with `python -m export`")
        if folder not in self._manifests:
            self._manifests[folder] = Manifest.load(folder)
        return folder, self._manifests[folder]

    def _check_signature(self, engine: Any, spec: StageSpec, path: Path) -> None:
        """Compare with the manifest: the engine gets raw pointers, and would misread another type without an error."""
        found = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            found[name] = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
        wanted = {t.name: TYPES[t.dtype] for t in (*spec.inputs, *spec.outputs)}
        if found != wanted:
            different = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
            raise BundleError(f"{path}: {', '.join(different)} differ from the manifest; build the engine again")

    def _context(self, engine: Any, bundle: Path) -> Any:
        """Create an execution context without scratch memory of its own, for an engine of `bundle`."""
        return engine.create_execution_context(self.module.ExecutionContextAllocationStrategy.USER_MANAGED)


class TrtBackend(TensorRtBackend):
    """`--backend tensorrt`."""

    name = "tensorrt"
    library = "tensorrt"
    extra = "tensorrt"


class EngineStage:
    """One engine with its context. Addresses are set on every run, shapes only when they change."""

    def __init__(self, engine: Any, context: Any, spec: StageSpec, stream: int, scratch: GrowableBuffers) -> None:
        self.spec, self.engine, self.context = spec, engine, context
        self._stream, self._scratch = stream, scratch
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._memory: DeviceArray | None = None
        self._size: int | None = None
        """Scratch bytes that the context needs at its present shapes; None when they have changed."""

    def run(self, **arrays: Any) -> None:
        """Run on these arrays; see `backends.base.Stage`. Raises InternalError with the stage's name."""
        for tensor in self.spec.inputs:
            self._bind(tensor, arrays.pop(tensor.name), True)
        for tensor in self.spec.outputs:
            self._bind(tensor, arrays.pop(tensor.name), False)
        if arrays:
            raise InternalError(f"stage {self.spec.name}: no such tensor {', '.join(arrays)}")
        if self._size is None:
            self._size = int(self.context.update_device_memory_size_for_shapes())
        memory = self._scratch.reserve("engines", self._size)
        if memory is not self._memory:
            self.context.set_device_memory(memory.ptr, memory.nbytes)
            self._memory = memory
        if not self.context.execute_async_v3(self._stream):
            raise InternalError(f"stage {self.spec.name} failed: TensorRT could not enqueue it at {self._shapes}")

    def _bind(self, tensor: TensorSpec, array: Any, is_input: bool) -> None:
        """Set the address of one tensor, and the shape of an input if it has changed."""
        name = tensor.name
        if array.dtype != np.dtype(tensor.dtype):
            raise InternalError(f"stage {self.spec.name}: {name} must be {tensor.dtype}, not {array.dtype}")
        shape = tuple(array.shape)
        if is_input and self._shapes.get(name) != shape:
            self._size = None
            if not self.context.set_input_shape(name, shape):
                self._shapes.pop(name, None)
                raise InternalError(
                    f"stage {self.spec.name}: {name} of shape {shape} is outside the bounds of the engine; "
                    "build it again with `python -m export.tensorrt.build`"
                )
            self._shapes[name] = shape
        self.context.set_tensor_address(name, array.ptr)


def _logger(trt: ModuleType) -> Any:
    """Return a TensorRT logger that forwards errors to the log and keeps the last one for the exception."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = message
                log.info("%s: %s", trt.__name__, message)

    return Log()
