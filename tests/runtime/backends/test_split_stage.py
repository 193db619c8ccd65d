"""Tests of `runtime.backends.split_stage` with subgraphs in numpy: launches, their arrays, and reuse of both."""

import ctypes
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.fake_attention import (
    MEMORY_SPLIT,
    SIGNATURES,
    HostAttention,
    compiled,
    published_manifest,
    signature,
    step_split,
    window_split,
)
from helpers.fake_cuda import FakeDriver
from runtime.backends import split_stage
from runtime.backends.split_loading import load_split_stages
from runtime.backends.split_stage import SplitResources
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import Manifest, StageSpec, TensorSpec
from runtime.device import cubin
from runtime.device.cubin import Kernels
from runtime.device.cuda import Cuda
from runtime.device.scratch import GrowableBuffers
from runtime.errors import BackendError, BundleError
from runtime.kernels import plan, reference

TOKENS, WIDTH, MEMORY, SLOTS, POINTERS, OBJECTS = 16, 32, 16, 6, 5, 3
RNG = np.random.default_rng(0)
F32 = "float32"


def host(array):
    """A device array of the fake device, which lies on the host."""
    memory = (ctypes.c_uint8 * max(array.nbytes, 1)).from_address(array.ptr)
    return np.frombuffer(memory, np.uint8, array.nbytes).view(array.dtype).reshape(array.shape)


class Part:
    """A graph in numpy: `work` takes and gives arrays by name, written into the outputs."""

    def __init__(self, work, spec=None) -> None:
        self.work, self.spec = work, spec

    driver: FakeDriver

    def run(self, **arrays) -> None:
        self.driver.enqueue(lambda: self._compute(arrays))

    def _compute(self, arrays) -> None:
        given = {name: host(array) for name, array in arrays.items()}
        for name, result in self.work(**given).items():
            assert given[name].shape == result.shape and given[name].dtype == result.dtype, name
            given[name][...] = result


@pytest.fixture
def device():
    driver = FakeDriver()
    Part.driver = driver
    driver.kernel_driver = HostAttention(driver, np.float32, WIDTH, MEMORY, {8: 4, 4: 2, 2: 1})
    return Cuda(driver)


@pytest.fixture
def kernels(tmp_path, device):
    compiled(tmp_path, SLOTS, WIDTH, MEMORY, TOKENS)
    return Kernels(tmp_path, 89, device.kernel_driver)


def constants(layers=2):
    cosine, sine = reference.rotary_tables(4, WIDTH)
    found = {
        "position": RNG.standard_normal((TOKENS, MEMORY)),
        "temporal": RNG.standard_normal((SLOTS, MEMORY)),
        "cosine": cosine,
        "sine": sine,
    }
    for i in range(layers):
        found |= {
            f"key_weight_{i}": RNG.standard_normal((WIDTH, MEMORY)) / 4,
            f"key_bias_{i}": RNG.standard_normal(WIDTH),
        }
    return {name: array.astype(np.float32) for name, array in found.items()}


OUT = (RNG.standard_normal((MEMORY, WIDTH)) / 4).astype(np.float32)


def memory_parts():
    return [
        Part(
            lambda embedding, map_index, maskmem_tpos_index, **_: {
                "residual_0": embedding[map_index],
                "queries_0": 2 * embedding[map_index],
                "ages": maskmem_tpos_index.astype(np.int32),
            }
        ),
        Part(
            lambda residual_0, attended_0, **_: {
                "residual_1": residual_0 + attended_0 @ OUT,
                "queries_1": residual_0 - attended_0 @ OUT,
            }
        ),
        Part(lambda residual_1, attended_1, **_: {"conditioned": residual_1 + attended_1 @ OUT}),
    ]


SPEC = StageSpec(
    "memory_attention",
    (
        TensorSpec("embedding", F32, ("maps", TOKENS, WIDTH)),
        TensorSpec("map_index", "int64", ("objects",)),
        TensorSpec("memory", F32, ("objects", "slots", TOKENS, MEMORY)),
        TensorSpec("maskmem_tpos_index", "int64", ("objects", "slots")),
        TensorSpec("obj_ptrs", F32, ("objects", "pointers", WIDTH)),
    ),
    (TensorSpec("conditioned", F32, ("objects", TOKENS, WIDTH)),),
)


def memory_stage(device, kernels, fixed):
    limits = {"objects": OBJECTS, "slots": SLOTS, "pointers": POINTERS}
    return split_stage.MemoryAttention(
        SPEC, MEMORY_SPLIT, memory_parts(), fixed, SplitResources(device, kernels, GrowableBuffers(device), limits)
    )


