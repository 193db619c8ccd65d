"""Points, boxes and masks on the command line, and a run with them on a fake SAM 2 engine."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from helpers import media
from runtime import Box, Mask, Points, PromptError, Result
from runtime.cli import app
from runtime.cli.app import main
from runtime.cli.prompt_args import PromptSet, parse_prompt_set
from runtime.media.frame_names import PictureNames, unique_names


def test_points_without_id_belong_to_one_object():
    values = ("1,2", "3,4,-", "5,6@7", "8,9#4", "1,1,+")
    prompts = parse_prompt_set([("--point", value) for value in values])
    assert prompts.prompts == {
        0: {1: [Points([[1, 2], [3, 4]], [1, 0])], 4: [Points([[8, 9], [1, 1]], [1, 1])]},
        7: {1: [Points([[5, 6]], [1])]},
    }
    assert prompts.labels == {1: "object 1", 4: "object 4"}


def test_boxes_without_id_are_new_objects():
    prompts = parse_prompt_set(
        [
            ("--box", "0,0,5,5"),
            ("--point", "2,2"),
            ("--box", "1,1,9,9@3"),
            ("--point", "4,4,-@3"),
            ("--box", "2,2,3,3#1@8"),
        ]
    )
    assert prompts.prompts == {
        0: {1: [Box([0, 0, 5, 5]), Points([[2, 2]], [1])]},
        3: {2: [Box([1, 1, 9, 9]), Points([[4, 4]], [0])]},
        8: {1: [Box([2, 2, 3, 3])]},
    }


def test_masks_are_image_files(tmp_path):
    Image.fromarray(np.eye(4, dtype=np.uint8) * 9).save(tmp_path / "a@b.png")
    (part,) = parse_prompt_set([("--mask", f"{tmp_path / 'a@b.png'}@2#5")]).prompts[2][5]
    assert isinstance(part, Mask) and (part.array == np.eye(4, dtype=bool)).all()


def test_prompt_file(tmp_path):
    Image.new("L", (4, 4), 255).save(tmp_path / "m.png")
    (tmp_path / "p.json").write_text(
        json.dumps(
            [
                {"object": 2, "frame": 1, "points": [[1, 2], [3, 4]], "labels": [1, 0], "name": "the cat"},
                {"box": [0, 0, 5, 5], "points": [[1, 1]]},
                {"mask": "m.png"},
            ]
        )
    )
    prompts = parse_prompt_set([("--prompts", str(tmp_path / "p.json"))])
    assert prompts.prompts[1] == {2: [Points([[1, 2], [3, 4]], [1, 0])]}
    assert prompts.prompts[0][3] == [Box([0, 0, 5, 5]), Points([[1, 1]], [1])]
    assert isinstance(prompts.prompts[0][4][0], Mask)
    assert prompts.labels == {2: "the cat", 3: "object 3", 4: "object 4"}


@pytest.mark.parametrize(
    "pairs, error",
    [
        ([("--point", "1")], "give x,y"),
        ([("--point", "1,2,x")], "give x,y"),
        ([("--point", "1,2@x")], "give x,y"),
        ([("--point", "nan,2")], "finite"),
        ([("--point", "1,2#0")], "start at 1"),
        ([("--box", "1,2,3")], "left,top,right,bottom"),
        ([("--box", "9,0,1,5")], "left must be less"),
        ([("--box", "0,0,1,1#1"), ("--box", "0,0,2,2#1")], "a box or mask on frame 0"),
        ([("--mask", "nowhere.png")], "nowhere.png"),
        ([("--prompts", "nowhere.json")], "nowhere.json"),
    ],
)
def test_invalid_prompts(pairs, error):
    with pytest.raises(PromptError, match=error):
        parse_prompt_set(pairs)


@pytest.mark.parametrize(
    "content, error",
    [
        ("{", "JSON"),
        ("[]", "a list of prompts"),
        ("{}", "a list of prompts"),
        ("[1]", "prompt 0: must be an object"),
        ('[{"points": [[1, 2]]}, {"bok": 1}]', "prompt 1: must be an object with"),
        ('[{"frame": -1, "box": [0, 0, 1, 1]}]', "must be integers"),
        ("[{}]", "at least one of points, box and mask"),
        ('[{"points": [[1]]}]', "points must be"),
        ('[{"points": 3}]', "points must be"),
        ('[{"box": "a"}]', "numbers"),
        ('[{"mask": 3}]', "strings"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_invalid_prompt_files(tmp_path, content, error):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(PromptError, match=error) as caught:
        parse_prompt_set([("--prompts", str(tmp_path / "p.json"))])
    assert "\n" not in str(caught.value)


def test_an_empty_mask(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "m.png")
    with pytest.raises(PromptError, match="empty"):
        parse_prompt_set([("--mask", str(tmp_path / "m.png"))])


@pytest.mark.parametrize(
    "value, error", [("70,5", "outside the image"), ("5,5@10", "the last one is 9"), ("5,5@3", "--stride 2")]
)
def test_prompts_outside_the_video(value, error):
    with pytest.raises(PromptError, match=error):
        parse_prompt_set([("--point", value)]).check((48, 64), stride=2 if "@3" in value else 1, max_count=10)


@pytest.mark.parametrize(
    "frame, stride, max_count, error",
    [
        (3, 2, None, "frame 3 is skipped by --stride 2; prompt frame 2 or 4"),
        (1, 5, 9, "prompt frame 0 or 5"),
        (7, 3, 3, "prompt frame 6$"),
        (6, 3, 2, "frame 6 is not processed: the last one is 3"),
        (20, 1, 20, "frame 20 is not processed: the last one is 19"),
        (1, 1, 1, "the last one is 0"),
    ],
)
def test_frames_that_are_known_to_be_skipped(frame, stride, max_count, error):
    prompts = parse_prompt_set([("--point", f"1,1@{frame}")])
    with pytest.raises(PromptError, match=error):
        prompts.check((9, 9), stride, max_count)


def test_errors_name_the_object_and_the_frame(tmp_path):
    Image.new("L", (48, 64), 255).save(tmp_path / "m.png")
    prompts = parse_prompt_set([("--point", "1,1"), ("--mask", f"{tmp_path / 'm.png'}@7#4")])
    with pytest.raises(PromptError, match="object 4, frame 7: .* 48x64, the video 64x48 .turned by 90 degrees"):
        prompts.check((48, 64), 1, None)


def test_frame_numbers_are_those_of_the_source():
    prompts = PromptSet()
    prompts.add(Points([[1, 1]], [1]), 6, None)
    prompts.check((9, 9), 3, 4)
    assert list(prompts.by_index(3)) == [2]


def named(tmp_path, names, *arguments):
    """Return the prompts by position, among pictures of these names."""
    prompts = parse_prompt_set(arguments)
    prompts.resolve_names(PictureNames(names, unique_names(names)))
    return {frame: sorted(objects) for frame, objects in prompts.prompts.items()}


@pytest.mark.parametrize("value, want", [
    ("im@1#1.png", {2: [1]}), ("im@1#1.png#3", {2: [3]}), ("im@1.png#3", {1: [3]}), ("im@1", {1: [1]}),
    ("im", {0: [1]}),
    ("im#2", {0: [2]}), ("only@2#4", {3: [4]}), ("only@2#4#5", {3: [5]}), ("a#7", {4: [7]}),
])  # fmt: skip
def test_names_of_pictures_may_look_like_suffixes(tmp_path, value, want):
    names = ["im.png", "im@1.png", "im@1#1.png", "only@2#4.png", "a#7.png"]
    assert named(tmp_path, names, ("--box", f"1,1,9,9@name:{value}")) == want
    if "#" not in value.removesuffix(".png")[-2:]:
        assert named(tmp_path, names, ("--box", f"1,1,9,9#6@name:{value}")) == {next(iter(want)): [6]}


def test_a_name_that_may_be_two_is_refused(tmp_path):
    with pytest.raises(PromptError, match="may be two pictures"):
        named(tmp_path, ["im@1.png", "im@1#1.png"], ("--box", "1,1,9,9@name:im@1#1"))


@pytest.mark.parametrize("name", ["m@1#2.png", "m@1#2", "m#2", "m@1", "m#2@name:x", "m@1#2@3"])
@pytest.mark.parametrize(
    "suffix, want", [("", {0: [1]}), ("@4", {4: [1]}), ("#5", {0: [5]}), ("@4#5", {4: [5]}), ("#5@4", {4: [5]})]
)
def test_mask_files_may_look_like_suffixes(tmp_path, name, suffix, want):
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 2:5] = 255
    Image.fromarray(mask).save(tmp_path / name, "PNG")
    prompts = parse_prompt_set([("--mask", f"{tmp_path / name}{suffix}")])
    assert {frame: sorted(objects) for frame, objects in prompts.prompts.items()} == want


def test_two_frames_for_one_prompt_are_refused():
    with pytest.raises(PromptError, match="--point"):
        parse_prompt_set([("--point", "5,5@1@2")])


class Live:
    """A session in which an object is the 10x10 square at its first point, or its box, from its prompt on."""

    def __init__(self):
        self.places, self.frames = {}, 0

    def stream(self, frames, prompts_on):
        for index, frame in enumerate(frames):
            yield from self.push(frame, prompts_on(index))

    def push(self, frame, prompts):
        index, self.frames = self.frames, self.frames + 1
        for obj, parts in (prompts or {}).items():
            first = parts[0]
            box = first.xyxy if isinstance(first, Box) else (*first.points[0], *np.add(first.points[0], 10))
            self.places[obj] = [int(v) for v in box]
        masks = np.zeros((len(self.places), *frame.shape[:2]), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, self.places.values(), strict=True):
            mask[y0:y1, x0:x1] = True
        n = len(masks)
        yield Result(
            index,
            tuple(self.places),
            tuple(self.places),
            masks,
            np.full(n, 0.75, np.float32),
            np.array(list(self.places.values()), np.float32).reshape(n, 4),
            np.ones(n, np.float32),
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.closed = True


class Picture:
    def __init__(self, frame):
        self.shape = frame.shape[:2]

    def segment_all(self):
        found = []
        for side in (4, 40, 12):
            mask = np.zeros(self.shape, bool)
            mask[:side, :side] = True
            found.append(SimpleNamespace(mask=mask, box=(0, 0, side, side), area=side * side, score=side / 50))
        return found


class Engine:
    manifest = SimpleNamespace(network_names="sam2", variant="fake", precision="fp32", demo=None)
    bundle = SimpleNamespace(name="fake", manifest=manifest)
    backend = SimpleNamespace(name="fake")
    timings = {}
    image = Picture

    def live(self):
        return Live()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


def command(*args):
    return main(list(args), lambda *a, **k: Engine())


@pytest.fixture
def clip(tmp_path):
    return str(media.write(tmp_path / "clip.mp4", media.clip(10)))


def test_objects_appear_with_their_first_prompt(clip, tmp_path, capsys):
    assert command("--video", clip, "--point", "5,6", "--box", "30,10,50,30@4", "--out", str(tmp_path)) == 0
    data = json.loads((tmp_path / "results.json").read_text())
    assert [[o["id"] for o in frame["objects"]] for frame in data["frames"]] == [[1]] * 4 + [[1, 2]] * 6
    assert [(o["id"], o["followed"], o["visible"]) for o in data["objects"]] == [(1, 10, 10), (2, 6, 6)]
    assert data["frames"][5]["objects"][1]["bbox"] == [30, 10, 20, 20]
    mask = np.asarray(Image.open(tmp_path / "masks" / "00005.png"))
    assert mask[8, 7] == 1 and mask[20, 40] == 2 and mask[0, 0] == 0
    assert "object 2 6/6" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "prompts, told",
    [
        (["--box", "1,1,9,9@20"], ["frame 20 did not come (the last one is 9); not used: box of object 1"]),
        (["--point", "5,6", "--point", "7,7@10"], ["frame 10 did not come (the last one is 9); not used: 1 click of "]),
        (["--point", "5,6", "--box", "1,1,9,9@99", "--point", "3,3@12"], ["frame 12 did", "frame 99 did"]),
        (["--stride", "2", "--point", "5,6", "--point", "5,6@10"], ["frame 10 did not come (the last one is 8)"]),
        (["--max-frames", "50", "--point", "5,6@49"], ["frame 49 did not come (the last one is 9)"]),
    ],
)
def test_prompts_whose_frame_did_not_come_are_told(clip, tmp_path, prompts, told, capsys):
    """The number of frames in a video file is an estimate, so it is known at the end only; the work is kept."""
    assert command("--video", clip, *prompts, "--out", str(tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert told[0] in line and len(data["notes"]) == len(told)
    assert all(text in note for text, note in zip(told, data["notes"], strict=True))
    assert data["complete"] and data["done"] == len(data["frames"]) == (5 if "--stride" in prompts else 10)


def test_prompts_that_cannot_come_are_refused_before_the_engine_loads(clip, tmp_path, capsys):
    for number, frame in enumerate(media.clip(4)):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    for source, *args in (
        (tmp_path, "--point", "5,6@4"),
        (tmp_path, "--point", "5,6@3", "--max-frames", "3"),
        (clip, "--point", "5,6@3", "--max-frames", "3"),
        (clip, "--point", "5,6@3", "--stride", "2"),
        (clip, "--point", "99,6"),
        (clip, "--box", "1,1,5,5#256"),
    ):
        assert main(["--video", str(source), *args, "--out", str(tmp_path / "out")], lambda *a, **k: 1 / 0) == 2
        assert not (tmp_path / "out").exists()


def test_a_wrong_estimate_refuses_nothing(tmp_path, monkeypatch):
    clip = str(media.write(tmp_path / "clip.mp4", media.clip(10)))
    opened = app.open_video

    def open_video(*args, **options):
        video = opened(*args, **options)
        video.count = 1  # as of a file whose header is wrong
        return video

    monkeypatch.setattr(app, "open_video", open_video)
    assert command("--video", clip, "--point", "5,6@8", "--out", str(tmp_path / "out")) == 0
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [len(frame["objects"]) for frame in data["frames"]] == [0] * 8 + [1] * 2
    assert (tmp_path / "out" / "overlay.mp4").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_of_a_prompt_file(tmp_path, encoding):
    content = json.dumps([{"box": [0, 0, 5, 5], "name": "Bär 狗"}], ensure_ascii=False)
    (tmp_path / "p.json").write_bytes(content.encode(encoding))
    assert parse_prompt_set([("--prompts", str(tmp_path / "p.json"))]).labels == {1: "Bär 狗"}


def test_prompt_file_in_another_encoding(tmp_path):
    (tmp_path / "p.json").write_bytes('[{"box": [0, 0, 5, 5], "name": "Bär"}]'.encode("latin-1"))
    with pytest.raises(PromptError, match="p.json: cannot be read as text.*UTF-8"):
        parse_prompt_set([("--prompts", str(tmp_path / "p.json"))])


@pytest.mark.parametrize(
    "entry, want",
    [
        ({"points": [[1, 2]], "labels": [1.0]}, Points([[1, 2]], [1])),
        ({"points": [[1, 2]], "labels": [True]}, Points([[1, 2]], [1])),
        ({"points": [1, 2], "labels": 0}, Points([[1, 2]], [0])),
        ({"points": [1, 2]}, Points([[1, 2]], [1])),
        ({"points": [[[1, 2], [3, 4]]]}, Points([[1, 2], [3, 4]], [1, 1])),
        ({"box": [[1, 2, 3, 4]]}, Box([1, 2, 3, 4])),
        ({"box": [[1, 2], [3, 4]], "frame": 0.0, "object": 1.0}, Box([1, 2, 3, 4])),
    ],
)
def test_forms_of_prompts_in_a_file(tmp_path, entry, want):
    (tmp_path / "p.json").write_text(json.dumps([entry]))
    assert parse_prompt_set([("--prompts", str(tmp_path / "p.json"))]).prompts == {0: {1: [want]}}


@pytest.mark.parametrize("points", [[None, []], [[1, 2], [3]], [[1, 2], None], {"x": 1}, "1,2", [], [[[]]]])
def test_points_of_no_shape_in_a_file(tmp_path, points):
    """Without labels, their number comes from the points: it must not be counted before they are read."""
    (tmp_path / "p.json").write_text(json.dumps([{"points": points}]))
    with pytest.raises(PromptError, match="prompt 0: points must be"):
        parse_prompt_set([("--prompts", str(tmp_path / "p.json"))])


@pytest.mark.parametrize(
    "args, needed",
    [
        ([x for i in range(30) for x in ("--point", f"{i},{i}#{i + 1}")], 30),
        ([x for i in range(20) for x in ("--box", f"{i},{i},{i + 5},{i + 5}@{i % 3}")], 20),
        (["--point", "5,6"], 16),
        (["--point", "5,6", "--max-objects", "3"], 3),
    ],
)
def test_the_engine_is_loaded_for_as_many_objects_as_there_are_prompts(clip, tmp_path, args, needed):
    loaded = []
    assert main(["--video", clip, *args, "--out", str(tmp_path)], lambda *a, **k: loaded.append(k) or Engine()) == 0
    assert [k["max_objects"] for k in loaded] == [needed]


def test_too_many_objects_are_told_before_the_work(clip, tmp_path, capsys):
    Image.fromarray(np.arange(48 * 64, dtype=np.uint8).reshape(48, 64) // 64).save(tmp_path / "labels.png")
    (tmp_path / "p.json").write_text(json.dumps([{"box": [i, i, i + 5, i + 5], "frame": i} for i in range(9)]))
    for option, name in (("--mask", "labels.png"), ("--prompts", "p.json")):
        args = ["--video", clip, option, str(tmp_path / name), "--max-objects", "2", "--out", str(tmp_path / "out")]
        assert main(args, lambda *a, **k: 1 / 0) == 2
        assert "objects, more than --max-objects 2" in capsys.readouterr().err


def test_many_objects_on_a_bundle_with_smaller_batches(toy_sam2_bundle, clip, tmp_path):
    boxes = [x for i in range(20) for x in ("--box", f"{i},{i},{i + 9},{i + 9}")]
    args = ["--engine", str(toy_sam2_bundle), "--video", clip, *boxes, "--max-frames", "2", "--out", str(tmp_path)]
    assert main(args) == 0
    data = json.loads((tmp_path / "results.json").read_text())
    assert [len(frame["objects"]) for frame in data["frames"]] == [20, 20]


def test_stride_counts_frames_of_the_source(clip, tmp_path):
    assert command("--video", clip, "--point", "5,6@6", "--stride", "3", "--out", str(tmp_path)) == 0
    data = json.loads((tmp_path / "results.json").read_text())
    counts = {frame["name"]: len(frame["objects"]) for frame in data["frames"]}
    assert counts == {"00000": 0, "00003": 0, "00006": 1, "00009": 1}


def test_automatic_masks_of_an_image(tmp_path, capsys):
    Image.fromarray(media.clip(1)[0]).save(tmp_path / "photo.png")
    assert command("--image", str(tmp_path / "photo.png"), "--auto", "--out", str(tmp_path / "out")) == 0
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [o["area"] for o in data["frames"][0]["objects"]] == [1600, 144, 16]
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "photo.png"))
    assert mask[2, 2] == 3 and mask[8, 8] == 2 and mask[30, 30] == 1, "smaller masks are drawn on top"


@pytest.mark.parametrize(
    "args, error",
    [
        (["--text", "a dog", "--point", "1,1"], "one run"),
        (["--auto", "--point", "1,1"], "--auto"),
        (["--auto"], "one image"),
        (["--point", "100,1"], "outside the image"),
        (["--box", "-5,3,9,9@1"], "object 1, frame 1: box corner (-5, 3) lies outside the image, 64x48"),
        (["--point", "-.5,3"], "(-0.5, 3) lies outside"),
        (["--point", "1,1", "--decode-ahead"], "--decode-ahead: not supported by --auto and visual prompts; remove it"),
        (["--point", "1,1", "--encode-ahead"], "--encode-ahead: not supported by --auto and visual prompts; remove it"),
        (["--point", "1,1", "--window", "2"], "--window: not supported by --auto and visual prompts; remove it"),
        (["--point", "1,1@99"], "the last one is 9"),
        (["--box", "1,1,5,5#256"], "--no-masks"),
    ],
)
def test_options_that_exclude_each_other(clip, tmp_path, args, error, capsys):
    assert command("--video", clip, *args, "--out", str(tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert error in line


def test_visual_prompts_need_a_bundle_that_takes_them(toy, clip, tmp_path, capsys):
    assert main(["--engine", str(toy), "--video", clip, "--point", "5,6", "--out", str(tmp_path)]) == 2
    assert "cannot follow points" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ frames by name


def picture_names(*files):
    return PictureNames(files, unique_names(files))


NAMES = picture_names("00000.png", "00005.png", "00010.png", "00010.jpg", "a#1@2.png")


@pytest.mark.parametrize(
    "value, frame, obj",
    [
        ("1,2@name:00005", 1, 1),
        ("1,2@name:00005#3", 1, 3),
        ("1,2#3@name:00005", 1, 3),
        ("1,2,-@name:00005.png", 1, 1),
        ("1,2@name:00010.jpg", 3, 1),
        ("1,2@name:a#1@2#3", 4, 3),
        ("1,2@1", 1, 1),
        ("1,2", 0, 1),
    ],
)
def test_a_frame_by_name(value, frame, obj):
    prompts = parse_prompt_set([("--point", value)])
    prompts.resolve_names(NAMES)
    assert list(prompts.prompts) == [frame] and list(prompts.prompts[frame]) == [obj]
    assert prompts.named == {} and prompts.notes == []


def test_a_frame_by_name_in_a_file(tmp_path):
    path = tmp_path / "p.json"
    entries = [{"frame": "name:00005", "box": [0, 0, 9, 9], "object": 2, "name": "dog"}, {"points": [[1, 2]]}]
    path.write_text(json.dumps(entries))
    prompts = parse_prompt_set([("--prompts", str(path)), ("--point", "3,4@name:00005#2")])
    prompts.resolve_names(NAMES)
    assert [type(part) for part in prompts.prompts[1][2]] == [Box, Points]
    assert list(prompts.prompts) == [0, 1] and prompts.labels[2] == "dog"


@pytest.mark.parametrize("frame", ["00005", "name:", "", [1], {"name": "00005"}, -1, 1.5, True])
def test_invalid_frames_in_a_file(tmp_path, frame):
    (tmp_path / "p.json").write_text(json.dumps([{"frame": frame, "box": [0, 0, 9, 9]}]))
    with pytest.raises(PromptError, match="or frame a name like"):
        parse_prompt_set([("--prompts", str(tmp_path / "p.json"))])


@pytest.mark.parametrize(
    "files, number, words",
    [
        (
            ["00000.png", "00005.png", "00010.png", "00015.png", "00020.png", "00025.png"],
            5,
            ["00025.png", "@name:00005"],
        ),
        (["00001.jpg", "00002.jpg"], 1, ["00002.jpg", "@name:00001"]),
        (["f_10.jpg", "f_3.jpg", "f_2.jpg", "f_0.jpg"], 2, ["f_2.jpg"]),
        (["f_10.jpg", "f_3.jpg", "f_2.jpg", "f_0.jpg"], 3, ["f_0.jpg", "@name:f_3"]),
        (["00000.png", "00001.png"], 1, []),
        (["a.png", "b.png"], 1, []),
        (["00000.png", "00005.png"], 1, []),
    ],
)
def test_a_number_that_may_be_meant_as_a_name_is_noted(files, number, words):
    prompts = parse_prompt_set([("--point", f"1,2@{number}")])
    prompts.resolve_names(picture_names(*files))
    assert len(prompts.notes) == bool(words[1:]) and all(word in prompts.notes[0] for word in words[1:])
    assert list(prompts.prompts) == [number]


@pytest.mark.parametrize(
    "value, names, words",
    [
        ("1,2@10", NAMES, ["no frame 10", "the last one is 4", "@name:00010"]),
        ("1,2@name:00007", NAMES, ["00007", "one that exists is 000"]),
        ("1,2@name:00010", NAMES, ["2 pictures are named 00010", "00010.png"]),
        ("1,2@name:00005", None, ["@name:00005", "number"]),
    ],
)
def test_names_that_are_refused(value, names, words):
    with pytest.raises(PromptError) as caught:
        parse_prompt_set([("--point", value)]).resolve_names(names)
    assert all(word in str(caught.value) for word in words)


def test_a_prompt_by_name_and_one_by_number_meet():
    prompts = parse_prompt_set([("--point", "1,2@1#1"), ("--point", "3,4,-@name:00005#1")])
    prompts.resolve_names(NAMES)
    (points,) = prompts.prompts[1][1]
    assert np.array_equal(points.points, [[1, 2], [3, 4]]) and np.array_equal(points.labels, [1, 0])


@pytest.fixture
def frames(tmp_path):
    """A folder as those of YouTube-VOS: every fifth frame of a video."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(media.clip(7)):
        Image.fromarray(frame).save(folder / f"{5 * number:05d}.png")
    return folder


