"""Run of the videos that a bundle can take on synthetic frames, before its first one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..bundle.manifest import Manifest
from ..prompts import Concept, Points
from ..prompts.synthetic import synthetic_text
from . import Networks
from .base import Capability
from .options import ConceptOptions, TextOptions


def warm(networks: Networks, manifest: Manifest, times: int = 2) -> int:
    """Follow one object through as many frames as fill the memory, and a clip more; return their number.

    While memory fills up, every frame has another shape. The first time, libraries load, allocate and compile what each
    shape needs; the second time, what sessions share is recorded as CUDA graphs.
    """
    settings = manifest.networks.values()
    window = max(each.get("window", 1) for each in settings)
    memory = max(max(each.get("memory", {}).get(n, 0) for n in ("num_maskmem", "max_obj_ptrs")) for each in settings)
    shape = (-(-memory // window) + 1) * window, manifest.image_size, manifest.image_size, 3
    frames = list(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))
    for capability, follow in TASKS.items():
        for _ in range(times if capability in networks.capabilities else 0):
            follow(networks, manifest, frames)
    return len(frames)


def _text_video(networks: Networks, manifest: Manifest, frames: Sequence[np.ndarray]) -> None:
    if manifest.text is None:
        return
    open_session = networks.text_video.open_text_session
    with networks.lock.run(open_session, [synthetic_text(manifest.text)], False, TextOptions()) as session:
        for frame in frames:
            session.push(frame)
        session.flush()


def _prompt_video(networks: Networks, manifest: Manifest, frames: Sequence[np.ndarray]) -> None:
    network = networks.prompt_video
    with networks.lock.run(network.open_live, False, network.tracking_defaults) as session:
        for i, frame in enumerate(frames):
            session.push(frame, None if i else {1: Points([(0.5, 0.5)], [1], normalized=True)})


def _concept_video(networks: Networks, manifest: Manifest, frames: Sequence[np.ndarray]) -> None:
    if manifest.text is None:
        return
    concepts, options = [Concept.of(synthetic_text(manifest.text))], ConceptOptions(temporal_disambiguation=False)
    with networks.lock.run(networks.concept_video.open_concept_session, concepts, False, options) as session:
        for frame in frames[:2]:
            session.push(frame)


TASKS: Mapping[Capability, Callable[[Networks, Manifest, Sequence[np.ndarray]], None]] = {
    Capability.TEXT_VIDEO: _text_video,
    Capability.CONCEPT_VIDEO: _concept_video,
    Capability.PROMPT_VIDEO: _prompt_video,
}
"""Capability -> function that runs it. Concepts take larger buffers than clicks, whose graphs need them to stay."""
