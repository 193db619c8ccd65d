"""Stages split around their attention: subgraphs and the kernels' formulas against the whole stage."""

import os
from dataclasses import replace

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from export import split_attention
from export.models.samwise import CrossModalAdapterConfig, Samwise
from export.networks.samwise import stages
from helpers.toy_networks import toy_samwise_config
from runtime.kernels import reference

LIMIT = 1e-4


def relative(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(4)
    config = replace(toy_samwise_config(), adapter=CrossModalAdapterConfig(width=64, heads=2, patches=(4, 2, 1)))
    model = Samwise(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value += 0.05 * torch.randn_like(value)
        model.sam.maskmem_tpos_enc *= 20
    return model


@pytest.fixture(scope="module")
def whole(model):
    return {stage.name: stage for stage in stages(model)}


@pytest.fixture(scope="module")
def found(model):
    return {split.stage: split for split in split_attention.split_stages(model)}


def test_stages_that_are_split(found, whole):
    adapters = [f"adapter_{i}{suffix}" for i in range(3) for suffix in ("", "_step")]
    assert list(found) == [*adapters, "memory_attention"]
    assert [p.name for p in found["memory_attention"].subgraphs] == [f"memory_attention_subgraph_{i}" for i in range(3)]
    for name, cut in found.items():
        inputs = {t for part in cut.subgraphs for t in part.spec.inputs}
        outputs = {t for part in cut.subgraphs for t in part.spec.outputs}
        kernel_reads = {t for t in whole[name].spec.inputs if t.name in ("memory", "obj_ptrs", "kept_index")}
        assert set(whole[name].spec.inputs) <= inputs | kernel_reads and set(whole[name].spec.outputs) <= outputs


def attend(constants, layer, queries, inputs):
    """The kernel of one layer, by its formula."""
    memory, pointers = inputs["memory"].double().numpy(), inputs["obj_ptrs"].double()
    tokens = pointers.reshape(len(pointers), -1, memory.shape[3]).numpy()
    counts = np.full(len(tokens), tokens.shape[1])
    return reference.memory_attention(
        queries.astype(np.float64),
        memory,
        inputs["maskmem_tpos_index"].numpy(),
        tokens,
        counts,
        constants[f"key_weight_{layer}"],
        constants[f"key_bias_{layer}"],
        *(constants[n] for n in ("position", "temporal", "cosine", "sine")),
    )


@pytest.mark.parametrize("sizes", [{}, {"objects": 1, "maps": 1, "slots": 1, "pointers": 1}])
def test_memory_attention_equals_its_parts_and_the_kernel(found, whole, sizes):
    cut, stage = found["memory_attention"], whole["memory_attention"]
    inputs = stage.sample(sizes)
    want = stage.run(inputs)["conditioned"]
    known = dict(inputs)
    for i, part in enumerate(cut.subgraphs):
        known |= part.run({t.name: known[t.name] for t in part.spec.inputs})
        if i < len(cut.subgraphs) - 1:
            attended = attend(cut.constants, i, known[f"queries_{i}"].numpy(), inputs)
            known[f"attended_{i}"] = torch.from_numpy(attended).float()
    assert relative(known["conditioned"], want) <= LIMIT
    assert torch.equal(known["ages"], inputs["maskmem_tpos_index"].int())
    # the memory matters: without the kernel's work the result is another one
    known["attended_1"] = torch.zeros_like(known["attended_1"])
    last = cut.subgraphs[-1]
    assert relative(last.run({t.name: known[t.name] for t in last.spec.inputs})["conditioned"], want) > 0.01


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_adapter_equals_its_parts_and_the_kernel(found, whole, i, frames):
    cut, stage = found[f"adapter_{i}"], whole[f"adapter_{i}"]
    inputs = stage.sample({"frames": frames})
    want = stage.run(inputs)
    first, last = cut.subgraphs
    narrow = first.run({f"vision_{i}": inputs[f"vision_{i}"]})[f"narrow_{i}"]
    names = ("position", "norm_weight", "norm_bias", "qkv_weight", "qkv_bias", "out_weight", "out_bias")
    selected = reference.window_attention(
        narrow.double().numpy(),
        cut.sizes["patch"],
        reference.time_embedding(frames, narrow.shape[3]),
        *(cut.constants[name] for name in names),
        heads=2,
    )
    assert relative(selected, narrow) > 0.05, "attention matters"
    got = last.run({**inputs, f"narrow_{i}": narrow, f"selected_{i}": torch.from_numpy(selected).float()})
    for name in want:
        assert relative(got[name], want[name]) <= LIMIT


@pytest.mark.parametrize("kept", [1, 2])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_step_of_an_adapter_equals_its_parts_and_the_kernel(found, whole, i, kept):
    cut, stage = found[f"adapter_{i}_step"], whole[f"adapter_{i}_step"]
    inputs = stage.sample({"kept": kept}) | {"kept_index": torch.arange(kept).flip(0)}
    want = stage.run(inputs)
    first, last = cut.subgraphs
    narrow = first.run({f"vision_{i}": inputs[f"vision_{i}"]})[f"narrow_{i}"]
    assert relative(narrow, want[f"narrow_{i}"]) <= LIMIT
    names = ("position", "norm_weight", "norm_bias", "qkv_weight", "qkv_bias", "out_weight", "out_bias")
    selected = reference.window_attention_step(
        narrow[0].double().numpy(),
        inputs[f"kept_{i}"].double().numpy(),
        inputs["kept_index"].numpy(),
        cut.sizes["patch"],
        reference.time_embedding(kept + 1, narrow.shape[3]),
        *(cut.constants[name] for name in names),
        2,
    )
    assert relative(selected, narrow[0]) > 0.05, "attention matters"
    known = {**inputs, f"narrow_{i}": narrow, f"selected_{i}": torch.from_numpy(selected).float()[None]}
    got = last.run({t.name: known[t.name] for t in last.spec.inputs})
    for name in got:
        assert relative(got[name], want[name]) <= LIMIT


def test_memory_attention_through_tritons_interpreter(found, whole):
    """The launches themselves in place of the formula, in float32."""
    pytest.importorskip("triton")
    from runtime.kernels import launch, plan

    cut, stage = found["memory_attention"], whole["memory_attention"]
    inputs = stage.sample()
    known = dict(inputs)
    memory, pointers = inputs["memory"], inputs["obj_ptrs"]
    b, slots, tokens, m = memory.shape
    sizes = plan.MemorySizes(b, tokens, slots, pointers[0].numel() // m, pointers.shape[2], m, 8)
    config = plan.FlashConfig(16, 16, 4, 1, splits=2)
    constants = {name: torch.from_numpy(array) for name, array in cut.constants.items()}
    for i, part in enumerate(cut.subgraphs):
        known |= part.run({t.name: known[t.name] for t in part.spec.inputs})
        if i == len(cut.subgraphs) - 1:
            break
        scratch = {n: torch.full(shape, float("nan")) for n, (shape, _) in sizes.scratch(2).items()}
        known[f"attended_{i}"] = torch.full((b, tokens, m), float("nan"))
        counts = torch.full((b,), sizes.pointers, dtype=torch.int32)
        launch.run(
            plan.memory_attention(
                {
                    "queries": known[f"queries_{i}"].contiguous(),
                    "memory": memory,
                    "ages": known["ages"],
                    "pointers": pointers,
                    "pointer_counts": counts,
                    "key_weight": constants[f"key_weight_{i}"],
                    "key_bias": constants[f"key_bias_{i}"],
                    **{n: constants[n] for n in ("position", "temporal", "cosine", "sine")},
                },
                scratch,
                known[f"attended_{i}"],
                sizes,
                config,
            )
        )
    assert relative(known["conditioned"], stage.run(inputs)["conditioned"]) <= LIMIT
