"""Command that processes many videos, one after the other or divided among processes by its caller.

Every video gets a folder in --out with the files of `python -m runtime.run`. Those that are done are left out, so that
the command, run again, continues. A video that fails is named at the end; the others are processed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engine import Engine
from ..errors import InternalError, PromptError, SamwiseRuntimeError, UserError, VideoError
from . import args as options
from .app import as_runtime_error, check_out, run
from .videos import Video, plan
from .write_errors import report_write_errors

Answer = int | SamwiseRuntimeError
"""Number of frames of a video, or its error."""
Answers = Generator[tuple[Video, Answer], None, None]


def build_parser(prog: str) -> options.Parser:
    """Return the parser of the command."""
    parser = options.Parser(
        prog=prog,
        usage="%(prog)s VIDEOS (--text SENTENCE | --concept WORDS) ... [--out FOLDER] [options]",
        description="Segment the same prompts in many videos. Run again, it continues with those that are missing.",
        allow_abbrev=False,
    )
    parser.set_defaults(prompt_args=[], auto=False, list=False, sentences=None)
    parser.set_defaults(drop=None, retries=0, events=None, show=False)  # options of one source, which may be live
    videos = "a folder of videos or of folders of frames, files, or a pattern like 'videos/**/*.mp4'"
    parser.add_argument("videos", nargs="+", metavar="VIDEOS", help=videos)
    parser.add_argument("--redo", action="store_true", help="replace results of other prompts, options or bundles")
    for add in (
        options.add_texts,
        options.add_concepts,
        options.add_reading,
        options.add_output,
        options.add_execution,
    ):
        add(parser)
    return parser


def segment_videos(args: argparse.Namespace, process: Callable[[Sequence[Video]], Answers]) -> int:
    """Process the videos that are not done, and return the exit code; `process` yields the answer of each."""
    from tqdm import tqdm

    if not options.parse_prompts(args.prompt_args) or "--exemplar" in dict(args.prompt_args):
        raise PromptError("give prompts that fit every video, --text or --concept; others go with one video")
    check_out(args.out)
    videos, num_done = plan(args)
    with report_write_errors(Path(args.out)):
        Path(args.out).mkdir(parents=True, exist_ok=True)
    start, answers, is_terminal = time.perf_counter(), dict[Video, Answer](), sys.stderr.isatty()
    try:
        with (
            contextlib.closing(process(videos)) as work,
            tqdm(total=len(videos), unit=" videos", disable=not is_terminal) as bar,
        ):
            for video, answer in work:
                if isinstance(answer, UserError) and not _is_of(video, answer):  # the other videos would have it, too
                    raise answer
                answers[video] = answer
                if isinstance(answer, int) and not args.json:
                    bar.write(f"{video.path.name}: {answer} frame{'s' * (answer != 1)}", file=sys.stderr)
                bar.update()
    finally:
        if answers or not videos:
            _print_totals(args, answers, num_done, time.perf_counter() - start)
    failed = {video: error for video, error in answers.items() if isinstance(error, SamwiseRuntimeError)}
    if failed:
        kind = UserError if all(isinstance(error, UserError) for error in failed.values()) else InternalError
        raise kind(f"{len(failed)} of {len(videos)} videos failed; see above, and run again when they are mended")
    return 0


def _is_of(video: Video, error: UserError) -> bool:
    """Tell whether an error is one of this video or its folder of results."""
    return isinstance(error, VideoError) or str(video.out) in str(error)


def _print_totals(args: argparse.Namespace, answers: Mapping[Video, Answer], before: int, seconds: float) -> None:
    failed = {str(v.path): str(error) for v, error in answers.items() if isinstance(error, SamwiseRuntimeError)}
    done = len(answers) - len(failed)
    for path, error in failed.items():
        print(f"{path}: failed: {error.removeprefix(f'{path}: ')}", file=sys.stderr)
    if args.json:
        totals = {"videos": done, "before": before, "seconds": round(seconds, 3), "out": str(args.out)}
        print(json.dumps({**totals, "failed": failed}))
    else:
        print(f"{done} videos in {seconds:.1f} s, {before} done before; written: {args.out}")


class Worker:
    """Processes videos one after the other, on an engine that is loaded with the first one."""

    def __init__(self, args: argparse.Namespace, load: Callable[..., Engine], folder: str = os.curdir) -> None:
        self._args, self._load = args, load
        self._engine: Engine | None = None
        with contextlib.suppress(OSError):  # the folder of the command; paths in the options are relative to it
            os.chdir(folder)

    def start(self) -> None:
        """Show that the process has started."""

    def segment(self, video: Video) -> Answer:
        """Write the results of a video. Raises SystemExit after a signal."""
        given = {"video": str(video.path), "out": str(video.out), "json": True}
        args, text = argparse.Namespace(**{**vars(self._args), **given}), io.StringIO()
        try:
            with contextlib.redirect_stdout(text):
                code = run(args, self._open, {"request": video.request})
        except Exception as error:
            return as_runtime_error(error)
        if code:
            sys.exit(code)
        return int(json.loads(text.getvalue())["done"])

    def _open(self, *args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[Engine]:
        """Return the engine, which stays open, with timings from 0."""
        self._engine = self._engine or self._load(*args, **kwargs)
        for stage in self._engine.stages.values():
            stage.calls, stage.seconds = 0, 0.0
        return contextlib.nullcontext(self._engine)
