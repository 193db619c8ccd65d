"""Reading frames: every kind of source, in order, complete, in the right orientation; no thread or file left open."""

import gc
import itertools
import os
import threading
import time

import av
import numpy as np
import pytest
from PIL import Image

from helpers import media
from helpers.media import Server
from helpers.resources import decoder_threads
from helpers.waiting import PATIENCE, wait_until
from runtime import VideoError
from runtime.media import live, video_reader
from runtime.media.frame_names import natural_key
from runtime.media.image_files import composite_over_black, read_image
from runtime.media.source import Frame, Source
from runtime.media.video_reader import VideoReader, open_video
from runtime.results import Stamp


def assert_decoders_end():
    wait_until(lambda: decoder_threads() == [])


@pytest.fixture(autouse=True)
def no_thread_left_behind():
    yield
    gc.collect()
    assert_decoders_end()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.mov", "a.webm"])
def test_a_file_gives_all_frames_in_order(tmp_path, name):
    want = media.clip(30)
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    with open_video(media.write(tmp_path / name, want, codec=codec)) as video:
        assert (video.size, video.fps, video.live) == ((48, 64), 24, False)
        assert video.count in (30, None)
        got = np.stack(list(video))
    assert got.shape == want.shape and got.dtype == np.uint8
    # the number of a frame is in its level, which compression keeps to a few steps
    assert np.abs(got[:, 42:46].mean((1, 2, 3)) - want[:, 42:46].mean((1, 2, 3))).max() < 2.5


def test_stride_and_max_frames(tmp_path):
    path = media.write(tmp_path / "a.mp4", media.clip(20))
    every = list(open_video(path))
    with open_video(path, stride=3) as video:
        assert (video.count, video.fps) == (7, 8)
        thirds = list(video)
        assert video.frame_name(2) == "00006"
    assert (np.stack(thirds) == np.stack(every[::3])).all()
    with open_video(path, stride=3, max_frames=2) as video:
        assert video.count == 2
        assert len(list(video)) == 2


@pytest.mark.parametrize("kwargs", [{"stride": 0}, {"max_frames": 0}])
def test_invalid_limits(tmp_path, kwargs):
    with pytest.raises(VideoError, match="must be 1 or more"):
        open_video(tmp_path, **kwargs)


