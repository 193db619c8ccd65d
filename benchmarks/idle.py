"""How long the cores are idle while the command runs, and what it computes.

    python -m benchmarks.idle --engine engines/ --model nano --video clip.mp4 --text "the red car"

The arguments are those of `python -m runtime.run`. Counted is the time from its first frame to its last;
`taskset` and `chrt` choose the cores and keep others away. Linux only.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runtime.backends.ort import OrtStage
from runtime.cli import app
from runtime.cli.job import Job
from runtime.cli.overlay import Painter
from runtime.cli.video_writer import VideoWriter
from runtime.cli.writers import MaskWriter, ResultsWriter
from runtime.device.workers import num_cores
from runtime.imaging import frame_input
from runtime.imaging.upsample import MaskUpsampler
from runtime.models.samwise import transforms

DECODES = ("memory_attention", "mask_decoder", "conditional_memory", "memory_encoder", "prompt_")
"""Beginnings of the names of stages that decode masks and remember them; the others encode frames and texts."""

LIBRARIES = "threads of ONNX Runtime and x264"


class Phases:
    """Seconds of processor time by phase, without the phases inside it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._state, self._lock = threading.local(), threading.Lock()

    def timed(self, function: Callable[..., Any], phase: Callable[..., str]) -> Callable[..., Any]:
        """Return `function`, counted under the phase that `phase` makes of its first argument."""

        def call(*args: Any, **options: Any) -> Any:
            start, outer = time.thread_time(), getattr(self._state, "inner", 0.0)
            self._state.inner = 0.0
            try:
                return function(*args, **options)
            finally:
                spent, inner = time.thread_time() - start, self._state.inner
                self._state.inner = outer + spent
                with self._lock:
                    self.seconds[phase(args[0])] += spent - inner

        return call


def stage_phase(stage: OrtStage) -> str:
    return "decode and remember masks" if stage.spec.name.startswith(DECODES) else "encode"


@contextlib.contextmanager
def measured(phases: Phases) -> Iterator[None]:
    """Count the phases of the command meanwhile."""
    places: list[tuple[Any, str, Callable[..., str]]] = [
        (OrtStage, "run", stage_phase),
        (transforms, "preprocess", lambda _: "preprocess"),
        (frame_input, "preprocess", lambda _: "preprocess"),
        (MaskUpsampler, "masks", lambda _: "postprocess"),
        (ResultsWriter, "add", lambda _: "write results and masks"),
        (MaskWriter, "add", lambda _: "write results and masks"),
        (Painter, "__call__", lambda _: "draw the overlay"),
        (VideoWriter, "add", lambda _: "convert the overlay"),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, phase in places:
        setattr(owner, name, phases.timed(getattr(owner, name), phase))
    try:
        yield
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


def seconds_of_threads() -> dict[int, tuple[str, float]]:
    """Return name and processor time of every thread of this process."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            comm, spent = (task / "comm").read_text().strip(), (task / "schedstat").read_text().split()[0]
            found[int(task.name)] = names.get(int(task.name), comm), int(spent) / 1e9
    return found


def thread_phase(name: str) -> str | None:
    """Return the phase of a thread; None for those whose phases are counted."""
    if name.startswith(("frames of", "av:")):
        return "read the video"
    named = name.startswith(("MainThread", "writer", "encoder", "samwise-worker", "tqdm"))
    return None if named else LIBRARIES


def run(arguments: list[str]) -> dict[str, Any]:
    """Run the command; return its frames, seconds, share of time in which a core was idle, and seconds by phase."""
    phases, found = Phases(), dict[str, Any]()
    process = Job.run

    def job_run(job: Job, guard: Any) -> BaseException | None:
        known, cpu, start = seconds_of_threads(), time.process_time(), time.perf_counter()
        ending: dict[int, tuple[str, float]] = {}
        write = job._write

        def last_seen(*frame: Any) -> None:  # threads end with the video
            write(*frame)
            ending.update(seconds_of_threads())

        job._write = last_seen  # type: ignore[method-assign]
        with measured(phases):
            error = process(job, guard)
        seconds, spent = time.perf_counter() - start, time.process_time() - cpu
        idle = 1 - spent / num_cores() / seconds
        found.update(frames=job.stats.frames, seconds=seconds, cpu=spent, idle=idle)
        for thread, (name, total) in {**ending, **seconds_of_threads()}.items():
            if phase := thread_phase(name):
                phases.seconds[phase] += total - known.get(thread, (name, 0.0))[1]
        return error

    Job.run = job_run  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            code = app.main(arguments)
    finally:
        Job.run = process  # type: ignore[method-assign]
    if code:
        raise SystemExit(code)
    phases.seconds["rest"] = found["cpu"] - sum(phases.seconds.values())
    return {**found, "phases": dict(phases.seconds)}


def main() -> None:
    found = run(sys.argv[1:])
    per_frame = 1000 / found["frames"]
    print(f"{found['frames']} frames, ms a frame: {per_frame * found['seconds']:.1f}, of the processor ", end="")
    print(f"{per_frame * found['cpu']:.1f}, idle {found['idle']:.1%} of all cores")
    for phase, seconds in sorted(found["phases"].items(), key=lambda item: -item[1]):
        print(f"  {per_frame * seconds:6.2f}  {phase}")


if __name__ == "__main__":
    main()
