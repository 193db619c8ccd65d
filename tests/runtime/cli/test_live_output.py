"""Output while a run goes on: events, the window, frames of a live source."""

import io
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from helpers import media
from helpers.waiting import PATIENCE, wait_until
from runtime.cli import window
from runtime.cli.app import main


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return media.write(tmp_path_factory.mktemp("live") / "clip.mp4", media.clip(5, 60, 80), fps=10)


def run(clip, tmp_path, *options):
    arguments = ["--engine", "engines/nano", "--threads", "1", "--video", str(clip), "--box", "10,10,50,40"]
    return main([*arguments, "--no-masks", "--no-overlay", "--out", str(tmp_path / "out"), *options])


@pytest.mark.parametrize("form", ["boxes", "rle"])
def test_one_line_per_frame(clip, tmp_path, capsys, form):
    assert run(clip, tmp_path, "--events", form) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    written = json.loads((tmp_path / "out" / "results.json").read_text())["frames"]
    assert [event["frame"] for event in events] == [0, 1, 2, 3, 4] == [event["source_frame"] for event in events]
    assert [event["time"] for event in events] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    for event, frame in zip(events, written, strict=True):
        assert {key: event[key] for key in frame if key != "objects"} == {
            k: v for k, v in frame.items() if k != "objects"
        }
        for obj, entry in zip(event["objects"], frame["objects"], strict=True):
            assert obj.pop("prompt") == "object 1"
            assert ("segmentation" in obj) == (form == "rle")
            assert obj == {key: value for key, value in entry.items() if form == "rle" or key != "segmentation"}
    assert "frames per second" in err, "the summary is no event"


def test_events_come_before_the_run_ends(tmp_path):
    """Of a camera: each line is there right after its frame, with the frame's number in the source."""
    data = media.write(tmp_path / "a.ts", media.clip(6, 60, 80), fps=10).read_bytes()
    server = media.Server(data, times=1)
    arguments = ["--engine", "engines/nano", "--video", f"tcp://127.0.0.1:{server.port}", "--box", "10,10,50,40"]
    command = [
        sys.executable,
        "-m",
        "runtime.run",
        *arguments,
        "--out",
        str(tmp_path / "out"),
        "--events",
        "--drop",
        "none",
    ]
    with subprocess.Popen(
        [*command, "--retries", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as done:
        lines = [json.loads(done.stdout.readline()) for _ in range(6)]
        assert done.poll() is None, "it waits for the stream to come back"
        done.terminate()
    assert [line["source_frame"] for line in lines] == list(range(6))
    assert np.diff([line["pts_seconds"] for line in lines]) == pytest.approx(0.1, abs=1e-3)


def test_a_pipe_that_closes_ends_the_run(clip, tmp_path):
    command = f"{sys.executable} -m runtime.run --engine engines/nano --video {clip} --box 10,10,50,40 --events"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} --out {tmp_path / 'out'} | head -1"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and json.loads(done.stdout)["frame"] == 0


@pytest.mark.parametrize("display", [None, ":96"])
def test_without_a_display_the_run_goes_on(clip, tmp_path, capfd, monkeypatch, display):
    """None is named, or the one that is named is not there."""
    pytest.importorskip("tkinter")
    if display is None:
        monkeypatch.delenv("DISPLAY", raising=False)
    else:
        monkeypatch.setenv("DISPLAY", display)
    assert run(clip, tmp_path, "--show") == 0
    out, err = capfd.readouterr()
    assert "note: --show: no " in err and "Traceback" not in err and "5 frames in" in out


@pytest.fixture
def display(monkeypatch, tmp_path):
    """A display without a screen, and how to take its picture."""
    pytest.importorskip("tkinter")
    if not shutil.which("Xvfb"):
        pytest.skip("needs Xvfb, a display without a screen")
    server = subprocess.Popen(  # it tells the number that it took when it is ready
        ["Xvfb", "-displayfd", "1", "-screen", "0", "320x240x24", "-fbdir", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    monkeypatch.setenv("DISPLAY", f":{int(server.stdout.readline())}")

    def brightness():
        """Mean of the picture's bytes after the header of the X window dump."""
        data = (tmp_path / "Xvfb_screen0").read_bytes()
        return np.frombuffer(data[-320 * 240 * 4 :], np.uint8).reshape(-1, 4)[:, :3].mean()

    yield brightness
    server.kill()
    server.communicate()


def test_window_shows_images_until_it_is_closed(display):
    assert window.unavailable_reason() is None
    opened = window.Window("clip")
    for value in (250, 20, 130):
        opened.show(np.full((480, 640, 3), value, np.uint8))
        wait_until(lambda value=value: abs(display() - value * 0.81) < 12)
    opened._process.stdin.close()  # the window ends, as when the user closes it
    assert opened._process.wait(timeout=PATIENCE) == 0
    with pytest.raises(KeyboardInterrupt):
        opened.show(np.zeros((4, 4, 3), np.uint8))
    opened.close()
    opened.close()
    assert not any(thread.name == "window" for thread in threading.enumerate())


def test_the_window_ends_with_the_run(display, clip, tmp_path):
    before = set(threading.enumerate())
    assert run(clip, tmp_path, "--show") == 0
    assert set(threading.enumerate()) <= before


def test_images_of_a_pipe():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    whole = window.HEADER.pack(2, 4) + image.tobytes()
    pipe = io.BytesIO(whole + whole[:-1])
    assert np.array_equal(window.read_image(pipe), image)
    assert window.read_image(pipe) is None and window.read_image(pipe) is None
