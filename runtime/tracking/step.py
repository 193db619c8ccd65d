"""One frame of tracking: requests to the network, its outputs, and the memory of them.

`predict_frame` decodes and leaves the memory as it is; `commit_memory` writes it. A network that associates detections
with objects does so in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Protocol

import numpy as np

from ..device.base import Array, Device
from ..imaging.gpu import DeviceMasks
from ..imaging.morphology import fill_holes
from .frames import FrameReader
from .memory_selection import MemoryConfig, MemorySelection
from .object_memory import Block, BlockPool, DecodedMemory
from .prompt_inputs import NO_POINTS, PADDING_POINT, PromptEncoder, PromptInputs
from .requests import DecodeRequest, DecoderOutput, ImageFeatures
from .state import ObjectOutput, TrackedObject, TrackingOptions
from .work import Work

MASK_PROMPT_SCORE = 10.0
"""Presence logit of an object whose mask was given (SAM 2: `obj_scores` of a mask used as output)."""

MAX_PROMPT_LOGIT = 32.0
"""Logits of an earlier output are clipped to this range before they prompt the decoder again."""


class TrackerNetwork(Protocol):
    """Methods of a SAM 2 network that the sessions call."""

    device: Device
    low_res_side: int
    no_object_logit: float
    resample: Mapping[str, str]
    memory_config: MemoryConfig
    clicks_see_memory: bool
    """Whether points on a tracked frame are decoded with the memory of the object."""
    tracking_defaults: TrackingOptions
    prompt_encoder: PromptEncoder
    frame_reader: FrameReader
    max_batch: int
    """Objects in one call of a stage."""
    device_masks: Callable[[tuple[int, int]], DeviceMasks | None]
    """What makes masks of a size (H, W) on the device; None: the host does."""
    has_small_frames: bool
    """Whether `encode_image` may run side by side for several frames, each too small for several threads."""

    def new_features(self) -> ImageFeatures:
        """Allocate the feature maps of one frame."""

    def join_features(self, frames: Sequence[ImageFeatures]) -> ImageFeatures:
        """Copy the feature maps of several frames side by side, into scratch."""

    def encode_image(
        self, frame_hwc: Array, features: ImageFeatures, resample: str, requests: Sequence[DecodeRequest] | None = None
    ) -> None:
        """Write the feature maps of a frame, uint8 RGB (H,W,3); `requests`: what is decoded on it next."""

    def encode_mask_prompt(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the dense prompt (s,s) of a mask (I,I), and the low-res logits (s,s) of the mask itself."""

    def decode(
        self,
        features: ImageFeatures,
        requests: Sequence[DecodeRequest],
        all_logits: bool = False,
        remember: bool = False,
    ) -> list[DecoderOutput]:
        """Decode all requests on one frame, in batches; `remember`: their memory will be written as it is decoded."""

    def keep_memory(self, memory: DecodedMemory | None, block: Block) -> bool:
        """Write memory that was computed with its mask; False if there is none, or no longer."""

    def encode_memory(
        self,
        features: ImageFeatures,
        logits: Sequence[np.ndarray],
        binarize: Sequence[bool],
        scores: Sequence[float],
        blocks: Sequence[Block],
        direct: bool = False,
        pictures: Sequence[int] | None = None,
    ) -> None:
        """Write the memory features of objects into their blocks; `pictures`: rows of maps of several frames."""

    def memory_pool(self, blocks: int | None = None, capacity: int | None = None) -> BlockPool:
        """Return the pool whose chunks have this many blocks, for `capacity` objects at a time."""


def tracking_request(memory: MemorySelection | None, masks: DeviceMasks | None = None) -> DecodeRequest:
    """Build the request of an object that is only tracked."""
    return DecodeRequest(NO_POINTS, multimask=True, memory=memory, masks=masks)


def prompt_request(
    network: TrackerNetwork,
    prompt: PromptInputs,
    previous: np.ndarray | None,
    memory: MemorySelection | None,
    masks: DeviceMasks | None = None,
) -> DecodeRequest:
    """Build the request of a prompt; `previous` are the low-res logits (s,s) that points refine."""
    if isinstance(prompt, np.ndarray):
        mask_logits, own_logits = network.encode_mask_prompt(prompt)
        return DecodeRequest(
            NO_POINTS, False, mask_logits, skip_no_mem_embed=True, output_logits=own_logits, masks=masks
        )
    dense = None if previous is None else np.clip(previous, -MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT)
    return DecodeRequest(prompt + PADDING_POINT, len(prompt.labels) <= 1, dense, memory, masks=masks)


