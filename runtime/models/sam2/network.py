"""SAM 2 and 2.1: prompts and memory to masks, for any number of objects at once.

This file knows the arithmetic of one frame: a picture is encoded once, then every object asks its `Query` of it, and
all queries run as one batch through memory attention, prompt encoder and decoder. Which frames are asked what is
decided in `video_session.py` (frames known), `live.py` (frames as they come) and `image.py` (no memory).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ...bundle.bundle import Bundle
from ...bundle.manifest import TensorSpec
from ...device.base import Device
from ...errors import PromptError, UserError
from ...imaging.preprocess import preprocess
from ...tracking.live import LiveSession
from ...tracking.memory_selection import Reach, Recall
from ...tracking.object_memory import Page, PagePool
from ...tracking.requests import NOTHING, Decoded, Picture, Query, square_mask
from ...tracking.state import Clicks, Options
from ...tracking.video import VideoSession
from .image import ImageSession

if TYPE_CHECKING:
    from ...backends.base import Stage

TOGETHER = 8192
"""Map positions in one call of memory attention on a processor. There more objects in a call save no time, and each takes
more than a gigabyte at 1024 pixels."""

VIDEO_PAGES = 32
"""Pages by which an object's memory grows where frames are known."""


class Sam2:
    """Stages, buffers and memory of one SAM 2 bundle."""

    STAGES = (
        "image_encoder",
        "prompt_encoder",
        "mask_prompt",
        "prompt_decoder",
        "memory_attention",
        "prompt_memory_encoder",
    )

    def __init__(self, bundle: Bundle, stages: Mapping[str, Stage], device: Device, objects: int) -> None:
        manifest = bundle.manifest
        settings = manifest.networks["sam2"]
        self._stages, self._device = {name: stages[name] for name in self.STAGES}, device
        self.name = bundle.name
        self.image_size = manifest.image_size
        self.mean, self.std = tuple(settings["mean"]), tuple(settings["std"])
        self.resample: Mapping[str, str] = settings["resample"]
        self.reach = Reach(settings["memory"]["num_maskmem"], settings["memory"]["max_obj_ptrs"])
        self._specs = {name: stage.spec for name, stage in self._stages.items()}
        self._bounds = manifest.bounds
        self.low_res_side: int = self._specs["prompt_decoder"].output("low_res_logits").shape[1]
        # a batch never exceeds what the graphs were exported for; more objects run in several batches
        self.batch = min(objects, *(manifest.bounds[s][1] for s in ("objects", "maps")))
        positions = self._specs["memory_attention"].output("conditioned").shape[1]
        self._together = max(1, min(self.batch, TOGETHER // positions)) if device.name == "cpu" else self.batch
        self.max_points: int = manifest.bounds["prompt_tokens"][1] - 1
        self.objects = objects
        self._pools: dict[int, PagePool] = {}
        self._arrays: dict[str, Any] = {}
        self._plain = 0
        self._zeros = np.zeros(self.batch, np.int64)
        self._pixels = np.zeros((1, 3, self.image_size, self.image_size), np.float32)
        self._device_pixels = self._pixels if device.name == "cpu" else device.empty(self._pixels.shape, "float32")
        self._allocate()

    def _allocate(self) -> None:
        sizes = {"objects": self.batch, "prompt_tokens": 2, "slots": self.reach.slots + 1}
        for stage in ("prompt_encoder", "mask_prompt", "prompt_decoder", "memory_attention", "prompt_memory_encoder"):
            for tensor in self._specs[stage].outputs:
                self._view(tensor, sizes)
        self._view(self._specs["memory_attention"].input("memory"), sizes)
        decoder = self._specs["prompt_decoder"]
        for name in ("sparse", "dense"):
            tensor = decoder.input(name)
            self._arrays["plain_" + name] = self._device.empty(tensor.resolve(sizes), tensor.dtype)

    # -- the ways in ----------------------------------------------------------------------------------------------

    def video(self, frames: Any, logits: bool = False, **options: Any) -> VideoSession:
        """See `Engine.video`."""
        return VideoSession(self, frames, logits, Options(**options))

    def live(self, logits: bool = False, **options: Any) -> LiveSession:
        """See `Engine.session`."""
        options = Options(**options)
        return LiveSession(self, logits, options)

    def image(self, picture: Any) -> ImageSession:
        """See `Engine.image`."""
        return ImageSession(self, picture)

    def pool(self, pages: int = VIDEO_PAGES) -> PagePool:
        """The page pool with shelves of `pages`, made on first use and kept."""
        if pages not in self._pools:
            slot = self._specs["prompt_memory_encoder"].output("maskmem_features")
            self._pools[pages] = PagePool(self._device, self.objects, pages, slot.shape[1], slot.shape[2], slot.dtype)
        return self._pools[pages]

    # -- one picture ----------------------------------------------------------------------------------------------

    def picture(self) -> Picture:
        """Empty maps for one frame."""
        outputs = self._specs["image_encoder"].outputs
        return Picture(**{t.name: self._device.empty(t.resolve({"frames": 1}), t.dtype) for t in outputs})

    def encode(self, frame_hwc: np.ndarray, picture: Picture, resample: str) -> None:
        """Fill `picture` with the maps of a frame, uint8 RGB; `resample` as in `preprocess`."""
        side = self.image_size
        preprocess(frame_hwc, (side, side), side, self.mean, self.std, out=self._pixels[0], resample=resample)
        if self._device_pixels is not self._pixels:
            self._device.upload(self._pixels, self._device_pixels)
        outputs = {t.name: getattr(picture, t.name) for t in self._specs["image_encoder"].outputs}
        self._stages["image_encoder"].run(pixels=self._device_pixels, **outputs)

    def tracking(self, recall: Recall) -> Query:
        """The query of an object that is only followed."""
        return Query(NOTHING, True, recall=recall)

    def ask(self, picture: Picture, queries: Sequence[Query], all_logits: bool = False) -> list[Decoded]:
        """Answer all queries, in batches. `all_logits`: keep the four ungated masks of each."""
        self._check(queries)
        # equal memory fills side by side: each run of them is one call of memory attention
        order = sorted(range(len(queries)), key=lambda i: queries[i].fill)
        answers: list[Any] = [None] * len(queries)
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            for i, decoded in zip(chosen, self._answer(picture, [queries[i] for i in chosen], all_logits)):
                answers[i] = decoded
        return answers

    def _check(self, queries: Iterable[Query]) -> None:
        for slots, pointers in {q.fill for q in queries}:
            if slots > self._bounds["slots"][1] or pointers > self._bounds["pointers"][1]:
                raise UserError(
                    f"{slots} remembered frames are more than the bundle {self.name} takes "
                    f"({self._bounds['slots'][1]}); limit them with max_cond_frames_in_attn"
                )

    def _answer(self, picture: Picture, queries: list[Query], all_logits: bool) -> Iterator[Decoded]:
        n, spec = len(queries), self._specs["prompt_decoder"]
        conditioned = self._condition(picture, queries)
        prompt = self._prompt(queries)
        outputs = {t.name: self._view(t, {"objects": n}) for t in spec.outputs}
        self._stages["prompt_decoder"].run(
            conditioned=conditioned,
            **prompt,
            high_res_0=picture.high_res_0,
            picture_index=self._zeros[:n],
            high_res_1=picture.high_res_1,
            map_index=self._zeros[:n],
            multimask=np.array([q.multimask for q in queries]),
            **outputs,
        )
        host = {
            name: self._device.download(array) for name, array in outputs.items() if name != "all_logits" or all_logits
        }
        _, tokens, channels = self._specs["prompt_memory_encoder"].output("maskmem_features").shape
        per_pointer = spec.output("obj_ptr").shape[1] // channels
        for i, query in enumerate(queries):
            slots, pointers = query.fill
            yield Decoded(
                np.array(host["low_res_logits"][i]),
                np.array(host["all_logits"][i]) if all_logits else None,
                np.array(host["ious"][i]),
                int(host["selected"][i]),
                float(host["score"][i]),
                np.array(host["obj_ptr"][i], np.float32),
                (slots * tokens, pointers * per_pointer),
            )

    # -- memory ---------------------------------------------------------------------------------------------------

    def _condition(self, picture: Picture, queries: list[Query]) -> Any:
        """The map each query looks at, (queries, N, D)."""
        if len(queries) == 1 and queries[0].recall is None:
            return picture.embedding if queries[0].bare else picture.embedding_no_memory
        out = self._view(self._specs["memory_attention"].output("conditioned"), {"objects": len(queries)})
        start = 0
        for fill, group in groupby(queries, key=lambda q: q.fill):
            group = list(group)
            part = out[start : start + len(group)]
            if fill[0]:
                for i in range(0, len(group), self._together):
                    several = slice(i, i + self._together)
                    self._attend(picture, [q.recall for q in group[several]], part[several])
            else:
                for query, to in zip(group, part):
                    self._device.copy((picture.embedding if query.bare else picture.embedding_no_memory)[0], to)
            start += len(group)
        return out

    def _attend(self, picture: Picture, recalls: list[Recall], out: Any) -> None:
        spec, n = self._specs["memory_attention"], len(recalls)
        names = {t.name for t in spec.inputs}
        kind = spec.input("obj_ptrs")
        pointers = np.zeros((n, len(recalls[0].pointers), kind.shape[2]), kind.dtype)
        for row, recall in zip(pointers, recalls):
            if recall.pointers:
                row[:] = recall.pointers
        more = {"obj_ptr_tpos": self._distances(recalls)} if "obj_ptr_tpos" in names else {}
        self._stages["memory_attention"].run(
            embedding=picture.embedding,
            map_index=self._zeros[:n],
            memory=self._gather([r.pages for r in recalls]),
            maskmem_tpos_index=np.array([r.ages for r in recalls], np.int64),
            obj_ptrs=pointers,
            conditioned=out,
            **more,
        )

    def _distances(self, recalls: list[Recall]) -> np.ndarray:
        far = np.array([[max(r.longest, 1)] for r in recalls], np.float32)
        return np.array([r.distances for r in recalls], np.float32).reshape(len(recalls), -1) / far

    def _gather(self, pages: list[list[Page]]) -> Any:
        """What the objects look at, side by side: (objects, slots, N, M)."""
        sizes = {"objects": len(pages), "slots": len(pages[0])}
        out = self._view(self._specs["memory_attention"].input("memory"), sizes)
        for row, own in zip(out, pages):
            for page, to in zip(own, row):
                self._device.copy(page.array, to)
        return out

    def remember(
        self,
        picture: Picture,
        logits: Sequence[np.ndarray],
        binarize: Sequence[bool],
        scores: Sequence[float],
        pages: Sequence[Page],
    ) -> None:
        """Write what objects look like on `picture` into their pages: low-res logits, prompted or not, presence."""
        spec = self._specs["prompt_memory_encoder"]
        names = {t.name for t in spec.inputs}
        for start in range(0, len(pages), self.batch):
            part = slice(start, start + self.batch)
            n = len(pages[part])
            more = {"binarize": np.array(binarize[part], bool), "score": np.array(scores[part], np.float32)}
            # one object is written in place, several are written side by side and then put where they belong
            out = pages[start].array[None] if n == 1 else self._view(spec.output("maskmem_features"), {"objects": n})
            self._stages["prompt_memory_encoder"].run(
                embedding=picture.embedding,
                map_index=self._zeros[:n],
                mask_logits=np.stack(logits[part]).astype(np.float32, copy=False),
                maskmem_features=out,
                **{name: value for name, value in more.items() if name in names},
            )
            if n > 1:
                for slot, page in zip(out, pages[part]):
                    self._device.copy(slot, page.array)

    # -- prompts --------------------------------------------------------------------------------------------------

    def clicks(self, xy: np.ndarray, labels: np.ndarray, size: tuple[int, int], normalized: bool) -> Clicks:
        """Points (K,2) of a source of `size` (height, width), or 0..1 if `normalized`, as the network takes them."""
        xy = np.asarray(xy, np.float32)
        if not normalized:
            xy = xy / np.array(size[::-1], np.float32)
        return Clicks(xy * np.float32(self.image_size), np.asarray(labels, np.int64))

    def checked(self, clicks: Clicks) -> Clicks:
        """The same clicks. Raises PromptError when they are more than the bundle takes."""
        if len(clicks.labels) > self.max_points:
            raise PromptError(
                f"{len(clicks.labels)} points on one object and frame are more than the "
                f"{self.max_points} that {self.name} takes; clear old ones"
            )
        return clicks

    def click_query(self, clicks: Clicks, logits: np.ndarray | None, recall: Recall | None = None) -> Query:
        """Clicks with what was known of the mask before."""
        end = Clicks(NOTHING.xy[:1], NOTHING.labels[:1])
        logits = None if logits is None else np.clip(logits, -32, 32)
        return Query(clicks + end, len(clicks.labels) <= 1, logits, recall)

    def image_query(self, clicks: Clicks | None, logits: np.ndarray | None, multimask: bool) -> Query:
        """A picture's prompt: no clicks means no point token at all, and logits are taken as they are."""
        points = None if clicks is None else clicks + Clicks(NOTHING.xy[:1], NOTHING.labels[:1])
        return Query(points, multimask, logits)

    def mask(self, mask_hw: np.ndarray) -> np.ndarray:
        """A bool mask at the network's size (I,I). Raises PromptError for one that vanishes there."""
        mask = square_mask(mask_hw, self.image_size)
        if not mask.any():
            raise PromptError(
                f"the mask prompt is empty at the network's {self.image_size}x{self.image_size} pixels; "
                "give a larger mask"
            )
        return mask

    def mask_query(self, mask: np.ndarray) -> tuple[Query, np.ndarray]:
        """Query for the pointer of a mask prompt (I,I), and the low-res logits that the prompt itself gives."""
        outputs = {t.name: self._view(t, {"objects": 1}) for t in self._specs["mask_prompt"].outputs}
        self._stages["mask_prompt"].run(mask=mask.astype(np.float32)[None], **outputs)
        host = {name: np.array(self._device.download(array)[0]) for name, array in outputs.items()}
        return Query(NOTHING, False, host["prompt_logits"], bare=True), host["mask_logits"]

    def _prompt(self, queries: list[Query]) -> dict[str, Any]:
        """`sparse`, `sparse_count` and `dense` of the decoder."""
        n = len(queries)
        if all(q.plain for q in queries):
            self._fill_plain(n)
            return {
                "sparse": self._arrays["plain_sparse"][:n],
                "sparse_count": np.full(n, 2, np.int64),
                "dense": self._arrays["plain_dense"][:n],
            }
        counts = np.array([0 if q.points is None else len(q.points.labels) for q in queries], np.int64)
        longest = max(1, int(counts.max()))
        xy, labels = np.zeros((n, longest, 2), np.float32), np.full((n, longest), -1, np.int64)
        side = self.low_res_side
        logits = np.zeros((n, side, side), np.float32)
        for i, query in enumerate(queries):
            if query.points is not None:
                xy[i, : counts[i]], labels[i, : counts[i]] = query.points.xy, query.points.labels
            if query.logits is not None:
                logits[i] = query.logits
        outputs = {
            t.name: self._view(t, {"objects": n, "prompt_tokens": longest})
            for t in self._specs["prompt_encoder"].outputs
        }
        self._stages["prompt_encoder"].run(
            points=xy,
            labels=labels,
            prompt_logits=logits,
            has_mask=np.array([q.logits is not None for q in queries]),
            **outputs,
        )
        return {**outputs, "sparse_count": counts}

    def _fill_plain(self, n: int) -> None:
        """Tracked frames all have the same prompt: it is encoded once and kept for as many objects as there were."""
        if n <= self._plain:
            return
        side = self.low_res_side
        sparse, dense = self._arrays["plain_sparse"], self._arrays["plain_dense"]
        if not self._plain:
            self._stages["prompt_encoder"].run(
                points=NOTHING.xy[None],
                labels=NOTHING.labels[None],
                has_mask=np.zeros(1, bool),
                prompt_logits=np.zeros((1, side, side), np.float32),
                sparse=sparse[:1],
                dense=dense[:1],
            )
        for i in range(max(1, self._plain), n):
            self._device.copy(sparse[0], sparse[i])
            self._device.copy(dense[0], dense[i])
        self._plain = n

    # -- scratch --------------------------------------------------------------------------------------------------

    def _view(self, tensor: TensorSpec, sizes: Mapping[str, int]) -> Any:
        """Scratch for a tensor at these sizes. What was allocated when the bundle was loaded is enough for every frame
        with the usual number of remembered frames and points; an unusual one makes it grow once."""
        shape = tensor.resolve(sizes)
        flat = self._arrays.get(tensor.name)
        if flat is None or flat.shape[0] < prod(shape):
            flat = self._arrays[tensor.name] = self._device.empty((prod(shape),), tensor.dtype)
        return flat[: prod(shape)].reshape(*shape)
