"""Command that compares a backend with ONNX Runtime on this machine: same results, and how fast.

    python -m runtime.autotune --engine engines/NAME [--backend openvino] [--threads N] [--frames N] [--cpu-seconds]

runs a short clip on ONNX Runtime, records the inputs of every stage, runs the other backend on the same inputs,
compares the outputs, and times both in turn. For a backend that `auto` may choose, the result is saved
(`backends.autotune`) and decides from then on. On a shared machine wall time is not reliable: `--cpu-seconds` measures
processor time and saves nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..backends import NEEDS_AUTOTUNE, autotune, create
from ..backends.base import Stage
from ..backends.recorder import StageRecorder, StageRecorders, run_steps
from ..bundle.bundle import Bundle, choose
from ..bundle.demo import Demo
from ..bundle.manifest import STEP
from ..engine import Engine, load
from ..errors import SamwiseRuntimeError, UserError, fail
from ..media.synthetic_clip import Disc, synthetic_clip
from ..media.video_reader import open_video
from ..metrics import clip_jaccard, relative_error
from ..models.base import Capability
from ..prompts import Concept, Text
from ..prompts.synthetic import synthetic_text
from ..scheduler.tuning import save
from .autotune_streams import tune_streams

TOLERANCES = {"fp32": (1e-4, 0.999), "fp16": (5e-3, 0.99), "int8": (5e-3, 0.99)}
"""Precision of a bundle -> largest relative L2 error of a stage's output, smallest IoU of an object's masks over the
clip. Both sides compute the same graph; fp16 and int8 leave rounding between operators, and rounding of ties, open."""

FRAMES, REPEATS = 16, 5
QUERIES = 10
"""Queries of a concept whose masks are compared."""
DEFAULT = next(iter(NEEDS_AUTOTUNE))

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class StageTiming:
    """One stage: calls in the clip, largest error of an output, least seconds of one call on each side."""

    stage: str
    calls: int
    error: float
    reference_seconds: float
    seconds: float

    @property
    def total_reference_seconds(self) -> float:
        return self.calls * self.reference_seconds


@dataclass(frozen=True, slots=True)
class TuningReport:
    """Comparison of every stage that the clip reaches. Nothing is known about the stages in `unreached`."""

    stages: tuple[StageTiming, ...]
    unreached: tuple[str, ...]
    result: autotune.TuningResult


def tune(
    bundle: Bundle,
    backend: str,
    threads: int | None = None,
    repeats: int = REPEATS,
    frames: int = FRAMES,
    clock: Clock = time.perf_counter,
) -> TuningReport:
    """Compare `backend` with ONNX Runtime. Raises BackendError, BundleError; InternalError when a stage fails."""
    bundle.verify()
    reference, reference_start = _timed(lambda: Engine(bundle, create("ort", threads)), clock)
    other, start = _timed(lambda: Engine(bundle, create(backend, threads)), clock)
    recorders = StageRecorders(reference.backend.device)
    # a clip runs all stages but the steps of low latency, which do not count in the time of its frames
    reference.instrument(recorders.wrap_step)
    run_steps(reference, list(clip_of(bundle, 4)))
    reference.instrument(recorders.wrap_other)
    want, num_frames = masks_of(reference, frames)
    reached = {name: recorder for name, recorder in recorders.items() if recorder.calls}
    stages = tuple(_compare(recorder, other.stages[name].stage, repeats, clock) for name, recorder in reached.items())
    unreached = tuple(name for name in recorders if name not in reached)
    error, of_clip = max(stage.error for stage in stages), [s for s in stages if not s.stage.endswith(STEP)]
    iou = min(clip_jaccard(a, b) for a, b in zip(want, masks_of(other, frames)[0], strict=True))
    max_error, min_iou = TOLERANCES.get(bundle.manifest.precision, TOLERANCES["fp32"])
    result = autotune.TuningResult(
        backend=backend,
        bundle=bundle.name,
        fingerprint=autotune.fingerprint(bundle.manifest),
        versions=autotune.versions(*NEEDS_AUTOTUNE.get(backend, ())),
        processor=autotune.processor(),
        threads=threads,
        exact=not unreached and error <= max_error and iou >= min_iou,
        error=error,
        iou=iou,
        reference_frame_seconds=sum(s.total_reference_seconds for s in of_clip) / num_frames,
        frame_seconds=sum(s.calls * s.seconds for s in of_clip) / num_frames,
        extra_start_seconds=start - reference_start,
    )
    return TuningReport(stages, unreached, result)


def _timed(make: Callable[[], Engine], clock: Clock) -> tuple[Engine, float]:
    began = clock()
    return make(), clock() - began


def _compare(recorder: StageRecorder, other: Stage, repeats: int, clock: Clock) -> StageTiming:
    """Run `other` on the recorded inputs; time both in turn at the latest sizes, so that a busy moment affects both."""
    error, arrays = 0.0, {}
    for record in recorder.records:
        outputs = {name: np.zeros_like(array) for name, array in record.outputs.items()}
        arrays = record.inputs | outputs
        other.run(**arrays)
        error = max(error, *(relative_error(outputs[name], want) for name, want in record.outputs.items()))
    least = [float("inf"), float("inf")]
    for _ in range(repeats):
        for side, stage in enumerate((recorder.stage, other)):
            began = clock()
            stage.run(**arrays)
            least[side] = min(least[side], clock() - began)
    return StageTiming(recorder.spec.name, recorder.calls, error, *least)


# -- the clip ----------------------------------------------------------------------------------------------------------


def masks_of(engine: Engine, frames: int) -> tuple[list[np.ndarray], int]:
    """Return masks (T,H,W) of every object of all tasks of the bundle, and the number of processed frames."""
    found: list[np.ndarray] = []
    num_frames = 0
    for capability, run in TASKS.items():
        if capability in engine.capabilities:
            masks = run(engine, clip_of(engine.bundle, frames))  # (T,N,H,W)
            num_frames += len(masks)
            found += list(masks.swapaxes(0, 1))
    return found, num_frames


def clip_of(bundle: Bundle, frames: int) -> np.ndarray:
    """Return frames (T,H,W,3) uint8: the bundle's demonstration, or a synthetic clip."""
    if bundle.manifest.demo is not None:
        with open_video(Demo.load(bundle.folder / bundle.manifest.demo).clip, 1, frames) as video:
            return np.stack(list(video))
    disc = Disc(lambda t: 30 + 6 * t, 60, 24, (220, 190, 70))
    return np.stack(synthetic_clip(frames, 120, 160, disc, (6, 10)))


