"""Every stage of a toy SAMWISE as an ONNX graph, at sizes it was not traced with."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from export import onnx as graphs
from export.layers import attention
from export.layers.hiera import Hiera, HieraConfig
from export.models.samwise import Samwise
from export.networks.samwise import stages
from export.stages import hiera
from helpers import toy_exports
from helpers.toy_networks import toy_samwise_config

CONFIG = toy_samwise_config(motion=True)
SIZES = [
    {},
    {
        "frames": 1,
        "kept": 1,
        "tokens": 3,
        "objects": 1,
        "maps": 1,
        "pictures": 1,
        "slots": 1,
        "pointers": 1,
        "mask_side": 16,
    },
    {
        "frames": 4,
        "kept": 3,
        "tokens": 11,
        "objects": 5,
        "maps": 2,
        "pictures": 3,
        "slots": 6,
        "pointers": 7,
        "mask_side": 64,
    },
]


@pytest.fixture(scope="module")
def cuts():
    return {s.name: s for s in stages(toy_exports.samwise())}


NAMES = [
    *(f"{kind}_{i}" for kind in ("hiera", "text", "adapter") for i in range(3)),
    "neck",
    "text_prompt",
    "memory_attention",
    "mask_decoder",
    "conditional_memory",
    "memory_encoder",
    *(f"adapter_{i}_step" for i in range(3)),
]


def test_names(cuts):
    assert sorted(cuts) == sorted(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_graph_equals_module(cuts, name, tmp_path, shared_traces):
    stage = cuts[name]
    files = graphs.save({variant: graphs.trace(stage, variant) for variant in stage.variants}, tmp_path, name)
    for variant, file in files.items():
        graphs.check(tmp_path / file, stage.spec, variant)
        session = ort.InferenceSession(tmp_path / file, providers=["CPUExecutionProvider"])
        for seed, sizes in enumerate(SIZES):
            inputs = stage.sample({s: n for s, n in sizes.items() if s in stage.sizes}, seed)
            expected = stage.run(inputs)
            results = session.run(list(expected), {k: v.numpy() for k, v in inputs.items()})
            for (output, ours), theirs in zip(expected.items(), results, strict=True):
                near = 2e-5 * max(1, ours.float().abs().max().item())
                np.testing.assert_allclose(
                    theirs, ours.numpy(), rtol=1e-4, atol=near, err_msg=f"{name} {variant} {output} {sizes}"
                )


def test_graphs_for_a_cpu_split_rows_into_tiles(monkeypatch, tmp_path):
    """All variants give the same numbers, and the tiles are in the graph."""
    monkeypatch.setattr(hiera, "TILE_PATCHES", 64)
    stage = next(s for s in stages(Samwise(CONFIG)) if s.name == "hiera_0")
    assert stage.module.row_tiles == 4
    inputs = stage.sample({"frames": 2})
    expected = stage.run(inputs)
    with attention.attention_impl("ort"):
        for name, found in stage.run(inputs).items():
            assert torch.allclose(found, expected[name], rtol=1e-5, atol=1e-6), name
    models = {variant: graphs.trace(stage, variant) for variant in ("default", "ort", "cuda")}
    joins = {
        variant: sum(node.op_type == "Concat" and len(node.inputs) == 4 for node in model.graph)
        for variant, model in models.items()
    }
    assert joins == {"default": 0, "ort": 2, "cuda": 0}
    for variant, file in graphs.save(models, tmp_path, stage.name).items():
        session = ort.InferenceSession(tmp_path / file, providers=["CPUExecutionProvider"])
        found = session.run(list(expected), {k: v.numpy() for k, v in inputs.items()})
        for name, result in zip(expected, found, strict=True):
            np.testing.assert_allclose(
                result, expected[name].numpy(), rtol=1e-4, atol=2e-5, err_msg=f"{variant} {name}"
            )


@pytest.mark.parametrize(
    "side, expected, changes",
    [
        (256, 16, {}),
        (64, 1, {}),
        (128, 4, {}),
        (96, 2, {}),  # of 9216 patches; 12 windows in a column
        (100, 1, {}),  # a window would be cut
        (256, 1, {"global_blocks": (2,)}),
        (256, 16, {"windows": (8, 4, 16, 8), "blocks": (2, 6, 36, 4), "global_blocks": (23, 33, 43)}),
        (256, 4, {"windows": (8, 32, 16, 8)}),
    ],
)
def test_row_tiles_contain_whole_windows(side, expected, changes):
    assert hiera.row_tiles(Hiera(HieraConfig(**changes)), side) == expected
