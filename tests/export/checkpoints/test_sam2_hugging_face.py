"""Checkpoints in Hugging Face's layout: names, sizes, and the same masks as transformers' own Sam2VideoModel."""

import json

import numpy as np
import pytest

from runtime.imaging.preprocess import preprocess

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.models.sam2_video", reason="needs transformers 4.56 or newer")

import runtime
from benchmarks.bench_peers import draw
from export import bundle
from export.checkpoints.sam2 import renamed
from export.networks import base
from export.networks import sam2 as sam2_network
from helpers.transformers_sam2 import SIZE, config

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def seeded(new: bool = True):
    """Random weights of a size at which every part matters."""
    torch.manual_seed(3)
    model = transformers.Sam2VideoModel(config(new)).eval()
    draw(model)
    return model


def clip(count):
    y, x = np.mgrid[0:90, 0:160].astype(np.float32)
    frames = [
        np.stack([127 + 90 * np.sin(x / (9 + 3 * c) + 0.3 * t) * np.cos(y / (13 - 2 * c)) for c in range(3)], -1)
        for t in range(count)
    ]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


@torch.no_grad()
def theirs(model, frames, point):
    """Low-res logits per frame of one click on frame 0."""
    size = model.config.image_size
    pixels = np.stack([preprocess(f, (size, size), size, MEAN, STD, resample="bicubic") for f in frames])
    session = transformers.models.sam2_video.modeling_sam2_video.Sam2VideoInferenceSession(
        video=torch.from_numpy(pixels), video_height=frames.shape[1], video_width=frames.shape[2], dtype=torch.float32
    )
    where = torch.tensor(point, dtype=torch.float32) / torch.tensor([frames.shape[2], frames.shape[1]]) * size
    index = session.obj_id_to_idx(1)
    session.add_point_inputs(
        index, 0, {"point_coords": where.reshape(1, 1, 1, 2), "point_labels": torch.ones(1, 1, 1, dtype=torch.int32)}
    )
    session.obj_with_new_inputs = [1]
    model(inference_session=session, frame_idx=0)
    return [out.pred_masks[0, 0].numpy() for out in model.propagate_in_video_iterator(session)]


@pytest.mark.parametrize("new", [True, False], ids=["2.1", "2.0"])
def test_every_tensor_is_mapped(tmp_path, new):
    model = seeded(new)
    model.save_pretrained(tmp_path)
    loaded = sam2_network.load(tmp_path)
    assert loaded.config.sam.pointer_positions == new and loaded.config.sam.image_size == SIZE
    state, names = loaded.sam.state_dict(), renamed(model.state_dict())
    assert set(names) - set(state) == {"no_mem_pos_enc"}
    for name, value in state.items():
        assert (value == names[name]).all(), name


def test_shards_and_wrapped_tensors(tmp_path):
    """In shards, as one file beside its config.json, and as a training saves them."""
    model = seeded()
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    state = {f"model._orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    names = renamed(model.state_dict())
    for path in (tmp_path, tmp_path / "model.safetensors.index.json", tmp_path / "last.ckpt"):
        for name, value in sam2_network.load(path).sam.state_dict().items():
            assert (value == names[name]).all(), name


def test_damaged_folders(tmp_path):
    with pytest.raises(runtime.UserError, match="config.json"):
        sam2_network.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config().to_dict()))
    with pytest.raises(runtime.UserError, match="model.safetensors"):
        sam2_network.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(runtime.UserError, match="not readable"):
        sam2_network.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 160])
def test_one_click_equals_transformers(tmp_path, size):
    """Also at another size than that of the training, with the same weights."""
    model, frames, point = seeded(), clip(6), [70.5, 41.0]
    model.save_pretrained(tmp_path / "hf")
    network = sam2_network.load(tmp_path / "hf", image_size=size)
    bundle.export_bundle(base.describe("sam2", network), tmp_path, "small", variants={"ort"}, check=False)
    if size is not None:
        weights, model = model.state_dict(), transformers.Sam2VideoModel(config(size=size)).eval()
        model.load_state_dict(weights)
    want = theirs(model, frames, point)
    cells = (network.config.sam.image_size // 16) ** 2
    with runtime.load(tmp_path / "small") as engine, engine.video(frames, logits=True, fill_hole_area=0) as video:
        video.add_points(0, 1, [point], [1])
        got = [r.low_res_logits[0] for r in video.propagate()]
        assert video.output(5, 1).memory_tokens == (5 * cells, 5 * 2)
    assert max(np.std(w) for w in want) > 0.1 and all(0.02 < (w > 0).mean() < 0.98 for w in want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.std(b))
