"""Clip encoder of SAMWISE: one clip at a time, with every prompt."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ...bundle.manifest import STEP, TensorSpec
from ...device.base import Array, Device
from ...device.graphs import GraphCache, SharedGraphs
from ...device.scratch import ScratchBuffers
from ...tracking.object_memory import ObjectMemory
from .frame_encoder import FrameEncoder, join_streams
from .kept_maps import KeptMaps
from .prompt_encoder import LEVELS, PromptEncoder
from .state import TextTrack

if TYPE_CHECKING:
    from ...backends.base import Stage

MAX_GRAPHS = 64
"""Most graphs that sessions share: one for each combination of a clip's length and a sentence's number of tokens."""

KEPT = frozenset(f"kept_{k}" for k in range(LEVELS))
CLIP_INPUTS = ("vision_0", "text_0", "verb")
"""Arrays that the encoding of a clip with a sentence reads; `verb` where verbs are prompted."""


class ClipEncoding:
    """One clip that is being encoded, stage by stage; made by `ClipEncoder.begin`."""

    def __init__(self, calls: Iterator[None]) -> None:
        self._calls = calls
        self.is_done = False
        self.error: BaseException | None = None
        """What ended it before its time."""

    def advance(self) -> None:
        """Run the next stage."""
        try:
            next(self._calls)
        except StopIteration:
            self.is_done = True
        except BaseException as error:
            self.is_done, self.error = True, error
            raise


class ClipEncoder:
    """Encodes up to `window` frames with each prompt, or with low latency one frame behind `window` - 1 earlier ones.

    Stages that no text has entered run once for all prompts, and stages that no frame has entered once per prompt. The
    first stage, which sees no other frame, runs as soon as its frame is there. What lies between the others is scratch,
    so that one clip at a time is encoded.
    """

    STAGES = (*(f"{kind}_{k}" for kind in ("hiera", "text", "adapter") for k in range(LEVELS)), "neck", "text_prompt")
    OPTIONAL_STAGES = tuple(f"adapter_{k}{STEP}" for k in range(LEVELS))
    """Those of low latency; a bundle has all of them or none."""

    def __init__(
        self,
        stages: Mapping[str, Stage],
        device: Device,
        scratch: ScratchBuffers,
        sizes: Mapping[str, int],
        motion: bool,
    ) -> None:
        names = (*self.STAGES, *(self.OPTIONAL_STAGES if self.OPTIONAL_STAGES[0] in stages else ()))
        self._stages, self.device = {name: stages[name] for name in names}, device
        self._sizes, self._motion = sizes, motion
        self.frames = FrameEncoder(self._stages["hiera_0"], device, sizes)
        self._prompt = PromptEncoder(self._stages, device, scratch, sizes)
        self._shared = SharedGraphs(device, self._new_shared, MAX_GRAPHS)
        self._current: weakref.ref[ClipEncoding] | None = None
        """The clip that has begun; gone with the session that it belongs to."""

    def _new_shared(self) -> dict[str, Array]:
        """Allocate what graphs that sessions share read and write."""
        specs = [self._stages[name].spec for name in ("adapter_0", "text_prompt")]
        inputs = [tensor for spec in specs for tensor in spec.inputs if tensor.name in CLIP_INPUTS]
        return self._allocate([*inputs, *self._clip_outputs()], self._sizes)

    def _clip_outputs(self) -> list[TensorSpec]:
        return [*self._stages["neck"].spec.outputs, self._stages["text_prompt"].spec.output("sparse")]

    def _allocate(self, tensors: Sequence[TensorSpec], sizes: Mapping[str, int]) -> dict[str, Array]:
        return {t.name: self.device.empty(t.resolve(sizes), t.dtype) for t in tensors}

    def new_track(
        self, tokens: np.ndarray, verbs: np.ndarray, maskmem: ObjectMemory, obj_ptrs: ObjectMemory
    ) -> TextTrack:
        """Allocate the buffers of a prompt and run the part of the text tower that sees no frame.

        `verbs`: positions in `tokens`. The reference repeats each one for every frame and then reads only the first;
        without a verb its token is absent.
        """
        outputs = [self._stages["text_0"].spec.output("text_0"), *self._clip_outputs()]
        features = self._allocate(outputs, {**self._sizes, "tokens": len(tokens)})
        if self._motion:
            features["verb"] = self.device.constant(verbs[:1] if len(verbs) else np.zeros(1, np.int64))
        self._stages["text_0"].run(tokens=self.device.constant(tokens), text_0=features["text_0"])
        absent = self._motion and not len(verbs)
        return TextTrack(maskmem, obj_ptrs, features, sparse_count=features["sparse"].shape[1] - absent)

    @property
    def has_steps(self) -> bool:
        """Whether the bundle has the stages of low latency."""
        return self.OPTIONAL_STAGES[0] in self._stages

    def new_kept_maps(self, window: int) -> KeptMaps:
        """Allocate the maps that low latency keeps of a track."""
        inputs = [t for name in self.OPTIONAL_STAGES for t in self._stages[name].spec.inputs]
        return KeptMaps(self.device, {t.name: t for t in inputs if t.name in KEPT}, window - 1)

    def new_graphs(self, num_tracks: int, beside: bool = False) -> GraphCache:
        """Return graphs of the clips of one video, which are in its own arrays; `beside`: see `Device.capture`."""
        return GraphCache(self.device, max_graphs=(1 + num_tracks) * self._sizes["frames"], beside=beside)

    def begin(
        self,
        clip: Mapping[str, Array],
        tracks: Sequence[TextTrack],
        length: int,
        graphs: GraphCache | None = None,
        keep: bool = False,
    ) -> ClipEncoding:
        """Encode the first `length` frames of the clip with every prompt, into the maps of its track, by `advance`.

        graphs  on the arrays of the clip; None: those that sessions share
        keep    keep the maps of the frames, the first ones of a video, that `begin_step` will need
        """
        shared = {name: array[:length] for name, array in clip.items()}
        return ClipEncoding(self._encode(shared, tracks, length, graphs, keep))

    def begin_step(
        self, clip: Mapping[str, Array], tracks: Sequence[TextTrack], frame: int, graphs: GraphCache
    ) -> ClipEncoding:
        """Encode one frame, the first of the clip and number `frame` of the video, behind those whose maps are kept."""
        return ClipEncoding(self._encode_step({name: array[:1] for name, array in clip.items()}, tracks, frame, graphs))

    def advance(self, encoding: ClipEncoding) -> None:
        """Run the next stage of a clip, or of another one that has begun and not ended.

        An error of the other clip is raised where that one is advanced.
        """
        if encoding.error is not None:
            raise encoding.error
        if encoding.is_done:
            return
        current = encoding if self._current is None else self._current() or encoding
        self._current = weakref.ref(current)
        try:
            current.advance()
        except Exception:
            if current is encoding:
                raise
        finally:
            if current.is_done:
                self._current = None

    def _encode(
        self,
        shared: Mapping[str, Array],
        tracks: Sequence[TextTrack],
        length: int,
        graphs: GraphCache | None,
        keep: bool,
    ) -> Iterator[None]:
        """Encode the clip with one prompt after the other: stage by stage, or in one step as a graph."""
        for i, track in enumerate(tracks):
            own = {**shared, **track.features, **track.encoded}
            join_streams(self.device, graphs)
            if graphs is not None and graphs.graph_ready():
                graphs.run((i, length), partial(self._prompt.encode_at_once, own, length))
                yield
            elif graphs is None and self._shared.is_ready and not keep:
                outputs = {t.name: own[t.name][:length] for t in self._clip_outputs()}
                inputs = {name: own[name] for name in CLIP_INPUTS if name in own}
                self._shared.run("clip", partial(self._prompt.encode_at_once, length=length), inputs, outputs)
                yield
            else:
                yield from self._prompt.encode(own, length, kept=track.kept if keep else None)

    def _encode_step(
        self, shared: Mapping[str, Array], tracks: Sequence[TextTrack], frame: int, graphs: GraphCache
    ) -> Iterator[None]:
        for i, track in enumerate(tracks):
            assert track.kept is not None
            own = {**shared, **track.features, **track.kept.arrays}
            join_streams(self.device, graphs)
            track.kept.place(frame)
            if graphs.graph_ready():
                graphs.run((i, STEP), partial(self._prompt.encode_at_once, own, 1, STEP))
                yield
            else:
                yield from self._prompt.encode(own, 1, STEP)
            for k in range(LEVELS):
                track.kept.keep(k, frame, self._prompt.narrow(k))
