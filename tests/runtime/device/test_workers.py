"""Work side by side on the host: all of it is done, failures are raised, nothing outlives the call; frames that are
computed side by side have the bits of those that are computed in order."""

import os
import sys
import tempfile
import threading
import time
import weakref
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import runtime
from helpers.waiting import PATIENCE
from runtime.bundle.manifest import StageSpec, TensorSpec
from runtime.device.base import Cpu
from runtime.device.workers import SMALL_TENSOR, WorkAhead, Workers, has_small_frames, has_small_objects
from runtime.media.synthetic_clip import Disc, synthetic_clip
from runtime.models.sam2.network import Sam2
from tests.helpers.media import write

NANO = "engines/nano"
FRAMES = synthetic_clip(11, 48, 64, Disc(lambda t: 10 + 3 * t, 24, 9, (220, 40, 60)), (30, 40))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("works", [0, 1, 2, 9])
def test_all_work_is_done(count, works):
    workers, done = Workers(count), []
    workers.run_all([lambda i=i: done.append((i, workers.is_beside)) for i in range(works)])
    assert sorted(done) == [(i, count > 1 and works > 1) for i in range(works)]
    assert not workers.is_beside


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("in_caller", [True, False])
def test_a_failure_is_raised_when_nothing_runs_any_more(error, in_caller):
    workers, caller, running = Workers(2), threading.get_ident(), []
    both = threading.Barrier(2)

    def work():
        running.append(1)
        both.wait(PATIENCE)
        if (threading.get_ident() == caller) == in_caller:
            raise error("broken")
        time.sleep(0.02)
        running.pop()

    with pytest.raises(error, match="broken"):
        workers.run_all([work, work])
    assert len(running) == 1 and not workers.is_beside
    workers.run_all([running.pop])
    workers.run_all([both.wait, both.wait])  # both threads work again


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_forked_process_has_threads_of_its_own():
    workers, both = Workers(2), threading.Barrier(2)
    workers.run_all([lambda: both.wait(PATIENCE)] * 2)
    child = os.fork()
    if not child:
        code = 1
        try:
            meet = threading.Barrier(2)
            workers.run_all([lambda: meet.wait(PATIENCE)] * 2)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("count", [2, 4])
def test_work_ahead_is_done_in_order_or_by_the_caller(count):
    workers, done = Workers(count), []
    ahead = WorkAhead(workers)
    for i in range(7):
        ahead.start(lambda i=i: done.append((i, workers.is_beside)))
    for i in range(7):
        ahead.finish_first()
        assert (i, True) in done and len(ahead) == 6 - i
    assert sorted(done) == [(i, True) for i in range(7)] and not workers.is_beside


def test_the_caller_runs_what_the_other_thread_has_not_begun():
    workers, caller, ran = Workers(2), threading.get_ident(), []
    ahead, begun, go_on = WorkAhead(workers), threading.Event(), threading.Event()

    def first():
        begun.set()
        assert go_on.wait(30)

    ahead.start(first)
    assert begun.wait(30)
    ahead.start(lambda: (ran.append(threading.get_ident()), go_on.set()))
    ahead.finish_first()
    assert ran == [caller]
    workers.run_all([lambda: ran.append(0)] * 3)
    ahead.finish_first()
    assert ran == [caller, 0, 0, 0]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_ahead_is_raised_when_it_is_due(error):
    ahead = WorkAhead(Workers(2))

    def fail():
        raise error("broken")

    ahead.start(lambda: None)
    ahead.start(fail)
    ahead.finish_first()
    with pytest.raises(error, match="broken"):
        ahead.finish_first()
    ahead.drop()


def test_dropped_work_ahead_does_not_begin_and_is_waited_for():
    workers, done = Workers(2), []
    ahead, begun = WorkAhead(workers), threading.Event()

    def first():
        begun.set()
        time.sleep(0.02)
        done.append(1)

    ahead.start(first)
    assert begun.wait(30)
    ahead.start(lambda: done.append(2))
    ahead.drop()
    assert done == [1] and not len(ahead)
    workers.run_all([lambda: None] * 2)
    assert done == [1]


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_work_ahead_is_done_in_a_forked_process():
    ahead, begun, go_on = WorkAhead(Workers(2)), threading.Event(), threading.Event()

    def work():
        begun.set()
        go_on.wait(30)

    for _ in range(2):
        ahead.start(work)
    assert begun.wait(30)
    child = os.fork()
    if not child:
        code = 1
        try:
            go_on.set()
            ahead.finish_first()
            ahead.finish_first()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go_on.set()
    ahead.drop()


