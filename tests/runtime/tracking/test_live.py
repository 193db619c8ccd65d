"""Live sessions: masks equal to those of a known video without look-ahead, and constant memory."""

import numpy as np
import pytest

import runtime
from helpers import toy_sam2
from runtime import Box, Mask, Points

HEIGHT, WIDTH = 20, 30
CLICK = Points([(10, 8)], [1])


def clip(count, seed=0):
    return np.random.default_rng(seed).integers(40, 255, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def engine(toy_sam2_bundle):
    with runtime.load(toy_sam2_bundle) as engine:
        yield engine


def known(engine, frames, prompts, **options):
    """A known video, driven as if it were live: prompts on a frame, then tracking up to the next prompted frame."""
    out = []
    with engine.video(frames, logits=True, **options) as video:
        marks = sorted(prompts)
        for start, end in zip(marks, [*marks[1:], len(frames)], strict=True):
            for obj, prompt in prompts[start].items():
                if isinstance(prompt, Points):
                    video.add_points(start, obj, prompt.points, prompt.labels)
                elif isinstance(prompt, Box):
                    video.add_box(start, obj, prompt.xyxy)
                else:
                    video.add_mask(start, obj, prompt.array)
            out += list(video.propagate(start, end - start - 1))
    return out


def live(engine, frames, prompts, **options):
    with engine.live(logits=True, **options) as session:
        return list(session.stream(frames, prompts))


@pytest.mark.parametrize(
    "prompts",
    [
        {0: {1: CLICK}},
        {0: {1: CLICK, 2: Box((3, 3, 12, 12))}, 4: {3: Points([(20, 3), (1, 1)], [1, 0])}},
        {0: {1: CLICK}, 5: {1: Points([(3, 3)], [1])}, 6: {2: Mask(np.arange(HEIGHT)[:, None].repeat(WIDTH, 1) > 9)}},
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"memory_temporal_stride": 3}, {"memory_temporal_stride": 2, "fill_hole_area": 0}]
)
def test_equals_a_known_video_without_look_ahead(engine, prompts, options):
    frames = clip(24)
    got, want = live(engine, frames, prompts, **options), known(engine, frames, prompts, **options)
    assert [r.frame_index for r in got] == list(range(24))
    for a, b in zip(got, want, strict=True):
        assert a.object_ids == b.object_ids
        np.testing.assert_allclose(a.low_res_logits, b.low_res_logits, rtol=1e-5, atol=1e-5)
        assert (a.masks == b.masks).all() and a.masks.shape == (len(a.object_ids), HEIGHT, WIDTH)


def test_many_conditioning_frames_equal_a_known_video_with_that_limit(engine):
    frames, prompts = clip(40), {t: {1: Points([(t / 2, 5)], [1])} for t in (0, 3, 4, 9, 10, 11, 20, 26, 27)}
    for most in (2, 3):
        got = live(engine, frames, prompts, max_cond_frames_in_attn=most)
        want = known(engine, frames, prompts, max_cond_frames_in_attn=most)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a.low_res_logits, b.low_res_logits, rtol=1e-5, atol=1e-5)


def test_distances_are_those_of_a_long_video(engine):
    frames = clip(3)
    longer = np.concatenate([frames, clip(20, seed=1)])
    short, long = known(engine, frames, {0: {1: CLICK}}), known(engine, longer, {0: {1: CLICK}})[:3]
    got = live(engine, frames, {0: {1: CLICK}})
    np.testing.assert_allclose(got[2].low_res_logits, long[2].low_res_logits, rtol=1e-5, atol=1e-5)
    assert np.abs(got[2].low_res_logits - short[2].low_res_logits).max() > 1e-5


def test_correction_of_a_tracked_frame(engine):
    frames = clip(8)
    with engine.live(logits=True) as session, engine.video(np.concatenate([frames, clip(9, 3)]), logits=True) as video:
        results = [session.push(f, {1: CLICK} if i == 0 else None)[0] for i, f in enumerate(frames[:6])]
        video.add_points(0, 1, CLICK.points, CLICK.labels)
        list(video.propagate(0, 5))
        for clicks in (Points([(20, 12)], [1]), Points([(2, 2)], [0])):
            a = session.correct({1: clicks}, frame=5)
            b = video.add_points(5, 1, clicks.points, clicks.labels, clear_old=False)
            np.testing.assert_allclose(a.low_res_logits, b.low_res_logits, rtol=1e-5, atol=1e-5)
        assert np.abs(a.low_res_logits - results[5].low_res_logits).max() > 1e-3
        assert session.output(1).memory_tokens == video.output(5, 1).memory_tokens != (0, 0)
        for frame, b in zip(frames[6:], video.propagate(6, 1), strict=False):
            np.testing.assert_allclose(session.push(frame)[0].low_res_logits, b.low_res_logits, rtol=1e-5, atol=1e-5)