def _prompts(bundle: Bundle) -> list[Text]:
    """Return two of the demonstration's sentences, or two of seeded tokens."""
    settings = bundle.manifest.text or {}
    if bundle.manifest.demo is not None and not settings.get("motion"):
        return Demo.load(bundle.folder / bundle.manifest.demo).prompts[:2]
    return [synthetic_text(settings, seed) for seed in range(2)]


def _text_video(engine: Engine, frames: np.ndarray) -> np.ndarray:
    with engine.session(_prompts(engine.bundle)) as session:
        return np.stack([result.masks for result in session.stream(frames)])


def _prompt_video(engine: Engine, frames: np.ndarray) -> np.ndarray:
    """Track a click, a box and a mask for a few frames."""
    frames = frames[:4]
    height, width = frames.shape[1:3]
    mask = np.zeros((height, width), bool)
    mask[height // 3 : height * 2 // 3, width // 4 : width // 2] = True
    with engine.video(frames) as video:
        video.add_points(0, 1, [(0.45, 0.5)], [1], normalized=True)
        video.add_box(0, 2, (0.2, 0.3, 0.6, 0.7), normalized=True)
        video.add_mask(0, 3, mask)
        return np.stack([result.masks for result in video.propagate()])


def _text_image(engine: Engine, frames: np.ndarray) -> np.ndarray:
    return np.stack([engine.image(frame).refer(_prompts(engine.bundle)).masks for frame in frames[:2]])


def _concept_image(engine: Engine, frames: np.ndarray) -> np.ndarray:
    """Search a frame for words and for an exemplar; of each the best queries, whether they would be kept or not."""
    exemplar = Concept(boxes=[(0.3, 0.3, 0.6, 0.7)], labels=[1], normalized=True)
    concepts = [*map(Concept.of, _prompts(engine.bundle)[:1]), exemplar]
    found = engine.image(frames[0]).detect(concepts, threshold=0.0)
    best = [np.sort(np.argsort(-result.scores, kind="stable")[:QUERIES]) for result in found]
    return np.concatenate([result.masks[queries] for result, queries in zip(found, best, strict=True)])[None]


TASKS: Mapping[Capability, Callable[[Engine, np.ndarray], np.ndarray]] = {
    Capability.TEXT_VIDEO: _text_video,
    Capability.PROMPT_VIDEO: _prompt_video,
    Capability.TEXT_IMAGE: _text_image,
    Capability.CONCEPT_IMAGE: _concept_image,
}
"""Capability -> function that exercises it."""


# -- the command -------------------------------------------------------------------------------------------------------


def table(report: TuningReport) -> str:
    """Return the report as text; times are shares and ratios of each other."""
    total = sum(s.total_reference_seconds for s in report.stages)
    lines = [f"{'stage':22} {'calls':>5} {'rel. L2':>9} {'share':>6} {'speed':>6}"]
    lines += [
        f"{s.stage:22} {s.calls:5} {s.error:9.1e} {s.total_reference_seconds / total:6.1%} "
        f"{s.reference_seconds / max(s.seconds, 1e-9):6.2f}"
        for s in report.stages
    ]
    result = report.result
    lines += [f"{name:22}     0  not reached by the clip" for name in report.unreached]
    lines.append(
        f"all: {result.speedup:.2f}x ONNX Runtime's speed, relative error {result.error:.1e}, IoU {result.iou:.5f}, "
        f"start {result.extra_start_seconds:+.1f} s"
    )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.autotune", description="Compare a backend with ONNX Runtime."
    )
    parser.add_argument("--engine", default="engines", help="a bundle, or a folder of bundles (default: %(default)s)")
    parser.add_argument("--model", help="name of the bundle or of the network")
    parser.add_argument("--backend", help=f"backend to test (default: {DEFAULT}; with --streams: auto)")
    streams = "measure instead how many of N streams of sentences are best decoded in one call, for runtime.Scheduler"
    parser.add_argument("--streams", type=int, metavar="N", help=streams)
    parser.add_argument("--threads", type=int, help="CPU threads (default: each library decides)")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames of the clip (default: %(default)s)")
    parser.add_argument("--cpu-seconds", action="store_true", help="measure processor time, and save nothing")
    return parser.parse_args(arguments)


