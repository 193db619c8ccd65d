"""Compiled kernels in bundles: those of nano, and what an export adds."""

from dataclasses import replace
from pathlib import Path

import pytest

from export import cubin_resources
from export import kernels as aot
from helpers.fake_attention import published_manifest
from runtime.bundle.manifest import Manifest
from runtime.device import cubin

NANO = Path(__file__).parents[2] / "engines" / "nano"
CONCEPTS = NANO.with_name("nano-concepts")


class Driver:
    def load(self, code, symbol, shared):
        return code[:4], symbol


@pytest.mark.parametrize("capability", aot.TARGETS)
@pytest.mark.parametrize("folder", [NANO, CONCEPTS])
def test_nano_takes_frames_in_and_masks_out_on_every_gpu(folder, capability):
    launches = aot.image_launches(float_images=folder == NANO)
    launches = [replace(launch, arguments=range(16, 16 + len(launch.arguments))) for launch in launches]
    bound = cubin.Kernels(folder, capability, Driver()).bind(launches)
    assert [call[0] for call in bound.calls] == [(b"\x7fELF", launch.kernel) for launch in launches]


@pytest.mark.parametrize("folder", [NANO, CONCEPTS])
def test_kernels_of_nano_take_what_the_runtime_passes(folder):
    manifest = Manifest.load(folder)
    for entry in cubin.read_index(folder / cubin.FOLDER):
        resources = cubin_resources.read((folder / cubin.FOLDER / entry.file).read_bytes(), entry.symbol)
        cubin_resources.require_layout(entry, resources)
        assert resources.spilled == 0 and f"{cubin.FOLDER}/{entry.file}" in manifest.files


@pytest.fixture
def compiled(monkeypatch):
    """What would be compiled: targets, and names of kernels for the first of them."""
    calls = []

    def compile_kernels(folder, targets, plans, report):
        calls.append((tuple(targets), {launch.kernel for launch in plans(targets[0])}))

    monkeypatch.setattr(aot, "compile_kernels", compile_kernels)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return calls


def test_an_export_compiles_what_the_bundle_can_need(compiled, tmp_path):
    nano, split = Manifest.load(NANO), published_manifest()
    split = Manifest({"samwise": {}}, "x", "fp16", 256, split.stages, split.bounds, split.split_stages)
    for manifest in (nano, split, Manifest.load(CONCEPTS)):
        aot.add_kernels(tmp_path, manifest, print)
    (plain, with_clicks), (all_targets, all_kernels), (concepts, image) = compiled
    assert plain == concepts == (80, 90, 120)
    assert image == {"preprocess", "postprocess"} == with_clicks - {"preprocess_float"} != with_clicks
    assert all_targets == aot.TARGETS and all_kernels > image | {"memory_attention_flash", "window_attention_fused"}


@pytest.mark.parametrize("reason", ["no Triton", "interpreter"])
def test_an_export_without_triton_says_how_to_add_kernels(compiled, monkeypatch, tmp_path, reason):
    if reason == "interpreter":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    else:
        monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
    lines = []
    aot.add_kernels(tmp_path, Manifest.load(NANO), lines.append)
    assert not compiled and len(lines) == 1 and "python -m export.kernels" in lines[0]
