"""Is another backend exact and faster than ONNX Runtime, with this bundle, on this machine?

    python -m runtime.autotune --engine engines/NAME [--backend openvino] [--threads N] [--frames N] [--cpu-seconds]

runs a short clip on ONNX Runtime, keeps what every stage was given, gives the same to the other backend, compares, and
times both in turn. For a backend that `auto` may choose the result is kept as a note (`backends.notes`) and decides
from then on. On a machine that others use too wall time means nothing: `--cpu-seconds` counts processor time, and keeps
no note.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import ON_TRIAL, autotune, create
from ..bundle.bundle import Bundle, choose
from ..bundle.demo import Demo
from ..engine import Engine
from ..errors import SamwiseRuntimeError, UserError, fail
from ..metrics import clip_jaccard
from ..prompts import Text

LIMITS = {"fp32": (1e-4, 0.999), "fp16": (5e-3, 0.99), "int8": (5e-3, 0.99)}
"""Precision of a bundle -> largest relative L2 error of a stage's output, smallest IoU of an object's masks over the
clip. Both sides compute the same graph; fp16 and int8 leave open what is rounded between its operators, and how a tie
falls."""

FLOOR = 1e-3
"""Outputs smaller than this (root mean square) are compared by their absolute error."""

FRAMES, REPEATS = 16, 5

Clock = Callable[[], float]


class Recorder:
    """A stage that counts its calls and keeps what it was given and gave, the first time and the last."""

    def __init__(self, stage: Any) -> None:
        self.stage, self.spec, self.calls = stage, stage.spec, 0
        self.kept: list[dict[str, np.ndarray]] = []

    def run(self, **arrays: np.ndarray) -> None:
        self.stage.run(**arrays)
        self.calls += 1
        self.kept[1:] = [{name: np.array(a) for name, a in arrays.items()}]


@dataclass(frozen=True, slots=True)
class Row:
    """One stage: calls in the clip, largest error of an output, seconds of one call on each side (least of some)."""

    stage: str
    calls: int
    error: float
    reference_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Trial:
    """All of it. `unreached` are stages that the clip did not come to: nothing is known of them."""

    rows: tuple[Row, ...]
    unreached: tuple[str, ...]
    note: autotune.Note


def run(
    bundle: Bundle,
    backend: str,
    threads: int | None = None,
    repeats: int = REPEATS,
    frames: int = FRAMES,
    clock: Clock = time.perf_counter,
) -> Trial:
    """Try `backend` with `bundle`. Raises BackendError, BundleError; InternalError when a stage fails."""
    bundle.verify()
    reference, reference_start = _timed(lambda: Engine(bundle, create("ort", threads)), clock)
    other, start = _timed(lambda: Engine(bundle, create(backend, threads)), clock)
    recorders = {name: Recorder(timed.stage) for name, timed in reference.stages.items()}
    for name, timed in reference.stages.items():
        timed.stage = recorders[name]
    want, looked = masks_of(reference, frames)
    rows = tuple(_compare(r, other.stages[name].stage, repeats, clock) for name, r in recorders.items() if r.calls)
    error = max(row.error for row in rows)
    iou = min(clip_jaccard(a, b) for a, b in zip(want, masks_of(other, frames)[0], strict=True))
    unreached = tuple(name for name, r in recorders.items() if not r.calls)
    most, least = LIMITS.get(bundle.manifest.precision, LIMITS["fp32"])
    note = autotune.Note(
        backend=backend,
        bundle=bundle.name,
        graphs=autotune.fingerprint(bundle.manifest),
        versions=autotune.versions(*ON_TRIAL.get(backend, ())),
        processor=autotune.processor(),
        threads=threads,
        exact=not unreached and error <= most and iou >= least,
        error=error,
        iou=iou,
        reference_frame_seconds=sum(r.calls * r.reference_seconds for r in rows) / looked,
        frame_seconds=sum(r.calls * r.seconds for r in rows) / looked,
        extra_start_seconds=start - reference_start,
    )
    return Trial(rows, unreached, note)


def _timed(make: Callable[[], Engine], clock: Clock) -> tuple[Engine, float]:
    began = clock()
    return make(), clock() - began


def _compare(recorder: Recorder, other: Any, repeats: int, clock: Clock) -> Row:
    """The same arrays for both; timed in turn at the latest size, so that a busy moment meets both."""
    spec, error = recorder.spec, 0.0
    for arrays in recorder.kept:
        mine = {name: np.zeros_like(a) if name in {t.name for t in spec.outputs} else a for name, a in arrays.items()}
        other.run(**mine)
        error = max(error, *(relative_error(mine[t.name], arrays[t.name]) for t in spec.outputs))
    least = [float("inf"), float("inf")]
    for _ in range(repeats):
        for side, stage in enumerate((recorder.stage, other)):
            began = clock()
            stage.run(**mine)
            least[side] = min(least[side], clock() - began)
    return Row(spec.name, recorder.calls, error, *least)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Relative L2 error; for bool and integers the share that differs. Infinite for what is not finite."""
    if want.dtype.kind in "biu":
        return float(np.mean(got != want)) if want.size else 0.0
    a, b = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    if not np.isfinite(a).all():
        return float("inf")
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), FLOOR * len(b) ** 0.5, 1e-30)


# -- the clip ----------------------------------------------------------------------------------------------------------


