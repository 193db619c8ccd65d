"""Inputs and outputs of a backend check in Polygraphy's file formats, for its debugging tools.

    python -m export.verify engines/NAME --backend tensorrt_rtx --runs runs/

writes, per stage and size, `STAGE.SIZES.inputs.json` (for `--load-inputs`) and `STAGE.SIZES.outputs.json` (RunResults
of both sides, for `--load-outputs`), and `accuracy.json`, the result of Polygraphy's own comparator. A relative L2
error e is a signal-to-noise ratio of -20 log10(e) dB, so this comparison and Polygraphy's have the same threshold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.manifest import StageSpec
from runtime.errors import UserError

REPORT = "accuracy.json"
STATISTICS = ("max_absdiff", "mean_absdiff", "median_absdiff")
REFERENCE = "onnxruntime"
"""Name of the reference in the files."""


def decibels(error: float) -> float:
    """Return the signal-to-noise ratio of a relative L2 error."""
    return -20 * math.log10(error)


class PolygraphyDump:
    """A folder of runs. Raises UserError if Polygraphy is missing or the folder cannot be written."""

    def __init__(self, folder: str | Path, backend: str) -> None:
        try:
            from polygraphy import comparator
            from polygraphy import json as files
            from polygraphy.logger import G_LOGGER
        except ImportError:
            raise UserError("--runs needs Polygraphy: pip install 'samwise-runtime[polygraphy]'") from None
        self._comparator, self._files, self._logger = comparator, files, G_LOGGER
        self.folder, self.backend = Path(folder), backend
        self.rows: list[dict[str, Any]] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot write there ({error.strerror}); choose another --runs") from None

    def add(
        self,
        spec: StageSpec,
        graph: str,
        sizes: Mapping[str, int],
        inputs: Mapping[str, np.ndarray],
        want: Mapping[str, np.ndarray],
        got: Mapping[str, np.ndarray],
        limit: float,
    ) -> dict[str, Any]:
        """Write one comparison; `graph` is the stage's file inside the bundle. Returns its row of the report."""
        name = ".".join([spec.name, "-".join(f"{symbol}{n}" for symbol, n in sorted(sizes.items())) or "fixed"])
        results = self._comparator.RunResults()
        for runner, outputs in ((REFERENCE, want), (self.backend, got)):
            results.add([{t.name: outputs[t.name] for t in spec.outputs}], runner_name=runner)
        feed = [{t.name: inputs[t.name] for t in spec.inputs}]
        row = {
            "stage": spec.name,
            "graph": graph,
            "sizes": dict(sizes),
            "inputs": f"{name}.inputs.json",
            "outputs": f"{name}.outputs.json",
            "least_decibels": round(decibels(limit), 2),
            **self._compare(results, limit),
        }
        with self._quiet():
            self._files.save_json(feed, str(self.folder / row["inputs"]), "inputs")
            results.save(str(self.folder / row["outputs"]))
        self.rows.append(row)
        (self.folder / REPORT).write_text(json.dumps({"backend": self.backend, "runs": self.rows}, indent=1) + "\n")
        return row

    def _compare(self, results: Any, limit: float) -> dict[str, Any]:
        """Return Polygraphy's result: dB per float output, whether all reach the threshold, elementwise statistics."""
        (_, (want,)), (_, (got,)) = results.items()
        # integers and booleans have no noise: they are equal or not
        exact = {n: bool(np.array_equal(v, got[n])) for n, v in want.items() if v.dtype.kind in "biu"}
        floats = self._comparator.RunResults()
        for runner, outputs in ((REFERENCE, want), (self.backend, got)):
            floats.add([{n: v for n, v in outputs.items() if n not in exact}], runner_name=runner)
        found: dict[str, Any] = {
            "passed": all(exact.values()),
            "found": {n: {"equal": same} for n, same in exact.items()},
        }
        if len(exact) == len(list(want.keys())):
            return found
        functions = [
            self._comparator.SnrCompareFunc(decibels(limit)),
            self._comparator.SimpleCompareFunc(check_error_stat="median"),
        ]
        with self._quiet():
            noise, elements = self._comparator.Comparator.compare_accuracy(floats, compare_func=functions)
        pair = (REFERENCE, self.backend)
        for output, result in noise[pair][0].items():
            element = elements[pair][0][output]
            found["passed"] &= bool(result)
            found["found"][output] = {
                "decibels": _number(getattr(result, "snr", -math.inf)),
                **{key: _number(getattr(element, key, math.nan)) for key in STATISTICS},
            }
        return found

    def _quiet(self) -> Any:
        return self._logger.verbosity(self._logger.CRITICAL)

    def hints(self, bundle: Path) -> list[str]:
        """Return commands that examine the first run that missed its threshold; none if all passed."""
        row = next((row for row in self.rows if not row["passed"]), None)
        if row is None:
            return []
        graph, inputs, outputs = bundle / row["graph"], self.folder / row["inputs"], self.folder / row["outputs"]
        engine = {"tensorrt": " --trt", "tensorrt_rtx": " --trt"}.get(self.backend, "")
        rtx = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if self.backend == "tensorrt_rtx" else ""
        check = f"polygraphy run polygraphy_debug.onnx --onnxrt{engine} --load-inputs {inputs}"
        return [
            f"polygraphy inspect data {outputs} --show-values",
            f"polygraphy run {graph} --onnxrt --load-inputs {inputs} --load-outputs {outputs}",
            f"{rtx}polygraphy debug reduce {graph} -o reduced.onnx --mode bisect --check {check}",
        ]

    def summary(self) -> str:
        """Summarize all runs in one line."""
        missed = sorted({row["stage"] for row in self.rows if not row["passed"]})
        passed = sum(row["passed"] for row in self.rows)
        text = f"Polygraphy: {passed} of {len(self.rows)} runs within their signal-to-noise ratio"
        return text + (f"; not {', '.join(missed)}" if missed else "")


def _number(value: Any) -> float | str:
    """Return a number for JSON, which has neither infinity nor NaN."""
    value = float(value)
    return round(value, 9) if math.isfinite(value) else str(value)
