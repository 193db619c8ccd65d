"""Checkpoint to masks at the official size, against the official code (see goldens/samwise/README.md)."""

import numpy as np
import pytest

from export.networks import network

torch = pytest.importorskip("torch")

import runtime
from export import bundle
from export.networks import base
from helpers import samwise_reference as reference
from helpers import synth
from helpers.recorder import Recorder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Hiera tiny at 1024 px, exported from a checkpoint file as its users have it. Both cases share all weights but the
    decision's bias, so the bundle with the conditional memory serves both."""
    folder = tmp_path_factory.mktemp("golden")
    torch.save({"model": reference.state_dict("public_tiny_cme")}, folder / "samwise.pth")
    model = network("samwise").load(folder / "samwise.pth")
    bundle.export_bundle(base.describe("samwise", model), folder, "tiny", variants={"ort"}, check=False)
    (folder / "samwise.pth").unlink()
    del model
    with runtime.load(folder / "tiny", verify=False) as engine:
        yield engine


@pytest.fixture(scope="module")
def recorder(engine):
    recorder = Recorder(("obj_ptr", "maskmem_features", "switched"))
    engine.instrument(recorder)
    return recorder


def play(engine, recorder, case, **options):
    """Run a case with one sentence; return its clip, results, and recorded outputs of each frame by name."""
    meta, _ = reference.golden(case)
    arguments = {k: v for k, v in meta["clip"].items() if k not in ("function", "crc32")}
    clip = synth.make_clip(**arguments)
    recorder.calls.clear()
    with engine.session([runtime.Text(tokens=meta["token_ids"])], logits=True, **options) as session:
        results = list(session.stream(clip))
    frames, current = [], {}
    for stage, outputs in recorder.calls:
        for name, value in outputs.items():  # of two decodings of a frame, the second is the one without memory
            current.setdefault(name, value[0])
        if stage == "memory_encoder":  # the last stage of a frame
            frames.append(current)
            current = {}
    return meta, clip, results, frames


@pytest.mark.parametrize("case, options", [("public_tiny", {"conditional_memory": False}), ("public_tiny_cme", {})])
def test_equals_the_official_code(engine, recorder, case, options):
    meta, clip, results, recorded = play(engine, recorder, case, **options)
    golden = np.load(reference.GOLDENS / f"run_{case}.npz")
    frames, height, width = clip.shape[:3]
    packed = np.unpackbits(golden["pred_masks_packed"], axis=1)[:, : height * width]
    expected = packed.reshape(frames, height, width).astype(bool)
    assert [r.frame_index for r in results] == list(range(frames))
    for result, mask, low in zip(results, expected, golden["low_res_sub4"], strict=True):
        iou = (mask & result.masks[0]).sum() / (mask | result.masks[0]).sum()
        assert iou >= 0.999, (result.frame_index, iou)
        error = reference.rel_l2(result.low_res_logits[0, 1::4, 2::4], low)
        assert error <= 1e-3, (result.frame_index, error)
    scores = np.concatenate([r.score_logits for r in results])
    np.testing.assert_allclose(scores, golden["object_score_logits"].reshape(-1), atol=5e-3)
    pointers = np.stack([frame["obj_ptr"] for frame in recorded])
    assert reference.rel_l2(pointers, golden["obj_ptr"].reshape(frames, -1)) <= 1e-3
    memory = np.stack([frame["maskmem_features"] for frame in recorded[-6:]])
    kept = memory.reshape(6, 64, 64, 64).transpose(0, 3, 1, 2)[:, ::2, ::8, ::8]
    assert reference.rel_l2(kept, golden["maskmem_sub8"]) <= 1e-3
    assert [i for i, frame in enumerate(recorded) if frame.get("switched", False)] == meta["cme_fired_frames"]
    evaluated = engine.stages["conditional_memory"].calls
    assert evaluated == (len(meta["cme_evaluated_frames"]) if not options else 0)


def test_two_prompts_at_once(engine):
    """Two prompts on the first frames of a clip give the logits that each gives alone."""
    meta, _ = reference.golden("public_tiny")
    clip = synth.make_clip(3, 90, 160, seed=1)
    prompts = [runtime.Text(tokens=meta["token_ids"]), runtime.Text(tokens=[0, 15429, 1011, 2])]

    def logits(prompts):
        with engine.session(prompts, logits=True) as session:
            return np.stack([r.low_res_logits for r in session.stream(clip)], 1)

    together = logits(prompts)
    for i, prompt in enumerate(prompts):
        assert reference.rel_l2(together[i], logits([prompt])[0]) <= 1e-5
    assert reference.rel_l2(together[0], together[1]) > 0.05, "the prompt does not matter"