def expected(fixed, i):
    x, index = i["embedding"][i["map_index"]], i["obj_ptrs"]
    tokens = index.reshape(len(index), -1, MEMORY)
    queries = 2 * x
    for layer in (0, 1):
        attended = reference.memory_attention(
            queries,
            i["memory"],
            i["maskmem_tpos_index"],
            tokens,
            np.full(len(x), tokens.shape[1]),
            fixed[f"key_weight_{layer}"],
            fixed[f"key_bias_{layer}"],
            fixed["position"],
            fixed["temporal"],
            fixed["cosine"],
            fixed["sine"],
        )
        queries, x = x - attended @ OUT, x + attended @ OUT
    return x


def inputs(n, slots, pointers, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "embedding": rng.standard_normal((2, TOKENS, WIDTH), F32),
        "map_index": rng.integers(0, 2, n),
        "memory": rng.standard_normal((n, slots, TOKENS, MEMORY), F32),
        "maskmem_tpos_index": rng.integers(0, SLOTS, (n, slots)),
        "obj_ptrs": rng.standard_normal((n, pointers, WIDTH), F32),
    }


@pytest.mark.parametrize("n, slots, pointers", [(1, 1, 1), (1, 6, 5), (3, 2, 4), (2, 5, 0), (3, 6, 5)])
def test_memory_attention_in_three_subgraphs(device, kernels, n, slots, pointers):
    fixed = constants()
    stage, given = memory_stage(device, kernels, fixed), inputs(n, slots, pointers)
    out = device.empty((n, TOKENS, WIDTH), F32)
    arrays = {name: device.constant(array) for name, array in given.items()}
    stage.run(**arrays, conditioned=out)
    np.testing.assert_allclose(device.download(out), expected(fixed, given), rtol=2e-4, atol=2e-4)
    launched = device.kernel_driver.launched
    config = plan.flash_config(89, plan.MemorySizes(n, TOKENS, slots, 2 * pointers, WIDTH, MEMORY), 4)
    assert config.splits == {1: 4, 2: 2, 3: 4}[n]
    assert launched[:2] == [
        ("memory_attention_prepare", (1, slots + 2, n)),
        ("memory_attention_flash", (1, config.splits, n)),
    ]
    assert [name for name, _ in launched].count("memory_attention_prepare") == 2, "one per layer"


def test_launches_are_packed_once_and_nothing_is_allocated(device, kernels, monkeypatch):
    stage, packed = memory_stage(device, kernels, constants()), []
    bind = kernels.bind
    monkeypatch.setattr(kernels, "bind", lambda launches: packed.append(1) or bind(launches))
    arrays = {name: device.constant(array) for name, array in inputs(1, 6, 5).items()}
    out = device.empty((1, TOKENS, WIDTH), F32)
    stage.run(**arrays, conditioned=out)
    held = device.driver.calls["device"]
    for _ in range(3):
        stage.run(**arrays, conditioned=out)
    assert len(packed) == 2 and device.driver.calls["device"] == held
    waits = len(arrays) + len(constants()) + 1
    assert device.driver.calls["wait"] == waits, "only copies of constants wait"
    monkeypatch.setattr(cubin, "MAX_BOUND_LAUNCHES", 2)
    for slots in (1, 2, 3):
        ages = device.constant(np.zeros((1, slots), np.int64))
        stage.run(**arrays | {"memory": arrays["memory"][:, :slots], "maskmem_tpos_index": ages}, conditioned=out)
        assert len(stage.launches.bound) <= 2


def test_arrays_of_another_type_are_refused(device, kernels):
    stage = memory_stage(device, kernels, constants())
    arrays = {name: device.constant(array) for name, array in inputs(1, 2, 2).items()}
    half = device.constant(np.zeros((1, 2, TOKENS, MEMORY), np.float16))
    with pytest.raises(BackendError, match="memory_attention_prepare: argument 1 must be float32, not float16; "):
        stage.run(**arrays | {"memory": half}, conditioned=device.empty((1, TOKENS, WIDTH), F32))


def test_constants_that_are_missing_are_named(device, kernels):
    fixed = constants()
    del fixed["key_bias_1"], fixed["sine"]
    with pytest.raises(BundleError, match="constants of stage memory_attention lack key_bias_1, sine"):
        memory_stage(device, kernels, fixed)


