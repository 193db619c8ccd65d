"""Tests of the OpenVINO backends against ONNX Runtime on the toy bundle."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

import runtime
from helpers.samwise_schedule import A, B, frames, reference, run
from runtime.backends import ov
from runtime.bundle.manifest import StageSpec, TensorSpec
from runtime.metrics import clip_jaccard

NANO = Path(__file__).parents[2].parent / "engines" / "nano"


@pytest.fixture(scope="module")
def engine(toy):
    with runtime.load(toy, backend="openvino", threads=1) as engine:
        yield engine


def test_same_results_as_the_plain_loop(engine):
    clip = frames(11)
    logits, _ = run(engine, clip, A, B)
    for got, prompt in zip(logits, (A, B), strict=True):
        np.testing.assert_allclose(got, reference(clip, prompt)[0], rtol=1e-4, atol=1e-4)


def test_file_that_is_not_a_graph_is_refused(engine, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(runtime.BundleError, match="OpenVINO cannot load") as error:
        engine.backend.load(tmp_path / "x.onnx", engine.bundle.manifest.stages["neck"])
    assert "\n" not in str(error.value)


def test_threads_are_checked():
    from runtime.backends.ov import OpenVinoBackend

    with pytest.raises(runtime.BackendError, match="threads"):
        OpenVinoBackend(threads=0)


SIGNAL_AFTER_AN_ENGINE = """
import gc, signal, sys, threading
import runtime

def drop():
    global engine
    del engine
    gc.collect()

engine = runtime.load(sys.argv[1], backend="openvino", threads=1)
thread = threading.Thread(target=drop)
thread.start()
thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals have no stacks of their own")
def test_signals_are_handled_after_another_thread_dropped_the_engine(toy):
    command = [sys.executable, "-c", SIGNAL_AFTER_AN_ENGINE, str(toy)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=NANO.parents[1])
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr


@pytest.fixture(scope="module")
def nano():
    with runtime.load(NANO, backend="openvino", threads=1) as engine:
        yield engine


@pytest.mark.parametrize("stage", ["hiera_0", "image_encoder"])
def test_split_graph_computes_the_same(nano, stage):
    """With one precision, two parts are one graph."""
    spec = nano.bundle.manifest.stages[stage]
    file = NANO / spec.files["default"]
    arrays = given(nano.bundle, spec)
    nano.backend.load(file, spec).run(**arrays)
    whole = {t.name: arrays[t.name].copy() for t in spec.outputs}

    class Cut(ov.OpenVinoBackend):
        def split(self, model, spec):
            return [(part, "f32") for part in ov.split_graph(model, {"high_res_0", "high_res_1"})]

    again = Cut(threads=1).load(file, spec)
    assert len(again.parts) == 2 and set(again.parts[0].outputs) & set(again.parts[1].inputs)
    for tensor in spec.outputs:
        arrays[tensor.name][:] = np.nan
    again.run(**arrays)
    for name, expected in whole.items():
        assert distance(arrays[name], expected) < 1e-3, name  # nano's tensors are halves


def test_fine_maps_and_decoder_stay_float32(nano):
    """They are float32 to the last bits; the trunk and memory attention are rounded."""
    try:
        rounded = ov.OpenVinoBf16Backend(threads=1)
    except runtime.BackendError:
        pytest.skip("this processor has no bfloat16")
    manifest, error = nano.bundle.manifest, {}
    for stage in ("hiera_0", "hiera_1", "mask_decoder", "memory_attention"):
        spec = manifest.stages[stage]
        arrays, found = given(nano.bundle, spec), []
        for backend in (nano.backend, rounded):
            backend.load(NANO / spec.files["default"], spec).run(**arrays)
            found.append({t.name: arrays[t.name].copy() for t in spec.outputs})
        exact, other = found
        error |= {name: distance(other[name], exact[name]) for name in exact}
    for name in ("high_res_0", "low_res_logits", "iou"):
        assert error[name] < 1e-5, name
    for name in ("vision_0", "vision_1", "conditioned"):
        assert 1e-4 < error[name] < 5e-2, name


CONCEPTS = NANO.parent / "nano-concepts"


@pytest.fixture(scope="module")
def clip():
    with runtime.open_video(NANO / "demo" / "clip.mp4", 1, 3) as video:
        return np.stack(list(video))


@pytest.fixture(scope="module")
def answers(clip):
    """ONNX Runtime's answers, and the point on which the clicks are."""
    with runtime.load(CONCEPTS, backend="ort", threads=1) as engine:
        (found,) = engine.image(clip[0]).detect([runtime.Concept("house")])
        point = np.argwhere(found.masks[0]).mean(0)[::-1].tolist()
        return point, ask(engine, clip, point)


