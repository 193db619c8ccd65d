"""Tests of bundles with split stages: their export, and videos with kernels for attention on a fake GPU."""

import dataclasses
import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import runtime
from benchmarks import gpu_pipeline
from export import __main__ as command
from export import bundle as bundles
from export.bundle import export_bundle
from export.models.samwise import CrossModalAdapterConfig
from export.networks.base import describe
from export.split_attention import with_split_stages
from export.verify import backend_check
from helpers import toy_exports, toy_networks
from helpers.fake_attention import HostAttention, compiled
from helpers.fake_cuda import IMAGE_SIGNATURES, FakeCudaBackend
from runtime.backends.split_stage import SplitStage
from runtime.backends.trt import TensorRtBackend
from runtime.bundle import engine_index
from runtime.bundle.bundle import choose
from runtime.bundle.manifest import Manifest
from runtime.device.cubin import FOLDER, INDEX
from runtime.engine import Engine
from runtime.errors import BackendError, BundleError, UserError

TOKENS = [0, 17, 5, 42, 2]
WIDTH, MEMORY, SLOTS = 32, 16, 6
CUT = {"memory_attention", *(f"adapter_{i}{suffix}" for i in range(3) for suffix in ("", "_step"))}


def network():
    """A toy SAMWISE whose adapters have the kernel's heads and the width of the queries: the fake has one width."""
    return toy_exports.samwise(CrossModalAdapterConfig(width=WIDTH, heads=1, patches=(4, 2, 1)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, shared_traces):
    """The bundle in float32, plain graphs alone, with an index of kernels behind which there is no code."""
    folder = tmp_path_factory.mktemp("split")
    model = network()
    subject = with_split_stages(describe("samwise", model), model, "fp32", folder)
    export_bundle(subject, folder, "toy", variants=(), check=False)
    compiled(folder / "toy", SLOTS, WIDTH, MEMORY, extra=IMAGE_SIGNATURES)
    return folder / "toy"


class EngineBackend(FakeCudaBackend, TensorRtBackend):
    """A fake device whose graphs count as TensorRT engines."""

    library, version = "tensorrt", "10"


def fake(folder, kind=FakeCudaBackend):
    backend = kind(1)
    manifest = Manifest.load(folder)
    patches = {manifest.stages[f"adapter_{i}"].inputs[0].shape[1]: patch for i, patch in enumerate((4, 2, 1))}
    backend.device.driver.kernel_driver = HostAttention(backend.device.driver, np.float32, WIDTH, MEMORY, patches)
    return backend


def split_stages(engine):
    """Names of the stages that run with kernels."""
    return {name for name, timed in engine.stages.items() if isinstance(timed.stage, SplitStage)}


def frames(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 255, (count, 40, 56, 3), dtype=np.uint8))


def results(engine, clip, sentences=1, latency="clip"):
    prompts = [runtime.Text(tokens=[*TOKENS[:1], 5 + i, *TOKENS[1:]]) for i in range(sentences)]
    with engine.session(prompts, logits=True, latency=latency) as session:
        return list(session.stream(clip))


@pytest.mark.slow
def test_manifest_lists_subgraphs_and_constants(exported):
    bundle = choose(exported)
    bundle.verify()
    split = bundle.manifest.split_stages
    assert set(split) == CUT and split["adapter_1"].sizes["patch"] == 2
    assert bundle.subgraphs == {name for s in split.values() for name in s.subgraphs} and len(bundle.subgraphs) == 15
    assert bundle.subgraphs < set(bundle.manifest.stages)
    for name, entry in split.items():  # every role is a tensor of the stage or of a subgraph
        specs = [bundle.manifest.stages[stage] for stage in (name, *entry.subgraphs)]
        tensors = {t.name for spec in specs for t in (*spec.inputs, *spec.outputs)}
        assert {tensor.format(layer=0) for tensor in entry.tensors.values()} <= tensors
    with np.load(exported / split["memory_attention"].constants) as arrays:
        assert arrays["key_weight_1"].shape == (WIDTH, MEMORY) and arrays["cosine"].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("sentences", [1, 3])
