"""Concepts, clicks and masks through videos: the toy SAM 3, exported and run."""

import itertools
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import runtime

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from export import bundle
from export.networks import base
from export.verify import parity, parity_clip, references
from helpers.toy_sam3 import toy_sam3
from helpers.waiting import PATIENCE
from runtime import tokenizer
from runtime.cli.app import main
from runtime.prompts import Concept
from runtime.prompts.synthetic import synthetic_tokens

pytestmark = pytest.mark.slow

BUS, DOG = Concept(tokens=[5, 6, 7]), Concept(tokens=[9, 2])
HEIGHT, WIDTH = 60, 80
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[10:40, 20:60] = True


@pytest.fixture(scope="module")
def engine(tmp_path_factory, shared_traces):
    source = base.describe("sam3", toy_sam3())
    folder = bundle.export_bundle(source, tmp_path_factory.mktemp("sam3"), "toy", variants=(), check=False)
    return runtime.load(folder, backend="ort")


def test_the_parity_clip_follows_torch(engine):
    """A concept on the first frame, then a click and three tracked frames, as an export compares them."""
    manifest = engine.bundle.manifest
    frames, tokens = parity_clip.clip_frames(parity_clip.clip_length(manifest)), synthetic_tokens(60, 8)
    want = list(references.sam3_clip(toy_sam3(), manifest.networks, frames, tokens))
    rows = parity.compare_clip(want, parity_clip.clip_results(engine), "fp32")
    assert len(rows) == 5 and all(row.passed and row.error < 1e-4 and row.score_difference < 1e-4 for row in rows), rows


def clip(frames, seed=0):
    """Noise that moves, so that masks change."""
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, 4 * WIDTH, 3), np.uint8)
    return [noise[:, 2 * t : 2 * t + WIDTH].copy() for t in range(frames)]


def run(engine, concepts, frames, **options):
    with engine.session(concepts, logits=True, **options) as session:
        return list(session.stream(frames))


def same(a, b):
    """Equal but for the rounding of other batches."""
    assert (a.frame_index, a.masks.shape) == (b.frame_index, b.masks.shape)
    assert np.count_nonzero(a.masks != b.masks) <= 0.002 * a.masks.size
    assert a.scores == pytest.approx(b.scores, abs=1e-4)


@pytest.fixture(scope="module")
def plain(engine):
    return run(engine, [BUS], clip(6), temporal_disambiguation=False)


def test_streams_of_a_scheduler_give_the_masks_of_each_alone(engine):
    sources = [([BUS], clip(18, 0)), ([DOG, BUS], clip(5, 1)), ([DOG], clip(3, 2))]
    got = [[] for _ in sources]
    with runtime.Scheduler(engine) as scheduler:
        streams = [scheduler.open(p, into.append, logits=True) for (p, _), into in zip(sources, got, strict=True)]
        for stream, (_, frames) in zip(streams, sources, strict=True):
            for frame in frames[:16]:
                assert stream.put(frame)
        while streams[0].num_waiting:
            time.sleep(0.01)
        for stream, (_, frames) in zip(streams, sources, strict=True):
            for frame in frames[16:]:
                assert stream.put(frame)
        assert scheduler.drain(PATIENCE)
    for (concepts, frames), deliveries in zip(sources, got, strict=True):
        alone = run(engine, concepts, frames)
        assert [d.outcome.value for d in deliveries] == ["done"] * len(alone) + ["end"]
        for delivery, result in zip(deliveries[:-1], alone, strict=True):
            assert delivery.result.object_ids == result.object_ids
            np.testing.assert_array_equal(delivery.result.masks, result.masks)


def test_every_frame_has_one_result(engine, plain):
    assert [r.frame_index for r in plain] == list(range(6))
    for result in plain:
        n = len(result.object_ids)
        assert n and result.masks.shape == (n, HEIGHT, WIDTH) and result.boxes.shape == (n, 4)
        assert result.low_res_logits.shape == (n, 32, 32) and set(result.prompt_ids) == {1}
        assert list(result.object_ids) == sorted(set(result.object_ids))
        assert result.masks.sum(0).max() <= 1  # objects of a concept do not overlap
        assert (result.scores > 0.5).all()
    assert any(set(a.object_ids) & set(b.object_ids) for a, b in itertools.pairwise(plain))


