"""Arithmetic of one frame of a concept session: detections of all concepts, and tracks of all objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from ...device.base import Array, Device
from ...device.scratch import OutputBlock
from ...prompts import Concept
from ...tracking.frames import FrameReader
from ...tracking.matching import AssociationOptions
from ..options import ConceptOptions
from .concept_prompt import ConceptPrompt
from .detector import Detections, Detector
from .followed import FollowedConcept, Scored, Tracks
from .interface import ConceptTracker


class ConceptNetwork(Protocol):
    """Members of the SAM 3 network that a session uses."""

    device: Device
    detector: Detector
    resample: Mapping[str, str]
    frame_reader: FrameReader

    def encode_prompt(self, concept: Concept, size: tuple[int, int] | None) -> ConceptPrompt:
        """Convert a concept for frames of `size` (H, W); None: not known yet. Raises PromptError."""


class FrameSearch:
    """Encodes a frame, searches it and decodes what is tracked. `maps`: the features of the latest frame."""

    def __init__(self, network: ConceptNetwork, tracker: ConceptTracker, options: ConceptOptions) -> None:
        self._network, self._tracker, self._options = network, tracker, options
        self._features, self.maps = network.detector.frame_features, tracker.new_features()

    def compute(
        self, frame: int, image: Array, concepts: Mapping[int, FollowedConcept]
    ) -> tuple[dict[int, Scored], Tracks]:
        """Search the frame for the concepts whose turn it is, and decode the objects of all concepts in one batch.

        Nothing is remembered yet. One upload, and one wait, or two if something is found: which queries have masks
        is decided on the host.
        """
        detector, tracker = self._network.detector, self._tracker
        due = self._due(frame, concepts)
        prompts = [followed.prompt for followed in due.values()]
        by_object = {
            obj: request for followed in concepts.values() for obj, request in followed.requests(frame).items()
        }
        requests = list(by_object.values())
        ahead = [*detector.inputs_of(prompts), *tracker.inputs_of(requests)]
        detector.encode_image(image, self._network.resample["video"], self._features, ahead)
        tracker.encode_trunk(self._features.trunk, self.maps)
        decoding = tracker.start_decoding(self.maps, requests)
        found = self._detect(due, prompts, [] if decoding.readback is None else [decoding.readback])
        decoded = dict(zip(by_object, decoding.finish(), strict=True))
        tracks: Tracks = {}
        for followed in concepts.values():
            tracks |= followed.store(frame, decoded)
        return found, tracks

    def _due(self, frame: int, concepts: Mapping[int, FollowedConcept]) -> dict[int, FollowedConcept]:
        """Return the concepts that the frame is searched for."""
        every = self._options.detect_every
        return {
            number: followed
            for number, followed in concepts.items()
            if followed.is_new or followed.first_frame is None or (frame - followed.first_frame) % every == 0
        }

    def _detect(
        self, due: Mapping[int, FollowedConcept], prompts: list[ConceptPrompt], others: Sequence[OutputBlock]
    ) -> dict[int, Scored]:
        """Search the frame for concepts; `others` are read with the first wait."""
        detector = self._network.detector
        for i, followed in enumerate(due.values()):
            prompt = followed.prompt
            if len(prompt.boxes) and prompt.geometry is None:  # exemplars are seen on the frame that they lie on
                followed.prompt = replace(prompt, geometry=detector.encode_geometry(self._features, prompt))
                prompts[i] = followed.prompt
            followed.is_new = False
        detections = detector.detect(self._features, prompts, AssociationOptions().detection, others=others)
        return {number: _scored(found) for number, found in zip(due, detections, strict=True)}


def _scored(found: Detections) -> Scored:
    """Return the masks and the scores of kept queries; the official code passes scores on as logits within +-10."""
    p = found.probability[found.kept].astype(np.float64)
    logits = np.log(np.maximum(p, 1e-3) / np.maximum(1 - p, 1e-3)).clip(-10, 10)
    return found.low_res_logits, (1 / (1 + np.exp(-logits))).astype(np.float32)
