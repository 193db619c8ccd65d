"""One long session, whose sentences may come and go beside those that stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np

import runtime
from soak.scenarios import CLIPS, SoakRunner, sentence

STAYING = 2
"""Sentences that a session with changes has from its first frame to its last."""


def one_session(runner: SoakRunner, frames: int, latency: str, change_every: int | None = None) -> Iterator[None]:
    """Push `frames` frames to one session, timed; yield after each.

    With `change_every` one more sentence is followed, and replaced by another one after so many frames. Every bit of
    those that stay is compared with a second engine that takes the same frames without changes.
    """
    engine, clip = runner.engine, CLIPS[0]
    options = {"logits": True, "latency": latency}
    with ExitStack() as stack:
        if not change_every:
            session, unchanged = stack.enter_context(engine.session([sentence(engine, 0)], **options)), None
        else:
            staying = [sentence(engine, number) for number in range(STAYING)]
            session = stack.enter_context(engine.session(staying, **options))
            other = stack.enter_context(runtime.load(engine.bundle.folder, threads=engine.backend.threads))
            unchanged = stack.enter_context(other.session(staying, **options))
        for number in range(frames):
            if change_every and number % change_every == 0:
                change_sentence(runner, session, number // change_every)
            frame = clip[number % len(clip)]
            results = runner.push(session, frame)
            if unchanged is not None:
                compare(results, unchanged.push(frame))
            yield


def change_sentence(runner: SoakRunner, session: runtime.TextSession, number: int) -> None:
    """Add a sentence; remove the one that was added before."""
    added = session.object_ids[STAYING:]
    session.add(sentence(runner.engine, STAYING + number))
    for object_id in added:
        session.remove(object_id)
    runner.sessions += 1


def compare(results: list[runtime.Result], expected: list[runtime.Result]) -> None:
    """Raise AssertionError if an object of `expected` differs in a bit of its mask, logits, box or score."""
    for result, other in zip(results, expected, strict=True):
        rows = [result.object_ids.index(object_id) for object_id in other.object_ids]
        for name in ("masks", "low_res_logits", "boxes", "score_logits", "ious"):
            if not np.array_equal(getattr(result, name)[rows], getattr(other, name)):
                raise AssertionError(f"frame {result.frame_index}: {name} differ from those without changes")
