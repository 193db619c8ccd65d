"""The command `python -m runtime.run`, from its arguments to the files on disk.

Errors become one line and an exit code: 2 for an error that the caller can correct, 1 for any other, 128 + the signal's
number after a signal. However a run ends, the frames finished before are on disk, and `results.json` says whether the
run is complete.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..bundle.demo import Demo, Quality
from ..engine import Engine
from ..engine import load as load_engine
from ..errors import (
    InternalError,
    PromptError,
    SamwiseRuntimeError,
    UserError,
    VideoError,
    fail,
    hide_secrets,
    summarize,
)
from ..media.video_reader import VideoReader, open_video
from ..media.video_sources import VideoSource, is_address
from ..models.options import ConceptOptions, TextOptions
from ..prompts import Text
from . import batch
from .args import build_parser, choose_max_objects, parse_prompts
from .concept_args import ConceptSet
from .concept_task import concept_task
from .job import Job
from .live_output import open_window, print_event
from .output_folder import OutputFolder, identities
from .overlay import ObjectColours
from .prompt_args import PromptSet
from .signals import SignalGuard
from .source_file import SourceFile
from .summary import RunStats, describe_run, list_bundles, print_summary, summarize_run
from .tasks import Task, automatic_task, prompt_task, reject_options, text_task
from .writers import OutputOptions, Outputs, check_ids

Prompts = list[Text] | PromptSet | ConceptSet
"""Prompts of a run, all of one kind."""


def main(argv: Sequence[str] | None = None, load: Callable[..., Engine] = load_engine) -> int:
    """Run the command and return its exit code. Tests replace `load`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return report_errors(lambda: run(_parse(argv), load), "--debug" in argv)


