"""Soak-test scenarios: valid sessions and expected errors.

A scenario is one session, or one thing that must be refused. `SoakRunner` passes the engine through them, times every
frame, validates every result, and counts the expected errors by name.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from helpers import media
from helpers.errors import check_line, expect_error
from runtime.media.video_reader import open_video

SENTENCES = ("the red square", "a blue circle", "the green thing that moves left", "the largest triangle")
SIZES = ((96, 160), (120, 90), (64, 200))
LENGTHS = (3, 40, 9, 64)
CLIPS = [media.clip(max(LENGTHS), *size) for size in SIZES]
RELOAD_EVERY = 60
"""Scenarios between two loads of the bundle."""


class SoakRunner:
    """An engine with counts of what it ran: `frames`, `sessions`, `expected_errors` by name; `latencies` in seconds."""

    def __init__(self, engine: runtime.Engine, files: dict[str, Path]) -> None:
        self.engine, self.files = engine, files
        self.frames = self.sessions = 0
        self.expected_errors: Counter[str] = Counter()
        self.latencies: list[float] = []

    def push(self, session: Any, frame: np.ndarray, *prompts: Any) -> list[runtime.Result]:
        """Push one frame, timed; validate and return its results."""
        start = time.perf_counter()
        results = session.push(frame, *prompts)
        self.latencies.append(time.perf_counter() - start)
        self.frames += 1
        for result in results:
            validate_result(result, frame.shape[:2])
        return results

    def expect(self, name: str, kind: type[Exception], action: Callable[[], Any]) -> None:
        """Run an action that must fail with an error of this kind, and count it."""
        expect_error(kind, action)
        self.expected_errors[name] += 1


def validate_result(result: runtime.Result, size: tuple[int, int]) -> None:
    """Raise AssertionError for wrong mask shapes, boxes that are not finite, or scores that are not probabilities."""
    if result.masks.shape != (len(result.object_ids), *size) or result.masks.dtype != bool:
        raise AssertionError(f"masks of shape {result.masks.shape} for {len(result.object_ids)} objects at {size}")
    if not (np.isfinite(result.boxes).all() and (result.scores >= 0).all() and (result.scores <= 1).all()):
        raise AssertionError(f"frame {result.frame_index}: scores {result.scores}, boxes {result.boxes}")


def sentence(engine: runtime.Engine, number: int) -> runtime.Text:
    """One of the sentences, or token ids for a bundle without a tokenizer."""
    manifest = engine.bundle.manifest
    if manifest.tokenizer is not None:
        return runtime.Text(SENTENCES[number % len(SENTENCES)])
    count = manifest.text["vocabulary"] - 5
    return runtime.Text(tokens=[0, *((5 + 17 * number + 3 * i) % count + 4 for i in range(3 + number % 5)), 2])


# -- sentences


def text_session(runner: SoakRunner, number: int) -> None:
    """One to three sentences through a video; some sessions are closed in the middle of a clip."""
    clip = CLIPS[number % 3]
    other_size = clip[0, 2:]
    prompts = [sentence(runner.engine, number + i) for i in range(1 + number % 3)]
    with runner.engine.session(prompts, window=None if number % 5 else 1) as session:
        for i in range(LENGTHS[number % 4]):
            runner.push(session, clip[i])
            if i == 1:
                runner.expect("frame of another size", runtime.VideoError, lambda: session.push(other_size))
        if number % 3:
            session.flush()
    runner.expect("frame after the end", runtime.UserError, lambda: session.push(clip[0]))


def invalid_sentences(runner: SoakRunner, number: int) -> None:
    """Prompts that no session takes, and more of them than there is room for."""
    session, good = runner.engine.session, sentence(runner.engine, number)
    for name, kind, action in (
        ("token outside the vocabulary", runtime.PromptError, lambda: session([runtime.Text(tokens=[10**9])])),
        ("prompt too long", runtime.PromptError, lambda: session([good, runtime.Text(tokens=[4] * 1000)])),
        ("blank prompt", runtime.PromptError, lambda: runtime.Text(" ")),
        ("too many objects", runtime.UserError, lambda: session([good] * 1000)),
    ):
        runner.expect(name, kind, action)


def read_source(runner: SoakRunner, source: Any) -> None:
    """Run a video file, folder or camera through a session; raises the errors of the source."""
    prompts = [sentence(runner.engine, runner.sessions)]
    with open_video(source) as frames, runner.engine.session(prompts) as session:
        for frame in frames:
            runner.push(session, frame)
        session.flush()


def damaged_file(runner: SoakRunner, number: int) -> None:
    """A file that ends in the middle of a packet, one with noise in its packets, one from which packets are missing."""
    name = ("truncated packet", "damaged packets", "missing frames")[number % 3]
    before = runner.frames
    try:
        read_source(runner, runner.files[name])
    except runtime.VideoError as error:
        check_line(str(error))
    else:
        if name == "truncated packet":
            raise AssertionError("a truncated file was read to its end without an error")
    if name == "truncated packet" and runner.frames == before:
        raise AssertionError(f"{name}: no frame of the file was read")
    runner.expected_errors[name] += 1


def damaged_folder(runner: SoakRunner, number: int) -> None:
    """A folder of pictures, one of which is damaged or has another size."""
    name = ("damaged picture", "picture of another size")[number % 2]
    before = runner.frames
    if name == "damaged picture":
        read_source(runner, runner.files[name])
        if runner.frames == before:
            raise AssertionError(f"{name}: the others were not read")
        runner.expected_errors[name] += 1
    else:
        runner.expect(name, runtime.VideoError, lambda: read_source(runner, runner.files[name]))


def camera(runner: SoakRunner, number: int) -> None:
    """A camera that sends, drops, comes back, and is then gone."""
    server = media.Server(runner.files["camera"].read_bytes(), times=2)
    runner.expect("camera gone", runtime.VideoError, lambda: read_source(runner, f"tcp://127.0.0.1:{server.port}"))
    server.join(timeout=10)
    runner.expected_errors["camera dropped and came back"] += 1


# -- clicks


def live_prompts(runner: SoakRunner, number: int) -> None:
    """A box, a click beside it later on, a correction, a mask, an object that is removed."""
    clip = CLIPS[number % 3]
    height, width = clip.shape[1:3]
    other_size, outside = clip[0, 2:], {1: runtime.Points([[width + 9, 5]], [1])}
    mask = np.zeros((height, width), bool)
    mask[20:60, 10:50] = True
    prompts = {
        0: {1: runtime.Box([5, 15, 70, 62])},
        5: {2: runtime.Points([[30, 40], [2, 2]], [1, 0])},
        8: {3: runtime.Mask(mask)},
        20: {1: [runtime.Box([10, 10, 60, 60]), runtime.Points([[40, 40]], [1])]},
    }
    with runner.engine.live() as session:
        for i in range(LENGTHS[number % 4]):
            runner.push(session, clip[i], prompts.get(i))
            if i == 2:
                validate_result(session.correct({1: runtime.Points([[35, 40]], [1])}), (height, width))
                runner.expect("frame of another size", runtime.VideoError, lambda: session.push(other_size))
            if i == 6:
                click = "click outside the picture"
                runner.expect(click, runtime.PromptError, lambda: session.push(clip[0], outside))
                runner.expect("object that is not there", runtime.PromptError, lambda: session.remove(99))
            if i == 12:
                session.remove(2)
    runner.expect("frame after the end", runtime.UserError, lambda: session.push(clip[0]))


def offline_video(runner: SoakRunner, number: int) -> None:
    """Clicks in a video whose frames are known, forwards and backwards, with a correction."""
    frames = CLIPS[number % 3][:12]
    with runner.engine.video(frames) as session:
        session.add_points(frame=6, obj=1, points=[[30, 40]], labels=[1])
        for reverse in (False, True):
            for result in session.propagate(reverse=reverse):
                validate_result(result, frames.shape[1:3])
                runner.frames += 1
        click = {"obj": 1, "points": [[5, 5]], "labels": [0]}
        session.add_points(frame=8, **click)
        runner.expect("frame outside the video", runtime.UserError, lambda: session.add_points(frame=99, **click))


def reload_bundle(runner: SoakRunner, number: int) -> None:
    """A second engine on the same bundle, for one frame."""
    with runtime.load(runner.engine.bundle.folder, threads=1) as engine:
        if runtime.Capability.TEXT_VIDEO in engine.capabilities:
            with engine.session([sentence(engine, number)]) as session:
                session.push(CLIPS[0][0])
                session.flush()
    runner.expected_errors["bundle loaded again"] += 1


TEXT_SCENARIOS = (
    *(text_session, invalid_sentences, text_session, damaged_file),
    *(text_session, damaged_folder, text_session, camera),
)
CLICK_SCENARIOS = (live_prompts, offline_video, live_prompts)


def scenarios(engine: runtime.Engine) -> list[Callable[[SoakRunner, int], None]]:
    """One round of the scenarios that this engine can run."""
    text = TEXT_SCENARIOS if runtime.Capability.TEXT_VIDEO in engine.capabilities else ()
    clicks = CLICK_SCENARIOS if runtime.Capability.PROMPT_VIDEO in engine.capabilities else ()
    if text and clicks:  # one with clicks after every second one with sentences
        return [s for i, t in enumerate(text) for s in ((t, clicks[i // 2 % len(clicks)]) if i % 2 else (t,))]
    return list(text or clicks)
