"""SAM 2.1 with one click, in every implementation that is installed, on the same weights and pixels, in turn.

    python -m pytest benchmarks/bench_peers.py --benchmark-only [-k tiny] [--checkpoint DIR]

Every implementation runs in a process of its own (`benchmarks.peers`); all but one wait. `--checkpoint` takes a folder
of Hugging Face; otherwise the weights are random. A row is left out with the reason where a peer is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

import runtime
from runtime.media.synthetic_clip import Disc, synthetic_clip
from runtime.metrics import clip_jaccard

from . import rss
from .peers import CLICK, PEERS, REFERENCE, Job

FRAMES = 8
TRUNKS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "base_plus": {
        "hidden_size": 112,
        "num_attention_heads": 2,
        "blocks_per_stage": [2, 3, 16, 3],
        "embed_dim_per_stage": [112, 224, 448, 896],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "window_size_per_stage": [8, 4, 14, 7],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    },
}
"""Published sizes of the trunk; those of tiny are the defaults of `transformers`."""
CONFIG = {"enable_occlusion_spatial_embedding": True, "enable_temporal_pos_encoding_for_object_pointers": True}
"""SAM 2.1, not SAM 2."""


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder that is removed at once: pytest keeps those of the latest runs, and the files are large."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("size", TRUNKS)
def test_peers(benchmark, machine, size, work, request):
    """Seconds of a clip in turn; for each process the time to the first mask, and its peak memory."""
    pytest.importorskip("transformers.models.sam2_video", reason="needs transformers 4.56 or newer")
    options = request.config.option
    if options.checkpoint and size != next(iter(TRUNKS)):
        pytest.skip("--checkpoint is one network")
    sides = write_weights(size, work, options.checkpoint)
    for side in sides:
        export(Job(work, side))
        write_clip(Job(work, side))
    missing = {name: reason for name in PEERS if (reason := unavailable(name, options.checkpoint))}
    started: list[Process] = []
    try:
        for side in sides:
            for name, peer in PEERS.items():
                if name not in missing and not (peer.published_only and side != sides[0]):
                    started.append(Process(name, Job(work, side)))
        benchmark.pedantic(take_turns, (started,), rounds=max(1, options.rounds - 1))
        rows = [process.row() for process in started]
    finally:
        for process in started:
            process.end()
    benchmark.extra_info.update(
        machine=machine | {"backend": "peers", **versions()},
        bundle=Path(options.checkpoint).name if options.checkpoint else f"sam2.1-{size}",
        frames=FRAMES,
        rows=rows,
        missing=missing,
    )


def take_turns(processes: Sequence[Process]) -> None:
    for process in processes:
        process.again()


class Process:
    """`benchmarks.peers` with one implementation, started and warm."""

    def __init__(self, name: str, job: Job) -> None:
        self.name, self.job = name, job
        self.seconds: list[float] = []
        start = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.peers", name, str(job.folder), str(job.side)]
        self.log = job.folder / f"{name}-{job.side}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=log, text=True)
        self._answer()
        self.first_mask = time.perf_counter() - start
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}: {self.log.read_text()[-2000:]}")
        return json.loads(line)

    def again(self) -> None:
        """Segment the clip once more, and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(self._answer()["seconds"])
        self._answer()

    def masks(self, name: str | None = None) -> np.ndarray:
        return np.load(self.job.folder / f"{name or self.name}-{self.job.side}.npy")

    def row(self) -> dict[str, Any]:
        frames = zip(self.masks(), self.masks(REFERENCE), strict=True)
        overlap = [clip_jaccard(mask[None], reference[None]) for mask, reference in frames]
        return {
            "peer": self.name,
            "side": self.job.side,
            "seconds_per_frame": float(np.median(self.seconds)) / FRAMES,
            "first_mask": self.first_mask,
            "peak_rss_mb": rss.peak_mb(self.process.pid),
            "installed_mb": installed_mb(PEERS[self.name].distributions),
            "worst_iou": min(overlap),
            "mean_iou": float(np.mean(overlap)),
            "area": float(self.masks().mean()),
        }

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def unavailable(name: str, checkpoint: str | None) -> str | None:
    """Say why a peer cannot run here, None if it can."""
    if checkpoint and PEERS[name].published_only:
        return "takes published sizes only; leave out --checkpoint"
    for distribution in PEERS[name].distributions:
        try:
            metadata.version(distribution)
        except metadata.PackageNotFoundError:
            return f"{distribution} is not installed"
    return None


