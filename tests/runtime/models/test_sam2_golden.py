"""Checkpoint to masks at the official size against outputs of the official code (see goldens/sam2/README.md)."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import runtime
from export import bundle, onnx
from export.networks import base
from export.networks import sam2 as sam2_network
from helpers import synth
from helpers.synth_recipes import SAM2

pytestmark = pytest.mark.slow

GOLDENS = Path(__file__).parents[2] / "goldens" / "sam2"


def golden(case):
    meta = json.loads((GOLDENS / f"{case}.json").read_text())
    return meta, np.load(GOLDENS / f"{case}.npz")


def checkpoint(case, path):
    """An official checkpoint file with this case's weights."""
    weights = golden(case)[0]["weights"]
    shapes = json.loads((GOLDENS / "shapes.json").read_text())
    tensors = synth.make_state_dict(SAM2, shapes, weights["seed"], weights["bias_offsets"], weights["scales"])
    assert synth.crc_state_dict(tensors) == weights["crc32_all"]
    torch.save({"model": {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}}, path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """SAM 2.1 tiny at 1024 px, exported from a checkpoint file."""
    folder = tmp_path_factory.mktemp("golden")
    model = sam2_network.load(checkpoint("public_p1", folder / "sam2.1_hiera_tiny.pt"))
    return bundle.export_bundle(base.describe("sam2", model), folder, "tiny", variants={"ort"}, check=False)


@pytest.fixture(scope="module")
def engine(tiny):
    with runtime.load(tiny, verify=False) as engine:
        yield engine


def clip_of(meta):
    clip = synth.make_clip(**{k: v for k, v in meta["clip"].items() if k not in ("function", "crc32")})
    assert synth.crc(clip) == meta["clip"]["crc32"]
    return clip


def unpacked(bits, shape):
    return np.unpackbits(bits, axis=-1)[..., : shape[0] * shape[1]].reshape(*bits.shape[:-1], *shape).astype(bool)


def same_masks(got, want, where):
    both, either = (got & want).sum((-1, -2)), (got | want).sum((-1, -2))
    iou = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    assert iou.min() >= 0.999, (where, iou)


def same_outcome(outcome, arrays, key, at, where):
    def want(name):
        return arrays[f"{key}_{name}"][at]

    assert (outcome.selected, outcome.memory_tokens) == (want("selected"), tuple(want("mem_tokens"))), where
    error = np.abs(outcome.low_res_logits[::8, ::8] - want("low_res")).max() / want("low_res_std")
    assert error <= 1e-3, (where, error)
    assert outcome.score == pytest.approx(float(want("score")), abs=1e-3), where
    np.testing.assert_allclose(outcome.obj_ptr, want("obj_ptr"), atol=2e-3)
    if not np.isnan(want("ious4")).any():
        np.testing.assert_allclose(outcome.ious, want("ious4"), atol=1e-4)


@pytest.mark.parametrize("case", ["public_p1", "public_p2", "public_p3"])
def test_videos_equal_the_official_code(engine, case):
    meta, arrays = golden(case)
    clip = clip_of(meta)
    shape = clip.shape[1:3]
    with engine.video(clip, logits=True, fill_hole_area=0) as video:
        for i, call in enumerate(meta["script"]):
            call, key, ids = dict(call), f"c{i}", tuple(meta["outputs"][i]["obj_ids"])
            name = call.pop("call")
            if name == "propagate":
                packed = arrays[f"{key}_masks_packed"]
                for t, (result, bits) in enumerate(
                    zip(video.propagate(max_frames=len(packed) - 1), packed, strict=True)
                ):
                    assert (result.frame_index, result.object_ids) == (t, ids)
                    for n, obj in enumerate(ids):
                        same_outcome(video.output(t, obj), arrays, key, (t, n), (case, i, t, obj))
                    same_masks(result.masks, unpacked(bits, shape), (case, i, t))
                continue
            if name == "add_mask":
                result = video.add_mask(call["frame"], call["obj"], synth.make_mask(*call["mask"]["args"]))
            else:
                result = getattr(video, name)(**call)
            assert result.object_ids == ids
            same_outcome(video.output(call["frame"], call["obj"]), arrays, key, (), (case, i))
            same_masks(result.masks, unpacked(arrays[f"{key}_masks_packed"], shape), (case, i))


def test_pictures_equal_the_official_code(tiny, tmp_path):
    meta, arrays = golden("public_p4")
    picture = clip_of(meta)[0]
    # these weights differ in the decoder's heads alone
    shutil.copytree(tiny, tmp_path / "p4", copy_function=os.link)
    for file in (tmp_path / "p4" / "graphs").glob("prompt_decoder*"):
        file.unlink()
    stages = sam2_network.stages(sam2_network.load(checkpoint("public_p4", tmp_path / "p4.pt")))
    decoder = next(s for s in stages if s.name == "prompt_decoder")
    onnx.save({"default": onnx.trace(decoder)}, tmp_path / "p4" / "graphs", "prompt_decoder")
    earlier = {}
    with runtime.load(tmp_path / "p4", verify=False) as engine:
        image = engine.image(picture)
        for i, call in enumerate(meta["script"]):
            call = dict(call)
            if call.pop("call") != "predict":
                continue
            source = call["mask_input"]
            if source is not None:
                call["mask_input"] = earlier[source["from_call"]].low_res[source["resolved_index"]]
            earlier[i] = found = image.predict(**call)
            error = (
                np.abs(found.low_res[:, ::8, ::8] - arrays[f"c{i}_low_res"]).max((1, 2)) / arrays[f"c{i}_low_res_std"]
            )
            assert error.max() <= 1e-3, (i, error)
            np.testing.assert_allclose(found.scores, arrays[f"c{i}_ious"], atol=1e-4)
            same_masks(found.masks, unpacked(arrays[f"c{i}_masks_packed"], picture.shape[:2]), i)
