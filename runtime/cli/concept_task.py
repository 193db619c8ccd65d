"""Concepts as a task of the command: all objects of each, followed through a video or found in pictures.

Objects are numbered from 1, as for every task of the command, so that the index of an object in a mask is its id; a
session counts from 0.
"""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from ..engine import Engine
from ..errors import UserError
from ..imaging.masks import boxes_and_areas
from ..media.video_reader import VideoReader
from ..models.base import Capability, ConceptImageNetwork
from ..models.options import ConceptOptions
from ..models.sam3.session import ConceptSession
from ..prompts import Concept
from ..results import Result
from .concept_args import ConceptSet
from .tasks import Task

MAX_ENDLESS = 64
"""Objects at a time in a video without end, where no other number is given."""


def concept_task(engine: Engine, concepts: ConceptSet, video: VideoReader, options: ConceptOptions) -> Task:
    """Follow concepts through a video; find them in an image, or in separate images without a tracker.

    Raises PromptError, UserError.
    """
    network = engine.networks.concept_image
    is_video = video.max_count != 1 and Capability.CONCEPT_VIDEO in engine.capabilities
    if video.max_count != 1 and video.names is None and not is_video:
        raise UserError(
            f"the bundle {engine.bundle.name} has no tracker and takes only pictures: give --max-frames 1 for the "
            f"first frame of {video.name}, or export a checkpoint with tracker"
        )
    changes = concepts.changes(video.stride)
    _check_prompts(network, [c for changed in changes.values() for c in changed.values()], video)
    video.notes.extend(concepts.notes)

    def unused(num_frames: int) -> list[str]:
        return concepts.unused(list(map(video.frame_number, range(num_frames))))

    if not is_video:
        return Task(concepts.labels, {}, partial(_find, engine, concepts, video, options), unused=unused, concepts=True)
    start = min(changes)
    num_frames = video.count - start if video.count is not None and video.count_is_exact else None
    limit = options.max_objects or (MAX_ENDLESS if video.count is None else None)
    with _noted():
        session = engine.session(
            list(changes[start].values()),
            temporal_disambiguation=options.temporal_disambiguation,
            max_objects=limit,
            num_frames=num_frames if num_frames and num_frames > 0 else None,
            detect_every=options.detect_every,
        )
    follower = Follower(session, changes, limit, video)
    return Task(concepts.labels, {}, follower.stream, session, unused=unused, concepts=True, waiting=follower.waiting)


def _check_prompts(network: ConceptImageNetwork, concepts: Sequence[Concept], video: VideoReader) -> None:
    """Convert all concepts before the work starts, for errors, and for notes about words that are cut."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for concept in concepts:
            network.encode_prompt(concept, video.size)
    video.notes.extend(dict.fromkeys(str(warning.message) for warning in caught))


@contextmanager
def _noted() -> Iterator[None]:
    """Ignore warnings of words that are cut: `_check_prompts` has noted them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


class Follower:
    """Follows concepts through a video; frames, concepts and objects are numbered as in the command."""

    def __init__(
        self,
        session: ConceptSession,
        changes: Mapping[int, Mapping[int, Concept]],
        limit: int | None,
        video: VideoReader,
    ) -> None:
        self._session, self._changes, self._limit, self._video = session, changes, limit, video
        self._start = min(changes)
        self._before, self._is_full = 0, False
        self._numbers = dict(enumerate(changes[self._start], 1))
        """Number of a concept in the session -> in the command."""
        self._ready: deque[Result] = deque()
        """Results of the session that are not taken yet."""

    def stream(self, frames: Iterable[np.ndarray]) -> Iterator[Result]:
        """Yield a result per frame; those before the first concept have no objects."""
        for index, frame in enumerate(frames):
            position = self._video.frame_number(index) // self._video.stride
            if position < self._start:
                yield join([], index, frame)
                self._before += 1
            else:
                self._push(index, position, frame)
                yield from self._take()
        yield from self.waiting()

    def waiting(self) -> Iterator[Result]:
        """Yield the results that are computed, but not taken, or held back by the session."""
        self._ready.extend(self._session.flush())
        yield from self._take()

    def _take(self) -> Iterator[Result]:
        while self._ready:
            yield self._numbered(self._ready.popleft())

    def _push(self, index: int, position: int, frame: np.ndarray) -> None:
        with _noted():
            if index == self._before and position > self._start:
                _forget_exemplars(self._session)
            if position > self._start:
                self._apply(self._changes.get(position, {}))
        self._ready.extend(self._session.push(frame))
        if self._limit is not None and len(self._session.object_ids) >= self._limit and not self._is_full:
            self._is_full = True
            self._video.notes.append(
                f"frame {index} has {self._limit} object{'s' * (self._limit > 1)}, the limit; if some are missing, "
                f"raise --max-objects"
            )

    def _apply(self, changed: Mapping[int, Concept]) -> None:
        """Change concepts that are followed and add others."""
        followed = {self._numbers[number]: number for number in self._session.concepts}
        for number, concept in changed.items():
            if number in followed:
                self._session.change_concept(followed[number], concept)
            else:
                self._numbers[self._session.add_concept(concept)] = number

    def _numbered(self, result: Result) -> Result:
        """Count frames from the first of the video, and concepts as they were given."""
        prompt_ids = tuple(self._numbers[prompt] for prompt in result.prompt_ids)
        return replace(numbered(result), frame_index=result.frame_index + self._before, prompt_ids=prompt_ids)


