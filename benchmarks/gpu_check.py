"""Check and benchmark of everything on a GPU: `python -m benchmarks.gpu_check [--budget 600] [--only NAMES]`.

Each section is a process of its own with its own time limit, because an error of CUDA, an abort in a library or a hang
ends a process. The order is that of value: what is right comes before what is fast, and sweeps are last. One JSON file
is rewritten after each section.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .gpu_monitor import Monitor
from .gpu_run import Context
from .gpu_sections import SECTIONS, Section
from .gpu_table import table, verdicts

GRACE = 2.0
"""Seconds between the end of a section's time and its kill, and those kept for the report."""
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Options:
    """What the command was given. `resume`: keep the sections of `out`; `machine`, `sizes`: see `gpu_run.Context`."""

    out: Path | None = None
    resume: bool = False
    budget: float = 600.0
    engines: Path = Path("engines")
    carried: Path | None = None
    machine: str = "benchmarks.gpu_machine:CudaMachine"
    sizes: Mapping[str, Any] = field(default_factory=dict)


Launch = Callable[[Context, Path], int | None]
"""Runs a section; returns the exit code of its process, None if it was killed at the end of its time."""


def launch(context: Context, folder: Path) -> int | None:
    """Run a section in a process of its own, with its output in `folder`."""
    file, log = folder / "context.json", folder / "output.txt"
    context.dump(file)
    # not `-m`, which would load the module a second time under another name
    command = [sys.executable, "-c", "import sys; from benchmarks.gpu_run import main; sys.exit(main())", str(file)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with log.open("w") as output:
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # with it die the compilers that it started
        )
        try:
            return child.wait(context.seconds + GRACE)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


class Check:
    """Runs sections in order and keeps the report."""

    def __init__(
        self,
        options: Options,
        work: Path,
        launch: Launch = launch,
        monitor: Monitor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options, self._work, self._launch, self._clock = options, work, launch, clock
        self._monitor = monitor or Monitor()
        self._begin = clock()
        self.report: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"),
            "budget_seconds": options.budget,
            "sections": self._earlier(),
        }

    def _earlier(self) -> dict[str, Any]:
        """Return the sections of an earlier run, for what a machine is given piece by piece."""
        if not self._options.resume or self._options.out is None or not self._options.out.exists():
            return {}
        found: dict[str, Any] = json.loads(self._options.out.read_text())["sections"]
        return found

    def run(self, sections: Sequence[Section]) -> dict[str, Any]:
        """Run the sections that there is time for; returns the report, which is written after each."""
        for section in sections:
            begin = self._clock()
            entry = self._run(section)
            entry["seconds"] = round(self._clock() - begin, 1)
            entry["clocks"] = self._monitor.summary(begin, self._clock())
            self.report["sections"].pop(section.name, None)  # the order is that of the runs
            self.report["sections"][section.name] = entry
            print(f"{section.name}: {entry['status']} in {entry['seconds']} s {entry.get('reason', '')}", flush=True)
            self._write()
            if section.required and entry["status"] != "done":
                break
        self.report["verdicts"] = verdicts(self._results())
        self.report["seconds"] = round(self._clock() - self._begin, 1)
        self._write()
        return self.report

    def _results(self) -> dict[str, Any]:
        return {name: entry.get("result", {}) for name, entry in self.report["sections"].items()}

    def _run(self, section: Section) -> dict[str, Any]:
        left = self._options.budget - (self._clock() - self._begin) - 2 * GRACE
        if left < section.least:
            reason = f"{max(left, 0):.0f} s of the budget are left, and it takes {section.least:g} at least"
            return {"status": "skipped", "reason": reason}
        missing = [name for name in section.after if self._status(name) not in ("done", "shortened")]
        if missing:
            return {"status": "skipped", "reason": f"needs {', '.join(missing)}, which did not succeed"}
        folder = self._work / section.name
        folder.mkdir()
        context = Context(
            section=section.function,
            result=str(folder / "result.json"),
            seconds=min(section.limit, left),
            work=str(self._work),
            engines=str(self._options.engines),
            carried=str(self._options.carried or ""),
            machine=self._options.machine,
            sizes=self._options.sizes,
            so_far=self._results(),
        )
        code = self._launch(context, folder)
        return outcome(context, code, folder)

    def _status(self, name: str) -> str:
        # a section that --only leaves out may have run before, into the same folder
        return self.report["sections"].get(name, {"status": "done"})["status"]

    def _write(self) -> None:
        if path := self._options.out:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_text(json.dumps(self.report, indent=1) + "\n")
            os.replace(part, path)


