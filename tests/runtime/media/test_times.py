"""Times of frames: those of the source, from zero and never decreasing, in every kind of container."""

import itertools
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from helpers import media
from runtime.media import video_reader
from runtime.media.clock import Clock
from runtime.media.source import Frame, Source
from runtime.media.video_reader import VideoReader, open_video
from runtime.results import Stamp

UNEVEN = [0, 0.05, 0.1, 0.35, 0.6, 0.62, 1.5, 4.5, 4.6, 4.7, 4.8, 60]


def times(path, **limits):
    with open_video(path, **limits) as video:
        return [video.frame_time(index) for index, _ in enumerate(video)]


@pytest.mark.parametrize("offset", [0, 1.2], ids=["from zero", "later"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.mov", "a.ts", "fragments.mp4"])
def test_uneven_times_are_kept(tmp_path, name, offset):
    codec = "libvpx" if name.endswith("webm") else "libx264"
    options = {"movflags": "frag_keyframe+empty_moov"} if name.startswith("frag") else {}
    given = [offset + t for t in UNEVEN]
    path = media.write(tmp_path / name, codec=codec, times=given, encoder={"bf": "2"}, **options)
    assert times(path) == pytest.approx(UNEVEN, abs=2e-3)
    assert times(path, stride=3) == pytest.approx(UNEVEN[::3], abs=2e-3)
    assert times(path, max_frames=2) == pytest.approx(UNEVEN[:2], abs=2e-3)


@pytest.mark.parametrize(
    "name, codec",
    [("a.avi", "libx264"), ("a.avi", "mpeg4"), ("a.avi", "mjpeg"), ("a.h264", "libx264"), ("a.m4v", "mpeg4")],
)
def test_times_follow_the_rate_where_packets_have_none(tmp_path, name, codec):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = media.write(
        tmp_path / name, codec=codec, pix_fmt=pix_fmt, fps=12, encoder={} if codec == "mjpeg" else {"bf": "2"}
    )
    with open_video(path) as video:
        got = [video.frame_time(index) for index, _ in enumerate(video)]
        assert video.fps == 12 and video.start == 0
    assert got == pytest.approx([i / 12 for i in range(12)], abs=1e-6)


def test_pictures_have_no_times(tmp_path):
    for i in range(2):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{i}.png")
    assert times(tmp_path) == [None, None]
    assert times(tmp_path / "0.png") == [None]


def test_a_time_comes_with_its_frame(tmp_path):
    with open_video(media.write(tmp_path / "a.mp4", fps=10)) as video:
        assert video.frame_time(0) is None
        next(video)
        assert (video.frame_time(0), video.frame_time(1), video.frame_time(-1)) == (0, None, None)


def test_times_of_a_live_source_stay_with_their_frames(monkeypatch):
    """Dropped frames take their times along, and only the last times are kept."""
    monkeypatch.setattr(video_reader, "LIVE_TIMES", 3)

    def camera():
        for i in range(40):
            yield Frame(np.full((2, 2, 3), i, np.uint8), Stamp(i / 8))

    with VideoReader(Source("x", 8, None, camera(), live=True), 1, None) as video:
        for index, frame in enumerate(video):
            assert video.frame_time(index) == frame[0, 0, 0] / 8
        assert [video.frame_time(i) is None for i in range(index - 4, index + 1)] == [True, True, False, False, False]


def test_times_of_a_stream_are_those_of_arrival(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.media.live.RETRIES", 0)
    data = media.write(tmp_path / "a.ts", media.clip(8), fps=1).read_bytes()
    with open_video(f"tcp://127.0.0.1:{media.Server(data, times=1).port}", max_frames=4) as video:
        got = [video.frame_time(index) for index, _ in enumerate(video)]
    assert got[0] == 0 and got == sorted(got) and got[-1] < 3


@pytest.mark.parametrize(
    "stamps, want",
    [
        ([5, 6, 7], [0, 1, 2]),
        ([5, None, 7, None], [0, 0.5, 2, 2.5]),
        ([None, None, 9], [0, 0.5, 1]),
        ([5, 7, 6.5, 8], [0, 2, 2, 3]),  # disorder
        ([100, 101, 0, 1], [0, 1, 1.5, 2.5]),  # the recorder's clock starts anew
        ([-1, 0, 1], [0, 1, 2]),
    ],
)
def test_times_never_decrease(stamps, want):
    clock = Clock(SimpleNamespace(container=SimpleNamespace(format=SimpleNamespace(name="mpegts"))), fps=2)
    frames = (SimpleNamespace(pts=t and t * 10, time_base=0.1, duration=0) for t in stamps)
    got = [clock.seconds(frame) for frame in frames]
    assert got == pytest.approx(want)
    assert all(a <= b for a, b in itertools.pairwise(got))


def clock_times(stamps, name="mpegts", fps=25):
    clock = Clock(SimpleNamespace(container=SimpleNamespace(format=SimpleNamespace(name=name))), fps=fps)
    frames = (SimpleNamespace(pts=round(t * 1000), time_base=0.001, duration=0) for t in stamps)
    return [clock.seconds(frame) for frame in frames], clock


STEADY = [i / 25 for i in range(40)]


@pytest.mark.parametrize("back", [0.01, 0.05, 0.08, 0.1, 0.28, 0.5, 0.9, 1.0, 1.4, 600])
@pytest.mark.parametrize("at", [1, 15, 30])
def test_a_step_back_of_the_clock_freezes_no_times(back, at):
    """Two frames may be disorder; after them, the times go on."""
    got, clock = clock_times([t - back * (i >= at) for i, t in enumerate(STEADY)])
    assert got == pytest.approx(STEADY, abs=0.101) and clock.gaps == []
    assert (np.diff(got) > 0.005).sum() >= len(STEADY) - 1 - (2 if back <= 1 else 0)


@pytest.mark.parametrize(
    "name, hours", [("mpegts", 1.5), ("mpegts", 26), ("hls", 9), ("matroska,webm", 31), ("mp4", 400_000)]
)
def test_a_gap_of_hours_is_a_new_start_of_the_clock(name, hours):
    got, clock = clock_times([t + hours * 3600 * (i >= 10) for i, t in enumerate(STEADY)], name)
    assert got == pytest.approx(STEADY, abs=2e-3)
    assert len(clock.gaps) == 1 and clock.gaps[0] == pytest.approx((0.4, hours * 3600), abs=2e-3)
    got, clock = clock_times([t + hours * 3600 * (i == 10) for i, t in enumerate(STEADY)], name)  # one wrong time
    assert got == pytest.approx(STEADY, abs=2e-3)


@pytest.mark.parametrize("name, hours", [("mpegts", 0.9), ("matroska,webm", 29), ("mp4", 8)])
def test_a_gap_that_may_be_meant_is_kept(name, hours):
    stamps = [t + hours * 3600 * (i >= 10) for i, t in enumerate(STEADY)]
    got, clock = clock_times(stamps, name)
    assert got == pytest.approx(stamps, abs=2e-3) and clock.gaps == []


def test_a_time_lapse_has_no_gaps():
    stamps = [7 * 86400 * i for i in range(9)]
    got, clock = clock_times(stamps, "matroska,webm", fps=1 / (7 * 86400))
    assert got == stamps and clock.gaps == []


@pytest.mark.parametrize("order", [[0, 2, 3, 1, 5, 6, 4], [0, 4, 3, 5, 2, 7, 6, 8, 1]], ids=["B-frames", "pyramid"])
def test_disorder_of_b_frames_does_not_add_up(order):
    """Files that number packets in the order of decoding: frames of one group come in another order."""
    count = len(order) - 1
    stamps = [0.0] + [(group * count + number) / 25 for group in range(20) for number in order[1:]]
    got, _ = clock_times(stamps, "matroska,webm")
    assert got[-1] == pytest.approx(max(stamps), abs=count / 25) and all(a <= b for a, b in itertools.pairwise(got))


def test_a_gap_is_noted_and_the_overlay_ends_with_the_frames(tmp_path):
    stamps = [t + 7 * 3600 * (i >= 6) for i, t in enumerate(STEADY[:12])]
    with open_video(media.write(tmp_path / "a.ts", fps=25, times=stamps, encoder={"bf": "0"})) as video:
        got = [video.frame_time(index) for index, _ in enumerate(video)]
    assert got == pytest.approx(STEADY[:12], abs=1e-3) and video.end == pytest.approx(12 / 25, abs=1e-3)
    (note,) = video.notes
    assert "jump by 7.0 hours at 0.24 s" in note


def test_the_end_of_an_animation_is_known(tmp_path):
    frames = [Image.new("RGB", (8, 6), (i, 0, 0)) for i in (10, 80, 150)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[100, 200, 2000])
    for stride in (1, 2, 3):
        with open_video(tmp_path / "a.gif", stride=stride) as video:
            assert list(video) and video.end == pytest.approx(2.3)


def test_a_writer_knows_the_source(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        for array in media.clip(2):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        out.mux(stream.encode(None))
    with open_video(path) as video:
        assert (video.sample_aspect_ratio, video.path) == (2, path)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    with open_video(tmp_path / "a.png") as video:
        assert (video.sample_aspect_ratio, video.path, video.start) == (1, None, 0)
