"""What happens to a runtime in a long life: sessions of every kind, and the trouble that comes with them.

An episode is one session, or one thing that must be refused. `Life` carries the engine through them, times every frame,
checks every result, and counts each kind of trouble under its name.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

import runtime
from runtime.media import video_reader

from .media import Camera, Media, picture

SENTENCES = ("the red square", "a blue circle", "the green thing that moves left", "the largest triangle")
SIZES = ((96, 160), (120, 90), (64, 200))
LENGTHS = (3, 40, 9, 64)


class Life:
    """An engine and what it lived through: `frames` pushed, `sessions` opened, `trouble` by name, `latencies` in
    seconds."""

    def __init__(self, engine: runtime.Engine, media: Media) -> None:
        self.engine, self.media = engine, media
        self.frames = self.sessions = 0
        self.trouble: Counter[str] = Counter()
        self.latencies: list[float] = []

    @property
    def abilities(self) -> set[str]:
        """`open` for sentences, `live` for clicks."""
        names = {runtime.Capability.TEXT_VIDEO: "open", runtime.Capability.PROMPT_VIDEO: "live"}
        return {name for capability, name in names.items() if capability in self.engine.capabilities}

    def push(self, session: Any, frame: np.ndarray, *prompts: Any) -> list[runtime.Result]:
        """One frame through a session, timed; its results are sound."""
        start = time.perf_counter()
        results = session.push(frame, *prompts)
        self.latencies.append(time.perf_counter() - start)
        self.frames += 1
        for result in results:
            sound(result, frame.shape[:2])
        return results

    def refused(self, name: str, kind: type[Exception], action: Callable[[], Any]) -> None:
        """The action ends in this one-line error and nothing else."""
        expect(kind, action)
        self.trouble[name] += 1


def expect(kind: type[Exception], action: Callable[[], Any]) -> None:
    """Run the action, which must end in this one-line error and nothing else."""
    try:
        action()
    except kind as error:
        if "\n" in str(error):
            raise AssertionError(f"more than one line: {error}") from error
    else:
        raise AssertionError(f"no {kind.__name__} where one was due")


def sound(result: runtime.Result, size: tuple[int, int]) -> None:
    """Raise AssertionError for a result with a wrong shape, a number that is none, or a score that is no
    probability."""
    if result.masks.shape != (len(result.object_ids), *size) or result.masks.dtype != bool:
        raise AssertionError(f"masks of shape {result.masks.shape} for {len(result.object_ids)} objects at {size}")
    if not (np.isfinite(result.boxes).all() and (result.scores >= 0).all() and (result.scores <= 1).all()):
        raise AssertionError(f"frame {result.frame_index}: scores {result.scores}, boxes {result.boxes}")


def sentence(engine: runtime.Engine, number: int) -> runtime.Text:
    """One of the sentences, or token ids for a bundle without tokenizer."""
    manifest = engine.bundle.manifest
    if manifest.tokenizer is not None:
        return runtime.Text(SENTENCES[number % len(SENTENCES)])
    vocabulary = manifest.text["vocabulary"]
    return runtime.Text(
        tokens=[0, *((5 + 17 * number + 3 * i) % (vocabulary - 5) + 4 for i in range(3 + number % 5)), 2]
    )


# ---------------------------------------------------------------------------------------------------------- sentences


def sentences(life: Life, number: int) -> None:
    """One to three sentences through a video; some sessions close in the middle of a clip."""
    height, width = SIZES[number % 3]
    prompts = [sentence(life.engine, number + i) for i in range(1 + number % 3)]
    with life.engine.session(prompts, window=None if number % 5 else 1) as session:
        for i in range(LENGTHS[number % 4]):
            life.push(session, picture(life.frames, height, width))
            if i == 1:
                life.refused(
                    "frame of another size", runtime.VideoError, lambda: session.push(picture(0, height + 2, width))
                )
        if number % 3:
            session.flush()
    life.refused("frame after the end", runtime.UserError, lambda: session.push(picture(0, height, width)))


def bad_sentences(life: Life, number: int) -> None:
    """Prompts that no session takes, and more of them than there is room for."""
    engine = life.engine
    good = sentence(engine, number)
    life.refused(
        "token outside the vocabulary", runtime.PromptError, lambda: engine.session([runtime.Text(tokens=[10**9])])
    )
    life.refused(
        "prompt too long", runtime.PromptError, lambda: engine.session([good, runtime.Text(tokens=[4] * 1000)])
    )
    life.refused("blank prompt", runtime.PromptError, lambda: runtime.Text(" "))
    life.refused("too many objects", runtime.UserError, lambda: engine.session([good] * 1000))


def file_with_sentence(life: Life, source: Any, **options: Any) -> int:
    """A video file, folder or camera through a session. Returns the number of its frames; raises what it raises."""
    count = 0
    with (
        video_reader.open_video(source, **options) as frames,
        life.engine.session([sentence(life.engine, life.sessions)]) as session,
    ):
        for frame in frames:
            life.push(session, frame)
            count += 1
        session.flush()
    return count


def damaged_file(life: Life, number: int) -> None:
    """A file that breaks off in a packet, one with noise in its packets, one from which packets are missing."""
    kind = ("truncated packet", "damaged packets", "missing frames")[number % 3]
    whole, least = life.media.files[kind], 1 if kind == "truncated packet" else 0
    before = life.frames
    try:
        file_with_sentence(life, whole)
    except runtime.VideoError as error:
        if "\n" in str(error):
            raise AssertionError(f"more than one line: {error}") from error
    else:
        if kind == "truncated packet":
            raise AssertionError("a file that breaks off was read to its end without a word")
    if life.frames - before < least:
        raise AssertionError(f"{kind}: nothing of the file was read")
    life.trouble[kind] += 1


def damaged_folder(life: Life, number: int) -> None:
    """A folder of pictures, one of which is damaged, or of another size."""
    name = ("damaged picture", "picture of another size")[number % 2]
    life.refused(name, runtime.VideoError, lambda: file_with_sentence(life, life.media.files[name]))


def camera(life: Life, number: int) -> None:
    """A camera that sends, drops, comes back, and is then gone."""
    with Camera(life.media.files["camera"].read_bytes(), times=2) as server:
        life.refused(
            "camera gone", runtime.VideoError, lambda: file_with_sentence(life, f"tcp://127.0.0.1:{server.port}")
        )
    life.trouble["camera dropped and came back"] += 1


# ------------------------------------------------------------------------------------------------------------- clicks


def clicks(life: Life, number: int) -> None:
    """A box, a click beside it later on, a correction, a mask, an object that is let go."""
    height, width = SIZES[number % 3]
    mask = np.zeros((height, width), bool)
    mask[20:60, 10:50] = True
    prompts = {
        0: {1: runtime.Box([5, 15, 70, 62])},
        5: {2: runtime.Points([[30, 40], [2, 2]], [1, 0])},
        8: {3: runtime.Mask(mask)},
        20: {1: [runtime.Box([10, 10, 60, 60]), runtime.Points([[40, 40]], [1])]},
    }
    with life.engine.live() as session:
        for i in range(LENGTHS[number % 4]):
            life.push(session, picture(life.frames, height, width), prompts.get(i))
            if i == 2:
                sound(session.correct({1: runtime.Points([[35, 40]], [1])}), (height, width))
                life.refused(
                    "frame of another size", runtime.VideoError, lambda: session.push(picture(0, height + 2, width))
                )
            if i == 6:
                life.refused(
                    "click outside the picture",
                    runtime.PromptError,
                    lambda: session.push(picture(0, height, width), {1: runtime.Points([[width + 9, 5]], [1])}),
                )
                life.refused("object that is not there", runtime.PromptError, lambda: session.remove(99))
            if i == 12:
                session.remove(2)
    life.refused("frame after the end", runtime.UserError, lambda: session.push(picture(0, height, width)))


def known_video(life: Life, number: int) -> None:
    """Clicks in a video whose frames are known, forwards and backwards, with a correction."""
    height, width = SIZES[number % 3]
    frames = np.stack([picture(life.frames + i, height, width) for i in range(12)])
    with life.engine.video(frames) as session:
        session.add_points(frame=6, obj=1, points=[[30, 40]], labels=[1])
        for reverse in (False, True):
            for result in session.propagate(reverse=reverse):
                sound(result, (height, width))
                life.frames += 1
        session.add_points(frame=8, obj=1, points=[[5, 5]], labels=[0])
        life.refused(
            "frame outside the video",
            runtime.UserError,
            lambda: session.add_points(frame=99, obj=1, points=[[5, 5]], labels=[0]),
        )


def bundle_again(life: Life, number: int) -> None:
    """A second engine on the same bundle, for one frame."""
    with runtime.load(life.engine.bundle.folder, threads=1) as engine:
        if "open" in life.abilities:
            with engine.session([sentence(engine, number)]) as session:
                session.push(picture(number, *SIZES[0]))
                session.flush()
    life.trouble["bundle loaded again"] += 1


TEXT_EPISODES = (sentences, bad_sentences, sentences, damaged_file, sentences, damaged_folder, sentences, camera)
CLICK_EPISODES = (clicks, known_video, clicks)
RELOAD_EVERY = 60
"""Episodes between two loads of the bundle."""


def episodes(life: Life) -> list[Callable[[Life, int], None]]:
    """The round of episodes that this engine can live."""
    able = life.abilities
    text = TEXT_EPISODES if "open" in able else ()
    pointing = CLICK_EPISODES if "live" in able else ()
    if text and pointing:  # a click episode after every second one with sentences
        return [e for i, t in enumerate(text) for e in ((t, pointing[i // 2 % len(pointing)]) if i % 2 else (t,))]
    return list(text or pointing)
