"""Conversion of bundles of format 1: equal results, unchanged other files, refusal of damaged bundles."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

import runtime
from export import __main__ as command
from export import upgrade
from helpers import format_1, toy_networks
from runtime.bundle import engine_index
from runtime.bundle.bundle import choose
from runtime.bundle.manifest import STEP, Manifest
from runtime.errors import BundleError, UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def old(toy, tmp_path):
    """The toy bundle in format 1."""
    shutil.copytree(toy, tmp_path / "old")
    return format_1.downgrade(tmp_path / "old")


@pytest.fixture
def old_sam2(toy_sam2_bundle, tmp_path):
    """The SAM 2 toy bundle in format 1."""
    shutil.copytree(toy_sam2_bundle, tmp_path / "old")
    return format_1.downgrade(tmp_path / "old")


def frames():
    return list(np.random.default_rng(0).integers(0, 255, (11, 40, 56, 3), dtype=np.uint8))


def sentence_results(folder):
    with runtime.load(folder, backend="ort", threads=1) as engine:
        with engine.session([runtime.Text(tokens=[0, 5, 9, 2])], logits=True) as session:
            return list(session.stream(frames()))


def click_results(folder):
    with runtime.load(folder, backend="ort", threads=1) as engine:
        with engine.video(frames(), logits=True) as video:
            video.add_points(0, 1, [(0.4, 0.5)], [1], normalized=True)
            return list(video.propagate())


def assert_same(got, want):
    assert len(got) == len(want) == 11
    for a, b in zip(got, want, strict=True):
        assert np.array_equal(a.masks, b.masks) and np.array_equal(a.low_res_logits, b.low_res_logits)
        assert np.array_equal(a.scores, b.scores)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_old_bundle_is_refused_with_the_command_that_converts_it(old):
    with pytest.raises(BundleError, match=f"format 1 is older .* python -m export upgrade {old}") as error:
        runtime.load(old)
    assert "\n" not in str(error.value)


def test_a_converted_samwise_bundle_gives_the_same_bits(old, toy, capsys):
    assert command.main(["upgrade", str(old)]) == 0
    assert "converted to format 2; 4 stages have renamed tensors" in capsys.readouterr().out
    choose(old).verify()
    assert Manifest.load(old).networks == Manifest.load(toy).networks
    assert_same(sentence_results(old), sentence_results(toy))
    assert os.listdir(old.parent) == ["old"], "no work folder is left"


def test_a_converted_sam2_bundle_gives_the_same_bits(old_sam2, toy_sam2_bundle):
    assert upgrade.upgrade(old_sam2) == ["memory_attention", "prompt_decoder", "prompt_memory_encoder"]
    assert Manifest.load(old_sam2).networks == Manifest.load(toy_sam2_bundle).networks
    assert_same(click_results(old_sam2), click_results(toy_sam2_bundle))


def test_other_files_are_kept_byte_for_byte(old):
    (old / "notes").mkdir()
    (old / "notes" / "mine.txt").write_text("not listed in the manifest")
    before = contents(old)
    upgrade.upgrade(old)
    after = contents(old)
    assert set(after) == set(before)
    changed = {name for name in before if after[name] != before[name]}
    renamed = {"mask_decoder", "conditional_memory", "memory_attention", "memory_encoder"}
    assert changed == {"manifest.json", *(f"{name}.onnx" for name in renamed)}


def test_a_second_conversion_is_refused_and_changes_nothing(old, capsys):
    upgrade.upgrade(old)
    before = contents(old)
    assert command.main(["upgrade", str(old)]) == 2
    assert "has format 2; nothing to convert" in capsys.readouterr().err
    assert contents(old) == before


def edited(folder, change):
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    (folder / "manifest.json").write_text(json.dumps(data))


DAMAGE = {
    "altered graph": (lambda f: (f / "neck.onnx").write_bytes(b"x"), BundleError, "neck.onnx: altered"),
    "missing graph": (lambda f: (f / "neck.onnx").unlink(), BundleError, "neck.onnx: missing"),
    "not JSON": (lambda f: (f / "manifest.json").write_text("{"), BundleError, "not readable"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), BundleError, "not readable"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), UserError, "no manifest.json here"),
    "no settings": (lambda f: edited(f, lambda d: d.pop("settings")), BundleError, "KeyError: 'settings'"),
    "no memory": (lambda f: edited(f, lambda d: d["settings"].pop("memory")), BundleError, "KeyError: 'memory'"),
    "settings a list": (lambda f: edited(f, lambda d: d.update(settings=[])), BundleError, "not a whole manifest"),
    "window as text": (lambda f: edited(f, lambda d: d["settings"].update(window="4")), BundleError, "samwise.window"),
    "stage a number": (lambda f: edited(f, lambda d: d["stages"].update(neck=3)), BundleError, "not a whole manifest"),
    "format 7": (lambda f: edited(f, lambda d: d.update(format=7)), UserError, "only format 1"),
    "cut with one part": (
        lambda f: edited(
            f,
            lambda d: d["settings"].update(
                cuts={"neck": {"kernel": "window_attention", "parts": ["neck"], "constants": "x", "patch": 2}}
            ),
        ),
        BundleError,
        "not a whole manifest",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_bundle_is_not_changed(old, name):
    damage, kind, words = DAMAGE[name]
    damage(old)
    before = contents(old)
    with pytest.raises(kind, match=words) as error:
        upgrade.upgrade(old)
    assert "\n" not in str(error.value)
    assert contents(old) == before and os.listdir(old.parent) == ["old"]


def test_invalid_graph_is_refused(old):
    (old / "neck.onnx").write_bytes(b"\xff\xff")
    digest = upgrade.file_sha256(old / "neck.onnx")
    edited(old, lambda d: d["files"].update({"neck.onnx": digest}))
    with pytest.raises(BundleError, match="neck.onnx: not readable as a graph"):
        upgrade.upgrade(old)


def test_engines_of_changed_stages_are_named(old, capsys):
    entry = engine_index.EngineFile("neck", "default", "tensorrt", "10", (89,), "fp32", "0", "neck.engine")
    (old / "engines").mkdir()
    for name in ("neck", "mask_decoder"):
        (old / "engines" / f"{name}.engine").write_bytes(b"engine")
    entries = [asdict(replace(entry, stage=name, file=f"{name}.engine")) for name in ("neck", "mask_decoder")]
    for entry in entries:
        entry["form"] = entry.pop("variant")
    (old / "engines" / "index.json").write_text(json.dumps({"format": 1, "engines": entries}))
    assert command.main(["upgrade", str(old)]) == 0
    out = capsys.readouterr().out
    assert "engines of mask_decoder are stale" in out and "export.tensorrt.build" in out
    assert [entry.variant for entry in engine_index.read(old)] == ["default", "default"]


def test_the_command_needs_no_torch(old):
    code = "import sys; sys.modules['torch'] = None; from export.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "upgrade", str(old)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Manifest.load(old).format == 2


def exported(name):
    """Manifest of a small network as the export writes it, without graphs."""
    torch = pytest.importorskip("torch")
    from export import split_attention
    from export.models import refersam, sam2, samwise
    from export.networks import base

    torch.manual_seed(0)
    adapter = samwise.CrossModalAdapterConfig(width=64, heads=2, patches=(4, 2, 1))
    models = {
        "samwise": lambda: samwise.Samwise(replace(toy_networks.toy_samwise_config(motion=True), adapter=adapter)),
        "samwise+sam2": lambda: samwise.Samwise(toy_networks.toy_samwise_config()),
        "sam2": lambda: sam2.Sam2(toy_networks.toy_sam2_config()),
        "refersam": lambda: refersam.ReferSam(toy_networks.toy_refersam_config()),
    }
    model = models[name]()
    network = base.describe(name, model)
    found = list(split_attention.split_stages(model)) if name == "samwise" else []
    stages = [*network.stages(), *(subgraph for entry in found for subgraph in entry.subgraphs)]
    split = {entry.stage: entry.spec for entry in found}
    bounds = {symbol: pair for stage in stages for symbol, pair in stage.bounds.items()}
    specs = {stage.name: replace(stage.spec, files={"default": f"{stage.name}.onnx"}) for stage in stages}
    manifest = Manifest(network.networks, "tiny", "fp32", network.image_size, specs, bounds, split)
    return json.loads(json.dumps(asdict(manifest)))


@pytest.mark.parametrize("name", ["samwise", "sam2", "samwise+sam2", "refersam"])
def test_a_converted_manifest_is_what_the_export_writes(name):
    """Attributes, settings, split stages and names of tensors: the tables of the conversion against the definitions."""
    want = exported(name)
    # format 1 had no low latency; `python -m export add-steps` adds it
    want["stages"] = {stage: spec for stage, spec in want["stages"].items() if STEP not in stage}
    want["split_stages"] = {stage: split for stage, split in want["split_stages"].items() if STEP not in stage}
    want["bounds"].pop("kept", None)
    got = upgrade.convert(format_1.manifest_of(want))
    assert got["networks"] == want["networks"] and list(got["networks"]) == list(want["networks"])
    assert got["split_stages"] == want["split_stages"]
    for stage, spec in want["stages"].items():
        spec.pop("graph_safe")  # graphs of format 1 may upload tables of pointers
        assert got["stages"][stage] == spec, stage
    assert {key: got[key] for key in ("image_size", "bounds", "variant")} == {
        key: want[key] for key in ("image_size", "bounds", "variant")
    }


@pytest.mark.parametrize("name", ["samwise", "sam2", "samwise+sam2", "refersam"])
def test_a_tensor_has_the_same_attributes_in_every_stage(name):
    """Otherwise it would be half on one side of a boundary and float32 on the other."""
    seen = {}
    for stage, spec in exported(name)["stages"].items():
        for tensor in (*spec["inputs"], *spec["outputs"]):
            kept = tensor["dtype"], tensor["keep_fp32"], tensor["bf16_ok"]
            assert seen.setdefault(tensor["name"], kept) == kept, (stage, tensor["name"])