def predict_frame(
    network: TrackerNetwork, features: ImageFeatures, requests: Sequence[DecodeRequest], fill_hole_area: int
) -> list[ObjectOutput]:
    """Decode all requests on one frame; background regions of at most `fill_hole_area` pixels are filled."""
    decoded = network.decode(features, requests, remember=True)
    return [object_output(r, d, fill_hole_area) for r, d in zip(requests, decoded, strict=True)]


def object_output(request: DecodeRequest, decoded: DecoderOutput, fill_hole_area: int) -> ObjectOutput:
    """Convert the output of the decoder; background regions of at most `fill_hole_area` pixels are filled."""
    if request.output_logits is not None:
        logits = fill_holes(request.output_logits, fill_hole_area)
        unknown = np.full(4, np.nan, np.float32)
        return ObjectOutput(logits, MASK_PROMPT_SCORE, decoded.obj_ptr, -1, unknown, (0, 0), prompted=True)
    prompted = not request.is_tracking_only
    logits = fill_holes(decoded.low_res_logits, fill_hole_area)
    return ObjectOutput(
        logits,
        decoded.score,
        decoded.obj_ptr,
        decoded.selected,
        decoded.ious,
        decoded.memory_tokens,
        prompted,
        # the memory of a tracked frame is made of the logits as they were decoded, before holes are filled
        raw_logits=None if prompted else decoded.low_res_logits,
        decoded_memory=None if prompted else decoded.decoded_memory,
        mask_bits=decoded.mask_bits if logits is decoded.low_res_logits else None,  # made before holes were filled
    )


def commit_memory(
    network: TrackerNetwork, features: ImageFeatures, outputs: Sequence[tuple[TrackedObject, ObjectOutput]]
) -> None:
    """Write the memory of objects on one frame, in one batch."""
    if not outputs:
        return
    with freed_on_error(outputs):
        work = MemoryWork(network, features, outputs)
        work.run()
    work.finish()


@contextmanager
def freed_on_error(outputs: Sequence[tuple[TrackedObject, ObjectOutput]]) -> Iterator[None]:
    """Free the blocks of objects if the computation inside fails: no later frame may attend to one that is not written.

    An interrupt counts as a failure; the end of a generator at a step does not.
    """
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException:
        for tracked, output in outputs:
            tracked.free_block(output)
        raise


class DecodeWork(Work):
    """Decoding of the objects of one frame, alone or with those of frames of other sessions."""

    def __init__(self, network: TrackerNetwork, features: ImageFeatures, requests: Sequence[DecodeRequest]) -> None:
        super().__init__(network.device.lock, ("decode", id(network)), len(requests), network.max_batch)
        self._network, self._features, self._requests = network, features, requests
        self.outputs: list[DecoderOutput] = []

    def _run(self, others: Sequence[DecodeWork]) -> None:
        if not others:
            self.outputs = self._network.decode(self._features, self._requests, remember=True)
            return
        works = (self, *others)
        features = self._network.join_features([work._features for work in works])
        requests = [replace(r, picture=i) for i, work in enumerate(works) for r in work._requests]
        outputs = iter(self._network.decode(features, requests, remember=True))
        for work in works:
            work.outputs = list(islice(outputs, len(work._requests)))


class MemoryWork(Work):
    """Writing of the memory of the objects on one frame, alone or with those on frames of other sessions."""

    def __init__(
        self, network: TrackerNetwork, features: ImageFeatures, outputs: Sequence[tuple[TrackedObject, ObjectOutput]]
    ) -> None:
        super().__init__(network.device.lock, ("memory", id(network)), len(outputs), network.max_batch)
        self._network, self._features, self._outputs = network, features, outputs
        for tracked, output in outputs:
            output.block = output.block or tracked.memory.allocate()

    def _run(self, others: Sequence[MemoryWork]) -> None:
        works = (self, *others)
        waiting = [(i, output) for i, work in enumerate(works) for output in work._unwritten()]
        if not waiting:
            return
        features = self._network.join_features([work._features for work in works]) if others else self._features
        pictures, outputs = [i for i, _ in waiting], [output for _, output in waiting]
        self._network.encode_memory(
            features,
            [output.low_res_logits if output.raw_logits is None else output.raw_logits for output in outputs],
            [output.prompted for output in outputs],
            [output.score for output in outputs],
            [output.block for output in outputs if output.block is not None],
            pictures=pictures,
        )

    def _unwritten(self) -> list[ObjectOutput]:
        """Write what was computed with the masks; return the rest."""
        outputs = [(output, output.block) for _, output in self._outputs if output.block is not None]
        return [output for output, block in outputs if not self._network.keep_memory(output.decoded_memory, block)]

    def finish(self) -> None:
        """Forget what only the memory was made of, when it is written."""
        for _, output in self._outputs:
            output.raw_logits = output.decoded_memory = None
