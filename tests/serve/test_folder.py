"""The command for folders of videos, in one process, and its division of work with a stand-in for Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from pycocotools import mask as coco

from helpers import media, numpy_sam3
from helpers.waiting import PATIENCE, wait_until
from runtime import tokenizer
from runtime.cli import app
from runtime.cli import videos as planning
from runtime.cli.output_folder import read_head
from runtime.cli.videos import find_videos
from runtime.serve import folder
from runtime.serve.folder import main

ROOT = Path(__file__).parents[2]
PROMPT = ["--tokens", "0,5,2"]


@pytest.fixture
def videos(tmp_path):
    """Three clips, one of them broken, beside what is no video."""
    made = tmp_path / "videos"
    made.mkdir()
    for name in ("a.mp4", "c.mp4"):
        media.write(made / name, media.clip(4))
    (made / "b.mp4").write_bytes((made / "a.mp4").read_bytes()[:700])
    (made / "notes.txt").write_text("no video")
    (made / "._a.mp4").write_bytes(b"\0\5\x16\7")
    return made


@pytest.fixture
def command(toy, videos, tmp_path, capsys):
    """Runs the command on the toy bundle; returns its code, standard output and error, and the videos it opened."""

    def run(*options, sources=(videos,), out=tmp_path / "out", prompt=PROMPT, overlay="--no-overlay"):
        before = {path: path.stat().st_mtime_ns for path in Path(out).rglob("results.json")}
        code = main([*map(str, sources), *prompt, "--engine", str(toy), "--out", str(out), overlay, *map(str, options)])
        shown, written = capsys.readouterr(), Path(out).rglob("results.json")
        new = sorted(p.parent.name for p in written if p.stat().st_mtime_ns != before.get(p))
        return SimpleNamespace(code=code, out=shown.out, err=shown.err, new=new)

    return run


def test_every_video_has_the_files_of_a_run(command, toy, videos, tmp_path):
    done = command(overlay="--overlay")
    assert done.code == 2 and done.new == ["a", "c"] and "2 videos" in done.out
    *_, failed, last = done.err.splitlines()
    assert failed.startswith(f"{videos / 'b.mp4'}: failed: ") and "1 of 3 videos failed" in last
    app.main(["--video", str(videos / "c.mp4"), *PROMPT, "--engine", str(toy), "--out", str(tmp_path / "one")])
    one, many = (json.loads((tmp_path / f / "results.json").read_text()) for f in ("one", "out/c"))
    assert many["frames"] == one["frames"] and len(one["frames"]) == 4
    # the engine serves all videos, but each has its own calls
    calls = [{name: stage["calls"] for name, stage in r["timings"]["stages"].items()} for r in (one, many)]
    assert calls[0] == calls[1]
    files = [sorted(p.name for p in (tmp_path / f).rglob("*")) for f in ("one", "out/c")]
    assert files[0] == files[1] and "overlay.mp4" in files[0]


def test_nano_follows_a_sentence(videos, tmp_path):
    done = main([str(videos / "a.mp4"), "--text", "the red square", "--engine", str(ROOT / "engines"), "--out",
                 str(tmp_path / "out"), "--no-overlay"])  # fmt: skip
    assert done == 0
    (entry,) = json.loads((tmp_path / "out" / "a" / "results.json").read_text())["frames"][3]["objects"]
    assert coco.decode(entry["segmentation"]).shape == (48, 64)


def test_second_run_does_what_is_missing(command, videos, tmp_path):
    command()
    assert command().new == []
    media.write(videos / "b.mp4", media.clip(4))
    again = command("--json")
    assert (again.code, again.new) == (0, ["b"])
    totals = json.loads(again.out)
    assert (totals["videos"], totals["before"], totals["failed"]) == (1, 2, {})
    (tmp_path / "out" / "a" / "results.json").unlink()
    media.write(videos / "c.mp4", media.clip(5))  # another file of the same name
    assert command().new == ["a", "c"] and command().code == 0


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"complete": true}', b"[1]", b"\xff", b'{"complete": true, "request": 1}']
)
def test_results_that_cannot_be_read_are_not_done(command, videos, tmp_path, damage):
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "results.json").write_bytes(damage)
    done = command("--redo", sources=[videos / "a.mp4"])
    assert done.code == 2 and "not from this command" in done.err  # and it is not replaced
    assert (tmp_path / "out" / "a" / "results.json").read_bytes() == damage


@pytest.mark.parametrize(
    "change, what",
    [
        ({"prompt": ["--tokens", "0,90,2"]}, "other prompts"),
        ({"prompt": [*PROMPT, "--tokens", "0,90,2"]}, "other prompts"),
        ({"options": ["--stride", "2"]}, "other options"),
        ({"options": ["--no-masks"]}, "other options"),
        ({"engine": True}, "another engine"),
        ({"by": "run"}, "other prompts"),
    ],
)
def test_other_requests_are_refused_until_told(command, toy, videos, tmp_path, change, what, monkeypatch):
    (videos / "b.mp4").unlink()
    if "by" in change:
        for name in ("a", "c"):
            given = ["--video", str(videos / f"{name}.mp4"), *PROMPT, "--engine", str(toy)]
            app.main([*given, "--out", str(tmp_path / "out" / name)])
    else:
        assert command().code == 0
    if "engine" in change:
        monkeypatch.setattr(planning, "file_sha256", lambda path: "another")
    options, prompt = change.get("options", []), change.get("prompt", PROMPT)
    refused = command(*options, prompt=prompt)
    assert refused.code == 2 and refused.new == []
    assert f"{tmp_path / 'out' / 'a'}: results of {what} (and 1 more)" in refused.err and "--redo" in refused.err
    assert command(*options, "--redo", prompt=prompt).new == ["a", "c"]
    assert command(*options, prompt=prompt).new == []


def test_options_that_do_not_change_results_are_no_other_request(command):
    command("--threads", "1", "--backend", "auto")
    assert command("--threads", "2", "--backend", "ort", "--debug").new == []


@pytest.mark.parametrize("where", [".", "..", "out", "deeper/out"])
def test_results_inside_the_folder_are_no_videos(command, videos, where):
    (videos / "b.mp4").unlink()
    frames = videos / "frames"
    frames.mkdir()
    for number, frame in enumerate(media.clip(3)):
        Image.fromarray(frame).save(frames / f"{number}.png")
    if where == ".":
        assert "become frames of the input" in command(out=videos).err
        shutil.rmtree(frames)
    assert command(out=videos / where).new == (["a", "c"] if where == "." else ["a", "c", "frames"])
    for pattern in ([videos], [videos / "**/*.mp4"], [videos / "**/*"]):
        found = command("--max-frames", "1", sources=pattern, out=videos / where, prompt=["--tokens", "0,9,2"])
        assert "results of other" in found.err  # of what was done; nothing new is found
        assert str(len(find_videos(list(map(str, pattern)), videos / where))) in "2 3"


def test_names_that_collide(command, videos, tmp_path):
    media.write(videos / "a.avi", media.clip(2), codec="mpeg4")
    (videos / "sub").mkdir()
    media.write(videos / "sub" / "A.MP4", media.clip(3))
    assert {"a.avi", "a.mp4", "c"} == set(command().new)
    done = command(sources=[videos / "a.mp4", videos / "sub" / "A.MP4"], out=tmp_path / "two")
    assert done.code == 0 and len(done.new) == 2
    heads = [read_head(path.parent) for path in (tmp_path / "two").rglob("results.json")]
    assert sorted(head["done"] for head in heads) == [3, 4]


@pytest.mark.parametrize(
    "given, message",
    [
        (["nothing/"], "nothing/: no such file, or no video in it"),
        (["empty"], "empty: no such file, or no video in it"),
        (["videos/*.mkv"], "no such file"),
        (["videos", "--exemplar", "0,0,9,9"], "--exemplar and --tokens"),
        (["videos", "--point", "1,1"], "--point"),
        (["videos", "--workers", "0"], "--workers"),
        (["videos", "--engine", "nowhere"], "nowhere"),
        (["videos", "--out", "rtsp://host/x"], "an address"),
        (["videos", "--out", "videos/a.mp4"], "a.mp4"),
    ],
)
def test_wrong_arguments(toy, videos, tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    engine = [] if "--engine" in given else ["--engine", str(toy)]
    assert main([*given, *PROMPT, *engine]) in (1, 2)
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert not list(videos.glob("*/"))


def test_no_prompt(toy, videos, capsys):
    for prompt in ([], ["--concept", "dog", "--exemplar", "0,0,9,9"]):
        assert main([str(videos), *prompt, "--engine", str(toy)]) == 2
        assert "every video" in capsys.readouterr().err


def test_concepts(numpy_sam3_bundle, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer.Tokenizer, "of", lambda *_: lambda text: ([5, 6], []))
    engine = numpy_sam3.load(numpy_sam3_bundle)
    given = [videos, "--concept", "dog", "--engine", numpy_sam3_bundle, "--out", tmp_path / "out", "--no-overlay"]
    assert main(list(map(str, given)), lambda *args, **kwargs: engine) == 2
    heads = [read_head(tmp_path / "out" / name) for name in "ac"]
    assert [(head["request"]["prompts"], head["done"]) for head in heads] == [([["--concept", "dog"]], 4)] * 2


def test_an_error_of_all_videos_is_told_once(command):
    done = command(prompt=["--concept", "dog"])
    assert done.code == 2 and done.new == [] and len(done.err.splitlines()) == 1


def test_an_interrupt_keeps_what_is_done(toy, tmp_path):
    for name in "abc":
        media.write(tmp_path / f"{name}.mp4", media.clip(6 if name == "a" else 900))
    out = tmp_path / "out"
    given = [tmp_path, *PROMPT, "--engine", toy, "--out", out, "--no-overlay"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.serve.folder", *map(str, given)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)  # fmt: skip
    wait_until(lambda: len(list((out / "b" / "masks").glob("*.png"))) > 2)
    process.send_signal(signal.SIGINT)
    shown, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "1 videos" in shown and "stopped after" in err
    assert read_head(out / "a")["complete"] and not read_head(out / "b")["complete"] and not (out / "c").exists()


def test_no_ray_without_its_options():
    code = "import sys, runtime.serve.folder; print({'ray', 'av', 'onnxruntime'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "set()"


# -- Ray --------------------------------------------------------------------------------------------------------------


class StandIn:
    """As much of the module `ray` as the command uses, in this process; `fate(video)` says whether an actor dies."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, resources, fate=lambda video: False, starts=True):
        self.resources, self.fate, self.starts = resources, fate, starts
        self.actors, self.killed, self.options_given, self.is_shut_down = 0, [], None, False

    def init(self, address, **options):
        self.address, self.init_options = address, options

    def cluster_resources(self):
        return self.resources

    def remote(self, cls):
        return SimpleNamespace(options=lambda **shares: self._class(cls, shares))

    def _class(self, cls, shares):
        self.shares = shares

        def make(*args):
            self.actors += 1
            worker = cls(*args)
            methods = {name: getattr(worker, name) for name in ("start", "segment")}
            calls = {n: SimpleNamespace(remote=lambda *given, m=m: (m, given)) for n, m in methods.items()}
            return SimpleNamespace(**calls)

        return SimpleNamespace(remote=make)

    def wait(self, calls):
        return calls[:1], calls[1:]

    def get(self, call):
        method, given = call
        if not self.starts or (given and self.fate(given[0])):
            raise self.exceptions.RayError("The actor died.\nIts node is gone")
        return method(*given)

    def kill(self, actor):
        self.killed.append(actor)

    def shutdown(self):
        self.is_shut_down = True


