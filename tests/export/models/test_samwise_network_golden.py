"""The torch network against outputs of the official code, on synthetic weights."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from export.layers.common import upsample
from export.stages.conditional_memory import ConditionalMemory
from export.stages.cross_modal_adapter import Adapter, AdapterStage
from helpers import samwise_reference as reference
from helpers import synth

TOLERANCE = 1e-4
STRIDES = {0: 5, 1: 3, 2: 3}


def close(ours, theirs):
    error = reference.rel_l2(ours, theirs)
    assert error <= TOLERANCE, error


def thin(maps_hwc, stride):
    """Channel-last map as the kit keeps one: strided, then thinned."""
    return maps_hwc.permute(2, 0, 1)[:, ::stride, ::stride][::2, ::3, ::3]


@pytest.mark.parametrize(
    "i, width, side, patch", [pytest.param(0, 192, 128, 8, marks=pytest.mark.slow), (1, 384, 64, 4), (2, 768, 32, 2)]
)
@torch.no_grad()
def test_adapter_alone(i, width, side, patch):
    debug = np.load(reference.GOLDENS / "golden_public_tiny_debug.npz")
    prefix = f"cmt_adapters.{i}."
    adapter = Adapter(width, 768, 256, 8, patch).eval()
    weights = reference.state_dict("public_tiny", (prefix,))
    adapter.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items()})
    vision = torch.from_numpy(synth.make_tensor(f"unit.adapter{i}.vis", (3, width, side, side), 101))
    vision = vision.permute(0, 2, 3, 1)
    text = torch.from_numpy(synth.make_tensor(f"unit.adapter{i}.text", (10, 1, 768), 101))[:, 0]

    def kept(x_thwc):
        stride = STRIDES[i]
        return x_thwc.permute(0, 3, 1, 2)[:, :, ::stride, ::stride][:, ::4, ::3, ::3]

    close(kept(adapter.selective(adapter.proj_vis_down(vision)[None])[0]), debug[f"unit_adapter{i}_hsa"])
    added, text_added = adapter(vision[None], text[None])
    close(kept(added[0]), debug[f"unit_adapter{i}_vis"])
    close(text_added[0], debug[f"unit_adapter{i}_text"])
    fused, text_fused = AdapterStage(adapter).eval()(vision, text)
    close(kept(fused - vision), debug[f"unit_adapter{i}_vis"])
    close(text_fused - text, debug[f"unit_adapter{i}_text"])


@torch.no_grad()
def test_conditional_memory_decisions():
    meta, golden = reference.golden("public_tiny_cme")
    prefix = "conditional_memory_encoder."
    weights = {k.removeprefix(prefix): v for k, v in reference.state_dict("public_tiny_cme", (prefix,)).items()}
    module = ConditionalMemory(256, 8, 128).eval()
    assert all("norm2" in k for k in module.load_state_dict(weights, strict=False).unexpected_keys)
    asked = meta["cme_evaluated_frames"]
    pointers, early = (torch.from_numpy(a) for a in (golden["obj_ptr"][asked], golden["cme_early_obj_ptr"]))
    logits = module(pointers, early)
    close(logits, golden["cme_logits"])
    decisions = zip(asked, logits, strict=True)
    assert [f for f, (stay, switch) in decisions if switch > stay] == meta["cme_fired_frames"]


@pytest.mark.slow
def test_first_frames_of_a_clip():
    """The whole first clip of 8 (attention along time depends on its length), and three frames through memory."""
    meta, golden = reference.golden("public_tiny")
    debug = np.load(reference.GOLDENS / "golden_public_tiny_debug.npz")
    height, width = meta["original_height"], meta["original_width"]
    packed = np.unpackbits(golden["pred_masks_packed"], axis=1)[:, : height * width].astype(bool)
    frames = 0
    for number, out in reference.play("public_tiny", count=3):
        frames += 1
        close(out["text_2_fused"][0], golden["text_state"][0])
        close(out["low_res_logits"][0, ::4, ::4], golden["low_res_masks"][number])
        close(out["obj_ptr"][0], golden["obj_ptr"][number])
        close(out["score"][0], golden["object_score_logits"][number])
        close(out["iou"][0], golden["ious"][number])
        slot = out["maskmem_features"][0].unflatten(0, (64, 64))
        close(slot.permute(2, 0, 1)[:, ::4, ::4], golden["maskmem_features_sub4"][number])
        resized = upsample(out["low_res_logits"], 1024)[:, : meta["resized_height"], : meta["resized_width"]]
        source = torch.nn.functional.interpolate(resized[None], (height, width), mode="bilinear")[0, 0]
        mask = source.flatten().numpy() > 0
        assert (mask & packed[number]).sum() >= 0.999 * (mask | packed[number]).sum()
        if number < 2:
            grid = out["conditioned"][0].unflatten(0, (64, 64))
            close(thin(grid, 3), debug[f"memory_conditioned_frame{number}"])
        if number == 0:
            close(thin(slot, 1), debug["maskmem_features_frame0"])
        if number == 1:
            _inside(out, debug)
    assert frames == 3


def _inside(out, debug):
    """Tensors inside the encoder, of frame 1."""
    close(out["pixels"][1, :, ::8, ::8][::2, ::3, ::3], debug["input_padded_frame1"])
    for i, stride in STRIDES.items():
        close(thin(out[f"vision_{i}"][1], stride), debug[f"stage{i + 1}_before_frame1"])
        close(thin(out[f"vision_{i}_fused"][1], stride), debug[f"stage{i + 1}_after_frame1"])
        close(out[f"text_{i}"], debug[f"text_before_adapter{i}"])
        close(out[f"text_{i}_fused"], debug[f"text_after_adapter{i}"])
    close(thin(out["high_res_0"][1].permute(1, 2, 0), 7), debug["fpn0_conv_s0_frame1"])
    close(thin(out["high_res_1"][1].permute(1, 2, 0), 5), debug["fpn1_conv_s1_frame1"])
    close(thin(out["embedding"][1].unflatten(0, (64, 64)), 3), debug["fpn2_frame1"])
    close(out["sparse"][0], debug["sparse_prompt_clip0"])
