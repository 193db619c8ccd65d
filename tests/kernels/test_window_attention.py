"""`kernels/window_attention.py` in Triton's interpreter against the numpy reference, over P, T and odd maps."""

import os
from dataclasses import replace

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from runtime.kernels import candidates, launch, plan, plan_step, reference

LIMIT = {"float16": 2e-3, "float32": 1e-5}
ORDER = ("time", "position", "norm_weight", "norm_bias", "qkv_weight", "qkv_bias", "out_weight", "out_bias")


def make_inputs(sizes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    c = sizes.channels
    shapes = {
        "x": (sizes.frames, sizes.height, sizes.width, c),
        "position": (sizes.patch**2, c),
        "norm_weight": (c,),
        "norm_bias": (c,),
        "qkv_weight": (3 * c, c),
        "qkv_bias": (3 * c,),
        "out_weight": (c, c),
        "out_bias": (c,),
    }
    arrays = {
        name: torch.tensor(rng.standard_normal(shape)).to(getattr(torch, dtype)) for name, shape in shapes.items()
    }
    for name in ("qkv_weight", "out_weight"):
        arrays[name] *= 1.5 / c**0.5
    arrays["time"] = torch.tensor(reference.time_embedding(sizes.frames, c)).to(getattr(torch, dtype))
    return arrays


def check(sizes, config, dtype):
    arrays = make_inputs(sizes, dtype)
    scratch = {
        name: torch.full(shape, float("nan"), dtype=arrays["x"].dtype) for name, (shape, _) in sizes.scratch().items()
    }
    out = torch.full_like(arrays["x"], float("nan"))
    launches = plan.window_attention(arrays, scratch, out, sizes, config)
    launch.run(launches)
    exact = {name: array.double().numpy() for name, array in arrays.items()}
    expected = reference.window_attention(exact["x"], sizes.patch, *(exact[name] for name in ORDER))
    # the branch alone: the residual would hide its error
    branch, result = expected - exact["x"], out.double().numpy() - exact["x"]
    error = np.linalg.norm(result - branch) / np.linalg.norm(expected if dtype == "float16" else branch)
    assert error <= LIMIT[dtype]
    return [item.kernel for item in launches]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("patch, frames", [(8, 1), (8, 2), (4, 1), (4, 5), (4, 8), (2, 1), (2, 3), (2, 8)])
def test_short_windows_are_one_launch(patch, frames, dtype):
    """Those of at most 32 tokens; no configuration keeps the registers of more."""
    sizes = plan.WindowSizes(frames, patch * 1, patch * 3, patch)
    two = ["window_attention_project", "window_attention_attend"]
    assert check(sizes, plan.WindowConfig(), dtype) == (two if sizes.length > 32 else ["window_attention_fused"])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("frames", [3, 5, 8])
def test_long_windows_are_two_launches(frames, dtype):
    sizes = plan.WindowSizes(frames, 8, 16, 8)
    names = check(sizes, plan.WindowConfig((64, 128, 4, 2), (128, 128, 4, 2)), dtype)
    assert names == ["window_attention_project", "window_attention_attend"]


@pytest.mark.parametrize("config", candidates.WINDOW_CANDIDATES[:3])
def test_every_block_size_computes_the_same(config):
    check(plan.WindowSizes(3, 8, 8, 8), config, "float16")


STEP = ("position", "norm_weight", "norm_bias", "qkv_weight", "qkv_bias", "out_weight", "out_bias")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "patch, frames, rows, columns",
    [(8, 2, 64, 64), (4, 2, 64, 64), (4, 5, 64, 64), (4, 8, 64, 64), (2, 2, 64, 64), (2, 8, 64, 64)],
)
def test_newest_frame_of_a_clip(patch, frames, rows, columns, dtype):
    """Behind kept frames in another order, against the whole clip in its order."""
    sizes, config = plan.WindowSizes(frames, patch, 3 * patch, patch), plan.WindowConfig((64, 32, 4, 2))
    config = replace(config, attend=(rows, columns, 4, 2))
    arrays = make_inputs(sizes, dtype)
    exact = {name: array.double().numpy() for name, array in arrays.items()}
    index = torch.tensor(np.random.default_rng(1).permutation(frames - 1))
    clip = arrays.pop("x")
    arrays |= {"x": clip[-1].contiguous(), "kept": clip[index].contiguous(), "index": index}
    scratch = {
        name: torch.full(shape, float("nan"), dtype=clip.dtype)
        for name, (shape, _) in plan_step.step_scratch(sizes).items()
    }
    out = torch.full_like(arrays["x"], float("nan"))
    launches = plan_step.window_attention_step(arrays, scratch, out, sizes, config)
    launch.run(launches)
    expected = reference.window_attention(exact["x"], patch, *(exact[name] for name in ORDER))[-1]
    branch, result = expected - exact["x"][-1], out.double().numpy() - exact["x"][-1]
    error = np.linalg.norm(result - branch) / np.linalg.norm(expected if dtype == "float16" else branch)
    assert error <= LIMIT[dtype]
    names = ["window_attention_step_project", "window_attention_step_attend"]
    assert [item.kernel for item in launches] == (["window_attention_step_fused"] if sizes.fused else names)
    step = reference.window_attention_step(
        exact["x"][-1], exact["x"][index.numpy()], index.numpy(), patch, exact["time"], *(exact[name] for name in STEP)
    )
    np.testing.assert_allclose(step, expected, rtol=1e-9, atol=1e-9)


def test_windows_round_trip():
    x = np.random.default_rng(0).standard_normal((3, 8, 12, 5))
    windows = reference.to_windows(x, 4)
    assert windows.shape == (6, 48, 5)
    np.testing.assert_array_equal(windows[4, 16 + 4 * 2 + 1], x[1, 4 + 2, 4 + 1])
    np.testing.assert_array_equal(reference.from_windows(windows, 4, x.shape), x)
