"""Pictures: every page and animation frame is read, and what is left out of a folder, pattern or list is told."""

import io
import struct
import sys
import tracemalloc
import types
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from helpers import media
from runtime import VideoError
from runtime.media import image_files
from runtime.media.image_files import count_pages, read_image
from runtime.media.video_reader import open_video

LEVELS = [40, 90, 140, 190]


def pictures(mode="RGB", levels=LEVELS, size=(12, 8)):
    """One even picture per level."""
    if mode == "I;16":
        return [Image.fromarray(np.full(size[::-1], level << 8, np.uint16)) for level in levels]
    bands = len(Image.new(mode, (1, 1)).getbands())
    colours = [
        level if bands == 1 else (level,) * bands if "A" not in mode else (level,) * (bands - 1) + (255,)
        for level in levels
    ]
    return [Image.new(mode, size, colour) for colour in colours]


def save_pages(path, pages, **options):
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    return path


def levels_of(source, **options):
    with open_video(source, **options) as video:
        levels = [int(frame[0, 0, 0]) for frame in video]
        assert video.count == len(levels) and video.count_is_exact
        return levels, video


def assert_near(got, want, steps=0):
    assert len(got) == len(want) and all(abs(a - b) <= steps for a, b in zip(got, want, strict=True)), (got, want)


# --------------------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_all_pages_of_a_tiff(tmp_path, mode, compression):
    if compression == "jpeg" and mode in ("RGBA", "I;16"):
        pytest.skip("libtiff writes no such file")
    path = save_pages(tmp_path / "a.tif", pictures(mode), compression=compression)
    got, video = levels_of(path)
    assert_near(got, LEVELS, 3 if compression == "jpeg" else 0)
    assert video.fps == 24 and video.frame_time(0) is None and video.notes == []
    assert [video.frame_name(i) for i in range(4)] == ["00000", "00001", "00002", "00003"]