def outcome(context: Context, code: int | None, folder: Path) -> dict[str, Any]:
    """Return the entry of a section that has ended: what it stored, and how its process ended."""
    try:
        found = json.loads(Path(context.result).read_text())
    except (OSError, ValueError):
        found = {"results": {}}
    entry: dict[str, Any] = {"result": found["results"]}
    if code is None:
        return {"status": "killed", "reason": f"at its limit of {context.seconds:.0f} s", **entry}
    if "skipped" in found:
        return {"status": "skipped", "reason": found["skipped"], **entry}
    if found.get("done") and code == 0:
        status = "shortened" if "left_out" in found["results"] else "done"
        return {"status": status, **entry}
    reason = found.get("error") or (f"signal {-code}" if code < 0 else f"exit code {code}")
    return {"status": "failed", "reason": reason, "where": found.get("where") or tail(folder / "output.txt"), **entry}


def tail(path: Path, lines: int = 12) -> list[str]:
    """Return the last lines of a log."""
    try:
        return [line[:300] for line in path.read_text(errors="replace").splitlines()[-lines:]]
    except OSError:
        return []


def exit_code(report: Mapping[str, Any], sections: Sequence[Section]) -> int:
    """Return 2 without a device, 1 where a section failed or the runtime itself did not run, else 0."""
    entries = report["sections"]
    if any(s.required and entries.get(s.name, {}).get("status") != "done" for s in sections):
        return 2
    failed = [name for name, entry in entries.items() if entry["status"] in ("failed", "killed")]
    did_not_run = [s.name for s in sections if s.runtime and entries.get(s.name, {}).get("status") == "skipped"]
    return 1 if failed or did_not_run else 0


def chosen(names: str | None, sections: Sequence[Section] = SECTIONS) -> list[Section]:
    """Return the sections that `--only` names, or whose group it names, with those that they need, in order."""
    if names is None:
        return list(sections)
    wanted = {name.strip() for name in names.split(",")}
    known = {s.name for s in sections} | {s.group for s in sections}
    if unknown := sorted(wanted - known):
        raise SystemExit(f"error: no section {', '.join(unknown)}; there are {', '.join(s.name for s in sections)}")
    found = {s.name for s in sections if s.required or wanted & {s.name, s.group}}
    for section in reversed(sections):
        if section.name in found:
            found |= set(section.after)
    return [s for s in sections if s.name in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    add, usual = parser.add_argument, Options()
    add("--budget", type=float, default=usual.budget, metavar="SECONDS", help="for all sections (default: %(default)g)")
    add("--only", metavar="NAMES", help="sections or groups, with commas: " + ", ".join(s.name for s in SECTIONS))
    add("--out", type=Path, default=Path("gpu_check.json"), help="result file (default: %(default)s)")
    add("--resume", action="store_true", help="keep the other sections that --out has from an earlier run")
    add("--engines", type=Path, default=usual.engines, help="folder of bundles (default: %(default)s)")
    add("--carried", type=Path, help="folder that benchmarks.gpu_carry has unpacked")
    add("--machine", default=usual.machine, help=argparse.SUPPRESS)  # a fake one, to try all without a GPU
    add("--sizes", type=Path, help=argparse.SUPPRESS)  # changed sizes, as JSON
    given = parser.parse_args(arguments)
    sections = chosen(given.only)
    sizes = json.loads(given.sizes.read_text()) if given.sizes else {}
    options = Options(given.out, given.resume, given.budget, given.engines, given.carried, given.machine, sizes)
    with tempfile.TemporaryDirectory() as work, Monitor() as monitor:
        report = Check(options, Path(work), monitor=monitor).run(sections)
    print(table(report))
    return exit_code(report, sections)


if __name__ == "__main__":
    raise SystemExit(main())