def masks_of(engine: Engine, frames: int) -> tuple[list[np.ndarray], int]:
    """Masks (T,H,W) of every object of everything that the bundle can do, and how many frames were looked at."""
    found: list[np.ndarray] = []
    looked = 0
    for ability, ask in ABILITIES.items():
        if engine.can(ability):
            masks = ask(engine, film(engine.bundle, frames))  # (T,N,H,W)
            looked += len(masks)
            found += list(masks.swapaxes(0, 1))
    return found, looked


def film(bundle: Bundle, frames: int) -> np.ndarray:
    """Frames (T,H,W,3) uint8: the bundle's demonstration, or a bright disc that crosses a moving pattern."""
    if bundle.manifest.demo is not None:
        from ..media.video_reader import open_video

        with open_video(Demo.load(bundle.folder / bundle.manifest.demo).clip, 1, frames) as video:
            return np.stack(list(video))
    y, x = np.mgrid[0:120, 0:160].astype(np.float32)
    pictures = []
    for t in range(frames):
        base = np.stack([np.sin(x / (6 + 5 * c) + 0.4 * t) * np.cos(y / (10 - 2 * c) - 0.3 * t) for c in range(3)], -1)
        disc = (x - 30 - 6 * t) ** 2 + (y - 60) ** 2 < 24**2
        pictures.append(np.where(disc[..., None], (220, 190, 70), 110 + 80 * base).clip(0, 255).astype(np.uint8))
    return np.stack(pictures)


def _prompts(bundle: Bundle) -> list[Text]:
    """Two of the demonstration's sentences, or two of seeded tokens."""
    settings = bundle.manifest.settings["text"]
    verbs = [1] if settings.get("motion") else None
    if bundle.manifest.demo is not None and verbs is None:
        return Demo.load(bundle.folder / bundle.manifest.demo).prompts[:2]
    vocabulary, longest = settings["vocabulary"], settings["max_tokens"]
    drawn = np.random.default_rng(0).integers(min(3, vocabulary - 1), vocabulary, (2, max(1, min(7, longest - 2))))
    return [Text(tokens=[0, *row.tolist(), 2 % vocabulary], verbs=verbs) for row in drawn]


def _sentences(engine: Engine, frames: np.ndarray) -> np.ndarray:
    with engine.session(_prompts(engine.bundle)) as session:
        return np.stack([result.masks for result in session.stream(frames)])


def _clicks(engine: Engine, frames: np.ndarray) -> np.ndarray:
    """A click, a box and a mask, followed for a few frames."""
    frames = frames[:4]
    mask = np.zeros(frames.shape[1:3], bool)
    mask[mask.shape[0] // 3 : mask.shape[0] * 2 // 3, mask.shape[1] // 4 : mask.shape[1] // 2] = True
    with engine.video(frames) as video:
        video.add_points(0, 1, [(0.45, 0.5)], [1], normalized=True)
        video.add_box(0, 2, (0.2, 0.3, 0.6, 0.7), normalized=True)
        video.add_mask(0, 3, mask)
        return np.stack([result.masks for result in video.propagate()])


def _pictures(engine: Engine, frames: np.ndarray) -> np.ndarray:
    return np.stack([engine.image(frame).refer(_prompts(engine.bundle)).masks for frame in frames[:2]])


ABILITIES: Mapping[str, Callable[[Engine, np.ndarray], np.ndarray]] = {
    "open": _sentences,
    "video": _clicks,
    "refer": _pictures,
}
"""Method by which a network shows what it can do (`Engine.network`) -> how it is asked."""


# -- the command -------------------------------------------------------------------------------------------------------


def table(trial: Trial) -> str:
    """The trial as text; times are shares and ratios of each other."""
    total = sum(r.calls * r.reference_seconds for r in trial.rows)
    lines = [f"{'stage':22} {'calls':>5} {'rel. L2':>9} {'share':>6} {'speed':>6}"]
    lines += [
        f"{r.stage:22} {r.calls:5} {r.error:9.1e} {r.calls * r.reference_seconds / total:6.1%} "
        f"{r.reference_seconds / max(r.seconds, 1e-9):6.2f}"
        for r in trial.rows
    ]
    note = trial.note
    lines += [f"{name:22}     0  not reached by the clip" for name in trial.unreached]
    lines.append(
        f"all: {note.speedup:.2f}x ONNX Runtime's speed, relative error {note.error:.1e}, IoU {note.iou:.5f}, "
        f"start {note.extra_start_seconds:+.1f} s"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.autotune", description="Compare a backend with ONNX Runtime."
    )
    parser.add_argument("--engine", default="engines", help="a bundle, or a folder of bundles (default: %(default)s)")
    parser.add_argument("--model", help="name of the bundle or of the network")
    parser.add_argument("--backend", default=next(iter(ON_TRIAL)), help="what to try (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: each library decides)")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames of the clip (default: %(default)s)")
    parser.add_argument("--cpu-seconds", action="store_true", help="count processor time, and keep no note")
    options = parser.parse_args(arguments)
    try:
        if options.frames < 1:
            raise UserError(f"--frames must be 1 or more, not {options.frames}")
        clock = time.process_time if options.cpu_seconds else time.perf_counter
        bundle = choose(options.engine, options.model)
        trial = run(bundle, options.backend, options.threads, frames=options.frames, clock=clock)
        print(table(trial))
        if options.cpu_seconds or options.backend not in ON_TRIAL:
            print(f"no note: {'processor time' if options.cpu_seconds else f'auto never takes {options.backend}'}")
            return 0
        path = autotune.keep(trial.note)
        objection = trial.note.objection()
        print(f"auto will {'keep to ONNX Runtime: ' + objection if objection else 'take ' + options.backend} ({path})")
    except SamwiseRuntimeError as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
