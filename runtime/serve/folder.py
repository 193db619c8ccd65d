"""Command for many videos: `python -m runtime.serve.folder VIDEOS --text "the dog" --out OUT`.

With `--workers` or `--address`, the videos are divided among processes of Ray, one per GPU or per two CPU cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..cli import args as options
from ..cli.app import report_errors
from ..cli.folder import Answers, Worker, build_parser, segment_videos
from ..cli.signals import SignalGuard
from ..cli.videos import Video
from ..engine import Engine
from ..engine import load as load_engine
from ..errors import InternalError, UserError, summarize

MAX_ENDS = 3
"""Processes that end while they work on a video, before the video counts as failed."""


def main(argv: Sequence[str] | None = None, load: Callable[..., Engine] = load_engine) -> int:
    """Run the command and return its exit code. Tests replace `load`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return report_errors(lambda: _main(argv, load), "--debug" in argv)


def _main(argv: Sequence[str], load: Callable[..., Engine]) -> int:
    parser = build_parser("python -m runtime.serve.folder")
    group = parser.add_argument_group("several processes (with Ray)")
    workers = "number of processes (default: one per GPU, or per two CPU cores)"
    group.add_argument("--workers", type=options.positive, metavar="N", help=workers)
    group.add_argument("--address", help="Ray cluster: ray://HOST:10001, or auto for one that runs on this machine")
    args = parser.parse_args(argv)

    def process(videos: Sequence[Video]) -> Answers:
        if videos and (args.workers or args.address):
            return _on_ray(args, videos)
        worker = Worker(args, load)
        return ((video, worker.segment(video)) for video in videos)

    return segment_videos(args, process)


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