def _tune_streams(bundle: Bundle, options: argparse.Namespace, clock: Clock) -> int:
    if options.streams < 2:
        raise UserError(f"--streams must be 2 or more, not {options.streams}")
    with load(bundle.folder, backend=options.backend or "auto", threads=options.threads, max_objects=64) as engine:
        if Capability.TEXT_VIDEO not in engine.capabilities:
            raise UserError(
                f"the bundle {bundle.name} follows no sentences, and other streams are not decoded together"
            )
        frames = list(clip_of(bundle, options.frames))
        tuning = tune_streams(engine, _prompts(bundle)[:1], frames, options.streams, REPEATS, clock)
    alone = tuning.frames_per_second["1"]
    print(f"{'batch':>5} {'speed':>6}")
    for batch, rate in tuning.frames_per_second.items():
        print(f"{batch:>5} {rate / alone:6.2f}")
    if options.cpu_seconds:
        print("not saved: processor time")
    else:
        print(f"a scheduler will decode up to {tuning.batch} streams in one call ({save(tuning)})")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments)
    try:
        if options.frames < 1:
            raise UserError(f"--frames must be 1 or more, not {options.frames}")
        clock = time.process_time if options.cpu_seconds else time.perf_counter
        bundle = choose(options.engine, options.model)
        if options.streams is not None:
            return _tune_streams(bundle, options, clock)
        options.backend = options.backend or DEFAULT
        report = tune(bundle, options.backend, options.threads, frames=options.frames, clock=clock)
        print(table(report))
        if options.cpu_seconds or options.backend not in NEEDS_AUTOTUNE:
            print(f"not saved: {'processor time' if options.cpu_seconds else f'auto never takes {options.backend}'}")
            return 0
        path = autotune.save(report.result)
        reason = report.result.rejection_reason()
        print(f"auto will {f'keep to ONNX Runtime: {reason}' if reason else f'take {options.backend}'} ({path})")
    except SamwiseRuntimeError as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
