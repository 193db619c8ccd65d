"""Output files: readable at any moment, with the results of the engine."""

import io
import json
import tracemalloc

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from runtime import InternalError, Result, UserError
from runtime.cli import overlay, writers
from runtime.cli.overlay import ContactSheet, Painter, index_map, palette
from runtime.cli.writers import OutputOptions, Outputs


def result(index=0, count=2, height=30, width=41):
    y, x = np.mgrid[:height, :width]
    masks = np.stack([(y - 12) ** 2 + (x - 10 - 9 * k - index) ** 2 < 80 for k in range(count)])
    boxes = np.array([[c.min(), r.min(), c.max() + 1, r.max() + 1] for r, c in map(np.nonzero, masks)], np.float32)
    scores = np.linspace(0.9, 0.5, count).astype(np.float32)
    ids = tuple(range(1, count + 1))
    return Result(index, ids, ids, masks, scores, boxes, np.log(scores / (1 - scores)))


def outputs(folder, **kwargs):
    options = OutputOptions({1: "the first", 2: "the second"}, {1: 1, 2: 2}, **kwargs)
    return Outputs(folder, (30, 41), 10.0, {"video": {"name": "x"}}, options)


def frame():
    return np.full((30, 41, 3), 90, np.uint8)


def test_all_files_can_be_read_back(tmp_path):
    with outputs(tmp_path / "out") as out:
        for i in range(12):
            out.add(f"{i:05d}", frame(), result(i))
        written = out.close({"complete": True})
    assert [p.name for p in written] == ["overlay.mp4", "contact.png", "masks", "results.json"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"contact.png", "masks", "overlay.mp4", "results.json"}

    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert data["complete"] is True and data["video"] == {"name": "x"} and len(data["frames"]) == 12
    for i, entry in enumerate(data["frames"]):
        assert (entry["frame"], entry["name"]) == (i, f"{i:05d}")
        for k, one in enumerate(entry["objects"]):
            want = result(i).masks[k]
            assert (coco.decode(one["segmentation"]) == want).all()
            assert one["bbox"] == coco.toBbox(one["segmentation"]).tolist()
            assert one["area"] == want.sum() and one["score"] == pytest.approx(float(result(i).scores[k]), abs=1e-6)

    image = Image.open(tmp_path / "out" / "masks" / "00003.png")
    assert image.mode == "P" and image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    indexed, masks = np.asarray(image), result(3).masks
    assert (indexed[masks[0]] == 1).all() and (indexed[masks[1] & ~masks[0]] == 2).all()
    assert (indexed[~masks.any(0)] == 0).all()

    with av.open(str(tmp_path / "out" / "overlay.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 10)
        pictures = list(video.decode(stream))
    assert len(pictures) == 12 and pictures[0].width % 2 == pictures[0].height % 2 == 0


def test_lines_are_written_during_the_run(tmp_path):
    with outputs(tmp_path, overlay=False) as out:
        out.add("a", frame(), result(0))
        out.add("b", frame(), result(1))
        head, *lines = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
        assert head["video"] == {"name": "x"} and [o["prompt"] for o in head["objects"]] == ["the first", "the second"]
        assert [line["name"] for line in lines] == ["a", "b"]
    assert not (tmp_path / "results.json").exists()


def test_disabled_outputs_are_not_written(tmp_path):
    with outputs(tmp_path, overlay=False, masks=False) as out:
        out.add("a", frame(), result(0))
        out.close({})
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_run_without_frames(tmp_path):
    with outputs(tmp_path) as out:
        out.close({"complete": False})
    assert json.loads((tmp_path / "results.json").read_text())["frames"] == []


def test_the_overlay_of_an_image_is_an_image(tmp_path):
    with outputs(tmp_path, is_image=True) as out:
        out.add("photo", frame(), result(0))
        out.close({})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["masks", "overlay.png", "results.json"]
    assert (tmp_path / "masks" / "photo.png").exists()


def test_files_of_an_earlier_run_are_deleted(tmp_path):
    for count in (5, 2):
        with outputs(tmp_path) as out:
            for i in range(count):
                out.add(f"{i:05d}", frame(), result(i))
            out.close({})
    assert len(list((tmp_path / "masks").iterdir())) == 2


def test_foreign_files_are_kept(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "precious.png").write_bytes(b"x")
    with pytest.raises(UserError, match="choose another --out"):
        outputs(tmp_path)
    assert (tmp_path / "masks" / "precious.png").exists()


def test_a_full_disk_keeps_finished_files(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "00002.samwise-runtime.part").symlink_to("/dev/full")
    with outputs(tmp_path) as out:
        out.add("00000", frame(), result(0))
        out.add("00001", frame(), result(1))
        with pytest.raises(InternalError, match="00002.png: the disk is full") as caught:
            out.add("00002", frame(), result(2))
    assert not isinstance(caught.value, UserError)
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["00000.png", "00001.png"]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4


def test_a_partly_written_line_is_removed(tmp_path, monkeypatch):
    class FileOnSmallDisk(io.FileIO):
        free = 1 << 20

        def write(self, data):
            if not self.free:
                raise OSError(28, "No space left on device")
            written = super().write(data[: self.free])
            FileOnSmallDisk.free -= written
            return written

    monkeypatch.setattr(writers, "open", lambda path, mode, buffering: FileOnSmallDisk(path, mode), raising=False)
    with outputs(tmp_path, overlay=False, masks=False) as out:
        out.add("a", frame(), result(0))
        whole = (tmp_path / "results.jsonl").read_bytes()
        monkeypatch.setattr(FileOnSmallDisk, "free", 10)
        with pytest.raises(InternalError, match="disk is full"):
            out.add("b", frame(), result(1))
    assert (tmp_path / "results.jsonl").read_bytes() == whole


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InternalError, match="file"):
        outputs(tmp_path / "file" / "out")


def test_too_many_objects_for_indexed_masks(tmp_path):
    with pytest.raises(UserError, match="--no-masks"):
        Outputs(tmp_path, (4, 4), 10.0, {}, OutputOptions({256: "x"}, {256: 256}))


def test_higher_scores_are_drawn_on_top():
    masks = np.ones((3, 2, 2), bool)
    masks[1, 0] = False
    drawn = Result(0, (1, 7, 3), (1, 7, 3), masks, np.array([0.5, 0.9, 0.1]), np.zeros((3, 4)))
    assert index_map(drawn)[:, 0].tolist() == [1, 7]


def test_palette_is_that_of_davis():
    assert palette()[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert palette()[[8, 255]].tolist() == [[64, 0, 0], [224, 224, 192]]


@pytest.mark.parametrize(
    "size, canvas",
    [
        ((30, 41), (480, 656)),
        ((480, 853), (480, 854)),
        ((5000, 10), (3840, 8)),
        ((2160, 3840), (2160, 3840)),
        ((1, 1), (480, 480)),
    ],
)
def test_the_canvas_is_even_and_readable(size, canvas):
    assert Painter(size, {1: "x"}).canvas == canvas


def test_drawing_changes_only_the_object():
    painter = Painter((480, 640), {1: "the first", 2: "second " * 40})
    ground, masks = np.full((480, 640, 3), 90, np.uint8), np.zeros((2, 480, 640), bool)
    masks[0, 200:300, 100:200] = True
    boxes = np.array([[100, 200, 200, 300], [0, 0, 0, 0]], np.float32)
    drawn = painter(ground, Result(0, (1, 2), (1, 2), masks, np.array([0.9, 0.1]), boxes))
    assert (ground == 90).all(), "the caller's frame is unchanged"
    inside = drawn[250, 150].astype(int)
    assert inside[0] > 130 and inside[1] < 60
    assert [255, 0, 0] in drawn[250, 97:103].tolist(), "a full line around it"
    assert (drawn[320:] == 90).all() and (drawn[:, 300:] == 90).all()


@pytest.mark.parametrize("height", [1, 7, 160, 161, 239, 300, 480, 500])
def test_masks_are_drawn_as_on_the_whole_image(height):
    """Only the surroundings of an object are enlarged, and each channel is filled alone."""
    rng = np.random.default_rng(height)
    size = (height, 640)
    painter, ground = Painter(size, {}), rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    y, x = np.mgrid[:height, :640]
    masks = np.stack([(y - cy) ** 2 + (x - cx) ** 2 < 1 + height * 5 for cy, cx in ((0, 5), (height // 2, 320))])
    drawn = painter(ground, Result(0, (1, 2), (1, 2), masks, np.array([0.1, 0.9]), np.zeros((2, 4), np.float32)))
    scaled, radius = painter._scaled, painter._unit
    want = np.array(Image.fromarray(ground).resize(scaled[::-1], Image.Resampling.BICUBIC))
    for mask, colour in zip(masks, (np.array([255, 0, 0]), np.array([0, 255, 0])), strict=True):
        enlarged = Image.fromarray(mask.astype(np.uint8) * 255).resize(scaled[::-1], Image.Resampling.BILINEAR)
        inside = np.asarray(enlarged) > 127
        edge = overlay.contour(inside)
        want[inside] = (want[inside].astype(int) * (256 - overlay.FILL_ALPHA) + colour * overlay.FILL_ALPHA) >> 8
        want[overlay.dilate(edge, 2 * radius)] //= 2
        want[overlay.dilate(edge, radius)] = colour
    np.testing.assert_array_equal(drawn[: scaled[0], : scaled[1]], want)


@pytest.mark.parametrize("size", [(5000, 10), (10, 5000), (1, 1), (7, 3)])
def test_extreme_frame_sizes_can_be_drawn(size):
    masks = np.ones((1, *size), bool)
    boxes = np.array([[0, 0, size[1], size[0]]], np.float32)
    drawn = Painter(size, {1: "a label far too long for it"})(
        np.zeros((*size, 3), np.uint8), Result(0, (1,), (1,), masks, np.ones(1), boxes)
    )
    assert drawn.shape == (*Painter(size, {1: "x"}).canvas, 3)


def test_labels_stay_inside_and_apart(monkeypatch):
    tags = []
    monkeypatch.setattr(overlay, "_draw_tag", lambda image, tag, *_: tags.append(tag))
    boxes = ((0, 0, 640, 480), (0, 0, 640, 480), (600, 470, 640, 480))
    masks = np.zeros((3, 480, 640), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    drawn = Result(0, (1, 2, 3), (1, 2, 3), masks, np.array([0.9, 0.8, 0.7]), np.array(boxes, np.float32))
    Painter((480, 640), dict.fromkeys((1, 2, 3), "the dog on the left"))(np.zeros((480, 640, 3), np.uint8), drawn)
    assert len(tags) == 3
    for i, (x0, y0, x1, y1) in enumerate(tags):
        assert 0 <= x0 < x1 <= 640 and 0 <= y0 < y1 <= 480
        assert not any(x0 < t[2] and t[0] < x1 and y0 < t[3] and t[1] < y1 for t in tags[:i])


@pytest.mark.parametrize("tag", [(10, 20, 190, 50), (0, 0, 300, 9), (-40, 95, 41, 101), (151, 60, 202, 81)])
@pytest.mark.parametrize("text", ["the dog", "Ågj_|", "a"])
def test_a_tag_is_what_pillow_draws_on_the_whole_image(tag, text):
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 3)).astype(np.uint8)
    whole = Image.fromarray(image)
    draw, font = ImageDraw.Draw(whole), overlay._font(17, text)
    draw.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=(9, 90, 200))
    draw.text(((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2), text, font=font, anchor="mm", fill=(255, 255, 255))
    overlay._draw_tag(image, tag, text, font, (9, 90, 200), (255, 255, 255))
    np.testing.assert_array_equal(image, np.asarray(whole))


def test_a_contact_sheet_spans_the_whole_video():
    sheet = ContactSheet(count=8, width=16)
    assert sheet.render() is None
    tracemalloc.start()
    for i in range(1000):
        sheet.add(np.full((12, 16, 3), i // 4, np.uint8))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 50_000, "all images are 576,000 bytes, twice eight are 9,216"
    picture = sheet.render()
    assert picture.shape == (2 * 12 + 4, 4 * 16 + 3 * 4, 3)
    levels = [int(picture[y, x, 0]) for y in (2, 18) for x in (2, 22, 42, 62)]
    assert levels == sorted(levels) and levels[0] == 0 and levels[-1] > 200