def test_video_with_kernels_equals_one_without(exported, sentences):
    clip = frames(19)
    with Engine(choose(exported), fake(exported), kernels="off", max_objects=4) as engine:
        want = results(engine, clip, sentences)
        assert split_stages(engine) == set()
    backend = fake(exported)
    host = backend.device.driver.kernel_driver
    with Engine(choose(exported), backend, kernels="on", max_objects=4) as engine:
        assert split_stages(engine) == CUT
        assert not engine.bundle.subgraphs & set(engine.stages)
        got = results(engine, clip, sentences)
    for a, b in zip(got, want, strict=True):
        error = np.linalg.norm(a.low_res_logits - b.low_res_logits) / np.linalg.norm(b.low_res_logits)
        assert error <= 1e-4
        np.testing.assert_allclose(a.score_logits, b.score_logits, atol=1e-3)
    names = Counter(name for name, _ in host.launched)
    assert names["memory_attention_prepare"] == names["memory_attention_flash"] > 0
    # 16 tokens are one block of queries: its keys are split among the four multiprocessors
    assert names["memory_attention_combine"] > 0
    windows = sum(count for name, count in host.executed.items() if name.startswith("window"))
    assert windows == (2 + 1 + 1) * sentences * 5, "a window of 64 tokens takes two kernels, of 16 and of 4 one"
    assert backend.device.driver.calls["capture"] > 0, "frames with kernels are recorded, too"
    flash = [grid for name, grid in host.launched if name == "memory_attention_flash"]
    assert {grid[0] for grid in flash} == {1} and max(grid[2] for grid in flash) == sentences


@pytest.mark.slow
def test_low_latency_with_kernels_equals_one_without(exported):
    clip = frames(14)
    with Engine(choose(exported), fake(exported), kernels="off", max_objects=4) as engine:
        want = results(engine, clip, 2, "low")
    backend = fake(exported)
    with Engine(choose(exported), backend, kernels="on", max_objects=4) as engine:
        got = results(engine, clip, 2, "low")
    for a, b in zip(got, want, strict=True):
        assert np.linalg.norm(a.low_res_logits - b.low_res_logits) <= 1e-4 * np.linalg.norm(b.low_res_logits)
    executed = backend.device.driver.kernel_driver.executed
    steps = sum(count for name, count in executed.items() if name.startswith("window_attention_step"))
    assert steps == (2 + 1 + 1) * 2 * (14 - 4 + 3), "each frame behind the first window, and those that it keeps"


@pytest.mark.slow
def test_nothing_is_allocated_and_one_wait_per_frame(exported):
    backend = fake(exported)
    calls = backend.device.driver.calls
    with Engine(choose(exported), backend, kernels="on", max_objects=2) as engine:
        with engine.session([runtime.Text(tokens=TOKENS)]) as session:
            list(session.stream(frames(20)))
            before = Counter(calls)
            for frame in frames(16, seed=3):
                session.push(frame)
    spent = Counter(calls)
    spent.subtract(before)
    assert (spent["upload"], spent["download"], spent["wait"]) == (16, 16, 16)
    assert spent["device"] == spent["pinned"] == 0


@pytest.mark.slow
def test_parity_uses_the_same_threshold_for_kernels(exported, monkeypatch):
    """Marks go to the engines that ran: parts where kernels are on, and not the whole stage."""
    backend, create, marked = fake(exported, EngineBackend), backend_check.create, []
    monkeypatch.setattr(
        backend_check, "create", lambda name, threads: backend if name == "fake" else create(name, threads)
    )
    monkeypatch.setattr(engine_index, "mark_verified", lambda *arguments: marked.append(arguments[-1]))
    rows, clip = backend_check.check_backend(choose(exported), "fake", 1, kernels="on")
    assert {r.what for r in rows if "[kernels]" in r.what} == {f"{name} [kernels]" for name in CUT}
    assert all(r.passed for r in (*rows, *clip))
    assert marked[0]["memory_attention_subgraph_1"]["cosine"] > 0.9999
    assert "memory_attention" not in marked[0] and "neck" in marked[0]


@pytest.mark.slow
def test_gpu_check_measures_whole_and_split_stages(exported):
    bundle, backend = choose(exported), fake(exported)
    found = gpu_pipeline.split_stages(bundle, backend, gpu_pipeline.Video(4, lambda: 0), 1)
    assert set(found["stages"]) == CUT
    for row in found["stages"].values():
        assert row["gain"] > 0 and row["relative_error"] <= 1e-4
    assert found["objects_1"]["plain_ms_per_frame"] > 0 and found["objects_1"]["captures"] > 0
    (bundle.folder / FOLDER / INDEX).rename(bundle.folder / FOLDER / "away")
    try:
        assert (
            "no compiled kernels"
            in gpu_pipeline.split_stages(bundle, backend, gpu_pipeline.Video(4, lambda: 0), 1)["skipped"]
        )
    finally:
        (bundle.folder / FOLDER / "away").rename(bundle.folder / FOLDER / INDEX)


