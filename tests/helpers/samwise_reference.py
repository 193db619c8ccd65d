"""SAMWISE's torch stages with a minimal schedule, independent of the runtime's: for golden tests of the network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from export.models.samwise import Samwise, SamwiseConfig
from export.networks.samwise import stages
from export.stage import Stage
from runtime.bundle.manifest import STEP

from . import synth
from .synth_recipes import SAMWISE

GOLDENS = Path(__file__).parents[1] / "goldens" / "samwise"


def rel_l2(ours: Tensor | np.ndarray, theirs: np.ndarray) -> float:
    """Relative L2 distance."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def golden(case: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Configuration and arrays of a golden case."""
    meta = json.loads((GOLDENS / f"golden_{case}.json").read_text())
    return meta, dict(np.load(GOLDENS / f"golden_{case}.npz"))


def state_dict(case: str, keep: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Synthetic official checkpoint of a case; only names that start with one of `keep`."""
    meta, _ = golden(case)
    shapes = json.loads((GOLDENS / meta["weights"]["shapes"]).read_text())
    shapes = {k: v for k, v in shapes.items() if k.startswith(keep)}
    weights = synth.make_state_dict(SAMWISE, shapes, meta["weights"]["seed"], meta["weights"]["bias_offsets"])
    return {k: torch.from_numpy(np.asarray(v)) for k, v in weights.items()}


def pixels(meta: Mapping, frames: list[int]) -> Tensor:
    """Frames of a golden's clip as the network takes them (T,3,I,I)."""
    clip = synth.make_clip(**{k: v for k, v in meta["clip"].items() if k not in ("function", "crc32")})
    size = meta["model"]["image_size"]
    out = np.zeros((len(frames), size, size, 3), np.float32)
    for i, frame in enumerate(frames):
        height, width = meta["resized_height"], meta["resized_width"]
        picture = np.asarray(Image.fromarray(clip[frame]).resize((width, height), Image.BILINEAR), np.float32) / 255
        out[i, :height, :width] = (picture - np.float32((0.485, 0.456, 0.406))) / np.float32((0.229, 0.224, 0.225))
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


class Player:
    """Runs one video and one sentence through the stages; inputs of a stage are selected by name."""

    def __init__(
        self, stages: list[Stage], tokens: list[int], conditional: bool, slots: int = 6, pointers: int = 15
    ) -> None:
        self.stages = {s.name: s for s in stages}
        self.tokens, self.conditional, self.slots, self.pointers = torch.tensor(tokens), conditional, slots, pointers
        self.memory: dict[int, Tensor] = {}
        self.kept_pointers: dict[int, Tensor] = {}
        self.last_switch = 0

    def run(self, name: str, known: Mapping[str, Tensor], **more: Tensor) -> dict[str, Tensor]:
        stage = self.stages[name]
        known = {**known, **more}
        return stage.run({spec.name: known[spec.name] for spec in stage.spec.inputs})

    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """Clip stages; returns every tensor they make."""
        known = {"pixels": frames, "tokens": self.tokens}
        for name in self.stages:
            if name.startswith(("hiera", "text", "adapter", "neck")) and not name.endswith(STEP):
                known |= self.run(name, known)
        return known

    def clip(self, first: int, frames: Tensor) -> Iterator[dict[str, Tensor]]:
        """Results of each frame of a clip whose first frame has number `first`."""
        known = self.encode(frames)
        for i in range(len(frames)):
            yield known | self.step(first + i, known, i)

    def decode(self, known: Mapping[str, Tensor], i: int, conditioned: Tensor) -> dict[str, Tensor]:
        count = torch.tensor([known["sparse"].shape[1]])
        at = torch.tensor([i])
        return self.run(
            "mask_decoder", known, conditioned=conditioned, sparse_count=count, map_index=at, picture_index=at
        )

    def step(self, number: int, known: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
        conditioned = known["embedding_no_memory"][i : i + 1]
        at = torch.tensor([i])
        if number:
            past = sorted(self.memory)[-self.slots :]
            ages = torch.tensor([[number - frame - 1 for frame in past]])
            memory = torch.stack([self.memory[f][0] for f in past])[None]
            latest = sorted(self.kept_pointers)[-self.pointers :]
            pointers = torch.stack([self.kept_pointers[f][0] for f in latest])[None]
            conditioned = self.run(
                "memory_attention", known, map_index=at, memory=memory, maskmem_tpos_index=ages, obj_ptrs=pointers
            )["conditioned"]
        out = self.decode(known, i, conditioned) | {"conditioned": conditioned}
        mask = out["low_res_logits"]
        if self.conditional and number > 4 and number - self.last_switch >= 3:
            without = self.decode(known, i, known["embedding_no_memory"][i : i + 1])
            cme = self.run(
                "conditional_memory",
                out,
                early_token=without["early_token"],
                memoryless_logits=without["low_res_logits"],
            )
            out |= {"memoryless_token": without["early_token"], **cme}
            if cme["switched"].item():
                self.last_switch, mask = number, cme["remembered_logits"]
        out |= self.run("memory_encoder", known, map_index=at, mask_logits=mask)
        self.memory[number], self.kept_pointers[number] = out["maskmem_features"], out["obj_ptr"]
        return out


def network(case: str) -> Samwise:
    """The network of a golden case with all its weights."""
    model = Samwise(SamwiseConfig())
    extra = model.load_state_dict(state_dict(case), strict=False)
    assert not extra.missing_keys, extra.missing_keys
    return model.eval()


def play(case: str, count: int | None = None) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(frame number, every tensor of that frame's clip and step) of a golden case; only the first `count` frames."""
    meta, _ = golden(case)
    player = Player(stages(network(case)), meta["token_ids"], meta["model"]["use_cme_head"])
    window, total = meta["eval_clip_window"], meta["num_frames"]
    for first in range(0, count or total, window):
        numbers = list(range(first, min(first + window, total)))
        for number, out in zip(numbers, player.clip(first, pixels(meta, numbers)), strict=True):
            if count is not None and number >= count:
                return
            yield number, out
