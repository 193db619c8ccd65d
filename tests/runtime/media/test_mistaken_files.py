"""Files that are not the picture, video or mask as which they are given: the refusal says what they are."""

import contextlib
import gzip
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

import runtime
from helpers import media
from helpers.errors import one_line
from runtime.cli.mask_files import read_masks


def archive():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("clip.mp4", b"x" * 99)
    return out.getvalue()


def array():
    out = io.BytesIO()
    np.save(out, media.clip(1))
    return out.getvalue()


FILES = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1559\n", "a Git LFS pointer"),
    "dvc": (b"outs:\n- md5: 0123\n  size: 1234\n  hash: md5\n  path: clip.mp4\n", "a DVC pointer.*dvc pull"),
    "dvc import": (b"md5: 33\nfrozen: true\ndeps:\n- path: a\nouts:\n- md5: a1\n  path: x\n", "a DVC pointer"),
    "annex": (b"/annex/objects/SHA256E-s123--abcdef.mp4\n", "a git-annex pointer.*git annex get"),
    "page": (b"<!DOCTYPE html><title>Sign in</title>", "a web page"),
    "json": (json.dumps({"error": "Repository not found"}).encode(), "JSON, not an image.*not found"),
    "text": (b"Entry not found", "text, not an image and not a video: 'Entry not found'"),
    "zip": (archive(), "a zip archive; unpack it"),
    "gzip": (gzip.compress(bytes(99)), "compressed; unpack it"),
    "npy": (array(), "an array of NumPy; read it with numpy.load"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
}


def opened(path):
    with runtime.open_video(path) as video:
        next(video)


@pytest.mark.parametrize("kind", FILES)
def test_files_of_another_kind(tmp_path, kind):
    content, words = FILES[kind]
    for name in ("x.mp4", "x.png", "x"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(runtime.VideoError, match=f"{name}: {words}") as caught:
            opened(tmp_path / name)
        one_line(caught)
    with pytest.raises(runtime.PromptError, match=f"x.png: {words}"):
        read_masks(tmp_path / "x.png")


def test_what_does_not_exist_is_not_damaged(tmp_path):
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "annexed.png").symlink_to(".git/annex/objects/aa/SHA256E-s1--ab.png")
    (tmp_path / "mask.png").mkdir()
    cases = {
        "gone.png": "a link to nowhere.png, which does not exist",
        "annexed.png": "a link to .*, which does not exist; run `git annex get`",
        "mask1.png": "no such file or folder; did you mean .*mask.png",
        "mask.png": "not readable \\(Is a directory\\)",
    }
    for name, words in cases.items():
        with pytest.raises(runtime.PromptError, match=f"{name}: {words}"):
            read_masks(tmp_path / name)
    for name in ("gone.png", "annexed.png", "mask1.png"):
        for source in (tmp_path / name, [tmp_path / name]):
            with pytest.raises(runtime.VideoError, match=f"{name}: {cases[name]}"):
                opened(source)


@pytest.mark.parametrize("count", [1, 2])
def test_a_folder_in_a_list(tmp_path, count):
    Image.fromarray(media.clip(1)[0]).save(tmp_path / "0.png")
    with pytest.raises(runtime.VideoError, match="a folder, to be given alone; a list holds images"):
        opened([tmp_path] * count)


def test_one_image_of_a_file_of_several_is_told(toy_sam2_bundle, tmp_path, recwarn):
    first, *others = map(Image.fromarray, media.clip(3))
    first.save(tmp_path / "one.png")
    first.save(tmp_path / "pages.tif", save_all=True, append_images=others)
    media.write(tmp_path / "clip.mkv", media.clip(3), "ffv1", "bgr0")
    engine = runtime.load(toy_sam2_bundle)
    for name in ("one.png", "pages.tif", "clip.mkv"):
        for path in (tmp_path / name, str(tmp_path / name)):
            told = pytest.warns(UserWarning, match=f"{name}: its first frame is taken, and no other")
            with told if name != "one.png" else contextlib.nullcontext():
                assert (engine.image(path).frame == media.clip(1)[0]).all()
    assert not recwarn