@pytest.mark.slow
def test_auto_keeps_whole_stages_and_logs_it(exported, caplog):
    caplog.set_level(logging.INFO, "runtime")
    with Engine(choose(exported), fake(exported), max_objects=2) as engine:
        assert engine.kernels is not None and not engine.bundle.subgraphs & set(engine.stages)
        assert split_stages(engine) == set()
    (line,) = [r.getMessage() for r in caplog.records if "whole graphs" in r.getMessage()]
    assert "memory_attention" in line and "--kernels on" in line


@pytest.mark.slow
def test_split_bundle_runs_on_a_cpu(exported):
    with runtime.load(exported, backend="ort", threads=1) as engine:
        assert not engine.bundle.subgraphs & set(engine.stages)
        assert results(engine, frames(2))[0].masks.shape == (1, 40, 56)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, message",
    [
        ({"kernel": "fast"}, "split_stages.adapter_0 is not understood"),
        ({"subgraphs": ("nose",)}, "split_stages.adapter_0 is not understood"),
        ({"subgraphs": ()}, "split_stages.adapter_0 is not understood"),
        ({"tensors": {}}, "split_stages.adapter_0 is not understood"),
        ({"sizes": {}}, "split_stages.adapter_0 is not understood"),
        ({"sizes": {"patch": 0}}, "split_stages.adapter_0 is not understood"),
        ({"constants": "../x"}, "not among the bundle's files"),
        ({"constants": "manifest.json"}, "not among the bundle's files"),
        ({"constants": "graphs/neck.onnx"}, "neck.onnx: not readable"),
        ({"constants": "split_stages/memory_attention.npz"}, "stage adapter_0 lack"),
    ],
)
def test_invalid_split_stages_are_refused_in_one_line(exported, monkeypatch, change, message):
    bundle = choose(exported)
    split = bundle.manifest.split_stages
    split = {**split, "adapter_0": replace(split["adapter_0"], **change)}
    bundle = replace(bundle, manifest=replace(bundle.manifest, split_stages=split))
    with pytest.raises(BundleError, match=message):
        Engine(bundle, fake(exported), kernels="on")


@pytest.mark.slow
def test_kernels_for_other_sizes_or_types_are_refused(exported, tmp_path):
    path = exported / FOLDER / INDEX
    good = path.read_text()
    try:
        path.write_text(good.replace('"SLOTS_PADDED": 8', '"SLOTS_PADDED": 16'))
        with pytest.raises(BackendError, match="not compiled"):
            Engine(choose(exported), fake(exported), kernels="on")
        path.write_text(good.replace('"*fp32"', '"*fp16"'))
        with pytest.raises(BackendError, match="argument . must be float16, not float32; .* --precision fp16"):
            Engine(choose(exported), fake(exported), kernels="on")
    finally:
        path.write_text(good)


def test_command_adds_the_subgraphs(tmp_path, monkeypatch):
    model = network()
    path = tmp_path / "toy.pth"
    torch.save({"model": model.state_dict(), "config": dataclasses.asdict(model.config)}, path)
    seen = {}

    def publish(subject, out, name, **options):
        seen[name] = subject, {file: source.stat().st_size for file, source in subject.attachments.items()}
        seen["names"] = [stage.name for stage in subject.stages()]
        for source in subject.attachments.values():
            with np.load(source) as arrays:
                seen["types"] = {key: array.dtype.name for key, array in arrays.items()}
        return tmp_path

    monkeypatch.setattr(bundles, "export_bundle", publish)
    arguments = ["samwise", "--checkpoint", str(path), "--out", str(tmp_path), "--precision", "fp16"]
    assert command.main([*arguments, "--name", "plain"]) == 0
    assert not seen["plain"][0].split_stages and not any("subgraph" in name for name in seen["names"])
    assert command.main([*arguments, "--name", "cut", "--split-attention"]) == 0
    assert set(seen["cut"][0].split_stages) == CUT and len(seen["cut"][1]) == len(CUT)
    assert seen["types"]["key_weight_0"] == "float16" and seen["types"]["cosine"] == "float32"
    subgraphs = [name for split in seen["cut"][0].split_stages.values() for name in split.subgraphs]
    assert seen["names"][-len(subgraphs) :] == subgraphs


def test_networks_without_split_stages_are_refused(tmp_path):
    from export.models import sam2

    model = sam2.Sam2(toy_networks.toy_sam2_config())
    with pytest.raises(UserError, match="sam2 has no stage that can be split for kernels"):
        with_split_stages(describe("sam2", model), model, "fp16", tmp_path)
    with pytest.raises(UserError, match="samwise.sam2 has no stage that can be split for kernels"):
        with_split_stages(describe("samwise+sam2", network()), network(), "fp16", tmp_path)
    with pytest.raises(UserError, match="does not go with --precision int8"):
        with_split_stages(describe("samwise", network()), network(), "int8", tmp_path)
