"""Regression tests for inputs found by fuzzing: tracebacks, hangs, messages of several lines, excessive memory."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import runtime
from helpers import media
from helpers.damage import damage_file
from helpers.errors import one_line
from runtime.bundle.manifest import Manifest
from runtime.cli import prompt_args
from runtime.errors import BundleError, PromptError, UserError, VideoError
from runtime.media import completeness, video_reader
from runtime.media.image_files import read_image
from runtime.tokenizer import Tokenizer

# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("text", ["a\nb", "a\r\u2028b", "\ud800 x", "\x1b[2J", "x" * 100_000, "\udcff" * 5000])
def test_errors_are_one_printable_line(text):
    with pytest.raises(UserError) as caught:
        raise UserError(f"{text}: no such file; give another one")
    assert one_line(caught).endswith("give another one")


# ------------------------------------------------------------------------------------------------------------ bundles


def changed(toy, folder, change):
    """The toy bundle with a manifest that was changed, not verified."""
    folder.mkdir()
    for file in toy.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    (folder / "manifest.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\ud800", "x/../../y", "..\\x", "C:\\x", "/etc/passwd", ""])
def test_invalid_file_names(toy, tmp_path, name):
    with pytest.raises(BundleError, match="not a path inside the bundle") as caught:
        Manifest.load(changed(toy, tmp_path / "b", lambda m: m["files"].update({name: "0"})))
    one_line(caught)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "loop"])
def test_files_that_cannot_be_read_are_missing(toy, tmp_path, kind):
    folder = changed(toy, tmp_path / "b", lambda m: None)
    damage_file(folder / "neck.onnx", kind)
    with pytest.raises(BundleError, match="neck.onnx: missing"):
        runtime.load(folder)


@pytest.mark.parametrize(
    "path, value",
    [
        ("window", "4"),
        ("window", 0),
        ("mean", [0, 0]),
        ("mean", [0, 0, True]),
        ("std", [1, 1, 0]),
        ("std", None),
        ("std", [float("nan")] * 3),
        ("resize", {"rule": "round", "max": 32}),
        ("resize", []),
        ("memory", {"num_maskmem": 3}),
        ("memory", {"num_maskmem": 1, "max_obj_ptrs": 5}),
        ("memory", {"num_maskmem": -1, "max_obj_ptrs": 5}),
        ("conditional_memory", {"first": 1, "every": 0}),
        ("text", {"max_tokens": 16}),
        ("text", {"max_tokens": 1e9, "vocabulary": 1, "motion": False}),
        ("no_object_logit", "low"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(toy, tmp_path, path, value):
    with pytest.raises(BundleError, match=f"networks.samwise.{path}") as caught:
        runtime.load(changed(toy, tmp_path / "b", lambda m: m["networks"]["samwise"].update({path: value})))
    one_line(caught)


@pytest.mark.parametrize("value", [3, {}, {"mean": [0, 0, 0], "std": [1, 1, 1]}])
def test_settings_of_every_network_are_checked(toy, tmp_path, value):
    with pytest.raises(BundleError, match="networks.sam2") as caught:
        runtime.load(changed(toy, tmp_path / "b", lambda m: m["networks"].update(sam2=value)))
    one_line(caught)


def test_additional_settings_are_accepted(toy, tmp_path):
    runtime.load(changed(toy, tmp_path / "b", lambda m: m["networks"]["samwise"].update(colour="red"))).close()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: m["networks"]["samwise"].pop("conditional_memory"), "samwise.conditional_memory is missing"),
        (lambda m: m["bounds"].update(objects=[0, 0]), "bounds.objects leave room for nothing"),
        (lambda m: m["networks"]["samwise"]["resize"].update(max=64), "larger than image_size"),
        (lambda m: m["stages"]["neck"]["outputs"].pop(0), "embedding"),
        (lambda m: m["stages"]["neck"]["outputs"][0].update(shape=["frames", 4]), "must have 3 dimensions"),
        (
            lambda m: m["stages"]["memory_attention"]["inputs"][2].update(shape=["objects", "slots", 5, 2]),
            "does not fit",
        ),
        (lambda m: m["stages"]["hiera_0"]["inputs"][0].update(dtype="int64"), "floating"),
        (lambda m: m.update(image_size=64), "does not fit"),
    ],
)
def test_inconsistent_manifests(toy, tmp_path, change, words):
    with pytest.raises(BundleError, match=words) as caught:
        runtime.load(changed(toy, tmp_path / "b", change))
    one_line(caught)


def test_excessive_shapes(toy, tmp_path):
    with pytest.raises(BundleError, match="more than"):
        Manifest.load(
            changed(
                toy,
                tmp_path / "a",
                lambda m: m["stages"]["hiera_0"]["inputs"][0].update(shape=["frames", 3, 32, 10**9]),
            )
        )
    with pytest.raises(BundleError, match="more than"):
        Manifest.load(changed(toy, tmp_path / "b", lambda m: m["bounds"].update(objects=[1, 10**12])))


# ------------------------------------------------------------------------------------------------------------ prompts


def test_numbers_with_thousands_of_digits():
    for value in ("1,1@" + "9" * 5000, "1,1#" + "9" * 5000):
        with pytest.raises(PromptError, match="5000 digits") as caught:
            prompt_args.parse_prompt_set([("--point", value)])
        one_line(caught)


def test_whole_numbers_beyond_floating_point(tmp_path):
    (tmp_path / "p.json").write_text('[{"box": [0, 0, 9, ' + "9" * 400 + "]}]")
    with pytest.raises(PromptError, match="must be numbers"):
        prompt_args.parse_prompt_set([("--prompts", str(tmp_path / "p.json"))])


@pytest.mark.parametrize("prompt", [runtime.Points([(3, 1e300)], [1]), runtime.Box([0, 0, 1e39, 9])])
def test_numbers_beyond_single_precision(prompt):
    """Found by the longer run: a warning of NumPy before the refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PromptError, match="inf.* lies outside the image"):
            prompt.scaled(48, 64)


