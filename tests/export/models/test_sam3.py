"""SAM 3's detector: equal to transformers' Sam3Model, ROI align to a brute-force one, graphs to their modules."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from export import onnx as graphs
from export.layers.roi_align import roi_align
from export.models.sam3 import Sam3, tiny_test_config
from export.networks.sam3 import PADDING, load, stages
from export.verify import parity
from helpers.toy_sam3 import toy_sam3
from runtime.errors import UserError

POSITIVE, NEGATIVE = [[0.4, 0.5, 0.3, 0.4]], [[0.7, 0.3, 0.11, 0.1]]
BOXES = {
    "text only": ([], []),
    "one positive": (POSITIVE, [1]),
    "one negative": (NEGATIVE, [0]),
    "both": (POSITIVE + NEGATIVE, [1, 0]),
    "beyond the picture": ([[0.05, 0.9, 0.3, 0.4], [0.5, 0.5, 1.2, 1.2], [0.5, 0.5, 0.01, 0.02]], [1, 0, 1]),
}
TEXTS = {"two words": [58, 7, 21, 59], "no padding": [58, 1, 2, 3, 4, 5, 6, 59]}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def theirs():
    pytest.importorskip("transformers.models.sam3", reason="needs transformers 5")
    from helpers import transformers_sam3

    return transformers_sam3.detector()


@pytest.fixture(scope="module")
def cuts(theirs):
    from helpers import transformers_sam3

    return transformers_sam3.stages_of(theirs)


def padded(tokens):
    return torch.tensor([tokens + [PADDING] * (8 - len(tokens))])


@torch.no_grad()
def reference(model, pixels, tokens, boxes, labels):
    """Outputs of transformers. It leaves out the CLS token where there is no box: a hidden one supplies it."""
    given, kinds = torch.tensor([boxes or [[0.5, 0.5, 0.2, 0.2]]]), torch.tensor([labels or [-10]])
    ids = padded(tokens)
    out = model(
        pixel_values=pixels,
        input_ids=ids,
        attention_mask=(ids != PADDING).long(),
        input_boxes=given,
        input_boxes_labels=kinds,
    )
    return {
        "scores": out.pred_logits,
        "presence": out.presence_logits.reshape(-1),
        "boxes": out.pred_boxes,
        "masks": out.pred_masks,
        "semantic": out.semantic_seg[:, 0],
    }


def corners(boxes):
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1)


def detect(cuts, pixels, tokens, boxes, labels):
    """Outputs of our stages, as the runtime calls them: all queries are kept."""

    def run(name, *inputs):
        stage = cuts[name]
        names = [spec.name for spec in stage.spec.inputs]
        return list(stage.run(dict(zip(names, inputs, strict=True))).values())

    first = torch.zeros(1, dtype=torch.int64)
    trunk, level = run("image_encoder", pixels)
    fine_2, fine_4 = run("fine_levels", trunk)
    ids = padded(tokens)
    (text,) = run("text_encoder", ids)
    count = len(boxes) + 1  # the last row is that of the CLS token
    rows, kinds = torch.tensor([[*boxes, [0.5, 0.5, 1.0, 1.0]]]), torch.tensor([[*labels, 0]])
    (geometry,) = run("geometry_encoder", level, first, rows, kinds, torch.ones(1, count, dtype=torch.bool))
    prompt = torch.cat((text, geometry), 1)
    mask = torch.cat((ids != PADDING, torch.ones(1, count, dtype=torch.bool)), 1)
    encoded, queries, found, scores, presence = run("detr", level, first, prompt, mask)
    masks, semantic = run("mask_head", encoded, prompt, mask, fine_2, fine_4, first, queries)
    return {"scores": scores, "presence": presence, "boxes": corners(found), "masks": masks, "semantic": semantic}


@pytest.mark.parametrize("boxes", BOXES)
@pytest.mark.parametrize("text", TEXTS)
def test_equals_transformers(theirs, cuts, text, boxes):
    pixels = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(2)) * 2 - 1
    want = reference(theirs, pixels, TEXTS[text], *BOXES[boxes])
    got = detect(cuts, pixels, TEXTS[text], *BOXES[boxes])
    assert want["scores"].std() > 0.01 and want["masks"].flatten(2).std(2).min() > 0.3
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_equals_transformers_at_another_size(theirs, tmp_path):
    """The weights of the network above, for pictures of 12 x 12 patches instead of 8 x 8."""
    from helpers import transformers_sam3

    theirs.save_pretrained(tmp_path)
    larger = transformers_sam3.detector(side=12)
    larger.load_state_dict(theirs.state_dict())
    cuts = {stage.name: stage for stage in stages(load(tmp_path, image_size=168))}
    pixels = torch.rand(1, 3, 168, 168, generator=torch.Generator().manual_seed(2)) * 2 - 1
    want = reference(larger, pixels, TEXTS["two words"], *BOXES["both"])
    got = detect(cuts, pixels, TEXTS["two words"], *BOXES["both"])
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    with pytest.raises(UserError, match="--image-size 160: give a multiple of 56 .* such as 168"):
        load(tmp_path, image_size=160)


def test_prompts_change_the_result(cuts):
    """Texts, boxes and labels reach every output: an equality above is not one of constants."""
    pixels = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(2)) * 2 - 1
    words = TEXTS["two words"]
    base = detect(cuts, pixels, words, POSITIVE, [1])
    for other in (
        detect(cuts, pixels, [58, 9, 59], POSITIVE, [1]),
        detect(cuts, pixels, words, POSITIVE, [0]),
        detect(cuts, pixels, words, NEGATIVE, [1]),
        detect(cuts, pixels, words, [], []),
        detect(cuts, -pixels, words, POSITIVE, [1]),
    ):
        for name, value in base.items():
            assert (value - other[name]).abs().max() > 1e-3, name


ROIS = [
    [0.0, 0.0, 8.0, 6.0],
    [1.3, 2.1, 5.9, 5.2],
    [2.5, 2.5, 2.6, 2.7],
    [-3.0, -2.0, 4.0, 3.0],
    [5.0, 4.0, 30.0, 20.0],
    [-9.0, -9.0, -5.0, -5.0],
]


@pytest.mark.parametrize("side", [7, 2])
def test_roi_align_equals_sampling_point_by_point(side):
    helper = pytest.importorskip("helpers.transformers_sam3")
    maps = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([ROIS, ROIS[::-1]])
    got = roi_align(maps.permute(0, 2, 3, 1), boxes, side).numpy()
    for b, k in np.ndindex(*boxes.shape[:2]):
        want = helper.roi_align(maps[b].double().numpy(), boxes[b, k].tolist(), side)
        np.testing.assert_allclose(got[b, k], want, atol=1e-5)


NAMES = ["image_encoder", "fine_levels", "text_encoder", "geometry_encoder", "detr", "mask_head"]
TRACKER = ["tracker_neck", "prompt_encoder", "mask_prompt", "prompt_decoder", "memory_attention"]
TRACKER += ["prompt_memory_encoder"]
SIZES = [
    {},
    {"frames": 1, "maps": 1, "concepts": 1, "geometry_tokens": 1, "prompt_length": 9, "kept": 1}
    | {"objects": 1, "pictures": 1, "prompt_tokens": 1, "slots": 1, "pointers": 0, "mask_side": 32},
    {"frames": 4, "maps": 3, "concepts": 5, "geometry_tokens": 4, "prompt_length": 12, "kept": 7}
    | {"objects": 3, "pictures": 2, "prompt_tokens": 5, "slots": 4, "pointers": 6, "mask_side": 112},
]


@pytest.fixture(scope="module")
def tiny():
    return {stage.name: stage for stage in stages(toy_sam3())}


def test_names_of_stages(tiny):
    assert list(tiny) == NAMES + TRACKER
    assert [stage.name for stage in stages(Sam3(tiny_test_config(tracker=False)).eval())] == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES + TRACKER)
def test_graph_equals_module(tiny, name, tmp_path, shared_traces):
    """At sizes the graph was not traced with, for every variant."""
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    stage = tiny[name]
    files = graphs.save({variant: graphs.trace(stage, variant) for variant in stage.variants}, tmp_path, name)
    for file in files.values():
        session = ort.InferenceSession(str(tmp_path / file))
        for seed, sizes in enumerate(SIZES):
            inputs = stage.sample({s: n for s, n in sizes.items() if s in stage.sizes}, seed)
            got = session.run(None, {key: value.numpy() for key, value in inputs.items()})
            for (key, tensor), value in zip(stage.run(inputs).items(), got, strict=True):
                want = tensor.numpy()
                assert value.shape == want.shape, key
                if key == "maskmem_features":  # rounded to bfloat16: the last bit of a few values may differ
                    assert np.linalg.norm(value - want) < parity.rounded_limit(want, 1e-4) * np.linalg.norm(want)
                else:
                    np.testing.assert_allclose(value, want, atol=1e-4 * max(1.0, want.std()), err_msg=key)
