"""Output folders: inputs and files of others are kept, files of earlier runs are replaced."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from helpers import media
from runtime import InternalError, Result, UserError
from runtime.cli.app import main
from runtime.cli.output_folder import OutputFolder, identities, is_marked_png
from runtime.cli.writers import OutputOptions, Outputs

BOX = ["--box", "4,12,24,36"]


def picture(path, seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 2 if mode == "L" else 256, (48, 64, 3)[: 2 + (mode == "RGB")])
    Image.fromarray(array.astype(np.uint8)).save(path)
    return path


def write_run(folder, frames=2, close=True, **options):
    """Write the files of a run of a few frames, as one that is killed leaves them if not `close`."""
    masks = np.zeros((1, 48, 64), bool)
    result = Result(0, (1,), (1,), masks, np.ones(1, np.float32), np.zeros((1, 4), np.float32))
    with Outputs(folder, (48, 64), 10.0, {}, OutputOptions({1: "x"}, {1: 1}, **options)) as outputs:
        for index in range(frames):
            outputs.add(f"{index:05d}", np.zeros((48, 64, 3), np.uint8), result)
        if close:
            outputs.close({})
    return folder


def written(folder, **options):
    """Return the names that a run without frames lists as written."""
    with Outputs(folder, (48, 64), 10.0, {}, OutputOptions({}, {}, **options)) as outputs:
        return [path.name for path in outputs.close({})]


def contents(folder):
    """Return what is in a folder: bytes of files, targets of links."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# -------------------------------------------------------------------------------------------------------------- inputs


def video_in_out(folder):
    media.write(folder / "out" / "overlay.mp4", media.clip(2))
    return ["--video", folder / "out" / "overlay.mp4"]


def own_overlay(folder):
    return ["--video", write_run(folder / "out") / "overlay.mp4"]


def own_overlay_without_a_new_one(folder):
    return ["--video", write_run(folder / "out") / "overlay.mp4", "--no-overlay"]


def video_by_a_symlink_in_out(folder):
    media.write(folder / "clip.mp4", media.clip(2))
    (folder / "out" / "overlay.mp4").symlink_to("../clip.mp4")
    return ["--video", folder / "clip.mp4"]


def symlink_to_a_video_in_out(folder):
    video_in_out(folder)
    (folder / "clip.mp4").symlink_to("out/overlay.mp4")
    return ["--video", folder / "clip.mp4"]


def video_by_a_hard_link(folder):
    media.write(folder / "clip.mp4", media.clip(2))
    os.link(folder / "clip.mp4", folder / "out" / "overlay.mp4")
    return ["--video", folder / "clip.mp4"]


def video_by_another_spelling(folder):
    video_in_out(folder)
    return ["--video", f"{folder}/out/.././/out/overlay.mp4"]


def video_by_a_relative_path(folder):
    video_in_out(folder)
    return ["--video", os.path.relpath(folder / "out" / "overlay.mp4")]


def video_by_an_address(folder):
    video_in_out(folder)
    return ["--video", f"file://{folder}/out/overlay.mp4"]


def out_is_a_symlink(folder):
    video_in_out(folder)
    (folder / "link").symlink_to("out")
    return ["--video", folder / "out" / "overlay.mp4", "--out", folder / "link"]


def image_in_out(folder):
    return ["--image", picture(folder / "out" / "overlay.png")]


def frames_in_masks(folder):
    picture(folder / "out" / "masks" / "00000.png")
    return ["--video", folder / "out" / "masks"]


def jpeg_frames_in_masks(folder):
    picture(folder / "out" / "masks" / "00000.jpg")
    picture(folder / "out" / "masks" / "00001.jpg")
    return ["--video", folder / "out" / "masks"]


def own_masks_as_frames(folder):
    return ["--video", write_run(folder / "out") / "masks"]


def pattern_of_own_masks(folder):
    return ["--video", write_run(folder / "out") / "masks" / "*.png"]


def numbered_own_masks(folder):
    return ["--video", write_run(folder / "out") / "masks" / "%05d.png"]


def pattern_in_out(folder):
    picture(write_run(folder / "out") / "a.png")
    return ["--video", folder / "out" / "*.png"]


def list_with_an_own_mask(folder):
    write_run(folder / "out")
    return ["--video", picture(folder / "a.png"), folder / "out" / "masks" / "00001.png"]


def frames_in_out(folder):
    picture(folder / "out" / "1.jpg"), picture(folder / "out" / "2.jpg")
    return ["--video", folder / "out"]


def frames_linked_to_own_masks(folder):
    write_run(folder / "out")
    (folder / "frames").mkdir()
    for name in ("00000.png", "00001.png"):
        (folder / "frames" / name).symlink_to(folder / "out" / "masks" / name)
    return ["--video", folder / "frames"]


