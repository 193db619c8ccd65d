"""What the command can do with a video: follow sentences, follow clicks, or cut a picture into everything it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import PromptError, UserError
from ..media.video_reader import VideoReader
from ..prompts import Text
from ..results import Result
from .prompt_args import Pointed


@dataclass(frozen=True, slots=True)
class Task:
    """`stream` turns frames into results, one for each, in order; `labels` by object id, as far as they are known."""

    labels: dict[int, str]
    stream: Callable[[Iterable[np.ndarray]], Iterator[Result]]
    session: AbstractContextManager = field(default_factory=nullcontext)
    small_on_top: bool = False


def sentences(engine: Any, prompts: Sequence[Text], **options: Any) -> Task:
    """One object per sentence: followed, or found on every frame anew by a network that knows only pictures.

    `options` are those of `Engine.session`. Raises PromptError, UserError.
    """
    labels = {i: prompt.label for i, prompt in enumerate(prompts, 1)}
    abilities = [(hasattr(network, "open"), hasattr(network, "refer")) for network in engine.networks.values()]
    if not any(follows for follows, _ in abilities) and any(finds for _, finds in abilities):
        refuse(options, f"the bundle {engine.bundle.name}, which looks at every frame alone")
        return Task(labels, partial(_find, engine, prompts))
    session = engine.session(prompts, **options)
    return Task(labels, session.stream, session)


def refuse(options: Mapping[str, Any], who: str) -> None:
    """Raise UserError for an option that was given and that `who` does not have."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{' and '.join(given)} cannot be had with {who}; leave it away")


def _find(engine: Any, prompts: Sequence[Text], frames: Iterable[np.ndarray]) -> Iterator[Result]:
    for index, frame in enumerate(frames):
        yield replace(engine.image(frame).refer(prompts), frame_index=index)


def pointed_at(engine: Any, pointed: Pointed, video: VideoReader) -> Task:
    """Follow what was clicked, each object from its first prompt on. Raises PromptError, UserError."""
    pointed.check(video.size, video.stride, video.count)
    session = engine.session()
    return Task(pointed.labels, partial(session.stream, prompts=pointed.by_index(video.stride)), session)


def everything(engine: Any, video: VideoReader) -> Task:
    """Segments of a picture, the largest first. Raises PromptError for a video."""
    if video.count != 1:
        raise PromptError(f"--auto takes one picture, not {video.name}; add --max-frames 1 for its first frame")

    def stream(frames: Iterable[np.ndarray]) -> Iterator[Result]:
        for index, frame in enumerate(frames):
            found = sorted(engine.image(frame).segment_all(), key=lambda s: -s.area)
            scores = np.array([s.score for s in found], np.float32)
            masks = np.array([s.mask for s in found], bool).reshape(-1, *frame.shape[:2])
            boxes = np.array([s.box for s in found], np.float32).reshape(-1, 4)
            logits = np.log(scores / np.maximum(1 - scores, 1e-6))
            yield Result(index, tuple(range(1, len(found) + 1)), masks, scores, logits, boxes)

    return Task({}, stream, small_on_top=True)