@pytest.mark.parametrize(
    ("shapes", "small"),
    [
        ([("frames", 3, 128, 128), ("frames", 64, 96)], True),
        ([("frames", SMALL_TENSOR), ("frames", 1)], True),
        ([("frames", SMALL_TENSOR + 1), ("frames", 1)], False),
        ([("frames", 1), ("frames", 3, 1024, 1024)], False),
        ([("frames", 8, 8), ("tokens", 8)], False),  # frames meet a text, and each other
        ([(1, 8), (1, 8)], False),
    ],
)
def test_small_frames_that_never_mix(shapes, small):
    taken, given = (TensorSpec(f"tensor_{i}", "float16", shape) for i, shape in enumerate(shapes))
    assert has_small_frames(StageSpec("stage", (taken,), (given,))) is small


@pytest.mark.parametrize(
    ("shape", "attention", "small"),
    [
        (("objects", 128, 128), False, True),
        (("objects", 1024, 1024), False, False),
        (("objects", 128, 128), True, False),
        (("tokens", 1024), False, False),  # little data, large weights
        (("frames", 128, 128), False, False),
    ],
)
def test_small_objects(shape, attention, small):
    tensor = TensorSpec("tensor", "float32", shape)
    assert has_small_objects(StageSpec("stage", (tensor,), (tensor,), attention=attention)) is small


CLICK = runtime.Points([[30, 24]], [1])


def sentences(*starts):
    return [runtime.Text(tokens=[0, *(start + 13 * j for j in range(6)), 2]) for start in starts]


def whole_clips(engine):
    with engine.session(sentences(3, 10), logits=True) as session:
        return list(session.stream(FRAMES))


def one_array(engine):
    with engine.session(sentences(3), logits=True, window=4) as session:
        return list(session.stream(np.stack(FRAMES)))


def a_loop_that_is_left(engine):
    """Frames that were expected do not come: others do."""
    with engine.session(sentences(3), logits=True, window=3) as session:
        first = [next(session.stream(FRAMES[:9]))]
        return first + list(session.stream(FRAMES[4:]))


@cache
def encoded_video():
    """Two encodings of the same frames may differ."""
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / "clip.mp4", np.stack(FRAMES)).read_bytes()


def video_file(engine):
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "clip.mp4").write_bytes(encoded_video())
        with engine.session(sentences(3, 10), logits=True, window=4) as session, runtime.open_video(path) as video:
            found = list(session.stream(video))
        with engine.session(sentences(3, 10), logits=True, window=4) as session:
            return found + list(session.stream(path))


def corrected_frames(engine):
    """Prompts between results, whose frames are not those that were expected."""
    with engine.video(FRAMES, logits=True) as video:
        video.add_points(0, 1, [(0.3, 0.5)], [1], normalized=True)
        found = []
        for result in video.propagate():
            found.append(result)
            if result.frame_index in (2, 6):
                found.append(video.add_points(9, 1, [(0.4, 0.5)], [1], normalized=True))
        video.add_points(4, 2, [(0.6, 0.5)], [1], normalized=True)
        return found + list(video.propagate(start_frame=3))


def short_clips(engine):
    """Push one array that is written over after each call, in clips of an odd number of frames."""
    frame, results = np.empty_like(FRAMES[0]), []
    with engine.session(sentences(3), logits=True, window=3) as session:
        for image in FRAMES[:8]:
            frame[:] = image
            results += session.push(frame)
        frame[:] = 0
        return results + session.flush()


def sentences_that_change(engine):
    results = []
    with engine.session(sentences(3), logits=True, window=4) as session:
        for number, frame in enumerate(FRAMES):
            if number == 1:
                session.add(*sentences(10))
            if number == 6:
                session.remove(1)
            results += session.push(frame)
        return results + session.flush()


def low_latency(engine):
    with engine.session(sentences(3), logits=True, window=3, latency="low") as session:
        return [result for frame in FRAMES[:5] for result in session.push(frame)]


def low_latency_of_known_frames(engine):
    with engine.session(sentences(3, 10), logits=True, window=3, latency="low") as session:
        first = next(session.stream(FRAMES))
        return [first, *session.stream(FRAMES[6:])]


def clicks_on_known_frames(engine):
    """One list of frames is left for another; objects come and go; the last frame is corrected."""
    with engine.live(logits=True) as session:
        results = session.stream(FRAMES, {1: {1: CLICK}, 4: {1: CLICK, 2: runtime.Box([10, 10, 50, 40])}})
        found = [next(results) for _ in range(6)]
        session.remove(1)
        found.append(session.correct({2: CLICK}))
        found += session.stream(FRAMES[3:9], {7: {3: CLICK}})
        frame = np.empty_like(FRAMES[0])
        for image in FRAMES[:3]:
            frame[:] = image
            found += session.push(frame)
        return found