@pytest.mark.parametrize("frame, first, note", [("5", "00025", "@name:00005"), ("name:00005", "00005", None)])
@pytest.mark.parametrize("source", ["{}", "{}/*.png", "{}/%05d.png"])
def test_the_command_by_name_and_by_number(frames, tmp_path, capsys, source, frame, first, note):
    out = tmp_path / "out"
    assert command("--video", source.format(frames), "--point", f"5,6@{frame}", "--out", str(out)) == 0
    data = json.loads((out / "results.json").read_text())
    assert next(f["name"] for f in data["frames"] if f["objects"]) == first
    assert len(data["notes"]) == bool(note) and all(note in n and "00025.png" in n for n in data["notes"])
    assert [p.stem for p in sorted((out / "masks").iterdir())] == [f["name"] for f in data["frames"]]
    assert (note or "note:") in capsys.readouterr().out or not note


def test_the_command_on_a_list_of_images(frames, tmp_path, capsys):
    images = [str(path) for path in sorted(frames.iterdir())][:3]
    assert command("--video", *images, "--point", "5,6", "--out", str(tmp_path / "out")) == 0
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [f["name"] for f in data["frames"]] == ["00000", "00005", "00010"] and "00000.png" in data["video"]["name"]


def test_sources_that_the_command_refuses(frames, clip, tmp_path, capsys):
    (tmp_path / "my clip.mp4").touch()
    for args, words in [
        (["--video", clip, "--image", clip], ["--image is given twice"]),
        (["--video", clip, clip], ["not an image", "given alone"]),
        (["--video", *str(tmp_path / "my clip.mp4").split(" ")], ["in quotes", "my clip.mp4"]),
        (["--video", str(frames), "--stride", "2"], ["frame 1 is skipped by --stride 2"]),
    ]:
        assert command(*args, "--point", "5,6@name:00005", "--out", str(tmp_path / "out")) == 2
        error = capsys.readouterr().err
        assert all(word in error for word in words), error