@pytest.mark.parametrize("frames, patch", [(1, 4), (8, 4), (3, 2)])
def test_adapter_in_two_subgraphs(device, kernels, frames, patch):
    side = 2 * patch
    vision, text = TensorSpec("vision_0", F32, ("frames", side, side, 8)), TensorSpec("text_0", F32, ("tokens", 5))
    narrow, selected = (TensorSpec(n, F32, ("frames", side, side, WIDTH)) for n in ("narrow_0", "selected_0"))
    fused = tuple(TensorSpec(f"{t.name}_fused", F32, t.shape) for t in (vision, text))
    down = RNG.standard_normal((8, WIDTH)).astype(np.float32)
    parts = [
        Part(lambda vision_0, **_: {"narrow_0": vision_0 @ down}, StageSpec("a", (vision,), (narrow,))),
        Part(
            lambda vision_0, text_0, narrow_0, selected_0, **_: {
                "vision_0_fused": selected_0[..., :8] - narrow_0[..., :8],
                "text_0_fused": text_0 + 1,
            },
            StageSpec("b", (vision, text, narrow, selected), fused),
        ),
    ]
    shapes = {
        "position": (patch**2, WIDTH),
        "norm_weight": (WIDTH,),
        "norm_bias": (WIDTH,),
        "qkv_weight": (3 * WIDTH, WIDTH),
        "qkv_bias": (3 * WIDTH,),
        "out_weight": (WIDTH, WIDTH),
        "out_bias": (WIDTH,),
    }
    fixed = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    spec = StageSpec("adapter_0", (vision, text), fused)
    stage = split_stage.WindowAttention(
        spec,
        window_split(0, patch),
        parts,
        fixed,
        SplitResources(device, kernels, GrowableBuffers(device), {"frames": 8}),
    )
    x, words = RNG.standard_normal((frames, side, side, 8), np.float32), np.zeros((3, 5), np.float32)
    outs = {t.name: device.empty(shape, F32) for t, shape in zip(fused, (x.shape, words.shape), strict=True)}
    stage.run(vision_0=device.constant(x), text_0=device.constant(words), **outs)
    want = reference.window_attention(
        x @ down, patch, reference.time_embedding(frames, WIDTH), *fixed.values(), heads=1
    )
    np.testing.assert_allclose(
        device.download(outs["vision_0_fused"]), (want - x @ down)[..., :8], rtol=1e-3, atol=1e-3
    )
    assert (device.download(outs["text_0_fused"]) == 1).all()
    names = [name for name, _ in device.kernel_driver.launched]
    long = frames * patch * patch > plan.FUSED_TOKENS
    assert names == (["window_attention_project", "window_attention_attend"] if long else ["window_attention_fused"])


