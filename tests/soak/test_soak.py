"""A short endurance run on toy bundles, that its verdict can fail, and that nothing waits for the garbage collector."""

import gc
import json
import os
from dataclasses import asdict, replace

import pytest

import runtime
from runtime.media import video_reader, video_sources
from soak import run as soak
from soak import scenarios as soak_episodes
from soak.media import Media


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return Media(tmp_path_factory.mktemp("media"))


@pytest.fixture(autouse=True)
def quick_cameras(monkeypatch):
    monkeypatch.setattr(video_sources, "RETRY_SECONDS", 0.01)


def test_nothing_grows(toy, media):
    with runtime.load(toy) as engine:
        life = soak.Life(engine, media)
        samples = list(soak.run(life, 1200, 50))
        assert engine.networks["samwise"].pool.free == engine.networks["samwise"].pool.capacity
    assert 15 <= len(samples) <= 24
    assert soak.verdict(samples) == []
    assert {
        "camera dropped and came back",
        "truncated packet",
        "damaged packets",
        "missing frames",
        "damaged picture",
        "frame of another size",
        "too many objects",
    } <= life.trouble.keys()


def test_nothing_grows_with_clicks(toy_sam2_bundle, media):
    with runtime.load(toy_sam2_bundle) as engine:
        life = soak.Life(engine, media)
        samples = list(soak.run(life, 1200, 50))
    assert soak.verdict(samples) == []
    assert life.trouble["click outside the picture"] > 5


def test_growth_is_seen():
    flat = [soak.Sample(i, 100.0, 9, 2) for i in range(20)]
    assert soak.verdict(flat) == []
    for change in ({"rss_mb": 100.0 + 2 * soak.GROWTH_MB}, {"files": 10}, {"threads": 3}):
        assert len(soak.verdict([*flat[:-2], *(replace(s, **change) for s in flat[-2:])])) == 1
    climbing = [replace(s, rss_mb=100.0 + 5 * i) for i, s in enumerate(flat)]
    assert len(soak.verdict(climbing)) == 1


def test_masks_that_change_are_seen(toy, media, monkeypatch):
    digests = iter(["a", "a", "b"])
    monkeypatch.setattr(soak, "probe", lambda engine: next(digests))
    with runtime.load(toy) as engine, pytest.raises(AssertionError, match="other masks"):
        list(soak.run(soak.Life(engine, media), 400, 50))


def test_an_error_that_does_not_come_is_seen():
    with pytest.raises(AssertionError, match="no VideoError"):
        soak_episodes.expect(runtime.VideoError, lambda: None)


def test_the_report_tells_what_happened_and_is_plotted(toy, media, tmp_path):
    pytest.importorskip("matplotlib")
    args = soak.parser().parse_args(["--engine", "toy", "--machine", "a test"])
    with runtime.load(toy) as engine:
        life = soak.Life(engine, media)
        life.frames = 300
        samples = [soak.Sample(i, 100.0, 9, 2, 1.0, 2.0) for i in (100, 200, 300)]
        soak.write(tmp_path / "soak.json", soak.report(life, samples, args, complete=False))
    data = json.loads((tmp_path / "soak.json").read_text())
    assert (data["complete"], data["frames"], data["grew"], data["machine"]) == (False, 300, [], "a test")
    soak.plot([asdict(s) for s in samples], tmp_path / "soak.png", data["machine"])
    assert (tmp_path / "soak.png").stat().st_size > 1000 and (tmp_path / "soak.svg").stat().st_size > 1000


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("name", ["truncated packet", "damaged packets", "damaged picture"])
def test_a_decoder_goes_with_the_error_that_ended_it(media, name):
    def read():
        with pytest.raises(runtime.VideoError), video_reader.open_video(media.files[name]) as frames:
            for _ in frames:
                pass

    read()
    _without_collector(read)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_a_video_that_is_dropped_unread_lets_go_of_its_file(media):
    def drop():
        video_reader.open_video(media.files["missing frames"])

    _without_collector(drop)


def _without_collector(action):
    """The action leaves neither handles nor threads behind, with the garbage collector off."""
    gc.collect()
    soak.settle()
    files, threads = len(os.listdir("/proc/self/fd")), soak.native_threads()
    gc.disable()
    try:
        for _ in range(4):
            action()
        soak.settle()
        assert len(os.listdir("/proc/self/fd")) <= files
        assert soak.native_threads() <= threads + 1  # the reader of the last video may just be leaving
    finally:
        gc.enable()