def clicks_in_a_video_file(engine):
    with tempfile.TemporaryDirectory() as folder, engine.live(logits=True) as session:
        (path := Path(folder) / "clip.mp4").write_bytes(encoded_video())
        return list(session.stream(path, {0: {obj: runtime.Points([[9 * obj, 20]], [1]) for obj in range(4)}}))


def known_frames(engine):
    with engine.video(FRAMES, logits=True) as video:
        for obj, x in ((1, 0.3), (2, 0.6)):
            video.add_points(3, obj, [(x, 0.5)], [1], normalized=True)
        forward = list(video.propagate(max_frames=6))
        video.add_points(5, 1, [(0.4, 0.5)], [1], normalized=True)
        return [*forward, *video.propagate(start_frame=8, reverse=True)]


def load(cores):
    """Stages have one thread in any case: old versions of ONNX Runtime give other bits with others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.backends.ort.OrtBackend._create_device", lambda backend: Cpu(cores))
        engine = runtime.load(NANO, backend="ort", threads=1, verify=False)
    assert engine.backend.device.workers.count == cores
    return engine


@pytest.fixture(scope="module")
def in_order():
    with load(1) as engine:
        yield engine


@pytest.fixture(scope="module", params=[2, 3])
def side_by_side(request):
    with load(request.param) as engine:
        yield engine


@pytest.mark.parametrize(
    "follow",
    [
        whole_clips,
        one_array,
        a_loop_that_is_left,
        video_file,
        short_clips,
        sentences_that_change,
        low_latency,
        low_latency_of_known_frames,
        clicks_on_known_frames,
        clicks_in_a_video_file,
        known_frames,
        corrected_frames,
    ],
    ids=lambda f: f.__name__,
)
def test_frames_side_by_side_have_the_same_bits(in_order, side_by_side, follow):
    found, want = follow(side_by_side), follow(in_order)
    assert len(found) == len(want) > 0
    for a, b in zip(found, want, strict=True):
        assert a.frame_index == b.frame_index and a.object_ids == b.object_ids
        for name in ("masks", "scores", "low_res_logits"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_instrumented_stages_run_in_order(in_order):
    with runtime.load(NANO, backend="ort", verify=False) as engine:
        engine.instrument(lambda stage: stage)
        assert engine.backend.device.workers.count == 1


def test_a_frame_that_cannot_be_read_ahead_stops_the_video_when_it_is_due(monkeypatch):
    monkeypatch.setattr("runtime.backends.ort.count_cores", lambda: 2)
    broken = [*FRAMES[:5], FRAMES[5][:, :10], *FRAMES[6:]]
    with runtime.load(NANO, backend="ort", verify=False) as engine, engine.video(broken) as video:
        video.add_points(0, 1, [(0.3, 0.5)], [1], normalized=True)
        shown = []
        with pytest.raises(runtime.VideoError, match="frame 5"):
            for result in video.propagate():
                shown.append(result.frame_index)
        assert shown == [0, 1, 2, 3, 4]


def test_a_frame_that_fails_ahead_is_refused_when_it_is_due(monkeypatch):
    """Frames before it have results, and it may be pushed again."""
    monkeypatch.setattr("runtime.backends.ort.count_cores", lambda: 2)
    with runtime.load(NANO, backend="ort", verify=False) as engine, engine.live() as session:
        encode, broken = Sam2.encode_image, True

        def fail(self, frame, *args):
            if broken and frame is FRAMES[3]:
                raise runtime.InternalError("image_encoder failed")
            encode(self, frame, *args)

        monkeypatch.setattr(Sam2, "encode_image", fail)
        shown = []
        with pytest.raises(runtime.InternalError, match="image_encoder failed"):
            for result in session.stream(FRAMES, {0: {1: CLICK}}):
                shown.append(result.frame_index)
        assert shown == [0, 1, 2]
        broken = False
        assert [result.frame_index for result in session.stream(FRAMES[3:])] == list(range(3, len(FRAMES)))


def test_a_stream_of_clicks_that_is_left_keeps_no_reader(monkeypatch, tmp_path):
    monkeypatch.setattr("runtime.backends.ort.count_cores", lambda: 2)
    path = write(tmp_path / "clip.mp4", np.stack(FRAMES))
    with runtime.load(NANO, backend="ort", verify=False) as engine, engine.live() as session:
        video = runtime.open_video(path)
        for prompts in ({}, {1: {1: CLICK}}):
            next(session.stream(video, prompts))
        alive = weakref.ref(video)
        del video
        assert alive() is None
