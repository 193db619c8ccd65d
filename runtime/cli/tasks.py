"""Tasks of the command: track text prompts, track visual prompts, segment everything in an image.

Concepts: `concept_task.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np

from ..engine import Engine
from ..errors import PromptError, UserError
from ..media.video_reader import VideoReader
from ..models.base import Capability
from ..models.options import ConceptOptions, TextOptions
from ..prompts import Text
from ..results import Result
from ..tracking.live import LiveSession
from .prompt_args import PromptSet


@dataclass(frozen=True, slots=True)
class Task:
    """A session with its prompts.

    labels        prompt id -> label; objects of other prompts have none
    objects       object id -> prompt id of the objects known before the first frame; others may appear later
    stream        turns frames into results, one per frame, in order
    session       closed when the run ends
    small_on_top  whether smaller masks are drawn over larger ones, instead of by score
    unused        describes the prompts on frames that did not come, by the number of frames
    concepts      prompts are concepts, of several objects each
    waiting       returns the results of a stream that ended early which are computed, but held back
    """

    labels: Mapping[int, str]
    objects: Mapping[int, int]
    stream: Callable[[Iterable[np.ndarray]], Iterator[Result]]
    session: AbstractContextManager[object] = field(default_factory=nullcontext)
    small_on_top: bool = False
    unused: Callable[[int], list[str]] = lambda num_frames: []
    concepts: bool = False
    waiting: Callable[[], Iterable[Result]] = tuple


def text_task(engine: Engine, prompts: Sequence[Text], options: TextOptions) -> Task:
    """Segment one object per text: tracked, or on every frame separately if the network takes single images only.

    Raises PromptError, UserError.
    """
    labels = {i: prompt.label for i, prompt in enumerate(prompts, 1)}
    objects = {i: i for i in labels}
    if Capability.TEXT_VIDEO not in engine.capabilities and Capability.TEXT_IMAGE in engine.capabilities:
        reject_options(options, f"the bundle {engine.bundle.name}, which segments every frame separately")
        return Task(labels, objects, partial(_refer, engine, prompts))
    session = engine.session(
        prompts,
        conditional_memory=options.conditional_memory,
        window=options.window,
        latency=options.latency,
        decode_ahead=options.decode_ahead,
        encode_ahead=options.encode_ahead,
        reference_quirks=options.reference_quirks,
    )
    return Task(labels, objects, session.stream, session)


def _refer(engine: Engine, prompts: Sequence[Text], frames: Iterable[np.ndarray]) -> Iterator[Result]:
    for index, frame in enumerate(frames):
        yield replace(engine.image(frame).refer(prompts), frame_index=index)


def reject_options(options: TextOptions | ConceptOptions, name: str) -> None:
    """Raise UserError for an option that is set, because `name` does not support it."""
    changed = [option for option in fields(options) if getattr(options, option.name) != option.default]
    given = [f"--{'no-' * (option.default is True)}{option.name.replace('_', '-')}" for option in changed]
    if given:
        raise UserError(f"{' and '.join(given)}: not supported by {name}; remove it")


def prompt_task(engine: Engine, prompts: PromptSet, video: VideoReader) -> Task:
    """Track objects given by points, boxes or masks, each from its first prompt on. Raises UserError."""
    video.notes.extend(prompts.notes)
    session = engine.live()
    stream = partial(_track, session, prompts.by_index(video.stride), video)

    def unused(num_frames: int) -> list[str]:
        return prompts.unused(list(map(video.frame_number, range(num_frames))))

    return Task(prompts.labels, {obj: obj for obj in prompts.labels}, stream, session, unused=unused)


def _track(
    session: LiveSession, prompts: Mapping[int, Mapping[int, Any]], video: VideoReader, frames: Iterable[np.ndarray]
) -> Iterator[Result]:
    return session.stream(frames, lambda index: prompts.get(video.frame_number(index) // video.stride))


def automatic_task(engine: Engine, video: VideoReader) -> Task:
    """Segment everything in an image, the largest segment first. Raises PromptError for a video."""
    if video.max_count != 1:
        raise PromptError(f"--auto takes one image, not {video.name}; add --max-frames 1 for its first frame")
    return Task({}, {}, partial(_segment_all, engine), small_on_top=True)


def _segment_all(engine: Engine, frames: Iterable[np.ndarray]) -> Iterator[Result]:
    for index, frame in enumerate(frames):
        segments = sorted(engine.image(frame).segment_all(), key=lambda s: -s.area)
        scores = np.array([s.score for s in segments], np.float32)
        yield Result(
            frame_index=index,
            object_ids=tuple(range(1, len(segments) + 1)),
            prompt_ids=(0,) * len(segments),
            masks=np.array([s.mask for s in segments], bool).reshape(-1, *frame.shape[:2]),
            scores=scores,
            boxes=np.array([s.box for s in segments], np.float32).reshape(-1, 4),
        )