def tiled_tiff(path, pages):
    """A big-endian TIFF of 16-bit pages, in tiles of 16 x 16, as microscopes write them."""
    data, offset_at = bytearray(b"MM\0*\0\0\0\0"), 4
    for page in pages:
        height, width = page.shape
        padded = np.zeros((-(-height // 16) * 16, -(-width // 16) * 16), ">u2")
        padded[:height, :width] = page
        tiles = padded.reshape(padded.shape[0] // 16, 16, -1, 16).swapaxes(1, 2).reshape(-1, 256)
        offsets = [len(data) + 512 * i for i in range(len(tiles))]
        data += tiles.tobytes()
        lists = len(data)
        data += struct.pack(f">{len(tiles)}I", *offsets) + struct.pack(f">{len(tiles)}I", *[512] * len(tiles))
        struct.pack_into(">I", data, offset_at, len(data))
        tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16 << 16), (259, 3, 1, 1 << 16)]
        tags += [(262, 3, 1, 1 << 16), (277, 3, 1, 1 << 16), (322, 3, 1, 16 << 16), (323, 3, 1, 16 << 16)]
        tags += [(324, 4, len(tiles), lists), (325, 4, len(tiles), lists + 4 * len(tiles))]
        data += struct.pack(">H", len(tags)) + b"".join(struct.pack(">HHII", *tag) for tag in tags)
        offset_at = len(data)
        data += bytes(4)
    path.write_bytes(data)
    return path


def test_pages_in_tiles(tmp_path):
    rng = np.random.default_rng(0)
    pages = rng.integers(0, 1 << 16, (3, 20, 40), np.uint16)
    got = np.stack(list(open_video(tiled_tiff(tmp_path / "a.tif", pages))))
    assert (got == (pages >> 8)[..., None]).all()


def test_smaller_copies_in_a_tiff_are_no_pages(tmp_path):
    full, small = pictures(size=(12, 8)), pictures(size=(6, 4))
    small[0].encoderinfo = {"tiffinfo": {254: 1}}
    save_pages(tmp_path / "a.tif", [full[0], small[0], full[1]])
    assert count_pages(tmp_path / "a.tif") == 2
    assert levels_of(tmp_path / "a.tif")[0] == LEVELS[:2]


def test_inverted_gray_of_16_bits(tmp_path):
    pages = pictures("I;16")
    save_pages(tmp_path / "a.tif", pages, tiffinfo={262: 0})
    assert levels_of(tmp_path / "a.tif")[0] == [255 - level for level in LEVELS]


def test_values_far_below_16_bits_are_noted(tmp_path):
    page = np.full((8, 12), 4000, np.uint16)
    save_pages(tmp_path / "a.tif", [Image.fromarray(page)] * 2)
    got, video = levels_of(tmp_path / "a.tif")
    assert got == [15, 15] and len(video.notes) == 1 and "4000" in video.notes[0] and "65535" in video.notes[0]


@pytest.mark.parametrize("name, options", [
    ("a.gif", {}), ("a.png", {}), ("a.apng", {"format": "PNG"}), ("a.png", {"default_image": True}),
    ("a.webp", {"lossless": True}), ("a.avif", {"quality": 100}),
])  # fmt: skip
def test_all_frames_of_an_animation_with_their_times(tmp_path, name, options):
    pages = pictures()
    if options.get("default_image"):
        pages.insert(0, Image.new("RGB", (12, 8), (255, 0, 0)))
    try:
        save_pages(tmp_path / name, pages, duration=[100, 300, 50, 80], **options)
    except (KeyError, OSError):
        pytest.skip("this Pillow does not write the format")
    got, video = levels_of(tmp_path / name)
    assert_near(got, LEVELS, 3 if name.endswith("avif") else 0)
    assert [video.frame_time(i) for i in range(4)] == pytest.approx([0, 0.1, 0.4, 0.45]) and video.fps == 10
    got, video = levels_of(tmp_path / name, stride=2)
    assert_near(got, LEVELS[::2], 3 if name.endswith("avif") else 0)
    assert [video.frame_time(i) for i in range(2)] == pytest.approx([0, 0.4]) and video.fps == 5
    assert [video.frame_name(i) for i in range(2)] == ["00000", "00002"]


def test_frames_without_duration_last_a_tenth_of_a_second(tmp_path):
    for name, duration in (("a.gif", 0), ("b.gif", 10), ("c.png", 0)):
        _, video = levels_of(save_pages(tmp_path / name, pictures(), duration=duration))
        assert [video.frame_time(i) for i in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3]), name


def test_a_transparent_animation_is_composited_over_black(tmp_path):
    pages = pictures("RGBA")
    for page in pages:
        page.putpixel((0, 0), (255, 255, 255, 0))
        page.putpixel((1, 0), (200, 100, 50, 128))
    save_pages(tmp_path / "a.png", pages, duration=40, disposal=1, blend=0)
    for frame, level in zip(open_video(tmp_path / "a.png"), LEVELS, strict=True):
        assert frame[0, 0].tolist() == [0, 0, 0] and frame[0, 1].tolist() == [100, 50, 25] and frame[4, 4, 0] == level


def test_pages_are_rotated_by_their_exif_data(tmp_path):
    save_pages(tmp_path / "a.tif", pictures(), tiffinfo={274: 6})
    with open_video(tmp_path / "a.tif") as video:
        assert video.size == (12, 8) and [frame.shape for frame in video] == [(12, 8, 3)] * 4


def test_pages_are_not_held_together(tmp_path):
    path = save_pages(tmp_path / "a.tif", pictures("L", range(60), (400, 300)), compression="tiff_lzw")
    tracemalloc.start()
    try:
        with open_video(path) as video:
            assert sum(1 for _ in video) == 60
        assert tracemalloc.get_traced_memory()[1] < 25 * 400 * 300 * 3  # the queue, and not all 60
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp"])
def test_a_file_cut_within_its_pages(tmp_path, name):
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)) for _ in range(6)]
    path = save_pages(tmp_path / name, pages)
    if name == "a.tif":  # the first pages are whole, the last one is not
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - 3000])
    else:
        media.truncate(path, 0.6).replace(path)
    got = []
    try:
        got.extend(open_video(path))
    except VideoError as error:
        assert "damaged or cut short" in str(error) or "not an image" in str(error)
    assert len(got) < 6


