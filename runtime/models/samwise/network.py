"""SAMWISE: the order of its stages (Cuttano et al., CVPR 2025, arXiv:2411.17646).

A clip of up to `window` frames is encoded together with each sentence; then its frames are decoded one after another
against the memory of the frames before. What text has not entered runs once for all sentences, what vision has not
entered runs once per sentence. See `docs/architecture.md` for the signature of every stage.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, ClassVar

import numpy as np

from ...bundle.manifest import TensorSpec
from ...device.scratch import ReadbackBuffer, ScratchBuffers
from ...errors import UserError
from ...imaging.gpu import DeviceImages
from ...imaging.preprocess import preprocess, resized_size
from ...prompts import Text
from ...tokenizer import Tokenizer, encode, verb_positions
from ...tracking.memory import MemoryPool
from ..base import MASK_DECODER, MEMORY_ATTENTION, Capability, NetworkContext, Signature
from ..options import TextOptions
from .session import TextSession
from .state import Batch, Clip, Decoded, Lane, Reads

RECORDINGS = 8
"""Most recorded graphs of one batch: lanes fall due together or not at all, unless they fired on different frames."""


class Samwise:
    """Stages, buffers and memory of one SAMWISE bundle."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.TEXT_VIDEO})
    required_stages: ClassVar[tuple[str, ...]] = (
        "hiera_0",
        "hiera_1",
        "hiera_2",
        "text_0",
        "text_1",
        "text_2",
        "adapter_0",
        "adapter_1",
        "adapter_2",
        "neck",
        "text_prompt",
        "memory_attention",
        "mask_decoder",
        "memory_encoder",
    )
    optional_stages: ClassVar[tuple[str, ...]] = ("conditional_memory",)
    uses_kernels: ClassVar[bool] = True
    signature: ClassVar[Signature] = Signature(
        settings=("window", "mean", "std", "resize", "memory", "conditional_memory", "text"),
        bounds=("objects",),
        tensors={
            **MEMORY_ATTENTION,
            **MASK_DECODER,
            "pixels": "t 3 I I",
            "vision_0": "t A A C",
            "vision_0_fused": "t A A C",
            "vision_1": "t B B E",
            "vision_1_fused": "t B B E",
            "vision_2": "t J J K",
            "vision_2_fused": "t J J K",
            "tokens": "int64: l",
            "text_0": "l W",
            "text_0_fused": "l W",
            "text_1": "l W",
            "text_1_fused": "l W",
            "text_2": "l W",
            "text_2_fused": "l W",
            "verb": "int64: v",
            "sparse": "b P D",
            "iou": "b",
            "early_token": "b D",
            "memoryless_logits": "b S S",
            "remembered_logits": "b I I",
            "decision": "b 2",
            "switched": "bool: b",
        },
        inputs={
            "hiera_0": "pixels",
            "memory_attention": "embedding memory maskmem_tpos_index obj_ptrs",
            "mask_decoder": "sparse high_res_0 high_res_1",
            "memory_encoder": "mask_logits",
        },
        outputs={
            "hiera_0": "vision_0 high_res_0",
            "neck": "embedding embedding_no_memory high_res_1",
            "text_prompt": "sparse",
            "mask_decoder": "low_res_logits iou score obj_ptr early_token",
            "memory_encoder": "maskmem_features",
            "memory_attention": "conditioned",
            "conditional_memory": "remembered_logits decision switched",
        },
    )

    def __init__(self, context: NetworkContext) -> None:
        bundle, stages, device, objects = context.bundle, context.stages, context.device, context.max_objects
        manifest, specs = bundle.manifest, {name: stage.spec for name, stage in stages.items()}
        settings = context.settings
        self.kernels = context.kernels
        self._bundle, self._stages, self._specs, self._device = bundle, stages, specs, device
        self._tokenizer: Any = None
        self.image_size = manifest.image_size
        self.window: int = settings["window"]
        self.mean, self.std = tuple(settings["mean"]), tuple(settings["std"])
        self._resize = settings["resize"]
        self._cme: Mapping[str, int] | None = settings["conditional_memory"]
        self._motion: bool = settings["text"]["motion"]
        # the reference counts the frame itself among both
        self._slots: int = settings["memory"]["num_maskmem"] - 1
        self._pointers: int = settings["memory"]["max_obj_ptrs"] - 1
        self.low_res_side: int = specs["mask_decoder"].output("low_res_logits").shape[1]
        # a batch never exceeds what the graphs were exported for; more sentences run in several batches
        self.batch = min(objects, manifest.bounds["objects"][1])
        self._allocate(settings, objects)

    def _allocate(self, settings: Mapping[str, Any], objects: int) -> None:
        device, specs = self._device, self._specs
        decoder, attention = specs["mask_decoder"], specs["memory_attention"]
        slot, pointer = specs["memory_encoder"].output("maskmem_features"), decoder.output("obj_ptr")
        self.pool = MemoryPool(
            device, objects, self._slots, slot.shape[1], slot.shape[2], self._pointers, pointer.shape[1], slot.dtype
        )
        self._work = work = ScratchBuffers(
            device,
            specs,
            {
                "frames": self.window,
                "objects": self.batch,
                "maps": self.batch,
                "tokens": settings["text"]["max_tokens"],
            },
        )
        work.add("batch_embedding", attention.input("embedding"))
        work.add("batch_sparse", decoder.input("sparse"))
        work.add("batch_embedding_no_memory", attention.input("embedding"))
        work.add("batch_high_res_1", decoder.input("high_res_1"))
        work.add("batch_high_res_0", decoder.input("high_res_0"), pictures=1)
        self._batch_memory = device.empty((self.batch, self._slots, *slot.shape[1:]), slot.dtype)
        self._batch_pointers = device.empty((self.batch, self._pointers, pointer.shape[1]), pointer.dtype)
        self._batch_age = device.empty((self.batch, self._slots), attention.input("maskmem_tpos_index").dtype)
        self._steady = max(self._slots, self._pointers)  # from this frame on, no shape changes
        self._result_specs = [decoder.output("score")]
        if self._cme is not None:
            self._result_specs.append(specs["conditional_memory"].output("switched"))
            for tensor in decoder.outputs:
                work.add("memoryless_" + tensor.name, tensor)
                work.add("due_" + tensor.name, tensor)
            work.add("due_high_res_1", decoder.input("high_res_1"))
        self._result_specs.append(decoder.output("low_res_logits"))
        self._index = device.constant(np.arange(self.batch, dtype=np.int64))
        self._zeros = device.constant(np.zeros(self.batch, np.int64))
        # the reference leaves the verb out of the decode without memory
        without_verb = decoder.input("sparse").shape[1] - self._motion
        self._count_without_verb = device.constant(np.full(self.batch, without_verb, np.int64))

    # -- sessions -------------------------------------------------------------------------------------------------

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a source frame inside the square that the network sees."""
        return resized_size(*size, **self._resize)

    def open_text_session(
        self,
        prompts: Sequence[Text],
        logits: bool,
        options: TextOptions,
        on_close: Callable[[TextSession], None] | None = None,
    ) -> TextSession:
        """Open a session; see `Engine.session`. Raises PromptError, UserError."""
        return TextSession(self, prompts, logits, options, on_close)

    def open(self, prompts: Sequence[Text], conditional_memory: bool | None = None, memory: bool = True) -> Clip:
        """Buffers for one video, and a lane per sentence. Raises PromptError, UserError."""
        if conditional_memory and self._cme is None:
            raise UserError(f"the bundle {self._bundle.name} has no conditional memory; omit conditional_memory")
        manifest, new = self._bundle.manifest, self._device.empty
        self._tokenizer = self._tokenizer or Tokenizer.of(self._bundle.folder, manifest)
        encoded = [
            (encode(p, manifest, self._tokenizer), verb_positions(p, manifest, self._tokenizer)) for p in prompts
        ]
        pixels, fine = self._specs["hiera_0"].input("pixels"), self._specs["hiera_0"].output("high_res_0")
        sizes = {"frames": self.window}
        clip = Clip(
            new(pixels.resolve(sizes), pixels.dtype),
            new(fine.resolve(sizes), fine.dtype),
            conditional_memory=conditional_memory is not False,
            memory=memory,
        )
        try:
            for tokens, verbs in encoded:
                clip.lanes.append(self._lane(tokens, verbs))
        except BaseException:
            self.close(clip)
            raise
        clip.batches = [self._batched(clip.lanes[i : i + self.batch]) for i in range(0, len(clip.lanes), self.batch)]
        return clip

    def _lane(self, tokens: np.ndarray, verbs: np.ndarray) -> Lane:
        specs, new, constant = self._specs, self._device.empty, self._device.constant
        maps = {t.name: new(t.resolve({"frames": self.window}), t.dtype) for t in specs["neck"].outputs}
        text, sparse = specs["text_0"].output("text_0"), specs["text_prompt"].output("sparse")
        # the reference repeats every verb for every frame and then reads only the first; without a verb the token is absent
        verb = constant(verbs[:1] if len(verbs) else np.zeros(1, np.int64)) if self._motion else None
        lane = Lane(
            self.pool.rent(),
            new((len(tokens), text.shape[1]), text.dtype),
            verb,
            **maps,
            sparse=new(sparse.shape, sparse.dtype),
            sparse_count=sparse.shape[1] - (self._motion and not len(verbs)),
        )
        self._stages["text_0"].run(tokens=constant(tokens), text_0=lane.text_0)
        return lane

    def _batched(self, lanes: list[Lane]) -> Batch:
        """Slot s holds the newest frame before f that is s modulo `slots`; hence its age is (f - 1 - s) modulo `slots`."""
        slots, constant = self._slots, self._device.constant
        ages = [(f - 1 - np.arange(min(f, slots))) % slots for f in range(2 * slots)]
        return Batch(
            lanes,
            constant(np.array([lane.sparse_count for lane in lanes], np.int64)),
            [constant(np.tile(a.astype(np.int64), (len(lanes), 1))) for a in ages],
            self._readback(self._result_specs, len(lanes)),
        )

    def _readback(self, specs: Sequence[TensorSpec], objects: int) -> ReadbackBuffer:
        return ReadbackBuffer(self._device, specs, objects, optional=("low_res_logits",))

    def load(self, clip: Clip, offset: int, frame: Any, resized: tuple[int, int]) -> None:
        """Preprocess a source frame, uint8 (H, W, 3), into its place in the clip. A frame on the device needs kernels."""
        pixels = clip.pixels[offset]
        if self.kernels is not None and clip.images is None:
            self._use_kernels(clip, frame.shape[:2], resized)
        if clip.images is not None:
            clip.images.preprocess(frame, pixels)
            return
        host = self._device.staging(pixels)
        preprocess(frame, resized, self.image_size, self.mean, self.std, out=host)
        self._device.upload(host, pixels)

    def _use_kernels(self, clip: Clip, size: tuple[int, int], resized: tuple[int, int]) -> None:
        """From the first frame on, bytes go in and packed masks come out."""
        clip.images = DeviceImages(
            self._device,
            self.kernels,
            size,
            resized,
            self.image_size,
            self.low_res_side,
            self.mean,
            self.std,
            self.batch,
        )
        specs = [*self._result_specs, *clip.images.results()]
        for batch in clip.batches:
            batch.results = self._readback(specs, len(batch.lanes))

    def close(self, clip: Clip) -> None:
        """Give the rows of a clip's lanes back."""
        while clip.lanes:
            self.pool.release(clip.lanes.pop().row)

    # -- one clip -------------------------------------------------------------------------------------------------

    def run(self, clip: Clip, first: int, length: int, logits: bool = True) -> Iterator[Decoded]:
        """Encode `length` frames whose first has number `first`, then decode them one by one."""
        vision_0 = self._work.view("vision_0", length)
        self._each("hiera_0", length, pixels=clip.pixels, vision_0=vision_0, high_res_0=clip.high_res_0)
        for lane in clip.lanes:
            self._encode(lane, vision_0, length)
        logits |= clip.images is None  # masks are made from them on the host
        for offset in range(length):
            parts = [self._frame(clip, batch, first + offset, offset, logits) for batch in clip.batches]
            yield self._merged(clip, offset, parts)

    @staticmethod
    def _merged(clip: Clip, offset: int, parts: list[dict[str, np.ndarray]]) -> Decoded:
        """Copies of the batches' results, which are valid until the next frame."""
        read = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        images = clip.images
        masks, boxes = (None, None) if images is None else images.unpack(read["packed"], read["stats"])
        return Decoded(offset, read["score"], read.get("low_res_logits"), masks, boxes)

    def _each(self, stage: str, length: int, **arrays: Any) -> None:
        """Run a stage that never mixes frames, as many frames at a time as the device likes."""
        step = self._device.max_frames_per_call or length
        for at in range(0, length, step):
            self._stages[stage].run(**{name: array[at : min(at + step, length)] for name, array in arrays.items()})

    def _encode(self, lane: Lane, vision: Any, length: int) -> None:
        """Trunk, text tower and adapters in lockstep: stage k of each, then adapter k mixes the two."""
        stages, view = self._stages, self._work.view
        text, fused = lane.text_0, {}
        tokens = text.shape[0]
        for k in range(3):
            fused[k], text_fused = view(f"vision_{k}_fused", length), view(f"text_{k}_fused", tokens)
            stages[f"adapter_{k}"].run(
                **{
                    f"vision_{k}": vision,
                    f"text_{k}": text,
                    f"vision_{k}_fused": fused[k],
                    f"text_{k}_fused": text_fused,
                }
            )
            if k < 2:
                vision, text = view(f"vision_{k + 1}", length), view(f"text_{k + 1}", tokens)
                self._each(f"hiera_{k + 1}", length, **{f"vision_{k}_fused": fused[k], f"vision_{k + 1}": vision})
                stages[f"text_{k + 1}"].run(**{f"text_{k}_fused": text_fused, f"text_{k + 1}": text})
        self._each(
            "neck",
            length,
            vision_0_fused=fused[0],
            vision_1_fused=fused[1],
            vision_2_fused=fused[2],
            embedding=lane.embedding,
            embedding_no_memory=lane.embedding_no_memory,
            high_res_1=lane.high_res_1,
        )
        verb = {"verb": lane.verb} if self._motion else {}
        stages["text_prompt"].run(text_2_fused=text_fused, sparse=lane.sparse, **verb)

    # -- one frame ------------------------------------------------------------------------------------------------

    def _frame(self, clip: Clip, batch: Batch, frame: int, offset: int, logits: bool) -> dict[str, np.ndarray]:
        """Attend to the memory, decode, remember. All lanes have the same past: they started together."""
        lanes, n = batch.lanes, len(batch.lanes)
        due = self._asked(clip, lanes, frame)
        steady = self._device.supports_graph_capture and frame >= self._steady
        reads = self._reads(clip, batch, frame, offset, due, fixed=steady)
        slots = [self.pool.slot(lane.row, frame) for lane in lanes]
        work = partial(self._compute, batch, reads, None if steady else slots)
        self._replay(batch, tuple(due), work) if steady else work()
        pointer, memory = self._work.view("obj_ptr", n), self._work.view("maskmem_features", n)
        for i, lane in enumerate(lanes):
            self._device.copy(pointer[i], self.pool.pointer(lane.row, frame))
            if steady:
                self._device.copy(memory[i], slots[i])
        results = batch.results
        if clip.images is not None:
            clip.images.postprocess(results.arrays["low_res_logits"], results.arrays["packed"], results.arrays["stats"])
        read = results.read(name for name in results.arrays if logits or name != "low_res_logits")
        for i, at in enumerate(due):
            if read["switched"][i]:
                lanes[at].last_fired = frame
        return read

    def _reads(self, clip: Clip, batch: Batch, frame: int, offset: int, due: list[int], fixed: bool) -> Reads:
        """Gather what a frame reads; `fixed`: into the same arrays on every frame, so that a recorded frame finds it."""
        work, lanes, slots = self._work, batch.lanes, self._slots
        first, alone = lanes[0].row, frame == 0 or not clip.memory
        without = lanes if alone else [lanes[i] for i in due]
        reads = Reads(
            work.gather("batch_embedding", [lane.embedding[offset] for lane in lanes], fixed),
            work.gather("batch_high_res_1", [lane.high_res_1[offset] for lane in lanes], fixed),
            work.gather("batch_high_res_0", [clip.high_res_0[offset]], fixed),
            due,
        )
        if without:
            reads.without_memory = work.gather(
                "batch_embedding_no_memory", [lane.embedding_no_memory[offset] for lane in without], fixed
            )
        if not alone:
            reads.memory = self._rows(self.pool.features, self._batch_memory, lanes, first.filled)
            reads.pointers = self._rows(self.pool.pointers, self._batch_pointers, lanes, first.filled_pointers)
            reads.age = batch.ages[frame if frame < slots else slots + frame % slots]
            if fixed:
                age = self._batch_age.reshape(-1)[: len(lanes) * slots].reshape(len(lanes), slots)
                self._device.copy(reads.age, age)
                reads.age = age
        return reads

    def _replay(self, batch: Batch, due: tuple[int, ...], work: Callable[[], None]) -> None:
        """Run `work` as one recorded graph per set of due lanes. The first time it runs plainly: that settles every
        allocation that a library makes for these shapes."""
        recorded = batch.recorded
        if due in recorded and recorded[due] is None:
            recorded[due] = self._device.capture(work)
            if recorded[due] is None:
                self._steady = sys.maxsize
        elif len(recorded) < RECORDINGS:
            recorded.setdefault(due, None)
        (recorded.get(due) or work)()

    def _compute(self, batch: Batch, reads: Reads, slots: list[Any] | None) -> None:
        """All stages of one frame. The memory goes to `slots`, or to the workspace if they are None."""
        lanes, due = batch.lanes, reads.due
        conditioned = reads.without_memory if reads.memory is None else self._attend(len(lanes), reads)
        outputs = {name: batch.results.arrays[name] for name in ("low_res_logits", "score")}
        decoded = self._decode(lanes, conditioned, batch.sparse_count, reads.picture, reads.high_res_1, outputs)
        remembered = self._reconsider(batch, reads, decoded) if due else None
        self._remember(reads, decoded["low_res_logits"], remembered, slots)

    def _attend(self, n: int, reads: Reads) -> Any:
        conditioned = self._work.view("conditioned", n)
        self._stages["memory_attention"].run(
            embedding=reads.embedding,
            map_index=self._index[:n],
            memory=reads.memory,
            maskmem_tpos_index=reads.age,
            obj_ptrs=reads.pointers,
            conditioned=conditioned,
        )
        return conditioned

    def _rows(self, pool: Any, batch: Any, lanes: list[Lane], filled: int) -> Any:
        """The filled prefix of each lane's row as (lanes, filled, ...): read in place for one lane or for a run of full rows."""
        rows = [lane.row.index for lane in lanes]
        first, n = rows[0], len(rows)
        if n == 1 or (filled == pool.shape[1] and rows == list(range(first, first + n))):
            return pool[first : first + n, :filled]
        # a batch of rows that are still filling is not contiguous in the pool: its prefix is copied, a few frames long
        out = batch.reshape(-1)[: n * filled * prod(batch.shape[2:])].reshape(n, filled, *batch.shape[2:])
        for i, row in enumerate(rows):
            self._device.copy(pool[row, :filled], out[i])
        return out

    def _decode(
        self,
        lanes: list[Lane],
        conditioned: Any,
        counts: Any,
        picture: Any,
        high_res_1: Any,
        outputs: dict[str, Any],
        prefix: str = "",
    ) -> dict[str, Any]:
        """Run the decoder; outputs that are not given go to the workspace under `prefix` + name."""
        n, stage = len(lanes), self._stages["mask_decoder"]
        outputs = {t.name: self._work.view(prefix + t.name, n) for t in stage.spec.outputs} | outputs
        stage.run(
            conditioned=conditioned,
            sparse=self._work.gather("batch_sparse", [lane.sparse[0] for lane in lanes]),
            sparse_count=counts,
            high_res_0=picture,
            picture_index=self._zeros[:n],
            high_res_1=high_res_1,
            map_index=self._index[:n],
            **outputs,
        )
        return outputs

    # -- memory ---------------------------------------------------------------------------------------------------

    def _asked(self, clip: Clip, lanes: list[Lane], frame: int) -> list[int]:
        """Lanes whose conditional memory encoder is due: from frame `first`, `every` frames after it last fired."""
        cme = self._cme
        if cme is None or not (clip.conditional_memory and clip.memory) or frame < cme["first"]:
            return []
        return [i for i, lane in enumerate(lanes) if frame - lane.last_fired >= cme["every"]]

    def _reconsider(self, batch: Batch, reads: Reads, decoded: dict[str, Any]) -> Any:
        """Decode the due lanes again without memory and decide which mask to remember: (due, I, I) logits."""
        work, lanes, due, n = self._work, batch.lanes, reads.due, len(reads.due)

        def pick(name: str, array: Any) -> Any:
            return array if n == len(lanes) else work.gather("due_" + name, [array[i] for i in due])

        again = self._decode(
            [lanes[i] for i in due],
            reads.without_memory,
            self._count_without_verb[:n],
            reads.picture,
            pick("high_res_1", reads.high_res_1),
            {},
            "memoryless_",
        )
        outputs = {name: work.view(name, n) for name in ("remembered_logits", "decision")}
        self._stages["conditional_memory"].run(
            obj_ptr=pick("obj_ptr", decoded["obj_ptr"]),
            early_token=again["early_token"],
            low_res_logits=pick("low_res_logits", decoded["low_res_logits"]),
            memoryless_logits=again["low_res_logits"],
            switched=batch.results.arrays["switched"][:n],
            **outputs,
        )
        return outputs["remembered_logits"]

    def _remember(self, reads: Reads, low_res: Any, remembered: Any, slots: list[Any] | None) -> None:
        """Encode each lane's mask: straight into its slot, or all into the workspace, in one call where they are alike."""
        n, due, encode = low_res.shape[0], reads.due, self._stages["memory_encoder"].run
        if slots is None and len(due) in (0, n):
            encode(
                embedding=reads.embedding,
                map_index=self._index[:n],
                mask_logits=remembered if due else low_res,
                maskmem_features=self._work.view("maskmem_features", n),
            )
            return
        slots = list(self._work.view("maskmem_features", n)) if slots is None else slots
        for i, slot in enumerate(slots):
            mask = remembered[due.index(i)] if i in due else low_res[i]
            encode(
                embedding=reads.embedding[i : i + 1],
                map_index=self._zeros[:1],
                mask_logits=mask[None],
                maskmem_features=slot[None],
            )
