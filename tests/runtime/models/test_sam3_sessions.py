"""Sessions of SAM 3 as their callers use and misuse them, on numpy stages whose objects are drawn by the tests."""

import numpy as np
import pytest

import runtime
from helpers import numpy_sam3
from helpers.numpy_sam3 import picture
from runtime import Concept, Points

RED, GREEN, CLICK = Concept(tokens=[1]), Concept(tokens=[2]), Points([(10, 8)], [1])
SIZE = 24, 40


@pytest.fixture(scope="module")
def engine(numpy_sam3_bundle):
    return numpy_sam3.load(numpy_sam3_bundle)


def ids(results):
    return [(r.frame_index, r.object_ids, r.prompt_ids) for r in results]


# -- concepts


LONG = Concept(tokens=[1] * 9)
BAD = {
    "word": (Concept(tokens=[99]), "token 99 .* outside the vocabulary"),
    "exemplars": (Concept(tokens=[1], boxes=[[1, 1, 9, 9]] * 4), "4 exemplars are more than the 3"),
    "tokenizer": (Concept("bus"), "has no tokenizer"),
    "type": ("bus", "must be runtime.Concept"),
}
OUTSIDE = Concept(tokens=[1], boxes=[[0, 0, 99, 9]])


@pytest.mark.parametrize("bad, message", BAD.values(), ids=list(BAD))
def test_a_concept_that_is_refused_is_refused_at_once(engine, bad, message):
    """The session keeps what it follows, and takes every frame."""
    with pytest.raises(runtime.PromptError, match=message):
        engine.session([RED, bad])
    with engine.session([RED], temporal_disambiguation=False) as session:
        for number in range(2):
            for call in (session.add_concept, lambda concept: session.change_concept(1, concept)):
                with pytest.raises(runtime.PromptError, match=message):
                    call(bad)
            assert ids(session.push(picture(0))) == [(number, (0,), (1,))] and session.concepts == {1: RED}
        assert session.add_concept(GREEN) == 2


def test_an_exemplar_outside_is_refused_when_the_size_is_known(engine):
    with engine.session([RED, OUTSIDE], temporal_disambiguation=False) as session:
        with pytest.raises(runtime.PromptError, match="outside the image"):
            session.push(picture(0))
        session.remove_concept(2)
        assert ids(session.push(picture(0, size=(30, 50)))) == [(0, (0,), (1,))]
        for call in (session.add_concept, lambda concept: session.change_concept(1, concept)):
            with pytest.raises(runtime.PromptError, match="outside the image, 50x30"):
                call(OUTSIDE)
        assert ids(session.push(picture(0, size=(30, 50)))) == [(1, (0,), (1,))]


def test_words_that_are_cut_are_warned_of_once(engine):
    with pytest.warns(UserWarning, match="is cut to 4 tokens") as warned, engine.session([LONG]) as session:
        session.push(picture(0))
        assert len(warned) == 1
        session.add_concept(LONG)
        session.change_concept(1, LONG)
        session.push(picture(0))
    assert len(warned) == 3


def test_a_changed_concept_is_searched_on_the_next_frame(engine):
    """Whichever its turn is: the frame has the exemplars."""
    with engine.session([RED], detect_every=50, temporal_disambiguation=False) as session:
        frame = picture(0) | picture(3, channel=1)
        session.push(frame)
        session.push(frame)
        geometry = engine.timings["geometry_encoder"][0]
        session.change_concept(1, Concept(tokens=[2], boxes=[[30, 16, 38, 22]]))
        assert ids(session.push(frame)) == [(2, (0, 1), (1, 1))]
        assert engine.timings["geometry_encoder"][0] >= geometry + 1
        searched = engine.timings["detr"][0]
        session.push(frame)
        assert engine.timings["detr"][0] == searched


def test_concepts_come_and_go_at_any_time(engine):
    with engine.session([RED]) as session:
        assert session.flush() == []
        session.remove_concept(1)
        assert ids(session.push(picture(0))) == [(0, (), ())]
        session.remove_concept(session.add_concept(RED))
        assert ids(session.push(picture(0))) == [(1, (), ())] and session.flush() == []
        number = session.add_concept(RED)
        with pytest.raises(runtime.PromptError, match="there is no object 0; objects: none"):
            session.correct({0: CLICK})
        session.push(picture(0))
        session.add_concept(GREEN)
        assert ids([session.correct({0: CLICK})]) == [(2, (0,), (number,))]
        session.push(picture(0) | picture(3, channel=1))
        session.remove_concept(number)
        results = session.push(picture(3, channel=1)) + session.flush()
        assert ids(results) == [(2, (0,), (number,)), (3, (0, 1), (number, 4)), (4, (1,), (4,))]


