"""TensorRT engine files of a bundle: `python -m export.tensorrt.build engines/NAME --backend tensorrt|tensorrt_rtx`.

`tensorrt` builds for the GPU of this machine. `tensorrt_rtx` compiles ahead of time, without a GPU, for every
`--target`. Networks are strongly typed: precision is part of the graph, so a half bundle gives half engines. An engine
file that is up to date (see `runtime/bundle/engine_index.py`) is kept. Needs neither torch nor onnx.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.backends.trt import EXPLICIT
from runtime.backends.trt_rtx import TrtRtxBackend
from runtime.bundle import engine_index
from runtime.bundle.bundle import Bundle, choose
from runtime.bundle.engine_index import FOLDER, EngineFile
from runtime.bundle.manifest import Manifest, StageSpec
from runtime.errors import BackendError, InternalError, SamwiseRuntimeError, UserError, fail

from .compare import LEAST_COSINE, Comparison, Cosine
from .warm import warm

VARIANTS = ("trt", "default")
"""Forms of a stage that TensorRT accepts, the preferred one first."""

TARGETS = (75, 80, 86, 89, 120)
"""Targets of TensorRT-RTX: RTX 20 and T4, A100, RTX 30, RTX 40 and L4, RTX 50. It has no Hopper (sm_90)."""

TIMING = "timing.cache"

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """Serialized engine. `scratch`: bytes of activations and scratch at the largest sizes, according to the builder."""

    data: bytes
    scratch: int
    seconds: float


class Library:
    """TensorRT or TensorRT-RTX: one API, two modules."""

    def __init__(self, name: str) -> None:
        if name not in ("tensorrt", "tensorrt_rtx"):
            raise UserError(f"backend {name!r} builds no engines; choose tensorrt or tensorrt_rtx")
        self.name, self.ahead = name, name == "tensorrt_rtx"
        try:
            self.trt: Any = importlib.import_module(name)
        except (ImportError, OSError) as error:
            extra = name.replace("_", "-")
            raise BackendError(
                f"{name} cannot be imported ({str(error).splitlines()[0][:200]}): "
                f"pip install 'samwise-runtime[{extra}]'"
            ) from None
        self.version = str(self.trt.__version__)

    def capabilities(self, targets: Collection[int] | None) -> tuple[int, ...]:
        """Return the capabilities to build for: `targets`, all if None; for TensorRT the GPU of this machine."""
        if not self.ahead:
            here = gpu_capability()
            if targets and set(targets) != {here}:
                raise UserError(f"tensorrt builds only for the GPU of this machine (sm_{here}); remove --target")
            return (here,)
        unknown = sorted(
            set(targets or ()) - {t for t in (*TARGETS, 121) if hasattr(self.trt.ComputeCapability, f"SM{t}")}
        )
        if unknown:
            raise UserError(
                f"target sm_{unknown[0]} is not one of {', '.join(f'sm_{t}' for t in TARGETS)}"
                + ("; on Hopper use tensorrt or ort-cuda" if unknown[0] == 90 else "")
            )
        return tuple(sorted(targets or TARGETS))

    def build(
        self,
        graph: Path,
        spec: StageSpec,
        profile: Mapping[str, tuple[int, int, int]],
        capabilities: Sequence[int],
        timing: Path | None = None,
    ) -> BuildResult:
        """Build one engine of a graph for all `capabilities`. Raises InternalError with the library's reason."""
        trt, begin = self.trt, time.perf_counter()
        log = _logger(trt)
        builder = trt.Builder(log)
        network = builder.create_network(_strongly_typed(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(graph)):
            reason = parser.get_error(0).desc() if parser.num_errors else "no reason given"
            raise InternalError(f"{graph.name}: {self.name} cannot read it ({_line(reason)}); export the bundle again")
        config = builder.create_builder_config()
        # for `export.tensorrt.inspect`; costs neither size nor time
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.add_optimization_profile(_optimization_profile(builder, spec, profile))
        if self.ahead:
            config.num_compute_capabilities = len(capabilities)
            for i, capability in enumerate(capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), i)
        cache = self._timing(config, timing)
        data = builder.build_serialized_network(network, config)
        if data is None:
            reason = next(iter(log.errors), "no reason given")
            targets = ", ".join(f"sm_{c}" for c in capabilities)
            raise InternalError(
                f"{graph.name}: {self.name} {self.version} cannot build it for {targets} ({_line(reason)})"
            )
        if cache is not None and timing is not None:
            timing.write_bytes(bytes(config.get_timing_cache().serialize()))
        return BuildResult(bytes(data), log.scratch, time.perf_counter() - begin)

    def _timing(self, config: Any, path: Path | None) -> Any:
        """Set the cache of measured tactics; ahead of time nothing is measured."""
        if path is None or self.ahead:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
        return cache


