"""Installation check: what is installed, which backends run a bundle here, which bundles fit, what to do next."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..backends import BACKENDS, NEEDS_AUTOTUNE, autotune, create
from ..bundle.bundle import DEMONSTRATIONS, find
from ..bundle.catalog import DEFAULTS, export_command
from ..bundle.manifest import Manifest
from ..engine import load
from ..errors import SamwiseRuntimeError
from .app import report_errors
from .summary import describe_bundles, table

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "export": ("torch", "onnx", "onnxscript", "safetensors", "huggingface_hub"),
    "serve": ("starlette", "uvicorn", "websockets", "prometheus_client"),
    "ray": ("ray",),
}
"""Extra of pyproject.toml that is no backend -> modules that it installs."""

NEEDS_ENGINE_FILES = ("tensorrt", "tensorrt_rtx")
GPU_QUERY = "name,compute_cap,memory.total,driver_version"


@dataclass(frozen=True, slots=True)
class BackendState:
    """Whether a backend ran the smallest bundle here; `reason` if it did not."""

    name: str
    works: bool
    reason: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report. Returns 0 if a backend works, else 1; 2 for a mistake of the caller."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.doctor", description="Say what is installed, what works here, and what to do next."
    )
    parser.add_argument("--engine", type=Path, default=Path("engines"), metavar="DIR", help="folder of bundles")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    args = parser.parse_args(argv)
    return report_errors(lambda: _report(args.engine), args.debug)


def _report(folder: Path) -> int:
    bundles, broken = describe_bundles(folder) if folder.is_dir() else ([], [])
    gpus = find_gpus()
    print(f"samwise-runtime {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    print(f"processor  {autotune.processor()}, {memory_gb():.0f} GB")
    print("GPU        " + ("; ".join(gpus) if gpus else "none that nvidia-smi knows"), flush=True)
    smallest = min(bundles, key=lambda b: b["megabytes"], default=None)
    states = [check_backend(name, smallest) for name in BACKENDS]
    print("\nbackend")
    print("\n".join("  " + row for row in table([[s.name, "works" if s.works else "-", s.reason] for s in states])))
    print(f"\nbundle in {folder}")
    rows = [_bundle_row(b, states) for b in bundles] or [["none", "", ""]]
    print("\n".join("  " + row for row in table(rows)))
    print("".join(f"\n  damaged: {message}" for message in broken) + "\nextra")
    missing = {extra: [m for m in modules if not autotune.installed(m)] for extra, modules in EXTRAS.items()}
    print("\n".join("  " + row for row in table([[e, "installed" if not m else "-", ""] for e, m in missing.items()])))
    steps = next_steps(folder, states, bundles, gpus, [extra for extra, m in missing.items() if m])
    print("\nnext" + "".join(f"\n  {step}" for step in steps))
    return 0 if any(state.works for state in states) else 1


def find_gpus() -> list[str]:
    """Return name, compute capability, memory and driver of each GPU, as nvidia-smi tells them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={GPU_QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines()]
    return [
        f"{n}, compute capability {c}, {m}, driver {d}" for n, c, m, d in (line for line in lines if len(line) == 4)
    ]


def memory_gb() -> float:
    """Return the memory of this machine in GB; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):
        return 0.0


def check_backend(name: str, smallest: Mapping[str, Any] | None) -> BackendState:
    """Load a bundle's stages on a backend, or only its library where there is no bundle."""
    try:
        if smallest is None or name in NEEDS_ENGINE_FILES:
            create(name)
            return BackendState(name, True, "needs engine files" if name in NEEDS_ENGINE_FILES else "")
        load(smallest["folder"], backend=name).close()
        return BackendState(name, True)
    except SamwiseRuntimeError as error:
        return BackendState(name, False, str(error))


def _bundle_row(bundle: Mapping[str, Any], states: Sequence[BackendState]) -> list[str]:
    """Return name, properties and remarks of a bundle."""
    remarks = []
    if bundle["megabytes"] > 500 * memory_gb() > 0:  # graphs and working memory are about as large as the weights
        remarks.append("may not fit in memory")
    if bundle["precision"] == "fp16" and not any(s.works and s.name == "ort-cuda" for s in states):
        remarks.append("fp16: slower than fp32 on a CPU")
    if not bundle["tokenizer"]:
        remarks.append("takes token ids only")
    kind = f"{bundle['network']}, {bundle['precision']}, {bundle['megabytes']:.0f} MB"
    return [bundle["name"], kind, "; ".join(remarks)]


def _short(folder: str) -> str:
    """Return the path of a bundle as a word of a command, from the present folder if it is below."""
    path, here = Path(folder), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def next_steps(
    folder: Path,
    states: Sequence[BackendState],
    bundles: Sequence[Mapping[str, Any]],
    gpus: Sequence[str],
    missing: Sequence[str],
) -> list[str]:
    """Return commands and what each is for, the most useful first."""
    working = {state.name for state in states if state.works}
    steps = []
    if not working & {"ort", "ort-cuda", "openvino"}:
        steps.append(("install a backend", 'pip install -e ".[cpu]"'))
    if gpus and "ort-cuda" not in working:
        steps.append(("use the GPU", 'pip uninstall onnxruntime; pip install -e ".[gpu]"'))
    with_demo = [bundle["folder"] for bundle in bundles if bundle["demo"]]
    if with_demo and working:
        steps.append(("see that it works", f"python -m runtime.run --engine {_short(with_demo[0])}"))
    if all(bundle["name"] in DEMONSTRATIONS for bundle in bundles):
        if "export" in missing:
            steps.append(("install the export", 'pip install -e ".[export]"'))
        steps += [(f"export {name}", str(export_command(name, folder))) for name in DEFAULTS]
    for backend, bundle in ((b, bundle) for b in NEEDS_AUTOTUNE if b in working for bundle in bundles):
        manifest: Manifest = find(bundle["folder"])[0].manifest
        if autotune.find(backend, manifest) is None:
            command = f"python -m runtime.autotune --engine {_short(bundle['folder'])}"
            steps.append((f"{backend} for {bundle['name']}?", command))
    return table([list(step) for step in steps])
