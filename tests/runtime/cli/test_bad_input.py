"""Invalid input, given through the command.

Each case ends with one line that names the problem, the right exit code, no traceback, and every finished mask on disk.
"""

import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from helpers import media
from helpers import toy_samwise as toy_bundle
from helpers.waiting import PATIENCE
from runtime.cli.app import main

ROOT = Path(__file__).parents[2].parent
PROMPT = ["--tokens", "0,5,2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder for bad files, with one good clip."""
    folder = tmp_path_factory.mktemp("files")
    media.write(folder / "good.mp4", media.clip(10))
    return folder


@pytest.fixture(scope="module")
def toy_with_tokenizer(tmp_path_factory):
    """The toy bundle with a tokenizer of three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<s>": 0, "</s>": 2, "<unk>": 3, "the": 4, "red": 5, "square": 6}
    library = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("bundles") / "with_tokenizer"
    toy_bundle.build(folder, tokenizer="tokenizer.json")
    library.save(str(folder / "tokenizer.json"))
    return folder


def run(toy, video, out, *args, prompt=PROMPT):
    source = ["--video", str(video)] if video is not None else []
    command = [sys.executable, "-m", "runtime.run", "--engine", toy, *source, "--out", out, *prompt, *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


def assert_fails(done, code, *words):
    """Check the exit code, and that standard error is one line with all the words. Returns the line."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    return line


def assert_kept(out, at_least, complete=False):
    """Check that the results on disk are readable and agree with the masks. Returns the number of frames."""
    data = json.loads((out / "results.json").read_text())
    names = sorted(p.name for p in (out / "masks").iterdir())
    assert names == [f"{frame['name']}.png" for frame in data["frames"]]
    for name in names:
        Image.open(out / "masks" / name).load()
    with av.open(str(out / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == len(names)
    assert data["complete"] is complete and len(names) == data["done"] >= at_least
    return len(names)


# --------------------------------------------------------------------------------------------------------------- video


def test_no_such_video(toy, files, tmp_path):
    assert_fails(run(toy, files / "nothing.mp4", tmp_path), 2, "nothing.mp4", "no such file")


def test_empty_video(toy, files, tmp_path):
    (files / "empty.mp4").write_bytes(b"")
    assert_fails(run(toy, files / "empty.mp4", tmp_path), 2, "empty.mp4", "0 bytes")


def test_corrupt_header(toy, files, tmp_path):
    (files / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    assert_fails(run(toy, files / "noise.mp4", tmp_path), 2, "noise.mp4", "not a video")


def test_a_text_file(toy, files, tmp_path):
    (files / "notes.txt").write_text("buy milk\n" * 50)
    assert_fails(run(toy, files / "notes.txt", tmp_path), 2, "notes.txt", "not a video")


def test_corrupt_in_the_middle(toy, files, tmp_path):
    good = media.write(files / "long.mp4", media.clip(60, 96, 128), movflags="faststart")
    line = assert_fails(
        run(toy, media.corrupt(good, 0.5, 2000), tmp_path, "--strict"), 2, "corrupted_long.mp4", "damaged or cut short"
    )
    assert f"after {assert_kept(tmp_path, 10)} frames" in line


def test_truncated(toy, files, tmp_path):
    good = media.write(files / "part.mp4", media.clip(60, 96, 128), movflags="faststart")
    assert_fails(run(toy, media.truncate(good, 0.6), tmp_path), 2, "truncated_part.mp4", "cut short")
    assert assert_kept(tmp_path, 10) < 60


def test_truncated_before_its_index(toy, files, tmp_path):
    assert_fails(run(toy, media.truncate(files / "good.mp4", 0.6), tmp_path), 2, "truncated_good.mp4", "damaged")


def test_sound_only(toy, files, tmp_path):
    assert_fails(run(toy, media.write_audio(files / "song.mp4"), tmp_path), 2, "song.mp4", "no video", "audio")


def test_zero_by_zero(toy, files, tmp_path):
    (files / "zero.y4m").write_bytes(b"YUV4MPEG2 W0 H0 F24:1 C420\n" + b"FRAME\n" * 5)
    assert_fails(run(toy, files / "zero.y4m", tmp_path), 2, "zero.y4m")


def test_no_frames(toy, files, tmp_path):
    (files / "none.y4m").write_bytes(b"YUV4MPEG2 W16 H16 F24:1 C420\n")
    assert_fails(run(toy, files / "none.y4m", tmp_path), 2, "none.y4m")


def test_size_change_in_a_stream(toy, files, tmp_path):
    small = media.write(files / "small.ts", media.clip(9)).read_bytes()
    large = media.write(files / "large.ts", media.clip(9, 96, 128)).read_bytes()
    (files / "both.ts").write_bytes(small + large)
    assert_fails(run(toy, files / "both.ts", tmp_path), 2, "both.ts", "size changes from 64x48 to 128x96")
    assert_kept(tmp_path, 8)


def test_size_change_in_a_folder(toy, files, tmp_path):
    folder = files / "frames"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (40, 30) if i < 5 else (30, 40)).save(folder / f"{i}.png")
    assert_fails(run(toy, folder, tmp_path), 2, "frames", "size changes from 40x30 to 30x40 at frame 5")
    assert assert_kept(tmp_path, 5) == 5


def test_a_damaged_image_in_a_folder(toy, files, tmp_path):
    folder = files / "damaged"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (30, 40, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:2000])
    assert_fails(run(toy, folder, tmp_path, "--strict"), 2, "3.png", "damaged or cut short")
    assert assert_kept(tmp_path, 3) == 3


def damaged_folder(folder, damaged):
    """Six images of noise by number, some of them cut short."""
    folder.mkdir()
    for i in range(6):
        file = folder / f"{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (30, 40, 3), np.uint8)).save(file)
        if i in damaged:
            file.write_bytes(file.read_bytes()[:2000])
    return folder


@pytest.mark.parametrize("damaged", [[3], [0], [5], [0, 1, 4]])
@pytest.mark.parametrize("stride", [1, 2])
def test_damaged_images_in_a_folder_are_left_out(toy, tmp_path, damaged, stride):
    folder = damaged_folder(tmp_path / "in", damaged)
    command = ["--engine", str(toy), "--video", str(folder), "--out", str(tmp_path / "out"), *PROMPT]
    code = main([*command, "--stride", str(stride)])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    right = [str(i) for i in range(0, 6, stride) if i not in damaged]
    assert code == 0 and results["complete"] and [frame["name"] for frame in results["frames"]] == right
    assert sorted(path.stem for path in (tmp_path / "out" / "masks").iterdir()) == right
    notes = " ".join(results["notes"])
    assert all((f"{i}.png" in notes) == (i in damaged and i % stride == 0) for i in range(6))


@pytest.mark.parametrize("damaged, code", [([0, 2], 0), ([1, 4], 0), ([3], 2)])
def test_prompts_are_on_the_images_that_they_name(toy_sam2_bundle, tmp_path, damaged, code):
    """Frames count all images of a folder, also those that cannot be read."""
    folder = damaged_folder(tmp_path / "in", damaged)
    command = ["--engine", str(toy_sam2_bundle), "--video", str(folder), "--out", str(tmp_path / "out")]
    assert main([*command, "--box", "5,5,20,20@3", "--box", "9,9,20,20@name:5"]) == code
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    objects = {frame["name"]: {o["id"] for o in frame["objects"]} for frame in results["frames"]}
    assert objects["5"] >= ({1, 2} if code == 0 else {2}) and not objects["1" if 0 in damaged else "0"]
    if code == 0:
        assert objects["3"] == {1}
    else:
        assert any("frame 3 did not come" in note for note in results["notes"])


def test_a_folder_without_images(toy, tmp_path):
    (tmp_path / "in").mkdir()
    assert_fails(run(toy, tmp_path / "in", tmp_path / "out"), 2, "no images", ".png")


def huge_png(path, side):
    """A PNG of side x side black pixels that takes a few hundred kilobytes, like a decompression bomb."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + side // 8) * 64)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [10_000, 40_000])
def test_huge_frames(toy, files, tmp_path, side):
    assert_fails(run(toy, huge_png(files / f"huge{side}.png", side), tmp_path), 2, "huge", "67,108,864 pixels", "scale")


@pytest.mark.parametrize("kind", ["gray", "alpha", "deep"])
def test_unusual_images_are_accepted(toy, files, tmp_path, kind):
    red = media.clip(1)[0]
    gray = red[..., 0]
    array = {"gray": gray, "deep": gray.astype(np.uint16) << 8, "alpha": np.dstack([red, gray])}[kind]
    Image.fromarray(array).save(files / f"{kind}.png")
    done = run(toy, files / f"{kind}.png", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "results.json").read_text())["done"] == 1


def test_no_such_camera(toy, tmp_path):
    assert_fails(run(toy, "97", tmp_path), 2, "camera 97", "cameras found")


def test_a_stream_that_does_not_answer(toy, tmp_path):
    assert_fails(run(toy, "rtsp://127.0.0.1:9/live", tmp_path), 2, "rtsp://127.0.0.1:9/live", "does not answer")


def test_a_camera_that_drops(toy, files, tmp_path):
    from helpers.media import Server

    server = Server(media.write(files / "live.ts", media.clip(20)).read_bytes(), times=1)
    assert_fails(run(toy, f"tcp://127.0.0.1:{server.port}", tmp_path), 2, "dropped after 20 frames", "3 tries")
    assert_kept(tmp_path, 4)


# ------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    "prompt, words",
    [
        ([], ["no prompt", "--text"]),
        (["--text", ""], ["empty"]),
        (["--text", "  "], ["blank"]),
        (["--text", b"dog \xff"], ["not text"]),
        (["--text", "the red " * 20], ["42 tokens", "16", "shorten"]),
        (["--text", "x" * 20_000], ["20000 characters"]),
        (["--tokens", "a,b"], ["integers separated by commas"]),
        (["--tokens", "0,100,2"], ["token 100", "0..99"]),
        (["--tokens", ",".join(["1"] * 17)], ["17 tokens", "16"]),
        (["--verbs", "running"], ["--verbs", "right after"]),
        (["--text", "the red square", "--verbs", "red"], ["no motion prompt"]),
    ],
)
def test_invalid_prompts(toy_with_tokenizer, files, tmp_path, prompt, words):
    assert_fails(run(toy_with_tokenizer, files / "good.mp4", tmp_path / "out", prompt=prompt), 2, *words)
    assert not (tmp_path / "out").exists(), "a run that does not start writes nothing"


def test_a_valid_prompt(toy_with_tokenizer, files, tmp_path):
    done = run(toy_with_tokenizer, files / "good.mp4", tmp_path, prompt=["--text", "The red  square"])
    assert (done.returncode, done.stderr) == (0, "")
    assert_kept(tmp_path, 10, complete=True)


def test_a_text_without_tokenizer(toy, files, tmp_path):
    done = run(toy, files / "good.mp4", tmp_path, prompt=["--text", "a dog"])
    assert_fails(done, 2, "no tokenizer", "--tokenizer", "--tokens")


@pytest.mark.parametrize(
    "args, words",
    [
        (["--stride", "0"], ["--stride", "1 or more"]),
        (["--max-frames", "x"], ["--max-frames"]),
        (["--nonsense"], ["--nonsense", "--help"]),
        (["--threads", "-1"], ["--threads"]),
        (["--conditional-memory", "maybe"], ["--conditional-memory", "on"]),
    ],
)
def test_invalid_options(toy, files, tmp_path, args, words):
    assert_fails(run(toy, files / "good.mp4", tmp_path, *args), 2, *words)


# ------------------------------------------------------------------------------------------------------------- bundles


def changed(toy, folder, **fields):
    """A copy of the toy bundle with another manifest."""
    shutil.copytree(toy, folder)
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def test_missing_bundle(files, tmp_path):
    assert_fails(run(tmp_path / "nowhere", files / "good.mp4", tmp_path / "out"), 2, "nowhere", "python -m export")
    assert_fails(run(tmp_path, files / "good.mp4", tmp_path / "out"), 2, "no bundle", "python -m export")


def test_missing_file(toy, files, tmp_path):
    folder = changed(toy, tmp_path / "b")
    (folder / "neck.onnx").unlink()
    assert_fails(run(folder, files / "good.mp4", tmp_path / "out"), 2, "neck.onnx", "missing")


def test_altered_file(toy, files, tmp_path):
    folder = changed(toy, tmp_path / "b")
    with (folder / "neck.onnx").open("ab") as file:
        file.write(b"\0")
    assert_fails(run(folder, files / "good.mp4", tmp_path / "out"), 2, "neck.onnx", "altered")


def test_newer_format(toy, files, tmp_path):
    folder = changed(toy, tmp_path / "b", format=99)
    assert_fails(run(folder, files / "good.mp4", tmp_path / "out"), 2, "format 99", "upgrade")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1}', b"[" * 100_000])
def test_broken_manifest(files, tmp_path, content):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_bytes(content)
    assert_fails(run(tmp_path / "b", files / "good.mp4", tmp_path / "out"), 2, "manifest")


def test_unknown_network(toy, files, tmp_path):
    bundle = changed(toy, tmp_path / "b", networks={"sam9": {}})
    assert_fails(run(bundle, files / "good.mp4", tmp_path / "out"), 2, "sam9", "upgrade")


def test_no_such_model(toy, files, tmp_path):
    assert_fails(run(toy.parent, files / "good.mp4", tmp_path, "--model", "sam9"), 2, "sam9", "toy")


def test_unknown_backend(toy, files, tmp_path):
    assert_fails(run(toy, files / "good.mp4", tmp_path, "--backend", "abacus"), 2, "abacus", "ort")


def test_backend_for_other_hardware(toy, files, tmp_path):
    done = run(toy, files / "good.mp4", tmp_path, "--backend", "ort-cuda")
    if done.returncode == 0:
        pytest.skip("this machine has a CUDA device")
    assert_fails(done, 2, "CUDA")


def test_no_demonstration(toy, tmp_path):
    assert_fails(run(toy, None, tmp_path, prompt=[]), 2, "no demonstration", "--video")


def test_file_names_that_are_not_utf_8(toy, tmp_path):
    folder = tmp_path / "fr\udcff\u6f22"
    folder.mkdir()
    Image.fromarray(media.clip(1)[0]).save(folder / "a.png")
    done = run(toy, folder, tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["done"] == 1


# -------------------------------------------------------------------------------------------------------------- faults


def test_full_disk(toy, files, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "00006.samwise-runtime.part").symlink_to("/dev/full")
    assert_fails(run(toy, files / "good.mp4", tmp_path), 1, "00006.png", "the disk is full")
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == [f"{i:05d}.png" for i in range(6)]
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["complete"] is False and len(data["frames"]) >= 6


def test_a_folder_that_cannot_be_written(toy, files, tmp_path):
    (tmp_path / "file").write_text("")
    assert_fails(run(toy, files / "good.mp4", tmp_path / "file" / "out"), 1, "file", "--out")


def test_a_backend_that_fails_during_the_run(toy, files, tmp_path, capsys):
    import runtime
    from runtime.cli.app import main

    class Failing:
        """A stage that fails at the tenth call."""

        def __init__(self, stage):
            self.stage, self.left = stage, 9

        def run(self, **arrays):
            self.left -= 1
            if self.left < 0:
                raise runtime.InternalError("stage mask_decoder failed: out of memory")
            self.stage.run(**arrays)

    def load(*args, **kwargs):
        engine = runtime.load(toy)
        timed = engine.stages["mask_decoder"]
        timed.stage = Failing(timed.stage)
        return engine

    assert main(["--video", str(files / "good.mp4"), "--out", str(tmp_path), *PROMPT], load) == 1
    assert capsys.readouterr().err == "error: stage mask_decoder failed: out of memory\n"
    assert assert_kept(tmp_path, 3) < 10
