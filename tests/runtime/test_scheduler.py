"""Scheduler: masks of interleaved streams, shares of the engine, bounds, errors, ends."""

import gc
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import runtime
from helpers import numpy_sam3
from helpers import toy_samwise as toy
from helpers.fake_cuda import FakeCudaBackend
from helpers.numpy_sam3 import picture
from helpers.waiting import PATIENCE, wait_until
from runtime import Box, Concept, Mask, Outcome, Points, Scheduler, Text
from runtime.backends.ort import OrtBackend
from runtime.bundle.bundle import choose

NANO = Path(__file__).resolve().parents[2] / "engines" / "nano"
A, B = Text(tokens=[0, 5, 2]), Text(tokens=[0, 9, 7, 2])
CLICK = Points([(10, 8)], [1])


def clip(seed, count=9, height=20, width=30):
    return np.random.default_rng(seed).integers(40, 255, (count, height, width, 3), dtype=np.uint8)


class Inbox:
    """Deliveries of one stream."""

    def __init__(self):
        self.all, self._ended = [], threading.Event()

    def __call__(self, delivery):
        self.all.append(delivery)
        if delivery.outcome is Outcome.END:
            self._ended.set()

    def wait(self):
        assert self._ended.wait(PATIENCE), "the stream does not end"
        return self

    def of(self, outcome):
        return [d for d in self.all if d.outcome is outcome]

    @property
    def tags(self):
        return [d.tag for d in self.of(Outcome.DONE)]

    @property
    def masks(self):
        return [d.result.masks for d in self.of(Outcome.DONE)]


class Gate:
    """A stage that waits where it is closed, and records which thread called it."""

    def __init__(self, stage):
        self.stage, self.spec = stage, stage.spec
        self.open, self.entered, self.threads = threading.Event(), threading.Event(), set()
        self.open.set()

    def run(self, **arrays):
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.open.wait(PATIENCE)
        self.stage.run(**arrays)

    def close(self):
        self.open.clear()
        self.entered.clear()


@pytest.fixture
def text_engine(toy):
    return runtime.load(toy, max_objects=8)


@pytest.fixture
def click_engine(toy_sam2_bundle):
    return runtime.load(toy_sam2_bundle, max_objects=8)


def put_all(stream, frames, prompts=None, start=0):
    """Put frames, waiting where there is no room; their tags are their numbers."""
    for number, frame in enumerate(frames, start):
        while not stream.put(frame, (prompts or {}).get(number), number):
            time.sleep(1e-3)


def assert_equal_masks(inbox, expected, tolerance=1e-5):
    """`tolerance` of numbers: rows of the toys' memory are aligned differently, and so are the sums of their parts."""
    assert inbox.tags == list(range(len(expected)))
    for delivery, alone in zip(inbox.of(Outcome.DONE), expected, strict=True):
        for name in ("masks", "boxes"):
            np.testing.assert_array_equal(getattr(delivery.result, name), getattr(alone, name))
        assert (delivery.result.ious is None) == (alone.ious is None)
        for name in ("scores", "ious") if alone.ious is not None else ("scores",):
            np.testing.assert_allclose(getattr(delivery.result, name), getattr(alone, name), tolerance, tolerance)
        assert delivery.result.frame_index == alone.frame_index and delivery.result.time is None


def sources(count):
    """Sentences and clips of `count` streams: other sizes, lengths, and windows."""
    shapes = [(9, 20, 30), (5, 18, 24), (12, 20, 30), (1, 24, 20)]
    return [
        ([[A], [B], [A, B], [B, A, A]][i % 4], clip(i, *shapes[i % 4]), {"window": [4, 3, 2, 4][i % 4]})
        for i in range(count)
    ]


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("device", ["cpu", "fake cuda"])
def test_interleaved_sentences_give_the_masks_of_each_alone(toy, device, batch):
    engine = runtime.Engine(choose(toy), OrtBackend() if device == "cpu" else FakeCudaBackend(), 16)
    streams, alone = sources(4), []
    for prompts, frames, options in streams:
        with engine.session(prompts, **options) as session:
            alone.append(list(session.stream(frames)))
    with Scheduler(engine, batch=batch, batch_wait=5.0) as scheduler:
        inboxes = [Inbox() for _ in streams]
        opened = [scheduler.open(p, box, max_pending=3, **o) for (p, _, o), box in zip(streams, inboxes, strict=True)]
        for number in range(12):
            for stream, (_, frames, _) in zip(opened, streams, strict=True):
                put_all(stream, frames[number : number + 1], start=number)
        for stream in opened:
            stream.end()
        for inbox, expected in zip(inboxes, alone, strict=True):
            assert_equal_masks(inbox.wait(), expected)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("device", ["cpu", "fake cuda"])
