"""OpenVINO on the CPU: float32, or bfloat16 where the processor multiplies it.

Graphs are compiled once per stage with dynamic shapes; inputs and outputs are the caller's own arrays, not copies.
`auto` takes `openvino` where `python -m runtime.autotune` found it exact and faster. `openvino-bf16` is a named
approximation with products in bfloat16 (docs/notes/cpu.md: how much masks differ); `auto` takes it only where an export
chose it within a loss that the user named.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from .. import versions
from ..bundle.manifest import StageSpec
from ..device.base import Cpu, Device
from ..device.workers import limited_cores
from ..errors import BackendError, BundleError, InternalError, SamwiseRuntimeError, summarize

_core: Any = None
_core_lock = threading.Lock()


def _shared_core(openvino: Any) -> Any:
    """Return the only Core of the process, which is never released.

    Its CPU plugin gives the thread that loads it a stack for signal handlers, and unmaps that when it is unloaded. By
    another thread, as when an engine is dropped there, the first thread keeps the address: the next signal that Python
    handles in it, SIGTERM for instance, ends the process with a segmentation fault (2026.4).
    """
    global _core
    with _core_lock:
        if _core is None:
            _core = openvino.Core()
    return _core


class OpenVinoBackend:
    """`threads` None leaves the number to OpenVINO: one per physical core, or per core that it may use."""

    name = "openvino"
    variants = ("ort", "default")  # OpenVINO reads ONNX Runtime's fused attention, too, and is faster with it

    def __init__(self, threads: int | None = None) -> None:
        try:
            import openvino
        except ImportError:
            raise BackendError("backend 'openvino' needs OpenVINO: pip install 'samwise-runtime[openvino]'") from None
        if threads is not None and threads < 1:
            raise BackendError(f"threads must be 1 or more, not {threads}")
        self._openvino, self._core = openvino, _shared_core(openvino)
        self.device: Device = Cpu()
        self.threads = threads
        self._options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if (number := limited_cores() if threads is None else threads) is not None:
            self._options["INFERENCE_NUM_THREADS"] = number

    def load(self, file: Path, spec: StageSpec) -> OpenVinoStage:
        """Compile one graph. Raises BundleError when OpenVINO refuses it or its signature is not the manifest's."""
        try:
            model = self._core.read_model(str(file))
            names = {i.any_name for i in model.inputs} | {o.any_name for o in model.outputs}
            keep_rounding(model)
            parts = [self._compile(part, precision, names) for part, precision in self.split(model, spec)]
        except Exception as error:  # openvino raises RuntimeError with a page of text
            advice = versions.remedy(self._openvino, "use --backend ort")
            raise BundleError(f"{file}: OpenVINO cannot load it ({summarize(error, 300)}); {advice}") from None
        want = {t.name for t in (*spec.inputs, *spec.outputs)}
        if names != want:
            raise BundleError(
                f"{file}: tensors {sorted(names ^ want)} differ from the manifest's; export the bundle again"
            )
        return OpenVinoStage(self._openvino, parts, spec)

    def _compile(self, part: Any, precision: str, names: Set[str]) -> CompiledPart:
        options = self._options | {"INFERENCE_PRECISION_HINT": precision}
        return CompiledPart(self._core.compile_model(part, "CPU", options), names)

    def split(self, model: Any, spec: StageSpec) -> list[tuple[Any, str]]:
        """Split a graph into parts that run one after the other, each with the precision of its products."""
        return [(model, "f32")]


class OpenVinoBf16Backend(OpenVinoBackend):
    """Products in bfloat16 in the stages marked `bf16_ok`: the trunk and memory attention, which take most of the time.

    Other stages stay float32, and so does the part of the trunk that the outputs not marked `bf16_ok` (the fine maps)
    are computed from: on official sizes this costs a tenth of the speed and halves the difference of the masks.
    """

    name = "openvino-bf16"

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(threads)
        if "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError("this processor has no bfloat16 arithmetic; use --backend openvino")

    def split(self, model: Any, spec: StageSpec) -> list[tuple[Any, str]]:
        if not spec.bf16_ok:
            return [(model, "f32")]
        exact = {tensor.name for tensor in spec.outputs if not tensor.bf16_ok}
        if not exact:
            return [(model, "bf16")]
        front, rest = split_graph(model, exact)
        return [(front, "f32"), (rest, "bf16")]


class CompiledPart:
    """A compiled graph with one infer request. A tensor of several names has the one that is among `known`."""

    def __init__(self, compiled: Any, known: Set[str]) -> None:
        self.inputs, self.outputs = (
            [next(iter(port.names & known), port.any_name) for port in ports]
            for ports in (compiled.inputs, compiled.outputs)
        )
        self.request = compiled.create_infer_request()


