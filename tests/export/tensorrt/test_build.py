"""Engines built from graphs: index, dependencies of an engine, builds for every target without a GPU."""

import json
from dataclasses import replace

import pytest

from benchmarks.engine_table import half_graphs, network
from export.tensorrt import build
from helpers import toy_samwise as toy
from helpers.fake_tensorrt import FakeLibrary
from runtime.bundle import engine_index
from runtime.bundle.bundle import choose
from runtime.bundle.manifest import Manifest, StageSpec, TensorSpec
from runtime.errors import BackendError, BundleError, InternalError, UserError


@pytest.fixture
def bundle(tmp_path):
    return choose(toy.build(tmp_path / "toy"))


def find(bundle, stage="neck", version="1.7.1", capability=89):
    manifest = Manifest.load(bundle.folder)
    return engine_index.find(
        bundle.folder, manifest, manifest.stages[stage], "default", "tensorrt_rtx", version, capability
    )


def test_profile_comes_from_bounds_and_typical_sizes():
    spec = StageSpec(
        "s",
        (TensorSpec("a", "float16", ("objects", "slots", "pointers", 4)), TensorSpec("t", "int64", ("tokens",))),
        (),
        typical={"objects": 1, "slots": 7, "pointers": 16, "tokens": 16},
    )
    bounds = {"objects": (1, 16), "slots": (1, 32), "pointers": (0, 48), "tokens": (1, 5)}
    manifest = Manifest({"sam2": {}}, "t", "fp16", 64, {}, bounds)
    assert build.profile(spec, manifest) == {
        "objects": (1, 1, 16),
        "slots": (1, 7, 32),
        "pointers": (0, 16, 48),
        "tokens": (1, 5, 5),
    }


def test_targets():
    assert build.parse_targets("sm_120, 89") == [89, 120] and build.parse_targets(None) is None
    for bad in ("sm_8x", "", "89;120"):
        with pytest.raises(UserError, match="not a list"):
            build.parse_targets(bad)


def test_second_build_keeps_current_engines_and_adds_missing_targets(bundle):
    library = FakeLibrary()
    build.build_bundle(bundle, library, [86, 89], report=lambda line: None)
    assert len(library.built) == len(bundle.manifest.stages) and library.built[0][1] == (86, 89)
    bundle = choose(bundle.folder)
    bundle.verify()  # the manifest has the sha256 of every engine
    again = FakeLibrary()
    lines = []
    build.build_bundle(bundle, again, [86, 89], report=lines.append)
    assert not again.built and all("up to date" in line for line in lines[1:])
    build.build_bundle(choose(bundle.folder), again, [89, 120], stages=["neck"], report=lambda line: None)
    assert again.built == [("neck", (120,))]
    assert find(bundle, capability=120).file != find(bundle, capability=89).file
    choose(bundle.folder).verify()


def test_unsuitable_engines_are_refused_with_the_reason(bundle):
    with pytest.raises(BundleError, match="has no tensorrt_rtx engine; run `python -m export.tensorrt.build"):
        find(bundle)
    build.build_bundle(bundle, FakeLibrary(), [89], report=lambda line: None)
    assert find(bundle).scratch == 1000
    with pytest.raises(BundleError, match="built with tensorrt_rtx 1.7.1, this machine has 1.8.0"):
        find(bundle, version="1.8.0")
    with pytest.raises(BundleError, match="built for sm_89, this GPU is sm_90"):
        find(bundle, capability=90)
    engine = bundle.folder / engine_index.FOLDER / find(bundle).file
    content = engine.read_bytes()
    engine.unlink()
    with pytest.raises(BundleError, match="missing"):
        find(bundle)
    engine.write_bytes(content + b"x")
    with pytest.raises(BundleError, match="altered"):
        choose(bundle.folder).verify()


@pytest.mark.parametrize("change", ["graph", "bounds", "precision"])
def test_an_engine_of_another_graph_is_stale_and_is_built_again(bundle, change):
    build.build_bundle(bundle, FakeLibrary(), [89], report=lambda line: None)
    manifest = Manifest.load(bundle.folder)
    spec = manifest.stages["neck"]
    changed = {
        "graph": {"files": {**manifest.files, "neck.onnx": "0" * 64}},
        "bounds": {"bounds": {**manifest.bounds, "frames": (1, 3)}},
        "precision": {"stages": {**manifest.stages, "neck": replace(spec, precision="fp16")}},
    }[change]
    replace(manifest, **changed).dump(bundle.folder)
    with pytest.raises(BundleError, match="stale: its graph, precision or bounds have changed"):
        find(bundle)
    library = FakeLibrary()
    build.build_bundle(choose(bundle.folder), library, [89], report=lambda line: None)
    assert "neck" in [name for name, _ in library.built]
    assert find(bundle)
    files = [e.file for e in engine_index.read(bundle.folder)]
    assert len(files) == len(set(files)) == len(list((bundle.folder / "engines").rglob("*.engine"))), (
        "no stale file stays"
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1, "engines": [{}]}', '{"format": 3, "engines": []}'])
def test_damaged_index_is_a_one_line_error(bundle, text):
    (bundle.folder / "engines").mkdir()
    (bundle.folder / "engines" / "index.json").write_text(text)
    with pytest.raises(BundleError, match="index.json") as error:
        find(bundle)
    assert "\n" not in str(error.value)


