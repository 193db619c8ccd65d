"""The command on the toy bundle, from arguments to files."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

import runtime
from helpers import media
from helpers import toy_samwise as toy_bundle
from helpers.fake_cuda import FakeCudaBackend
from helpers.waiting import PATIENCE, wait_until
from runtime.bundle.bundle import choose
from runtime.cli.app import main
from runtime.cli.args import build_parser
from runtime.metrics import boundary_f, jaccard

ROOT = Path(__file__).parents[2].parent
COMMAND = [sys.executable, "-m", "runtime.run"]
PROMPT = ["--tokens", "0,5,2"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of ten frames; with a window of four, the last clip is short."""
    return media.write(tmp_path_factory.mktemp("clips") / "clip.mp4", media.clip(10))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The toy bundle with a demonstration clip whose masks are the red square."""
    folder = tmp_path_factory.mktemp("bundles") / "demo_bundle"
    frames = media.clip(6)
    toy_bundle.build(folder, demo="demo")
    (folder / "demo").mkdir()
    media.write(folder / "demo" / "clip.mp4", frames)
    np.savez_compressed(folder / "demo" / "masks.npz", masks=(frames[..., 0] > 200).astype(np.uint8) * 7)
    (folder / "demo" / "demo.json").write_text(json.dumps({"sentences": [{"text": "the red square", "object": 7}]}))
    return folder


class OneToken:
    """Stands for a tokenizer: every sentence is the token 5 between its marks."""

    def __call__(self, text):
        return [0, 5, 2], [(0, 0), (0, len(text)), (0, 0)]


def command(*args, cwd=ROOT, **kwargs):
    return subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=PATIENCE, **kwargs
    )


def load_results(out):
    return json.loads((Path(out) / "results.json").read_text())


def test_files_hold_the_results_of_the_engine(toy, clip, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--engine", str(toy), "--video", str(clip), *PROMPT, "--tokens", "0,90,2", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "10 frames in" in shown.out and "overlay.mp4" in shown.out and shown.err == ""

    with runtime.load(toy) as engine, runtime.media.video_reader.open_video(clip) as video:
        prompts = [runtime.Text(tokens=[0, 5, 2]), runtime.Text(tokens=[0, 90, 2])]
        want = list(engine.session(prompts).stream(video))
    data = load_results(out)
    assert data["complete"] and data["done"] == 10 and [f["frame"] for f in data["frames"]] == list(range(10))
    assert data["video"] == {"name": str(clip), "width": 64, "height": 48, "fps": 24.0, "stride": 1}
    assert [o["prompt"] for o in data["objects"]] == ["tokens 0,5,2", "tokens 0,90,2"]
    assert data["objects"][0]["visible"] == sum(r.masks[0].any() for r in want) > 0
    assert {"hiera_0", "mask_decoder"} <= set(data["timings"]["stages"])
    for frame, result in zip(data["frames"], want, strict=True):
        for k, entry in enumerate(frame["objects"]):
            assert (coco.decode(entry["segmentation"]) == result.masks[k]).all()
            assert entry["score"] == pytest.approx(float(result.scores[k]), abs=1e-6)
        indexed = np.asarray(Image.open(out / "masks" / f"{frame['name']}.png"))
        assert ((indexed > 0) == result.masks.any(0)).all()
    with av.open(str(out / "overlay.mp4")) as video:
        assert len(list(video.decode(video=0))) == 10


def test_standard_error_is_empty_without_a_terminal(toy, clip, tmp_path):
    done = command("--engine", toy, "--video", clip, *PROMPT, "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_progress_on_a_terminal(toy, clip, tmp_path):
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--engine", str(toy), "--video", str(clip), *PROMPT, "--out", str(tmp_path)],
        cwd=ROOT,
        stdout=child,
        stderr=child,
    )
    os.close(child)
    shown = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # the other end of the pseudo-terminal is closed
            break
        if not part:
            break
        shown += part
    os.close(parent)
    assert process.wait(PATIENCE) == 0
    text = shown.decode()
    assert "clip.mp4" in text and "/10 frames" in text and "10 frames in" in text
    assert "\033[38;2;255;0;0m" in text, "the colour of the object beside its name"


def test_json_summary_is_one_line(toy, clip, tmp_path):
    done = command(
        "--engine", toy, "--video", clip, *PROMPT, "--out", tmp_path, "--json", "--stride", 3, "--max-frames", 2
    )
    summary = json.loads(done.stdout)
    assert summary["done"] == 2 and summary["complete"] and summary["fps"] > 0
    assert [Path(f).name for f in summary["files"]] == ["overlay.mp4", "contact.png", "masks", "results.json"]
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["00000.png", "00003.png"]


def test_outputs_can_be_disabled(toy, clip, tmp_path):
    arguments = ["--engine", str(toy), "--video", str(clip), *PROMPT, "--out", str(tmp_path)]
    assert main([*arguments, "--no-masks", "--no-overlay"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_masks_of_a_folder_keep_its_names(toy, tmp_path):
    (tmp_path / "in").mkdir()
    for i, frame in enumerate(media.clip(5)):
        Image.fromarray(frame).save(tmp_path / "in" / f"scene_{i * 5}.jpg")
    assert main(["--engine", str(toy), "--video", str(tmp_path / "in"), *PROMPT, "--out", str(tmp_path / "out")]) == 0
    assert {p.name for p in (tmp_path / "out" / "masks").iterdir()} == {f"scene_{i * 5}.png" for i in range(5)}


def test_an_image(toy, tmp_path):
    Image.fromarray(media.clip(1)[0]).save(tmp_path / "photo.png")
    photo, out = str(tmp_path / "photo.png"), str(tmp_path / "out")
    assert main(["--engine", str(toy), "--image", photo, *PROMPT, "--out", out]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["masks", "overlay.png", "results.json"]


def test_demonstration_is_scored(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtime.models.samwise.network.Tokenizer, "of", lambda *a: OneToken())
    assert main(["--engine", str(demo), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"the red square +\d/6 +\d\.\d\d +\d\.\d{3} +\d\.\d{3} +\d\.\d{3}", shown)
    truth = media.clip(6)[..., 0] > 200

    def check(stride):
        entry = load_results(tmp_path)["objects"][0]
        masks = [np.asarray(Image.open(tmp_path / "masks" / f"{i:05d}.png")) > 0 for i in range(0, 6, stride)]
        j, f = jaccard(masks, truth[::stride]).mean(), boundary_f(masks, truth[::stride]).mean()
        assert (entry["J"], entry["F"], entry["J&F"]) == pytest.approx((j, f, (j + f) / 2), abs=1e-4) and j > 0

    check(stride=1)
    # another sentence runs on the same clip without scores
    assert main(["--engine", str(demo), "--out", str(tmp_path), "--text", "something else", "--stride", "2"]) == 0
    assert "J" not in load_results(tmp_path)["objects"][0] and load_results(tmp_path)["done"] == 3
    assert main(["--engine", str(demo), "--out", str(tmp_path), "--stride", "2"]) == 0
    check(stride=2)


@pytest.mark.parametrize("name", ["demo.json", "masks.npz", "clip.mp4"])
def test_a_damaged_demonstration(demo, tmp_path, name, monkeypatch, capsys):
    import shutil

    monkeypatch.setattr(runtime.models.samwise.network.Tokenizer, "of", lambda *a: OneToken())
    folder = shutil.copytree(demo, tmp_path / "b")
    (folder / "demo" / name).write_bytes(b"nonsense")
    assert main(["--engine", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_list(toy, demo, tmp_path, capsys):
    assert main(["--engine", str(demo), "--list"]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:4] == ["demo_bundle", "samwise", "toy", "fp32"] and row[-1] == "yes"
    (tmp_path / "good").symlink_to(toy)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text("{")
    assert main(["--engine", str(tmp_path), "--list", "--json"]) == 2
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["bundles"]) == 1 and len(shown["broken"]) == 1 and "bad" in shown["broken"][0]


def test_help_names_every_flag_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    values = vars(build_parser("x").parse_args([])).keys() - {"prompt_args"}  # the order of the prompts, no option
    flags = {f"--{name.replace('_', '-')}" for name in values} | {"-h", "--help", "--image"}
    flags |= {f"--no-{name}" for name in ("masks", "overlay", "sound")}
    assert len(flags) > 25
    for word in (*flags, "exit codes", "examples"):
        assert re.search(rf"(?<![\w-]){word}(?![\w-])", shown), word
    assert max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize("latency, ahead", [("low", "decode"), ("clip", "encode")])
def test_options_reach_the_engine(toy, clip, tmp_path, latency, ahead):
    received = {}

    def load(*args, **kwargs):
        received.update(kwargs, engine=args[0])
        engine = runtime.load(toy)
        session = engine.session
        engine.session = lambda prompts, **kw: received.update(kw, prompts=prompts) or session(prompts, **kw)
        return engine

    flags = (
        "--engine E --model M --backend B --threads 3 --kernels off --graphs off --conditional-memory off --window 2"
    )
    flags += f" --warm --max-objects 5 --latency {latency} --reference-quirks --{ahead}-ahead"
    prompts = ["--tokens", "0,5,2", "--tokens", "7"]
    assert main([*flags.split(), "--video", str(clip), *prompts, "--out", str(tmp_path)], load) == 0
    assert received == {
        "engine": "E",
        "model": "M",
        "backend": "B",
        "threads": 3,
        "kernels": "off",
        "graphs": "off",
        "warm": True,
        "max_objects": 5,
        "conditional_memory": False,
        "window": 2,
        "latency": latency,
        "decode_ahead": ahead == "decode",
        "encode_ahead": ahead == "encode",
        "reference_quirks": True,
        "prompts": [runtime.Text(tokens=[0, 5, 2]), runtime.Text(tokens=[7])],
    }


def test_what_runs_ahead_gives_the_same_files(toy, clip, tmp_path):
    engine = runtime.Engine(choose(toy), FakeCudaBackend())
    frames = []
    for flags in ([], ["--decode-ahead", "--encode-ahead"]):
        args = ["--video", str(clip), "--tokens", "0,5,2", *flags, "--no-overlay", "--out", str(tmp_path)]
        assert main(args, lambda *_, **__: engine) == 0
        frames.append(json.loads((tmp_path / "results.json").read_text())["frames"])
    assert frames[0] == frames[1] and len(frames[0]) == 10


def test_image_networks_segment_every_frame_separately(clip, tmp_path):
    class Finder:
        """An engine for single images; every object is the left half."""

        bundle = SimpleNamespace(name="finder")
        capabilities = frozenset({runtime.Capability.TEXT_IMAGE})

        def image(self, frame):
            self.frame = frame
            return self

        def refer(self, prompts):
            mask = np.zeros((len(prompts), *self.frame.shape[:2]), bool)
            mask[:, :, :32] = True
            ones, boxes = np.ones(len(prompts), np.float32), np.tile(np.float32([0, 0, 32, 48]), (len(prompts), 1))
            ids = tuple(range(1, len(prompts) + 1))
            return runtime.Result(0, ids, ids, mask, ones, boxes)

    from runtime.cli.tasks import text_task

    with runtime.media.video_reader.open_video(clip) as video:
        results = list(text_task(Finder(), [runtime.Text("a"), runtime.Text("b")], runtime.TextOptions()).stream(video))
    assert [r.frame_index for r in results] == list(range(10)) and results[3].object_ids == (1, 2)
    with pytest.raises(
        runtime.UserError,
        match="--window: not supported by the bundle finder, which segments every frame separately; remove it",
    ):
        text_task(Finder(), [runtime.Text("a")], runtime.TextOptions(window=2))


def test_verbs_belong_to_the_preceding_text():
    from runtime.cli.args import parse_prompts

    made = parse_prompts(
        [("--text", "a dog running"), ("--verbs", "running, "), ("--tokens", "0,1,2"), ("--verbs", "1")]
    )
    assert made == [runtime.Text("a dog running", verbs=["running"]), runtime.Text(tokens=[0, 1, 2], verbs=[1])]
    assert parse_prompts([]) == []
    for pairs in ([("--verbs", "x")], [("--tokens", "1"), ("--verbs", "x")], [("--tokens", "1,x")]):
        with pytest.raises(runtime.PromptError):
            parse_prompts(pairs)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    return media.write(tmp_path_factory.mktemp("clips") / "long.mp4", media.clip(1500, 32, 48))


def started(toy, clip, out, lines):
    """A running command that has written so many lines of results."""
    process = subprocess.Popen(
        [*COMMAND, "--engine", str(toy), "--video", str(clip), *PROMPT, "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    path = out / "results.jsonl"

    def has_written():
        assert process.poll() is None, process.communicate()
        return path.exists() and path.read_bytes().count(b"\n") > lines

    wait_until(has_written)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_finished_frames(toy, long_clip, tmp_path, number):
    process = started(toy, long_clip, tmp_path, 20)
    process.send_signal(number)
    _shown, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert len(error.splitlines()) == 1 and "stopped after" in error
    data = load_results(tmp_path)
    assert data["complete"] is False and 20 <= data["done"] == len(data["frames"]) < 1500
    assert len(list((tmp_path / "masks").iterdir())) == data["done"]
    with av.open(str(tmp_path / "overlay.mp4")) as video:
        assert len(list(video.decode(video=0))) == data["done"]


def test_files_of_a_killed_run_are_readable(toy, long_clip, tmp_path):
    process = started(toy, long_clip, tmp_path, 120)
    process.kill()
    process.communicate()
    lines = (tmp_path / "results.jsonl").read_bytes().split(b"\n")[1:-1]
    assert len(lines) >= 120
    for line in lines[:-1]:  # the mask of the last line may not have been written yet
        Image.open(tmp_path / "masks" / f"{json.loads(line)['name']}.png").load()
    with av.open(str(tmp_path / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) >= 24


def test_closed_pipe_is_not_an_error(toy):
    piped = f"{' '.join(COMMAND)} --engine {toy} --list | true"
    done = subprocess.run(piped, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert "Traceback" not in done.stderr


def test_damage_is_noted_or_an_error_with_strict(toy, tmp_path, capsys):
    path = media.damage_packets(media.write(tmp_path / "clip.mkv", media.clip(10), encoder={"bf": "0"}, gop=4), [5])
    run = ["--engine", str(toy), "--video", str(path), *PROMPT, "--no-overlay"]
    assert main([*run, "--out", str(tmp_path / "a")]) == 0
    results, note = load_results(tmp_path / "a"), f"{path}: damaged, 1 frame missing: 1 after frame 4 (at 0.21 s)"
    assert len(results["frames"]) == 9 and results["notes"] == [note] and results["complete"]
    shown = capsys.readouterr()
    assert note in shown.out + shown.err
    assert main([*run, "--out", str(tmp_path / "b"), "--strict"]) == 2
    assert "damaged or cut short after" in capsys.readouterr().err
    assert not load_results(tmp_path / "b")["complete"]


def test_a_cut_file_is_an_error_with_its_frames_kept(toy, tmp_path, capsys):
    path = media.truncate(media.write(tmp_path / "clip.mp4", media.clip(40), movflags="faststart"), 0.6)
    out = tmp_path / "out"
    assert main(["--engine", str(toy), "--video", str(path), *PROMPT, "--no-overlay", "--out", str(out)]) == 2
    assert "cut short: it ends at" in capsys.readouterr().err
    results = load_results(out)
    assert 5 < len(results["frames"]) < 40 and not results["complete"]