def test_interleaved_clicks_and_corrections_give_the_masks_of_each_alone(toy_sam2_bundle, device, batch):
    click_engine = runtime.Engine(choose(toy_sam2_bundle), OrtBackend() if device == "cpu" else FakeCudaBackend(), 8)
    prompts = [{0: {1: CLICK}, 3: {2: Box((3, 3, 12, 12))}}, {1: {7: CLICK}}, {0: {1: Box((2, 2, 20, 15)), 2: CLICK}}]
    fix = {1: Points([(4, 4)], [0])}
    alone = []
    for i, given in enumerate(prompts):
        with click_engine.live() as live:
            before = [live.push(frame, given.get(n))[0] for n, frame in enumerate(clip(i, 5))]
            corrected = live.correct(fix) if i == 0 else None
            alone.append((before + [live.push(frame)[0] for frame in clip(i + 9, 4)], corrected))
    with Scheduler(click_engine, batch=batch, batch_wait=5.0) as scheduler:
        inboxes = [Inbox() for _ in prompts]
        opened = [scheduler.open(None, inbox) for inbox in inboxes]
        corrections = []
        for i, stream in enumerate(opened):
            put_all(stream, clip(i, 5), prompts[i])
            if i == 0:
                corrections.append(stream.call(lambda session: session.correct(fix)))
            put_all(stream, clip(i + 9, 4), start=5)
            stream.end()
        for inbox, (expected, corrected) in zip(inboxes, alone, strict=True):
            assert_equal_masks(inbox.wait(), expected)
            if corrected is not None:
                np.testing.assert_array_equal(corrections[0].result().masks, corrected.masks)


