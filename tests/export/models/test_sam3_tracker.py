"""SAM 3's tracker: features, decoder, memory attention and memory encoder equal transformers' Sam3VideoModel."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers.models.sam3_video", reason="needs transformers 5")

import torch.nn.functional as F

from helpers import transformers_sam3

SIDE, WIDTH, MEMORY = transformers_sam3.SIDE, transformers_sam3.WIDTH, 64
IMAGE, LOW, MASK = 14 * SIDE, 4 * SIDE, 16 * SIDE
FIRST = torch.zeros(1, dtype=torch.int64)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def theirs():
    model = transformers_sam3.video_model()
    model.tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias.data += 3  # the object is there
    return model


@pytest.fixture(scope="module")
def cuts(theirs):
    return transformers_sam3.stages_of(theirs)


@pytest.fixture(scope="module")
def frame(theirs, cuts):
    """The feature maps of one frame: theirs, and ours by name."""
    pixels = torch.rand(1, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        vision = theirs.detector_model.get_vision_features(pixel_values=pixels)
        features, positions = theirs.get_vision_features_for_tracker(vision)
    trunk = cuts["image_encoder"].run({"pixels": pixels})["trunk"]
    return SimpleNamespace(theirs=features, positions=positions, ours=cuts["tracker_neck"].run({"trunk": trunk}))


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(got, want):
    spread = float(np.std(want.numpy()))
    assert spread > 0.01 or want.numel() == 1
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * max(1.0, spread))


def maps(features, side):
    """(N,1,C) to (1,C,side,side)."""
    return features.permute(1, 2, 0).unflatten(2, (side, side))


def test_features(theirs, frame):
    fine_0, fine_1, coarse = frame.theirs
    embedding = coarse.transpose(0, 1)
    close(frame.ours["embedding"], embedding.detach())
    close(frame.ours["embedding_no_memory"], (embedding + theirs.tracker_model.no_memory_embedding).detach())
    close(frame.ours["high_res_0"], maps(fine_0, 4 * SIDE).detach())
    close(frame.ours["high_res_1"], maps(fine_1, 2 * SIDE).detach())


PROMPTS = {
    "one click": ([[40.0, 60.0]], [1], False, True),
    "two clicks on a mask": ([[40.0, 60.0], [90.0, 20.0]], [1, 0], True, False),
    "box": ([[10.0, 20.0], [70.0, 90.0]], [2, 3], False, False),
    "tracked": ([[0.0, 0.0]], [-1], False, True),
    "mask": ([[0.0, 0.0]], [-1], True, False),
}


def decode(cuts, frame, points, labels, logits, multimask):
    """The stages as the runtime calls them: one padding point, logits of zeros without a mask."""
    tokens = cuts["prompt_encoder"].run(
        {
            "points": torch.tensor([[*points, [0.0, 0.0]]]),
            "labels": torch.tensor([[*labels, -1]]),
            "prompt_logits": torch.zeros(1, LOW, LOW) if logits is None else logits,
            "has_mask": torch.tensor([logits is not None]),
        }
    )
    inputs = {
        "conditioned": frame.ours["embedding_no_memory"],
        **tokens,
        "sparse_count": torch.tensor([len(labels) + 1]),
        "picture_index": FIRST,
        "map_index": FIRST,
        "multimask": torch.tensor([multimask]),
    }
    fine = {name: frame.ours[name] for name in ("high_res_0", "high_res_1")}
    return cuts["prompt_decoder"].run(inputs | fine)


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_and_decoder(theirs, cuts, frame, name):
    points, labels, masked, multimask = PROMPTS[name]
    logits = 3 * random(1, LOW, LOW) if masked else None
    tracker = theirs.tracker_model
    embeddings = [maps(f, side) for f, side in zip(frame.theirs, (4 * SIDE, 2 * SIDE, SIDE), strict=True)]
    embeddings[2] = embeddings[2] + tracker.no_memory_embedding.reshape(1, -1, 1, 1)
    with torch.no_grad():
        want = tracker._single_frame_forward(
            input_points=torch.tensor([[points]]),
            input_labels=torch.tensor([[labels]]),
            input_masks=None if logits is None else logits[:, None],
            image_embeddings=embeddings,
            multimask_output=multimask,
        )
    got = decode(cuts, frame, points, labels, logits, multimask)
    close(got["low_res_logits"], want.pred_masks[:, 0])
    close(got["obj_ptr"], want.object_pointer[:, 0])
    close(got["score"], want.object_score_logits.reshape(-1))
    ious = got["ious"][:, 1:] if multimask else got["ious"].gather(1, got["selected"][:, None])
    close(ious, want.iou_scores[:, 0])


def test_mask_prompt(theirs, cuts):
    """A mask of 1152 of the published network, and what `mask_downsample` makes of it."""
    mask = (random(2, MASK, MASK) > 0.5).float()
    with torch.no_grad():
        close(
            cuts["mask_prompt"].run({"mask": mask})["prompt_logits"],
            theirs.tracker_model.mask_downsample(mask[:, None])[:, 0],
        )


CONDITIONING, FRAME, LENGTH = 2, 7, 12


def memories(tracker):
    """A session of theirs at `FRAME`: one conditioning frame and three tracked ones, one of them too old."""
    outputs = {
        t: {
            "maskmem_features": random(SIDE * SIDE, 1, MEMORY, seed=t),
            "maskmem_pos_enc": tracker.memory_encoder.position_encoding((1, MEMORY, SIDE, SIDE), "cpu", torch.float32)
            .flatten(2)
            .permute(2, 0, 1),
            "object_pointer": random(1, WIDTH, seed=100 + t),
        }
        for t in (0, CONDITIONING, 4, 6)
    }
    kept = {"cond_frame_outputs": {CONDITIONING: outputs.pop(CONDITIONING)}, "non_cond_frame_outputs": outputs}
    return SimpleNamespace(output_dict_per_obj=[kept], dtype=torch.float32)


def test_memory_attention(theirs, cuts, frame):
    tracker = theirs.tracker_model
    session = memories(tracker)
    with torch.no_grad():
        want = tracker._prepare_memory_conditioned_features(
            session, FRAME, 0, False, frame.theirs[2], frame.positions[2], num_total_frames=LENGTH
        )
    kept = session.output_dict_per_obj[0]
    outputs = kept["cond_frame_outputs"] | kept["non_cond_frame_outputs"]
    slots, pointers = [CONDITIONING, 4, 6], [CONDITIONING, 6, 4, 0]
    got = cuts["memory_attention"].run(
        {
            "embedding": frame.ours["embedding"],
            "map_index": FIRST,
            "memory": torch.stack([outputs[t]["maskmem_features"][:, 0] for t in slots])[None],
            "maskmem_tpos_index": torch.tensor([[6, *(FRAME - t - 1 for t in slots[1:])]]),
            "obj_ptrs": torch.stack([outputs[t]["object_pointer"] for t in pointers], 1),
            "obj_ptr_tpos": torch.tensor([[(FRAME - t) / (LENGTH - 1) for t in pointers]]),
        }
    )
    close(got["conditioned"], want.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("score", [2.0, -2.0], ids=["present", "absent"])
@pytest.mark.parametrize("direct", [True, False], ids=["at once", "by way of the image"])
@pytest.mark.parametrize("binarize", [True, False], ids=["prompt", "tracked"])
def test_memory_encoder(theirs, cuts, frame, score, direct, binarize):
    """Theirs takes a mask of any size; the way of the official code by 1008 is made of its parts."""
    logits = 5 * random(1, LOW, LOW)
    tracker = theirs.tracker_model
    sizes = [MASK] if direct else [IMAGE, MASK]
    mask = F.interpolate(logits[:, None], (sizes[0], sizes[0]), mode="bilinear")
    mask = (mask > 0).float() if binarize and not direct else mask.sigmoid()
    mask = F.interpolate(mask, (MASK, MASK), mode="bilinear")
    with torch.no_grad():
        want, _ = tracker.memory_encoder(maps(frame.theirs[2], SIDE), 20 * mask - 10)
        want = want.flatten(2).transpose(1, 2)
        if score < 0:
            want = want + tracker.occlusion_spatial_embedding_parameter
    got = cuts["prompt_memory_encoder"].run(
        {
            "embedding": frame.ours["embedding"],
            "map_index": FIRST,
            "mask_logits": logits,
            "binarize": torch.tensor([binarize]),
            "score": torch.tensor([score]),
            "direct": torch.tensor([direct]),
        }
    )["maskmem_features"]
    assert torch.equal(got, got.to(torch.bfloat16).float()), "the reference stores bfloat16"
    np.testing.assert_allclose(got, want, rtol=2**-7, atol=1e-4)
