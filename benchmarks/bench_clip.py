"""Whole clips through the runtime: how the time grows with sentences and with memory, and how long opening takes."""

from __future__ import annotations

import numpy as np
import pytest

import runtime
from runtime.media.synthetic_clip import Disc, synthetic_clip

PROMPTS = (1, 2, 4, 8)
HEIGHT, WIDTH = 360, 640


def clip(frames: int) -> list[np.ndarray]:
    """Return drifting waves that a disc crosses, uint8 (H,W,3) each."""
    return synthetic_clip(frames, HEIGHT, WIDTH, Disc(lambda t: 110 + 8 * t, 100, 45, (220, 40, 60)), (30, 40))


def sentences(engine, count: int) -> list[runtime.Text]:
    settings = engine.bundle.manifest.text
    if not settings or runtime.Capability.TEXT_VIDEO not in engine.capabilities:
        pytest.skip("this bundle follows no sentences")
    top = settings["vocabulary"]
    return [runtime.Text(tokens=[0, *(3 + (7 * i + 13 * j) % (top - 3) for j in range(6)), 2]) for i in range(count)]


def play(engine, prompts, frames) -> list[runtime.Result]:
    with engine.session(prompts) as session:
        return list(session.stream(frames))


@pytest.mark.parametrize("count", PROMPTS)
def test_sentences(benchmark, info, loaded, pace, count):
    """One window of frames with 1, 2, 4, 8 sentences; compare `per_sentence` to see what is shared."""
    prompts = sentences(loaded, count)
    frames = clip(loaded.networks.text_video.window)
    benchmark.pedantic(play, (loaded, prompts, frames), **pace)
    seconds = float(np.median(benchmark.stats.stats.data))
    info(sentences=count, frames=len(frames), frames_per_second=len(frames) / seconds, per_sentence=seconds / count)


def test_memory_fill(benchmark, info, loaded, pace):
    """Seconds of memory attention on the frames 1 to 8 of a video: grows with the memory, then stays."""
    prompts, frames = sentences(loaded, 1), clip(9)
    filled: dict[int, float] = {}
    window = loaded.networks.text_video.window
    stage = loaded.stages["memory_attention"]

    def run():
        with loaded.session(prompts, window=min(8, window)) as session:
            before = stage.seconds
            for result in session.stream(frames):
                filled[result.frame_index] = min(filled.get(result.frame_index, 1e9), stage.seconds - before)
                before = stage.seconds

    benchmark.pedantic(run, **pace)
    info(seconds_by_frame=filled)


def first_frame(engine) -> None:
    """Process one frame with the bundle's first task."""
    frame, box = clip(1)[0], runtime.Box([60, 40, 160, 120])
    if runtime.Capability.TEXT_VIDEO in engine.capabilities:
        play(engine, sentences(engine, 1), [frame])
    elif runtime.Capability.PROMPT_VIDEO in engine.capabilities:
        with engine.live() as session:
            session.push(frame, {1: box})
    else:
        engine.image(frame).refer([runtime.Text(tokens=[1, 2, 3])])


def test_load(benchmark, info, bundle, backend, pace, request):
    """Open a bundle with every file verified, and decode a first frame."""

    def start():
        with runtime.load(bundle.folder, backend=backend, threads=request.config.option.threads) as engine:
            first_frame(engine)

    benchmark.pedantic(start, rounds=pace["rounds"])
    info(megabytes=sum(f.stat().st_size for f in bundle.folder.rglob("*") if f.is_file()) / 1e6)