def concepts_of_streams():
    """Prompts, frames and options of streams of concepts, whose objects come, move and go."""
    red, green = Concept(tokens=[1]), Concept(tokens=[2])
    moving = [picture(n // 6 % 4, 3) for n in range(20)]
    both = [np.maximum(picture(0, channel=0), picture(*[1, 2][: n // 5], channel=1)) for n in range(12)]
    large = [picture(*range(n % 3), size=(36, 50)) for n in range(7)]
    return [
        ([red], moving, {}),
        ([green, red], both, {"temporal_disambiguation": False}),
        ([red], large, {"temporal_disambiguation": False, "detect_every": 2}),
        ([green], [np.full((24, 40, 3), 3, np.uint8)] * 3, {}),
    ]


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("backend", [numpy_sam3.NumpyBackend, numpy_sam3.FakeCudaNumpyBackend])
def test_interleaved_concepts_give_the_masks_of_each_alone(numpy_sam3_bundle, backend, batch):
    """With a concept that is added and a correction between the frames of one of them."""
    engine, streams = runtime.Engine(choose(numpy_sam3_bundle), backend(), 16), concepts_of_streams()

    def changes(session):
        return session.add_concept(Concept(tokens=[3])), session.correct({0: Points([(10, 5)], [1])}).masks

    alone, changed = [], []
    for i, (prompts, frames, options) in enumerate(streams):
        with engine.session(prompts, **options) as session:
            results = [r for frame in frames[:4] for r in session.push(frame)]
            changed.append(changes(session) if i == 1 else None)
            alone.append([*results, *session.stream(frames[4:])])
    assert [max(len(r.object_ids) for r in results) for results in alone] == [2, 3, 2, 0]
    with Scheduler(engine, batch=batch) as scheduler:
        inboxes, calls = [Inbox() for _ in streams], []
        opened = [scheduler.open(p, box, max_pending=3, **o) for (p, _, o), box in zip(streams, inboxes, strict=True)]
        for number in range(20):
            for i, (stream, (_, frames, _)) in enumerate(zip(opened, streams, strict=True)):
                if number == 4 and i == 1:
                    calls.append(stream.call(changes))
                put_all(stream, frames[number : number + 1], start=number)
        for stream in opened:
            stream.end()
        for inbox, expected in zip(inboxes, alone, strict=True):
            assert_equal_masks(inbox.wait(), expected)
            for found, one in zip(inbox.of(Outcome.DONE), expected, strict=True):
                assert (found.result.object_ids, found.result.prompt_ids) == (one.object_ids, one.prompt_ids)
    (number, masks), (expected_number, expected_masks) = calls[0].result(), changed[1]
    assert number == expected_number
    np.testing.assert_array_equal(masks, expected_masks)


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_frames_of_several_streams_are_decoded_in_one_call(toy, batch):
    """As many as may, of all that are equally far; each stage runs once for all of them."""
    engine = runtime.load(toy, max_objects=16)
    sizes = {}

    def wrap(stage):
        def run(**arrays):
            sizes.setdefault(stage.spec.name, []).append(len(next(iter(arrays.values()))))
            stage.run(**arrays)

        return SimpleNamespace(spec=stage.spec, run=run)

    engine.instrument(wrap)
    with Scheduler(engine, batch=batch, batch_wait=5.0) as scheduler:
        boxes, started = [Inbox() for _ in range(4)], threading.Event()
        streams = [scheduler.open([A], box) for box in boxes]
        scheduler.submit(lambda _: started.wait(PATIENCE))
        for i, stream in enumerate(streams):
            put_all(stream, clip(i, 8))
        started.set()
        assert scheduler.drain(PATIENCE)
    assert all(box.tags == list(range(8)) for box in boxes)
    together = min(batch, engine.bundle.manifest.bounds["objects"][1])
    assert together == min(batch, 2) and sum(sizes["memory_attention"]) == 7 * 4
    full = sizes["memory_attention"].count(together)
    assert full * together >= 20, "which pairs are formed depends on measured time; one may be left over"
    assert len(sizes["hiera_0"]) == 32, "one by one: a frame fills the device"


@pytest.mark.parametrize("batch", [1, 16])
def test_objects_of_several_live_streams_are_decoded_in_one_call(click_engine, batch):
    sizes = {}

    def wrap(stage):
        def run(**arrays):
            rows = arrays.get("map_index", next(iter(arrays.values())))
            sizes.setdefault(stage.spec.name, []).append(len(rows))
            stage.run(**arrays)

        return SimpleNamespace(spec=stage.spec, run=run)

    with click_engine.live() as live:
        alone = [live.push(frame, {1: CLICK} if n == 0 else None)[0] for n, frame in enumerate(clip(0, 4))]
    click_engine.instrument(wrap)
    with Scheduler(click_engine, batch=batch, batch_wait=5.0) as scheduler:
        boxes, started = [Inbox() for _ in range(3)], threading.Event()
        streams = [scheduler.open(None, box) for box in boxes]
        scheduler.submit(lambda _: started.wait(PATIENCE))
        for stream in streams:
            put_all(stream, clip(0, 4), {0: {1: CLICK}})
        started.set()
        assert scheduler.drain(PATIENCE)
    for box in boxes:
        assert_equal_masks(box, alone)
    network = click_engine.networks.prompt_video
    together = min(3, batch, network.max_batch)
    for stage in ("prompt_decoder", "prompt_memory_encoder"):
        assert max(sizes[stage]) == together and sum(sizes[stage]) == 12
    assert len(sizes["image_encoder"]) == 12


@pytest.mark.parametrize("ending", ["dropped", "another call", "closed"])
def test_a_live_frame_whose_steps_are_not_all_taken_is_left_out(click_engine, ending):
    frames = clip(0, 5)
    pool = click_engine.live()._pool
    with click_engine.live() as live:
        alone = [live.push(frame, {1: CLICK} if n == 0 else None)[0] for n, frame in enumerate(frames)]
    for steps_taken in (1, 2, 3):
        live = click_engine.live()
        got = [live.push(frames[0], {1: CLICK})[0]]
        steps = live.feed(clip(9, 1)[0], {2: CLICK})
        for _ in range(steps_taken):
            work = next(steps)
        if ending == "dropped":
            del steps
        elif ending == "closed":
            live.close()
            with pytest.raises(runtime.UserError):
                next(steps)
            assert pool.in_use == 0
            continue
        got += [live.push(frame)[0] for frame in frames[1:]]
        if work is not None:
            work.run_together([])  # what a scheduler may do late: it touches nothing
        if ending == "another call":
            with pytest.raises(runtime.UserError, match="frame 1 was left out"):
                next(steps)
        for a, b in zip(got, alone, strict=True):
            np.testing.assert_array_equal(a.masks, b.masks)
            assert a.object_ids == b.object_ids == (1,)
        live.close()
    assert pool.in_use == 0


def test_an_error_of_frames_together_is_that_of_each_alone(toy):
    engine = runtime.load(toy, max_objects=16)
    with engine.session([A]) as session:
        alone = list(session.stream(iter(clip(0, 8))))

    def wrap(stage):
        def run(**arrays):
            if stage.spec.name == "memory_attention" and len(arrays["map_index"]) > 1:
                raise runtime.InternalError("out of memory")
            stage.run(**arrays)

        return SimpleNamespace(spec=stage.spec, run=run)

    engine.instrument(wrap)
    with Scheduler(engine, batch=4, batch_wait=5.0) as scheduler:
        boxes = [Inbox() for _ in range(3)]
        for box in boxes:
            put_all(scheduler.open([A], box), clip(0, 8))
        assert scheduler.drain(PATIENCE)
    for box in boxes:
        assert_equal_masks(box, alone)


@pytest.mark.parametrize("batch", [1, 16])
def test_sentences_beside_clicks_give_the_masks_of_each_alone(batch):
    engine = runtime.load(NANO, threads=1)
    frames = [clip(i, 9, 48, 64) for i in range(3)]
    sentences = [[Text("the red car")], [Text("the dog on the left"), Text("the moon")]]
    alone = []
    for prompts, source in zip(sentences, frames, strict=False):
        with engine.session(prompts) as session:
            alone.append(list(session.stream(iter(source))))
    with engine.live() as live:
        alone.append([live.push(frame, {1: CLICK} if n == 0 else None)[0] for n, frame in enumerate(frames[2])])
    with Scheduler(engine, batch=batch, batch_wait=5.0) as scheduler:
        boxes = [Inbox() for _ in frames]
        streams = [scheduler.open(p, box) for p, box in zip((*sentences, None), boxes, strict=True)]
        for number in range(9):
            for stream, source in zip(streams, frames, strict=True):
                put_all(stream, source[number : number + 1], {0: {1: CLICK}} if stream is streams[2] else None, number)
        for stream in streams:
            stream.end()
        for box, expected in zip(boxes, alone, strict=True):  # some versions round products of several rows otherwise
            assert_equal_masks(box.wait(), expected, tolerance=0 if batch == 1 else 1e-5)


def test_only_the_thread_of_the_scheduler_computes(text_engine):
    gates = []
    text_engine.instrument(lambda stage: gates.append(Gate(stage)) or gates[-1])
    with Scheduler(text_engine) as scheduler:
        inbox = Inbox()
        stream = scheduler.open([A], inbox)
        put_all(stream, clip(0))
        stream.end()
        inbox.wait()
        scheduler.submit(lambda engine: engine.image(clip(0)[0]).refer([A])).result(PATIENCE)
    assert set.union(*(gate.threads for gate in gates)) == {"samwise-scheduler"}


@pytest.fixture
def gated(click_engine):
    """An engine whose image encoder can be stopped, and its scheduler."""
    gates = {}

    def wrap(stage):
        return gates.setdefault(stage.spec.name, Gate(stage))

    click_engine.instrument(wrap)
    with Scheduler(click_engine, max_streams=3) as scheduler:
        gate = gates["image_encoder"]
        yield scheduler, gate
        gate.open.set()


def busy(scheduler, gate):
    """Keep the scheduler in the first step of a stream; returns the stream."""
    gate.close()
    stream = scheduler.open(None, Inbox())
    stream.put(clip(99, 1)[0], {1: CLICK})
    assert gate.entered.wait(PATIENCE)
    return stream


def test_a_stream_that_keeps_the_latest_drops_frames_but_no_click(gated):
    scheduler, gate = gated
    inbox = Inbox()
    stream = scheduler.open(None, inbox, keep="latest", max_pending=3)
    busy(scheduler, gate)
    put_all(stream, clip(0, 12), {2: {1: CLICK}, 7: {2: CLICK}})
    assert stream.num_waiting == 3
    gate.open.set()
    stream.end()
    inbox.wait()
    assert inbox.tags == [2, 7, 11] and inbox.of(Outcome.DONE)[-1].result.object_ids == (1, 2)
    assert sorted(d.tag for d in inbox.of(Outcome.DROPPED)) == [0, 1, 3, 4, 5, 6, 8, 9, 10]
    assert (stream.num_done, stream.num_dropped) == (3, 9)


def test_a_stream_full_of_clicks_refuses_rather_than_lose_one(gated):
    scheduler, gate = gated
    inbox = Inbox()
    stream = scheduler.open(None, inbox, keep="latest", max_pending=2)
    busy(scheduler, gate)
    frames = clip(0, 3)
    assert [stream.put(frame, {1: CLICK}, n) for n, frame in enumerate(frames)] == [True, True, False]


@pytest.mark.parametrize("bound", [{"max_pending": 2}, {"max_pending_bytes": 2 * 20 * 30 * 3}])
def test_a_stream_that_keeps_all_refuses_what_has_no_room(gated, bound):
    scheduler, gate = gated
    inbox = Inbox()
    stream = scheduler.open(None, inbox, **bound)
    busy(scheduler, gate)
    taken = [stream.put(frame, tag=n) for n, frame in enumerate(clip(0, 5))]
    assert taken == [True, True, False, False, False]
    gate.open.set()
    stream.end()
    assert inbox.wait().tags == [0, 1] and not inbox.of(Outcome.DROPPED)


def test_masks_of_prompts_count_as_bytes_that_wait(gated):
    scheduler, gate = gated
    stream = scheduler.open(None, Inbox(), max_pending_bytes=2 * 20 * 30 * (3 + 1))
    busy(scheduler, gate)
    given = {1: Mask(np.eye(20, 30, dtype=bool))}
    assert [stream.put(frame, given) for frame in clip(0, 3)] == [True, True, False]


def test_a_frame_larger_than_the_bound_is_taken_alone(gated):
    scheduler, gate = gated
    stream = scheduler.open(None, Inbox(), max_pending_bytes=10)
    busy(scheduler, gate)
    assert [stream.put(frame) for frame in clip(0, 2)] == [True, False]


def test_frames_past_their_deadline_are_dropped_but_no_click(gated):
    scheduler, gate = gated
    inbox = Inbox()
    stream = scheduler.open(None, inbox, deadline=0.05)
    busy(scheduler, gate)
    put_all(stream, clip(0, 4), {1: {1: CLICK}})
    time.sleep(0.1)
    gate.open.set()
    stream.end()
    assert inbox.wait().tags == [1] and len(inbox.of(Outcome.DROPPED)) == 3


def test_room_for_streams_and_objects_is_refused_at_once(gated):
    scheduler, gate = gated
    boxes = [Inbox(), Inbox()]
    first = scheduler.open(None, boxes[0])
    busy(scheduler, gate)
    second = scheduler.open
    gate.open.set()
    second = second(None, boxes[1])
    gate.close()
    second.put(clip(5, 1)[0], {1: CLICK})
    assert gate.entered.wait(PATIENCE)
    with pytest.raises(runtime.Busy, match="all 3 streams are in use"):
        scheduler.open(None, Inbox())  # the engine is in a step: the answer does not wait for it
    gate.open.set()
    first.end()
    boxes[0].wait()
    with pytest.raises(runtime.UserError, match="ended"):
        first.put(clip(0, 1)[0])


def test_objects_without_room_are_refused(text_engine):
    with Scheduler(text_engine) as scheduler:
        stream = scheduler.open([A] * 8, Inbox())
        with pytest.raises(runtime.Busy, match="no room for 1 more"):
            scheduler.open([A], Inbox())
        assert scheduler.streams == (stream,)


def test_streams_of_a_rate_are_admitted_by_measured_load(click_engine):
    class Slow(Gate):
        def run(self, **arrays):
            time.sleep(0.01)
            self.stage.run(**arrays)

    click_engine.instrument(lambda stage: Slow(stage) if stage.spec.name == "image_encoder" else stage)
    with Scheduler(click_engine) as scheduler:
        inbox = Inbox()
        stream = scheduler.open(None, inbox, rate=40)  # nothing is measured yet
        stream.put(clip(0, 1)[0], {1: CLICK})
        while not stream.num_done:
            time.sleep(1e-3)
        assert scheduler.load > 0.4
        with pytest.raises(runtime.Busy, match="no time for 60 more frames a second"):
            scheduler.open(None, Inbox(), rate=60)
        scheduler.open(None, Inbox())  # without a rate it takes what is left


def shares(engine, **options):
    """Frames done of two streams with full queues, when the first is at its end."""
    order = []
    with Scheduler(engine) as scheduler:
        boxes = {name: Inbox() for name in options}
        streams = {
            name: scheduler.open([A], lambda d, name=name: (order.append(name), boxes[name](d)), max_pending=99, **more)
            for name, more in options.items()
        }
        done = threading.Event()
        scheduler.submit(lambda _: done.wait(PATIENCE))  # all frames are there before the first step
        for stream in streams.values():
            put_all(stream, clip(0, 40))
            stream.end()
        done.set()
        for box in boxes.values():
            box.wait()
    first = order[: order.index("a", len(order) - order[::-1].index("a") - 1)]
    return first.count("a"), first.count("b")


def test_engine_time_is_shared_by_weight(text_engine):
    class Steady(Gate):
        def run(self, **arrays):
            time.sleep(0.002)  # as long for all, whatever else the machine does
            self.stage.run(**arrays)

    text_engine.instrument(Steady)
    a, b = shares(text_engine, a={"weight": 1.0}, b={"weight": 1.0})
    assert abs(a - b) <= 8, "one clip"
    a, b = shares(text_engine, a={"weight": 3.0}, b={"weight": 1.0})
    assert a == 40 and 4 <= b <= 24, "a third, in clips of four"


def test_a_stream_that_was_idle_has_no_credit(gated):
    scheduler, _ = gated
    order = []
    late, early = (scheduler.open(None, lambda d, n=n: order.append(n), max_pending=99) for n in ("late", "early"))
    put_all(early, clip(0, 20), {0: {1: CLICK}})
    while early.num_done < 20:
        time.sleep(1e-3)
    assert early.engine_seconds > late.engine_seconds == 0
    order.clear()
    scheduler.submit(lambda _: (put_all(early, clip(1, 10)), put_all(late, clip(2, 10), {0: {1: CLICK}})))
    while len(order) < 20:
        time.sleep(1e-3)
    assert order[:10] != ["late"] * 10, "the one that computed before has its share"


def test_encoding_of_a_clip_lets_others_compute_between_its_stages(text_engine):
    """While the clip of one stream is encoded, another stream's frames are taken and decoded."""
    calls = []

    class Recorded(Gate):
        def run(self, **arrays):
            calls.append(self.spec.name)
            self.stage.run(**arrays)

    text_engine.instrument(Recorded)
    started = threading.Event()
    with Scheduler(text_engine) as scheduler:
        boxes = [Inbox(), Inbox()]
        streams = [scheduler.open([A, B], boxes[0], window=4), scheduler.open([A], boxes[1], window=1)]
        scheduler.submit(lambda _: started.wait(PATIENCE))
        for stream, frames in zip(streams, (clip(0, 4), clip(1, 8)), strict=True):
            put_all(stream, frames)
            stream.end()
        calls.clear()
        started.set()
        for box in boxes:
            box.wait()
    first, last = calls.index("adapter_0"), len(calls) - calls[::-1].index("adapter_2")
    assert "hiera_0" in calls[first:last] and "mask_decoder" in calls[first:last]


def test_an_error_of_a_frame_ends_neither_its_stream_nor_others(click_engine):
    good = clip(0, 4)
    with click_engine.live() as live:
        alone = [live.push(frame, {1: CLICK} if n == 0 else None)[0] for n, frame in enumerate(good)]
    bad = [(clip(1, 1, 10, 10)[0], None), (good[1].astype(np.float32), None), (good[1], {2: Box((40, 40, 50, 50))})]
    with Scheduler(click_engine) as scheduler:
        boxes = [Inbox(), Inbox()]
        faulty, other = (scheduler.open(None, box) for box in boxes)
        for stream in (faulty, other):
            stream.put(good[0], {1: CLICK}, 0)
        for n, (frame, prompts) in enumerate(bad):
            faulty.put(frame, prompts, f"bad {n}")
        for stream in (faulty, other):
            put_all(stream, good[1:], start=1)
            stream.end()
        for box in boxes:
            assert_equal_masks(box.wait(), alone)
    failed = boxes[0].of(Outcome.FAILED)
    assert [d.tag for d in failed] == ["bad 0", "bad 1", "bad 2"] and faulty.num_failed == 3
    assert all(isinstance(d.error, runtime.UserError) for d in failed)
    assert boxes[0].all[-1].error is None


def test_a_fault_of_the_engine_ends_the_stream_whose_frame_it_was(text_engine):
    class Breaks(Gate):
        broken = False

        def run(self, **arrays):
            if self.broken:
                raise runtime.InternalError("out of memory")
            self.stage.run(**arrays)

    stages = {}
    text_engine.instrument(lambda stage: stages.setdefault(stage.spec.name, Breaks(stage)))
    with text_engine.session([A], window=4) as session:
        alone = list(session.stream(iter(clip(1, 8))))
    with Scheduler(text_engine) as scheduler:
        boxes = [Inbox(), Inbox()]
        faulty, other = (scheduler.open([A], box, window=4) for box in boxes)
        put_all(faulty, clip(0, 3))
        put_all(other, clip(1, 3))

        def breaks():
            stages["adapter_1"].broken = True
            faulty.put(clip(0, 1)[0])

        scheduler.submit(lambda _: breaks()).result(PATIENCE)
        boxes[0].wait()
        stages["adapter_1"].broken = False
        put_all(other, clip(1, 8)[3:], start=3)
        other.end()
        assert_equal_masks(boxes[1].wait(), alone)
    assert isinstance(boxes[0].all[-1].error, runtime.InternalError) and not boxes[0].of(Outcome.DONE)


def test_a_delivery_that_fails_ends_its_stream_only(click_engine, caplog):
    def fails(delivery):
        raise ValueError("the socket is gone")

    with Scheduler(click_engine) as scheduler:
        inbox = Inbox()
        broken, good = scheduler.open(None, fails), scheduler.open(None, inbox)
        put_all(broken, clip(0, 3), {0: {1: CLICK}})
        put_all(good, clip(0, 3), {0: {1: CLICK}})
        good.end()
        assert inbox.wait().tags == [0, 1, 2]
        while broken in scheduler.streams:
            time.sleep(1e-3)
    assert "its delivery failed" in caplog.text and broken.num_done == 1


def test_cancel_hands_out_at_most_one_more_frame_and_frees_the_objects(text_engine):
    pool = text_engine.networks["samwise"].maskmem_pool
    with Scheduler(text_engine) as scheduler:
        inbox, started = Inbox(), threading.Event()
        stream = scheduler.open([A], inbox, max_pending=99)
        scheduler.submit(lambda _: started.wait(PATIENCE))
        put_all(stream, clip(0, 40))
        future = stream.call(lambda session: session.object_ids)
        started.set()
        while not inbox.all:
            time.sleep(1e-4)
        stream.cancel()
        inbox.wait()
        done, dropped = len(inbox.of(Outcome.DONE)), len(inbox.of(Outcome.DROPPED))
        assert dropped and done + dropped <= 40 and future.cancelled()
        assert pool.in_use == 0 and scheduler.streams == ()


def test_a_stream_that_is_cancelled_while_its_clip_is_encoded_stops_no_other(text_engine):
    gates = {}
    text_engine.instrument(lambda stage: gates.setdefault(stage.spec.name, Gate(stage)))
    with text_engine.session([B]) as session:
        alone = list(session.stream(iter(clip(1, 4))))
    gate = gates["adapter_1"]
    with Scheduler(text_engine) as scheduler:
        boxes = [Inbox(), Inbox()]
        gone, other = scheduler.open([A], boxes[0]), scheduler.open([B], boxes[1])
        gate.close()
        put_all(gone, clip(0, 4))
        assert gate.entered.wait(PATIENCE)
        put_all(other, clip(1, 4))
        gone.cancel()
        other.end()
        gate.open.set()
        assert not boxes[0].wait().of(Outcome.DONE)
        assert_equal_masks(boxes[1].wait(), alone)


def test_draining_computes_what_waits_and_refuses_new_streams(text_engine):
    with Scheduler(text_engine) as scheduler:
        boxes = [Inbox(), Inbox()]
        for i, box in enumerate(boxes):
            put_all(scheduler.open([A], box), clip(i, 6))
        assert scheduler.drain(PATIENCE)
        assert all(box.wait().tags == list(range(6)) for box in boxes)
        with pytest.raises(runtime.Busy, match="draining"):
            scheduler.open([A], Inbox())


def test_draining_gives_up_after_its_time(gated):
    scheduler, gate = gated
    stream = busy(scheduler, gate)
    assert not scheduler.drain(0.05)
    assert scheduler.stuck_seconds > 0.04
    gate.open.set()
    assert scheduler.drain(PATIENCE) and stream.is_over and scheduler.stuck_seconds == 0


def test_a_stream_that_is_held_computes_nothing(click_engine):
    with Scheduler(click_engine) as scheduler:
        inbox = Inbox()
        stream = scheduler.open(None, inbox)
        stream.hold(True)
        put_all(stream, clip(0, 4), {0: {1: CLICK}})
        scheduler.submit(lambda _: None).result(PATIENCE)
        assert not inbox.all and not scheduler.drain(0.05)
        stream.hold(False)
        assert inbox.wait().tags == [0, 1, 2, 3]


def test_closing_ends_streams_and_waiting_calls(text_engine):
    inbox, started = Inbox(), threading.Event()
    scheduler = Scheduler(text_engine)
    stream = scheduler.open([A], inbox)
    scheduler.submit(lambda _: started.wait(PATIENCE))
    late = scheduler.submit(lambda _: 1)
    put_all(stream, clip(0, 4))
    threading.Timer(0.05, started.set).start()
    scheduler.close()
    scheduler.close()
    assert inbox.wait().tags == [] and late.cancelled()
    assert text_engine.networks["samwise"].maskmem_pool.in_use == 0
    for call in (lambda: scheduler.open([A], inbox), lambda: scheduler.submit(lambda _: 1)):
        with pytest.raises(runtime.Busy, match="closed"):
            call()
    assert scheduler.stuck_seconds == float("inf")


def test_an_open_from_a_delivery_does_not_wait_for_itself(click_engine):
    opened, inbox = [], Inbox()
    with Scheduler(click_engine) as scheduler:

        def deliver(delivery):
            if delivery.outcome is Outcome.DONE:
                opened.append(scheduler.open(None, inbox))
                opened[-1].end()

        stream = scheduler.open(None, deliver)
        stream.put(clip(0, 1)[0], {1: CLICK})
        inbox.wait()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": "newest"}, "keep must be 'all' or 'latest'"),
        ({"weight": 0}, "weight must be a number above 0"),
        ({"deadline": -1.0}, "deadline must be a number above 0"),
        ({"max_pending": "many"}, "max_pending must be a number above 0"),
        ({"windw": 3}, "no option windw"),
    ],
)
def test_wrong_options_are_named(text_engine, options, words):
    with Scheduler(text_engine) as scheduler, pytest.raises(runtime.UserError, match=words):
        scheduler.open([A], Inbox(), **options)


def test_wrong_prompts_are_named(text_engine):
    with Scheduler(text_engine) as scheduler:
        with pytest.raises(runtime.PromptError):
            scheduler.open([], Inbox())
        with pytest.raises(runtime.UserError, match="points|clicks"):
            scheduler.open(None, Inbox())
        stream = scheduler.open([A], Inbox())
        with pytest.raises(runtime.PromptError, match="takes no prompts on frames"):
            stream.put(clip(0, 1)[0], {1: CLICK})
        assert scheduler.streams == (stream,), "what was refused takes no room"
    with pytest.raises(runtime.UserError, match="max_streams must be 1 or more"):
        Scheduler(text_engine, max_streams=0)


def test_a_group_spreads_streams_over_its_engines(toy):
    engines = [runtime.load(toy, max_objects=2) for _ in range(2)]
    with engines[0].session([A]) as session:
        alone = list(session.stream(iter(clip(0, 8))))
    with runtime.SchedulerGroup([Scheduler(engine, max_streams=2) for engine in engines]) as group:
        boxes = [Inbox() for _ in range(4)]
        streams = [group.open([A], box) for box in boxes]
        assert [len(scheduler.streams) for scheduler in group.schedulers] == [2, 2] and group.max_streams == 4
        with pytest.raises(runtime.Busy):
            group.open([A], Inbox())
        for stream in streams:
            put_all(stream, clip(0, 8))
        assert group.submit(lambda engine: engine in engines).result(PATIENCE)
        assert group.drain(PATIENCE) and group.streams == () and group.stuck_seconds == 0
        for box in boxes:
            assert_equal_masks(box, alone)
        with pytest.raises(runtime.Busy, match="draining"):
            group.open([A], Inbox())


def test_the_measured_batch_is_that_of_new_schedulers(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from runtime.cli import autotune, autotune_streams

    seconds = {1: 1.0, 2: 0.5, 4: 0.7}
    monkeypatch.setattr(autotune_streams, "run_streams", lambda e, p, f, streams, batch, clock: (0.0, seconds[batch]))
    assert autotune.main(["--engine", str(toy), "--streams", "4"]) == 0
    assert "decode up to 2 streams in one call" in capsys.readouterr().out
    engine = runtime.load(toy)
    with Scheduler(engine) as scheduler:
        assert scheduler.batch == 2
    seconds.update({2: 0.99, 4: 0.98})
    assert autotune.main(["--engine", str(toy), "--streams", "4"]) == 0
    with Scheduler(engine) as scheduler:
        assert scheduler.batch == 1, "too little gain"
    for file in tmp_path.rglob("streams-*.json"):
        file.write_text("[]")
    with Scheduler(engine) as scheduler:
        assert scheduler.batch == 1, "a file that cannot be read counts as none"


def test_streams_are_really_timed(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from runtime.cli import autotune

    assert autotune.main(["--engine", str(toy), "--streams", "2", "--frames", "4", "--cpu-seconds"]) == 0
    out = capsys.readouterr().out
    assert "batch" in out and "not saved" in out and not list(tmp_path.rglob("*.json"))
    assert autotune.main(["--engine", str(toy), "--streams", "1"]) == 2


def test_window_of_the_toy():
    assert toy.WINDOW == 4, "the clips above"


def test_a_stream_that_has_ended_leaves_its_memory_at_once(text_engine):
    """The garbage collector comes late: the arrays of a session are few objects."""
    gc.disable()
    try:
        with Scheduler(text_engine) as scheduler:

            class Owner:
                def __init__(self):
                    self.ended = threading.Event()
                    self.stream = scheduler.open([A], self.deliver)

                def deliver(self, delivery):
                    if delivery.outcome is Outcome.END:
                        self.ended.set()

            owner = Owner()
            put_all(owner.stream, clip(0, 2))
            session = weakref.ref(owner.stream._session)
            owner.stream.end()
            assert owner.ended.wait(PATIENCE)
            del owner
            wait_until(lambda: session() is None)
    finally:
        gc.enable()
