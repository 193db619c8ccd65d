"""What a bare GPU machine lacks for `benchmarks.gpu_check`, in pieces that can be carried there.

    python -m benchmarks.gpu_carry pack --bundle engines/samwise-base_plus-random --out gpu_carry      # here
    python -m benchmarks.gpu_carry unpack gpu_carry --to /tmp/carried                                  # there

A machine with PyTorch, Triton and the CPU build of ONNX Runtime, but without a network, lacks onnxruntime-gpu (256 MB:
its provider library is slimmed to one architecture), cuda-core, pycocotools, a decoder of videos (the demonstration is
carried as frames), and bundles of published size (the weights are made there: times do not depend on them).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from .gpu_slim import keep_architecture
from .gpu_weights import fill, without_weights

WHEELS = ("onnxruntime-gpu", "cuda-core", "cuda-bindings", "cuda-pathfinder", "pycocotools")
PLATFORMS = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
UNUSED = (
    "onnxruntime/capi/libonnxruntime.so",  # for C; Python has all of it in its extension
    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
    "onnxruntime/transformers/",
    "onnxruntime/quantization/",
    "onnxruntime/tools/",
    "cuda/core/cu12/",
    "cuda/core/_include/",
)
"""Beginnings of paths in wheels that no section loads."""
LARGEST_PIECE = 60
INDEX = "pieces.json"
CONTENTS = "contents.tar.xz"


class CarryError(Exception):
    """What is wrong with the pieces, and what to do."""


# -- here ---------------------------------------------------------------------------------------------------------


def pack(options: argparse.Namespace) -> None:
    """Write the pieces into `options.out`."""
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        contents, wheels = Path(work) / "contents", Path(work) / "wheels"
        download(options.wheels.split(","), options.python, wheels)
        for wheel in sorted(wheels.glob("*.whl")):
            install(wheel, contents / "site", options.capability)
        write_clip(options.nano, contents / "nano_clip.npz")
        for bundle in options.bundle:
            without_weights(bundle, contents / "engines" / bundle.name)
            compile_kernels(contents / "engines" / bundle.name, options.capability)
        archive = Path(work) / CONTENTS
        # larger presets take minutes, and code of GPUs does not get much smaller
        with (
            lzma.open(archive, "wb", preset=options.preset) as compressed,
            tarfile.open(fileobj=compressed, mode="w|") as tar,
        ):
            tar.add(contents, ".")
        split(archive, options.out, options.piece_mb)


def download(names: Sequence[str], python: str, folder: Path) -> None:
    """Download wheels for Linux on x86-64 and a version of Python."""
    platforms = [f"--platform=manylinux_{version}_x86_64" for version in PLATFORMS]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    version = [f"--python-version={python}", "--implementation=cp"]
    subprocess.run([*command, *version, *platforms, "--dest", str(folder), *names], check=True)


def install(wheel: Path, site: Path, capability: int) -> None:
    """Unpack a wheel into `site`, without what no section loads, and its GPU code for one architecture only."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.startswith(UNUSED)]
        archive.extractall(site, names)
    provider = site / PROVIDER
    if PROVIDER in names:
        code = bytearray(provider.read_bytes())
        zeroed = keep_architecture(code, capability)
        provider.write_bytes(code)
        print(f"{wheel.name}: {zeroed / 1e6:.0f} of {len(code) / 1e6:.0f} MB are for other GPUs than sm_{capability}")


def compile_kernels(bundle: Path, capability: int) -> None:
    """Compile the kernels of a bundle, which takes a minute there. Without Triton here they are compiled there."""
    if importlib.util.find_spec("triton") is None:
        print(f"{bundle.name}: no Triton here to compile its kernels with")
        return
    from export import kernels

    count = len(kernels.compile_bundle(bundle, [capability], report=lambda line: None))
    print(f"{bundle.name}: {count} kernels for sm_{capability}")


def write_clip(nano: Path, file: Path) -> None:
    """Write the demonstration's clip as frames."""
    import numpy as np

    from runtime import open_video
    from runtime.bundle.demo import Demo

    with open_video(Demo.load(nano / "demo").clip) as video:
        frames = np.stack(list(video))
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, frames=frames)  # the archive compresses it