def ask(engine, clip, point):
    """Return the results of a picture and a video searched for two concepts, and of a click in both."""
    concepts = [runtime.Concept("house"), runtime.Concept("pink crab")]
    found = {"image": engine.image(clip[0]).detect(concepts, threshold=0.3)}
    with engine.session(concepts) as session:
        found["video"] = list(session.stream(clip))
    with engine.video(clip) as video:
        video.add_points(0, 1, [point], [1])
        found["clicks"] = list(video.propagate())
    found["click"] = [engine.image(clip[0]).predict(points=[point], labels=[1])]
    return found


@pytest.mark.parametrize("backend, least", [("openvino", 0.995), ("openvino-bf16", 0.96)])
def test_sam_3_finds_and_follows_the_same(clip, answers, backend, least):
    """A half bundle leaves rounding between operators open, so masks differ by pixels of their edges."""
    point, expected = answers
    try:
        engine = runtime.load(CONCEPTS, backend=backend, threads=1)
    except runtime.BackendError:
        pytest.skip("this processor has no bfloat16")
    with engine:
        given = ask(engine, clip, point)
    for task, results in expected.items():
        assert any(len(result.masks) for result in results), task
        for want, got in zip(results, given[task], strict=True):
            assert got.masks.shape == want.masks.shape, task
            for a, b in zip(got.masks, want.masks, strict=True):
                assert clip_jaccard(a[None], b[None]) >= least, task
            np.testing.assert_allclose(got.scores, want.scores, atol=0.05, err_msg=task)


def ways_of_passing(ops):
    """Return graphs by the way in which outputs of the exact part pass on: the input, outputs by name."""
    ways = {}
    for way in ("an output that is split off", "an exact output that is read", "an inner tensor", "the input"):
        x = ops.parameter([2, 4], np.float32, name="x")
        x.output(0).get_tensor().set_names({"x"})
        half = ops.split(x, ops.constant(1), 2)
        exact = ops.exp(half.output(0)).output(0)
        start = {
            "an output that is split off": half.output(1),
            "an exact output that is read": exact,
            "an inner tensor": half.output(1),
            "the input": x.output(0),
        }[way]
        outputs = {"exact": exact, "rest": ops.sin(start).output(0)}
        if way == "an output that is split off":
            outputs["passed"] = half.output(1)
        for name, port in outputs.items():
            port.get_tensor().set_names({name})
        ways[way] = x, outputs
    return ways


@pytest.mark.parametrize(
    "way", ["an output that is split off", "an exact output that is read", "an inner tensor", "the input"]
)
def test_tensors_pass_between_the_parts(way):
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    x, ports = ways_of_passing(ops)[way]
    specs = tuple(TensorSpec(name, "float32", tuple(port.get_shape())) for name, port in ports.items())
    spec = StageSpec("toy", (TensorSpec("x", "float32", (2, 4)),), specs)
    model = openvino.Model([ops.result(port) for port in ports.values()], [x], "toy")
    backend = ov.OpenVinoBackend(threads=1)
    names = {"x", *ports}
    parts = [backend._compile(part, "f32", names) for part in ov.split_graph(model, {"exact"})]
    given = np.arange(8, dtype=np.float32).reshape(2, 4) / 8
    outputs = {name: np.full(tuple(port.get_shape()), np.nan, np.float32) for name, port in ports.items()}
    ov.OpenVinoStage(openvino, parts, spec).run(x=given, **outputs)
    exact = np.exp(given[:, :2])
    rest = {"an exact output that is read": exact, "the input": given}.get(way, given[:, 2:])
    np.testing.assert_allclose(outputs["exact"], exact, rtol=1e-6)
    np.testing.assert_allclose(outputs["rest"], np.sin(rest), rtol=1e-5)
    if "passed" in outputs:
        np.testing.assert_array_equal(outputs["passed"], given[:, 2:])


def distance(found, expected):
    """Relative L2."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-12)


def given(bundle, spec):
    """Seeded inputs and empty outputs of a stage."""
    symbols = {s: bundle.manifest.bounds[s][0] for s in spec.symbols}
    rng = np.random.default_rng(0)
    inputs = {
        t.name: rng.standard_normal(t.resolve(symbols), np.float32).astype(t.dtype)
        if t.dtype.startswith("float")
        else np.full(t.resolve(symbols), int("count" in t.name), t.dtype)
        for t in spec.inputs
    }
    return inputs | {t.name: np.empty(t.resolve(symbols), t.dtype) for t in spec.outputs}