def test_motion_jpeg_and_concatenated_ppm_are_videos(tmp_path):
    Image.new("RGB", (16, 8), (90, 90, 90)).save(tmp_path / "a.jpg")
    Image.new("RGB", (16, 8), (90, 90, 90)).save(tmp_path / "a.ppm")
    (tmp_path / "b.mjpeg").write_bytes((tmp_path / "a.jpg").read_bytes() * 3)
    (tmp_path / "b.ppm").write_bytes((tmp_path / "a.ppm").read_bytes() * 3)
    for name in ("b.mjpeg", "b.ppm"):
        with open_video(tmp_path / name) as video:
            assert [abs(int(frame[0, 0, 0]) - 90) < 3 for frame in video] == [True] * 3
    assert count_pages(tmp_path / "a.ppm") == 1


def test_one_image_is_the_first_page(tmp_path):
    notes = []
    path = save_pages(tmp_path / "a.tif", pictures())
    assert read_image(path, notes)[0, 0, 0] == 40
    assert len(notes) == 1 and "first of its 4 pages" in notes[0] and "a.tif" in notes[0]


# -------------------------------------------------------------------------------------------------------------- damage


def spoil(path, kind):
    """Damage an image file."""
    data = path.read_bytes()
    content = {"cut": data[: len(data) * 2 // 3], "empty": b"", "text": b"hello", "noise": data[:40] + bytes(len(data))}
    path.write_bytes(content[kind])


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "noise"])
@pytest.mark.parametrize("form", ["folder", "pattern", "list"])
def test_damaged_images_are_left_out_and_told(tmp_path, form, kind):
    rng = np.random.default_rng(0)
    folder = folder_of(tmp_path, *(f"{i}.png" for i in range(6)))
    for i in range(6):
        noise = rng.integers(0, 9, (8, 12, 3), np.uint8)
        noise[0, 0] = i
        Image.fromarray(noise).save(folder / f"{i}.png")
    for i in (0, 2, 3):
        spoil(folder / f"{i}.png", kind)
    source = {"folder": folder, "pattern": folder / "*.png", "list": [folder / f"{i}.png" for i in range(6)]}[form]
    with open_video(source) as video:
        assert video.max_count == 6
        assert [int(frame[0, 0, 0]) for frame in video] == [1, 4, 5]
        assert [video.frame_name(i) for i in range(3)] == ["1", "4", "5"]
        assert [video.frame_number(i) for i in range(3)] == [1, 4, 5] and not video.count_is_exact
    assert [f"{i}.png" in " ".join(video.notes) for i in range(6)] == [i in (0, 2, 3) for i in range(6)]
    with open_video(source, stride=2) as video:
        assert [int(frame[0, 0, 0]) for frame in video] == [4]
        assert (video.frame_name(0), video.frame_number(0)) == ("4", 4)
    with pytest.raises(VideoError, match="0.png"):
        list(open_video(source, strict=True))
    for i in (1, 4, 5):
        spoil(folder / f"{i}.png", kind)
    with pytest.raises(VideoError, match="0.png"):
        open_video(source)


def test_many_damaged_images_are_counted(tmp_path):
    folder = folder_of(tmp_path, "a.png")
    for i in range(40):
        (folder / f"{i}.png").touch()
    with open_video(folder) as video:
        assert len(list(video)) == 1
    assert len(video.notes) == 21 and video.notes[-1] == "left out: 20 more images"


