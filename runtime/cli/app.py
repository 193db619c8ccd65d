"""The command: `python -m runtime.run --video clip.mp4 --text "the horse jumping" --out out/`.

From the command line to files on disk, one frame at a time. Errors become one line and an exit code: 2 for what the
caller can mend, 1 for the rest, 130 for Ctrl-C (128 + the signal's number in general). Whatever ends the run, the
frames that were done are on disk and `results.json` says that it is not complete.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.demo import Demo, Quality
from ..engine import load as load_engine
from ..errors import SamwiseRuntimeError, UserError, VideoError
from ..media.video_reader import VideoReader, open_video
from ..results import Result
from . import batch
from .args import parser, prompts_of
from .prompt_args import Pointed
from .signals import Interrupt
from .summary import Progress, listing, summary
from .tasks import Task, everything, pointed_at, refuse, sentences
from .writer_thread import Background
from .writers import Outputs


def main(argv: Sequence[str] | None = None, load: Any = load_engine) -> int:
    """Run the command and return its exit code. `load` replaces `runtime.load` (for tests)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    if hasattr(sys.stdout, "reconfigure"):  # a prompt may hold letters that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _main(argv, load)
    except UserError as error:
        return _fail(error, 2, debug)
    except SamwiseRuntimeError as error:
        return _fail(error, 1, debug)
    except BrokenPipeError:  # whoever read our output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except MemoryError:
        return _fail("out of memory; use fewer prompts, smaller frames or a smaller network", 1, debug)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return _fail(f"internal fault ({text}); run again with --debug and report it", 1, debug)


def _main(argv: list[str], load: Any) -> int:
    prog = "samwise-runtime" if Path(sys.argv[0]).name == "samwise-runtime" else "python -m runtime.run"
    args = parser(prog).parse_args(argv)
    if args.list:
        return listing(Path(args.engine), args.json)
    if args.auto and args.asked:
        raise UserError("--auto looks for everything; leave the prompts away")
    if args.sentences is not None:
        return batch.run(args, load)
    prompts = prompts_of(args.asked)
    if args.video is not None and not args.asked and not args.auto:
        raise UserError('say what to look for: --text "the horse jumping" (--help shows all options)')
    with contextlib.ExitStack() as stack:
        video = None
        if args.video is not None:
            video = stack.enter_context(open_video(args.video, args.stride, args.max_frames))
        engine = stack.enter_context(
            load(args.engine, model=args.model, backend=args.backend, threads=args.threads, kernels=args.kernels)
        )
        quality = None
        if video is None:
            demo = _demo(engine)
            video = stack.enter_context(open_video(demo.clip, args.stride, args.max_frames))
            if not args.asked and not args.auto:
                prompts, quality = demo.prompts, Quality(demo, args.stride)
        task = _task(args, engine, video, prompts)
        with task.session:
            return _run(args, engine, video, task, quality)


def _task(args: Any, engine: Any, video: VideoReader, prompts: Any) -> Task:
    options = {"conditional_memory": {"on": True, "off": False, None: None}[args.conditional_memory]}
    if args.window is not None:
        options["window"] = args.window
    if not args.auto and not isinstance(prompts, Pointed):
        return sentences(engine, prompts, **options)
    refuse(options, "--auto or clicks, which know no sentence")
    return everything(engine, video) if args.auto else pointed_at(engine, prompts, video)


def _demo(engine: Any) -> Demo:
    manifest = engine.bundle.manifest
    if manifest.demo is None:
        raise UserError(f'the bundle {engine.bundle.name} has no demonstration clip; give --video FILE --text "..."')
    return Demo.load(engine.bundle.folder / manifest.demo)


def _run(args: Any, engine: Any, video: VideoReader, task: Task, quality: Quality | None) -> int:
    """Everything between open sources and finished files. Returns the exit code of a run that came to its end."""
    with Interrupt() as interrupt:
        header = _header(engine, video, task.labels)
        outputs = Outputs(
            args.out,
            video.size,
            video.fps,
            task.labels,
            header,
            args.overlay,
            args.masks,
            still=video.count == 1,
            small_on_top=task.small_on_top,
        )
        job = Job(task, video, outputs, quality)
        with outputs:
            fault = job.run(interrupt)
            with interrupt.held():
                report = summary(job, engine, task.labels, complete=fault is None, quality=quality)
                try:
                    report["files"] = [str(path) for path in outputs.close(report)]
                except SamwiseRuntimeError as error:
                    fault = fault or error
        if job.done or fault is None:
            report.show(args.json)
        if isinstance(fault, KeyboardInterrupt):
            print(f"stopped after {job.done} frames; what was finished is in {args.out}", file=sys.stderr)
            return 128 + (interrupt.signal or 2)
        if fault is not None:
            raise fault
        return 0


def _header(engine: Any, video: VideoReader, labels: dict[int, str]) -> dict[str, Any]:
    manifest = engine.bundle.manifest
    objects = [{"id": identity, "prompt": label} for identity, label in labels.items()]
    return {
        "video": {
            "name": video.name,
            "width": video.size[1],
            "height": video.size[0],
            "fps": round(video.fps, 3),
            "stride": video.stride,
        },
        "model": {
            "bundle": engine.bundle.name,
            "network": manifest.network_names,
            "variant": manifest.variant,
            "precision": manifest.precision,
            "backend": engine.backend.name,
        },
        "objects": objects,
    }


class Job:
    """One video on its way through a session into files, with what is worth telling about it."""

    def __init__(self, task: Task, video: VideoReader, outputs: Outputs, quality: Quality | None) -> None:
        self.video, self.done = video, 0
        self.sums: dict[int, np.ndarray] = {}
        """By object id: frames on which it was followed, frames on which it has a mask, sum of its scores."""
        self.seconds = self.reading = self.writing = 0.0
        self._task, self._outputs, self._quality = task, outputs, quality
        self._waiting: deque[np.ndarray] = deque()
        self._fault: BaseException | None = None

    def run(self, interrupt: Interrupt) -> BaseException | None:
        """Everything, as far as it goes. Returns what ended it early: a fault, a damaged video, Ctrl-C; or None."""
        start = time.perf_counter()
        background = Background(self._write)
        try:
            with Progress(self.video) as progress:
                for result in self._task.stream(self._feed()):
                    background.put(self._waiting.popleft(), result)
                    progress.step()
        except (Exception, KeyboardInterrupt) as error:  # first what was computed is brought home
            self._fault = self._fault or error
        try:
            with interrupt.held():
                background.close()
        except (Exception, KeyboardInterrupt) as error:
            self._fault = self._fault or error
        self.seconds, self.writing = time.perf_counter() - start, background.seconds
        return self._fault

    def _feed(self) -> Iterator[np.ndarray]:
        """VideoReader for the session. They end where the video breaks off; what waits in the session is still computed."""
        while True:
            start = time.perf_counter()
            try:
                frame = next(self.video, None)
            except VideoError as error:
                self._fault, frame = error, None
            self.reading += time.perf_counter() - start
            if frame is None:
                return
            self._waiting.append(frame)
            yield frame

    def _write(self, frame: np.ndarray, result: Result) -> None:
        """One frame into the files, then into the sums; runs in the background, so nothing interrupts it half-way."""
        self._outputs.add(self.video.frame_name(result.frame_index), frame, result)
        self.done += 1
        for identity, mask, score in zip(result.object_ids, result.masks, result.scores):
            self.sums[identity] = self.sums.get(identity, np.zeros(3)) + np.array((1, mask.any(), score))
        if self._quality is not None:
            self._quality.add(result)


def _fail(message: object, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