class OpenVinoStage:
    """The parts of one stage, in order. Tensors between them belong to OpenVINO."""

    def __init__(self, openvino: Any, parts: Sequence[CompiledPart], spec: StageSpec) -> None:
        self.spec, self._openvino, self.parts = spec, openvino, parts

    def run(self, **arrays: np.ndarray) -> None:
        """Run on these arrays; see `backends.base.Stage`. Raises InternalError with the stage's name."""
        try:
            # outputs are shared as well: OpenVINO writes into them when type and shape agree
            tensors = {
                tensor.name: self._shared(tensor.name, arrays, tensor.dtype)
                for tensor in (*self.spec.inputs, *self.spec.outputs)
            }
            for part in self.parts:
                for name in (*part.inputs, *part.outputs):
                    if name in tensors:
                        part.request.set_tensor(name, tensors[name])
                part.request.infer()
                tensors |= {name: part.request.get_tensor(name) for name in part.outputs if name not in tensors}
        except SamwiseRuntimeError:
            raise
        except Exception as error:
            raise InternalError(f"stage {self.spec.name} failed: {summarize(error, 300)}") from None

    def _shared(self, name: str, arrays: dict[str, np.ndarray], dtype: str) -> Any:
        array = arrays[name]
        if array.dtype != np.dtype(dtype) or not array.flags.c_contiguous:
            raise InternalError(
                f"stage {self.spec.name}: {name} must be contiguous {dtype}, got {array.dtype}, strides {array.strides}"
            )
        return self._openvino.Tensor(array, shared_memory=True)


SPLITTER = np.float32(2**16 + 1)
"""x * SPLITTER - (x * SPLITTER - x) is x rounded to 24 - 16 = 8 significant bits, as in bfloat16 (Veltkamp)."""


def keep_rounding(model: Any) -> None:
    """Replace casts float32 -> bfloat16 -> float32 (SAM 2's memory) by equivalent arithmetic, in place.

    With precision float32 OpenVINO drops both casts, and the memory would differ from the reference by 3e-3.
    """
    from openvino import opset13 as ops

    for cast in model.get_ordered_ops():
        if not _casts(cast, "bf16") or cast.input(0).get_source_output().get_element_type().to_string() != "f32":
            continue
        value = cast.input(0).get_source_output()
        for back in [target.get_node() for target in cast.output(0).get_target_inputs()]:
            if _casts(back, "f32"):
                large = ops.multiply(value, ops.constant(SPLITTER))
                rounded = ops.subtract(large, ops.subtract(large, value)).output(0)
                rounded.get_tensor().set_names(back.output(0).get_tensor().get_names())
                for reader in back.output(0).get_target_inputs():
                    reader.replace_source_output(rounded)


def split_graph(model: Any, names: Set[str]) -> tuple[Any, Any]:
    """Split a graph into the part that computes the outputs `names`, and the rest.

    A tensor that the rest reads from the first part is an output and an input of the same name.
    """
    import openvino
    from openvino import opset13 as ops

    front = _ancestors([r for r in model.get_results() if names & r.input(0).get_source_output().get_names()])
    # an output that needs no further arithmetic belongs to the first part as well
    wanted: list[Any] = []
    others: list[Any] = []
    for result in model.get_results():
        source = result.input(0).get_source_output().get_node()
        (wanted if source.get_friendly_name() in front else others).append(result)

    def readers_behind(port: Any) -> list[Any]:
        """Return the readers of an output that are neither in front nor outputs of the first part."""
        readers = port.get_target_inputs()
        return [r for r in readers if not _is_result(r) and r.get_node().get_friendly_name() not in front]

    passing: list[Any] = []
    entering: list[Any] = []
    for node in model.get_ordered_ops():
        if node.get_friendly_name() not in front or node.get_type_name() in ("Constant", "Parameter"):
            continue
        for port in node.outputs():
            if readers := readers_behind(port):
                entry = ops.parameter(port.get_partial_shape(), port.get_element_type())
                if not any(map(_is_result, port.get_target_inputs())):
                    port.get_tensor().set_names({f"passing_{len(passing)}"})
                    passing.append(ops.result(port))
                entry.output(0).get_tensor().set_names({port.any_name})
                entering.append(entry)
                for reader in readers:
                    reader.replace_source_output(entry.output(0))
    read = [p for p in model.get_parameters() if readers_behind(p.output(0))]
    first = openvino.Model([*wanted, *passing], model.get_parameters(), "front")
    return first, openvino.Model(others, [*entering, *read], "rest")


def _ancestors(nodes: Sequence[Any]) -> set[str]:
    """Return the names of these nodes and of all that they are computed from."""
    found: set[str] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node.get_friendly_name() not in found:
            found.add(node.get_friendly_name())
            todo += [port.get_source_output().get_node() for port in node.inputs()]
    return found


def _is_result(port: Any) -> bool:
    return bool(port.get_node().get_type_name() == "Result")


def _casts(node: Any, to: str) -> bool:
    return bool(node.get_type_name() == "Convert" and node.output(0).get_element_type().to_string() == to)
