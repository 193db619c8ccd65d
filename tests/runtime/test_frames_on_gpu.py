"""Frames in GPU memory, for every network and task: read where they are, in stream order, and kept until then."""

import gc
import re
import shutil
import weakref
from collections import Counter, deque

import numpy as np
import pytest

import runtime
from helpers import numpy_sam3, toy_refersam
from helpers.fake_cuda import FakeCudaBackend, FakeDriver
from helpers.fake_gpu import write_image_kernels
from helpers.samwise_schedule import A, B, frames
from runtime.bundle.bundle import choose
from runtime.device.array import DeviceArray
from runtime.imaging.gpu import ALIGNMENT

CLICK = runtime.Points([(8, 5)], [1])
STREAM = 7
"""Of the library that makes the frames."""
COUNT = 10


class Producer:
    """A library whose frames are filled by work on its stream, and whose memory is used again when they are dropped."""

    def __init__(self, driver, kind, offset=0):
        self._driver, self._kind, self._offset = driver, kind, offset
        self._memory = []
        driver.others[STREAM] = deque()

    def __call__(self, frame):
        memory = np.full(frame.nbytes + 2 * ALIGNMENT, 0xFF, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT + self._offset
        there = memory[start : start + frame.nbytes].reshape(frame.shape)
        self._driver.register(memory, "device")
        self._memory.append(memory)
        self._driver.others[STREAM].append(lambda: there.__setitem__(..., frame))
        array = self._kind(there, self._driver)
        weakref.finalize(array, memory.fill, 0xFF)
        return array


class Interface:
    """An array as CuPy and Numba export it."""

    def __init__(self, host, driver, **more):
        self.__cuda_array_interface__ = {
            "shape": host.shape,
            "typestr": host.dtype.str,
            "data": (host.ctypes.data, False),
            "version": 3,
            "stream": STREAM,
            **more,
        }


class Dlpack:
    """An array as torch exports it, whose interface names no stream; a capsule of numpy's."""

    def __init__(self, host, driver, index=0):
        self._host, self._driver, self._index = host, driver, index
        self.__cuda_array_interface__ = Interface(host, driver).__cuda_array_interface__ | {"stream": None}

    def __dlpack_device__(self):
        return (2, self._index)

    def __dlpack__(self, stream=None):
        assert stream == self._driver.stream
        self._driver.wait_for(STREAM)
        return self._host.__dlpack__()


def text(engine, video):
    with engine.session([runtime.Text(tokens=A), runtime.Text(tokens=B)]) as session:
        return list(session.stream(video))


def text_ahead(engine, video):
    with engine.session([runtime.Text(tokens=A)], encode_ahead=True, decode_ahead=True) as session:
        return list(session.stream(video))


def text_on_an_image(engine, video):
    return [engine.image(next(video)).refer([runtime.Text(tokens=A)])]


def live(engine, video):
    with engine.live() as session:
        return list(session.stream(video, {0: {1: CLICK}, 4: {2: runtime.Box((3, 3, 12, 12))}}))


def corrected(engine, video):
    """Frames that are not encoded when they come; the caller writes over them meanwhile."""
    with engine.live() as session:
        found = []
        for frame in video:
            session.push(frame)
            del frame
            found.append(session.correct({len(found): CLICK}))
        return found


def known(engine, video):
    with engine.video(list(video)) as session:
        session.add_points(2, 1, CLICK.points, CLICK.labels)
        return [*session.propagate(), *session.propagate(reverse=True)]


def fed(engine, video):
    with engine.live() as session:
        steps = [step for i, f in enumerate(video) for step in session.feed(f, None if i else {1: CLICK})]
    return [step for step in steps if isinstance(step, runtime.Result)]


def clicked_image(engine, video):
    return [engine.image(next(video)).predict(CLICK.points, CLICK.labels) for _ in range(2)]


def everything(engine, video):
    options = {"points_per_side": 2, "pred_iou_thresh": -10.0, "stability_score_thresh": 0.0, "crop_n_layers": 1}
    return engine.image(next(video)).segment_all(**options)


def concepts(engine, video):
    prompts = [runtime.Concept(tokens=[1]), runtime.Concept(tokens=[2])]
    with engine.session(prompts, temporal_disambiguation=False) as session:
        return list(session.stream(video))


def detected(engine, video):
    image = engine.image(next(video))
    return [*image.detect([runtime.Concept(tokens=[1])], semantic=True), image.predict(CLICK.points, CLICK.labels)]


SAM2 = [live, corrected, known, fed, clicked_image, everything]
TASKS = {
    "samwise": [text, text_ahead, text_on_an_image],
    "refersam": [text_on_an_image],
    "sam2": SAM2,
    "sam3": [*SAM2, concepts, detected],
}
CASES = [(network, task) for network, tasks in TASKS.items() for task in tasks]
KINDS = {"interface": (Interface, 0), "unaligned": (Interface, 3), "dlpack": (Dlpack, 0)}


@pytest.fixture(scope="module")
def engines(toy, toy_sam2_bundle, numpy_sam3_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    bundles = {"samwise": toy, "sam2": toy_sam2_bundle, "sam3": numpy_sam3_bundle}
    bundles["refersam"] = toy_refersam.build(folder / "plain")
    loaded = {}
    for name, bundle in bundles.items():
        copied = shutil.copytree(bundle, folder / name)
        write_image_kernels(copied, FakeDriver.capability)
        backend = numpy_sam3.FakeCudaNumpyBackend() if name == "sam3" else FakeCudaBackend()
        loaded[name] = runtime.Engine(choose(copied), backend, kernels="on")
    return loaded


@pytest.fixture(scope="module")
def expected(engines):
    """Results of frames of the host, and the bytes that were uploaded for them."""
    found = {}

    def of(network, task):
        if (network, task) not in found:
            calls = engines[network].backend.device.driver.calls
            before = Counter(calls)
            results = task(engines[network], iter(video(network)))
            found[network, task] = results, calls["upload bytes"] - before["upload bytes"]
        return found[network, task]

    return of


def video(network):
    if network == "sam3":
        return [numpy_sam3.picture(i % 4, 3, size=(20, 30)) for i in range(COUNT)]
    return list(frames(COUNT, 20, 30))


@pytest.mark.parametrize(
    "network, task, kind",
    [(*case, kind) for i, case in enumerate(CASES) for j, kind in enumerate(KINDS) if kind == "dlpack" or i % 2 == j],
)
def test_results_are_those_of_frames_of_the_host(engines, expected, network, task, kind):
    wanted, host_bytes = expected(network, task)
    driver = engines[network].backend.device.driver
    before, produce = Counter(driver.calls), Producer(driver, *KINDS[kind])
    found = task(engines[network], (produce(frame) for frame in video(network)))
    spent = driver.calls - before
    assert len(found) == len(wanted) > 0
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(*(getattr(r, "mask" if task is everything else "masks") for r in (got, want)))
    frame = 20 * 30 * 3
    count = {known: COUNT, everything: 1, text_on_an_image: 1, detected: 1, clicked_image: 2}.get(task, COUNT)
    if task is not everything:  # whose crops are uploaded
        assert spent["upload bytes"] <= host_bytes - count * frame, "no frame crosses the bus"
    assert spent["wait_for"] >= count


@pytest.mark.parametrize("network, task", [("sam2", live), ("sam3", live), ("sam3", concepts)])
def test_a_frame_costs_the_calls_of_one_of_the_host(engines, network, task):
    """Prompts and indices are one upload; the frame is none, and no copy."""
    driver, spent = engines[network].backend.device.driver, []
    for produce in (Producer(driver, Interface), lambda frame: frame):
        task(engines[network], map(produce, video(network)))
        before = Counter(driver.calls)
        task(engines[network], map(produce, video(network)))
        spent.append(driver.calls - before)
    for name in ("upload", "download", "wait", "copy", "preprocess", "launch"):
        assert spent[0][name] == spent[1][name], name


def test_a_frame_of_no_object_is_not_uploaded(engines):
    driver = engines["sam2"].backend.device.driver
    produce, calls = Producer(driver, Interface), driver.calls
    with engines["sam2"].live() as session:
        session.push(produce(video("sam2")[0]))
        before = Counter(calls)
        session.push(produce(video("sam2")[1]))
        spent = calls - before
    assert (spent["upload"], spent["download"], spent["copy"], spent["wait"]) == (0, 0, 1, 1)


BAD = {
    "type": (np.zeros((20, 30, 3), np.float32), {}, "frame 0: must be uint8 RGB"),
    "planes first": (np.zeros((3, 20, 30), np.uint8), {}, "frame 0: must be uint8 RGB"),
    "grey": (np.zeros((20, 30), np.uint8), {}, "frame 0: must be uint8 RGB"),
    "empty": (np.zeros((0, 30, 3), np.uint8), {}, "frame 0: must be uint8 RGB"),
    "gaps": (np.zeros((20, 30, 3), np.uint8), {"strides": (96, 3, 1)}, "frame 0: an array .* has gaps"),
    "masked": (np.zeros((20, 30, 3), np.uint8), {"mask": object()}, "frame 0: a masked array"),
}
TAKE = {
    "samwise": lambda engine, frame: engine.session([runtime.Text(tokens=A)]).push(frame),
    "sam2 live": lambda engine, frame: engine.live().push(frame, {1: CLICK}),
    "sam2 video": lambda engine, frame: engine.video([frame]),
    "sam2 image": lambda engine, frame: engine.image(frame),
    "sam3 concept": lambda engine, frame: engine.session([runtime.Concept(tokens=[1])]).push(frame),
    "refersam image": lambda engine, frame: engine.image(frame),
}


def message(engines, take, frame):
    with pytest.raises(runtime.VideoError) as error:
        TAKE[take](engines[take.split()[0]], frame)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("take", TAKE)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_frame_is_said_in_one_line(engines, take, bad):
    host, more, expected = BAD[bad]
    driver = engines[take.split()[0]].backend.device.driver
    driver.register(host, "device")
    assert re.match(expected, message(engines, take, Interface(host, driver, **more)))


@pytest.mark.parametrize("take", TAKE)
def test_a_frame_of_another_gpu_or_that_is_not_exported_is_refused(engines, take):
    driver, host = engines[take.split()[0]].backend.device.driver, np.zeros((20, 30, 3), np.uint8)
    assert "an array on GPU 1, and the engine is on GPU 0" in message(engines, take, Dlpack(host, driver, index=1))

    class Refusing(Dlpack):
        def __dlpack__(self, stream=None):
            raise BufferError("it requires grad")

    assert "frame 0: a Refusing that its library does not export (it requires grad)" in message(
        engines, take, Refusing(host, driver)
    )


@pytest.mark.parametrize("take", TAKE)
def test_a_frame_on_a_gpu_without_kernels_is_refused(engines, take):
    network = take.split()[0]
    bundle = engines[network].bundle.folder
    backend = numpy_sam3.FakeCudaNumpyBackend() if network == "sam3" else FakeCudaBackend()
    plain = {network: runtime.Engine(choose(bundle), backend, kernels="off")}
    frame = Interface(np.zeros((20, 30, 3), np.uint8), None)
    assert "frame 0: is on a GPU, and this engine reads frames from the host" in message(plain, take, frame)


def test_kernels_of_an_earlier_bundle_do_not_read_an_image(engines, tmp_path):
    """They had no resize in floats."""
    copied = shutil.copytree(engines["sam2"].bundle.folder, tmp_path / "earlier")
    index = copied / "kernels" / "index.json"
    index.write_text(index.read_text().replace('"preprocess_float"', '"another"'))
    engine = runtime.Engine(choose(copied), FakeCudaBackend(), kernels="on")
    produce = Producer(engine.backend.device.driver, Interface)
    image = engine.image(produce(video("sam2")[0]))
    with pytest.raises(runtime.VideoError, match="python -m export.kernels` again, or copy the frame"):
        image.predict(CLICK.points, CLICK.labels)


def test_an_image_is_copied_when_it_is_given(engines):
    """Its memory may be written again by any stream."""
    engine, (frame, other) = engines["sam2"], frames(2, 20, 30)
    memory = np.array(frame)
    engine.backend.device.driver.register(memory, "device")
    image = engine.image(DeviceArray(memory.ctypes.data, memory.shape, memory.dtype, memory))
    memory[...] = other
    wanted = engine.image(frame).predict(CLICK.points, CLICK.labels)
    np.testing.assert_array_equal(image.predict(CLICK.points, CLICK.labels).masks, wanted.masks)


@pytest.mark.parametrize("task", [detected, concepts, live])
def test_sessions_that_are_closed_leave_no_memory_on_the_device(engines, task):
    """Launches that are kept packed do not own the arrays of a session. Recordings of the fake driver do."""
    backend, held = numpy_sam3.FakeCudaNumpyBackend(), []
    engine = runtime.Engine(engines["sam3"].bundle, backend, kernels="on", graphs="off")
    for _ in range(4):
        task(engine, iter(video("sam3")[:5]))
        gc.collect()
        held.append(backend.device.driver.allocated("device"))
    assert held[1] == held[2] == held[3]
