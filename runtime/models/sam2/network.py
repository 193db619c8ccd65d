"""SAM 2 and 2.1: prompts and memory to masks, for any number of objects at once.

The arithmetic of one frame: an image is encoded once, then all requests run as one batch through memory attention,
prompt encoder and mask decoder. The requests for each frame come from `tracking/video.py` (frames known),
`tracking/live.py` (frames as they come) and `image.py` (no memory).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import ClassVar

import numpy as np

from ...bundle.schema import COUNT, NORMALIZATION, RESAMPLE, RESIZE, Group, number
from ...device.base import Array
from ...device.inputs import HostArrays, InputBlock
from ...device.scratch import GrowableBuffers
from ...device.workers import has_small_frames
from ...errors import UserError
from ...imaging.frame_input import FrameInput
from ...imaging.gpu import mask_sizes
from ...imaging.upsample import square_upsampler
from ...media.random_access import FrameSequence
from ...tracking.frames import FrameReader
from ...tracking.live import MAX_COND_FRAMES, LiveSession
from ...tracking.memory_selection import MemoryConfig
from ...tracking.object_memory import Block, BlockPool
from ...tracking.prompt_inputs import PromptEncoder
from ...tracking.requests import DecodeRequest, DecoderOutput, ImageFeatures
from ...tracking.state import TrackingOptions
from ...tracking.video import VideoSession
from ..base import MASK_DECODER, MEMORY_ATTENTION, Capability, Signature
from ..context import NetworkContext
from .feature_maps import FeatureMaps
from .image import Sam2ImagePredictor
from .mask_decoding import Decoding, MaskDecoding
from .memory_encoding import MemoryEncoding
from .prompt_encoding import PromptEncoding

VIDEO_BLOCKS = 32
"""Blocks by which an object's memory grows where frames are known."""


