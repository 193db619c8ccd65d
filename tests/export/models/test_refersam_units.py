"""Modules of ReferSAM alone, against outputs of the official code on synthetic weights."""

import pytest

torch = pytest.importorskip("torch")

from export.layers.deformable import cell_centres, sample
from export.layers.group_norm import OneGroupNorm
from export.layers.vit import VitBlock, VitConfig
from export.stages.refersam_adapter import Extractor, ReferSamAdapterConfig
from export.stages.refersam_fusion import PromptLayer, VisionLanguage
from helpers.refersam_reference import arrays, error, unit_input, weights

TOLERANCE = 1e-5
MASK = [[1] * 9, [1] * 5 + [0] * 4]


def filled(module, prefix):
    module.load_state_dict(weights(prefix), assign=True)
    return module.eval()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_sampling_with_points_outside_the_maps():
    shapes = ((7, 9), (4, 5), (2, 3))
    value = unit_input("core.value", (1, 89, 3, 8))
    places = unit_input("core.locations", (1, 50, 3, 3, 4, 2), 0.5) + 0.5
    weight = unit_input("core.weights", (1, 50, 3, 3, 4))
    found = sample(
        value,
        [2 * places[:, :, :, i].transpose(1, 2) - 1 for i in range(3)],
        [weight[:, :, :, i].transpose(1, 2) for i in range(3)],
        shapes,
    )
    assert error(found, arrays("units")["unit_core"]) <= TOLERANCE


def test_deformable_attention_in_both_directions():
    units, query = arrays("units"), "interactions.1."
    config = ReferSamAdapterConfig()
    extractor = filled(Extractor(768, config), f"vl_adapter.{query}extractor.")
    q, v = (unit_input(f"extractor.{name}", (1, n, 768)) for name, n in (("query", 1344), ("value", 256)))
    places = torch.cat([cell_centres(s) for s in (32, 16, 8)])
    assert error(extractor.attn(q, v, places, (16,))[:, ::11][:, ::4], units["unit_extractor_attn"]) <= TOLERANCE
    # the golden module leaves its input's residual to the attention, so the norm sees query + attention
    whole = extractor.query_norm(q + extractor.attn(q, extractor.value_norm(v), places, (16,)))
    assert error(whole[:, ::11][:, ::12], units["unit_extractor"]) <= TOLERANCE


@pytest.mark.parametrize("folded", [False, True])
def test_vision_language_layer(folded):
    units = arrays("units")
    layer = filled(VisionLanguage(768, 768, 12), "vl_adapter.interactions.2.vl_extractor.")
    rows = {"vision": 84, "text": 9, "context": 16}
    vision, text, context = (unit_input(f"vl.{name}", (2, count, 768)) for name, count in rows.items())
    shown = torch.cat((torch.tensor(MASK), torch.ones(2, 16, dtype=torch.int64)), 1).bool()
    bias = torch.where(shown, 0.0, -1e4)
    places = unit_input("vl.positions", (1, 84, 768))[0]
    vision, rows = layer(vision, torch.cat((text, context), 1), bias, places, (64, 16, 4), folded)
    assert error(vision[:, ::6], units["unit_vl_vision"]) <= TOLERANCE
    assert error(rows[0, :9], units["unit_vl_text"][0]) <= TOLERANCE
    assert error(rows[1, :5], units["unit_vl_text"][1, :5]) <= TOLERANCE
    assert error(rows[:, 9::4], units["unit_vl_context"]) <= TOLERANCE


@pytest.mark.parametrize("folded", [False, True])
def test_prompter_layer(folded):
    layer = filled(PromptLayer(256, 8), "vl_adapter.prompt_blocks.1.")
    rows = {"prompts": 5, "vision": 84, "text": 9}
    prompts, vision, text = (unit_input(f"prompter.{name}", (2, count, 256)) for name, count in rows.items())
    own, places = (
        unit_input(f"prompter.{name}", (1, count, 256))[0]
        for name, count in (("prompt_positions", 5), ("positions", 84))
    )
    out = layer(prompts, vision, text, torch.tensor(MASK).bool(), own, places, (64, 16, 4), folded)
    assert error(out, arrays("units")["unit_prompter"]) <= TOLERANCE


@pytest.mark.parametrize("number, shape, name", [(0, (1, 20, 18, 768), "window"), (2, (1, 10, 12, 768), "global")])
def test_vit_block_with_padded_windows_and_resized_tables(number, shape, name):
    block = filled(VitBlock(VitConfig(), VitConfig().windows[number]), f"vl_adapter.vis_model.blocks.{number}.")
    out = block(unit_input(f"vit.{name}", shape))[:, ::2, ::2][:, ::2, ::2]
    assert error(out, arrays("units")[f"unit_vit_{name}"]) <= TOLERANCE


def test_one_group_norm_is_group_norm():
    x = 3 * torch.randn(2, 6, 20, 20, generator=torch.Generator().manual_seed(0)) + 2
    ours, theirs = OneGroupNorm(6), torch.nn.GroupNorm(1, 6, eps=1e-6)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p += torch.linspace(-1, 1, 6)
        q.copy_(p)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