def test_results_are_late_with_temporal_disambiguation(engine):
    with engine.session([BUS]) as session:
        counts = [[r.frame_index for r in session.push(frame, time=t / 10)] for t, frame in enumerate(clip(17))]
        assert counts == [[]] * 14 + [[0], [1], [2]]
        rest = session.flush()
        assert [r.frame_index for r in rest] == list(range(3, 17)) and session.flush() == []
        assert [r.time for r in rest] == [t / 10 for t in range(3, 17)]


def test_concepts_of_a_session_do_not_change_each_other(engine, plain):
    both = run(engine, [BUS, DOG], clip(4), temporal_disambiguation=False)
    other = run(engine, [DOG], clip(4), temporal_disambiguation=False)
    for joined, first, second in zip(both, plain, other, strict=False):
        assert len(set(joined.object_ids)) == len(joined.object_ids) == len(first.object_ids) + len(second.object_ids)
        for number, alone in ((1, first), (2, second)):
            rows = [i for i, prompt in enumerate(joined.prompt_ids) if prompt == number]
            assert np.count_nonzero(joined.masks[rows] != alone.masks) <= 0.002 * alone.masks.size
            assert joined.scores[rows] == pytest.approx(alone.scores, abs=1e-4)


def test_concepts_come_and_go(engine):
    with engine.session([BUS], temporal_disambiguation=False) as session:
        first, *frames = clip(5)
        assert set(session.push(first)[0].prompt_ids) == {1}
        assert session.add_concept(DOG) == 2 and session.concepts == {1: BUS, 2: DOG}
        both = session.push(frames[0])[0]
        assert set(both.prompt_ids) == {1, 2} and set(session.object_ids) >= set(both.object_ids)
        session.remove_concept(1)
        assert set(session.push(frames[1])[0].prompt_ids) == {2}
        obj = session.object_ids[0]
        session.remove(obj)
        assert obj not in session.push(frames[2])[0].object_ids
        session.change_concept(2, BUS)
        assert session.push(frames[3])[0].frame_index == 4 and session.concepts == {2: BUS}
        for call in (session.remove_concept, session.remove):
            with pytest.raises(runtime.PromptError, match="there is no"):
                call(99)


def test_a_concept_that_leaves_is_shown_on_frames_that_wait(engine):
    with engine.session([BUS, DOG]) as session:
        for frame in clip(3):
            session.push(frame)
        session.remove_concept(2)
        assert {number for result in session.flush() for number in result.prompt_ids} == {1, 2}


def test_objects_are_bounded_over_all_concepts(engine):
    results = run(engine, [BUS, DOG], clip(4), temporal_disambiguation=False, max_objects=3)
    assert max(len(r.object_ids) for r in results) == 3


def test_detection_of_every_nth_frame(engine, plain):
    before, found = engine.timings["detr"][0], []
    with engine.session([BUS], logits=True, temporal_disambiguation=False, detect_every=3) as session:
        for frame in clip(6):
            (result,) = session.push(frame)
            found.append(session.object_ids)
            if result.frame_index == 0:
                same(result, plain[0])
    assert engine.timings["detr"][0] - before == 2
    assert found[0] == found[1] == found[2] and found[3] == found[4] == found[5]


def test_memory_does_not_grow(engine):
    with engine.session([BUS], max_objects=4) as session:
        counts = []
        for frame in clip(40):
            session.push(frame)
            counts.append(session._pool.num_chunks)
        assert counts[-1] == counts[20]
        assert session._pool.in_use == len(session.object_ids)
    assert session._pool.in_use == 0


@pytest.mark.parametrize("late", [True, False])
def test_corrections_of_objects_that_a_concept_found(engine, late):
    frames = clip(6)
    with engine.session([BUS, DOG], temporal_disambiguation=late) as session:
        for t, frame in enumerate(frames[:4]):
            before = session.push(frame, time=float(t))
        obj, *others = session.object_ids
        attended = engine.timings["memory_attention"][0]
        result = session.correct({obj: runtime.Mask(MASK)})
        assert engine.timings["memory_attention"][0] == attended and (result.frame_index, result.time) == (3, 3.0)
        given = result.masks[result.object_ids.index(obj)]
        assert np.count_nonzero(given & MASK) > 0.5 * np.count_nonzero(given)  # the rest belongs to other objects
        clicked = session.correct(
            {obj: runtime.Points([(40, 25)], [1]), **{o: runtime.Box((5, 5, 30, 30)) for o in others[:1]}}
        )
        assert set(clicked.object_ids) <= set(session.object_ids) and set(clicked.prompt_ids) <= {1, 2}
        rest = [r for frame in frames[4:] for r in session.push(frame)] + session.flush()
        assert [r.frame_index for r in rest] == list(range(6 if late else 2)) if late else [4, 5]
        if late:
            shown = next(r for r in rest if r.frame_index == 3)
            assert set(shown.object_ids) <= set(clicked.object_ids) or before == []
        for prompts in ({}, {99: runtime.Mask(MASK)}):
            with pytest.raises(runtime.PromptError):
                session.correct(prompts)
    with engine.session([BUS]) as session, pytest.raises(runtime.PromptError, match="push a frame"):
        session.correct({0: runtime.Mask(MASK)})