def test_damaged_pages_of_a_tiff_are_left_out_and_told(tmp_path):
    path = save_pages(tmp_path / "a.tif", pictures(), compression="tiff_deflate")
    data = bytearray(path.read_bytes())
    with Image.open(path) as image:
        image.seek(1)
        at = image.tag_v2[273][0]
    data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    with open_video(path) as video:
        assert [int(frame[0, 0, 0]) for frame in video] == [40, 140, 190]
        assert [video.frame_name(i) for i in range(3)] == ["00000", "00002", "00003"]
    (note,) = video.notes
    assert note.startswith(f"left out: {path}, page 2 of 4: ")
    with pytest.raises(VideoError, match="page 2 of 4"):
        list(open_video(path, strict=True))
    assert [int(frame[0, 0, 0]) for frame in open_video(path, stride=2)] == [40, 140]


# ------------------------------------------------------------------------------------------- what a file has besides


def image_bytes(format, level=90, **options):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (level, 0, 0)).save(buffer, format, **options)
    return buffer.getvalue()


MP4_HEAD = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"


@pytest.mark.parametrize("second", ["JPEG", "PNG", "GIF", "WEBP", "video"])
@pytest.mark.parametrize("first", ["JPEG", "progressive", "thumbnail", "PNG", "WEBP", "GIF", "padded"])
def test_what_follows_an_image_in_its_file_is_noted(tmp_path, first, second):
    exif = Image.Exif()
    exif[0x010E] = (image_bytes("JPEG") + image_bytes("PNG")).decode("latin-1").encode("latin-1")
    options = {"progressive": {"progressive": True}, "thumbnail": {"exif": exif.tobytes() + image_bytes("JPEG")}}
    format = first if first in ("PNG", "WEBP", "GIF") else "JPEG"
    whole = image_bytes(format, **options.get(first, {}))
    for suffix, more in (("whole", b""), ("padding", b"\0" * 50), ("joined", MP4_HEAD if second == "video" else None)):
        more = image_bytes(second) if more is None else more
        path = tmp_path / f"{suffix}.{format.lower()}"
        path.write_bytes(whole + (b"SEFT\0\0" if first == "padded" else b"") + more)
        if suffix == "joined" and (format, second) == ("GIF", "GIF"):
            assert b"\0;GIF8" in path.read_bytes()
        want = suffix == "joined"
        if format == "GIF" and second != "GIF":
            continue
        with open_video(path) as video:
            assert len(list(video)) == 1
        assert len(video.notes) == want and (not want or "follows the image at byte" in video.notes[0])
        notes = []
        read_image(path, notes)
        assert notes == video.notes


def test_pictures_for_several_views_are_noted(tmp_path):
    save_pages(tmp_path / "a.jpg", pictures(), format="MPO")
    got, video = levels_of(tmp_path / "a.jpg")
    assert len(got) == 1 and "one of the 4 images" in video.notes[0]


@pytest.mark.parametrize("count, noted", [(24, True), (2, True), (1, False)])
def test_a_stack_of_imagej_with_one_entry_is_noted(tmp_path, count, noted):
    description = f"ImageJ=1.53t\nimages={count}\nslices={count}\nloop=false\n"
    Image.new("L", (12, 8), 40).save(tmp_path / "a.tif", description=description)
    _, video = levels_of(tmp_path / "a.tif")
    assert (f"one of the {count} images of this ImageJ stack" in " ".join(video.notes)) == noted
    save_pages(tmp_path / "a.tif", pictures("L"), description=description)
    assert levels_of(tmp_path / "a.tif")[1].notes == []


def test_notes_about_many_images_are_counted(tmp_path):
    folder = folder_of(tmp_path, *(f"{i}.png" for i in range(25)))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes() * 2)
    _, video = levels_of(folder)
    assert len(video.notes) == 21 and "5 more such notes" in video.notes[-1]


