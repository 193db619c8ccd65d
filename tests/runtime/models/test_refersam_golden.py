"""ReferSAM's masks in torch and through the bundle against outputs of the official code."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import runtime
from export import bundle
from export.networks import base
from export.networks.refersam import load
from helpers import refersam_reference as reference
from helpers import synth

LOGITS, IOU = 1e-3, 0.999
SIDE = 448


def compare(low_res, coarse, scores, masks):
    golden, meta = reference.arrays("public_vitb_bert"), reference.META
    assert reference.error(low_res, golden["low_res_masks"]) <= LOGITS
    assert reference.error(coarse, golden["coarse_masks"]) <= LOGITS
    np.testing.assert_allclose(scores, meta["iou_predictions"], atol=1e-3)
    want = np.unpackbits(golden["pred_masks_packed"], axis=1)[:, : SIDE * SIDE].reshape(-1, SIDE, SIDE).astype(bool)
    for ours, theirs in zip(masks, want, strict=True):
        assert (ours & theirs).sum() / (ours | theirs).sum() >= IOU


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "public.pth"
    torch.save({"model": reference.weights()}, path)
    return path


@pytest.mark.slow
def test_bundle_equals_the_official_code(checkpoint, tmp_path):
    model = load(checkpoint)
    with torch.no_grad():
        tokens, count = torch.tensor(reference.META["token_ids"]), torch.tensor(reference.META["attention_mask"]).sum(1)
        low_res, coarse, iou = model(reference.pixels(), tokens, count)
    logits = torch.nn.functional.interpolate(low_res[:, None], (SIDE, SIDE), mode="bilinear", align_corners=True)
    compare(low_res.numpy(), coarse.numpy(), iou.numpy(), (logits[:, 0] >= 0).numpy())

    folder = bundle.export_bundle(base.describe("refersam", model), tmp_path, "refersam", check=False)
    del model
    engine = runtime.load(folder, verify=False)
    picture = reference.META["image"]
    frame = synth.make_image(picture["height"], picture["width"], picture["seed"])
    padded = zip(reference.META["token_ids"], count.tolist(), strict=True)
    sentences = [runtime.Text(tokens=ids[:n]) for ids, n in padded]
    seen = engine.image(np.asarray(synth.resize_image(frame, SIDE, SIDE)))
    result = seen.refer(sentences, logits=True)
    compare(result.low_res_logits, result.coarse_logits, result.scores, result.masks)
    # at the picture's own size: the same logits, another grid
    own = engine.image(frame).refer(sentences, logits=True)
    assert own.masks.shape == (2, *frame.shape[:2])
    np.testing.assert_array_equal(own.low_res_logits, result.low_res_logits)
