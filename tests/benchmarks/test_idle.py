"""Idle time of the command, on nano."""

import sys

import pytest

from benchmarks import idle
from helpers import media


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("prompt", [("--text", "the red square"), ("--point", "20,24")], ids=["sentence", "click"])
def test_phases_of_the_command(tmp_path, prompt):
    clip = media.write(tmp_path / "clip.mp4", media.clip(40))
    out = ("--out", str(tmp_path / "out"))
    found = idle.run(["--engine", "engines/", "--model", "nano", "--video", str(clip), *out, *prompt])
    assert found["frames"] == 40 and found["seconds"] > 0 and found["idle"] < 1
    phases = found["phases"]
    wanted = {"encode", "decode and remember masks", "preprocess", "postprocess", "draw the overlay"}
    assert wanted | {"write results and masks", "convert the overlay", "read the video"} <= set(phases)
    assert all(phases[name] > 0 for name in wanted)
    assert sum(phases.values()) == pytest.approx(found["cpu"])
