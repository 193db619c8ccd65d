"""Every stage of every bundle alone: time, arithmetic, and its share of the machine's measured matmul peak."""

from __future__ import annotations

import numpy as np

from runtime.bundle.manifest import StageSpec

from . import flops

ONE = dict.fromkeys(("frames", "objects", "maps", "pictures", "batch", "sentences"), 1)
FULL = {**ONE, "tokens": 12, "prompt_tokens": 2, "points": 2, "slots": 7, "pointers": 16}
"""One frame, one object, one sentence, a full memory; symbols that are not here take their upper bound."""


def sizes(bundle, spec: StageSpec) -> dict[str, int]:
    return {s: min(FULL.get(s, bundle.manifest.bounds[s][1]), bundle.manifest.bounds[s][1]) for s in spec.symbols}


def arrays(spec: StageSpec, symbols: dict[str, int]) -> dict[str, np.ndarray]:
    """Return inputs that every stage accepts: normal floats, zero indices; ones where a count is meant."""
    rng = np.random.default_rng(0)

    def one(tensor):
        shape = tensor.resolve(symbols)
        if tensor.dtype.startswith("float"):
            return rng.standard_normal(shape, np.float32).astype(tensor.dtype)
        return np.full(shape, int("count" in tensor.name or "mask" in tensor.name), tensor.dtype)

    return {t.name: one(t) for t in spec.inputs}


def test_stage(benchmark, info, loaded, bundle, stage):
    spec = bundle.manifest.stages[stage]
    symbols = sizes(bundle, spec)
    inputs = arrays(spec, symbols)
    outputs = {t.name: np.empty(t.resolve(symbols), t.dtype) for t in spec.outputs}
    info(stage=stage, sizes=symbols, gflop=flops.stage_flops(bundle, spec, inputs) / 1e9)
    run = loaded.stages[stage].stage.run
    benchmark.pedantic(run, kwargs=inputs | outputs, rounds=5, warmup_rounds=1)
    assert all(np.isfinite(o).all() for o in outputs.values() if o.dtype.kind == "f")