def write_weights(size: str, folder: Path, checkpoint: str | None) -> Sequence[int]:
    """Write the weights in Hugging Face's and in the official layout; return the image sizes: full and half."""
    import torch
    import transformers

    from export.checkpoints.sam2 import renamed

    job = Job(folder, 0)
    if checkpoint:
        job.hugging_face.symlink_to(Path(checkpoint).resolve())
        side = transformers.Sam2VideoConfig.from_pretrained(checkpoint).image_size
        return side, side // 2
    trunk = {"model_type": "sam2_hiera_det_model", **TRUNKS[size]}
    channels = TRUNKS[size].get("embed_dim_per_stage", [96, 192, 384, 768])[::-1]
    vision = {"backbone_config": trunk, "backbone_channel_list": channels}
    torch.manual_seed(0)
    model = transformers.Sam2VideoModel(transformers.Sam2VideoConfig(vision_config=vision, **CONFIG)).eval()
    draw(model)
    model.save_pretrained(job.hugging_face)
    torch.save({"model": renamed(model.state_dict())}, folder / f"sam2.1_{size[0]}.pt")
    side = model.config.image_size
    return side, side // 2


def draw(model: Any) -> None:
    """Draw random weights of a size at which every part matters, and an object that is there."""
    import torch

    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1 and "embed" not in name and "positional" not in name:
                value.normal_(0, value[0].numel() ** -0.5)
            elif "norm" not in name:
                value.add_(0.1 * torch.randn_like(value))
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(3.0)
        shared = model.shared_image_embedding.positional_embedding
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(shared)  # one matrix under two names


def export(job: Job) -> None:
    from export import bundle
    from export.networks import base, sam2

    network = sam2.load(job.hugging_face, image_size=job.side)
    bundle.export_bundle(base.describe("sam2", network), job.folder, job.bundle.name, variants={"ort"}, check=False)


def write_clip(job: Job) -> None:
    """Write the clip as JPEGs, and their pixels as a lossless video."""
    import av
    from PIL import Image

    job.images.mkdir()
    side = job.side
    disc = Disc(lambda t: side * (CLICK[0] + 0.02 * t), side * CLICK[1], 0.12 * side, (220, 40, 60))
    for index, frame in enumerate(synthetic_clip(FRAMES, side, side, disc, (max(side / 20, 9), max(side / 16, 9)))):
        Image.fromarray(frame).save(job.images / f"{index:05}.jpg", quality=95)
    with av.open(str(job.video), "w") as container:
        stream = container.add_stream("ffv1", rate=10, width=job.side, height=job.side, pix_fmt="bgr0")
        for frame in job.frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def versions() -> dict[str, str]:
    found = {}
    for name in ("transformers", "sam2", "ultralytics"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def installed_mb(names: Sequence[str]) -> int:
    """Add up the files of distributions and of all that they require, as they are installed here."""
    waiting, seen, size = list(names), set(), 0
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # an alternative, or of another system
            warnings.warn(f"{name} is not installed; its size is not counted", stacklevel=2)
            continue
        if name in seen:
            continue
        seen.add(name)
        size += sum(file.size or 0 for file in distribution.files or ())
        if name == "samwise-runtime":  # installed in place, its files are not listed
            size += sum(file.stat().st_size for file in Path(runtime.__file__).parent.rglob("*.py"))
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return round(size / 1e6)