def numbered(result: Result) -> Result:
    """Return a result of a session as the command has it: objects count from 1, corners are exclusive."""
    boxes = boxes_and_areas(result.masks)[0].astype(np.float32)
    return replace(result, object_ids=tuple(obj + 1 for obj in result.object_ids), boxes=boxes)


def _forget_exemplars(session: ConceptSession) -> None:
    """Remove the exemplars that a session starts with: the picture that they lie on cannot be read."""
    for number, concept in dict(session.concepts).items():
        if concept.words is None:
            session.remove_concept(number)
        else:
            session.change_concept(number, Concept(concept.text))


def _find(
    engine: Engine, concepts: ConceptSet, video: VideoReader, options: ConceptOptions, frames: Iterable[np.ndarray]
) -> Iterator[Result]:
    """Find the concepts in every frame separately: the objects of one are others than those of the next."""
    ids = itertools.count(1)
    for index, frame in enumerate(frames):
        found = detect(engine, frame, concepts.on_index(video.frame_number(index) // video.stride, video.stride))
        result = best(join(found, index, frame), options.max_objects, video.notes)
        yield replace(result, object_ids=tuple(itertools.islice(ids, len(result.object_ids))))


def detect(engine: Engine, frame: np.ndarray, concepts: Mapping[int, Concept]) -> list[Result]:
    """Find concepts, by number, in one frame."""
    if not concepts:
        return []
    with _noted():
        results = engine.image(frame).detect(list(concepts.values()))
    return [
        replace(result, prompt_ids=(number,) * len(result.object_ids))
        for number, result in zip(concepts, results, strict=True)
    ]


def join(results: Sequence[Result], index: int, frame: np.ndarray) -> Result:
    """Join the results of several concepts on one frame; objects are numbered from 1."""
    prompt_ids = tuple(prompt for result in results for prompt in result.prompt_ids)
    return Result(
        frame_index=index,
        object_ids=tuple(range(1, len(prompt_ids) + 1)),
        prompt_ids=prompt_ids,
        masks=np.concatenate([np.zeros((0, *frame.shape[:2]), bool), *(result.masks for result in results)]),
        scores=np.concatenate([np.zeros(0, np.float32), *(result.scores for result in results)]),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(result.boxes for result in results)]),
    )


def best(result: Result, limit: int | None, notes: list[str]) -> Result:
    """Return the `limit` objects of the highest score, and note how many there were."""
    count = len(result.object_ids)
    if limit is None or count <= limit:
        return result
    notes.append(
        f"frame {result.frame_index}: {count} objects, the best {limit} are kept; raise --max-objects for more"
    )
    kept = np.sort(np.argsort(-result.scores, kind="stable")[:limit])
    return replace(
        result,
        object_ids=tuple(range(1, limit + 1)),
        prompt_ids=tuple(result.prompt_ids[k] for k in kept),
        masks=result.masks[kept],
        scores=result.scores[kept],
        boxes=result.boxes[kept],
    )
