"""Frames of a video by number: those of reading it in order, in bounded memory."""

import itertools
import weakref

import numpy as np
import pytest
from PIL import Image

import runtime
from helpers import media
from runtime import open_video
from runtime.media import random_access
from runtime.media.conversion import Converter
from runtime.media.random_access import GivenFrames, SpooledVideo, VideoFile, open_sequence
from runtime.results import Stamp

N = 40
FRAME = 48 * 64 * 3
VARIABLE = list(np.cumsum([0.04, 0.04, 0.5, 0.02, 0.1] * (N // 5)))


def write(path, codec="libx264", pix_fmt="yuv420p", **options):
    return media.write(path, media.clip(N), codec, pix_fmt, **options)


def animation(path):
    first, *others = map(Image.fromarray, media.clip(N))
    first.save(path, save_all=True, append_images=others, duration=50)
    return path


FILES = {
    "mp4": lambda folder: write(folder / "a.mp4"),
    "one key frame": lambda folder: write(folder / "a.mp4", gop=1000),
    "key frames only": lambda folder: write(folder / "a.mp4", gop=1),
    "B frames": lambda folder: write(folder / "a.mkv", encoder={"bf": "4", "b-pyramid": "normal"}),
    "open groups": lambda folder: write(folder / "a.mp4", encoder={"x264-params": "open-gop=1:bframes=3:scenecut=0"}),
    "intra refresh": lambda folder: write(folder / "a.mp4", encoder={"x264-params": "intra-refresh=1"}),
    "transport stream": lambda folder: write(folder / "a.ts"),
    "variable rate": lambda folder: write(folder / "a.mkv", times=VARIABLE),
    "rotated": lambda folder: write(folder / "a.mov", rotate=90),
    "avi": lambda folder: write(folder / "a.avi", "mpeg4"),
    "raw h264": lambda folder: write(folder / "a.h264"),
    "webm": lambda folder: write(folder / "a.webm", "libvpx"),
    "lossless": lambda folder: write(folder / "a.mkv", "ffv1", "bgr0"),
    "animation": lambda folder: animation(folder / "a.gif"),
    "pages": lambda folder: animation(folder / "a.tif"),
}
ORDERS = {
    "forward": range(N),
    "reverse": range(N - 1, -1, -1),
    "ends": [0, N - 1, 1, N - 2, 0, N - 1],
    "steps": [*range(0, N, 9), *range(N - 1, 0, -7)],
    "random": np.random.default_rng(0).integers(0, N, 12).tolist(),
    "repeated": [17, 17, 18, 16],
}


@pytest.fixture(scope="module", params=FILES)
def file(request, tmp_path_factory):
    """(path, its frames in order, their times)."""
    path = FILES[request.param](tmp_path_factory.mktemp("file"))
    with open_video(path) as video:
        frames = list(video)
        return path, frames, [video.frame_time(i) for i in range(len(frames))]


@pytest.mark.parametrize("cached", [0, 3])
def test_frames_in_any_order_are_those_of_reading_in_order(file, cached):
    path, frames, times = file
    video = open_sequence(path, cached * FRAME)
    assert len(video) == len(frames) == N and [video.stamp(i).time for i in range(N)] == times
    for order in ORDERS.values():
        for index in order:
            assert (video[index] == frames[index]).all(), index


@pytest.fixture
def counted(monkeypatch):
    """Counts of decoded frames: made so far, and held now."""
    counts, convert = {"made": 0, "held": 0}, Converter.rgb

    def released():
        counts["held"] -= 1

    def rgb(self, frame):
        array = convert(self, frame).copy()
        counts["made"] += 1
        counts["held"] += 1
        weakref.finalize(array, released)
        return array

    monkeypatch.setattr(Converter, "rgb", rgb)
    return counts


@pytest.mark.parametrize("name", ["mp4", "one key frame", "B frames", "avi"])
def test_memory_is_bounded(tmp_path, counted, name):
    video = open_sequence(FILES[name](tmp_path), 5 * FRAME)
    for order in ORDERS.values():
        for index in order:
            assert video[index].shape == (48, 64, 3)
            assert counted["held"] <= 5 + 1, "those that are kept, and one that is being decoded"
    del video
    assert counted["held"] == 0


def test_a_short_video_is_decoded_once(tmp_path, counted):
    video = open_sequence(write(tmp_path / "a.mp4"), N * FRAME)
    for index in itertools.chain(*ORDERS.values()):
        video[index]
    assert counted["made"] == N


@pytest.mark.parametrize("name, most", [("mp4", 12), ("key frames only", 1), ("open groups", 24)])
def test_a_frame_is_decoded_from_the_key_frame_before_it(tmp_path, counted, name, most):
    video = open_sequence(FILES[name](tmp_path), FRAME)
    for index in (35, 3, 39, 13):
        before = counted["made"]
        video[index]
        assert counted["made"] - before <= most
    before = counted["made"]
    for index in range(14, N):
        video[index]
    assert counted["made"] - before == N - 14, "forward, every frame is decoded once"


@pytest.mark.parametrize("wrong", ["damaged", "late", "shifted", "nothing", "error"])
def test_inexact_seeking_changes_no_frame(tmp_path, monkeypatch, wrong):
    path, decode_from = write(tmp_path / "a.mp4"), random_access.decode_from

    def inexact(path, seconds, start):
        for array, stamp in decode_from(path, seconds + (wrong == "late"), start):
            if wrong == "nothing":
                return
            if wrong == "error":
                array = np.roll(array, 1, 0)
            time = stamp.time + 0.04 * (wrong == "shifted")
            yield random_access.Frame(array ^ 1 if wrong == "damaged" else array, Stamp(time))

    monkeypatch.setattr(random_access, "decode_from", inexact)
    video, frames = open_sequence(path, 3 * FRAME), list(open_video(path))
    for index in ORDERS["random"]:
        assert (video[index] == frames[index]).all()


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path):
    path = write(tmp_path / "a.mp4")
    video = open_sequence(path, FRAME)
    media.write(path, media.clip(N)[::-1].copy())
    with pytest.raises(runtime.VideoError, match="frame 20 cannot be read again; the file has changed"):
        video[20]
    path.unlink()
    with pytest.raises(runtime.VideoError, match="no such file"):
        video[20]


def test_damage_that_is_concealed_in_another_way_is_no_error(tmp_path, monkeypatch):
    """FFmpeg's threads do not always conceal damage alike."""
    video, convert = open_sequence(write(tmp_path / "a.mp4"), FRAME), Converter.rgb

    def rgb(self, frame):
        return convert(self, frame) ^ 1

    monkeypatch.setattr(Converter, "rgb", rgb)
    frames = list(open_video(tmp_path / "a.mp4"))
    for index in (20, 39, 3):
        assert (video[index] == frames[index]).all()


# -- other sources --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_bytes", [0, FRAME, 1 << 30])
def test_what_cannot_be_read_twice_is_spooled(tmp_path, cache_bytes):
    path = write(tmp_path / "a.mp4", times=VARIABLE)
    frames = list(open_video(path))
    video, other = SpooledVideo(open_video(path), cache_bytes), open_sequence(path, 0)
    assert len(video) == N and [video.stamp(i).time for i in range(N)] == [other.stamp(i).time for i in range(N)]
    for index in ORDERS["random"]:
        assert (video[index] == frames[index]).all()


def test_the_kind_of_sequence_fits_the_source(tmp_path):
    path = write(tmp_path / "a.mp4")
    picture = tmp_path / "pictures" / "1.png"
    picture.parent.mkdir()
    Image.fromarray(media.clip(1)[0]).save(picture)
    kinds = {
        VideoFile: [path, str(path), f"file://{path}", animation(tmp_path / "a.gif")],
        GivenFrames: [
            picture.parent,
            str(picture.parent / "*.png"),
            picture,
            [picture],
            media.clip(2),
            list(media.clip(2)),
        ],
    }
    for kind, sources in kinds.items():
        for source in sources:
            assert isinstance(open_sequence(source, 0), kind), source


def test_pictures_are_read_on_access(tmp_path):
    for number, frame in enumerate(media.clip(3)):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    for source in (tmp_path, sorted(tmp_path.iterdir())):
        video = open_sequence(source, 0)
        (tmp_path / "2.png").rename(tmp_path / "gone")
        assert (video[1] == media.clip(3)[1]).all()
        with pytest.raises(runtime.VideoError, match=r"2\.png"):
            video[2]
        (tmp_path / "gone").rename(tmp_path / "2.png")


@pytest.mark.parametrize("bad", [-1, 1.5, True, None, "1 GB"])
def test_a_bad_limit_is_refused(bad):
    with pytest.raises(runtime.UserError, match="cache_bytes must be a whole number"):
        open_sequence(media.clip(2), bad)


def test_masks_do_not_depend_on_the_limit(toy_sam2_bundle, tmp_path):
    path = write(tmp_path / "a.mp4")

    def track(frames, **options):
        with engine.video(frames, **options) as session:
            session.add_points(25, 1, [(20, 20)], [1])
            found = [*session.propagate(), *session.propagate(reverse=True)]
            found.append(session.add_points(3, 1, [(10, 10)], [0]))
            return [*found, *session.propagate(3)]

    with runtime.load(toy_sam2_bundle) as engine:
        want = track(list(open_video(path)))
        for limit in (0, 4 * FRAME, 1 << 30):
            for a, b in zip(track(path, cache_bytes=limit), want, strict=True):
                assert a.frame_index == b.frame_index and (a.masks == b.masks).all()
