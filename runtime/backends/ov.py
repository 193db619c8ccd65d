"""OpenVINO on the CPU: float32, or bfloat16 where the processor multiplies it.

Graphs are compiled once per stage with the shapes left open; inputs and outputs are the caller's own arrays, shared and
not copied. `openvino` is what `auto` takes where `python -m runtime.trial` found it exact and faster. `openvino-bf16`
is a named approximation, never taken by `auto`: products in bfloat16, so masks move (docs/cpu.md says by how much).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..device import Cpu
from ..errors import BackendError, BundleError, RuntimeFault
from ..spec import StageSpec


class OpenVinoBackend:
    """`threads` None leaves the number to OpenVINO: one per physical core."""

    name = "openvino"
    forms = ("default",)
    precision = "f32"

    def __init__(self, threads: int | None = None) -> None:
        try:
            import openvino
        except ImportError:
            raise BackendError("backend 'openvino' needs OpenVINO: pip install 'samwise-runtime[openvino]'") from None
        if threads is not None and threads < 1:
            raise BackendError(f"threads must be 1 or more, not {threads}")
        self._openvino, self._core = openvino, openvino.Core()
        self.device = Cpu()
        self.threads = threads
        self._options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self.precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads

    def load(self, file: Path, spec: StageSpec) -> OpenVinoStage:
        """Compile one graph. Raises BundleError when OpenVINO refuses it or its signature is not the manifest's."""
        try:
            model = self._core.read_model(str(file))
            names = {i.any_name for i in model.inputs} | {o.any_name for o in model.outputs}
            keep_rounding(model)
            compiled = self._core.compile_model(model, "CPU", self._options)
        except Exception as error:  # openvino raises RuntimeError with a page of text
            raise BundleError(f"{file}: OpenVINO cannot load it ({_first_line(error)})") from None
        want = {t.name for t in (*spec.inputs, *spec.outputs)}
        if names != want:
            raise BundleError(f"{file}: tensors {sorted(names ^ want)} differ from the manifest's; export the bundle "
                              f"again")
        return OpenVinoStage(self._openvino, compiled.create_infer_request(), spec)


class OpenVinoBf16Backend(OpenVinoBackend):
    """Products in bfloat16."""

    name = "openvino-bf16"
    precision = "bf16"

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(threads)
        if "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError("this processor has no bfloat16 arithmetic; use --backend openvino")


class OpenVinoStage:
    """One infer request."""

    def __init__(self, openvino: Any, request: Any, spec: StageSpec) -> None:
        self.spec, self._openvino, self._request = spec, openvino, request

    def run(self, **arrays: np.ndarray) -> None:
        """Run on these arrays; see `backends.Stage`. Raises RuntimeFault with the stage's name."""
        try:
            for tensor in self.spec.inputs:
                self._request.set_tensor(tensor.name, self._shared(tensor.name, arrays, tensor.dtype))
            # an output shared as it is: OpenVINO writes into it when type and shape agree
            for tensor in self.spec.outputs:
                self._request.set_tensor(tensor.name, self._shared(tensor.name, arrays, tensor.dtype))
            self._request.infer()
        except RuntimeFault:
            raise
        except Exception as error:
            raise RuntimeFault(f"stage {self.spec.name} failed: {_first_line(error)}") from None

    def _shared(self, name: str, arrays: dict[str, np.ndarray], dtype: str) -> Any:
        array = arrays[name]
        if array.dtype != np.dtype(dtype) or not array.flags.c_contiguous:
            raise RuntimeFault(f"stage {self.spec.name}: {name} must be contiguous {dtype}, got {array.dtype}, "
                               f"strides {array.strides}")
        return self._openvino.Tensor(array, shared_memory=True)


SPLITTER = np.float32(2 ** 16 + 1)
"""x * SPLITTER - (x * SPLITTER - x) is x rounded to 24 - 16 = 8 significant bits, those of bfloat16 (Veltkamp)."""


def keep_rounding(model: Any) -> None:
    """Write float32 -> bfloat16 -> float32, by which SAM 2 stores its memory, as arithmetic, in place.

    Asked for float32, OpenVINO drops both casts, and the memory would differ from the reference by 3e-3.
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


def _casts(node: Any, to: str) -> bool:
    return node.get_type_name() == "Convert" and node.output(0).get_element_type().to_string() == to


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