def report_errors(command: Callable[[], int], debug: bool) -> int:
    """Return the exit code of a command; an error becomes one line on standard error and its code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a prompt may have characters that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return command()
    except BrokenPipeError:  # the process that reads our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        return fail(as_runtime_error(error), debug)


def as_runtime_error(error: Exception) -> SamwiseRuntimeError:
    """Return the error of this package that tells a user about any other."""
    if isinstance(error, SamwiseRuntimeError):
        return error
    if isinstance(error, MemoryError):
        return InternalError("out of memory; use fewer prompts, smaller frames or a smaller network")
    cause = summarize(f"{type(error).__name__}: {error}", 300)
    return InternalError(f"internal error ({cause}); run again with --debug and report it")


def _parse(argv: list[str]) -> argparse.Namespace:
    prog = "samwise-runtime" if Path(sys.argv[0]).name == "samwise-runtime" else "python -m runtime.run"
    return build_parser(prog).parse_args(argv)


def run(
    args: argparse.Namespace,
    load: Callable[..., contextlib.AbstractContextManager[Engine]],
    about: Mapping[str, Any] = {},
) -> int:
    """Run the command with the options of `build_parser` and return its exit code. Raises the error of the run.

    load   opens the engine
    about  further entries for the header of results.json
    """
    check_out(args.out)
    if args.list:
        return list_bundles(Path(args.engine), args.json)
    if args.auto and args.prompt_args:
        raise UserError("--auto segments everything; remove the prompts")
    names = ("model", "backend", "threads", "kernels", "graphs", "warm")
    load = functools.partial(load, args.engine, **{name: getattr(args, name) for name in names})
    if args.sentences is not None:
        return batch.run(args, load)
    prompts = parse_prompts(args.prompt_args)
    known = [] if isinstance(prompts, ConceptSet) else prompts.labels if isinstance(prompts, PromptSet) else prompts
    open_engine = functools.partial(load, max_objects=choose_max_objects(args, len(known)))
    if args.video is not None and not args.prompt_args and not args.auto:
        raise UserError(
            'no prompt; give one, like --text "the horse jumping" or --concept "yellow bus" (--help shows all options)'
        )
    with contextlib.ExitStack() as stack:
        demo = None
        if args.video is not None:  # opened first: it may fail, and sooner than an engine loads
            video = stack.enter_context(_open_video(args, args.video))
            _check_inputs(args, video, prompts)
            engine = stack.enter_context(open_engine())
        else:
            engine = stack.enter_context(open_engine())
            demo = _load_demo(engine)
            video = stack.enter_context(_open_video(args, demo.clip))
            _check_inputs(args, video, prompts)
        quality = None
        if demo is not None and not args.prompt_args and not args.auto:
            prompts, quality = demo.prompts, Quality(demo, args.stride)
        task = _task(args, engine, video, prompts)
        with task.session:
            return _run(args, engine, video, task, quality, {**describe_run(engine, video), **about})


def _open_video(args: argparse.Namespace, source: VideoSource) -> VideoReader:
    return open_video(source, args.stride, args.max_frames, strict=args.strict, drop=args.drop, retries=args.retries)


def check_out(out: str) -> None:
    """Raise UserError for an address in the place of the output folder."""
    if is_address(out):
        raise UserError(f"--out {hide_secrets(out)}: an address; give a folder, and copy it to where it belongs")


def _load_demo(engine: Engine) -> Demo:
    folder = engine.bundle.manifest.demo
    if folder is None:
        raise UserError(f"the bundle {engine.bundle.name} has no demonstration clip; give --video FILE and a prompt")
    return Demo.load(engine.bundle.folder / folder)


def _task(args: argparse.Namespace, engine: Engine, video: VideoReader, prompts: Prompts) -> Task:
    conditional_memory = {"on": True, "off": False, None: None}[args.conditional_memory]
    options = TextOptions(
        conditional_memory,
        window=args.window,
        latency=args.latency,
        decode_ahead=args.decode_ahead,
        encode_ahead=args.encode_ahead,
        reference_quirks=args.reference_quirks,
    )
    of_concepts = ConceptOptions(args.temporal_disambiguation, detect_every=args.detect_every)
    if isinstance(prompts, ConceptSet):
        reject_options(options, "concepts")
        return concept_task(engine, prompts, video, replace(of_concepts, max_objects=args.max_objects))
    reject_options(of_concepts, "prompts other than concepts")
    if not args.auto and not isinstance(prompts, PromptSet):
        return text_task(engine, prompts, options)
    reject_options(options, "--auto and visual prompts")
    return prompt_task(engine, prompts, video) if isinstance(prompts, PromptSet) else automatic_task(engine, video)


def _check_inputs(args: argparse.Namespace, video: VideoReader, prompts: Prompts) -> None:
    """Raise an error, before any work, for prompts that do not fit the video, or outputs that would replace inputs."""
    inputs = [*video.files, *([args.video] if isinstance(args.video, str) else args.video or ())]
    if not isinstance(prompts, list):
        prompts.resolve_names(video.names)
        prompts.check(video.size, video.stride, video.max_count)
    if isinstance(prompts, PromptSet):
        inputs += prompts.files
        if args.masks:
            check_ids(prompts.labels)
    folder = OutputFolder(Path(args.out), args.overlay, args.masks, video.max_count == 1, args.format == "ytvis")
    folder.check(identities(inputs))


def _run(
    args: argparse.Namespace,
    engine: Engine,
    video: VideoReader,
    task: Task,
    quality: Quality | None,
    header: Mapping[str, Any],
) -> int:
    """Process the video and write the files. Returns the exit code; raises the error that ended the run early."""
    with (
        open_window(video.name, args.show) as show,
        SignalGuard() as guard,
        Outputs(
            args.out, video.size, video.fps, header, replace(_output_options(args, video, task), show=show)
        ) as outputs,
    ):
        job = Job(task, video, outputs, quality)
        error = job.run(guard)
        with guard.defer_signals():
            summary = summarize_run(job.stats, task.labels, engine.timings, complete=error is None)
            if error is None or isinstance(error, VideoError):
                unused = _unused_prompts(task, video, job.stats.frames)
                error = error or unused
            _add_details(summary, job.stats, video, quality)
            try:
                summary["notes"] += outputs.close_overlay(
                    job.read_to_end and job.stats.frames != args.max_frames, video.end
                )
            except SamwiseRuntimeError as failure:
                error = error or failure
            try:
                summary["files"] = [str(path) for path in outputs.close(summary)]
            except SamwiseRuntimeError as failure:
                error = error or failure
        if job.stats.frames or error is None:
            prompt_of = {obj: counts.prompt_id for obj, counts in job.stats.objects.items()}
            colours = ObjectColours(task.labels, task.concepts).of(prompt_of)
            print_summary(summary, args.json, colours, sys.stderr if args.events else sys.stdout)
        if isinstance(error, KeyboardInterrupt):
            message = f"stopped after {job.stats.frames} frames; those finished are in {args.out}"
            print(message, file=sys.stderr)
            return 128 + (guard.signal or 2)
        if error is not None:
            raise error
        return 0


def _output_options(args: argparse.Namespace, video: VideoReader, task: Task) -> OutputOptions:
    return OutputOptions(
        task.labels,
        task.objects,
        args.overlay,
        args.masks,
        is_image=video.max_count == 1,
        small_on_top=task.small_on_top,
        sample_aspect_ratio=video.sample_aspect_ratio,
        source=SourceFile(video.path, video.start, args.sound) if video.path is not None else None,
        concepts=task.concepts,
        ytvis=args.format == "ytvis",
        events=None if args.events is None else functools.partial(print_event, args.events == "rle"),
    )


def _unused_prompts(task: Task, video: VideoReader, num_frames: int) -> PromptError | None:
    """Note the prompts on frames that did not come."""
    unused = task.unused(num_frames)
    video.notes.extend(unused)
    more = f"; prompts on {len(unused) - 1} more frames" if unused[1:] else ""
    return PromptError(unused[0] + more) if unused else None


def _add_details(summary: dict[str, Any], stats: RunStats, video: VideoReader, quality: Quality | None) -> None:
    if quality is not None and (rows := quality.table()):  # no rows before the first frame
        for entry, counts in zip(summary["objects"], stats.objects.values(), strict=True):
            entry.update({key: round(value, 4) for key, value in rows[counts.prompt_id - 1].items()})
    summary["notes"] = list(video.notes)
    if video.dropped:
        summary["dropped"] = video.dropped