@pytest.mark.parametrize("kept, patch", [(1, 4), (7, 4), (3, 2)])
def test_step_of_an_adapter_in_two_subgraphs(device, kernels, kept, patch):
    """Kept maps are read where they are, and launches are packed once per set of arrays."""
    side = 2 * patch
    vision, text = TensorSpec("vision_0", F32, (1, side, side, 8)), TensorSpec("text_0", F32, ("tokens", 5))
    narrow, selected = (TensorSpec(n, F32, (1, side, side, WIDTH)) for n in ("narrow_0", "selected_0"))
    maps = TensorSpec("kept_0", F32, ("kept", side, side, WIDTH))
    fused = tuple(TensorSpec(f"{t.name}_fused", F32, t.shape) for t in (vision, text))
    down = RNG.standard_normal((8, WIDTH)).astype(np.float32)
    parts = [
        Part(lambda vision_0, **_: {"narrow_0": vision_0 @ down}, StageSpec("a", (vision,), (narrow,))),
        Part(
            lambda text_0, narrow_0, selected_0, kept_0, **_: {
                "vision_0_fused": selected_0[..., :8] - narrow_0[..., :8],
                "text_0_fused": text_0 + kept_0.mean(),
            },
            StageSpec("b", (vision, text, narrow, selected, maps), fused),
        ),
    ]
    matrices = {"qkv_weight": (3 * WIDTH, WIDTH), "qkv_bias": (3 * WIDTH,), "out_weight": (WIDTH, WIDTH)}
    shapes = {"position": (patch**2, WIDTH), "norm_weight": (WIDTH,), "norm_bias": (WIDTH,), **matrices}
    fixed = {n: RNG.standard_normal(shape).astype(np.float32) for n, shape in {**shapes, "out_bias": (WIDTH,)}.items()}
    index = TensorSpec("kept_index", "int64", ("kept",))
    spec = StageSpec("adapter_0_step", (vision, text, maps, index), (*fused, narrow))
    resources = SplitResources(device, kernels, GrowableBuffers(device), {"kept": 7})
    stage = split_stage.WindowAttentionStep(spec, step_split(0, patch), parts, fixed, resources)
    x, words = RNG.standard_normal((1, side, side, 8), np.float32), np.zeros((3, 5), np.float32)
    clip = RNG.standard_normal((kept, side, side, WIDTH), np.float32)
    order = RNG.permutation(kept)
    given = {"vision_0": x, "text_0": words, "kept_0": clip, "kept_index": order}
    arrays = {name: device.constant(array) for name, array in given.items()}
    outs = {t.name: device.empty(t.resolve({"tokens": 3}), F32) for t in (*fused, narrow)}
    for _ in range(2):
        stage.run(**arrays, **outs)
    want = reference.window_attention_step(
        (x @ down)[0], clip, order, patch, reference.time_embedding(kept + 1, WIDTH), *fixed.values(), 1
    )
    got = device.download(outs["vision_0_fused"])
    np.testing.assert_allclose(got, (want[None] - x @ down)[..., :8], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(device.download(outs["text_0_fused"]), clip.mean(), rtol=1e-5)
    np.testing.assert_allclose(device.download(outs["narrow_0"]), x @ down, rtol=1e-5, atol=1e-5)
    names = {name for name, _ in device.kernel_driver.launched}
    two = {"window_attention_step_project", "window_attention_step_attend"}
    assert names == (two if (kept + 1) * patch**2 > plan.FUSED_TOKENS else {"window_attention_step_fused"})
    assert len(stage.launches.bound) == 1


def bundle(split):
    return Bundle(Path("engines/toy"), Manifest({"samwise": {}}, "toy", "fp16", 64, {}, {}, split))


def test_split_stages_load_only_with_kernels_on(device, kernels, caplog):
    """Nothing to split, no kernels, `auto`, and an invalid entry."""
    caplog.set_level(logging.INFO, "runtime")
    backend = SimpleNamespace(device=device)
    split = {"memory_attention": MEMORY_SPLIT}
    for stages, given, mode in (({}, kernels, "on"), (split, None, "auto"), (split, None, "off")):
        assert load_split_stages(bundle(stages), backend, given, mode, 1) == {} and not caplog.records
    assert load_split_stages(bundle(split), backend, kernels, "auto", 1) == {}
    (record,) = caplog.records
    assert record.getMessage().startswith("whole graphs for memory_attention; --kernels on")
    assert bundle(split).subgraphs == {"a", "b"} and bundle({}).subgraphs == frozenset()
    with pytest.raises(
        BundleError, match="split_stages.memory_attention is not understood .KeyError: 'memory_attention'"
    ):
        load_split_stages(bundle(split), backend, kernels, "on", 1)


def published(capability, folder):
    """The published sizes in half, and what `export.kernels` would compile for them: (manifest, device, kernels)."""
    from export import kernels as aot
    from runtime.kernels.launch import KERNELS

    half, manifest = "float16", published_manifest()
    entries = []
    for launch in aot.launches(manifest, capability):
        kinds = [kind for kind in aot.signature(KERNELS[launch.kernel], launch).values() if kind != "constexpr"]
        if launch.kernel in SIGNATURES:
            assert kinds == signature(launch.kernel, half), launch.kernel
        entries.append(
            {
                "kernel": launch.kernel,
                "capability": capability,
                "constants": dict(launch.constants),
                "file": "x.cubin",
                "symbol": launch.kernel,
                "signature": kinds,
                "extra_pointers": 0,
                "threads": 128,
                "shared": 0,
            }
        )
    (folder / "kernels").mkdir()
    (folder / "kernels" / "x.cubin").write_bytes(b"\x7fELF")
    (folder / "kernels" / "index.json").write_text(json.dumps({"format": 1, "kernels": entries}))
    driver = FakeDriver()
    driver.capability, driver.multiprocessors = capability, 132
    return manifest, Cuda(driver), Kernels(folder, capability, driver.kernel_driver)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
def test_every_kernel_that_a_stage_binds_is_compiled(tmp_path, capability):
    """Stages bind what they need when they are made: nothing is missing, and no type differs."""
    pytest.importorskip("triton")
    manifest, device, kernels = published(capability, tmp_path)
    zeros = {"position": (256, 64), "temporal": (6, 64), "key_weight_0": (256, 64), "key_bias_0": (256,)}
    fixed = {name: np.zeros(shape, np.float16) for name, shape in zeros.items()}
    fixed |= {name: np.zeros((256, 128), np.float32) for name in ("cosine", "sine")}
    limits = {"objects": 4, "slots": 6, "pointers": 15, "frames": 8}
    resources = SplitResources(device, kernels, GrowableBuffers(device), limits)
    split_stage.MemoryAttention(manifest.stages["memory_attention"], MEMORY_SPLIT, [Part(None)] * 2, fixed, resources)
    for i, patch in enumerate((8, 4, 2)):
        shapes = {
            "position": (patch**2, 256),
            "norm_weight": (256,),
            "norm_bias": (256,),
            "qkv_weight": (768, 256),
            "qkv_bias": (768,),
            "out_weight": (256, 256),
            "out_bias": (256,),
        }
        parts = [Part(None, manifest.stages[name]) for name in (f"adapter_{i}_0", f"adapter_{i}_1")]
        fixed = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
        split_stage.WindowAttention(manifest.stages[f"adapter_{i}"], window_split(i, patch), parts, fixed, resources)