def test_a_folder_is_read_in_natural_order(tmp_path):
    for i in (10, 9, 1, 100):
        Image.new("RGB", (8, 6), (i, 0, 0)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    with open_video(tmp_path) as video:
        assert (video.count, video.size) == (4, (6, 8))
        assert [frame[0, 0, 0] for frame in video] == [1, 9, 10, 100]
        assert [video.frame_name(i) for i in range(4)] == ["frame1", "frame9", "frame10", "frame100"]


def test_natural_order_of_any_names():
    names = ["b1", "2", "10", "a", "", "a10", "a9"]
    assert sorted(names, key=natural_key) == ["", "2", "10", "a", "a9", "a10", "b1"]


@pytest.mark.parametrize(
    "mode, level",
    [
        ("L", 200),
        ("I;16", 200 << 8),
        ("P", 200),
        ("1", 1),
        ("RGB", (200, 200, 200)),
        ("RGBA", (200, 200, 200, 255)),
        ("LA", (200, 255)),
        ("CMYK", (55, 55, 55, 0)),
    ],
)
def test_images_of_every_mode_become_rgb(tmp_path, mode, level):
    image = Image.new(mode, (5, 4), level)
    if mode == "P":
        image.putpalette([level for level in range(256) for _ in range(3)])
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    (frame,) = open_video(path)
    assert frame.shape == (4, 5, 3) and frame.dtype == np.uint8
    assert (frame == (255 if mode == "1" else 200)).all()


def test_transparency_is_composited_over_black(tmp_path):
    Image.new("RGBA", (2, 2), (200, 100, 50, 128)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [100, 50, 25]
    pixels = np.array([[[255, 255, 255, 0], [255, 7, 0, 255]]], np.uint8)
    assert composite_over_black(pixels).tolist() == [[[0, 0, 0], [255, 7, 0]]]


def test_images_are_rotated_by_their_exif_data(tmp_path):
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (8, 4, 3)


def test_videos_are_rotated_by_their_display_matrix(tmp_path):
    want = media.clip(3)
    path = tmp_path / "a.mp4"
    media.write(path, want, rotate=90)
    with av.open(str(path)) as container:
        turned = next(container.decode(video=0)).rotation
    assert abs(turned) == 90
    with open_video(path) as video:
        assert video.size == (64, 48)
        got = next(video)
    assert np.abs(got.astype(int) - np.rot90(want[0], turned // 90)).mean() < 6


@pytest.mark.parametrize("codec, pix_fmt, source", [("ffv1", "gray", "gray"), ("ffv1", "gray16le", "gray16le")])
def test_gray_and_16_bit_videos(tmp_path, codec, pix_fmt, source):
    gray = media.clip(4)[..., 0]
    array = gray if pix_fmt == "gray" else gray.astype(np.uint16) << 8
    got = np.stack(list(open_video(media.write(tmp_path / "a.mkv", array, codec, pix_fmt, source))))
    assert np.abs(got.astype(int) - gray[..., None]).max() <= 2


def test_transparent_video_over_black(tmp_path):
    array = np.zeros((3, 16, 16, 4), np.uint8)
    array[..., 0], array[:, :8, :, 3] = 255, 255
    got = next(open_video(media.write(tmp_path / "a.mov", array, "png", "rgba", "rgba")))
    assert got[0, 0].tolist() == [255, 0, 0] and got[12, 0].tolist() == [0, 0, 0]


def test_closing_early_ends_the_thread(tmp_path):
    path = media.write(tmp_path / "a.mp4", media.clip(200))
    with open_video(path) as video:
        next(video)
        assert len(decoder_threads()) == 1
    assert decoder_threads() == []
    assert list(video) == []
    video.close()


def test_deleting_the_reader_ends_the_thread(tmp_path):
    video = open_video(media.write(tmp_path / "a.mp4", media.clip(200)))
    next(video)
    assert len(decoder_threads()) == 1
    del video
    gc.collect()
    assert_decoders_end()


def test_files_are_closed(tmp_path):
    path = media.write(tmp_path / "a.mp4", media.clip(60))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with open_video(path) as video:
            next(video)
        open_video(path).close()  # opened and never read
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_queue_is_bounded():
    made = []

    def endless():
        for i in itertools.count():
            made.append(i)
            yield Frame(np.zeros((4, 4, 3), np.uint8))

    with VideoReader(Source("x", 24, None, endless()), 1, None) as video:
        next(video)
        time.sleep(0.3)
        assert len(made) <= video_reader.QUEUE_FRAMES + 4


def test_a_live_source_drops_the_oldest():
    def camera():
        for i in range(100):
            yield Frame(np.full((2, 2, 3), i, np.uint8))

    with VideoReader(Source("x", 24, None, camera(), live=True), 1, None) as video:
        assert next(video)[0, 0, 0] <= 100
        assert_decoders_end()
        rest = [frame[0, 0, 0] for frame in video]
    assert rest == list(range(100 - len(rest), 100))
    assert 0 < len(rest) <= video_reader.QUEUE_FRAMES
    assert video.dropped + len(rest) == 99


@pytest.mark.parametrize(("drop", "kept"), [("latest", 1), ("oldest", video_reader.QUEUE_FRAMES), ("none", 99)])
def test_frames_of_a_camera_that_is_too_fast(drop, kept):
    """What is kept are the last frames, with their numbers in the source; `none` waits for the reader."""
    taken = threading.Event()

    def camera():
        for i in range(100):
            yield Frame(np.full((2, 2, 3), i, np.uint8), Stamp(i / 8, 100 + i / 8, i))
            assert i != 0 or taken.wait(PATIENCE)

    with VideoReader(Source("x", 24, None, camera(), live=True), 1, None, drop) as video:
        assert next(video)[0, 0, 0] == 0
        taken.set()
        if drop != "none":
            wait_until(lambda: video.dropped == 99 - kept)
        rest = [frame[0, 0, 0] for frame in video]
    assert rest[-1] == 99 and rest == list(range(100 - len(rest), 100))
    assert len(rest) == kept and video.dropped == 99 - kept
    assert video.stamp() == Stamp(99 / 8, 100 + 99 / 8, 99) == video.stamp(kept)
    assert video.stamp(0).source_frame == 0


def test_options_of_live_sources_are_checked(tmp_path):
    path = media.write(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=r"a\.mp4: frames are dropped of cameras and network streams only"):
        open_video(path, drop="latest")
    with open_video(path, drop="none", retries=0) as video:
        assert next(video) is not None
    with pytest.raises(VideoError, match="drop 'newest': choose one of latest, oldest, none"):
        open_video(path, drop="newest")
    with pytest.raises(VideoError, match="retries -1: must be 0 or more"):
        open_video(path, retries=-1)


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_a_stream_that_drops_is_reopened_as_often_as_asked(tmp_path, monkeypatch, retries):
    waits = []
    monkeypatch.setattr(live.time, "sleep", waits.append)
    server = Server(media.write(tmp_path / "a.ts", media.clip(4)).read_bytes(), times=1)
    with pytest.raises(VideoError, match=f"dropped after 4 frames .* in {retries} tries"):
        list(open_video(f"tcp://127.0.0.1:{server.port}", drop="none", retries=retries))
    assert waits == [min(2.0**k, live.MAX_RETRY_SECONDS) for k in range(retries)]


def test_stamps_of_a_file_are_its_own(tmp_path):
    path = media.write(tmp_path / "a.mp4", fps=10)
    with open_video(path, stride=2) as video:
        stamps = [video.stamp() for _ in video]
    assert [stamp.source_frame for stamp in stamps] == list(range(0, 2 * len(stamps), 2))
    assert [stamp.pts_seconds - stamps[0].pts_seconds for stamp in stamps] == pytest.approx([s.time for s in stamps])


def test_an_error_in_the_thread_reaches_the_caller():
    def broken():
        yield Frame(np.zeros((2, 2, 3), np.uint8))
        raise ZeroDivisionError("boom")

    video = VideoReader(Source("x", 24, None, broken()), 1, None)
    next(video)
    with pytest.raises(VideoError, match="ZeroDivisionError: boom"):
        next(video)


def test_frames_before_the_damage_are_delivered(tmp_path):
    path = media.write(tmp_path / "a.mp4", media.clip(60, 96, 128), movflags="faststart")
    got = []
    with pytest.raises(VideoError, match=r"cut.* after \d+ frames|cut short") as caught:
        for frame in open_video(media.truncate(path, 0.6)):
            got.append(frame)
    assert 10 < len(got) < 60
    assert "\n" not in str(caught.value)


def test_a_truncated_mkv_is_an_error(tmp_path):
    path = media.write(tmp_path / "a.mkv", media.clip(120, 96, 128))
    got = []
    with pytest.raises(VideoError, match="cut short"):
        got.extend(frame for frame in open_video(media.truncate(path, 0.5)))


def test_a_stream_that_drops_is_reopened_a_limited_number_of_times(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(video_reader, "QUEUE_FRAMES", 1000)
    data = media.write(tmp_path / "a.ts", media.clip(20)).read_bytes()
    server = Server(data, times=2)
    got = []
    with pytest.raises(VideoError, match="dropped after 40 frames .* in 3 tries"):
        for frame in open_video(f"tcp://127.0.0.1:{server.port}"):
            got.append(frame)
    assert len(got) == 40


def test_passwords_in_addresses_stay_private():
    with pytest.raises(VideoError) as caught:
        open_video("rtsp://user:secret@127.0.0.1:9/x")
    assert "secret" not in str(caught.value) and "rtsp://127.0.0.1:9/x" in str(caught.value)


def test_only_an_exact_count_limits_the_number_of_frames(tmp_path):
    clip = media.write(tmp_path / "clip.mp4", media.clip(5))
    for number, frame in enumerate(media.clip(4)):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    for source, stride, max_frames, limit in (
        (clip, 1, None, None),
        (clip, 2, 7, 7),
        (tmp_path, 1, None, 4),
        (tmp_path, 3, None, 2),
        (tmp_path, 1, 3, 3),
        (tmp_path, 1, 9, 4),
        (tmp_path / "0.png", 1, None, 1),
    ):
        with open_video(source, stride, max_frames) as video:
            assert video.max_count == limit and (limit is None or len(list(video)) <= limit)