def _strongly_typed(trt: Any) -> int:
    """Return the creation flags of a strongly typed network. TensorRT 11 has no other kind and may drop the flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _optimization_profile(builder: Any, spec: StageSpec, profile: Mapping[str, tuple[int, int, int]]) -> Any:
    found = builder.create_optimization_profile()
    for tensor in spec.inputs:
        shapes = [tensor.resolve({symbol: sizes[i] for symbol, sizes in profile.items()}) for i in range(3)]
        found.set_shape(tensor.name, *shapes)
    return found


def _logger(trt: Any) -> Any:
    """Return a logger that keeps errors and the largest reported scratch size, and prints nothing."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.scratch = 0

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            if found := re.search(r"(?:Max Scratch|Total Activation) Memory: (\d+) bytes", message):
                self.scratch = max(self.scratch, int(found[1]))

    return Log()


def profile(spec: StageSpec, manifest: Manifest) -> dict[str, tuple[int, int, int]]:
    """Return symbol -> (lowest, typical, highest) size, from the manifest's bounds and the stage's typical sizes."""
    bounds = {s: manifest.bounds[s] for s in sorted(spec.symbols)}
    return {s: (low, min(max(low, spec.typical.get(s, high)), high), high) for s, (low, high) in bounds.items()}


def gpu_capability() -> int:
    """Return the compute capability of the first GPU without the dot. Raises BackendError without a GPU."""
    from runtime.device.driver import CudaCore

    return CudaCore().capability


def build_bundle(
    bundle: Bundle,
    library: Library,
    targets: Collection[int] | None = None,
    stages: Collection[str] | None = None,
    report: Report = print,
    cosine: Cosine | None = None,
) -> list[EngineFile]:
    """Build every stage (or those named) that has no fresh engine file, one file per stage for all targets.

    `cosine` compares an engine with ONNX Runtime, see `compare.py`. Returns the bundle's entries, old and new.
    """
    manifest, folder = bundle.manifest, bundle.folder
    unknown = sorted(set(stages or ()) - set(manifest.stages))
    if unknown:
        raise UserError(f"{folder}: no stage {unknown[0]!r}; it has {', '.join(manifest.stages)}")
    if manifest.precision == "fp32":
        report("note: a float32 bundle gives float32 engines; export it with --precision fp16 for half engines")
    capabilities = library.capabilities(targets)
    entries = _fresh(bundle)
    (folder / FOLDER / f"{library.name}-{library.version}").mkdir(parents=True, exist_ok=True)
    wanted = [spec for name, spec in manifest.stages.items() if stages is None or name in stages]
    for number, spec in enumerate(wanted, 1):
        built = _build_stage(bundle, library, spec, capabilities, entries, cosine)
        if built is not None:
            entries.append(built)
            engine_index.write(folder, entries)
            size = (folder / FOLDER / built.file).stat().st_size
            what = f"{size / 1e6:8.1f} MB {built.seconds:6.1f} s  scratch {built.scratch / 1e6:7.1f} MB"
        else:
            what = "up to date"
        targets_ = ", ".join(f"sm_{c}" for c in (built.capabilities if built else capabilities))
        report(f"[{number:2}/{len(wanted)}] {spec.name:22} {targets_}  {what}")
    engine_index.write(folder, entries)
    return entries


