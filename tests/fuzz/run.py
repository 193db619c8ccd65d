"""Coverage-guided fuzzing of everything that reads untrusted input, with atheris (libFuzzer for Python).

    python tests/fuzz/run.py --seconds 120
    python tests/fuzz/run.py --target video --seconds 600 --keep out/fuzz

libFuzzer drives the Hypothesis strategies and invariants of `tests/fuzz/test_fuzz.py`, guided by the branches of
`runtime/` and `export/`. Each target runs in its own process until `--seconds` of processor time are used, or until
its first finding, whose input libFuzzer writes to `--keep` as `TARGET/crash-*`. Exit code 1 when anything was found.
Needs atheris: pip install 'samwise-runtime[fuzz]'.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the packages of the clone and of its tests, from any folder
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from fuzz import TARGETS

LIBRARIES = "atheris hypothesis numpy av pillow tokenizers torch safetensors onnxruntime".split()


def fuzz(name: str, seconds: float, folder: Path) -> None:
    """Fuzz one target in this process, and print the counts of outcomes as the last line. Does not return."""
    import atheris
    from hypothesis import given, settings

    counts: Counter[str] = Counter()
    with atheris.instrument_imports(include=["runtime", "export"]):
        from fuzz.targets import target

        chosen = target(name)
        for example in chosen.examples():
            chosen.check(example)  # imports what a reader imports late

    end = time.process_time() + seconds

    @settings(database=None, deadline=None)
    @given(chosen.inputs)
    def check(value: Any) -> None:
        counts[chosen.check(value)] += 1

    def fuzz_one(data: bytes) -> None:
        check.hypothesis.fuzz_one_input(data)
        if time.process_time() > end:
            print(json.dumps(counts), flush=True)
            os._exit(0)

    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    options = ("-max_len=8192", "-len_control=0", "-timeout=120", "-rss_limit_mb=6000", f"-artifact_prefix={folder}/")
    atheris.Setup([sys.argv[0], str(corpus), *options], fuzz_one)
    atheris.Fuzz()


def campaign(name: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Fuzz one target in a new process. Return its counts, and the end of its log if it found something."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["--child", name, "--seconds", str(seconds), "--keep", str(folder)]
    with (folder / "log").open("w+", errors="replace") as log:
        command = [sys.executable, "-X", "faulthandler", __file__, *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        log.seek(0)
        text = log.read()
    start = max(text.rfind("=== Uncaught Python exception"), 0) or -3000
    found = text[start:][:3000] if done.returncode else ""
    counts = {} if found else json.loads(done.stdout.splitlines()[-1])
    corpus = len(list((folder / "corpus").iterdir()))
    return {"executions": sum(counts.values()), **counts, "cpu_seconds": seconds, "corpus": corpus, "found": found}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/fuzz/run.py", description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="may be repeated (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="processor time per target (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="folder for corpora, findings and logs (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="write the counts to this JSON file")
    parser.add_argument("--child", choices=sorted(TARGETS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        fuzz(args.child, args.seconds, args.keep)
    keep = (args.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))).resolve()
    results = {}
    for name in args.target or TARGETS:
        results[name] = campaign(name, args.seconds, keep / name)
        print(f"{name}: {json.dumps(results[name] | {'found': bool(results[name]['found'])})}", flush=True)
        if results[name]["found"]:
            print(f"{results[name]['found']}\ninput: {keep / name}/crash-*", flush=True)
    if args.out:
        versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
        command = f"python tests/fuzz/run.py --seconds {args.seconds:g}"
        args.out.write_text(json.dumps({"command": command, "versions": versions, "targets": results}, indent=1) + "\n")
    return 1 if any(result["found"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
