"""Frames as users give them: paths, picture files, readers, arrays; errors that name others. Times of results."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import runtime
from helpers import media
from helpers.samwise_schedule import A

CLICK = {0: {1: runtime.Points([(14, 20)], [1])}}
TIMES = [0.0, 0.04, 0.08, 0.5, 0.54, 2.0]


@pytest.fixture(scope="module")
def text(toy):
    return runtime.load(toy)


@pytest.fixture(scope="module")
def prompts(toy_sam2_bundle):
    return runtime.load(toy_sam2_bundle)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    media.write(folder / "clip.mkv", media.clip(6), "ffv1", "bgr0", times=TIMES)
    (folder / "pictures").mkdir()
    for number, frame in enumerate(media.clip(6)):
        Image.fromarray(frame).save(folder / "pictures" / f"{number}.png")
    return folder


def pictures(files):
    return sorted((files / "pictures").iterdir())


FRAMES = {
    "path": (lambda files: files / "clip.mkv", TIMES),
    "str": (lambda files: str(files / "clip.mkv"), TIMES),
    "reader": (lambda files: runtime.open_video(files / "clip.mkv"), TIMES),
    "folder": (lambda files: files / "pictures", None),
    "pattern": (lambda files: str(files / "pictures" / "*.png"), None),
    "list of paths": (pictures, None),
    "list of str": (lambda files: list(map(str, pictures(files))), None),
    "generator of paths": (lambda files: (path for path in pictures(files)), None),
    "mixed": (lambda files: [*pictures(files)[:3], *media.clip(6)[3:]], None),
    "array": (lambda files: media.clip(6), None),
    "list of arrays": (lambda files: list(media.clip(6)), None),
    "generator of arrays": (lambda files: iter(media.clip(6)), None),
}
IN_ANY_ORDER = [name for name in FRAMES if not name.startswith("generator")]


def text_session(text, prompts, frames):
    with text.session([runtime.Text(tokens=A)]) as session:
        return list(session.stream(frames))


def live(text, prompts, frames):
    with prompts.live() as session:
        return list(session.stream(frames, CLICK))


def video(text, prompts, frames):
    with prompts.video(frames) as session:
        session.add_points(0, 1, CLICK[0][1].points, CLICK[0][1].labels)
        return list(session.propagate())


CASES = [*itertools.product([text_session, live], FRAMES), *((video, name) for name in IN_ANY_ORDER)]


@pytest.mark.parametrize("follow, name", CASES, ids=[f"{follow.__name__}-{name}" for follow, name in CASES])
def test_frames_are_taken_in_every_form(text, prompts, files, follow, name):
    make, times = FRAMES[name]
    want, have = (follow(text, prompts, frames) for frames in (media.clip(6), make(files)))
    assert len(have) == 6
    for a, b in zip(have, want, strict=True):
        assert (a.masks == b.masks).all() and (a.scores == b.scores).all()
    assert [r.time for r in have] == ([None] * 6 if times is None else pytest.approx(times))


def test_a_reader_that_was_begun_keeps_its_times(text, files):
    with runtime.open_video(files / "clip.mkv") as reader, text.session([runtime.Text(tokens=A)]) as session:
        next(reader)
        assert [r.time for r in session.stream(reader)] == pytest.approx(TIMES[1:])


@pytest.mark.parametrize("follow", [text_session, live, video])
@pytest.mark.parametrize("end", [list, runtime.VideoReader.close])
def test_a_reader_without_frames_to_come_is_refused(text, prompts, files, follow, end):
    with runtime.open_video(files / "clip.mkv") as reader:
        end(reader)
        with pytest.raises(runtime.VideoError, match=r"closed, or read to its end; open it again"):
            follow(text, prompts, reader)


def test_times_that_are_pushed(text, prompts):
    with text.session([runtime.Text(tokens=A)], window=2) as session, prompts.live() as live:
        found = [r.time for i, f in enumerate(media.clip(3)) for r in session.push(f, time=i / 4)]
        assert found + [r.time for r in session.flush()] == [0, 0.25, 0.5]
        (result,) = live.push(media.clip(1)[0], CLICK[0], time=1.5)
        assert (result.time, live.correct(CLICK[0]).time) == (1.5, 1.5)
        assert live.push(media.clip(1)[0])[0].time is None


@pytest.mark.parametrize("time", ["1.5", [1], float("nan"), True, 1j])
def test_a_bad_time_is_refused(text, prompts, time):
    for session in (text.session([runtime.Text(tokens=A)]), prompts.live()):
        with pytest.raises(runtime.UserError, match="time must be a number of seconds"):
            session.push(media.clip(1)[0], time=time)


@pytest.mark.parametrize("given", [[CLICK[0]], CLICK[0], "click", {0: [CLICK[0]]}])
def test_bad_prompts_of_a_stream_are_refused(prompts, given):
    with pytest.raises(runtime.PromptError, match="prompts must be a dict"):
        list(prompts.live().stream(media.clip(3), given))


def test_results_of_prompts_on_a_known_video_have_times(prompts, files):
    with prompts.video(files / "clip.mkv") as session:
        assert session.add_points(3, 1, [(14, 20)], [1]).time == pytest.approx(0.5)
        assert session.add_box(5, 2, (10, 10, 30, 30)).time == pytest.approx(2.0)
        assert session.clear_prompts(5, 2).time == pytest.approx(2.0)


class NoFrames:
    def read(self):
        return True, media.clip(1)[0]


REFUSED = {
    "no file": "no such clip.mp4",
    "sentence": "the horse jumping",
    "no path": Path("missing/clip.mp4"),
    "bytes": b"clip.mp4",
    "one frame": media.clip(1)[0],
    "one gray frame": media.clip(1)[0, ..., 0],
    "five dimensions": media.clip(2)[None],
    "dict": {0: media.clip(1)[0]},
    "file object": io.BytesIO(b"..."),
    "capture": NoFrames(),
    "None": None,
    "float": 1.5,
    "bool": True,
    "picture": Image.fromarray(media.clip(1)[0]),
    "text in a list": ["no such picture.png"],
    "number in a list": [3],
    "None in a list": [None],
    "gray in a list": [media.clip(1)[0, ..., 0]],
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("follow", [text_session, live, video])
def test_what_is_no_series_of_frames_is_named(text, prompts, follow, name):
    frames = REFUSED[name]
    with pytest.raises(runtime.VideoError) as error:
        follow(text, prompts, frames)
    message = str(error.value)
    assert "\n" not in message
    if not name.endswith("list"):
        assert "open_video(...)" in message
        assert isinstance(frames, (str, Path, np.ndarray)) or type(frames).__name__ in message
    if name.startswith("one"):
        assert "in a list" in message or "(48, 64)" in message


@pytest.mark.parametrize("frames, message", [(iter(media.clip(2)), "in an array or list"), (987, "camera 987")])
def test_a_known_video_must_be_known(prompts, frames, message):
    with pytest.raises(runtime.VideoError, match=message):
        prompts.video(frames)


def test_a_known_video_of_every_second_frame(prompts, files):
    with prompts.video(runtime.open_video(files / "clip.mkv", stride=2)) as session:
        session.add_points(0, 1, [(14, 20)], [1])
        assert [r.time for r in session.propagate()] == pytest.approx(TIMES[::2])


class OnAGpu:
    """An array that numpy cannot read, as those of torch and CuPy on a GPU."""

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


NO_FRAMES = ["clip.mp4", Path("clip.mp4"), b"...", None, {}, OnAGpu()]


@pytest.mark.parametrize(
    "take, frame",
    [*itertools.product(["text", "live"], NO_FRAMES), *(("image", frame) for frame in NO_FRAMES[2:])],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_frame_is_named(text, prompts, take, frame):
    call = {
        "text": lambda: text.session([runtime.Text(tokens=A)]).push(frame),
        "live": lambda: prompts.live().push(frame),
        "image": lambda: prompts.image(frame),
    }[take]
    with pytest.raises(runtime.VideoError, match=f"frame 0: .*{type(frame).__name__}"):
        call()


# -- frames of other libraries --------------------------------------------------------------------------------------


def pushed_text(text, prompts, frame):
    with text.session([runtime.Text(tokens=A)]) as session:
        return session.push(frame) + session.flush()


def pushed_live(text, prompts, frame):
    with prompts.live() as session:
        return session.push(frame, CLICK[0])


def in_a_list(text, prompts, frame):
    with prompts.video([frame, frame]) as session:
        return [session.add_points(1, 1, CLICK[0][1].points, CLICK[0][1].labels)]


def on_an_image(text, prompts, frame):
    return [prompts.image(frame).predict([(14, 20)], [1])]


TAKERS = [pushed_text, pushed_live, in_a_list, on_an_image]
FRAME = media.clip(1)[0]


def pillow(mode):
    image = Image.fromarray(FRAME)
    if mode == "LAB":
        return ImageCms.profileToProfile(image, *map(ImageCms.createProfile, ("sRGB", "LAB")), outputMode="LAB")
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "YCbCr", "HSV", "LAB", "CMYK", "L", "P", "1"])
def test_images_of_pillow_are_converted(text, prompts, mode):
    given = pillow(mode)
    have = prompts.image(given).frame
    if mode not in ("L", "P", "1"):
        assert np.abs(have.astype(int) - FRAME).max() <= (0 if mode in ("RGB", "RGBA", "CMYK") else 20)
    for take in TAKERS:
        want = take(text, prompts, have)
        assert all((a.masks == b.masks).all() for a, b in zip(take(text, prompts, given), want, strict=True))


@pytest.mark.parametrize(
    "frame, words",
    [
        (np.ma.masked_array(FRAME, FRAME > 99), "a masked array; .*filled"),
        ((True, FRAME), r"a tuple with a bool, as of cv2's read\(\); give the frame alone"),
        ((False, None), "a tuple with a bool"),
        ([np.True_, FRAME], "a list with a bool"),
        (Image.fromarray(FRAME[..., 0].astype(np.float32)), "an image of floating point numbers"),
    ],
    ids=["masked", "cv2", "cv2 at the end", "cv2 in a list", "floats"],
)
def test_frames_that_mean_something_else_are_refused(text, prompts, frame, words):
    for take in TAKERS:
        with pytest.raises(runtime.VideoError, match=f"^frame 0: {words}"):
            take(text, prompts, frame)


def test_a_masked_array_without_masked_pixels_is_an_array(text, prompts):
    for take in TAKERS:
        want, have = (take(text, prompts, frame) for frame in (FRAME, np.ma.masked_array(FRAME)))
        assert all((a.masks == b.masks).all() for a, b in zip(have, want, strict=True))