@pytest.fixture
def ray(monkeypatch):
    def install(*args, **kwargs):
        monkeypatch.setitem(sys.modules, "ray", StandIn(*args, **kwargs))
        return sys.modules["ray"]

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return install


def test_a_video_whose_process_ends_is_done_again(ray, command):
    ends = {"a.mp4": 1, "c.mp4": 2}

    def fate(video):
        ends[video.path.name] = ends.get(video.path.name, 0) - 1
        return ends[video.path.name] >= 0

    module = ray({"CPU": 8.0}, fate)
    done = command("--workers", "2")
    assert done.code == 2 and done.new == ["a", "c"] and "1 of 3 videos failed" in done.err
    assert module.actors == 2 + 3 and len(module.killed) == 3 and module.is_shut_down
    assert module.address == "local" and module.init_options["object_store_memory"]


def test_a_video_that_ends_every_process_is_given_up(ray, command):
    module = ray({"CPU": 2.0}, lambda video: video.path.name == "a.mp4")
    done = command("--workers", "1", "--json")
    assert done.code == 1 and done.new == ["c"] and module.is_shut_down
    failed = json.loads(done.out)["failed"]
    assert [Path(path).name for path in failed] == ["b.mp4", "a.mp4"]
    assert "ended 3 times (The actor died. Its node is gone)" in failed[next(p for p in failed if p.endswith("a.mp4"))]


