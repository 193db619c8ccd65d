"""Points, boxes and masks on the command line, and a run with them on a fake SAM 2 engine."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from helpers import media
from runtime import Box, Mask, Points, PromptError, Result
from runtime.cli.app import main
from runtime.cli.prompt_args import PromptSet, parse_prompt_set


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


def test_frame_numbers_are_those_of_the_source():
    prompts = PromptSet()
    prompts.add(Points([[1, 1]], [1]), 6, None)
    prompts.check((9, 9), 3, 4)
    assert list(prompts.by_index(3)) == [2]


class Live:
    """A session in which an object is the 10x10 square at its first point, or its box, from its prompt on."""

    def __init__(self):
        self.places, self.frames = {}, 0

    def stream(self, frames, prompts):
        for index, frame in enumerate(frames):
            for obj, parts in prompts.get(index, {}).items():
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
