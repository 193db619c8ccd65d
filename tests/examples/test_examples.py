"""Every script in `examples/` that runs on a CPU, with engines/nano on a short clip."""

import ast
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import runtime
from helpers.media import write

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"
CLIP = ROOT / "engines" / "nano" / "demo" / "clip.mp4"


@pytest.fixture(scope="session")
def short_clip(tmp_path_factory):
    """The first eight frames of the demonstration clip."""
    with runtime.open_video(CLIP, max_frames=8) as video:
        return write(tmp_path_factory.mktemp("media") / "short.mp4", np.stack(list(video)), fps=6)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script with arguments, in this process, and return what it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def pixels(output):
    return [int(count) for count in re.findall(r"(\d+) pixels", output)]


def test_text_on_video(run, short_clip, tmp_path):
    output = run("text_on_video.py", short_clip, "--text", "the crab in the video", "--out", tmp_path)
    assert output.count("'the crab in the video'") == 8
    masks = [np.asarray(Image.open(file)) for file in sorted(tmp_path.glob("*_1.png"))]
    assert [int(mask.sum()) for mask in masks] == pixels(output)
    assert all(5000 < mask.sum() < 9000 for mask in masks)


def test_live_clicks(run, short_clip):
    lines = run("live_clicks.py", short_clip).splitlines()
    assert [line.count("object") for line in lines] == [1] * 4 + [2] * 4
    assert all(5000 < pixels(line)[0] < 9000 for line in lines)
    assert all(10_000 < pixels(line)[1] < 15_000 for line in lines[4:])


def test_offline_correction(run, short_clip):
    lines = run("offline_correction.py", short_clip, "--frame", 2).splitlines()
    assert len(lines) == 8
    assert ["backward" in line for line in lines] == [True] * 2 + [False] * 6
    changed = [int(re.search(r"(\d+) changed", line)[1]) for line in lines[2:]]
    assert changed[0] == 0 and changed[3] > 0, "the correction is on frame 5"


def test_one_image(run, short_clip):
    output = run("one_image.py", short_clip, "--grid", 6)
    assert output.count("click") == 3 and output.count("sentence") == 1 and output.count("automatic") >= 1
    assert all(5000 < count < 9000 for count in pixels(output)[:3])


def test_camera(run, short_clip):
    lines = run("camera.py", short_clip, "--frames", 3, "--window", 1).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["frame 0", "frame 1", "frame 2"]
    assert all("box" in line and "0 dropped" in line for line in lines)


def test_serve_client(run, short_clip):
    pytest.importorskip("uvicorn")
    from helpers.server import Running

    server = Running(runtime.load(ROOT / "engines" / "nano", threads=1))
    try:
        lines = run("serve_client.py", short_clip, "--server", server.address).splitlines()
    finally:
        server.close()
    assert [int(line.split()[1]) for line in lines] == list(range(8))
    assert all(5000 < pixels(line)[0] < 9000 for line in lines)


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_are_flat_and_short(script):
    """One file per task: the public package, the standard library and array libraries; at most 60 lines."""
    tree = ast.parse(script.read_text())
    assert ast.get_docstring(tree)
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    libraries = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert libraries <= {"runtime", "numpy", "PIL", "pycuda"}
    assert "runtime" in names, "examples use the public names of `runtime` only"
    assert len(script.read_text().splitlines()) <= 60
    for name in re.findall(r"\bruntime\.(\w+)", ast.unparse(tree)):
        assert name in (*runtime.__all__, "serve")


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_is_tested(script):
    assert script.name == "frames_on_gpu.py" or f'"{script.name}"' in Path(__file__).read_text()