def masks_linked_to_the_frames(folder):
    picture(folder / "frames" / "00000.png"), picture(folder / "frames" / "00001.png")
    (folder / "out" / "masks").symlink_to(folder / "frames")
    return ["--video", folder / "frames"]


def frame_left_out_by_the_stride(folder):
    write_run(folder / "out")
    for number in range(3):
        picture(folder / "frames" / f"{number}.png")
    (folder / "frames" / "1.png").unlink()
    (folder / "frames" / "1.png").symlink_to(folder / "out" / "contact.png")
    return ["--video", folder / "frames", "--stride", 2]


def mask_prompt(folder):
    media.write(folder / "clip.mp4", media.clip(2))
    write_run(folder / "out")
    picture(folder / "m.png", mode="L").replace(folder / "out" / "masks" / "00000.png")
    return ["--video", folder / "clip.mp4", "--mask", f"{folder}/out/masks/00000.png@0#1"]


def mask_in_a_file_of_prompts(folder):
    media.write(folder / "clip.mp4", media.clip(2))
    picture(folder / "out" / "contact.png", mode="L")
    (folder / "prompts.json").write_text('[{"mask": "out/contact.png"}]')
    return ["--video", folder / "clip.mp4", "--prompts", folder / "prompts.json"]


def file_of_prompts(folder):
    media.write(folder / "clip.mp4", media.clip(2))
    (folder / "out" / "results.json").write_text('[{"box": [4, 12, 24, 36]}]')
    return ["--video", folder / "clip.mp4", "--prompts", folder / "out" / "results.json"]


def image_of_a_batch(folder):
    picture(folder / "out" / "a.png"), picture(folder / "out" / "a" / "overlay.png")
    (folder / "l.json").write_text('{"a.png": ["dog"], "a/overlay.png": ["cat"]}')
    return ["--image", folder / "out", "--sentences", folder / "l.json"]


def list_of_a_batch(folder):
    picture(folder / "in" / "a.png")
    (folder / "out" / "a").mkdir()
    (folder / "out" / "a" / "results.json").write_text('{"a.png": ["dog"]}')
    return ["--image", folder / "in", "--sentences", folder / "out" / "a" / "results.json"]


INPUTS = [
    video_in_out,
    own_overlay,
    own_overlay_without_a_new_one,
    video_by_a_symlink_in_out,
    symlink_to_a_video_in_out,
    video_by_a_hard_link,
    video_by_another_spelling,
    video_by_a_relative_path,
    video_by_an_address,
    out_is_a_symlink,
    image_in_out,
    frames_in_masks,
    jpeg_frames_in_masks,
    own_masks_as_frames,
    pattern_of_own_masks,
    numbered_own_masks,
    pattern_in_out,
    list_with_an_own_mask,
    frames_in_out,
    frames_linked_to_own_masks,
    masks_linked_to_the_frames,
    frame_left_out_by_the_stride,
    mask_prompt,
    mask_in_a_file_of_prompts,
    file_of_prompts,
    image_of_a_batch,
    list_of_a_batch,
]


@pytest.mark.parametrize("make", INPUTS, ids=lambda make: make.__name__)
def test_inputs_are_never_replaced(tmp_path, capsys, make):
    (tmp_path / "out").mkdir()
    arguments = [str(part) for part in make(tmp_path)]
    before = contents(tmp_path)
    prompts = [] if {"--mask", "--prompts", "--sentences"} & set(arguments) else BOX

    def load(*args, **kwargs):
        raise AssertionError("the refusal comes before any work")

    assert main(["--out", str(tmp_path / "out"), *arguments, *prompts], load) == 2
    error = capsys.readouterr().err
    assert "choose another --out" in error and error.count("\n") == 1
    assert contents(tmp_path) == before


CONCAT, HLS = "ffconcat version 1.0\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n"
PLAYLISTS = {
    "list.ffconcat": CONCAT + "file out/overlay.mp4\n",
    "quoted.txt": CONCAT + "\nfile 'out/overlay.mp4'\nduration 1\n",
    "escaped.ffconcat": CONCAT + r"file out/over\lay'.mp4'" + "\n",
    "later.ffconcat": CONCAT + "file clip.mp4\nfile 'out/overlay.mp4'\n",
    "list.m3u8": HLS + "out/overlay.mp4\n#EXT-X-ENDLIST\n",
    "outer.ffconcat": CONCAT + "file inner.ffconcat\n",
    "master.m3u8": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9\nlist.m3u8\n",
    "map.m3u8": HLS.replace("#EXTINF", '#EXT-X-MAP:URI="out/overlay.mp4"\n#EXTINF') + "clip.mp4\n#EXT-X-ENDLIST\n",
}
ADDRESSES = [
    *("concat:clip.ts|out/overlay.mp4", "concat:out/overlay.mp4", "concatf:names.txt", "async:out/overlay.mp4"),
    *("cache:out/overlay.mp4", "subfile,,start,0,end,0,,:out/overlay.mp4", "async:file:out/overlay.mp4"),
    *("async:list.ffconcat", "async://{folder}/out/overlay.mp4"),
    *(
        "file:///{folder}/out/overlay.mp4",
        "file:out/overlay.mp4",
        "concat:///{folder}/clip.ts|/{folder}/out/overlay.mp4",
    ),
]


