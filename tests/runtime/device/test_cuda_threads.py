"""The device's context is current in whatever thread calls: the fake driver refuses calls of any other thread."""

import threading

import numpy as np
import pytest

import runtime
from helpers import numpy_sam3, public_methods, toy_refersam
from helpers.fake_cuda import FakeCudaBackend, FakeDriver
from helpers.samwise_schedule import A, frames
from helpers.waiting import PATIENCE
from runtime.bundle.bundle import choose
from runtime.device.cuda import Cuda
from runtime.engine import Engine


def in_a_thread(call):
    """Return the result of a call that a new thread makes, or raise its error."""
    found = []

    def work():
        try:
            found.append((call(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE)
    result, error = found[0]
    if error is not None:
        raise error
    return result


def test_the_driver_refuses_a_thread_without_a_context():
    driver = FakeDriver()
    driver.synchronize()
    with pytest.raises(AssertionError, match="invalid device context"):
        in_a_thread(driver.synchronize)
    in_a_thread(lambda: (driver.make_current(), driver.synchronize()))


def test_every_public_method_runs_in_a_thread_of_its_own(toy, toy_sam2_bundle, numpy_sam3_bundle, tmp_path):
    def load(bundle):
        return in_a_thread(lambda: Engine(choose(bundle), FakeCudaBackend(), 64))

    engines = {"text": load(toy), "prompts": load(toy_sam2_bundle), "concepts": numpy_sam3.load(numpy_sam3_bundle)}
    engines["image"] = load(toy_refersam.build(tmp_path / "refersam"))
    clip = np.random.default_rng(0).integers(40, 255, (9, 20, 30, 3), dtype=np.uint8)
    for name, call in public_methods.calls(engines, clip).items():
        try:
            in_a_thread(call)
        except runtime.SamwiseRuntimeError as error:
            assert "closed" in str(error) or "no object" in str(error) or "prompt" in str(error), (name, error)


def test_an_engine_is_loaded_in_another_thread_than_its_backend(toy):
    backend = FakeCudaBackend()
    engine = in_a_thread(lambda: Engine(choose(toy), backend))
    with engine.session([runtime.Text(tokens=A)]) as session:
        assert len(list(session.stream(frames(5)))) == 5


def test_closing_in_another_thread_has_the_context(toy):
    device, seen = Cuda(FakeDriver()), []
    in_a_thread(lambda: device.lock.run_after(lambda: seen.append(device.empty((2,), "float32").shape)))
    assert seen == [(2,)]