def test_refinement_of_a_prompted_frame(engine):
    frames = clip(4)
    with engine.live(logits=True) as session, engine.video(np.concatenate([frames, clip(20, 3)]), logits=True) as video:
        session.push(frames[0], {1: CLICK})
        video.add_points(0, 1, CLICK.points, CLICK.labels)
        a = session.correct({1: Points([(2, 2)], [0]), 2: CLICK})
        video.add_points(0, 1, [(2, 2)], [0], clear_old=False)
        b = video.add_points(0, 2, CLICK.points, CLICK.labels)
        np.testing.assert_allclose(a.low_res_logits, b.low_res_logits, rtol=1e-5, atol=1e-5)
        for frame, b in zip(frames[1:], list(video.propagate())[1:], strict=False):
            np.testing.assert_allclose(session.push(frame)[0].low_res_logits, b.low_res_logits, rtol=1e-5, atol=1e-5)


def test_two_thousand_frames_with_objects_coming_and_going(engine, monkeypatch):
    frames, network = clip(16), engine.networks["sam2"]
    with engine.live() as session:
        expected, seen = [], set()
        for t in range(2000):
            prompts = None
            if t % 50 == 0:
                if len(expected) == 3:
                    session.remove(expected.pop(0))
                expected.append(t + 1)
                prompts = {t + 1: CLICK}
            elif t % 77 == 0:
                prompts = {expected[-1]: Points([(9, 9)], [1])}  # a conditioning frame more
            if t == 300:
                monkeypatch.setattr(engine.backend.device, "empty", lambda *a: pytest.fail("the memory grows"))
            (result,) = session.push(frames[t % 16], prompts)
            assert (result.frame_index, result.object_ids) == (t, tuple(expected)), "ids are stable"
            kept = sum(len(x.cond_outputs) + len(x.non_cond_outputs) for x in map(session.state, session.object_ids))
            seen.add(kept)
        assert max(seen) < 3 * (toy_sam2.POINTERS + toy_sam2.SLOTS + 5)
        # four conditioning frames, what a frame attends to, and one more: the pool of this very size is in use
        pool = network.memory_pool(4 + toy_sam2.SLOTS + 1)
        assert pool.in_use == 3 and pool.num_chunks == 3
    assert pool.in_use == 0


def test_prompted_and_tracked_objects_are_one_batch(engine):
    with engine.live() as session:
        session.push(clip(1)[0], {1: CLICK})
        before = {name: calls for name, (calls, _) in engine.timings.items()}
        session.push(clip(1)[0], {2: [Box((3, 3, 12, 12)), Points([(5, 5), (1, 1)], [1, 0])]})
        calls = {name: calls - before[name] for name, (calls, _) in engine.timings.items()}
    assert calls == {
        "image_encoder": 1,
        "memory_attention": 1,
        "prompt_decoder": 1,
        "prompt_encoder": 1,
        "prompt_memory_encoder": 1,
        "mask_prompt": 0,
    }


def test_frames_without_objects_cost_nothing(engine):
    before = {name: calls for name, (calls, _) in engine.timings.items()}
    with engine.live() as session:
        (result,) = session.push(clip(1)[0])
        assert result.object_ids == () and result.masks.shape == (0, HEIGHT, WIDTH)
        assert {name: calls for name, (calls, _) in engine.timings.items()} == before
        assert session.correct({4: CLICK}).object_ids == (4,), "an object may be added after the frame was shown"


def test_interleaved_sessions(engine):
    one, two = engine.live(), engine.live()
    results = one.push(clip(1)[0], {1: CLICK}) + two.push(clip(1)[0], {7: CLICK})
    assert [r.object_ids for r in results] == [(1,), (7,)]
    assert one.flush() == []


