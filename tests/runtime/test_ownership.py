"""Memory that is shared with the caller: buffers that are used again, and sessions that are dropped."""

import gc
import os
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import runtime
from helpers import media, numpy_sam3, toy_refersam
from helpers.samwise_schedule import A, B
from runtime import Box, Concept, Mask, Points
from runtime.tracking.requests import ImageFeatures

CLICK = Points([(10, 8)], [1])
MAX_OBJECTS = 4


def clip(count=6, seed=0):
    return np.random.default_rng(seed).integers(40, 255, (count, 20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def text(toy):
    return runtime.load(toy, max_objects=MAX_OBJECTS)


@pytest.fixture(scope="module")
def prompts(toy_sam2_bundle):
    return runtime.load(toy_sam2_bundle, max_objects=MAX_OBJECTS)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    return runtime.load(toy_refersam.build(tmp_path_factory.mktemp("bundles") / "refersam"))


@pytest.fixture(scope="module")
def concepts(numpy_sam3_bundle):
    return numpy_sam3.load(numpy_sam3_bundle, max_objects=MAX_OBJECTS)


def arrays(results):
    return [np.asarray(getattr(r, name)) for r in results for name in r.__slots__ if getattr(r, name) is not None]


# -- buffers --------------------------------------------------------------------------------------------------------


class Camera:
    """Reads every frame into one buffer; `fresh`: into a new one. What was given out before is spoilt then."""

    def __init__(self, fresh):
        self._fresh, self._given = fresh, []

    def give(self, array):
        array = np.array(array)
        self._given.append(array)
        return array

    def spoil(self):
        if not self._fresh:
            with np.errstate(over="ignore"):
                for array in self._given:
                    array[...] = array.flat[0] + 1 if array.dtype != bool else ~array
        self._given = []


def text_pushed(engines, camera):
    with engines["text"].session([runtime.Text(tokens=camera.give(A)), runtime.Text(tokens=B)]) as session:
        camera.spoil()
        found = []
        for frame in clip():
            found += session.push(camera.give(frame))
            camera.spoil()
        return found + session.flush()


def live_without_objects(engines, camera):
    with engines["prompts"].live() as session:
        found = session.push(camera.give(clip()[0]))
        camera.spoil()
        return [*found, session.correct({1: CLICK}), session.correct({1: Points([(3, 3)], [0])})]


def live_with_objects(engines, camera):
    with engines["prompts"].live() as session:
        found = []
        for number, frame in enumerate(clip()):
            found += session.push(camera.give(frame), {1: CLICK} if number == 0 else None)
            camera.spoil()
            found.append(session.correct({1: Points([(number, 3)], [0]), 2: Box((3, 3, 12, 12))}))
        return found


def live_streamed(engines, camera):
    def frames():
        for frame in clip():
            yield camera.give(frame)
            camera.spoil()

    with engines["prompts"].live() as session:
        return list(session.stream(frames(), {0: {1: CLICK}, 3: {2: Box((3, 3, 12, 12))}}))


def prompt_arrays(engines, camera):
    given = {
        1: Points(camera.give([[10.0, 8.0], [3.0, 3.0]]), camera.give([1, 0])),
        2: Box(camera.give([3.0, 3.0, 12.0, 12.0])),
        3: Mask(camera.give(np.arange(20)[:, None].repeat(30, 1) > 9)),
        4: Mask(camera.give((np.arange(20)[:, None].repeat(30, 1) > 9).astype(np.uint8) * 255)),
    }
    camera.spoil()
    with engines["prompts"].live() as session:
        return list(session.stream(clip(), {0: given}))


def video_prompts(engines, camera):
    with engines["prompts"].video(clip()) as video:
        found = [video.add_points(0, 1, camera.give([[10.0, 8.0]]), camera.give([1]))]
        camera.spoil()
        found.append(video.add_mask(1, 2, camera.give(np.arange(20)[:, None].repeat(30, 1) > 9)))
        camera.spoil()
        found.append(video.add_points(0, 1, camera.give([[3.0, 3.0]]), camera.give([0]), clear_old=False))
        camera.spoil()
        return found + list(video.propagate())


def video_of_a_list(engines, camera):
    """The frames of a known video are read when they are needed; the list is not."""
    frames = list(clip())
    with engines["prompts"].video(frames) as video:
        video.add_points(0, 1, CLICK.points, CLICK.labels)
        if not camera._fresh:
            frames.clear()
        return list(video.propagate())


def image_predicted(engines, camera):
    image = engines["prompts"].image(camera.give(clip()[0]))
    camera.spoil()
    first = image.predict(camera.give([[10.0, 8.0]]), camera.give([1]))
    camera.spoil()
    again = image.predict(mask_input=camera.give(first.low_res[0]))
    camera.spoil()
    return [first, again, *image.segment_all(points_per_side=2, pred_iou_thresh=-10.0, stability_score_thresh=0.0)]


def concepts_followed(engines, camera):
    given = Concept(tokens=camera.give([1]), boxes=camera.give([[1.0, 1.0, 9.0, 9.0]]), labels=camera.give([1]))
    camera.spoil()
    with engines["concepts"].session([given], logits=True) as session:
        found = []
        for number in range(4):
            found += session.push(camera.give(numpy_sam3.picture(0, number)))
            camera.spoil()
            if number == 2:
                session.add_concept(Concept(boxes=camera.give([[2.0, 2.0, 9.0, 9.0]]), tokens=camera.give([2])))
                camera.spoil()
            found.append(session.correct({0: Points(camera.give([[10.0, 8.0]]), camera.give([1]))}))
            camera.spoil()
            found.append(session.correct({0: Mask(camera.give(np.arange(24)[:, None].repeat(40, 1) > 9))}))
            camera.spoil()
        return found + session.flush()


def concepts_of_an_image(engines, camera):
    image = engines["concepts"].image(camera.give(numpy_sam3.picture(0)))
    camera.spoil()
    given = Concept(tokens=camera.give([1]), boxes=camera.give([[1.0, 1.0, 9.0, 9.0]]))
    camera.spoil()
    return image.detect([given], logits=True, semantic=True)


def image_referred(engines, camera):
    image = engines["sentences"].image(camera.give(clip()[0]))
    camera.spoil()
    return [image.refer([runtime.Text(tokens=[0, 5, 2])])]


USES = [
    text_pushed,
    live_without_objects,
    live_with_objects,
    live_streamed,
    prompt_arrays,
    video_prompts,
    video_of_a_list,
    image_predicted,
    image_referred,
    concepts_followed,
    concepts_of_an_image,
]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_a_buffer_may_be_used_again(text, prompts, sentences, concepts, use):
    engines = {"text": text, "prompts": prompts, "sentences": sentences, "concepts": concepts}
    for a, b in zip(arrays(use(engines, Camera(False))), arrays(use(engines, Camera(True))), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_results_are_the_callers_own(text, prompts, concepts):
    """A result that is changed changes no later one."""

    def run(change):
        found = []
        with (
            text.session([runtime.Text(tokens=A)], logits=True) as session,
            prompts.live(logits=True) as live,
            prompts.video(clip(), logits=True) as video,
            concepts.session([Concept(tokens=[1])], logits=True) as followed,
        ):
            followed.push(frame := numpy_sam3.picture(0))
            for call in (lambda: [followed.correct({0: CLICK})], lambda: followed.push(frame), followed.flush):
                for array in arrays(call()):
                    found.append([array.copy()])
                    array[...] = array if not change else 0
            video.add_points(0, 1, CLICK.points, CLICK.labels)
            for results in (session.stream(clip()), live.stream(clip(), {0: {1: CLICK}}), video.propagate()):
                for result in results:
                    found.append([array.copy() for array in arrays([result])])
                    for array in arrays([result]) if change else []:
                        if array.flags.writeable:
                            array[...] = 0
        return [array for part in found for array in part]

    for a, b in zip(run(True), run(False), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


# -- dropped sessions -----------------------------------------------------------------------------------------------


def many_texts(engines):
    return engines["text"].session([runtime.Text(tokens=A)] * MAX_OBJECTS)


def text_midway(engines):
    session = many_texts(engines)
    next(results := session.stream(clip()))
    return results


def live(engines):
    session = engines["prompts"].live()
    session.push(clip()[0], dict.fromkeys(range(MAX_OBJECTS), CLICK))
    return session


def video(engines):
    session = engines["prompts"].video(clip())
    for obj in range(MAX_OBJECTS):
        session.add_points(0, obj, CLICK.points, CLICK.labels)
    return session


def video_midway(engines):
    results = video(engines).propagate()
    next(results)
    return results


def after_an_error(engines):
    session = many_texts(engines)
    with pytest.raises(runtime.VideoError):
        session.push("no frame")
    return session


def in_a_cycle(engines):
    cycle = [many_texts(engines), live(engines)]
    cycle.append(cycle)
    return cycle


def in_an_error(engines):
    session = live(engines)
    try:
        session.push("no frame")
    except runtime.VideoError as error:
        kept = error
    return kept, session


DROPPED = [many_texts, text_midway, live, video, video_midway, after_an_error, in_a_cycle, in_an_error]


@pytest.mark.parametrize("make", DROPPED, ids=lambda make: make.__name__)
def test_dropped_sessions_return_their_objects(text, prompts, make):
    """Without `close`, and without a garbage collection by the caller."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            make({"text": text, "prompts": prompts})
    finally:
        gc.enable()


def test_dropped_concept_sessions_return_their_objects(concepts):
    gc.disable()
    try:
        session = concepts.session([Concept(tokens=[1])])
        results, pool = session.stream([numpy_sam3.picture(0, 3)] * 20), session._pool
        next(results)
        assert pool.in_use == 2
        del session, results
        assert pool.in_use == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [many_texts, live, video], ids=lambda make: make.__name__)
def test_sessions_that_are_referred_to_keep_their_objects(text, prompts, make):
    engines = {"text": text, "prompts": prompts}
    kept = make(engines)
    with pytest.raises(runtime.UserError, match=rf"no room for \d more: of all {MAX_OBJECTS} .* max_objects"):
        make(engines)
    kept.close()
    make(engines)


def test_no_session_is_referred_to_by_the_engine(text, prompts):
    for session in (many_texts({"text": text}), live({"prompts": prompts}), video({"prompts": prompts})):
        assert sys.getrefcount(session) <= 3  # the tuple, the loop and the call
        results = session.propagate() if hasattr(session, "propagate") else session.stream(clip())
        next(results)
        del results
        assert sys.getrefcount(session) <= 3


def test_the_collector_may_run_anywhere(text):
    """A finalizer that runs while the lock is held, here whenever memory is allocated, neither blocks nor corrupts."""
    with text.session([runtime.Text(tokens=A)], logits=True) as session:
        want = arrays(session.stream(clip()))
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(4):
            cycle = [text.session([runtime.Text(tokens=B)])]
            cycle.append(cycle)
            with text.session([runtime.Text(tokens=A)], logits=True) as session:
                del cycle
                for a, b in zip(arrays(session.stream(clip())), want, strict=True):
                    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert text.networks["samwise"].maskmem_pool.in_use == 0


# -- offline sessions -----------------------------------------------------------------------------------------------


def offline(folder, kind):
    """Frames of a kind, from files by relative paths where there are any."""
    media.write(folder / "clip.mkv", clip(), "ffv1", "bgr0")
    (folder / "pictures").mkdir(exist_ok=True)
    for number, frame in enumerate(clip()):
        Image.fromarray(frame).save(folder / "pictures" / f"{number}.png")
    first, *others = map(Image.fromarray, clip())
    first.save(folder / "pages.tif", save_all=True, append_images=others)
    names = [f"pictures/{number}.png" for number in range(6)]
    return {
        "file": lambda: "clip.mkv",
        "path": lambda: Path("clip.mkv"),
        "pattern of one file": lambda: "*.mkv",
        "reader": lambda: runtime.open_video("clip.mkv"),
        "folder": lambda: "pictures",
        "pattern": lambda: "pictures/%d.png",
        "pages": lambda: "pages.tif",
        "list of str": lambda: names,
        "tuple of paths": lambda: tuple(map(Path, names)),
        "mixed": lambda: [*names[:3], *clip()[3:]],
        "array": lambda: clip(),
    }[kind]()


KINDS = "file,path,pattern of one file,reader,folder,pattern,pages,list of str,tuple of paths,mixed,array".split(",")


def reference(given):
    return (lambda: None) if isinstance(given, str) else weakref.ref(given)


def track(video):
    video.add_points(0, 1, CLICK.points, CLICK.labels)
    return list(video.propagate())


@pytest.mark.parametrize("kind", KINDS)
def test_another_working_folder_changes_nothing(prompts, tmp_path, monkeypatch, kind):
    with prompts.video(clip()) as video:
        want = track(video)
    monkeypatch.chdir(tmp_path)
    with prompts.video(offline(tmp_path, kind), cache_bytes=0) as video:
        monkeypatch.chdir("/")
        have = track(video)
    assert all((a.masks == b.masks).all() for a, b in zip(have, want, strict=True))


@pytest.mark.parametrize("kind", ["file", "reader", "array"])
def test_a_closed_offline_session_keeps_no_frame_and_no_file(prompts, tmp_path, monkeypatch, kind):
    """Nor features, though the session is still referred to."""

    def kept():
        open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        return open_files, sum(isinstance(found, ImageFeatures) for found in gc.get_objects())

    monkeypatch.chdir(tmp_path)
    given, before = offline(tmp_path, kind), kept()
    video, frames = prompts.video(given, cache_bytes=0 if kind == "reader" else 1 << 20), reference(given)
    del given
    track(video)
    assert kept()[1] > before[1] and (frames() is None) == (kind != "array")
    video.close()
    gc.collect()
    assert kept()[1] == before[1] and kept()[0] <= before[0] and frames() is None
    assert video.num_frames == 6
    for call in (video.propagate, video.reset, lambda: video.add_mask(0, 1, clip()[0, ..., 0] > 99)):
        with pytest.raises(runtime.UserError, match="this session is closed"):
            call()
    video.close()
