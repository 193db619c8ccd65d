"""One implementation of SAM 2 in a process of its own, which segments a clip from one click whenever it is asked to.

    python -m benchmarks.peers NAME FOLDER SIDE

`FOLDER` holds the same weights in every form (`Weights`), and the same clip (`Clip`) at `SIDE` pixels. After the first
mask, after the first clip and after each line on standard input, for which it segments the clip once more, the process
prints a line of JSON. It writes the masks of the last clip to `FOLDER/NAME-SIDE.npy`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CLICK = 0.5, 0.5
"""Where the object is clicked on the first frame, as parts of width and height."""

Run = Callable[[], Iterator[np.ndarray]]
"""Segments the clip: a mask (height, width) for each frame."""


@dataclass(frozen=True)
class Job:
    """Files of `bench_peers`: weights of a network, and a clip of its image size, in the forms that peers take."""

    folder: Path
    side: int

    @property
    def click(self) -> tuple[float, float]:
        return CLICK[0] * self.side, CLICK[1] * self.side

    @property
    def bundle(self) -> Path:
        return self.folder / f"bundle-{self.side}"

    @property
    def hugging_face(self) -> Path:
        """A folder of `transformers`."""
        return self.folder / "hugging_face"

    @property
    def official(self) -> Path:
        """The same tensors as the `sam2` package names them; the name of the file says the size."""
        return next(self.folder.glob("sam2.1_*.pt"))

    @property
    def images(self) -> Path:
        """JPEGs, which the `sam2` package wants."""
        return self.folder / f"images-{self.side}"

    @property
    def video(self) -> Path:
        """The pixels of the JPEGs without loss, for peers that read videos only."""
        return self.folder / f"clip-{self.side}.mkv"

    def frames(self) -> np.ndarray:
        """Pixels of the JPEGs, (frames, side, side, 3) uint8."""
        from PIL import Image

        return np.stack([np.asarray(Image.open(file)) for file in sorted(self.images.iterdir())])


def ours(job: Job, backend: str) -> Run:
    import runtime

    engine, frames = runtime.load(job.bundle, backend=backend), job.frames()

    def run() -> Iterator[np.ndarray]:
        with engine.video(frames, fill_hole_area=0) as video:  # the others do not fill holes on a CPU
            video.add_points(0, 1, [job.click], [1])
            for result in video.propagate():
                yield result.masks[0]

    return run


def transformers(job: Job, compiled: bool) -> Run:
    """Sam2VideoModel without its processor, which needs torchvision and would only normalize pixels of this size."""
    import torch
    from transformers import Sam2VideoConfig, Sam2VideoModel
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    config = Sam2VideoConfig.from_pretrained(job.hugging_face)
    config.image_size = job.side
    model = Sam2VideoModel.from_pretrained(job.hugging_face, config=resized(config, job.side)).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    frames = torch.from_numpy(job.frames())
    if compiled:
        model.vision_encoder.compile()
        for part in (model.memory_attention, model.mask_decoder, model.memory_encoder):
            part.compile(dynamic=True)  # a memory that fills must not recompile

    @torch.inference_mode()
    def run() -> Iterator[np.ndarray]:
        pixels = ((frames / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
        session = Sam2VideoInferenceSession(pixels, job.side, job.side, dtype=torch.float32)
        points = {"point_coords": torch.tensor([[[job.click]]]), "point_labels": torch.ones(1, 1, 1, dtype=torch.int32)}
        session.add_point_inputs(session.obj_id_to_idx(1), 0, points)
        session.obj_with_new_inputs = [1]
        model(inference_session=session, frame_idx=0)
        for output in model.propagate_in_video_iterator(session):
            mask = torch.nn.functional.interpolate(output.pred_masks, (job.side, job.side), mode="bilinear")
            yield mask[0, 0].numpy() > 0

    return run


def resized(config, side: int):
    """Return a configuration of `transformers` for images of another size, as it derives the published one."""
    vision = config.vision_config
    vision.image_size = vision.backbone_config.image_size = [side, side]
    vision.backbone_feature_sizes = [[side // stride] * 2 for stride in (4, 8, 16)]
    config.prompt_encoder_config.image_size = config.image_size = side
    config.memory_attention_rope_feat_sizes = [side // 16] * 2
    return config


def official(job: Job) -> Run:
    """The `sam2` package."""
    import torch
    from sam2.build_sam import build_sam2_video_predictor

    config = {"t": "sam2.1_hiera_t", "b": "sam2.1_hiera_b+"}[job.official.stem.rpartition("_")[2]]
    predictor = build_sam2_video_predictor(f"configs/sam2.1/{config}.yaml", str(job.official), device="cpu")

    @torch.inference_mode()
    def run() -> Iterator[np.ndarray]:
        state = predictor.init_state(str(job.images))
        points = np.array([job.click], np.float32)
        predictor.add_new_points_or_box(state, frame_idx=0, obj_id=1, points=points, labels=np.array([1], np.int32))
        for _, _, logits in predictor.propagate_in_video(state):
            yield logits[0, 0].numpy() > 0

    return run


def ultralytics(job: Job) -> Run:
    from ultralytics.models.sam import SAM2VideoPredictor

    options = {"model": str(job.official), "imgsz": job.side, "save": False, "verbose": False, "device": "cpu"}

    def run() -> Iterator[np.ndarray]:
        predictor = SAM2VideoPredictor(overrides={"task": "segment", "mode": "predict", "conf": 0.0, **options})
        for result in predictor(source=str(job.video), points=[list(job.click)], labels=[1], stream=True):
            found = result.masks
            yield found.data[0].numpy() > 0 if found is not None else np.zeros((job.side, job.side), bool)

    return run


@dataclass(frozen=True)
class Peer:
    """An implementation: how it is made ready, and what is installed for it."""

    title: str
    make: Callable[[Job], Run]
    distributions: tuple[str, ...]
    published_only: bool = False
    """Whether it knows the published sizes only: of networks, and of images."""


REFERENCE = "transformers"
"""Peer whose masks the others are compared with."""

OURS = ("ours", "openvino", "openvino-bf16")
PEERS = {
    "ours": Peer("ours", lambda job: ours(job, "ort"), ("samwise-runtime", "onnxruntime")),
    "openvino": Peer("ours on OpenVINO", lambda job: ours(job, "openvino"), ("samwise-runtime", "openvino")),
    "openvino-bf16": Peer(
        "ours on OpenVINO in bfloat16", lambda job: ours(job, "openvino-bf16"), ("samwise-runtime", "openvino")
    ),
    REFERENCE: Peer("`transformers`", lambda job: transformers(job, False), ("transformers", "torch")),
    "compiled": Peer(
        "`transformers` with `torch.compile`", lambda job: transformers(job, True), ("transformers", "torch")
    ),
    "sam2": Peer("`sam2`", official, ("sam2",), published_only=True),
    "ultralytics": Peer("`ultralytics`", ultralytics, ("ultralytics",), published_only=True),
}


def main(name: str, folder: str, side: str) -> None:
    job = Job(Path(folder), int(side))
    with redirect_stdout(sys.stderr):  # peers print
        run = PEERS[name].make(job)
        masks = run()
        kept = [next(masks)]
    print("{}", flush=True)  # the first mask
    with redirect_stdout(sys.stderr):
        kept += masks
    while True:
        np.save(job.folder / f"{name}-{side}.npy", np.stack(kept))
        print("{}", flush=True)
        if not sys.stdin.readline():
            return
        start = time.perf_counter()
        with redirect_stdout(sys.stderr):
            kept = list(run())
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