def split(archive: Path, out: Path, piece_mb: float) -> None:
    """Cut a file into pieces, each in a folder of its own with the index of all, so that each can be carried alone."""
    if not 0 < piece_mb <= LARGEST_PIECE:
        raise CarryError(f"--piece-mb {piece_mb:g} is not between 0 and {LARGEST_PIECE}")
    shutil.rmtree(out, ignore_errors=True)
    size, index = int(piece_mb * 1e6), []
    with archive.open("rb") as file:
        while piece := file.read(size):
            folder = out / f"piece_{len(index)}"
            folder.mkdir(parents=True)
            (folder / f"{CONTENTS}.{len(index):02}").write_bytes(piece)
            index.append({"file": f"{CONTENTS}.{len(index):02}", "sha256": hashlib.sha256(piece).hexdigest()})
    for folder in out.iterdir():
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    total = archive.stat().st_size / 1e6
    print(f"{out}: {len(index)} pieces, {total:.1f} MB: " + ", ".join(sorted(p.name for p in out.iterdir())))


# -- there --------------------------------------------------------------------------------------------------------


def unpack(pieces: Path, to: Path) -> bool:
    """Keep the pieces that are in `pieces` or below; unpack all once the last has come. Returns whether it has."""
    found = sorted(pieces.rglob(INDEX))
    if not found:
        raise CarryError(f"{pieces}: no {INDEX} in it or below; carry the folders that `pack` wrote")
    index, store = json.loads(found[0].read_text()), to / "pieces"
    store.mkdir(parents=True, exist_ok=True)
    for entry in index:
        for path in pieces.rglob(entry["file"]):
            shutil.copyfile(path, store / entry["file"])
    missing = [entry["file"] for entry in index if not (store / entry["file"]).exists()]
    if missing:
        print(f"{to}: {len(index) - len(missing)} of {len(index)} pieces are here; carry {', '.join(missing)}")
        return False
    with tarfile.open(fileobj=io.BufferedReader(_Joined(store, index)), mode="r|xz") as tar:  # type: ignore[type-var]
        tar.extractall(to, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    for bundle in sorted((to / "engines").glob("*")):
        fill(bundle)
    link_libraries(to / "site", [path for path in sys.path if path and Path(path) != to / "site"])
    print(f"export PYTHONPATH={(to / 'site').resolve()}")
    return True


class _Joined(io.RawIOBase):
    """The pieces in order, each checked when it is opened."""

    def __init__(self, folder: Path, index: Sequence[dict[str, str]]) -> None:
        self._parts = self._checked(folder, index)
        self._part = memoryview(b"")

    @staticmethod
    def _checked(folder: Path, index: Sequence[dict[str, str]]) -> Iterator[bytes]:
        for entry in index:
            piece = (folder / entry["file"]).read_bytes()
            if hashlib.sha256(piece).hexdigest() != entry["sha256"]:
                raise CarryError(f"{folder / entry['file']}: damaged, or of another `pack`; carry it again")
            yield piece

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._part:
            self._part = memoryview(next(self._parts, b""))
        count = min(len(buffer), len(self._part))
        buffer[:count], self._part = self._part[:count], self._part[count:]
        return count


def link_libraries(site: Path, search: Sequence[str]) -> None:
    """Link the CUDA libraries of this machine's PyTorch beside ONNX Runtime, which looks for them there only."""
    spec, link = PathFinder.find_spec("nvidia", list(search)), site / "nvidia"
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if not link.is_symlink() and not link.exists():
            os.symlink(folder, link)
            print(f"{link} -> {folder}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_carry", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("pack", help="write the pieces, on a machine with a network").add_argument
    add("--out", type=Path, default=Path("gpu_carry"), help="folder of the pieces (default: %(default)s)")
    add("--bundle", type=Path, action="append", default=[], help="bundle whose weights are made there; repeatable")
    add("--nano", type=Path, default=Path("engines/nano"), help="bundle with the demonstration (default: %(default)s)")
    add("--capability", type=int, default=90, help="compute capability of the GPU (default: %(default)s)")
    add("--python", default="3.12", help="version of Python there (default: %(default)s)")
    add("--wheels", default=",".join(WHEELS), help="with commas, NAME or NAME==VERSION (default: %(default)s)")
    add("--piece-mb", type=float, default=27, help=f"size of a piece, {LARGEST_PIECE} at most (default: %(default)s)")
    add("--preset", type=int, default=3, help="of xz (default: %(default)s)")
    add("--work", type=Path, help="folder for temporary files of about 1 GB (default: that of the system)")
    unpacking = commands.add_parser("unpack", help="unpack there; may be called as the pieces come")
    unpacking.add_argument("pieces", type=Path, help="folder with pieces, in it or below")
    unpacking.add_argument("--to", type=Path, default=Path("/tmp/carried"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        if options.command == "pack":
            pack(options)
        else:
            unpack(options.pieces, options.to)
    except CarryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
