"""Jobs: files and totals of a session whose objects appear and disappear."""

import json
import signal

import numpy as np
import pytest
from PIL import Image

from helpers import media
from runtime import Result, VideoError, open_video
from runtime.cli.job import Job
from runtime.cli.overlay import Painter
from runtime.cli.signals import SignalGuard
from runtime.cli.summary import summarize_run
from runtime.cli.tasks import Task
from runtime.cli.writer_thread import WriterThread
from runtime.cli.writers import OutputOptions, Outputs

LABELS = {1: "person", 2: "dog"}
FRAMES = [{}, {7: 1}, {7: 1, 3: 2}, {3: 2, 4: 1}]
"""Object id -> prompt id, by frame: both prompts have no object at first, and `person` has two in turn."""


def result(index, objects, height=48, width=64):
    masks = np.zeros((len(objects), height, width), bool)
    for mask, obj in zip(masks, objects, strict=True):
        mask[4 * obj : 4 * obj + 4, :20] = True
    boxes = np.array([(0, 4 * obj, 20, 4 * obj + 4) for obj in objects], np.float32).reshape(-1, 4)
    scores = np.full(len(objects), 0.5, np.float32)
    return Result(index, tuple(objects), tuple(objects.values()), masks, scores, boxes)


@pytest.fixture
def video(tmp_path):
    with open_video(media.write(tmp_path / "clip.mp4", media.clip(len(FRAMES)))) as video:
        yield video


def test_objects_of_a_prompt_may_appear_and_disappear(video, tmp_path):
    def stream(frames):
        for index, _ in enumerate(frames):
            yield result(index, FRAMES[index])

    task, out = Task(LABELS, {}, stream), tmp_path / "out"
    with SignalGuard() as guard, Outputs(out, video.size, 24.0, {}, OutputOptions(LABELS, {})) as outputs:
        job = Job(task, video, outputs, None)
        assert job.run(guard) is None
        assert json.loads((out / "results.jsonl").read_bytes().splitlines()[0])["objects"] == []
        outputs.close(summarize_run(job.stats, LABELS, {}, complete=True))

    data = json.loads((out / "results.json").read_text())
    listed = [(o["id"], o["prompt"], o["followed"], o["visible"], o["score"]) for o in data["objects"]]
    assert listed == [(7, "person", 2, 2, 0.5), (3, "dog", 2, 2, 0.5), (4, "person", 1, 1, 0.5)]
    assert [[o["id"] for o in frame["objects"]] for frame in data["frames"]] == [list(objects) for objects in FRAMES]
    for number, objects in enumerate(FRAMES):
        indexed = np.asarray(Image.open(out / "masks" / f"{number:05d}.png"))
        assert set(np.unique(indexed)) == {0, *objects}


def test_known_objects_are_listed_first():
    labels = {1: "first", 2: "second"}
    job = Job(Task(labels, {2: 2, 1: 1}, iter), None, None, None)
    job.stats.count(result(0, {5: 9, 1: 1}))
    objects = summarize_run(job.stats, labels, {}, complete=False)["objects"]
    assert [(o["id"], o["prompt"], o["followed"]) for o in objects] == [
        (2, "second", 0),
        (1, "first", 1),
        (5, "object 5", 1),
    ]


def test_objects_are_labelled_by_their_prompt():
    frame = np.full((480, 640, 3), 90, np.uint8)
    painter = Painter((480, 640), LABELS)
    person, unknown = (painter(frame, result(0, {10: prompt}, 480, 640)) for prompt in (1, 9))
    assert (person != unknown).any(), "only objects of known prompts have a label"
    other = Painter((480, 640), {9: "person"})(frame, result(0, {10: 9}, 480, 640))
    assert (person == other).all()


class HoldsBack:
    """Results come two frames late; `waiting` has those that are computed. `fails`: index of a frame that fails."""

    def __init__(self, fails=None, error=None):
        self.fails, self.error, self.ready = fails, error, []

    def stream(self, frames):
        for index, _ in enumerate(frames):
            if index == self.fails:
                raise self.error
            self.ready.append(result(index, FRAMES[index]))
            if len(self.ready) > 2:
                yield self.ready.pop(0)
        yield from self.waiting()

    def waiting(self):
        while self.ready:
            yield self.ready.pop(0)


def run(video, out, task):
    with SignalGuard() as guard, Outputs(out, video.size, 24.0, {}, OutputOptions(LABELS, {})) as outputs:
        job = Job(task, video, outputs, None)
        error = job.run(guard)
        outputs.close(summarize_run(job.stats, LABELS, {}, complete=error is None))
    return error, [int(frame["name"]) for frame in json.loads((out / "results.json").read_text())["frames"]]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), VideoError("changes size"), RuntimeError("a fault")])
@pytest.mark.parametrize("fails", range(len(FRAMES)))
def test_results_that_are_held_back_are_written_after_an_error(video, tmp_path, fails, error):
    holds = HoldsBack(fails, error)
    found, written = run(video, tmp_path / "out", Task(LABELS, {}, holds.stream, waiting=holds.waiting))
    assert found is error and written == list(range(fails))


@pytest.mark.parametrize("interrupted", [1, 2, 3])
def test_a_signal_between_two_results_loses_none(video, tmp_path, monkeypatch, interrupted):
    holds, indices = HoldsBack(), []

    class Interrupts(WriterThread):
        def put(self, frame, found, time):
            indices.append(found.frame_index)
            if len(indices) == interrupted:
                signal.raise_signal(signal.SIGINT)
            super().put(frame, found, time)

    monkeypatch.setattr("runtime.cli.job.WriterThread", Interrupts)
    found, written = run(video, tmp_path / "out", Task(LABELS, {}, holds.stream, waiting=holds.waiting))
    assert isinstance(found, KeyboardInterrupt) and written == indices == list(range(len(written)))
    assert len(written) >= min(len(FRAMES), interrupted + 2)
