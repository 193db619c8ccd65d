"""Stages of a bundle for both networks, and the shipped nano bundle."""

import time
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.bundle.demo import Demo
from runtime.media import video_reader
from runtime.metrics import jaccard

ENGINES = Path(__file__).parents[3] / "engines"


def test_stages_of_both_networks_with_bounds_that_agree():
    torch = pytest.importorskip("torch")
    from export.models.samwise import Samwise
    from export.networks import samwise_sam2
    from helpers.toy_networks import toy_samwise_config
    from runtime.models.sam2.network import Sam2
    from runtime.models.samwise.network import Samwise as Schedule

    torch.manual_seed(0)
    stages = samwise_sam2.stages(Samwise(toy_samwise_config()))
    names = [s.name for s in stages]
    assert len(names) == len(set(names)) and set(Schedule.required_stages) | set(Sam2.required_stages) <= set(names)
    seen: dict[str, tuple[int, int]] = {}
    for stage in stages:
        for symbol, pair in stage.bounds.items():
            assert seen.setdefault(symbol, pair) == pair, (stage.name, symbol)
            assert pair[0] <= stage.sizes[symbol] <= pair[1]
    assert seen["pointers"][0] == 0 and seen["slots"][1] > 7
    settings = samwise_sam2.settings(Samwise(toy_samwise_config()))
    assert settings["sam2"]["memory"]["num_maskmem"] == 7 and settings["samwise"]["window"] == 4


@pytest.fixture(scope="module")
def engine():
    return runtime.load(ENGINES, model="nano", backend="ort", threads=2)


@pytest.fixture(scope="module")
def demo(engine):
    return Demo.load(engine.bundle.folder / engine.bundle.manifest.demo)


def test_the_shipped_bundle_is_small(engine):
    files = [p for p in engine.bundle.folder.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 25e6
    assert sum(p.stat().st_size for p in files if p.parent.name == "demo") < 1e6


def test_the_shipped_bundle_follows_its_demonstration(engine, demo):
    frames = list(video_reader.open_video(demo.clip))
    with engine.session(demo.prompts) as session:
        masks = np.stack([r.masks for r in session.stream(frames)], 1)
    truth = np.stack([demo.masks == k for k in demo.objects])
    assert np.mean([jaccard(m, t) for m, t in zip(masks, truth, strict=True)]) > 0.6


def test_the_shipped_bundle_segments_a_box_prompt(engine, demo):
    """The same weights with box prompts on one frame."""
    frame = next(iter(video_reader.open_video(demo.clip)))
    for number in demo.objects:
        truth = demo.masks[0] == number
        ys, xs = np.nonzero(truth)
        box = runtime.Box([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        with engine.live() as session:
            (result,) = session.push(frame, prompts={1: box})
        assert jaccard(result.masks[0], truth) > 0.6


def test_an_idle_engine_uses_no_processor_time(engine):
    """Threads that spin after a call take the cores from the next stage and from the caller."""
    seen, used = [np.full((96, 160, 3), 99, np.uint8)] * engine.networks.text_video.window, []
    for _ in range(5):
        with engine.session([runtime.Text("the red car")]) as session:
            assert list(session.stream(seen))
            before = time.process_time()
            time.sleep(0.05)
            used.append(time.process_time() - before)
    assert min(used) < 0.03, used
