"""SAMWISE (Cuttano et al., CVPR 2025, arXiv:2411.17646): allocation, and opening of sessions.

A clip of up to `window` frames is encoded together with each prompt (`clip_encoder.py`); then its frames are decoded in
order, each against the memory of those before it (`frame_runner.py`, `frame_decoder.py`). The signatures of the stages
are in `docs/architecture.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from ...bundle.manifest import TensorSpec
from ...bundle.schema import Group
from ...device.scratch import ScratchBuffers
from ...errors import BundleError, UserError
from ...prompts import Text
from ...tokenizer import Tokenizer, encode, verb_positions
from ...tracking.object_memory import BlockPool
from ..base import Capability, Signature
from ..context import NetworkContext
from ..options import TextOptions
from .clip import AheadClip, Clip, RollingClip
from .clip_encoder import ClipEncoder
from .frame_decoder import FrameDecoder
from .frame_runner import FrameRunner
from .frames_ahead import FramesAhead
from .joint_runner import JointRunner
from .sentences import ResultReader, SentenceGroup, Sentences
from .session import TextSession
from .signature import SETTINGS, SIGNATURE
from .state import TextTrack
from .transforms import ImageSettings


class Samwise:
    """Stages, buffers and memory of one SAMWISE bundle."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.TEXT_VIDEO})
    settings_schema: ClassVar[Group] = SETTINGS
    signature: ClassVar[Signature] = SIGNATURE
    required_stages: ClassVar[tuple[str, ...]] = (*ClipEncoder.STAGES, *FrameDecoder.STAGES)
    optional_stages: ClassVar[tuple[str, ...]] = (*FrameDecoder.OPTIONAL_STAGES, *ClipEncoder.OPTIONAL_STAGES)
    uses_kernels: ClassVar[bool] = True
    records_stages: ClassVar[bool] = False

    def __init__(self, context: NetworkContext) -> None:
        bundle, settings, stages, device = context.bundle, context.settings, context.stages, context.device
        specs = {name: stage.spec for name, stage in stages.items()}
        self._bundle = bundle
        self._tokenizer: Tokenizer | None = None
        self._cme: Mapping[str, int] | None = settings["conditional_memory"]
        if self._cme is not None and "conditional_memory" not in stages:
            raise BundleError(f"{bundle.folder}: stage conditional_memory is missing; export the bundle again")
        self.window: int = settings["window"]
        # a batch never exceeds what the graphs were exported for; more prompts run in several batches
        self._max_tracks = min(context.max_objects, bundle.manifest.bounds["objects"][1])
        sizes = {symbol: high for symbol, (_, high) in bundle.manifest.bounds.items()} | {
            "frames": self.window,
            "objects": self._max_tracks,
            "maps": self._max_tracks,
            "tokens": settings["text"]["max_tokens"],
            # the reference counts the frame itself among both
            "slots": settings["memory"]["num_maskmem"] - 1,
            "pointers": settings["memory"]["max_obj_ptrs"] - 1,
        }
        scratch, motion = ScratchBuffers(device, specs, sizes), settings["text"]["motion"]
        self.maskmem_pool, self.obj_ptr_pool = (
            self._new_pool(context, specs["memory_attention"].input(name), sizes) for name in ("memory", "obj_ptrs")
        )
        self.pools = (self.maskmem_pool,)  # rows of pointers go along with it
        self._encoder = ClipEncoder(stages, device, scratch, sizes, motion)
        decoder = FrameDecoder(stages, device, scratch, self._max_tracks, motion)
        memory = {"memory": self.maskmem_pool.array, "obj_ptrs": self.obj_ptr_pool.array}
        self._runner = FrameRunner(decoder, device, scratch, specs, sizes, memory)
        self._joint = JointRunner(decoder, self._runner, device, scratch, specs, sizes)
        low_res_side = specs["mask_decoder"].output("low_res_logits").resolve(sizes)[1]
        self._images = ImageSettings(
            settings, bundle.manifest.image_size, low_res_side, self._max_tracks, device, context.kernels
        )

    @staticmethod
    def _new_pool(context: NetworkContext, tensor: TensorSpec, sizes: Mapping[str, int]) -> BlockPool:
        """Allocate the memory of all objects for an input of memory attention, from which that reads in place."""
        _, blocks, *shape = tensor.resolve(sizes)
        return BlockPool(context.device, context.max_objects, blocks, shape, tensor.dtype, contiguous=True)

    def open_text_session(self, prompts: Sequence[Text], logits: bool, options: TextOptions) -> TextSession:
        """Start tracking the objects that `prompts` name through a new video. Raises PromptError, UserError."""
        window = self.window if options.window is None else options.window
        if options.conditional_memory and self._cme is None:
            raise UserError(f"the bundle {self._bundle.name} has no conditional memory; omit conditional_memory")
        if not 1 <= window <= self.window:
            raise UserError(
                f"window must be 1 to {self.window}, the clip length this bundle was trained with, not {window}"
            )
        rolling = options.latency == "low" and window > 1
        ahead = options.encode_ahead and self._images.device.supports_graph_capture
        if rolling and options.encode_ahead:
            raise UserError("encode_ahead encodes whole clips, and latency='low' single frames; remove one of them")
        if ahead and not self._images.device.records_stages:
            raise UserError("encode_ahead needs the backend ort-cuda: stages of TensorRT share scratch; remove it")
        if rolling and not self._encoder.has_steps:
            raise UserError(
                f"the bundle {self._bundle.name} was exported without low latency; run "
                f"`python -m export add-steps {self._bundle.folder}`, or export it again"
            )
        clip = RollingClip if rolling else AheadClip if ahead else Clip
        open_group = partial(self._open_group, window=window, clip=clip, options=options)
        # the host has no work to overlap
        reader = ResultReader(self._images, logits, options.decode_ahead and self._images.device.name != "cpu")
        frames_ahead = FramesAhead(self._encoder.frames, self._images.device, 0 if ahead else window)
        return TextSession(Sentences(open_group, prompts, reader, frames_ahead), self._images.device.lock)

    def _open_group(
        self, prompts: Sequence[Text], window: int, clip: type[Clip], options: TextOptions
    ) -> SentenceGroup:
        """Allocate what sentences that begin together need."""
        tracks, n = self._open_tracks(prompts), self._max_tracks
        for track in tracks if clip is RollingClip else ():
            track.kept = self._encoder.new_kept_maps(window)
        cme = None if options.conditional_memory is False or not options.memory else self._cme
        batches = [self._runner.new_batch(tracks[i : i + n], cme, options.memory) for i in range(0, len(tracks), n)]
        own = clip(self._encoder, tracks, window)
        own.stills = options.reference_quirks
        return SentenceGroup(self._joint, own, batches)

    def _open_tracks(self, prompts: Sequence[Text]) -> list[TextTrack]:
        manifest = self._bundle.manifest
        self._tokenizer = tokenizer = self._tokenizer or Tokenizer.of(self._bundle.folder, manifest)
        encoded = [(encode(p, manifest, tokenizer), verb_positions(p, manifest, tokenizer)) for p in prompts]
        self.maskmem_pool.check_room(len(encoded))
        return [
            self._encoder.new_track(tokens, verbs, self.maskmem_pool.open(), self.obj_ptr_pool.open())
            for tokens, verbs in encoded
        ]
