"""Sentences that are added to a running session and removed from it."""

from collections import defaultdict

import numpy as np
import pytest

import runtime
from helpers import toy_samwise
from helpers.fake_cuda import FakeCudaBackend
from helpers.samwise_schedule import A, B, C, frames, low_latency_reference, reference, run
from runtime.bundle.bundle import choose
from runtime.engine import Engine


@pytest.fixture(params=["cpu", "fake CUDA"])
def engine(toy, request):
    with runtime.load(toy) if request.param == "cpu" else Engine(choose(toy), FakeCudaBackend()) as engine:
        yield engine


def text(tokens):
    return runtime.Text(tokens=tokens)


def follow(session, clip, changes):
    """Logits of every object by the frames that it has results on; `changes`: calls before the frame of this number."""
    found = defaultdict(dict)
    results = []
    for number, frame in enumerate(clip):
        changes.get(number, lambda session: None)(session)
        results += session.push(frame)
    results += session.flush()
    assert [result.frame_index for result in results] == list(range(len(clip)))
    for result in results:
        assert len(result.object_ids) == len(result.masks) == len(result.boxes) == len(result.ious)
        for at, i in enumerate(result.object_ids):
            found[i][result.frame_index] = result.low_res_logits[at]
    return found


@pytest.mark.parametrize("latency, starts", [("clip", 12), ("low", 9)])
def test_an_added_sentence_begins_with_an_empty_memory(engine, latency, starts):
    """With the next clip, or the next frame; the others keep every bit."""
    clip = frames(23)
    before = run(engine, clip, A, B, latency=latency)[0]
    with engine.session([text(A), text(B)], logits=True, latency=latency) as session:
        found = follow(session, clip, {9: lambda session: session.add(text(C))})
        assert session.object_ids == (1, 2, 3)
    for i in (1, 2):
        np.testing.assert_array_equal(np.stack(list(found[i].values())), before[i - 1])
    expected = low_latency_reference(clip[starts:], C) if latency == "low" else reference(clip[starts:], C)[0]
    assert list(found[3]) == list(range(starts, 23))
    np.testing.assert_allclose(np.stack(list(found[3].values())), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("latency", ["clip", "low"])
@pytest.mark.parametrize("removed", [1, 2])
def test_a_removed_sentence_leaves_the_others_as_they_are(engine, latency, removed):
    clip = frames(18)
    before = run(engine, clip, A, B, latency=latency)[0]
    with engine.session([text(A), text(B)], logits=True, latency=latency) as session:
        found = follow(session, clip, {7: lambda session: session.remove(removed)})
    kept = 3 - removed
    np.testing.assert_array_equal(np.stack(list(found[kept].values())), before[kept - 1])
    assert list(found[removed]) == list(range(7 if latency == "low" else 4))


@pytest.mark.parametrize("latency", ["clip", "low"])
def test_the_first_sentences_can_be_replaced(engine, latency):
    clip = frames(17)

    def replace(session):
        (added,) = session.add(text(B))
        session.remove(1)
        assert session.object_ids == (added,) == (2,)

    with engine.session([text(A)], logits=True, latency=latency) as session:
        found = follow(session, clip, {8: replace})
        assert engine.networks.text_video.maskmem_pool.in_use == 1
    expected = low_latency_reference(clip[8:], B) if latency == "low" else reference(clip[8:], B)[0]
    assert list(found[2]) == list(range(8, 17)) and list(found[1]) == list(range(8))
    np.testing.assert_allclose(np.stack(list(found[2].values())), expected, rtol=1e-5, atol=1e-5)


def test_changes_every_few_frames_leave_nothing_behind(engine):
    """And the number of objects is that of the sentences that are followed."""
    in_use = engine.networks.text_video.maskmem_pool
    clip, before = frames(90), run(engine, frames(90), A, latency="low")[0][0]
    with engine.session([text(A)], logits=True, latency="low") as session:
        added, got = [], []
        for number, frame in enumerate(clip):
            if number % 5 == 0:
                added += session.add(text(B), text(C))
            if number % 5 == 3:
                for i in added:
                    session.remove(i)
                added = []
            (result,) = session.push(frame)
            got.append(result.low_res_logits[0])
            assert result.object_ids == (1, *added) and in_use.in_use == 1 + len(added)
    np.testing.assert_array_equal(np.stack(got), before)
    assert in_use.in_use == 0


def test_steps_of_a_scheduler(engine):
    clip = frames(2 * toy_samwise.WINDOW)
    with engine.session([text(A)], logits=True) as session:
        results = []
        for number, frame in enumerate(clip):
            if number == 2:
                session.add(text(B))
            results += [step for step in session.feed(frame) if isinstance(step, runtime.Result)]
    assert [result.object_ids for result in results] == [(1,)] * 4 + [(1, 2)] * 4
    np.testing.assert_array_equal(np.stack([r.low_res_logits[0] for r in results]), run(engine, clip, A)[0][0])


def test_errors(engine):
    with engine.session([text(A)]) as session:
        with pytest.raises(runtime.UserError, match="object 1 is the last one; close the session, or add another"):
            session.remove(1)
        with pytest.raises(runtime.UserError, match="no object 7; objects of this session: 1"):
            session.remove(7)
        with pytest.raises(runtime.PromptError):
            session.add(text([0, toy_samwise.VOCABULARY, 2]))
        with pytest.raises(runtime.UserError, match="max_objects"):
            session.add(*[text(B)] * 16)
        with pytest.raises(runtime.PromptError):
            session.add()
        assert session.object_ids == (1,)
        assert session.add(text(B)) == (2,)
    with pytest.raises(runtime.UserError, match="closed"):
        session.add(text(B))
