"""Float32 graphs for CPUs in half bundles, from the export and for bundles that exist."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.mixer import WIDTH, mixer, network

torch = pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")

from export import __main__ as command
from export import bundle, precision
from export.bundle import write_manifest
from runtime.bundle.bundle import choose
from runtime.bundle.manifest import SUBGRAPH, Manifest

NANO = Path(__file__).parents[2] / "engines" / "nano"
HALF = ir.DataType.FLOAT16

pytestmark = pytest.mark.usefixtures("shared_traces")


def graphs(folder, spec):
    return {variant: ir.load(folder / file) for variant, file in spec.files.items()}


def inputs(seed=0):
    draw = np.random.default_rng(seed)
    return {"x": draw.standard_normal((3, 5, 16, WIDTH)).astype(np.float16), "age": draw.integers(0, 9, (3, 5))}


def run(path):
    return ort.InferenceSession(str(path)).run(None, inputs())


def is_float32_inside(graph):
    """Tell whether half values are only inputs, outputs and weights, each of which only a cast reads or writes."""
    casts = [node for node in graph if node.op_type == "Cast"]
    half = [v for node in graph for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == HALF]
    ends = {id(v) for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    by_casts = [v for node in casts for v in (*node.inputs, *node.outputs) if v.dtype == HALF]
    return Counter(map(id, half)) == Counter(map(id, by_casts)) and {id(v) for v in half} <= ends


@pytest.mark.parametrize("variants", [None, {"ort": "ort", "cuda": "ort"}], ids=["default", "variants"])
@pytest.mark.parametrize("gain", [1.0, 300.0], ids=["half", "half-products"])
def test_a_half_bundle_has_a_float32_graph_for_cpus(tmp_path, variants, gain):
    bundle.export_bundle(network(mixer(gain, variants)), tmp_path, "toy", precision="fp16")
    found = choose(tmp_path)
    spec = found.manifest.stages["mixer"]
    models = graphs(found.folder, spec)
    assert is_float32_inside(models["ort"].graph)
    assert not any(is_float32_inside(model.graph) for variant, model in models.items() if variant != "ort")
    assert [v.dtype for v in models["ort"].graph.outputs] == [HALF, ir.DataType.FLOAT]
    names = {node.op_type for node in models["ort"].graph}
    assert ("MultiHeadAttention" in names) == (variants is not None), "the fused graph is the one that is widened"
    weights = {v.const_value.location for v in models["ort"].graph.initializers.values() if v.const_value.nbytes > 1024}
    assert weights == {"mixer.data"} and len(list((found.folder / "graphs").glob("*.data"))) == 1
    half, wide = (run(found.folder / spec.files[v]) for v in ("default", "ort"))
    for one, other in zip(half, wide, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=5e-3, atol=5e-3 * np.abs(one).max())


def test_weights_take_no_more_room(tmp_path):
    for name, variants in (("both", None), ("one", {})):
        bundle.export_bundle(network(mixer()), tmp_path, name, precision="fp16", variants=variants)
    sizes = [(tmp_path / name / "graphs/mixer.data").stat().st_size for name in ("both", "one")]
    assert sizes[0] == sizes[1]
    assert set(Manifest.load(tmp_path / "one").stages["mixer"].files) == {"default"}


def test_parts_of_split_stages_have_none(tmp_path):
    bundle.export_bundle(network(mixer(role=SUBGRAPH)), tmp_path, "toy", precision="fp16")
    assert set(choose(tmp_path).manifest.stages["mixer"].files) == {"default"}


def test_casts_of_other_types_and_of_outputs_stay_right():
    """A half from a flag, a half output that is read as well, an output that is a cast, and a chain of casts."""
    half, flag = (ir.TensorType(t) for t in (HALF, ir.DataType.BOOL))
    x, b = (ir.Value(name=n, type=t, shape=ir.Shape([2])) for n, t in (("x", half), ("b", flag)))

    def node(op, *values, to=None, kind=HALF):
        made = ir.node(op, list(values), {"to": to.value} if to else {})
        made.outputs[0].type, made.outputs[0].shape = ir.TensorType(to or kind), ir.Shape([2])
        nodes.append(made)
        return made.outputs[0]

    nodes, wide = [], ir.DataType.FLOAT
    flags = node("Cast", b, to=HALF)
    total = node("Add", x, flags)
    exact = node("Exp", node("Cast", total, to=wide), kind=wide)
    narrow = node("Cast", exact, to=HALF)
    product = node("Mul", narrow, total)
    for name, value in (("total", total), ("narrow", narrow), ("product", product)):
        value.name = name
    graph = ir.Graph([x, b], [total, narrow, product], nodes=nodes, opset_imports={"": 20}, name="casts")
    model = ir.Model(graph, ir_version=10)
    found = precision.widened(model)
    feeds = {"x": np.array([0.5, -1], np.float16), "b": np.array([True, False])}
    plain, other = (ort.InferenceSession(ir.to_proto(m).SerializeToString()).run(None, feeds) for m in (model, found))
    for one, same in zip(plain, other, strict=True):
        assert one.dtype == same.dtype == np.float16
        np.testing.assert_allclose(one, same, rtol=2e-3)
    halves = [n.op_type for n in found.graph if any(v.dtype == HALF for v in n.outputs)]
    assert halves == ["Cast"] * 3, "one for each output"


def strip(folder):
    """Write nano as it was before it had graphs for CPUs: default graphs, and half ones that CPUs and GPUs share."""
    shutil.copytree(NANO, folder)
    manifest = Manifest.load(folder)
    stages = {}
    for name, spec in manifest.stages.items():
        files = {v: f for v, f in spec.files.items() if v != "ort"}
        (folder / spec.files["ort"]).unlink()
        if "cuda" in files and files["cuda"] != files["default"]:
            (folder / files["cuda"]).rename(folder / spec.files["ort"])
            files["ort"] = files["cuda"] = spec.files["ort"]
        stages[name] = replace(spec, files=files)
    report = json.loads((folder / "parity.json").read_text())
    report["stages"] = [row for row in report["stages"] if not row["what"].endswith("[ort]")]
    (folder / "parity.json").write_text(json.dumps(report))
    write_manifest(replace(manifest, stages=stages), folder)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_they_are_added_to_a_bundle_that_has_none(tmp_path, capsys):
    strip(tmp_path / "nano")
    assert command.main(["add-cpu-graphs", str(tmp_path / "nano")]) == 0
    assert "added the graphs for CPUs" in capsys.readouterr().out.splitlines()[-1]
    found = choose(tmp_path / "nano")
    found.verify()
    after, stages = contents(found.folder), found.manifest.stages
    assert {spec.files["ort"] for spec in stages.values()} == {f"graphs/{name}.ort.onnx" for name in stages}
    for name, spec in Manifest.load(NANO).stages.items():
        for variant, file in spec.files.items():
            shipped = (NANO / file).read_bytes()
            same = after[stages[name].files[variant]] == shipped
            assert same or variant == "ort", f"{name}: the other variants stay half, byte for byte"
    compared = {row["what"] for row in json.loads(after["parity.json"])["stages"]}
    assert compared >= {f"{name} [ort]" for name in stages}, "every stage was run, those of clicks and masks as well"
    for spec in stages.values():
        path = found.folder / spec.files["ort"]
        again = precision.widened(ir.load(path))
        assert ir.to_proto(again).SerializeToString(deterministic=True) == path.read_bytes()


def test_another_precision_is_refused(tmp_path, capsys):
    bundle.export_bundle(network(mixer()), tmp_path, "toy")
    assert command.main(["add-cpu-graphs", str(tmp_path / "toy")]) == 2
    assert "only half bundles (--precision fp16)" in capsys.readouterr().err
