"""Command for many videos: `python -m runtime.serve.folder VIDEOS --text "the dog" --out OUT`.

Every video gets a folder in --out with the files of `python -m runtime.run`. Those that are done are left out, so that
the command, run again, continues. A video that fails is named at the end; the others are processed. With `--workers` or
`--address`, the videos are divided among processes of Ray, one per GPU or per two CPU cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cli import args as options
from ..cli.app import as_runtime_error, check_out, report_errors, run
from ..cli.signals import SignalGuard
from ..cli.videos import Video, plan
from ..cli.write_errors import report_write_errors
from ..engine import Engine
from ..engine import load as load_engine
from ..errors import InternalError, PromptError, SamwiseRuntimeError, UserError, VideoError, summarize

MAX_ENDS = 3
"""Processes that end while they work on a video, before the video counts as failed."""

Answer = int | SamwiseRuntimeError
"""Number of frames of a video, or its error."""
Answers = Generator[tuple[Video, Answer], None, None]


def main(argv: Sequence[str] | None = None, load: Callable[..., Engine] = load_engine) -> int:
    """Run the command and return its exit code. Tests replace `load`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return report_errors(lambda: _main(_build_parser().parse_args(argv), load), "--debug" in argv)


def _build_parser() -> options.Parser:
    parser = options.Parser(
        prog="python -m runtime.serve.folder",
        usage="%(prog)s VIDEOS (--text SENTENCE | --concept WORDS) ... [--out FOLDER] [options]",
        description="Segment the same prompts in many videos. Run again, it continues with those that are missing.",
        allow_abbrev=False,
    )
    parser.set_defaults(prompt_args=[], auto=False, list=False, sentences=None)
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
    group = parser.add_argument_group("several processes (with Ray)")
    workers = "number of processes (default: one per GPU, or per two CPU cores)"
    group.add_argument("--workers", type=options.positive, metavar="N", help=workers)
    group.add_argument("--address", help="Ray cluster: ray://HOST:10001, or auto for one that runs on this machine")
    return parser


def _main(args: argparse.Namespace, load: Callable[..., Engine]) -> int:
    from tqdm import tqdm

    if not options.parse_prompts(args.prompt_args) or "--exemplar" in dict(args.prompt_args):
        raise PromptError("give prompts that fit every video, --text or --concept; others go with one video")
    check_out(args.out)
    videos, num_done = plan(args)
    with report_write_errors(Path(args.out)):
        Path(args.out).mkdir(parents=True, exist_ok=True)
    on_ray = bool(videos and (args.workers or args.address))
    work = _on_ray(args, videos) if on_ray else _in_process(args, videos, load)
    start, answers, is_terminal = time.perf_counter(), dict[Video, Answer](), sys.stderr.isatty()
    try:
        with contextlib.closing(work), tqdm(total=len(videos), unit=" videos", disable=not is_terminal) as bar:
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


def _in_process(args: argparse.Namespace, videos: Sequence[Video], load: Callable[..., Engine]) -> Answers:
    worker = Worker(args, load)
    for video in videos:
        yield video, worker.segment(video)


def _on_ray(args: argparse.Namespace, videos: Sequence[Video]) -> Answers:
    """Divide the videos among actors. One that ends is replaced, and its video done again."""
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there what happens to its processes
        ray = _connect(args.address)
        with SignalGuard() as guard:  # instead of Ray's, which aborts
            try:
                yield from _divide_work(ray, args, videos)
            except KeyboardInterrupt:
                sys.exit(128 + guard.signal)
            finally:
                ray.shutdown()


def _divide_work(ray: Any, args: argparse.Namespace, videos: Sequence[Video]) -> Answers:
    waiting, ends, busy = deque(videos), Counter[Video | None](), dict[Any, tuple[Any, Video | None]]()
    missing, shares = _divide(args, ray.cluster_resources(), len(videos))
    actor_class = ray.remote(Worker).options(**shares)
    while waiting or any(video for _, video in busy.values()):
        while missing:
            actor, missing = actor_class.remote(args, load_engine, os.getcwd()), missing - 1
            busy[actor.start.remote()] = actor, None
        (done,), _ = ray.wait(list(busy))
        actor, video = busy.pop(done)
        try:
            answer = ray.get(done)
        except ray.exceptions.RayError as error:
            missing, cause = missing + 1, summarize(error)
            ray.kill(actor)
            ends[video] += 1
            if ends[video] < MAX_ENDS:
                waiting.extend([video] if video else [])
            elif video is None:
                raise InternalError(f"processes of Ray do not start ({cause})") from None
            else:
                yield video, InternalError(f"its process ended {MAX_ENDS} times ({cause})")
            continue
        ends[None] = 0
        if video is not None:
            yield video, answer
        if waiting:
            video = waiting.popleft()
            busy[actor.segment.remote(video)] = actor, video


def _connect(address: str | None) -> Any:
    """Return the module `ray`, connected to a cluster, or to processes of its own. Raises UserError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("--workers and --address need Ray: pip install ray; without them one process works") from None
    address = address or os.environ.get("RAY_ADDRESS", "local")
    own = {"include_dashboard": False, "object_store_memory": 200 << 20} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **own)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers ({summarize(error)}); is RAY_AUTH_MODE as there?"
        ) from None
    return ray


def _divide(args: argparse.Namespace, resources: Mapping[str, float], most: int) -> tuple[int, dict[str, float]]:
    """Return the number of processes, and what each takes of the cluster."""
    gpus, cpus = resources.get("GPU", 0), resources.get("CPU", 1)
    count = min(args.workers or int(gpus) or max(1, int(cpus // 2)), most)
    if gpus:
        return count, {"num_gpus": min(1, int(1000 * gpus / count) / 1000)}
    cores = min(2, cpus // count) or int(1000 * cpus / count) / 1000
    args.threads = args.threads or max(1, int(cores))
    return count, {"num_cpus": cores}


if __name__ == "__main__":
    sys.exit(main())
