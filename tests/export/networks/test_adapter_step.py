"""A step of an adapter against the whole clip: exact algebra, in torch and as graphs."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

from pathlib import Path

import runtime
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
    inputs = step.sample({"kept": 3})
    moved = inputs | {"kept_index": (inputs["kept_index"] + 1) % 3}
    first, second = step.run(inputs), step.run(moved)
    assert not torch.allclose(first["vision_1_fused"], second["vision_1_fused"], atol=1e-4)
    assert torch.equal(first["narrow_1"], second["narrow_1"])


@pytest.mark.parametrize("level", range(3))
def test_nanos_steps_equal_the_last_frame_of_a_clip(level):
    """The graphs of the shipped bundle; what is kept of a frame is what its own step gave."""
    with runtime.load(NANO, backend="ort", threads=1) as engine:
        whole, step = engine.stages[f"adapter_{level}"], engine.stages[f"adapter_{level}_step"]
        vision, text = (x.numpy().astype(np.float16) for x in sentence_and_maps(whole, 8, level))
        fused, words = np.empty_like(vision), np.empty_like(text)
        whole.run(
            **{f"vision_{level}": vision, f"text_{level}": text},
            **{f"vision_{level}_fused": fused, f"text_{level}_fused": words},
        )
        kept, index = np.zeros(step.spec.inputs[2].resolve({"kept": 7}), np.float16), np.arange(7)
        for i in range(8):
            got, got_words, narrow = (np.empty(t.resolve({"tokens": len(text)}), t.dtype) for t in step.spec.outputs)
            arrays = {f"vision_{level}": vision[i : i + 1], f"text_{level}": text, f"kept_{level}": kept}
            outputs = {f"vision_{level}_fused": got, f"text_{level}_fused": got_words, f"narrow_{level}": narrow}
            step.run(**arrays, kept_index=index, **outputs)
            if i < 7:
                kept[i] = narrow[0]
    np.testing.assert_allclose(got[0], fused[-1], rtol=4e-3, atol=4e-3)
    np.testing.assert_allclose(got_words, words, rtol=4e-3, atol=4e-3)
