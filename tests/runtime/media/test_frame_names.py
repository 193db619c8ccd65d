"""Names of frames: unique, valid everywhere, in the order of the frames."""

import random

import numpy as np
import pytest
from PIL import Image

from runtime import PromptError
from runtime.media.frame_names import MAX_NAME_BYTES, PictureNames, natural_key, number_name, unique_names
from runtime.media.source import Frame, Source
from runtime.media.video_reader import VideoReader, open_video


@pytest.mark.parametrize(
    "files, names",
    [
        (["0.jpg", "1.jpg"], ["0", "1"]),
        (["0.jpg", "0.png", "1.jpg"], ["0.jpg", "0.png", "1"]),
        (["0.jpg", "0.jpeg", "0.png"], ["0.jpg", "0.jpeg", "0.png"]),
        (["A.png", "a.jpg", "b.png"], ["A.png", "a.jpg", "b"]),  # one file where case is ignored
        (["A.png", "a.png"], ["A.png", "a.png_2"]),
        (["é.png", "e\u0301.jpg"], ["é.png", "e\u0301.jpg"]),  # two spellings of one letter
        (["a.b.png", "a.b.jpg", "a.c.png"], ["a.b.png", "a.b.jpg", "a.c"]),
        (["a.png", "a.jpg", "a.png.jpg"], ["a.png", "a.jpg", "a.png_2"]),
        (["A.png", "a.png", "a.png_2.png"], ["A.png", "a.png_3", "a.png_2"]),
        (["a\nb.png", "a\x07.png", "a\u2028.png"], ["a_b", "a_.png", "a_.png_2"]),
        (["con.png", "NUL.tar.png", "com1.png", "console.png"], ["_con", "_NUL.tar", "_com1", "console"]),
        (["...png", "....png", "a...png"], ["_..", "_...", "a.."]),
        (["sub/0.png", "sub/0.jpg", "0.png"], ["sub/0.png", "sub/0.jpg", "0"]),
        (["..png/x.png", "aux/0.png"], ["..png/x", "_aux/0"]),
        (["fr\udcff.png"], ["fr\udcff"]),  # bytes that are no text
        (["2024-01-01 10:00.png", "Bild\u202fPM.png"], ["2024-01-01 10:00", "Bild\u202fPM"]),
        ([], []),
    ],
)
def test_unique_names(files, names):
    assert unique_names(files) == names


def test_any_names_become_unique_and_valid():
    rng = random.Random(0)
    for _ in range(300):
        parts = ["a", "A", ".", "0", "é", "e\u0301", "\n", "con", "_2", "ß", "ss", "x" * 130]
        stems = ["".join(rng.choices(parts, k=rng.randint(1, 4))) for _ in range(8)]
        files = list({stem + rng.choice([".png", ".jpg", ".PNG"]) for stem in stems})
        names = unique_names(files)
        assert len({name.casefold() for name in names}) == len(files)
        for name in names:
            assert "\n" not in name and "/" not in name and set(name) != {"."}
            assert len(name.encode()) <= MAX_NAME_BYTES + 3


def test_long_names_keep_their_number():
    names = unique_names([f"{'long' * 60}_{number:05d}.png" for number in range(20)])
    assert len(set(names)) == 20 and names == sorted(names) and names[7].endswith("_00007")


@pytest.mark.parametrize("count", [1, 99_999, 100_000, 100_001, 1_000_000, 12_345_678, None])
def test_names_of_numbers_sort_by_number(count):
    numbers = sorted({0, 9, 10, 99_999, 100_000, 999_999, 1_000_000, 9_999_999, 10_000_000, 99_999_999})
    numbers = [number for number in numbers if number <= (count or 1e9)]
    names = [number_name(number, count) for number in numbers]
    assert names == sorted(names) and all(len(name) >= 5 for name in names)


def reader_of(count, stride=1, **kwargs):
    return VideoReader(Source("x", 24, count, iter([Frame(np.zeros((2, 2, 3), np.uint8))]), **kwargs), stride, None)


def test_names_of_a_reader():
    assert reader_of(12).frame_name(3) == "00003"
    assert reader_of(12, stride=4).frame_name(3) == "00012"
    assert reader_of(30_000, stride=4).frame_name(3) == "000012"
    assert reader_of(60_000).frame_name(3) == "000003"  # an estimate
    assert reader_of(60_000, count_is_exact=True).frame_name(3) == "00003"
    assert reader_of(None, live=True).frame_name(3) == "00000003"


def test_masks_of_pictures_that_share_a_stem(tmp_path):
    for number, name in enumerate(["0.jpg", "0.png", "1.png", "1.PNG"]):
        Image.new("RGB", (4, 4), (number,) * 3).save(tmp_path / name)
    with open_video(tmp_path) as video:
        assert [video.frame_name(i) for i in range(4)] == ["0.jpg", "0.png", "1.PNG", "1.png_2"]
    with open_video(tmp_path, stride=2) as video:  # the same names, whatever the stride
        assert [video.frame_name(i) for i in range(2)] == ["0.jpg", "1.PNG"]


def test_pictures_by_name():
    files = ["00000.png", "00005.jpg", "00005.png", "00010.png"]
    pictures = PictureNames(files, unique_names(files))
    assert [pictures.find(name) for name in ("00000", "00000.png", "00005.png", "00010")] == [0, 0, 2, 3]
    with pytest.raises(PromptError, match="2 pictures are named 00005; give one of 00005.jpg, 00005.png"):
        pictures.find("00005")
    with pytest.raises(PromptError, match="no picture is named 00011; one that exists is 00010"):
        pictures.find("00011")
    assert [pictures.other_numbered(position) for position in (0, 1, 5, 10)] == [None, None, "00005.jpg", "00010"]


def test_natural_order_of_names():
    names = ["frame10", "frame2", "Frame1", "2", "10", "a", "", "v1.10", "v1.9"]
    assert sorted(names, key=natural_key) == ["", "2", "10", "a", "Frame1", "frame2", "frame10", "v1.9", "v1.10"]
