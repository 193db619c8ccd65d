"""One section of `benchmarks.gpu_check` in a process of its own, which calls `main` with the file of a `Context`.

A section is a function of a `Run`. What it stores is on disk at once, so that a section that is killed, or whose
process aborts, loses only what it was measuring then.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Context:
    """What the parent tells a section.

    section  function, as MODULE:NAME
    result   file that results are written to
    seconds  time until the section is killed
    engines  folder of bundles
    carried  folder that `benchmarks.gpu_carry` has unpacked
    work     folder that all sections share
    machine  class that makes devices, as MODULE:NAME
    sizes    changed sizes of `gpu_sizes.Sizes`, for tests
    so_far   results of the sections before
    """

    section: str
    result: str
    seconds: float
    work: str
    engines: str = "engines"
    carried: str = ""
    machine: str = "benchmarks.gpu_machine:CudaMachine"
    sizes: Mapping[str, Any] = field(default_factory=dict)
    so_far: Mapping[str, Any] = field(default_factory=dict)

    def dump(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


OPTIONAL = ("torch", "triton")
"""Libraries without which a section is skipped: what compares with PyTorch, or is launched by Triton."""


class Skipped(Exception):
    """A section cannot run here; the message is the reason."""


class Run:
    """Context of a section, its device, and its results."""

    def __init__(self, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        self.context, self.results = context, dict[str, Any]()
        self._clock, self._end = clock, clock() + context.seconds
        self.machine = load(context.machine)()
        self.work, self.engines = Path(context.work), Path(context.engines)

    def put(self, name: str, value: Any) -> Any:
        """Store a result, as JSON values, and write the file; returns it."""
        self.results[name] = value
        self._write()
        return value

    def so_far(self, section: str) -> Mapping[str, Any]:
        """Return the results of an earlier section; empty if it has none."""
        return self.context.so_far.get(section, {})

    def left(self) -> float:
        """Return the seconds until the section is killed."""
        return self._end - self._clock()

    def has_time(self, seconds: float, what: str) -> bool:
        """Tell whether there is time for something; what is left out is stored."""
        if self.left() >= seconds:
            return True
        self.put("left_out", [*self.results.get("left_out", []), what])
        return False

    def finish(self, error: BaseException | None) -> None:
        """Write the results with the end of the section."""
        if isinstance(error, Skipped):
            self._write(skipped=str(error))
        elif error is not None:
            where = "".join(traceback.format_exception(error)).splitlines()[-8:]
            self._write(error=f"{type(error).__name__}: {str(error)[:500]}", where=where)
        else:
            self._write(done=True)

    def _write(self, **end: Any) -> None:
        path = Path(self.context.result)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"results": self.results, **end}, default=lambda value: value.tolist()))
        os.replace(part, path)


def load(name: str) -> Any:
    """Return what MODULE:NAME names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def execute(context: Context) -> bool:
    """Run a section and write its results; returns whether it succeeded."""
    run = Run(context)
    run.put("process", os.getpid())
    try:
        load(context.section)(run)
    except Exception as error:
        if isinstance(error, ImportError) and error.name in OPTIONAL:
            error = Skipped(f"needs {error.name}: {error}")
        run.finish(error)
        traceback.print_exc()
        return isinstance(error, Skipped)
    run.finish(None)
    return True


def main() -> int:
    """Run the section that the file in `sys.argv` describes; return the exit code."""
    return 0 if execute(Context(**json.loads(Path(sys.argv[1]).read_text()))) else 1
