"""Fake `tensorrt` module whose engines are ONNX graphs, run by ONNX Runtime on host memory."""

from __future__ import annotations

import ctypes
import json
from types import SimpleNamespace

import numpy as np
import onnxruntime

from export.tensorrt import build

__version__ = "10.9.0"

ONNX = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64", "tensor(bool)": "BOOL"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "BOOL": np.bool_}


class ILogger:
    ERROR, INTERNAL_ERROR, WARNING = 1, 0, 2

    def __init__(self) -> None:
        pass


class ExecutionContextAllocationStrategy:
    USER_MANAGED = "user"


class Runtime:
    """`driver` (a `fake_cuda.FakeDriver`) is the stream; `scratch`: bytes that an engine needs per input element."""

    driver = None
    scratch = 4

    def __init__(self, logger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes):
        try:
            return Engine(onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]))
        except Exception:
            self.logger.log(ILogger.ERROR, "Serialization assertion failed.\nMore of it.")
            return None


class Engine:
    def __init__(self, session) -> None:
        self.session = session
        self.tensors = [*session.get_inputs(), *session.get_outputs()]
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, i: int) -> str:
        return self.tensors[i].name

    def get_tensor_dtype(self, name: str) -> str:
        return "DataType." + ONNX[next(t.type for t in self.tensors if t.name == name)]

    def create_engine_inspector(self):
        return Inspector(self)

    def create_execution_context(self, strategy):
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self)


class LayerInformationFormat:
    JSON = "json"


class Inspector:
    """Answers with the graph's nodes, spelled as TensorRT spells layers."""

    execution_context = None

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def get_engine_information(self, kind) -> str:
        assert kind == LayerInformationFormat.JSON and self.execution_context.engine is self.engine
        half = {"Name": "x", "Format/Datatype": "Row major linear FP16 format"}
        wide = {"Name": "y", "Format/Datatype": "Row major linear FP32"}
        layers = [
            {
                "Name": f"__myl_{self.engine.tensors[0].name}",
                "LayerType": "kgen",
                "Inputs": [half],
                "Outputs": [half],
                "TacticName": "__myl_0x1",
            },
            {"Name": "sum", "LayerType": "gemm", "Inputs": [half, half], "Outputs": [wide], "TacticValue": "0x2"},
        ]
        return json.dumps({"Layers": layers, "Bindings": [t.name for t in self.engine.tensors]})


class Context:
    """Checks what a real context would only crash on: unset addresses, scratch that is too small."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.shapes, self.addresses = engine, {}, {}
        self.memory = (0, 0)
        self.resized = 0

    def set_input_shape(self, name: str, shape) -> bool:
        (declared,) = [t.shape for t in self.engine.session.get_inputs() if t.name == name]
        if len(declared) != len(shape) or any(
            isinstance(d, int) and d != n for d, n in zip(declared, shape, strict=True)
        ):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def update_device_memory_size_for_shapes(self) -> int:
        self.resized += 1
        return Runtime.scratch * sum(int(np.prod(s)) for s in self.shapes.values())

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == Runtime.driver.stream and self.memory[1] >= self.update_device_memory_size_for_shapes()
        shapes, addresses, memory = dict(self.shapes), dict(self.addresses), self.memory
        Runtime.driver.enqueue(lambda: self.run_graph(shapes, addresses, memory))
        return True

    def run_graph(self, shapes, addresses, memory) -> None:
        ctypes.memset(memory[0], 0xAB, memory[1])  # scratch is overwritten, recorded or not
        session = self.engine.session
        inputs = {t.name: at(addresses[t.name], shapes[t.name], NUMPY[ONNX[t.type]]) for t in session.get_inputs()}
        for t, result in zip(session.get_outputs(), session.run(None, inputs), strict=True):
            ctypes.memmove(addresses[t.name], np.ascontiguousarray(result).ctypes.data, result.nbytes)


def at(address: int, shape, dtype) -> np.ndarray:
    """A copy of host memory as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, size), dtype).reshape(shape)


# what TensorRT-RTX has besides
DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")


class RuntimeCache:
    """Compiled kernels, as text. `MACHINE` stands for the GPU model and driver that the real one checks."""

    MACHINE = "one"

    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def serialize(self) -> bytes:
        return "\n".join(["rtx", self.MACHINE, *sorted(self.kernels)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        kind, machine, *kernels = bytes(blob).decode().split("\n")
        if (kind, machine) != ("rtx", self.MACHINE):
            return False
        self.kernels |= set(kernels)
        return True


class RuntimeConfig:
    cache = None

    def set_execution_context_allocation_strategy(self, strategy) -> None:
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache) -> bool:
        self.cache = cache
        return True


class RtxEngine(Engine):
    compiled = 0
    """Number of compilations of contexts for shapes that were not in their cache."""

    def create_runtime_config(self):
        return RuntimeConfig()

    def create_execution_context(self, config):
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        return RtxContext(self, config.cache)


class RtxContext(Context):
    def __init__(self, engine: Engine, cache: RuntimeCache) -> None:
        super().__init__(engine)
        self.cache = cache

    def execute_async_v3(self, stream: int) -> bool:
        kernel = f"{self.engine.tensors[-1].name} {sorted(self.shapes.items())}"
        if kernel not in self.cache.kernels:
            RtxEngine.compiled += 1
            self.cache.kernels.add(kernel)
        return super().execute_async_v3(stream)


class FakeLibrary(build.Library):
    """Builds nothing; counts."""

    def __init__(self, name="tensorrt_rtx", version="1.7.1"):
        self.name, self.version, self.ahead, self.built = name, version, name == "tensorrt_rtx", []

    def capabilities(self, targets):
        return tuple(sorted(targets or build.TARGETS))

    def build(self, graph, spec, profile, capabilities, timing=None):
        self.built.append((spec.name, capabilities))
        return build.BuildResult(graph.read_bytes(), 1000, 0.5)