@pytest.mark.parametrize(
    "prompts, error",
    [
        ({1: Points([(31, 3)], [1])}, "outside the image"),
        ({1: Mask(np.ones((3, 3)))}, "the video 30x20"),
        ({1: "a cat"}, "runtime.Points"),
        ({1: []}, "runtime.Points"),
        ({"x": CLICK}, "whole number"),
        ([CLICK], "a dict"),
        ({1: [Box((0, 0, 3, 3)), Box((1, 1, 4, 4))]}, "at most one box"),
        ({1: Points([(1, 1)] * 9, [1] * 9)}, "9 points"),
    ],
)
def test_refused_prompt_consumes_no_frame(engine, prompts, error):
    with engine.live() as session:
        with pytest.raises(runtime.PromptError, match=error):
            session.push(clip(1)[0], prompts)
        assert session.object_ids == ()
        assert session.push(clip(1)[0])[0].frame_index == 0


def test_prompts_on_frames_that_do_not_come_are_told(engine):
    prompts = {0: {1: CLICK}, 2: {1: CLICK}, 3: {2: CLICK}, 9: {3: CLICK}}
    with engine.live() as session, pytest.warns(UserWarning, match="prompts on frames 3, 9 were not used: .* 3 frames"):
        assert len(list(session.stream(clip(3), prompts))) == 3
    with engine.live() as session:
        session.push(clip(1)[0])
        with pytest.warns(UserWarning, match="frames 0 were not used"):
            list(session.stream(clip(2), {0: {1: CLICK}, 1: {2: CLICK}}))


def test_frames_in_portions_with_the_same_prompts(engine, recwarn):
    prompts = {0: {1: CLICK}, 3: {2: CLICK}}
    with engine.live() as session:
        for frame in clip(2):
            session.push(frame, prompts.get(0))
        assert [r.frame_index for r in session.stream(clip(2), prompts)] == [2, 3]
        assert session.object_ids == (1, 2) and not recwarn.list


def test_prompts_of_a_function(engine, recwarn):
    prompts, asked = {0: {1: CLICK}, 2: {2: CLICK}}, []
    with engine.live() as session:
        found = [r.object_ids for r in session.stream(clip(4), lambda n: asked.append(n) or prompts.get(n))]
    assert found == [(1,), (1,), (1, 2), (1, 2)] and asked == [0, 1, 2, 3] and not recwarn.list


def test_late_prompts_are_refused(engine):
    with engine.live() as session:
        with pytest.raises(runtime.PromptError, match="push one first"):
            session.correct({1: CLICK})
        for frame in clip(3):
            session.push(frame)
        with pytest.raises(runtime.PromptError, match="frame 1 has left the live window"):
            session.correct({1: CLICK}, frame=1)
        with pytest.raises(runtime.PromptError, match="no object 1"):
            session.remove(1)


def test_too_many_objects(toy_sam2_bundle):
    with runtime.load(toy_sam2_bundle, max_objects=2) as engine, engine.live() as session:
        session.push(clip(1)[0], {1: CLICK})
        with pytest.raises(runtime.UserError, match="max_objects"):
            session.push(clip(1)[0], {2: CLICK, 3: CLICK})
        assert session.object_ids == (1,)


def test_size_change(engine):
    with engine.live() as session:
        session.push(clip(1)[0])
        with pytest.raises(runtime.VideoError, match="30x20 to 20x20"):
            session.push(np.zeros((20, 20, 3), np.uint8))


def test_text_is_refused_by_a_bundle_without_text(engine):
    with pytest.raises(runtime.UserError, match="cannot follow sentences"):
        engine.session([runtime.Text("a cat")])


def test_memory_attention_takes_a_few_objects_at_a_time(toy_sam2_bundle, monkeypatch):
    """On a processor, at official sizes: the same masks, and a call never holds more than its share."""
    frames, prompts = clip(4), {0: {i: Points([(4 + 5 * i, 8)], [1]) for i in range(5)}}
    found = []
    for positions, calls in ((1 << 20, 9), (4, 15)):  # the toy takes batches of two, and has four positions
        monkeypatch.setattr("runtime.models.sam2.memory_attention.MAX_ATTENTION_TOKENS", positions)
        with runtime.load(toy_sam2_bundle) as engine:
            found.append([r.low_res_logits for r in live(engine, frames, prompts)])
            assert engine.timings["memory_attention"][0] == calls
    np.testing.assert_array_equal(*found)
