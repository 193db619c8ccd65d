"""Every public method of engines, sessions and images that computes or changes something, with a call of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from runtime import Concept, Engine, ImagePredictor, Points, Text
from runtime.tracking.base import TrackingSession
from runtime.tracking.session import OnlineSession, Session

from . import numpy_sam3

A, CLICK, RED = Text(tokens=[0, 5, 2]), Points([(10, 8)], [1]), Concept(tokens=[1])
READS = {"capabilities", "timings", "instrument", "image", "object_ids", "state", "output", "device_logits", "size"}
READS |= {"concepts", "is_closed", "REVERSE_INCLUDES_FIRST"}
"""Methods that read what is there, or that are called before anything runs, and constants."""


def session_classes(base: type = Session) -> Iterator[type]:
    """Yield every class of sessions that an engine opens."""
    for cls in base.__subclasses__():
        if cls not in (TrackingSession, OnlineSession):
            yield cls
        yield from session_classes(cls)


def names() -> set[str]:
    """Return the names of all methods, from the classes."""
    classes = (Engine, ImagePredictor, *session_classes())
    return {f"{c.__name__}.{name}" for c in classes for name in dir(c) if name[0] != "_" and name not in READS}


def calls(engines: Mapping[str, Engine], clip: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return a call of every method, by name; those that close come last.

    engines  for sentences in videos (`text`), clicks (`prompts`), sentences in images (`image`), and SAM 3 (`concepts`)
    clip     (T,H,W,3)
    """
    text, prompts, concepts = engines["text"], engines["prompts"], engines["concepts"]
    image, sentence, searched = (engine.image(clip[0]) for engine in (prompts, engines["image"], concepts))
    found = {
        "Engine.session": lambda: text.session([A]),
        "Engine.live": lambda: prompts.live(),
        "Engine.video": lambda: prompts.video(clip),
        "ImagePredictor.predict": lambda: image.predict([(10, 8)], [1]),
        "ImagePredictor.segment_all": lambda: image.segment_all(points_per_side=2),
        "ImagePredictor.refer": lambda: sentence.refer([A]),
        "ImagePredictor.detect": lambda: searched.detect([RED]),
    }
    opened = [
        _text(text.session([A]), clip),
        _live(prompts.live(), clip),
        _video(prompts.video(clip), clip),
        _video(concepts.video(clip), clip),
        _concepts(concepts.session([RED])),
    ]
    for session, methods in opened:
        found |= {f"{type(session).__name__}.{name}": method for name, method in methods.items()}
        found[f"{type(session).__name__}.close"] = session.close
    return {**found, "Engine.close": text.close}


def _text(session, clip):
    return session, {
        "push": lambda: session.push(clip[0]),
        "flush": session.flush,
        "stream": lambda: list(session.stream(clip)),
        "feed": lambda: list(session.feed(clip[0])),
        "finish": lambda: list(session.finish()),
        "add": lambda: session.add(A),
        "remove": lambda: session.remove(session.object_ids[-1]),
    }


def _live(session, clip):
    session.push(clip[0], {1: CLICK})
    return session, {
        "push": lambda: session.push(clip[0]),
        "flush": session.flush,
        "stream": lambda: list(session.stream(clip)),
        "feed": lambda: list(session.feed(clip[0])),
        "finish": lambda: list(session.finish()),
        "correct": lambda: session.correct({1: CLICK}),
        "remove": lambda: session.remove(1),
    }


def _video(session, clip):
    session.add_points(0, 1, CLICK.points, CLICK.labels)
    return session, {
        "add_points": lambda: session.add_points(0, 1, CLICK.points, CLICK.labels),
        "add_box": lambda: session.add_box(0, 1, (3, 3, 12, 12)),
        "add_mask": lambda: session.add_mask(0, 1, np.ones(clip.shape[1:3], bool)),
        "clear_prompts": lambda: session.clear_prompts(1, 1),
        "propagate": lambda: list(session.propagate()),
        "remove_object": lambda: session.remove_object(1),
        "reset": session.reset,
    }


def _concepts(session):
    frame = numpy_sam3.picture(0)
    session.push(frame)
    return session, {
        "push": lambda: session.push(frame),
        "flush": session.flush,
        "stream": lambda: list(session.stream([frame])),
        "feed": lambda: list(session.feed(frame)),
        "finish": lambda: list(session.finish()),
        "correct": lambda: session.correct({0: CLICK}),
        "add_concept": lambda: session.add_concept(RED),
        "change_concept": lambda: session.change_concept(1, RED),
        "remove": lambda: session.remove(0),
        "remove_concept": lambda: session.remove_concept(1),
    }