# ------------------------------------------------------------------------------------------------------------- videos


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 100, b"%PDF-1.7"])
def test_image_files_with_other_content(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(VideoError, match="not an image"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "said, seconds",
    [("00:00:00.5000002.12", 0), ("9" * 5000 + ":00:00", 0), ("00:00:.", 0), ("00:01:02.5", 62.5), ("01:00:00", 3600)],
)
def test_declared_durations(said, seconds):
    opened = SimpleNamespace(duration=None, streams=[1, 2], name="a.mkv", size=0)
    stream = SimpleNamespace(metadata={"DURATION": said}, frames=0, average_rate=24)
    assert completeness.missing_seconds(None, opened, stream, 0.0, False) == (seconds, seconds)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_frames_of_narrow_videos_are_contiguous(tmp_path, width):
    path = tmp_path / "a.y4m"
    path.write_bytes(b"YUV4MPEG2 W%d H16 F24:1 C444\n" % width + 2 * (b"FRAME\n" + bytes(3 * 16 * width)))
    with video_reader.open_video(path) as video:
        shown = list(video)
    assert len(shown) == 2
    assert all(frame.shape == (16, width, 3) and frame.flags.c_contiguous for frame in shown)


@pytest.mark.timeout(60)
def test_a_file_name_that_looks_like_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    media.write(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").rename(tmp_path / "concat:b.mp4")
    with video_reader.open_video("concat:b.mp4") as frames:
        assert sum(1 for _ in frames) == 12


def test_files_with_several_pictures(tmp_path):
    from PIL import Image

    picture = Image.fromarray(np.full((6, 8, 3), 90, np.uint8))
    picture.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[picture])
    assert read_image(tmp_path / "a.jpg").shape == (6, 8, 3)


# --------------------------------------------------------------------------------------------------------- tokenizers


def test_a_tokenizer_that_fails_on_a_sentence(tmp_path):
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    for name, model in (
        ("a", models.Unigram([("a", -1.0)])),
        ("b", models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="?")),
    ):
        Library(model).save(str(tmp_path / f"{name}.json"))
        with pytest.raises(BundleError, match="not a working tokenizer") as caught:
            Tokenizer(tmp_path / f"{name}.json")("the red square")
        one_line(caught)


def test_export_refuses_a_tokenizer_that_fails_on_a_sentence(tmp_path):
    pytest.importorskip("torch")
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    from export import tokenizer

    Library(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="not a working tokenizer file"):
        tokenizer.load(tmp_path)
