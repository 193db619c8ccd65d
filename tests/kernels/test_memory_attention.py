"""`kernels/memory_attention.py` in Triton's interpreter against the numpy reference, on odd shapes."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from runtime.kernels import launch, plan, reference

LIMIT = {"float16": 2e-3, "float32": 1e-5}


def relative(result, expected):
    return np.linalg.norm(result.astype(np.float64) - expected) / np.linalg.norm(expected)


def make_inputs(sizes, ages, pointer_counts, dtype, seed=0):
    """Random inputs as torch tensors of `dtype`, and the same values in float64 for the reference."""
    rng = np.random.default_rng(seed)
    b, n, d, m = sizes.objects, sizes.tokens, sizes.width, sizes.memory_width
    shapes = {
        "queries": (b, n, d),
        "memory": (b, sizes.slots, n, m),
        "pointers": (b, sizes.pointers, m),
        "key_weight": (d, m),
        "key_bias": (d,),
        "position": (n, m),
        "temporal": (7, m),
    }
    arrays = {
        name: torch.tensor(rng.standard_normal(shape)).to(getattr(torch, dtype)) for name, shape in shapes.items()
    }
    arrays["key_weight"] *= 0.5 / m**0.5
    arrays["memory"][~torch.tensor(ages >= 0)] = float("nan")  # an absent slot may hold anything
    cosine, sine = reference.rotary_tables(int(np.ceil(n**0.5)), d)
    arrays["cosine"], arrays["sine"] = torch.tensor(cosine[:n]), torch.tensor(sine[:n])
    exact = {name: array.double().numpy() for name, array in arrays.items()}
    arrays["ages"], arrays["pointer_counts"] = torch.tensor(ages), torch.tensor(pointer_counts)
    exact["ages"], exact["pointer_counts"] = ages, pointer_counts
    return arrays, exact


def expected_output(exact):
    order = (
        "queries",
        "memory",
        "ages",
        "pointers",
        "pointer_counts",
        "key_weight",
        "key_bias",
        "position",
        "temporal",
        "cosine",
        "sine",
    )
    return reference.memory_attention(*(exact[name] for name in order))


def run(sizes, arrays, dtype, splits, block_m=16, block_n=16, tma=False):
    config = plan.FlashConfig(block_m, block_n, 4, 2, tma=tma, splits=splits)
    kind = getattr(torch, dtype)
    scratch = {
        name: torch.full(shape, float("nan"), dtype=kind if of == "same" else torch.float32)
        for name, (shape, of) in sizes.scratch(splits).items()
    }
    out = torch.full((sizes.objects, sizes.tokens, sizes.memory_width), float("nan"), dtype=kind)
    launch.run(plan.memory_attention(arrays, scratch, out, sizes, config))
    return out.double().numpy()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "tokens, slot_ages, pointers, counts, splits",
    [
        (36, [[0]], 4, [4], 1),  # one object, one frame, one pointer
        (25, [[2, 0, 1], [-1, 0, -1], [5, -1, 3]], 8, [8, 4, 0], 2),  # gaps in the ring, no pointer, odd token count
        (49, [[6, 5, 4, 3, 2, 1, 0], [0, -1, -1, -1, -1, -1, -1]], 64, [60, 4], 3),
        (17, [[-1, -1], [1, 0]], 4, [4, 3], 2),  # pointers alone; a count between tokens of a pointer
        (16, [[0, -1], [1, 0]], 4, [0, 4], 16),  # more splits than blocks
    ],
)
def test_equals_reference(dtype, tokens, slot_ages, pointers, counts, splits):
    ages, counts = np.array(slot_ages, np.int32), np.array(counts, np.int32)
    sizes = plan.MemorySizes(len(ages), tokens, ages.shape[1], pointers)
    arrays, exact = make_inputs(sizes, ages, counts, dtype)
    result = run(sizes, arrays, dtype, splits)
    expected = expected_output(exact)
    for b in range(len(ages)):
        assert relative(result[b], expected[b]) <= LIMIT[dtype], b


@pytest.mark.parametrize("config", sorted(set(plan.FLASH.values()), key=str))
def test_block_sizes_that_ship_give_the_same(config):
    """A block of keys that a split ends in, and one that is not full."""
    ages, counts = np.array([[1, 0], [-1, 0]], np.int32), np.array([4, 0], np.int32)
    sizes = plan.MemorySizes(2, 140, 2, 4)
    arrays, exact = make_inputs(sizes, ages, counts, "float16")
    result = run(sizes, arrays, "float16", 2, config.block_m, config.block_n)
    assert relative(result, expected_output(exact)) <= LIMIT["float16"]


@pytest.mark.parametrize("tokens, block_m, block_n, splits", [(21, 16, 16, 1), (21, 16, 16, 2), (140, 128, 128, 2)])
def test_tensor_descriptors_give_the_same(tokens, block_m, block_n, splits):
    """Every bit of the form without them; blocks as small as can be, and those of sm_90."""
    ages, counts = np.array([[1, 0, -1], [-1, -1, 0]], np.int32), np.array([4, 8], np.int32)
    sizes = plan.MemorySizes(2, tokens, 3, 8)
    arrays, exact = make_inputs(sizes, ages, counts, "float16")
    result = run(sizes, arrays, "float16", splits, block_m, block_n, tma=True)
    assert relative(result, expected_output(exact)) <= LIMIT["float16"]
    np.testing.assert_array_equal(result, run(sizes, arrays, "float16", splits, block_m, block_n))


def test_object_without_memory_gives_zeros():
    ages, counts = np.array([[-1], [0]], np.int32), np.array([0, 0], np.int32)
    sizes = plan.MemorySizes(2, 16, 1, 4)
    arrays, exact = make_inputs(sizes, ages, counts, "float32")
    for splits in (1, 2):
        result = run(sizes, arrays, "float32", splits)
        assert not result[0].any() and relative(result[1], expected_output(exact)[1]) <= LIMIT["float32"]


def test_slot_order_does_not_matter():
    ages, counts = np.array([[0, 1, 2]], np.int32), np.array([4], np.int32)
    sizes = plan.MemorySizes(1, 20, 3, 4)
    arrays, _ = make_inputs(sizes, ages, counts, "float32")
    straight = run(sizes, arrays, "float32", 1)
    arrays["memory"], arrays["ages"] = (
        arrays["memory"][:, [2, 0, 1]].contiguous(),
        arrays["ages"][:, [2, 0, 1]].contiguous(),
    )
    assert relative(run(sizes, arrays, "float32", 1), straight) <= LIMIT["float32"]


@pytest.mark.parametrize("blocks, expected", [(32, 4), (128, 1), (132, 1), (1, 16)])
def test_splits_fill_132_multiprocessors(blocks, expected):
    assert plan.choose_splits(blocks, 132) == expected
