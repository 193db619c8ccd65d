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


@pytest.fixture(scope="module")
def concepts():
    return runtime.load(ENGINES, model="nano-concepts", backend="ort", threads=2)


def test_the_concept_bundle_is_small_and_leaves_the_first_demonstration(concepts, engine):
    assert sum(p.stat().st_size for p in concepts.bundle.folder.rglob("*") if p.is_file()) < 15e6
    assert runtime.bundle.bundle.choose(ENGINES).name == "nano"


def test_the_concept_bundle_finds_all_objects_of_concepts_and_nothing_else(concepts, demo):
    """On an image: nouns, colour and noun, an absent noun, the noun in another colour, an exemplar."""
    frame = next(iter(video_reader.open_video(demo.clip)))
    truth = {number: demo.masks[0] == number for number in np.unique(demo.masks[0]) if number}
    crab, *houses = (truth[number] for number in demo.objects)
    image = concepts.image(frame)
    asked = {"crab": [crab], "house": houses, "pink crab": [crab], "dog": [], "blue crab": [], "green house": []}
    for result, (text, wanted) in zip(
        image.detect([runtime.Concept(text) for text in asked]), asked.items(), strict=True
    ):
        best = [max((jaccard(m, t) for m in result.masks), default=0) for t in wanted]
        assert all(iou > 0.6 for iou in best), (text, best)
        assert all(max((jaccard(m, t) for t in wanted), default=0) > 0.3 for m in result.masks), text
        assert (result.presence > 0.5) == bool(wanted), text


def test_the_concept_bundle_follows_two_concepts(concepts, demo):
    frames = list(video_reader.open_video(demo.clip))
    with concepts.session([runtime.Concept("house"), runtime.Concept("crab"), runtime.Concept("dog")]) as session:
        results = list(session.stream(frames))
    crab, *houses = demo.objects
    ids = {obj: prompt for r in results for obj, prompt in zip(r.object_ids, r.prompt_ids, strict=True)}
    assert sorted(ids.values()) == [1, 1, 2], ids
    for number, prompt in ((crab, 2), *((house, 1) for house in houses)):
        scores = {
            obj: np.mean(
                [
                    jaccard(r.masks[r.object_ids.index(obj)], demo.masks[t] == number) if obj in r.object_ids else 0.0
                    for t, r in enumerate(results)
                ]
            )
            for obj, own in ids.items()
            if own == prompt
        }
        assert max(scores.values()) > 0.6, (number, scores)