class Sam2:
    """Stages, buffers and memory of one SAM 2 bundle."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.PROMPT_VIDEO, Capability.PROMPT_IMAGE})
    required_stages: ClassVar[tuple[str, ...]] = (
        "image_encoder",
        "prompt_encoder",
        "mask_prompt",
        "prompt_decoder",
        "memory_attention",
        "prompt_memory_encoder",
    )
    optional_stages: ClassVar[tuple[str, ...]] = ()
    uses_kernels: ClassVar[bool] = True
    records_stages: ClassVar[bool] = True
    clicks_see_memory = True
    tracking_defaults = TrackingOptions()
    features_stage: ClassVar[str] = "image_encoder"
    """Stage that computes `ImageFeatures`."""
    settings_schema: ClassVar[Group] = Group(
        {
            **NORMALIZATION,
            "resize": RESIZE,
            "memory": Group({"num_maskmem": COUNT, "max_obj_ptrs": COUNT}),
            "resample": Group({"video": RESAMPLE, "image": RESAMPLE}),
            "no_object_logit": number,
        }
    )
    signature: ClassVar[Signature] = Signature(
        bounds=("objects", "maps", "prompt_tokens"),
        tensors={
            **MEMORY_ATTENTION,
            **MASK_DECODER,
            "pixels": "t 3 I I",
            "points": "b k 2",
            "labels": "int64: b k",
            "prompt_logits": "b S S",
            "has_mask": "bool: b",
            "sparse": "b k D",
            "dense": "b N D",
            "mask": "b I I",
            "multimask": "bool: b",
            "all_logits": "b 4 S S",
            "ious": "b 4",
            "selected": "int64: b",
            "binarize": "bool: b",
        },
        inputs={
            "image_encoder": "pixels",
            "memory_attention": "embedding memory maskmem_tpos_index obj_ptrs",
            "prompt_decoder": "sparse dense",
            "mask_prompt": "mask",
        },
        outputs={
            "image_encoder": "embedding embedding_no_memory high_res_0 high_res_1",
            "prompt_encoder": "sparse dense",
            "mask_prompt": "mask_logits prompt_logits",
            "memory_attention": "conditioned",
            "prompt_memory_encoder": "maskmem_features",
            "prompt_decoder": "low_res_logits all_logits ious selected score obj_ptr",
        },
    )

    def __init__(self, context: NetworkContext) -> None:
        manifest, settings, device = context.bundle.manifest, context.settings, context.device
        self._stages, self.device = context.stages, device
        self._specs = {name: stage.spec for name, stage in self._stages.items()}
        self._bundle, self._bounds = context.bundle.name, manifest.bounds
        self._image_size = manifest.image_size
        self._settings, self._kernels = settings, context.kernels
        self.frame_reader = FrameReader(device, context.kernels)
        self.resample: Mapping[str, str] = settings["resample"]
        self.no_object_logit: float = settings["no_object_logit"]
        self.memory_config = MemoryConfig(settings["memory"]["num_maskmem"], settings["memory"]["max_obj_ptrs"])
        self.low_res_side = int(self._specs["prompt_decoder"].output("low_res_logits").shape[1])
        self.prompt_encoder = self._make_prompt_encoder(manifest.bounds["prompt_tokens"][1] - 1)
        # a batch never exceeds what the graphs were exported for; more objects run in several batches
        self.max_batch = min(context.max_objects, *(manifest.bounds[s][1] for s in ("objects", "maps")))
        self._max_objects = context.max_objects
        self.has_small_frames = has_small_frames(self._specs[self.features_stage])
        self._pools: dict[tuple[int, int], BlockPool] = {}
        self.pools = self._pools.values()
        self._allocate()

    def _make_prompt_encoder(self, max_points: int) -> PromptEncoder:
        return PromptEncoder(self._bundle, self._image_size, max_points)

    def _allocate(self) -> None:
        """Allocate scratch for the usual numbers of memory frames and points; it grows once for larger ones."""
        device, stages, scratch = self.device, self._stages, GrowableBuffers(self.device)
        self._inputs = self._make_inputs()
        logits = self._specs["prompt_decoder"].output("low_res_logits")
        self.device_masks = mask_sizes(
            device, self._kernels, logits.dtype, partial(square_upsampler, self.low_res_side)
        )
        self._maps = FeatureMaps(self._specs[self.features_stage].outputs, device, scratch)
        self.join_features = self._maps.join
        self._prompts = PromptEncoding(
            stages["prompt_encoder"], stages["mask_prompt"], device, scratch, self.low_res_side
        )
        self._memory = MemoryEncoding(stages["prompt_memory_encoder"], device, scratch, self.max_batch)
        self._decoding = MaskDecoding(
            stages, device, scratch, self.max_batch, self._inputs, self._prompts, self._memory
        )
        self.keep_memory = self._memory.keep
        # conditioning frames come on top of the memory of the frames before, mostly one
        maps, pointers = self.memory_config.num_maskmem + 1, self.memory_config.max_obj_ptrs + MAX_COND_FRAMES
        sizes = {"objects": self.max_batch, "prompt_tokens": 2, "slots": maps, "pointers": pointers}
        self._decoding.allocate(sizes)
        self._prompts.allocate(sizes)
        self._memory.allocate()

    def _make_inputs(self) -> InputBlock:
        """Return what requests are uploaded through, and frames with them, with room for a frame."""
        inputs, tensor = InputBlock(self.device), self._specs["image_encoder"].input("pixels")
        inputs.reserve(prod(tensor.resolve({"frames": 1})) * np.dtype(tensor.dtype).itemsize)
        self._frame_input = FrameInput(inputs, tensor, self._settings, self.device, self._kernels)
        return inputs

    # -- sessions -------------------------------------------------------------------------------------------------

    def open_video(self, frames: FrameSequence, logits: bool, options: TrackingOptions) -> VideoSession:
        """Open a video whose frames are known; see `Engine.video`."""
        return VideoSession(self, frames, logits, options)

    def open_live(self, logits: bool, options: TrackingOptions) -> LiveSession:
        """Open a video whose frames come one by one; see `Engine.live`."""
        return LiveSession(self, logits, options)

    def open_image(self, frame_hwc: Array) -> Sam2ImagePredictor:
        """Encode an image, uint8 RGB (H,W,3); see `Engine.image`."""
        return Sam2ImagePredictor(self, frame_hwc)

    def memory_pool(self, blocks: int | None = None, capacity: int | None = None) -> BlockPool:
        """Return the pool whose chunks have this many blocks, made on first use; None: `VIDEO_BLOCKS`. `capacity`:
        objects at a time, None: those of the engine."""
        key = VIDEO_BLOCKS if blocks is None else blocks, self._max_objects if capacity is None else capacity
        if key not in self._pools:
            tensor = self._specs["prompt_memory_encoder"].output("maskmem_features")
            shape = tensor.resolve({"objects": 1})[1:]
            self._pools[key] = BlockPool(self.device, key[1], key[0], shape, tensor.dtype)
        return self._pools[key]

    # -- one frame ------------------------------------------------------------------------------------------------

    def new_features(self) -> ImageFeatures:
        """Allocate the feature maps of one frame."""
        outputs = self._specs[self.features_stage].outputs
        return ImageFeatures(**{t.name: self.device.empty(t.resolve({"frames": 1}), t.dtype) for t in outputs})

    def encode_image(
        self, frame_hwc: Array, features: ImageFeatures, resample: str, requests: Sequence[DecodeRequest] | None = None
    ) -> None:
        """Write the feature maps of a frame, uint8 RGB (H,W,3); `resample` as in `imaging.preprocess`. What `decode`
        takes for `requests`, those of the frame, is uploaded with it."""
        pixels = self._frame_input.upload(frame_hwc, resample, self.inputs_of(requests))
        self._maps.write(features, partial(self._stages["image_encoder"].run, pixels=pixels))

    def inputs_of(self, requests: Sequence[DecodeRequest] | None) -> Sequence[tuple[object, HostArrays]]:
        """Return what `decode` takes for requests, for `InputBlock.upload`."""
        return [(requests, self._decoding.host_inputs(requests))] if requests else []

    def encode_mask_prompt(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the dense prompt (s,s) of a mask (I,I), and the low-res logits (s,s) of the mask itself."""
        (encoded,) = self._prompts.encode_masks([mask])
        return encoded["prompt_logits"], encoded["mask_logits"]

    def decode(
        self,
        features: ImageFeatures,
        requests: Sequence[DecodeRequest],
        all_logits: bool = False,
        remember: bool = False,
    ) -> list[DecoderOutput]:
        """Decode all requests on one frame, in batches; `all_logits` keeps the four ungated masks of each. `remember`:
        their memory will be written as it is decoded, if they are only tracked.

        Raises UserError for more memory than the bundle takes.
        """
        return self.start_decoding(features, requests, all_logits, remember).finish()

    def start_decoding(
        self,
        features: ImageFeatures,
        requests: Sequence[DecodeRequest],
        all_logits: bool = False,
        remember: bool = False,
    ) -> Decoding:
        """Enqueue what `decode` does; its `finish` waits for the last batch."""
        for maps, pointers in {request.memory_shape for request in requests}:
            if maps > self._bounds["slots"][1] or pointers > self._bounds["pointers"][1]:
                raise UserError(
                    f"{maps} remembered frames are more than the bundle {self._bundle} takes "
                    f"({self._bounds['slots'][1]}); limit them with max_cond_frames_in_attn"
                )
        return self._decoding.start(self._maps.fixed(features), requests, all_logits, remember)

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
        """Write the memory features of objects on one frame into their blocks.

        logits (s,s) low-res logits; `binarize`: whether they come from a prompt; `scores` presence logits; `direct`:
        see `export.stages.memory_encoder.PromptMemoryStage`; `pictures`: rows of the feature maps, of several frames.
        """
        self._memory.encode(self._maps.fixed(features), logits, binarize, scores, blocks, direct, pictures)
