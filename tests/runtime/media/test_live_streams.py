"""Network cameras that are faster than the reader, that hang up, fall silent and come back: HTTP and RTSP."""

import itertools
import socket

import pytest

import runtime
from helpers.live_servers import FPS, Camera, HttpHandler, RtspHandler, number_of
from helpers.waiting import PATIENCE, wait_until
from runtime import VideoError
from runtime.media import container, live
from runtime.media.video_reader import open_video

PROBED = 120
"""Frames that FFmpeg may read before the first one is delivered."""
DELAY = 2
"""Frames that a demuxer, a parser and a decoder keep back."""


@pytest.fixture(params=[HttpHandler, RtspHandler], ids=lambda handler: handler.scheme)
def camera(request, monkeypatch):
    """Make a camera; close all of them in the end."""
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setattr(live, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(container, "TIMEOUTS", (PATIENCE, PATIENCE))  # a busy machine answers late
    cameras = []

    def make(frames=PROBED, **options):
        cameras.append(Camera(request.param, **options))
        cameras[-1].send(frames)
        return cameras[-1]

    yield make
    for camera in cameras:
        camera.send(10_000)  # a thread that waits ends with its connection
        camera.shutdown()
        camera.server_close()


def seconds(numbers):
    return pytest.approx([(number - numbers[0]) / FPS for number in numbers], abs=1e-3)


def test_the_newest_frame_is_read_of_a_camera_that_is_too_fast(camera):
    """Four frames come for each one that is read: those behind do not pile up, and times are the camera's."""
    source = camera()
    with open_video(source.address, drop="latest") as video:
        assert video.live and video.size == (48, 64)
        numbers, stamps, lags = [], [], []
        for _ in range(30):
            numbers.append(number_of(next(video)))
            stamps.append(video.stamp())
            lags.append(source.last - numbers[-1])
            source.send(4)
            # all that was sent is decoded, but for the delay: one frame waits for the reader
            wait_until(lambda: video.dropped + len(numbers) >= source.last - DELAY)
    assert max(lags[1:]) <= DELAY  # the first frame is one of those that came before the reader asked
    assert [stamp.source_frame for stamp in stamps] == numbers
    assert [stamp.pts_seconds - stamps[0].pts_seconds for stamp in stamps] == seconds(numbers)
    assert 4 * 29 + PROBED - DELAY - 31 <= video.dropped <= 4 * 30 + PROBED - 31


@pytest.mark.parametrize("resets", [False, True])
def test_a_camera_that_hangs_up_is_watched_again(camera, resets):
    """Its clock goes on or begins anew; those of arrival and the numbers of frames never go back."""
    source = camera(frames=3 * PROBED, cut_after=PROBED, resets=resets)
    with open_video(source.address, drop="none", retries=2) as video:
        numbers, stamps = [], []
        for frame in itertools.islice(video, 3 * PROBED - 3 * DELAY - 20):
            numbers.append(number_of(frame))
            stamps.append(video.stamp())
    starts = [at for at, number in enumerate(numbers) if number % PROBED == 0]
    assert len(starts) == 3 == len(source.starts)
    for start, end in itertools.pairwise([*starts, len(numbers)]):
        shown, times = numbers[start:end], [stamp.pts_seconds for stamp in stamps[start:end]]
        assert shown == list(range(shown[0], shown[0] + len(shown))) and len(shown) >= min(PROBED - DELAY, end - start)
        assert [time - times[0] for time in times] == seconds(shown)
    assert [stamp.source_frame for stamp in stamps] == list(range(len(stamps)))
    assert all(a.time <= b.time for a, b in itertools.pairwise(stamps))


def test_a_camera_that_refuses_for_a_while_is_watched_again(camera):
    source = camera(frames=2 * PROBED, cut_after=PROBED, refuses=2)
    with open_video(source.address, drop="none", retries=3) as video:
        numbers = [number_of(next(video)) for _ in range(PROBED + 10)]
    assert numbers == sorted(set(numbers)) and numbers[-1] >= PROBED


def test_a_camera_that_stays_away_is_an_error(camera):
    source = camera(cut_after=PROBED, refuses=9)
    with open_video(source.address, drop="latest", retries=2) as video:
        with pytest.raises(VideoError, match=r"://127.* dropped after \d+ frames .* in 2 tries"):
            list(video)
    assert source.refuses == 9 - 2


def test_a_camera_that_falls_silent_is_watched_again(camera, monkeypatch):
    monkeypatch.setattr(container, "TIMEOUTS", (PATIENCE, 0.5))
    source = camera()
    with open_video(source.address, drop="none", retries=2) as video:
        wait_until(lambda: source.last == source.sent)  # what is read is there
        numbers = [number_of(next(video)) for _ in range(PROBED - DELAY)]
        wait_until(lambda: len(source.starts) == 2)
        source.send(PROBED)
        numbers += [number_of(next(video)) for _ in range(10)]
    assert numbers == sorted(set(numbers)) and numbers[-1] >= PROBED


def test_what_a_silent_camera_is_said_to_be(camera, monkeypatch):
    monkeypatch.setattr(container, "TIMEOUTS", (PATIENCE, 0.3))
    monkeypatch.setattr(live, "TIMEOUT_SECONDS", 0.3)
    with open_video(camera().address, drop="none", retries=0) as video:
        with pytest.raises(VideoError, match=r"dropped after \d+ frames \(no data for 0.3 seconds\)"):
            list(video)


@pytest.mark.parametrize("scheme", ["http", "tcp"])
def test_an_address_that_accepts_and_stays_silent(scheme, monkeypatch):
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setattr(container, "TIMEOUTS", (0.3, 0.3))
    monkeypatch.setattr(live, "TIMEOUT_SECONDS", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(VideoError, match=r"does not answer \(no data for 0.3 seconds\); check the address"),
    ):
        open_video(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/live")


def test_results_have_the_times_of_the_camera(camera, toy):
    source = camera(frames=2 * PROBED, cut_after=PROBED)
    with (
        runtime.load(toy) as engine,
        engine.session([runtime.Text(tokens=[0, 5, 2])], latency="low") as session,
        open_video(source.address, drop="none", retries=2) as video,
    ):
        results = list(itertools.islice(session.stream(video), PROBED + 20))
    assert [result.source_frame for result in results] == [result.frame_index for result in results]
    assert results[PROBED].source_frame == PROBED, "it goes on with those after the cut"
    before = results[: PROBED - DELAY]
    assert [result.pts_seconds - before[0].pts_seconds for result in before] == seconds(range(len(before)))