@pytest.mark.parametrize("name, codec, options", [
    ("a.mp4", "libx264", {}), ("f.mp4", "libx264", {"movflags": "faststart"}), ("a.mov", "libx264", {}),
    ("g.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}), ("a.flv", "flv", {}), ("b.flv", "libx264", {}),
    ("a.wmv", "wmv2", {}), ("a.ivf", "libvpx", {}),
])  # fmt: skip
def test_videos_that_were_joined_as_bytes_are_noted(tmp_path, name, codec, options):
    path = media.write(tmp_path / name, media.clip(4), codec=codec, **options)
    data = path.read_bytes()
    with open_video(path) as video:
        assert len(list(video)) == 4
    assert video.notes == []
    path.write_bytes(data + data)
    with open_video(path) as video:
        assert len(list(video)) == 4
    assert video.notes[-1:] == [
        f"{path}: another video begins at byte {len(data):,} and is not read; split the file there"
    ]


# -------------------------------------------------------------------------------------------------------------- folder


def folder_of(tmp_path, *names):
    folder = tmp_path / "frames"
    folder.mkdir(exist_ok=True)
    for level, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), (level, level, level)).save(folder / name)
    return folder


def test_files_that_a_folder_leaves_out_are_noted(tmp_path):
    folder = folder_of(tmp_path, "0.png", "1.PNG", "2.jfif", "sub/3.png", ".4.png")
    for name in ("notes.txt", "clip.mp4", "5.psd", "no_ending"):
        (folder / name).write_bytes(b"x")
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    got, video = levels_of(folder)
    assert len(got) == 3
    notes = "\n".join(video.notes)
    for name in ("notes.txt", "clip.mp4", "5.psd", "no_ending", "sub/", ".4.png", "gone.png"):
        assert name in notes
    assert "0.png" not in notes and ".4.png is not read: hidden" in notes and "are not read: not an image" in notes


def test_many_files_left_out_are_counted(tmp_path):
    folder = folder_of(tmp_path, "0.png")
    for number in range(50):
        (folder / f"{number}.json").touch()
    (note,) = levels_of(folder)[1].notes
    assert "0.json, 1.json, 2.json" in note and "and 30 more are not read" in note


@pytest.mark.parametrize("names, words", [
    ([], ["empty"]), (["a.mp4", "b.mp4"], ["a.mp4, b.mp4"]), (["a.heic"], ["a.heic"]), ([".a.png"], [".a.png"]),
    (["bear/0.png"], ["bear/"]), (["Thumbs.db", "notes.txt"], ["notes.txt", "Thumbs.db"]),
])  # fmt: skip
def test_a_folder_without_readable_images_names_what_is_there(tmp_path, names, words):
    folder = tmp_path / "frames"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    with pytest.raises(VideoError) as caught:
        open_video(folder)
    assert all(word in str(caught.value) for word in ["no images", ".png", *words])


def test_a_folder_of_one_file_with_pages_has_them_all(tmp_path):
    folder = folder_of(tmp_path)
    save_pages(folder / "stack.tif", pictures())
    assert levels_of(folder)[0] == LEVELS


def test_pages_of_the_files_in_a_folder_are_noted(tmp_path):
    folder = folder_of(tmp_path, "0.png", "1.png")
    save_pages(folder / "2.tif", pictures())
    got, video = levels_of(folder)
    assert got == [0, 1, 40] and len(video.notes) == 1 and "2.tif" in video.notes[0]


def heic(path, content=b"x" * 64):
    path.write_bytes(struct.pack(">I", 24) + b"ftypheic" + content)
    return path


def test_heic_is_named_with_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    image_files._installed_formats.cache_clear()
    folder = folder_of(tmp_path, "0.jpg")
    heic(folder / "1.heic")
    (note,) = levels_of(folder)[1].notes
    assert note.startswith("1.heic is not read: HEIC needs the package pillow-heif")
    heic(tmp_path / "photo.jpg")  # phones rename it
    for path in (folder / "1.heic", tmp_path / "photo.jpg"):
        with pytest.raises(VideoError, match="pillow-heif"):
            open_video(path)
    image_files._installed_formats.cache_clear()