def test_processes_that_do_not_start(ray, command):
    module = ray({"CPU": 4.0}, starts=False)
    done = command("--address", "auto")
    assert done.code == 1 and "do not start (The actor died." in done.err and len(done.err.splitlines()) == 1
    assert module.is_shut_down and module.address == "auto" and "object_store_memory" not in module.init_options


@pytest.mark.parametrize(
    "resources, workers, want, threads",
    [
        ({"CPU": 8.0}, None, (3, {"num_cpus": 2}), 2),
        ({"CPU": 2.0}, None, (1, {"num_cpus": 2}), 2),
        ({"CPU": 1.0}, None, (1, {"num_cpus": 1}), 1),
        ({"CPU": 2.0}, 3, (3, {"num_cpus": 0.666}), 1),
        ({"CPU": 5.0}, 3, (3, {"num_cpus": 1}), 1),
        ({"CPU": 64.0}, 2, (2, {"num_cpus": 2}), 2),
        ({"CPU": 64.0, "GPU": 2.0}, None, (2, {"num_gpus": 1}), None),
        ({"CPU": 64.0, "GPU": 2.0}, 3, (3, {"num_gpus": 0.666}), None),
        ({"CPU": 64.0, "GPU": 8.0}, None, (3, {"num_gpus": 1}), None),
    ],
)
def test_processes_and_their_share(resources, workers, want, threads):
    args = SimpleNamespace(workers=workers, threads=None)
    assert folder._divide(args, resources, 3) == want and args.threads == threads


def test_ray_that_is_missing_or_does_not_answer(ray, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = command("--workers", "2")
    assert done.code == 2 and "pip install" in done.err
    module = ray({})
    module.init = lambda *args, **kwargs: (_ for _ in ()).throw(ConnectionError("timed out"))
    done = command("--address", "ray://host:10001")
    assert done.code == 2 and "no Ray cluster answers (timed out); is RAY_AUTH_MODE" in done.err
    assert len(done.err.splitlines()) == 1