@pytest.mark.parametrize("bad", [99, -1, "0", None, 0.0, False, True, [0], (0,)])
def test_ids_that_there_are_not(engine, bad):
    with engine.session([RED]) as session, engine.live() as live, engine.video([picture(0)]) as video:
        session.push(picture(0, 3))
        live.push(picture(0), {0: CLICK})
        video.add_points(0, 0, CLICK.points, CLICK.labels)
        calls = [session.remove, session.remove_concept, lambda obj: session.change_concept(obj, GREEN)]
        calls += [lambda obj: session.correct({obj: CLICK}), live.remove, video.remove_object, video.state]
        for call in calls:
            with pytest.raises(runtime.PromptError) if not isinstance(bad, list) else pytest.raises(Exception):
                call(bad)
        assert session.object_ids == (0, 1) and session.concepts == {1: RED} and live.object_ids == (0,)
        session.remove(np.int64(0))
        session.remove_concept(np.int64(1))
        live.remove(np.int64(0))


@pytest.mark.parametrize(
    "options",
    [
        {"max_objects": 1},
        {"num_frames": 1},
        {"num_frames": 3},
        {"detect_every": 50},
        {"detect_every": 2, "max_objects": 2, "num_frames": 2},
        {"hide_unmatched_after_hotstart": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_every_frame_of_a_clip_of_any_length_comes_once(engine, options, late, count):
    with engine.session([RED, GREEN], temporal_disambiguation=late, **options) as session:
        frame = picture(0, 3) | picture(1, channel=1)
        results = list(session.stream([frame] * count))
        assert [r.frame_index for r in results] == list(range(count))
        expected = (0, 1, 2)[: options.get("max_objects")]
        assert all(r.object_ids == expected for r in results)
        assert session._pool.in_use == len(expected) * bool(count)


def test_sessions_take_turns(engine):
    """Two sessions and an image on one engine, frame by frame."""
    clips = [[picture(0, 3)] * 12 + [picture(3)] * 9, [picture(1, 2, channel=1)] * 21]
    alone = [list(engine.session([concept]).stream(clip)) for concept, clip in zip((RED, GREEN), clips, strict=True)]
    found = [[], []]
    with engine.session([RED]) as red, engine.session([GREEN]) as green:
        for frames in zip(*clips, strict=True):
            for session, results, frame in zip((red, green), found, frames, strict=True):
                results += session.push(frame)
                assert len(engine.image(picture(2)).detect([RED])[0].masks) == 1
        found[0] += red.flush()
        found[1] += green.flush()
    for results, expected in zip(found, alone, strict=True):
        assert ids(results) == ids(expected)
        assert all(np.array_equal(a.masks, b.masks) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temporal_disambiguation": "no"}, "temporal_disambiguation must be True or False, not 'no'"),
        ({"temporal_disambiguation": None}, "must be True or False"),
        ({"hide_unmatched_after_hotstart": 3}, "must be True or False"),
        ({"num_frames": 2.0}, "whole number"),
        ({"detect_every": True}, "whole number"),
        ({"foo": 1}, "session has no option foo"),
    ],
)
def test_options_of_another_type(engine, options, message):
    with pytest.raises(runtime.UserError, match=message):
        engine.session([RED], **options)


@pytest.mark.parametrize("prompts", [[], (), RED, "bus", None, iter([RED]), [RED, "bus"], [None]])
def test_concepts_are_a_list(engine, prompts):
    for call in (engine.session, engine.image(picture(0)).detect):
        with pytest.raises(runtime.PromptError, match=r"runtime\.Concept"):
            call(prompts)


@pytest.mark.parametrize("threshold", [-0.1, 1, 2, float("nan"), "high", None, True])
def test_thresholds(engine, threshold):
    with pytest.raises(runtime.UserError, match="threshold must be"):
        engine.image(picture(0)).detect([RED], threshold=threshold)


# -- prompts in a video whose frames are known


def mask(top, left):
    given = np.zeros(SIZE, bool)
    given[top : top + 7, left : left + 9] = True
    return given


def test_masks_that_are_given_are_shown_with_their_boxes(engine):
    """Also where a later mask, points or nothing takes their place."""
    with engine.video([picture(0, 3)] * 3, logits=True) as video:
        for obj, given in enumerate((mask(2, 3), mask(5, 8), mask(1, 1))):
            result = video.add_mask(0, obj, given)
            assert np.array_equal(result.masks[obj], given)
            for row, box in zip(result.masks, result.boxes, strict=True):
                rows, columns = np.nonzero(row)
                assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert result.masks.sum(0).max() == 1
        video.add_points(0, 1, [(30, 20)], [1])
        assert not np.array_equal(video.clear_prompts(0, 2).masks[1], mask(5, 8))  # its pixels stay taken
        video.remove_object(2)
        assert [r.frame_index for r in video.propagate()] == [0, 1, 2]
        assert video.output(0, 0).given is None


def test_corrections_of_an_offline_video_condition_whatever_the_option_says(engine):
    with engine.video([picture(0, 3)] * 3, add_all_frames_to_correct_as_cond=False) as video:
        video.add_mask(0, 1, mask(2, 3))
        list(video.propagate())
        video.add_points(2, 1, [(30, 20)], [1])
        assert len(list(video.propagate())) == 3 and set(video.state(1).cond_outputs) == {0, 2}
