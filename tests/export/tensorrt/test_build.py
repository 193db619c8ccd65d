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
        bundle.folder, manifest, manifest.stages[stage], ("default",), "tensorrt_rtx", version, capability
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


class Gpu:
    """Cosines of variants on the GPU of a machine; `seen` lists what was compared."""

    def __init__(self, **cosines):
        self.cosines, self.seen = cosines, []

    def __call__(self, path, spec, capabilities):
        assert path.is_file()
        variant = next(v for v in self.cosines if v in path.read_text())
        self.seen.append((spec.name, variant, tuple(capabilities)))
        return self.cosines[variant]


class TextLibrary(FakeLibrary):
    """Its engines are the names of their graphs."""

    def build(self, graph, spec, profile, capabilities, timing=None):
        return replace(super().build(graph, spec, profile, capabilities, timing), data=graph.name.encode())


@pytest.fixture
def two_forms(bundle):
    """A bundle with a stage that has an explicit form of its attention."""
    manifest = Manifest.load(bundle.folder)
    spec, files = manifest.stages["neck"], {}
    for variant in ("default", "trt_explicit"):
        name = f"neck.{variant}.onnx"
        (bundle.folder / name).write_bytes((bundle.folder / spec.files["default"]).read_bytes() + variant.encode())
        files[variant] = name
    digests = {name: f"{i}" * 64 for i, name in enumerate(files.values())}
    stages = {**manifest.stages, "neck": replace(spec, files=files)}
    replace(manifest, stages=stages, files={**manifest.files, **digests}).dump(bundle.folder)
    return choose(bundle.folder)


@pytest.mark.parametrize(
    "cosines, taken",
    [
        ({"default": 0.9995, "trt_explicit": 1.0}, "default"),
        ({"default": 0.9985, "trt_explicit": 0.9991}, "trt_explicit"),
        ({"default": float("nan"), "trt_explicit": 0.9991}, "trt_explicit"),
        ({"default": None, "trt_explicit": None}, "default"),  # no GPU of the targets is here
    ],
)
def test_the_form_of_attention_is_the_first_that_is_right_on_the_gpu(two_forms, cosines, taken):
    gpu, lines = Gpu(**cosines), []
    build.build_bundle(two_forms, TextLibrary(), [89], report=lines.append, cosine=gpu)
    manifest = Manifest.load(two_forms.folder)
    variants = ("default", "trt_explicit")
    found = engine_index.find(
        two_forms.folder, manifest, manifest.stages["neck"], variants, "tensorrt_rtx", "1.7.1", 89
    )
    assert found.variant == taken and gpu.seen[0] == ("neck", "default", (89,)), (
        "only stages with two forms are compared"
    )
    assert len(gpu.seen) == 1 + (taken != "default")
    engines = list((two_forms.folder / "engines").rglob("neck.*.engine"))
    assert len(engines) == 1 and taken.encode() in engines[0].read_bytes()
    again = TextLibrary()
    build.build_bundle(choose(two_forms.folder), again, [89], report=lines.append, cosine=gpu)
    assert not again.built, "the form that was taken is up to date"


def test_an_engine_that_is_wrong_in_every_form_is_not_published(two_forms):
    with pytest.raises(
        InternalError, match=r"neck: tensorrt_rtx .* wrong on this GPU, in every form .cosine .* 0.9989"
    ):
        build.build_bundle(
            two_forms, TextLibrary(), [89], ["neck"], lambda line: None, Gpu(default=0.5, trt_explicit=0.9989)
        )
    assert not list((two_forms.folder / "engines").rglob("neck.*"))


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


@pytest.mark.slow
def test_scratch_size_shows_that_explicit_attention_is_not_fused(rtx, tmp_path):
    """The scores of 2048 tokens and 8 heads are 67 MB in half."""
    torch = pytest.importorskip("torch")
    from export.layers.attention import attend
    from export.stage import Variant, stage, tensor

    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return (attend(q, k, v, 8),)

    names, bounds = ("q", "k", "v"), {"frames": (1, 8)}
    tensors = [tensor(name, "frames", 2048, 512) for name in (*names, "out")]

    def sample(sizes, generator):
        return {name: torch.randn(sizes["frames"], 2048, 512, generator=generator) for name in names}

    module = Attention()
    variants = {name: Variant(module, name) for name in ("plain", "explicit")}
    block = stage("block", tuple(tensors[:3]), tuple(tensors[3:]), module, sample, bounds, {"frames": 2}, variants)
    found = {}
    for name, variant in variants.items():
        alone = replace(block, variants={"default": variant})
        folder = half_graphs([alone], tmp_path / name, {"sam2": {"resize": {"max": 64}}})
        path = folder / "graphs" / "block.onnx"
        found[name] = rtx.build(path, block.spec, {"frames": (1, 1, 1)}, (89,)).scratch
    scores = 2 * 8 * 2048**2
    assert found["plain"] < scores / 2 and found["explicit"] > scores, found
