"""Tests of `benchmarks.gpu_bundle`: half graphs of every variant, split stages, constants; kernels agree in half."""

import os
from dataclasses import replace

from runtime.backends.base import load_stage
from runtime.backends.split_loading import load_split_stages

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from benchmarks import gpu_bundle, gpu_pipeline, gpu_table
from export import split_attention
from export.models import samwise
from export.networks import samwise as samwise_network
from helpers import toy_exports, toy_networks
from helpers.fake_attention import HostAttention, compiled
from helpers.fake_cuda import FakeCudaBackend
from runtime.bundle.bundle import choose
from runtime.device.cubin import Kernels
from runtime.metrics import relative_error

WIDTH, MEMORY, SLOTS = 32, 16, 6


@pytest.mark.slow
def test_half_graphs_split_stages_and_kernels_agree(tmp_path, monkeypatch, shared_traces):
    """Memory attention alone: it is the stage with the longest chain of parts."""
    model = toy_exports.samwise()
    every = samwise_network.stages(model)
    monkeypatch.setattr(samwise_network, "stages", lambda model: [s for s in every if s.name == "memory_attention"])
    folder = gpu_bundle.write(model, tmp_path / "random")
    bundle = choose(folder)
    bundle.verify()
    assert bundle.manifest.precision == "fp16" and set(bundle.manifest.split_stages) == {"memory_attention"}
    assert all(set(spec.files) == {"default", "cuda", "trt"} for spec in bundle.manifest.stages.values())
    assert bundle.manifest.stages["memory_attention"].input("memory").dtype == "float16"

    compiled(folder, SLOTS, WIDTH, MEMORY, dtype="float16")
    backend = FakeCudaBackend(1)
    driver = backend.device.driver
    driver.kernel_driver = HostAttention(driver, np.float16, WIDTH, MEMORY)
    kernels = Kernels(folder, 89, driver.kernel_driver)
    split = load_split_stages(bundle, backend, kernels, "on", 2)["memory_attention"]
    sizes = gpu_pipeline.tuned_sizes(split.spec, bundle)
    results = [
        gpu_pipeline.time_stage(stage, sizes, backend.device)[1]["conditioned"]
        for stage in (load_stage(bundle, backend, "memory_attention"), split)
    ]
    assert results[0].dtype == np.float16 and relative_error(results[1], results[0]) < 5e-3


def test_adapters_of_the_published_size_are_split():
    config = toy_networks.toy_samwise_config()
    wide = replace(config, adapter=samwise.CrossModalAdapterConfig(width=256, heads=8, patches=(8, 4, 2)))
    assert [
        c.stage
        for c in split_attention.split_stages(samwise.Samwise(replace(wide, sam=replace(config.sam, image_size=128))))
    ] == [*(f"adapter_{i}{suffix}" for i in range(3) for suffix in ("", "_step")), "memory_attention"]
    assert samwise.CrossModalAdapterConfig() == wide.adapter
    # heads of another width have no kernel: the toy's adapters stay whole
    assert [c.stage for c in split_attention.split_stages(samwise.Samwise(config))] == ["memory_attention"]


def test_table_has_a_line_per_split_stage():
    row = {"whole_seconds": 2e-3, "kernel_seconds": 1e-3, "gain": 2.0, "relative_error": 1e-3}
    section = {"split_stages": {"split_stages": {"stages": {"memory_attention": row}}}}
    (line,) = gpu_table.split_stage_lines(section)
    assert line == "memory_attention: kernel 1000.0 us, whole graph 2000.0 us, gain 2.00, relative error 1.0e-03"
    assert not list(gpu_table.split_stage_lines({"split_stages": {"split_stages": {"skipped": "no kernels"}}}))


def test_command_keeps_existing_bundles(tmp_path, monkeypatch, capsys):
    (tmp_path / "samwise-tiny-random").mkdir()
    monkeypatch.setattr("sys.argv", ["gpu_bundle", "--out", str(tmp_path)])
    assert gpu_bundle.main() == 2 and "is there already" in capsys.readouterr().err
