"""OpenVINO gives what ONNX Runtime gives, on the toy bundle."""

import numpy as np
import pytest

pytest.importorskip("openvino")

import runtime  # noqa: E402
from test_schedule import A, B, frames, reference, run  # noqa: E402


@pytest.fixture(scope="module")
def engine(toy):
    with runtime.load(toy, backend="openvino", threads=1) as engine:
        yield engine


def test_same_results_as_the_plain_loop(engine):
    clip = frames(11)
    logits, _ = run(engine, clip, A, B)
    for got, prompt in zip(logits, (A, B)):
        np.testing.assert_allclose(got, reference(clip, prompt)[0], rtol=1e-4, atol=1e-4)


def test_a_graph_that_is_none(engine, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(runtime.BundleError, match="OpenVINO cannot load") as error:
        engine.backend.load(tmp_path / "x.onnx", engine.bundle.manifest.stages["neck"])
    assert "\n" not in str(error.value)


def test_threads_are_checked():
    from runtime.backends.ov import OpenVinoBackend
    with pytest.raises(runtime.BackendError, match="threads"):
        OpenVinoBackend(threads=0)