def test_exemplars_serve_the_whole_video(engine, plain):
    concept = Concept(tokens=[5, 6, 7], boxes=[[10, 10, 40, 40]])
    before = engine.timings["geometry_encoder"][0]
    results = run(engine, [concept], clip(3), temporal_disambiguation=False)
    assert engine.timings["geometry_encoder"][0] > before
    assert not np.array_equal(results[0].scores, plain[0].scores)
    image = engine.image(clip(1)[0]).detect([concept])[0]
    # the frames of a video are resized in another way than an image
    assert len(image.object_ids) >= len(results[0].object_ids)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_objects": 0}, "max_objects must be a whole number of 1 or more"),
        ({"detect_every": None}, "detect_every must be"),
        ({"window": 3}, "window"),
    ],
)
def test_refused_options(engine, options, message):
    with pytest.raises(runtime.UserError, match=message):
        engine.session([BUS], **options)


def test_refused_frames_and_concepts(engine):
    with pytest.raises(runtime.PromptError, match="must be runtime.Concept"):
        engine.session([BUS, "dog"])
    with pytest.raises(runtime.UserError, match="cannot follow sentences"):
        engine.session([runtime.Text(tokens=[1])])
    with engine.session([BUS], temporal_disambiguation=False) as session:
        frame = clip(1)[0]
        session.push(frame)
        with pytest.raises(runtime.VideoError):
            session.push(frame[:30])
        assert session.push(frame)[0].frame_index == 1
    with engine.session([Concept(tokens=[1], boxes=[[0, 0, 500, 20]])]) as session:
        with pytest.raises(runtime.PromptError, match="outside"):
            session.push(frame)
    with pytest.raises(runtime.UserError, match="closed"):
        session.push(frame)


def test_an_empty_detection_has_the_pointer_of_an_absent_object(engine, monkeypatch):
    with engine.session([BUS]) as session:
        tracker = session._tracker
        seen = np.ones_like(tracker.no_object_pointer)
        monkeypatch.setattr(tracker, "decode", lambda _, requests: [SimpleNamespace(obj_ptr=seen) for _ in requests])
        full = np.ones((tracker.mask_side, tracker.mask_side), bool)
        pointers = tracker.mask_pointers(None, [full, ~full, full])
        assert np.array_equal(pointers, [seen, tracker.no_object_pointer, seen])


# -- clicks and masks


CLICK = [(40, 25)], [1]


def test_clicks_on_an_image_share_its_trunk_with_concepts(engine):
    before = engine.timings["image_encoder"][0]
    image = engine.image(clip(1)[0])
    image.detect([BUS])
    masks, scores, logits = image.predict(*CLICK)
    assert masks.shape == (3, HEIGHT, WIDTH) and scores.shape == (3,) and logits.shape == (3, 32, 32)
    assert engine.timings["image_encoder"][0] == before + 1


def test_a_mask_is_shown_as_it_was_given(engine):
    with engine.video(clip(3), logits=True) as video:
        assert (video.add_mask(0, 1, MASK).masks[0] == MASK).all()
        over = np.roll(MASK, 8, 1)
        result = video.add_mask(0, 2, over)
        assert (result.masks == [MASK & ~over, over]).all()
        assert [r.frame_index for r in video.propagate()] == [0, 1, 2]


def test_a_prompt_conditions_all_objects(engine):
    with engine.video(clip(4)) as video:
        video.add_points(0, 1, *CLICK)
        video.add_mask(2, 2, MASK)
        list(video.propagate())
        assert set(video.state(1).cond_outputs) == {0, 2} and set(video.state(2).cond_outputs) == {0, 2}
        assert not video.state(2).cond_outputs[0].low_res_logits.max() > 0  # there, but nowhere to be seen
        video.clear_prompts(2, 2)
        assert set(video.state(1).cond_outputs) == {0}