@pytest.mark.parametrize("source", [*PLAYLISTS, *ADDRESSES])
def test_what_a_playlist_or_an_address_names_is_an_input(tmp_path, capsys, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "out")
    for name, text in {
        **PLAYLISTS,
        "inner.ffconcat": CONCAT + "file out/overlay.mp4",
        "names.txt": "out/overlay.mp4",
    }.items():
        (tmp_path / name).write_text(text)
    for name in ("clip.mp4", "clip.ts"):
        media.write(tmp_path / name, media.clip(2))
    before = contents(tmp_path)
    source = source.replace("/{folder}", str(tmp_path))
    assert main(["--out", "out", "--video", source, *BOX], lambda *a, **k: pytest.fail("work has begun")) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert contents(tmp_path) == before


# ----------------------------------------------------------------------------------------------------- files of others


def text(name, content="[1]"):
    def make(out):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(content)

    return make


def edited_mask(out):
    write_run(out)
    for path in out.iterdir():
        if path.is_file():
            path.unlink()
    (out / "masks" / "00001.png").unlink()
    mask = Image.open(out / "masks" / "00000.png")
    mask.load()
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Software", mask.info["Software"])  # as editors keep it
    mask.putpixel((3, 3), 1)
    mask.save(out / "masks" / "00000.png", pnginfo=chunks)


def copied_overlay(out):
    """An overlay that another program has cut, with all that it says about itself."""
    write_run(out.parent / "first")
    with av.open(str(out.parent / "first" / "overlay.mp4")) as source, av.open(str(out / "overlay.mp4"), "w") as target:
        target.metadata.update(source.metadata)
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in (p for p in source.demux(video=0) if p.dts is not None):
            packet.stream = stream
            target.mux(packet)


def video_of_another(out):
    media.write(out / "overlay.mp4", media.clip(2))


STRANGERS = {
    "results": text("results.json", '[{"video_id": 1}]'),
    "results_object": text("results.json", '{"format": 1, "version": "2", "frames": []}'),
    "results_naming_the_tool": text("results.json", '{"format": 1, "source": {"tool": "samwise-runtime"}}'),
    "empty_results": text("results.json", ""),
    "folder": lambda out: (out / "results.json").mkdir(),
    "dangling_link": lambda out: (out / "results.json").symlink_to("nowhere"),
    "lines": text("results.jsonl", '{"frame": 0}\n'),
    "video": video_of_another,
    "copied_overlay": copied_overlay,
    "damaged_video": text("overlay.mp4"),
    "sheet": lambda out: picture(out / "contact.png"),
    "mask": lambda out: picture(out / "masks" / "cat.png"),
    "edited_mask": edited_mask,
    "empty_mask": text("masks/00007.png", ""),
    "masks_file": text("masks"),
}


@pytest.mark.parametrize("make", STRANGERS.values(), ids=STRANGERS)
def test_files_of_others_are_never_replaced(tmp_path, make):
    out = tmp_path / "out"
    out.mkdir()
    make(out)
    before = contents(out)
    with pytest.raises(UserError, match="choose another --out"):
        write_run(out)
    assert contents(out) == before


@pytest.mark.parametrize(
    "name", ["overlay.mp4", "overlay.png", "contact.png", "masks/00000.png", "overlay.part", "masks/1.part"]
)
@pytest.mark.parametrize("earlier", [False, True])
def test_files_of_others_that_are_not_written_are_kept(tmp_path, name, earlier):
    if earlier:
        write_run(tmp_path, overlay=False, masks=False)
    text(name, "precious")(tmp_path)
    assert written(tmp_path, overlay=False, masks=False) == ["results.json"]
    assert (tmp_path / name).read_text() == "precious"


def test_an_overlay_image_leaves_a_video_of_another(tmp_path):
    text("overlay.mp4")(tmp_path)
    write_run(tmp_path, frames=1, is_image=True)
    assert (tmp_path / "overlay.mp4").read_text() == "[1]" and (tmp_path / "overlay.png").exists()