def test_index_with_files_outside_the_bundle_is_refused(bundle):
    build.build_bundle(bundle, FakeLibrary(), [89], report=lambda line: None)
    path = bundle.folder / "engines" / "index.json"
    data = json.loads(path.read_text())
    data["engines"][0]["file"] = "../../x"
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="not a path inside"):
        find(bundle)


def test_command_reports_errors_in_one_line(bundle, capsys, monkeypatch):
    assert build.main([str(bundle.folder / "nowhere"), "--backend", "tensorrt_rtx"]) == 2
    monkeypatch.setattr(build, "Library", lambda name: FakeLibrary())
    assert build.main([str(bundle.folder), "--backend", "tensorrt_rtx", "--stage", "nose"]) == 2
    assert "no stage 'nose'" in capsys.readouterr().err
    assert build.main([str(bundle.folder), "--backend", "tensorrt_rtx", "--target", "sm_89", "--stage", "neck"]) == 0
    assert "float32 bundle" in capsys.readouterr().out


def test_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"pip install 'samwise-runtime\[tensorrt\]'"):
        build.Library("tensorrt")


# -- TensorRT-RTX itself, on a CPU -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx")
    return build.Library("tensorrt_rtx")


def test_toy_bundle_builds_and_hopper_is_refused(bundle, rtx):
    with pytest.raises(UserError, match="sm_90 is not one of .* on Hopper use tensorrt or ort-cuda"):
        rtx.capabilities([90])
    entries = build.build_bundle(bundle, rtx, report=lambda line: None)
    assert {e.stage for e in entries} == set(bundle.manifest.stages)
    assert all(e.capabilities == build.TARGETS and e.version == rtx.version for e in entries)


def test_failed_build_reports_the_reason(bundle, rtx, tmp_path):
    spec = bundle.manifest.stages["neck"]
    (tmp_path / "neck.onnx").write_bytes(b"not a graph")
    with pytest.raises(InternalError, match="neck.onnx: tensorrt_rtx cannot read it"):
        rtx.build(tmp_path / "neck.onnx", spec, build.profile(spec, bundle.manifest), (89,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["samwise", "sam2"])
def test_every_stage_builds_in_half_for_every_target(name, rtx, tmp_path):
    """1024 px, Hiera tiny, the real decoder, memory and adapters, split stages; a small text tower: its shapes have no
    pixels."""
    pytest.importorskip("torch")
    module, model = network(name, "tiny", vocabulary=100, positions=66, layers=3)
    stages = list(module.stages(model))
    if name == "samwise":
        from export import split_attention

        stages += [subgraph for split in split_attention.split_stages(model) for subgraph in split.subgraphs]
    folder = half_graphs(stages, tmp_path / name, module.settings(model))
    lines = []
    entries = build.build_bundle(choose(folder), rtx, report=lines.append)
    print("\n".join(lines))
    assert sorted(e.stage for e in entries) == sorted(s.name for s in stages)
    assert all(e.capabilities == build.TARGETS for e in entries)
    # the parts around the kernel hold no score matrix of 4096 x 4096 for 16 objects, in half
    parts = [e.scratch for e in entries if e.stage.startswith("memory_attention_subgraph")]
    assert all(scratch < 2 * 16 * 4096**2 for scratch in parts)


@pytest.mark.slow
def test_every_stage_of_the_toy_sam3_builds(rtx, tmp_path, shared_traces):
    """Its operators and shapes; `python -m benchmarks.engine_table sam3 large` builds the published size."""
    pytest.importorskip("torch")
    module, model = network("sam3", "tiny")
    stages = module.stages(model.eval())
    folder = half_graphs(stages, tmp_path / "sam3", module.settings(model))
    entries = build.build_bundle(choose(folder), rtx, report=lambda line: None)
    assert {e.stage for e in entries} == {s.name for s in stages}
    assert all(e.capabilities == build.TARGETS for e in entries)


@pytest.mark.slow
def test_scratch_size_shows_that_memory_attention_is_fused(rtx, tmp_path):
    """One layer at full memory. The score matrix alone, 4096 x 24,636 in half, is 202 MB; a variant with
    values narrower than keys has it in its scratch, the variant for TensorRT has not."""
    pytest.importorskip("torch")
    from export.models import samwise
    from export.models.sam import SamConfig
    from export.networks import samwise as samwise_network
    from export.stage import Variant
    from export.stages.memory_attention import MemoryAttentionStage

    model = samwise.Samwise(samwise.SamwiseConfig(sam=SamConfig(memory_layers=1)))
    stage = next(s for s in samwise_network.stages(model) if s.name == "memory_attention")
    narrow = MemoryAttentionStage(model.sam.memory_attention, model.sam.maskmem_tpos_enc, False).eval()
    found = {}
    for name, variant in (("wide", stage.variants["trt"]), ("narrow", Variant(narrow, "plain"))):
        folder = half_graphs(
            [replace(stage, variants={"default": variant})], tmp_path / name, samwise_network.settings(model)
        )
        manifest = Manifest.load(folder)
        spec = manifest.stages["memory_attention"]
        sizes = build.profile(spec, manifest) | {"objects": (1, 1, 1), "maps": (1, 1, 1)}
        found[name] = {c: rtx.build(folder / spec.files["default"], spec, sizes, (c,)).scratch for c in build.TARGETS}
    scores = 2 * 4096 * (6 * 4096 + 60)
    assert all(scratch < scores / 2 for scratch in found["wide"].values()), found
    assert all(scratch > scores for scratch in found["narrow"].values()), found
