"""A short soak run on toy bundles, detection of growth, and decoders that end without the garbage collector."""

import gc
import json
import os
from dataclasses import replace

import pytest

import runtime
from helpers import resources
from helpers.damaged_media import make_files
from helpers.errors import expect_error
from runtime.media import live, video_reader
from soak import one_session
from soak import run as soak
from soak.scenarios import SoakRunner


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def quick_cameras(monkeypatch):
    monkeypatch.setattr(live, "RETRY_SECONDS", 0.01)


def test_nothing_grows(toy, files):
    with runtime.load(toy) as engine:
        runner = SoakRunner(engine, files)
        samples = list(soak.run(runner, 1200, 50))
        assert engine.networks["samwise"].maskmem_pool.in_use == 0
    assert 15 <= len(samples) <= 24
    assert soak.find_growth(samples) == []
    assert {
        "camera dropped and came back",
        "truncated packet",
        "damaged packets",
        "missing frames",
        "damaged picture",
        "frame of another size",
        "too many objects",
    } <= runner.expected_errors.keys()


def test_nothing_grows_with_clicks(toy_sam2_bundle, files):
    with runtime.load(toy_sam2_bundle) as engine:
        runner = SoakRunner(engine, files)
        samples = list(soak.run(runner, 1200, 50))
    assert soak.find_growth(samples) == []
    assert runner.expected_errors["click outside the picture"] > 5


@pytest.mark.parametrize("latency", ["clip", "low"])
def test_sentences_that_come_and_go_change_nothing_of_the_others(toy, latency):
    with runtime.load(toy) as engine:
        runner, pool = SoakRunner(engine, {}), engine.networks.text_video.maskmem_pool
        in_use = [pool.in_use for _ in soak.run_session(runner, 60, 1, latency, change_every=10)]
        assert max(in_use) == 3 and pool.in_use == 0
    assert (runner.frames, runner.sessions) == (60, 6)


def test_a_changed_bit_of_another_sentence_is_detected(toy, monkeypatch):
    def change(runner, session, number):
        for track in session._sentences._groups[0].tracks if number == 3 else ():
            track.features["sparse"] += 1
            track.features["text_0"] += 1

    monkeypatch.setattr(one_session, "change_sentence", change)
    with runtime.load(toy) as engine, pytest.raises(AssertionError, match="frame 6: .* differ"):
        list(soak.run_session(SoakRunner(engine, {}), 12, 1, "low", change_every=2))


def test_growth_is_detected():
    flat = [soak.Sample(i, 100.0, 9, 2) for i in range(20)]
    assert soak.find_growth(flat) == []
    for change in ({"rss_mb": 100.0 + 2 * soak.GROWTH_MB}, {"files": 10}, {"threads": 3}):
        assert len(soak.find_growth([*flat[:-2], *(replace(s, **change) for s in flat[-2:])])) == 1
    climbing = [replace(s, rss_mb=100.0 + 5 * i) for i, s in enumerate(flat)]
    assert len(soak.find_growth(climbing)) == 1


def test_changed_masks_are_detected(toy, files, monkeypatch):
    digests = iter(["a", "a", "b"])
    monkeypatch.setattr(soak, "mask_digest", lambda engine: next(digests))
    with runtime.load(toy) as engine, pytest.raises(AssertionError, match="other masks"):
        list(soak.run(SoakRunner(engine, files), 400, 50))


def test_a_missing_error_is_detected():
    with pytest.raises(AssertionError, match="no VideoError"):
        expect_error(runtime.VideoError, lambda: None)


def test_the_report_is_written_and_plotted(toy, files, tmp_path):
    pytest.importorskip("matplotlib")
    args = soak.build_parser().parse_args(["--engine", "toy", "--machine", "a test"])
    with runtime.load(toy) as engine:
        runner = SoakRunner(engine, files)
        runner.frames = 300
        samples = [soak.Sample(i, 100.0, 9, 2, 1.0, 2.0) for i in (100, 200, 300)]
        soak.write(tmp_path / "soak.json", soak.report(runner, samples, args, complete=False))
    data = json.loads((tmp_path / "soak.json").read_text())
    assert (data["complete"], data["frames"], data["grew"], data["machine"]) == (False, 300, [], "a test")
    soak.plot(samples, tmp_path / "soak.png", data["machine"])
    assert (tmp_path / "soak.png").stat().st_size > 1000 and (tmp_path / "soak.svg").stat().st_size > 1000


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("name", ["truncated packet", "damaged packets", "damaged picture"])
def test_a_decoder_ends_with_its_error(files, name):
    def read():
        with pytest.raises(runtime.VideoError), video_reader.open_video(files[name], strict=True) as frames:
            for _ in frames:
                pass

    read()
    _without_collector(read)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_an_unread_video_closes_its_file(files):
    def drop():
        video_reader.open_video(files["missing frames"])

    _without_collector(drop)


def _without_collector(action):
    """Check that the action leaves neither handles nor threads behind, with the garbage collector off."""
    gc.collect()
    resources.wait_for_threads()
    files, threads = resources.files(), resources.threads()
    gc.disable()
    try:
        for _ in range(4):
            action()
        resources.wait_for_threads()
        assert resources.files() <= files
        assert resources.threads() <= threads + 1  # the reader of the last video may just be leaving
    finally:
        gc.enable()
