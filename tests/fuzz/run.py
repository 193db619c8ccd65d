"""Coverage-guided fuzzing of everything that reads what strangers wrote.

    python tests/fuzz/run.py --seconds 120 --out benchmarks/results/fuzz.json
    python tests/fuzz/run.py --target video --seconds 600 --keep fuzz-corpus/

`--seconds` is processor time per target. Needs atheris (pip install 'samwise-runtime[fuzz]'): libFuzzer for Python,
which sees the branches of `runtime/` and `export/` and mutates what reached new ones. Every target runs in a process
of its own, so a crash of a native library is a finding and not the end. The properties are those of `invariants.hold`,
the same as in `tests/fuzz/test_fuzz.py`. Exit code 1 when anything was found; the inputs are then in `--keep`, by finding.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the packages of the clone and of its tests, from any folder
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from fuzz.mutate import mutated
from fuzz.targets import TARGETS, target

LONGEST = 1 << 16
"""Bytes of an input."""

NATIVE_DEATHS = 5
"""A target whose process dies so often is given up."""

READERS = {
    "manifest": (
        "runtime/bundle/manifest.py",
        "runtime/bundle.py",
        "runtime/bundle/schema.py",
        "runtime/models/__init__.py",
        "runtime/models/base.py",
    ),
    "prompt": ("runtime/cli/args.py", "runtime/cli/prompt_args.py", "runtime/prompts.py", "runtime/tokenizer.py"),
    "video": ("runtime/media/video_reader.py", "runtime/media/video_sources.py", "runtime/media/image_files.py"),
    "checkpoint": ("export/checkpoints/common.py", "export/checkpoints/sam2.py", "export/checkpoints/refersam.py"),
    "tokenizer": ("runtime/tokenizer.py", "export/tokenizer.py"),
}
"""Files whose covered lines are counted, by target."""


RUN = ("runtime/engine.py", "runtime/models/samwise.py", "runtime/models/sam2.py")
"""Modules that are imported late: named here so that they are instrumented, too."""


def place(error: BaseException) -> str:
    """Where an input broke through: the innermost line of ours, and the kind of error; findings are told apart by
    it."""
    ours = str(ROOT / "runtime"), str(ROOT / "export")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(ours)]
    where = f" at {Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].name}" if frames else ""
    what = re.sub(r"/\S+|\d+", "_", str(error))[:40] if type(error).__name__ == "Broken" else ""
    return f"{type(error).__name__}{where} {what}".strip()


# -------------------------------------------------------------------------------------------- the process that fuzzes


def fuzz(name: str, seconds: float, folder: Path) -> None:
    """Fuzz one target in this process until `seconds` of processor time are used. Never returns."""
    import atheris

    with atheris.instrument_imports(include=["runtime", "export"]):
        chosen = target(name)
        chosen.seeds()
        for file in (*READERS[name], *RUN):
            importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    counts: Counter[str] = Counter()
    found: dict[str, str] = {}
    started = time.process_time()

    def one(data: bytes) -> None:
        try:
            counts[chosen(data)] += 1
        except BaseException as error:  # whatever it is, it is a finding, and the search goes on
            counts["found"] += 1
            key = place(error)
            if key not in found:
                found[key] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                (folder / f"found-{name}-{len(list(folder.glob('found-*'))):03d}").write_bytes(data)
        used = time.process_time() - started
        if used > seconds or sum(counts.values()) % 50 == 0:
            (folder / "counts.json").write_text(json.dumps({"counts": counts, "found": found, "cpu_seconds": used}))
        if used > seconds:
            sys.stderr.flush()
            os._exit(0)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        changed = mutated(data, random.Random(seed), chosen.words) if chosen.structured and seed % 4 else None
        return atheris.Mutate(data, most) if changed is None or len(changed) > most else changed

    atheris.Setup(
        [
            sys.argv[0],
            str(folder / "corpus"),
            f"-max_len={LONGEST}",
            f"-dict={_dictionary(folder, chosen.words)}",
            "-timeout=1200",
            "-rss_limit_mb=6000",
            "-detect_leaks=0",
            "-use_value_profile=0",
            f"-artifact_prefix={folder}/native-",
        ],
        one,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def _dictionary(folder: Path, words: tuple[bytes, ...]) -> Path:
    path = folder / "dictionary"
    escaped = ("".join(rf"\x{byte:02x}" for byte in word) for word in words if len(word) < 64)
    path.write_text("".join(f'"{word}"\n' for word in escaped))
    return path


def cover(name: str, folder: Path) -> None:
    """Read the whole corpus again under coverage.py, and write how many lines of the readers it reaches."""
    import coverage

    measured = coverage.Coverage(include=[str(ROOT / f) for f in READERS[name]], data_file=None)
    measured.start()
    chosen = target(name)
    for path in sorted((folder / "corpus").iterdir()):
        try:
            chosen(path.read_bytes())
        except BaseException:  # counted when it was found
            continue
    measured.stop()
    lines = {}
    for file in READERS[name]:
        if (ROOT / file).exists():
            _, statements, _, missing, _ = measured.analysis2(str(ROOT / file))
            lines[file] = [len(statements) - len(missing), len(statements)]
    (folder / "lines.json").write_text(json.dumps(lines))


# ------------------------------------------------------------------------------------------- the process that watches


def campaign(name: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Fuzz one target in processes of its own. Returns what happened."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    seeds = target(name).seeds()
    for i, seed in enumerate(seeds):
        (corpus / f"seed-{i:03d}").write_bytes(seed)
    total: Counter[str] = Counter()
    found: dict[str, str] = {}
    used, deaths = 0.0, 0
    while used < seconds and deaths < NATIVE_DEATHS:
        (folder / "counts.json").unlink(missing_ok=True)
        with (folder / "log").open("ab") as log:
            code = _child(log, "--child", name, "--seconds", str(seconds - used), "--keep", str(folder))
        try:
            part = json.loads((folder / "counts.json").read_text())
        except (OSError, ValueError):
            part = {"counts": {}, "found": {}, "cpu_seconds": 1.0}
        total.update(part["counts"])
        found |= part["found"]
        used += part["cpu_seconds"]
        if code:
            deaths += 1
            found[f"the process died ({code})"] = _last_line(folder / "log")
    with (folder / "log").open("ab") as log:
        _child(log, "--cover", name, "--keep", str(folder))
    lines = json.loads((folder / "lines.json").read_text()) if (folder / "lines.json").exists() else {}
    return {
        "executions": sum(total.values()),
        "taken": total["taken"],
        "refused": total["refused"],
        "cpu_seconds": round(used),
        "seeds": len(seeds),
        "corpus": len(list(corpus.iterdir())) - len(seeds),
        "lines_covered": lines,
        "found": dict(sorted(found.items())),
    }


def _child(log: Any, *arguments: str) -> int:
    command = [sys.executable, "-X", "faulthandler", __file__, *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False).returncode


def _last_line(log: Path) -> str:
    text = [line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line or "Error" in line]
    return (text or ["no word"])[-1][:300]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in (
        "atheris",
        "coverage",
        "hypothesis",
        "numpy",
        "av",
        "pillow",
        "tokenizers",
        "torch",
        "safetensors",
        "onnxruntime",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    p = argparse.ArgumentParser(prog="python tests/fuzz/run.py", description=__doc__.splitlines()[0])
    p.add_argument(
        "--target", action="append", choices=sorted(TARGETS), help="one of them; may be repeated (default: all)"
    )
    p.add_argument("--seconds", type=float, default=60, help="processor time per target (default: %(default)s)")
    p.add_argument("--keep", type=Path, help="folder for corpora, findings and logs, and to go on from (default: none)")
    p.add_argument("--out", type=Path, default=Path("benchmarks/results/fuzz.json"))
    p.add_argument("--child", choices=sorted(TARGETS), help=argparse.SUPPRESS)
    p.add_argument("--cover", choices=sorted(TARGETS), help=argparse.SUPPRESS)
    return p


def main() -> int:
    args = parser().parse_args()
    if args.child:
        fuzz(args.child, args.seconds, args.keep)
    if args.cover:
        cover(args.cover, args.keep)
        return 0
    keep = (args.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))).resolve()
    results = json.loads(args.out.read_text())["targets"] if args.out.exists() else {}
    try:
        for name in args.target or TARGETS:
            results[name] = result = campaign(name, args.seconds, keep / name)
            covered, all_lines = (sum(v[i] for v in result["lines_covered"].values()) for i in (0, 1))
            print(
                f"{name:11} {result['executions']:7d} inputs, {result['corpus']} that reached something new, "
                f"{covered} of {all_lines} lines, {len(result['found'])} findings",
                flush=True,
            )
            for key, text in result["found"].items():
                print(f"  {key}: {text}", flush=True)
            _write(args.out, results, args.seconds)
    finally:
        if args.keep is None:
            shutil.rmtree(keep, ignore_errors=True)
    return 1 if any(results[name]["found"] for name in args.target or TARGETS) else 0


def _write(path: Path, results: dict[str, Any], seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "command": f"python tests/fuzz/run.py --seconds {seconds:g}",
        "guided_by": "atheris (libFuzzer), branches of runtime/ and export/",
        "versions": _versions(),
        "targets": {name: results[name] for name in TARGETS if name in results},
    }
    path.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