def _build_stage(
    bundle: Bundle,
    library: Library,
    spec: StageSpec,
    capabilities: Sequence[int],
    entries: Sequence[EngineFile],
    cosine: Cosine | None,
) -> EngineFile | None:
    """Build one stage for the capabilities that `entries` lack; None if there are none.

    Where it has another form of attention, the first form is taken that is right on this machine's GPU.
    """
    manifest, folder = bundle.manifest, bundle.folder / FOLDER
    forms = [next(f for f in VARIANTS if f in spec.files), *({EXPLICIT} & spec.files.keys())]
    sources = [
        (spec.name, f, library.name, library.version, engine_index.fingerprint(manifest, spec, f)) for f in forms
    ]
    same = [e for e in entries if (e.stage, e.variant, e.library, e.version, e.graph) in sources]
    missing = tuple(c for c in capabilities if not any(c in e.capabilities for e in same))
    if not missing:
        return None
    place = f"{library.name}-{library.version}"
    timing = folder / place / f"{missing[0]}-{TIMING}"
    for _, variant, _, _, graph in sources:
        engine = library.build(bundle.folder / spec.files[variant], spec, profile(spec, manifest), missing, timing)
        file = f"{place}/{spec.name}.{graph[:12]}.{'-'.join(map(str, missing))}.engine"
        (folder / file).write_bytes(engine.data)
        found = cosine(folder / file, spec, missing) if cosine and len(forms) > 1 else None
        if found is None or found >= LEAST_COSINE:
            costs = engine.scratch, round(engine.seconds, 2)
            source = spec.name, variant, library.name, library.version
            return EngineFile(*source, missing, spec.precision, graph, file, *costs)
        (folder / file).unlink()
    raise InternalError(
        f"{spec.name}: {library.name} {library.version} computes it wrong on this GPU, in every form (cosine with ONNX "
        f"Runtime {found:.4f}, at least {LEAST_COSINE} is needed); use --backend ort-cuda"
    )


def _fresh(bundle: Bundle) -> list[EngineFile]:
    """Return the entries whose graph has not changed; remove the files of the others."""
    kept = []
    for entry in engine_index.read(bundle.folder):
        spec = bundle.manifest.stages.get(entry.stage)
        path = bundle.folder / FOLDER / entry.file
        if (
            spec
            and entry.variant in spec.files
            and path.is_file()
            and entry.graph == engine_index.fingerprint(bundle.manifest, spec, entry.variant)
        ):
            kept.append(entry)
        else:
            path.unlink(missing_ok=True)
    return kept


def parse_targets(text: str | None) -> list[int] | None:
    """Parse `sm_89,120` to [89, 120]. Raises UserError."""
    if text is None:
        return None
    names = [name.strip().removeprefix("sm_") for name in text.split(",")]
    if not all(name.isdigit() for name in names):
        raise UserError(f"--target {text!r} is not a list like sm_89,sm_120")
    return sorted({int(name) for name in names})


def _line(text: str) -> str:
    return " ".join(str(text).split())[:300]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m export.tensorrt.build", description="Build a bundle's engines.")
    parser.add_argument("bundle", metavar="engines/NAME")
    parser.add_argument("--backend", required=True, choices=("tensorrt", "tensorrt_rtx"))
    parser.add_argument(
        "--target",
        metavar="sm_89,sm_120",
        help=f"GPUs to build for (tensorrt_rtx; default: {', '.join(f'sm_{t}' for t in TARGETS)})",
    )
    parser.add_argument("--stage", action="append", metavar="NAME", help="build this stage only; may be repeated")
    parser.add_argument("--model", help="name of the bundle or of the network, where the folder holds several")
    warm_help = "then compile them on the GPU of this machine for the shapes of a video's first frames (tensorrt_rtx)"
    parser.add_argument("--warm", action="store_true", help=warm_help)
    options = parser.parse_args(arguments)
    try:
        if options.warm and options.backend != TrtRtxBackend.name:
            raise UserError(f"--warm is for {TrtRtxBackend.name}, whose engines are compiled where they run; remove it")
        bundle = choose(options.bundle, options.model)
        targets, cosine = parse_targets(options.target), Comparison(bundle, options.backend)
        build_bundle(bundle, Library(options.backend), targets, options.stage, cosine=cosine)
        if options.warm:
            print(f"compiled for the shapes of {warm(choose(bundle.folder), TrtRtxBackend())} frames")
        return 0
    except OSError as error:
        return fail(InternalError(f"cannot write into {options.bundle} ({error.strerror or error})"))
    except SamwiseRuntimeError as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
