"""ReferSAM in torch: folds, padding, sizes from tensors, damaged checkpoints; graphs at other sizes than traced."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import runtime
from export import __main__ as command
from export import onnx as graphs
from export.checkpoints.refersam import build, config_of, renamed
from export.models import refersam
from export.models.refersam import ReferSam, ReferSamConfig
from export.networks import refersam as refersam_network
from export.networks.refersam import stages
from helpers import refersam_reference as reference
from helpers.toy_networks import toy_refersam_config

KINDS = ("bert", "clip")


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    torch.manual_seed(0)
    return reference.randomize(ReferSam(toy_refersam_config(request.param))).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def picture():
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def large(kind):
    """A network of 160 px: a ViT grid of 10 cells, windows of 3 with padding, every table resized."""
    torch.manual_seed(0)
    config = replace(toy_refersam_config(kind, 160), max_tokens=ReferSamConfig().max_tokens)  # not in a checkpoint
    return reference.randomize(ReferSam(config)).eval().requires_grad_(False)


TOKENS = torch.tensor([[7, 3, 9, 44, 5], [8, 61, 2, 0, 0]])
COUNT = torch.tensor([5, 3])


def by_stages(model, picture, tokens, count, folded):
    """Run the schedule: one sentence at a time through `text`, then all of them through `fuse`."""
    cut = {s.name: s for s in stages(model, folded)}
    seen = cut["image"].run({"pixels": picture})
    text = torch.full((*tokens.shape, model.config.text.width), 7.0)  # padding may hold anything
    for row, ids, n in zip(text, tokens, count, strict=True):
        row[:n] = cut["text"].run({"tokens": ids[:n]})["text"]
    return cut["fuse"].run({**seen, "text": text, "text_count": count})


@pytest.mark.parametrize("folded", [False, True])
def test_stages_equal_the_whole(model, picture, folded):
    whole = model(picture, TOKENS, COUNT)
    staged = by_stages(model, picture, TOKENS, COUNT, folded).values()
    for ours, want in zip(staged, whole, strict=True):
        assert reference.error(ours, want.numpy()) <= 2e-5


def test_padding_changes_nothing(model, picture):
    both = model(picture, TOKENS, COUNT)
    alone = model(picture, TOKENS[1:, :3], COUNT[1:])
    other = model(picture, torch.where(TOKENS == 0, 50, TOKENS), COUNT)
    for x, y, z in zip(both, alone, other, strict=True):
        torch.testing.assert_close(x[1:], y, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(x, z, rtol=1e-4, atol=1e-5)


def test_sentences_change_the_result(model, picture):
    low_res, coarse, _ = model(picture, TOKENS, torch.tensor([5, 5]))
    assert (low_res[0] - low_res[1]).abs().max() > 1e-3 and (coarse[0] - coarse[1]).abs().max() > 1e-3


def test_sizes_come_from_the_tensors(model):
    found = config_of(model.state_dict())
    config = model.config
    assert (found.vit, found.text, found.adapter) == (config.vit, config.text, config.adapter)
    again = build({f"module.{k}": v for k, v in model.state_dict().items()}, "x.pth", 96)
    assert again.config.image_size == 96


def test_official_names():
    tensors = {renamed(k): torch.empty(v, device="meta") for k, v in reference.SHAPES.items()}
    assert config_of(tensors) == refersam.ReferSamConfig()
    with torch.device("meta"):
        ours = ReferSam(refersam.ReferSamConfig()).state_dict().keys()
    assert {k for k in tensors if ".pooler." not in k} == set(ours)


def test_names_of_older_and_newer_libraries(model):
    tensors = dict(model.state_dict())
    tensors = {k.replace("text_encoder.text_model.", "text_encoder."): v for k, v in tensors.items()}
    tensors["text_encoder.embeddings.position_ids"] = torch.arange(24)[None]
    tensors["text_encoder.pooler.dense.weight"] = torch.zeros(2, 2)
    assert build(tensors, "x.pth", 64).config.text.kind == model.config.text.kind


def without(name):
    return lambda t: {k: v for k, v in t.items() if k != name}


@pytest.mark.parametrize(
    "damage, message",
    [
        (without("vl_adapter.level_embed"), "level_embed"),
        (without("mask_scaling.bias"), "mask_scaling.bias"),
        (lambda t: {**t, "more": torch.zeros(1)}, "more"),
        (lambda t: {"a": torch.zeros(1)}, "not a ReferSAM checkpoint"),
        (lambda t: {**t, "mask_scaling.bias": torch.full((1,), np.nan)}, "not finite"),
        (lambda t: {**t, "mask_scaling.bias": torch.zeros(2)}, "shape"),
    ],
)
def test_damaged_checkpoints(model, damage, message):
    with pytest.raises(runtime.UserError, match=message):
        build(damage(dict(model.state_dict())), "x.pth", 64)


@pytest.mark.parametrize("size", [0, 100, 449, 4096])
def test_bad_sizes(model, size):
    with pytest.raises(runtime.UserError, match="image size"):
        build(model.state_dict(), "x.pth", size)


@pytest.mark.slow
@pytest.mark.parametrize("kind, names", [("clip", {"image", "text", "fuse"}), ("bert", {"text"})])
def test_graphs_equal_modules(kind, names, tmp_path, shared_traces):
    """With the other text tower only the stage of text has other code."""
    model = large(kind)
    for stage in (s for s in stages(model) if s.name in names):
        file = graphs.save({"default": graphs.trace(stage)}, tmp_path, stage.name)["default"]
        graphs.check(tmp_path / file, stage.spec)
        session = ort.InferenceSession(tmp_path / file, providers=["CPUExecutionProvider"])
        for seed, sizes in enumerate(({}, {"objects": 1, "tokens": 1}, {"objects": 3, "tokens": 12})):
            inputs = stage.sample({s: n for s, n in sizes.items() if s in stage.sizes}, seed)
            want = stage.run(inputs)
            found = session.run(list(want), {k: v.numpy() for k, v in inputs.items()})
            for ours, theirs in zip(want.values(), found, strict=True):
                assert reference.error(theirs, ours.numpy()) <= 1e-4, (stage.name, sizes)


@pytest.mark.slow
def test_from_checkpoint_to_masks(tmp_path, shared_traces):
    model = large("clip")
    torch.save({"model": model.state_dict()}, tmp_path / "tiny.pth")
    options = ["refersam", "--checkpoint", str(tmp_path / "tiny.pth"), "--out", str(tmp_path), "--image-size"]
    assert command.main([*options, "70"]) == 2
    assert command.main([*options, "160"]) == 0
    engine = runtime.load(tmp_path)
    assert engine.bundle.name == "refersam-vit_128-clip-160"
    frame = np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
    sentences = [[7, 3, 9, 44, 5], [8, 61, 2]]
    result = engine.image(frame).refer([runtime.Text(tokens=t) for t in sentences], logits=True)
    for i, tokens in enumerate(sentences):
        ((masks, low_res, iou),) = refersam_network.clip(model, engine.bundle.manifest.networks, [frame], tokens)
        assert reference.error(result.low_res_logits[i], low_res[0]) <= 1e-4
        assert (result.masks[i] != masks[0]).mean() < 1e-3 and abs(result.scores[i] - iou[0]) < 1e-4


def test_image_size_is_refused_for_networks_with_one_size(tmp_path, capsys):
    (tmp_path / "x.pth").write_bytes(b"x")
    assert command.main(["nano-concepts", "--checkpoint", str(tmp_path / "x.pth"), "--image-size", "448"]) == 2
    assert "one input size" in capsys.readouterr().err
