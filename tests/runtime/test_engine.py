"""Methods of the engine: capabilities, options by keyword, instrumented stages."""

import dataclasses

import numpy as np
import pytest

import runtime
from helpers import toy_samwise as toy
from helpers.recorder import Recorder
from runtime.models.options import AutomaticMaskKeywords
from runtime.tracking.state import TrackingKeywords


@pytest.fixture
def text_engine(toy):
    with runtime.load(toy) as engine:
        yield engine


@pytest.fixture
def prompt_engine(toy_sam2_bundle):
    with runtime.load(toy_sam2_bundle) as engine:
        yield engine


def test_capabilities(text_engine, prompt_engine):
    assert text_engine.capabilities == {runtime.Capability.TEXT_VIDEO}
    assert prompt_engine.capabilities == {runtime.Capability.PROMPT_VIDEO, runtime.Capability.PROMPT_IMAGE}


@pytest.mark.parametrize(
    "options, keywords",
    [(runtime.TrackingOptions, TrackingKeywords), (runtime.AutomaticMaskOptions, AutomaticMaskKeywords)],
)
def test_keywords_are_the_fields_of_the_options(options, keywords):
    assert {f.name: f.type for f in dataclasses.fields(options)} == {
        name: hint.__forward_arg__ for name, hint in keywords.__annotations__.items()
    }


@pytest.mark.parametrize(
    "call, known",
    [
        (lambda text, prompt: text.session([runtime.Text("a cat")], windows=3), "session has no .*window"),
        (lambda text, prompt: prompt.live(windows=3), "live has no .*fill_hole_area"),
        (lambda text, prompt: prompt.video(np.zeros((1, 9, 9, 3), np.uint8), windows=3), "video has no .*logits"),
        (lambda text, prompt: prompt.image(np.zeros((9, 9, 3), np.uint8)).segment_all(windows=3), "points_per_side"),
    ],
)
def test_unknown_options_are_refused_with_the_known_ones(text_engine, prompt_engine, call, known):
    with pytest.raises(runtime.UserError, match=known):
        call(text_engine, prompt_engine)


def test_unsupported_tasks_are_named(text_engine, prompt_engine):
    for call in (text_engine.live, lambda: text_engine.video(np.zeros((1, 9, 9, 3), np.uint8))):
        with pytest.raises(runtime.UserError, match=r"\(samwise\) cannot follow points, boxes and masks; choose"):
            call()
    with pytest.raises(runtime.UserError, match=r"\(sam2\) cannot follow sentences"):
        prompt_engine.session([runtime.Text("a cat")])


def test_instrumented_stages_see_every_call(text_engine):
    recorder = Recorder()
    text_engine.instrument(recorder)
    with text_engine.session([runtime.Text(tokens=[0, 5, 2])]) as session:
        list(session.stream(np.zeros((toy.WINDOW, 20, 30, 3), np.uint8)))
    seen = [name for name, _ in recorder.calls]
    assert {name: seen.count(name) for name in seen} == {n: c for n, (c, _) in text_engine.timings.items() if c}
    assert seen.count("mask_decoder") >= toy.WINDOW


def test_closing_the_engine_closes_its_sessions(toy):
    with runtime.load(toy) as engine:
        session = engine.session([runtime.Text(tokens=[0, 5, 2])])
    with pytest.raises(runtime.UserError, match="closed"):
        session.push(np.zeros((20, 30, 3), np.uint8))