def test_clicks_on_a_tracked_frame_do_not_see_the_memory(engine):
    with engine.video(clip(3)) as video:
        video.add_mask(0, 1, MASK)
        list(video.propagate())
        attended = engine.timings["memory_attention"][0]
        video.add_points(2, 1, *CLICK)
        assert engine.timings["memory_attention"][0] == attended
        list(video.propagate(start_frame=2, reverse=True))
        assert set(video.state(1).cond_outputs) == {0, 2}


def test_reverse_from_the_first_frame_returns_it(engine):
    with engine.video(clip(2)) as video:
        video.add_mask(0, 1, MASK)
        assert [r.frame_index for r in video.propagate(0, reverse=True)] == [0]


def test_of_many_points_the_first_and_last_are_used(engine):
    points = [(x, 20) for x in range(20, 40)]
    with engine.video(clip(1)) as video:
        with pytest.warns(UserWarning, match="of 20 points .* the first and the last 8"):
            many = video.add_points(0, 1, points, [1] * 20)
        chosen = points[:8] + points[-8:]
        assert np.array_equal(many.masks, video.add_points(0, 2, chosen, [1] * 16).masks[1:])


def test_live_prompts(engine):
    with engine.live() as live:
        first = live.push(clip(1)[0], {1: runtime.Mask(MASK)})[0]
        assert first.masks.shape == (1, HEIGHT, WIDTH)
        attended = engine.timings["memory_attention"][0]
        live.correct({1: runtime.Points(*CLICK)})
        assert engine.timings["memory_attention"][0] == attended
        assert live.push(clip(2)[1])[0].frame_index == 1


def test_the_command_has_the_results_of_a_session(engine, tmp_path, monkeypatch):
    frames = clip(5)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    monkeypatch.setattr(tokenizer.Tokenizer, "of", lambda *_: lambda text: ([5, 6, 7] if text == "bus" else [9, 2], []))
    args = ["--exemplar", "5,5,40,40@2", "--concept", "bus", "--no-temporal-disambiguation", "--max-objects", "9"]
    pictures = [str(tmp_path / f"{index}.png") for index in range(5)]
    command = ["--video", *pictures, *args, "--out", str(tmp_path / "out")]
    assert main(command, lambda *a, **k: engine) == 0
    with engine.session([BUS], temporal_disambiguation=False, max_objects=9, num_frames=5) as session:
        expected = [result for frame in frames[:2] for result in session.push(frame)]
        session.add_concept(Concept(tokens=[9, 2], boxes=[[5, 5, 40, 40]]))
        expected += [result for frame in frames[2:] for result in session.push(frame)]
    shown = json.loads((tmp_path / "out" / "results.json").read_text())["frames"]
    for frame, result in zip(shown, expected, strict=True):
        assert [o["id"] - 1 for o in frame["objects"]] == list(result.object_ids)
        concepts = {"bus": 1, "exemplar": 2}
        assert [concepts[o["concept"]] for o in frame["objects"]] == list(result.prompt_ids)
        assert [o["area"] for o in frame["objects"]] == [mask.sum() for mask in result.masks]


def clear_the_other(video):
    video.clear_prompts(0, 1)
    video.clear_prompts(2, 2)


def clear_and_remove(video):
    video.clear_prompts(0, 1)
    video.remove_object(2)


@pytest.mark.parametrize("forget", [clear_the_other, clear_and_remove])
def test_without_prompts_nothing_that_was_tracked_is_left(engine, forget):
    with engine.video(clip(4), logits=True) as video, engine.video(clip(4), logits=True) as fresh:
        video.add_points(0, 1, *CLICK)
        video.add_mask(2, 2, MASK)
        list(video.propagate())
        forget(video)
        assert not video.state(1).non_cond_outputs and video.output(1, 1) is None
        for session in (video, fresh):
            session.add_points(1, 1, *CLICK)  # a tracked mask would be refined
            session.add_points(2, 2, *CLICK)
        for ours, expected in zip(video.propagate(), fresh.propagate(), strict=True):
            same(ours, expected)
            np.testing.assert_allclose(ours.low_res_logits, expected.low_res_logits, atol=1e-4)