def test_heic_is_read_with_pillow_heif(tmp_path, monkeypatch):
    """A stand-in for the package registers a reader."""
    from PIL import ImageFile

    class Heif(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._size, self._mode, self.tile = (12, 8), "RGB", []

        def load(self):
            self.im = Image.new("RGB", (12, 8), (7, 7, 7)).im
            return Image.Image.load(self)

    def register():
        Image.register_open("HEIF", Heif, lambda prefix: prefix[4:8] == b"ftyp")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    image_files._installed_formats.cache_clear()
    try:
        folder = folder_of(tmp_path, "0.jpg")
        heic(folder / "1.heic")
        assert levels_of(folder)[0] == [0, 7]
    finally:
        Image.OPEN.pop("HEIF"), Image.ID.remove("HEIF")
        image_files._installed_formats.cache_clear()


# -------------------------------------------------------------------------------------------------- patterns and lists


def test_patterns(tmp_path):
    folder = folder_of(tmp_path, "f_00005.png", "f_00010.png", "f_00100.png", "g_1.png", "g_10.png", "g_2.png", "x.jpg")
    (folder / "f_00007.txt").touch()
    for pattern, want in {
        "f_%05d.png": [0, 1, 2], "g_%d.png": [3, 5, 4], "*.png": [0, 1, 2, 3, 5, 4], "?_1*.png": [3, 4],
        "f_*": [0, 1, 2], "[fg]_00*.png": [0, 1, 2], "../*/g*.png": [3, 5, 4], "../**/g*.png": [3, 5, 4],
        "f_%d.png": [0, 1, 2],
    }.items():  # fmt: skip
        got, video = levels_of(folder / pattern)
        assert got == want, pattern
        assert video.name == str(folder / pattern)
    (note,) = levels_of(folder / "f_*")[1].notes
    assert note.startswith(f"{folder / 'f_00007.txt'} is not read: not an image")
    (gaps,) = levels_of(folder / "f_%05d.png")[1].notes
    assert "17 of the numbers 5 to 100" in gaps
    assert levels_of(folder / "x*")[0] == [6] and levels_of(folder / "g_%02d.png")[0] == [4]
    with open_video(folder / "x*") as video:
        assert video.frame_name(0) == "x"


def test_a_pattern_of_one_video_is_that_video(tmp_path):
    media.write(tmp_path / "clip_001.mp4", media.clip(5))
    with open_video(str(tmp_path / "clip*")) as video:
        assert sum(1 for _ in video) == 5


def test_a_file_named_like_a_pattern_is_that_file(tmp_path):
    folder = folder_of(tmp_path, "a[1].png", "a1.png", "b%d.png", "b1.png")
    assert levels_of(folder / "a[1].png")[0] == [0] and levels_of(folder / "b%d.png")[0] == [2]


@pytest.mark.parametrize("name", ["run[1]", "run [a-c] 2", "a*b", "what?", "[x]", "run[1]/in[2]", "%d"])
@pytest.mark.parametrize("pattern", ["*.png", "f_?.png", "f_[01].png", "f_%d.png", "**/f_*.png"])
def test_patterns_below_folders_of_any_name(tmp_path, monkeypatch, name, pattern):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    for level in range(2):
        Image.new("RGB", (12, 8), (level, 0, 0)).save(folder / f"f_{level}.png")
    if name == "run[1]":
        (tmp_path / "run1").mkdir()
        Image.new("RGB", (12, 8), (9, 0, 0)).save(tmp_path / "run1" / "f_0.png")
    assert levels_of(f"{folder}/{pattern}")[0] == [0, 1]
    monkeypatch.chdir(tmp_path)
    assert levels_of(f"{name}/{pattern}")[0] == [0, 1]


def test_brackets_in_names_of_files(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, "a[1]_0.png", "a[1]_1.png", "b.png")
    assert levels_of(f"{folder}/a[1]_*.png")[0] == [0, 1]
    monkeypatch.chdir(folder)
    assert levels_of("a[1]_*.png")[0] == [0, 1] and levels_of("a[[]1]_1.png")[0] == [1]


@pytest.mark.parametrize("source", [
    "~/frames", "~/frames/*.png", "~/frames/%d.png", ["~/frames/0.png", "~/frames/1.png"], "file:~/frames",
    "file://{home}/frames", "FILE://{home}/frames", "file://localhost{home}/frames", "file:{home}/frames/*.png",
    ["file://{home}/frames/0.png", "file:///{home}/frames/1.png"], "file:frames", "file://frames/%d.png",
])  # fmt: skip
def test_home_folders_and_file_addresses(tmp_path, monkeypatch, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path, "0.png", "1.png")
    source = [s.format(home=tmp_path) for s in source] if isinstance(source, list) else source.format(home=tmp_path)
    assert levels_of(source)[0] == [0, 1]


@pytest.mark.parametrize("address", ["file://{}", "FILE:{}", "file://localhost{}"])
@pytest.mark.parametrize("name", ["a b.mp4", "ä#1?.mp4", "100%25.mp4", "a@b:c.mp4"])
def test_file_addresses_with_escapes(tmp_path, address, name):
    path = media.write(tmp_path / "x.mp4", media.clip(3)).rename(tmp_path / name)
    for text in (str(path), quote(str(path))):
        with open_video(address.format(text)) as video:
            assert len(list(video)) == 3 and video.files == [path] and video.path == path
    with pytest.raises(VideoError, match="no such file"):
        open_video(address.format(tmp_path / "none.mp4"))


@pytest.mark.parametrize("pattern, words", [
    ("%05d.png", ["%05d.png", "no image has such a name"]), ("*.jpg", ["*.jpg", "no image"]),
    ("*.mp4", ["a.mp4", "b.mp4", "give one of them"]), ("none/*.png", ["none/*.png"]),
])  # fmt: skip
def test_patterns_that_fit_no_image(tmp_path, pattern, words):
    folder = folder_of(tmp_path, "1.png")
    for name in ("a.mp4", "b.mp4"):
        (folder / name).touch()
    with pytest.raises(VideoError) as caught:
        open_video(folder / pattern)
    assert all(word in str(caught.value) for word in words)


def test_a_list_of_images_in_its_order(tmp_path):
    folder = folder_of(tmp_path, "b/0.png", "a/0.png", "a/1.png")
    got, video = levels_of([folder / "b" / "0.png", str(folder / "a" / "1.png"), folder / "a" / "0.png"])
    assert got == [0, 2, 1]
    assert [video.frame_name(i) for i in range(3)] == ["b_0", "a_1", "a_0"]
    (folder / "a" / "1.png").rename(folder / "a" / "no_ending")
    assert levels_of([folder / "a" / "no_ending", folder / "a" / "0.png"])[0] == [2, 1]
    got, video = levels_of((folder / "b" / "0.png",))
    assert got == [0] and video.frame_name(0) == "0"


@pytest.mark.parametrize("names, word", [([], "empty"), (["1.png", "2.png"], "2.png"), (["1.png", "a.mp4"], "a.mp4")])
def test_lists_that_are_refused(tmp_path, names, word):
    folder = folder_of(tmp_path, "1.png")
    (folder / "a.mp4").touch()
    with pytest.raises(VideoError, match=word):
        open_video([folder / name for name in names])


@pytest.mark.parametrize("name, words", [
    ("clip.mov", ["did you mean", "clip.mp4"]), ("clp.mp4", ["did you mean", "clip.mp4"]),
    ("frame", ["did you mean", "frames"]), ("zzz", ["zzz", "no such file"]),
    ("nowhere/clip.mp4", ["folder", "nowhere", "does not exist"]),
])  # fmt: skip
def test_a_missing_path_with_what_is_near(tmp_path, name, words):
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "frames").mkdir()
    with pytest.raises(VideoError) as caught:
        open_video(tmp_path / name)
    assert all(word in str(caught.value) for word in words)


def test_a_path_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path, "1.png")
    assert levels_of("~/frames")[0] == [0]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "clip.mp4", "clip", "frames/a.jpg"])
@pytest.mark.parametrize(
    "content, word",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
    ],
)
def test_files_in_whose_place_a_download_put_another(tmp_path, name, content, word):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(VideoError, match=word):
        open_video(path.parent if "/" in name else path)
