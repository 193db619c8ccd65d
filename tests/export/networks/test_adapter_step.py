"""A step of an adapter against the whole clip: exact algebra, in torch and as graphs."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

from pathlib import Path

from export.models.samwise import Samwise
from export.networks.samwise import stages
from helpers.toy_networks import toy_samwise_config

NANO = Path(__file__).parents[3] / "engines" / "nano"


@pytest.fixture(scope="module")
def toys():
    torch.manual_seed(0)
    model = Samwise(toy_samwise_config(motion=True))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3 if p.ndim > 1 else 0.1)
    return {s.name: s for s in stages(model)}


def sentence_and_maps(stage, frames, seed):
    generator = torch.Generator().manual_seed(seed)
    vision, text = stage.spec.inputs[:2]
    return (
        torch.randn((frames, *vision.shape[1:]), generator=generator),
        torch.randn((6, text.shape[1]), generator=generator),
    )


@torch.no_grad()
@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("frames, newest", [(2, 1), (5, 1), (8, 1), (8, 3)])
def test_the_newest_frames_are_the_last_ones_of_a_whole_clip(toys, level, frames, newest):
    """Kept maps may come in any order; the words see the average over the clip."""
    whole, step = toys[f"adapter_{level}"], toys[f"adapter_{level}_step"]
    vision, text = sentence_and_maps(whole, frames, level)
    fused, words = whole.module(vision, text)
    kept = whole.module.down(vision[:-newest]).relu()
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(frames))
    got, got_words, narrow = step.module(vision[-newest:], text, kept[order], order)
    assert torch.allclose(got, fused[-newest:], rtol=1e-4, atol=1e-5)
    assert torch.allclose(got_words, words, rtol=1e-4, atol=1e-5)
    assert torch.equal(narrow, whole.module.down(vision[-newest:]).relu())


@torch.no_grad()
def test_the_positions_of_kept_frames_count(toys):
    step = toys["adapter_1_step"]
    inputs = step.sample({"frames": 1, "kept": 4})
    moved = inputs | {"kept_index": (inputs["kept_index"] + 1) % 4}
    first, second = step.run(inputs), step.run(moved)
    assert not torch.allclose(first["vision_1_fused"], second["vision_1_fused"], atol=1e-4)
    assert torch.equal(first["narrow_1"], second["narrow_1"])
