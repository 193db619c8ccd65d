"""A concept that is followed through a video: its association, the groups of its objects, their memory.

`associate` carries the decisions of `Association` out on one frame, in the order of the official code: confident
detections correct their objects, tracks are remembered, new objects start, false ones go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...prompts import Concept
from ...tracking.association import SUPPRESSED_LOGIT, Association, Decision, Shown
from ...tracking.object_group import FrameMemory, ObjectGroup
from ...tracking.object_memory import BlockPool
from ...tracking.prompt_inputs import PromptInputs
from ...tracking.requests import DecodeRequest, DecoderOutput, ImageFeatures
from ...tracking.step import MASK_PROMPT_SCORE, predict_frame, prompt_request, tracking_request
from ..options import ConceptOptions
from .concept_prompt import ConceptPrompt
from .interface import ConceptTracker
from .mask_prompts import MaskResizer

Scored = tuple[np.ndarray, np.ndarray]
"""Low-res logits (K,s,s) and scores (K,) of detections."""

Tracks = dict[int, tuple[np.ndarray, float]]
"""Low-res logits (s,s) and score logit of each object on a frame."""


class FollowedConcept:
    """One concept of a session. `is_new`: the frame to come is searched for it, whichever its turn is."""

    def __init__(
        self, concept: Concept, prompt: ConceptPrompt, tracker: ConceptTracker, pool: BlockPool, options: ConceptOptions
    ) -> None:
        self._tracker, self._pool, self._options = tracker, pool, options
        self.concept, self.prompt, self.is_new = concept, prompt, True
        self._association: Association | None = None
        self._resizer: MaskResizer | None = None
        self._groups: list[ObjectGroup] = []
        self._latest: dict[int, np.ndarray] = {}
        """Low-res logits (s,s) of the objects on the latest frame, as the tracker decodes them."""
        self.first_frame: int | None = None
        """The first frame that was searched."""

    @property
    def object_ids(self) -> list[int]:
        """Objects in the order in which they were found."""
        return [obj for group in self._groups for obj in group.object_ids]

    def start(
        self, frame: int, size: tuple[int, int], ids: Iterator[int], features: ImageFeatures, found: Scored, others: int
    ) -> Tracks:
        """Search the first frame, of `size` (H, W); return the objects found as the tracks of its second pass."""
        o, side = self._options, self._tracker.low_res_side
        self.first_frame, self._resizer = frame, self._tracker.mask_resizer(size)
        upsampler = self._tracker.source_upsampler(size)
        self._association = Association(
            *size, o.temporal_disambiguation, o.max_objects, o.hide_unmatched_after_hotstart, ids, upsampler
        )
        none = np.zeros((0, side, side), np.float32), np.zeros(0, np.float32)
        decision = self._association.step(frame, found, none, prompt=True, others=others)
        logits = self._give_birth(frame, features, found[0], decision)
        return {obj: (mask, MASK_PROMPT_SCORE) for obj, mask in logits.items()}

    def requests(self, frame: int) -> dict[int, DecodeRequest]:
        """Return what the tracker decodes on a frame, by object."""
        return {
            obj: tracking_request(memory)
            for group in self._groups
            for obj, memory in group.select(frame, self._options.num_frames).items()
        }

    def store(self, frame: int, decoded: Mapping[int, DecoderOutput]) -> Tracks:
        """Keep pointers and scores of the decoded objects; return their masks and scores."""
        for group in self._groups:
            own = {obj: decoded[obj] for obj in group.object_ids}
            group.store(
                frame, {obj: FrameMemory(d.obj_ptr, d.score, float(d.ious[d.selected])) for obj, d in own.items()}
            )
        return {obj: (decoded[obj].low_res_logits, decoded[obj].score) for obj in self.object_ids}

    def associate(self, frame: int, found: Scored | None, tracks: Tracks, others: int) -> Decision:
        """Compare detections (None: the frame was not searched) with tracks. `others`: objects of other concepts."""
        assert self._association is not None
        ids, side = self.object_ids, self._tracker.low_res_side
        logits = np.array([tracks[obj][0] for obj in ids], np.float32).reshape(len(ids), side, side)
        scores = np.array([tracks[obj][1] for obj in ids], np.float32)
        return self._association.step(frame, found, (logits, scores), others=others)

    def carry_out(
        self, decision: Decision, frame: int, features: ImageFeatures, found: Scored | None, tracks: Tracks
    ) -> None:
        """Do with the objects what `associate` decided."""
        ids = self.object_ids
        if found is not None:
            self._recondition(frame, features, found[0], decision)
        self._remember(frame, features, ids, decision)
        self._latest = {obj: tracks[obj][0] for obj in ids}
        if found is not None:
            self._latest |= self._give_birth(frame, features, found[0], decision)
        self._drop(decision.removed)
        for group in self._groups:
            group.prune(frame)

    def correct(self, frame: int, features: ImageFeatures, prompts: Mapping[int, PromptInputs]) -> Shown | None:
        """Take prompts on objects on the latest frame, which becomes a conditioning frame; return what it shows now.

        None before the first frame.
        """
        if self._association is None:
            return None
        own = [obj for obj in self.object_ids if obj in prompts]
        requests = [prompt_request(self._tracker, prompts[obj], self._latest[obj], None) for obj in own]
        outputs = dict(zip(own, predict_frame(self._tracker, features, requests, 0), strict=True))
        self._latest |= {obj: output.low_res_logits for obj, output in outputs.items()}
        for group in self._groups:
            ids = group.object_ids
            prompted = {o: outputs[o] for o in ids if o in outputs}
            if not prompted:
                continue
            group.condition(frame, {o: FrameMemory(p.obj_ptr, p.score, p.iou) for o, p in prompted.items()})
            _remember_prompts(self._tracker, features, group, frame, np.stack([self._latest[obj] for obj in ids]))
            group.prune(frame)
        return self._association.correct({obj: (o.low_res_logits, o.score) for obj, o in outputs.items()})

    def flush(self) -> list[Shown]:
        """Return the frames that wait to be shown."""
        return [] if self._association is None else self._association.flush()

    def remove(self, obj: int) -> None:
        """Remove an object."""
        assert self._association is not None
        self._association.remove([obj])
        self._drop([obj])

    def close(self) -> None:
        """Return the memory of all objects."""
        for group in self._groups:
            group.close()
        self._groups = []

    # -- decisions ------------------------------------------------------------------------------------------------

    def _recondition(self, frame: int, features: ImageFeatures, detected: np.ndarray, decision: Decision) -> None:
        """Take confident detections for the masks of their objects; the frame becomes a conditioning frame."""
        if not decision.recondition:
            return
        assert self._resizer is not None
        masks = [self._resizer.detected(detected[query]) for _, query in decision.recondition]
        prompted = _prompted(self._tracker, features, masks, decision.recondition)
        for group in self._groups:
            own = {obj: memory for obj, memory in prompted.items() if obj in group.object_ids}
            if own:
                group.condition(frame, own)

    def _remember(self, frame: int, features: ImageFeatures, ids: Sequence[int], decision: Decision) -> None:
        """Write the memory of all tracks, in one batch."""
        rows = [row for row, obj in enumerate(ids) if obj not in decision.removed]
        if not rows:
            return
        logits = decision.masks
        logits = np.where(decision.forgotten[:, None, None], np.minimum(logits, SUPPRESSED_LOGIT), logits)
        scores = np.where(decision.present, MASK_PROMPT_SCORE, -MASK_PROMPT_SCORE)
        blocks = [
            block
            for group in self._groups
            for block in group.blocks(frame, [obj for obj in group.object_ids if obj not in decision.removed])
        ]
        chosen, present = list(logits[rows]), scores[rows].tolist()
        self._tracker.encode_memory(features, chosen, [False] * len(rows), present, blocks, direct=True)

    def _give_birth(
        self, frame: int, features: ImageFeatures, detected: np.ndarray, decision: Decision
    ) -> dict[int, np.ndarray]:
        """Make a group of new objects, whose detections prompt them; return their low-res logits (s,s)."""
        if not decision.births:
            return {}
        assert self._resizer is not None and self._association is not None
        masks = [self._resizer.detected(detected[query]) for _, query in decision.births]
        prompted = _prompted(self._tracker, features, masks, decision.births)
        logits = self._resizer.to_logits([self._resizer.to_source(mask) for mask in masks])
        settled = frame + self._association.options.delay - 1
        group = ObjectGroup(self._pool, self._tracker.memory_config, self._options.temporal_disambiguation, settled)
        self._groups.append(group)
        group.open(prompted)
        group.condition(frame, prompted)
        _remember_prompts(self._tracker, features, group, frame, logits)
        return dict(zip(prompted, logits, strict=True))

    def _drop(self, object_ids: Sequence[int]) -> None:
        for group in self._groups:
            for obj in set(object_ids) & set(group.object_ids):
                group.remove(obj)
        self._groups = [group for group in self._groups if group.object_ids]


def _prompted(
    tracker: ConceptTracker, features: ImageFeatures, masks: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]]
) -> dict[int, FrameMemory]:
    """Return the memory of objects that masks (P,P) of detections prompt; its maps are not written.

    `pairs`: (object, query).
    """
    pointers = tracker.mask_pointers(features, masks)
    scores = [MASK_PROMPT_SCORE if mask.any() else -MASK_PROMPT_SCORE for mask in masks]
    memories = (FrameMemory(pointer, score, 1.0) for pointer, score in zip(pointers, scores, strict=True))
    return dict(zip((obj for obj, _ in pairs), memories, strict=True))


def _remember_prompts(
    tracker: ConceptTracker, features: ImageFeatures, group: ObjectGroup, frame: int, logits_nss: np.ndarray
) -> None:
    """Write the memory of a conditioning frame: the masks of all objects of the group, without overlaps."""
    ids = group.object_ids
    scores = [group.cond[frame][obj].score for obj in ids]
    logits = list(tracker.without_overlaps(logits_nss))
    tracker.encode_memory(features, logits, [True] * len(ids), scores, group.blocks(frame, ids))
