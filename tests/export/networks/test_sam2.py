"""SAM 2 checkpoints to bundles: the command, its errors, and stages and rules against torch."""

import dataclasses
import zlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import runtime
from export.__main__ import main
from export.models import sam2
from export.networks import sam2 as sam2_network
from export.stages import memory_attention
from export.stages.prompt_decoder import MaskPromptStage, pick, stable
from helpers import toy_networks


def toy(**options):
    """A SAM 2 whose parameters have the same values in every configuration that has them, so that traces are shared."""
    torch.manual_seed(0)
    model = sam2.Sam2(toy_networks.toy_sam2_config(**options)).eval()
    torch.manual_seed(0)
    standard = sam2.Sam2(toy_networks.toy_sam2_config()).eval().state_dict()
    model.load_state_dict({k: v for k, v in standard.items() if k in model.state_dict()}, strict=False)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            value.add_(0.1 * torch.randn(value.shape, generator=noise))
        model.sam.sam_mask_decoder.pred_obj_score_head.layers[2].bias.fill_(3.0)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("new", [True, False], ids=["2.1", "2.0"])
def test_the_command(tmp_path, capsys, new, shared_traces):
    model = toy(pointer_positions=new)
    tensors = {**model.sam.state_dict(), "no_mem_pos_enc": torch.zeros(1, 1, 32)}
    torch.save({"model": tensors, "config": dataclasses.asdict(model.config)}, tmp_path / "toy.pt")
    assert (
        main(["sam2", "--checkpoint", str(tmp_path / "toy.pt"), "--out", str(tmp_path / "out"), "--name", "toy"]) == 0
    )
    assert "memory_attention" in capsys.readouterr().out
    with runtime.load(tmp_path / "out" / "toy") as engine:
        manifest = engine.bundle.manifest
        assert manifest.provenance["parity"]["mask_iou"] >= 0.999, "every stage and a clip were compared with torch"
        inputs = {t.name for t in manifest.stages["memory_attention"].inputs}
        assert ("obj_ptr_tpos" in inputs) == new, "only 2.1 gives pointers a distance"
        assert ("score" in {t.name for t in manifest.stages["prompt_memory_encoder"].inputs}) == new
        clip = np.random.default_rng(0).integers(0, 255, (9, 40, 60, 3), dtype=np.uint8)
        together, alone = {}, {}
        for objects, out in (((1, 2, 3), together), ((1,), alone), ((2,), alone), ((3,), alone)):
            with engine.video(clip, logits=True) as video:
                for obj in objects:
                    # different numbers of clicks, and memories that fill at different times
                    video.add_points(2 * (obj - 1), obj, [(10 * obj + i, 12) for i in range(obj)], [1] * obj)
                for result in video.propagate(0):
                    logits = zip(result.object_ids, result.low_res_logits, strict=True)
                    out |= {(result.frame_index, obj): x for obj, x in logits}
        for key, logits in alone.items():
            np.testing.assert_allclose(together[key], logits, atol=1e-3 * logits.std())


@pytest.mark.parametrize("new", [True, False], ids=["2.1", "2.0"])
def test_objects_of_the_reference_are_a_batch(new):
    model = toy(pointer_positions=new)
    with torch.no_grad():
        model.sam.sam_mask_decoder.pred_obj_score_head.layers[2].bias.fill_(0.0)  # some objects are absent
    frames = np.random.default_rng(0).integers(0, 255, (5, 40, 60, 3), dtype=np.uint8)
    clicks = [(0.2, 0.3), (0.7, 0.4), (0.5, 0.9)]
    settings = sam2_network.settings(model)
    together = list(sam2_network.clip(model, settings, frames, clicks=clicks))
    for row, click in enumerate(clicks):
        alone = sam2_network.clip(model, settings, frames, clicks=[click])
        for (_, logits, scores), (_, (one,), (score,)) in zip(together, alone, strict=True):
            np.testing.assert_allclose(logits[row], one, atol=1e-3 * max(1.0, one.std()))
            assert abs(scores[row] - score) < 1e-3


