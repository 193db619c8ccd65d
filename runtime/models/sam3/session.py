"""Concept session: finds and follows all objects of concepts through a video (rules of SAM 3's video model).

Each frame is encoded once. The detector searches it for every concept, the tracker follows the objects of all concepts
in one batch, and each concept compares the two. A concept's first frame is processed twice, as in the official code:
once to find the objects, once as the first frame of tracking.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ...device.base import Array
from ...errors import PromptError
from ...media.frame_iterables import iterate_frames
from ...prompts import Concept
from ...results import NO_STAMP, Result, Stamp
from ...tracking.base import check_object_id, is_whole
from ...tracking.matching import AssociationOptions
from ...tracking.object_group import blocks_per_object
from ...tracking.session import OnlineSession, iterator_of_results, stamp_at, synchronized
from ..options import ConceptOptions
from .concept_prompt import ConceptPrompt
from .followed import FollowedConcept
from .frame_queue import FrameQueue
from .frame_search import ConceptNetwork, FrameSearch
from .interface import ConceptTracker

MAX_OBJECTS = 1 << 16
"""Objects that concepts may find, over all sessions. Each takes memory when it is found."""


class ConceptSession(OnlineSession):
    """All objects of concepts in one video. Made by `Engine.session`. It may be used from any thread; see `Engine`.

    With `temporal_disambiguation` results come 14 frames late, because objects that turn out to be false until then are
    removed; `flush` returns those that wait, also after an error or Ctrl-C in the middle of a frame, which closes the
    session. The memory of an object is bounded; `max_objects` bounds the objects.
    """

    def __init__(
        self,
        network: ConceptNetwork,
        tracker: ConceptTracker,
        concepts: Sequence[Concept],
        logits: bool,
        options: ConceptOptions,
    ) -> None:
        super().__init__(network.device.lock)
        self._network, self._tracker, self._options = network, tracker, options
        delay = AssociationOptions(options.temporal_disambiguation).delay
        self._pool = tracker.memory_pool(blocks_per_object(tracker.memory_config, delay), MAX_OBJECTS)
        self._search = FrameSearch(network, tracker, options)
        self._maps = self._search.maps
        self._numbers, self._ids = itertools.count(1), itertools.count()
        self._size: tuple[int, int] | None = None
        self._follow = partial(FollowedConcept, tracker=tracker, pool=self._pool, options=options)
        self._concepts = {next(self._numbers): self._follow(*self._encoded(concept)) for concept in concepts}
        self._frames = FrameQueue(tracker.low_res_side, logits)
        self._num_frames = 0
        self._stamp = NO_STAMP

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Objects that are followed, by ascending id."""
        return tuple(sorted(obj for followed in list(self._concepts.values()) for obj in followed.object_ids))

    @property
    def concepts(self) -> dict[int, Concept]:
        """Concepts by the number that `Result.prompt_ids` has."""
        return {number: followed.concept for number, followed in list(self._concepts.items())}

    # -- concepts -------------------------------------------------------------------------------------------------

    @synchronized
    def add_concept(self, concept: Concept) -> int:
        """Follow another concept from the next frame on, which has its exemplars; return its number.

        Raises PromptError.
        """
        self._check_open()
        followed = self._follow(*self._encoded(concept))
        number = next(self._numbers)
        self._concepts[number] = followed
        return number

    @synchronized
    def change_concept(self, number: int, concept: Concept) -> None:
        """Search for other words or exemplars from the next frame on, which has the exemplars; the objects stay.

        Raises PromptError.
        """
        self._check_open()
        followed, encoded = _find(self._concepts, number), self._encoded(concept)
        followed.concept, followed.prompt, followed.is_new = *encoded, True

    @synchronized
    def remove_concept(self, number: int) -> None:
        """Stop following a concept and its objects. Frames that wait show them still. Raises PromptError."""
        self._check_open()
        followed = _find(self._concepts, number)
        self._frames.show(number, followed.flush())
        self._frames.forget(number)
        followed.close()
        del self._concepts[number]

    @synchronized
    def remove(self, obj: int) -> None:
        """Stop following an object; frames that wait do not show it either. Raises PromptError.

        While the detector sees it, it is found again, with another id.
        """
        self._check_open()
        obj = check_object_id(obj)
        for followed in self._concepts.values():
            if obj in followed.object_ids:
                return followed.remove(obj)
        raise PromptError(f"there is no object {obj!r}; objects: {_listed(self.object_ids)}")

    # -- frames ---------------------------------------------------------------------------------------------------

    @synchronized
    def push(self, frame: Any, *, time: float | Stamp | None = None) -> list[Result]:
        """Take one frame, uint8 RGB (H,W,3); return the results that are final, of this frame or of earlier ones.

        `time`: seconds from the first frame, for `Result.time`. Raises VideoError for an invalid frame or another size,
        PromptError for an exemplar outside the frame.
        """
        self._check_open()
        stamp, index = stamp_at(time), self._num_frames
        frame = self._network.frame_reader.check(frame, index, self._size)
        size = frame.shape[:2]
        if self._size is None:
            prompts = [followed.prompt.with_exemplars(followed.concept, size) for followed in self._concepts.values()]
            for followed, prompt in zip(self._concepts.values(), prompts, strict=True):
                followed.prompt = prompt
            self._size = size
        with self._close_on_error():
            self._frames.add(index, stamp, self._concepts)
            self._step(index, frame)
            self._num_frames, self._stamp = index + 1, stamp
        return self._frames.release(size)

    @synchronized
    def flush(self) -> list[Result]:
        """Return the results of the frames that wait, at the end of a video or after a frame that was not finished.

        Raises UserError after `close`.
        """
        if not self._closed_by:  # closed by an error, it has the results of the frames before
            self._check_open()
        for number, followed in self._concepts.items():
            self._frames.show(number, followed.flush())
        return self._frames.release(self._size)

    @iterator_of_results
    def stream(self, frames: Any) -> Iterator[Result]:
        """Push every frame, then flush; yield each result when it is final.

        frames  a `VideoReader`, anything that `open_video` opens, or an iterable of arrays or image files
        """
        for frame, stamp in iterate_frames(frames):
            yield from self.push(frame, time=stamp)
        yield from self.flush()

    @synchronized
    def correct(self, prompts: Mapping[int, Any]) -> Result:
        """Take points, a box or a mask on objects on the frame that was pushed last; return what it shows now.

        The present mask of an object goes to the network along with points. Later frames build on the correction, and
        the result of the frame, where it waits, has it. Raises PromptError.
        """
        self._check_open()
        if self._size is None or not isinstance(prompts, Mapping) or not prompts:
            raise PromptError("push a frame, then give prompts like {0: runtime.Points([[x, y]], [1])}: object, prompt")
        if unknown := [obj for obj in prompts if check_object_id(obj) not in self.object_ids]:
            raise PromptError(f"there is no object {unknown[0]!r}; objects: {_listed(self.object_ids)}")
        parsed = {obj: self._tracker.prompt_encoder.parse(prompt, self._size) for obj, prompt in prompts.items()}
        frame = self._num_frames - 1
        with self._close_on_error():
            shown = {n: followed.correct(frame, self._maps, parsed) for n, followed in self._concepts.items()}
        parts = {number: part for number, part in shown.items() if part is not None}
        return self._frames.result(frame, parts, self._size, self._stamp)

    def _encoded(self, concept: Concept) -> tuple[Concept, ConceptPrompt]:
        concept = Concept.of(concept)
        return concept, self._network.encode_prompt(concept, self._size)

    def _release(self) -> None:
        for followed in self._concepts.values():
            followed.close()

    def _step(self, frame: int, image: Array) -> None:
        found, tracks = self._search.compute(frame, image, self._concepts)
        for number, followed in self._concepts.items():
            others = sum(len(other.object_ids) for other in self._concepts.values() if other is not followed)
            if followed.first_frame is None:
                size: tuple[int, int] = image.shape[:2]
                tracks |= followed.start(frame, size, self._ids, self._maps, found[number], others)
            decision = followed.associate(frame, found.get(number), tracks, others)
            self._frames.show(number, decision.show)  # first, because the rest may be interrupted
            followed.carry_out(decision, frame, self._maps, found.get(number), tracks)


def _find(concepts: Mapping[int, FollowedConcept], number: int) -> FollowedConcept:
    if not is_whole(number) or number not in concepts:
        raise PromptError(f"there is no concept {number!r}; concepts: {_listed(concepts)}")
    return concepts[number]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
