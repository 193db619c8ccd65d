"""Orchestration cases of SAM 3, run once in a test run: decisions, shown frames, and memory; no network."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from runtime.device.base import Cpu
from runtime.imaging.upsample import SeparableUpsampler, bilinear_matrix
from runtime.models.options import ConceptOptions
from runtime.models.sam3 import followed
from runtime.models.sam3.followed import FollowedConcept
from runtime.models.sam3.mask_prompts import MaskResizer
from runtime.prompts import Concept
from runtime.tracking.association import Association
from runtime.tracking.matching import AssociationOptions
from runtime.tracking.memory_selection import MemoryConfig
from runtime.tracking.object_group import blocks_per_object
from runtime.tracking.object_memory import BlockPool

from . import sam3_scenes as scenes

CASES = ("basic", "hotstart", "occlusion")
GOLDENS = Path(__file__).parents[1] / "goldens" / "sam3"
SIDE, MASK_SIDE, HOTSTART = scenes.GRID, 4 * scenes.GRID, AssociationOptions().hotstart_delay


class FakeTracker:
    """Remembers the number of a frame in place of its map and pointer, and what it was asked to remember."""

    low_res_side, memory_config = SIDE, MemoryConfig(7, 16)

    def __init__(self):
        self.frame, self.remembered, self.prompts = 0, [], []

    def source_upsampler(self, size):
        return SeparableUpsampler(*(bilinear_matrix(SIDE, side) for side in size))

    def mask_resizer(self, size):
        return MaskResizer(size, MASK_SIDE, SIDE)

    def mask_pointers(self, features, masks):
        self.prompts += [int(mask.sum()) for mask in masks]
        return [np.array([self.frame]) for _ in masks]

    def without_overlaps(self, logits):
        return logits

    def encode_memory(self, features, logits, binarize, scores, blocks, direct=False):
        assert len(logits) == len(binarize) == len(scores) == len(blocks) and direct is not binarize[0]
        for block in blocks:
            block.array[:] = self.frame
        self.remembered += [score > 0 for score in scores] if direct else []


class RecordingAssociation(Association):
    """Keeps what it decided, and what was shown after which pass."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.decisions, self.shown = [], []

    def step(self, frame_index, detections, tracks, prompt=False, others=0):
        alive = self.object_ids
        decision = super().step(frame_index, detections, tracks, prompt, others)
        self.shown += [(len(self.decisions), shown) for shown in decision.show]
        self.decisions.append((alive, decision))
        return decision


class Recording:
    """One orchestration case, run through `FollowedConcept`: what is decided and shown, and what each frame attends to
    and remembers."""

    def __init__(self, case):
        self.meta = json.loads((GOLDENS / f"orchestration_{case}.json").read_text())
        scene = self.scene = self.meta["scene"]
        self.tracker, self.born, self.attended, self.remembered = FakeTracker(), {}, [], []
        options = ConceptOptions(**scene["options"], num_frames=scene["frames"])
        self.pool = BlockPool(Cpu(), 64, blocks_per_object(FakeTracker.memory_config, HOTSTART), (1,), "float32")
        self.concept = FollowedConcept(Concept("thing"), None, self.tracker, self.pool, options)
        self.ids = itertools.count()
        for expected in self.meta["passes"]:
            self.run(expected)
        self.association = self.concept._association
        self.decisions = self.association.decisions
        last = len(self.decisions) - 1
        self.shown = [*self.association.shown, *((last, shown) for shown in self.association.flush())]

    def run(self, expected):
        frame = self.tracker.frame = expected["frame"]
        masks, scores, keys = scenes.detections(self.scene, frame)
        if expected.get("prompt_pass"):
            size = self.scene["height"], self.scene["width"]
            self.concept.start(frame, size, self.ids, None, (masks, scores), 0)
        else:
            requests, tracks = self.concept.requests(frame) if frame else {}, {}
            for obj in self.concept.object_ids:
                mask, score = scenes.track(self.scene, *self.born[obj], frame)
                tracks[obj] = mask, score
            self.attended.append({obj: attended(request.memory) for obj, request in requests.items()})
            if frame:
                outputs = {obj: decoded(frame, *track) for obj, track in tracks.items()}
                self.concept.store(frame, outputs)
            self.tracker.remembered = []
            decision = self.concept.associate(frame, (masks, scores), tracks, 0)
            self.concept.carry_out(decision, frame, None, (masks, scores), tracks)
            self.remembered.append(self.tracker.remembered)
        self.born |= {obj: (keys[query], frame) for obj, query in expected["births"]}


def decoded(frame, mask, score):
    return SimpleNamespace(low_res_logits=mask, score=score, obj_ptr=np.array([frame]), ious=np.ones(4), selected=1)


def attended(memory):
    spatial = [[int(block.array[0]), row] for block, row in zip(memory.blocks, memory.tpos, strict=True)]
    pointers = [[int(ptr[0]), d] for ptr, d in zip(memory.obj_ptrs, memory.distances, strict=True)]
    return {"spatial": sorted(spatial), "pointers": sorted(pointers)}


@functools.lru_cache
def recording(case):
    """Return the recording of a case."""
    official, followed.Association = followed.Association, RecordingAssociation
    try:
        return Recording(case)
    finally:
        followed.Association = official