def test_other_files_in_the_folder_stay(tmp_path):
    for name in ("clip.mp4", "notes.txt", "results.csv", "masks/notes.txt", "masks/00000.jpg", "movie.part"):
        text(name)(tmp_path)
    before = contents(tmp_path)
    write_run(tmp_path)
    write_run(tmp_path, overlay=False, masks=False)
    assert before.items() <= contents(tmp_path).items()


# -------------------------------------------------------------------------------------------------------- earlier runs


@pytest.mark.parametrize("first", [{}, {"is_image": True}, {"overlay": False}, {"masks": False}])
@pytest.mark.parametrize("second", [{}, {"is_image": True}, {"overlay": False, "masks": False}])
def test_files_of_an_earlier_run_are_replaced(tmp_path, first, second):
    write_run(tmp_path / "a", frames=3, **first)
    write_run(tmp_path / "a", frames=1, **second)
    write_run(tmp_path / "b", frames=1, **second)
    names = [{path.relative_to(tmp_path / name) for path in contents(tmp_path / name)} for name in "ab"]
    assert names[0] - {Path("masks")} == names[1] - {Path("masks")}


@pytest.mark.parametrize("size", [900, 2000, None])
def test_files_of_a_killed_run_are_replaced(tmp_path, size):
    write_run(tmp_path, frames=12, close=False)
    assert not (tmp_path / "results.json").exists()
    if size is not None:
        os.truncate(tmp_path / "overlay.mp4", size)
    for part in ("overlay", "results", "masks/00002"):
        text(f"{part}.samwise-runtime.part", "what was being written")(tmp_path)
    write_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"contact.png", "masks", "overlay.mp4", "results.json"}
    assert len(list((tmp_path / "masks").iterdir())) == 2


def test_a_run_that_failed_at_its_first_write_can_be_repeated(tmp_path):
    (tmp_path / "results.jsonl").touch()
    write_run(tmp_path)


def test_files_that_were_copied_are_recognised(tmp_path):
    write_run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    write_run(tmp_path / "b", frames=1)
    assert len(list((tmp_path / "b" / "masks").iterdir())) == 1


def test_masks_kept_under_other_names_are_not_removed(tmp_path):
    """A user collects the masks of several runs in one folder, or keeps a copy beside them."""
    kept = tmp_path / "all" / "masks"
    kept.mkdir(parents=True)
    for mask in (write_run(tmp_path / "a") / "masks").iterdir():
        shutil.copy(mask, kept / f"clipA_{mask.name}")
    with pytest.raises(UserError, match="not from this command and not replaced"):
        write_run(tmp_path / "all")
    assert len(list(kept.iterdir())) == len(list((tmp_path / "a" / "masks").iterdir()))


def test_results_are_recognised_after_formatting(tmp_path):
    path = write_run(tmp_path) / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    write_run(tmp_path)


def test_a_mark_covers_the_whole_picture(tmp_path):
    data = (write_run(tmp_path) / "masks" / "00000.png").read_bytes()
    assert is_marked_png(data, "00000.png") and not is_marked_png(data, "00001.png")
    with Image.open(tmp_path / "masks" / "00000.png") as image:
        image.load()
        assert image.info["Software"].startswith("samwise-runtime ")
    for position in (20, 60, len(data) - 20, len(data) - 1):
        changed = bytearray(data)
        changed[position] ^= 1
        assert not is_marked_png(bytes(changed), "00000.png")
    for other in (b"", data[:-1], data + b"x", data[:40]):
        assert not is_marked_png(other, "00000.png")


def test_two_runs_at_once_need_two_folders(tmp_path):
    options = OutputOptions({1: "x"}, {1: 1}, overlay=False)
    with Outputs(tmp_path, (48, 64), 10.0, {}, options) as first:
        with pytest.raises(UserError, match="another run is writing here"):
            write_run(tmp_path)
        first.close({})
    write_run(tmp_path)


# ------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("out", ["file", "file/out", "file/a/b", "dangling"])
def test_folders_that_cannot_be_made(tmp_path, out):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(InternalError, match="is not a folder.*choose another --out"):
        OutputFolder(tmp_path / out).check()
    assert (tmp_path / "file").read_text() == "x"


def test_folders_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(InternalError, match="no permission to write"):
        OutputFolder(tmp_path / "a" / "b").check()


def test_a_check_makes_nothing(tmp_path):
    assert OutputFolder(tmp_path / "a" / "b").check() == [] and not (tmp_path / "a").exists()


def test_names_of_one_file_are_one_identity(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    os.link(tmp_path / "a", tmp_path / "c")
    assert len(identities([tmp_path / name for name in "abc"] + [tmp_path / ".." / tmp_path.name / "a"])) == 1
    with suppress(OSError):
        assert not identities([tmp_path / "missing", "rtsp://camera/1", "0\0", "x" * 5000])