def test_files_that_are_not_sam2_checkpoints(tmp_path):
    torch.save({"model": {"text_encoder.x": torch.zeros(1)}}, tmp_path / "samwise.pth")
    with pytest.raises(runtime.UserError, match="python -m export samwise"):
        sam2_network.load(tmp_path / "samwise.pth")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(runtime.UserError, match="not a SAM 2 checkpoint"):
        sam2_network.load(tmp_path / "other.pt")
    with pytest.raises(runtime.UserError, match="no such file"):
        sam2_network.load(tmp_path / "nowhere.pt")


def test_stability():
    logits = torch.full((3, 10, 10), -1.0)
    logits[0, :5] = 1.0  # nothing between the thresholds
    logits[1, :5], logits[1, 5, 0] = 1.0, 0.0  # one of 51 pixels is: 50 / 51 = 0.9804
    logits[2, :5], logits[2, 5, :2] = 1.0, 0.0  # 50 / 52 = 0.96
    assert stable(logits).tolist() == [True, True, False]
    assert stable(torch.full((1, 4, 4), -1.0)).tolist() == [True], "an empty mask is stable"


def test_rules_of_the_decoder():
    """Selection of mask and token: one batch with every case."""
    stages = {s.name: s for s in sam2_network.stages(toy())}
    decoder, inputs = (
        stages["prompt_decoder"],
        stages["prompt_decoder"].sample({"objects": 6, "maps": 1, "pictures": 1}),
    )
    inputs["sparse_count"][:] = 2
    inputs["multimask"] = torch.tensor([True, False] * 3)
    out = decoder.run(inputs)
    best = 1 + out["ious"][:, 1:].argmax(1)
    wanted = torch.where(inputs["multimask"] | ~stable(out["all_logits"][:, 0]), best, 0)
    assert (out["selected"] == wanted).all()
    present = out["score"] > 0
    assert (out["low_res_logits"][present] == pick(out["all_logits"], wanted)[present]).all()
    assert (out["low_res_logits"][~present] == -1024).all()
    flipped = decoder.run({**inputs, "multimask": ~inputs["multimask"]})
    assert not torch.isclose(flipped["obj_ptr"], out["obj_ptr"]).all(1).any(), "the pointer's token follows the mode"


def test_padding_of_prompts_changes_nothing():
    stages = {s.name: s for s in sam2_network.stages(toy())}
    decoder = stages["prompt_decoder"]
    inputs = decoder.sample({"objects": 1, "maps": 1, "pictures": 1, "prompt_tokens": 6})
    inputs["sparse_count"][:] = 2
    padded = decoder.run(inputs)
    alone = decoder.run({**inputs, "sparse": inputs["sparse"][:, :2].contiguous()})
    for name, value in alone.items():
        torch.testing.assert_close(padded[name], value, rtol=1e-4, atol=1e-5)


def test_mask_prompts_shrink_as_torch_does():
    stage = MaskPromptStage(torch.nn.Conv2d(1, 1, 4, 4), 64)
    mask = (torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    want = torch.nn.functional.interpolate(20 * mask[:, None] - 10, size=(16, 16), mode="bilinear", antialias=True)[
        :, 0
    ]
    torch.testing.assert_close(stage(mask)[0], want, rtol=1e-5, atol=1e-5)


def test_the_first_self_attention_runs_once_per_image(monkeypatch):
    """It does not depend on the memory, so all objects of an image share it."""
    stage = next(s for s in sam2_network.stages(toy()) if s.name == "memory_attention")
    batches, attend = [], memory_attention.attend
    monkeypatch.setattr(memory_attention, "attend", lambda q, *a, **k: batches.append(len(q)) or attend(q, *a, **k))
    stage.run(stage.sample({"objects": 5, "maps": 1}))
    assert batches == [1, 5, 5, 5], "self- and cross-attention of two layers"
