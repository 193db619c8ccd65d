"""Checkpoint to masks at a reduced size, against the official code (see goldens/sam3/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import runtime
from export import bundle
from export.networks import base, network
from helpers import sam3_synth

pytestmark = pytest.mark.slow

GOLDENS = Path(__file__).parents[2] / "goldens" / "sam3"


def golden(name):
    return json.loads((GOLDENS / f"{name}.json").read_text()), np.load(GOLDENS / f"{name}.npz")


def clip(meta):
    return sam3_synth.make_clip(**meta["clip"])


def unpacked(masks, height, width):
    return np.unpackbits(masks, axis=-1)[..., : height * width].reshape(*masks.shape[:-1], height, width).astype(bool)


def overlap(a, b):
    return np.count_nonzero(a & b) / max(1, np.count_nonzero(a | b))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Exported from a checkpoint file of the official form, as its users have it."""
    folder = tmp_path_factory.mktemp("golden")
    recipe = golden("video")[0]["weights"]
    shapes = json.loads((GOLDENS / recipe["shapes"]).read_text())
    options = recipe["offsets"], recipe["tracker_offsets"], recipe["salts"]
    weights = sam3_synth.make_checkpoint(shapes, recipe["seed"], *options)
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, folder / "sam3.pt")
    model = network("sam3").load(folder / "sam3.pt")
    bundle.export_bundle(base.describe("sam3", model), folder, "reduced", variants=(), check=False)
    (folder / "sam3.pt").unlink()
    del model, weights
    with runtime.load(folder / "reduced", backend="ort", verify=False) as engine:
        yield engine


def test_concepts_through_a_video(engine):
    meta, arrays = golden("video")
    frames = clip(meta)
    options = {**meta["options"], "num_frames": len(frames)}
    with engine.session([runtime.Concept(tokens=meta["token_ids"])], logits=True, **options) as session:
        results = list(session.stream(frames))
    for result, shown in zip(results, meta["shown"], strict=True):
        frame = shown["frame"]
        assert result.frame_index == frame and list(result.object_ids) == shown["ids"]
        assert result.scores == pytest.approx(shown["scores"], abs=1e-4)
        masks = unpacked(arrays[f"masks_frame{frame}"], *frames.shape[1:3])
        assert min(overlap(a, b) for a, b in zip(result.masks, masks, strict=True)) >= 0.998
        logits = arrays[f"low_res_frame{frame}_sub4"].astype(np.float32)
        rows = [meta["low_res_ids"][str(frame)].index(obj) for obj in result.object_ids]
        error = np.abs(result.low_res_logits[:, ::4, ::4] - logits[rows])
        # a hole or speck more or less: single pixels of another value
        assert np.quantile(error, 0.999) < 1e-3 * np.abs(logits).max()


def test_clicks_and_boxes_through_a_video(engine):
    meta, arrays = golden("tracker")
    frames = clip(meta)
    with engine.video(frames, logits=True) as video:
        for number, step in enumerate(meta["script"]):
            arguments = dict(step)
            answer = getattr(video, arguments.pop("call"))(**arguments)
            results = list(answer) if step["call"] == "propagate" else [answer]
            logits = arrays[f"c{number}_low_res_sub4"].astype(np.float32)
            masks = unpacked(arrays[f"c{number}_masks_packed"], *frames.shape[1:3])
            if step["call"] != "propagate":
                row = results[0].object_ids.index(step["obj"])
                have = results[0].low_res_logits[row, ::4, ::4]
                assert results[0].score_logits[row] == pytest.approx(float(arrays[f"c{number}_score"][0]), abs=1e-3)
                masks = masks[None]
            else:
                have = np.stack([result.low_res_logits[:, ::4, ::4] for result in results])
                scores = np.stack([result.score_logits for result in results])
                assert scores == pytest.approx(arrays[f"c{number}_score"], abs=1e-3)
            np.testing.assert_allclose(have, logits, rtol=0, atol=1e-3 * np.abs(logits).max())
            for result, expected in zip(results, masks, strict=True):
                assert min(overlap(a, b) for a, b in zip(result.masks, expected, strict=True)) >= 0.999
