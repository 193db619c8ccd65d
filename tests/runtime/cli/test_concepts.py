"""Concepts on the command line, and runs with them on a fake SAM 3 engine."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from helpers import media
from runtime import Capability, Concept, PromptError, Result, UserError, VideoError
from runtime.cli.app import main
from runtime.cli.args import parse_prompts
from runtime.cli.concept_args import parse_concepts
from runtime.cli.concept_task import Follower
from runtime.cli.overlay import ObjectColours, Painter
from runtime.media.frame_names import PictureNames, unique_names
from runtime.models import Networks

DELAY = 2
SIZE = (48, 64)


def rows(objects, index=0):
    """Return a result with a stripe for each object; `objects`: id -> prompt id."""
    masks = np.zeros((len(objects), *SIZE), bool)
    for mask, obj in zip(masks, objects, strict=True):
        mask[2 * (obj % 20) : 2 * (obj % 20) + 2, :20] = True
    scores, boxes = np.full(len(objects), 0.5, np.float32), np.zeros((len(objects), 4), np.float32)
    return Result(index, tuple(objects), tuple(objects.values()), masks, scores, boxes)


class Session:
    """Finds an object of every concept on the concept's first frame and another one two frames later; ids from 0.

    Each is seen on three frames. Results come `DELAY` frames late.
    """

    def __init__(self, concepts, **options):
        self.calls, self.options, self.frame = [("start", 0, concept) for concept in concepts], options, 0
        self.concepts, self.waiting, self.births = {}, [], {}
        for number, concept in enumerate(concepts, 1):
            self.concepts[number] = concept
        self.first = dict.fromkeys(self.concepts, 0)

    def add_concept(self, concept):
        self.concepts[number := len(self.first) + 1], self.first[number] = concept, self.frame
        self.calls.append(("add", self.frame, concept))
        return number

    def remove_concept(self, number):
        self.calls.append(("remove", self.frame, self.concepts.pop(number)))

    def change_concept(self, number, concept):
        self.concepts[number] = concept
        self.calls.append(("change", self.frame, concept))

    @property
    def object_ids(self):
        return tuple(obj for obj, (frame, _) in self.births.items() if frame < self.frame <= frame + 3)

    def push(self, frame):
        for number, first in self.first.items():
            if number in self.concepts and self.frame - first in (0, 2):
                self.births[len(self.births)] = (self.frame, number)
        alive = {obj: number for obj, (first, number) in self.births.items() if first <= self.frame <= first + 2}
        self.waiting.append(rows(alive, self.frame))
        self.frame += 1
        return [self.waiting.pop(0)] if len(self.waiting) > DELAY else []

    def flush(self):
        done, self.waiting = self.waiting, []
        return done

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Engine:
    def __init__(self, tracker=True, counts=(2, 1)):
        manifest = SimpleNamespace(network_names="sam3", variant="fake", precision="fp32", demo=None)
        self.bundle, self.backend = SimpleNamespace(name="fake", manifest=manifest), SimpleNamespace(name="fake")
        self.timings, self.session_made, self.detected, self.counts = {}, None, [], counts
        self.capabilities = {Capability.CONCEPT_IMAGE} | ({Capability.CONCEPT_VIDEO} if tracker else set())
        self.networks = SimpleNamespace(concept_image=SimpleNamespace(encode_prompt=self.encode_prompt))

    def encode_prompt(self, concept, size):
        if concept.text and len(concept.text.split()) > 30:
            warnings.warn(f"the concept {concept.label!r} is cut to 32 tokens", stacklevel=1)

    def session(self, concepts, **options):
        self.session_made = Session(concepts, **options)
        return self.session_made

    def image(self, frame):
        def detect(concepts):
            self.detected.append(concepts)
            return [rows({i + 1: 0 for i in range(count)}) for _, count in zip(concepts, self.counts, strict=False)]

        return SimpleNamespace(detect=detect)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def clip(tmp_path):
    return str(media.write(tmp_path / "clip.mp4", media.clip(8)))


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        Image.new("RGB", SIZE[::-1], (9, 90, 9)).save(tmp_path / "in" / f"{name}.png")
    return tmp_path / "in"


def run(engine, source, out, *args):
    return main(["--video", str(source), "--out", str(out), *args], lambda *a, **k: engine)


def test_exemplars_belong_to_the_concept_before():
    concepts = parse_concepts(
        [
            ("--exemplar", "1,2,3,4@7"),
            ("--concept", "yellow bus"),
            ("--concept", "person"),
            ("--exemplar", "5,6,7,8,-"),
            ("--exemplar", "5,6,9,9,+@4"),
            ("--exemplar", "1,1,2,2@4"),
        ]
    )
    concepts.resolve_names(None)
    assert concepts.labels == {1: "yellow bus", 2: "person", 3: "exemplar"}  # in the order in which they start
    later = Concept("person", boxes=[[5, 6, 9, 9], [1, 1, 2, 2]])
    assert concepts.changes(1) == {
        0: {1: Concept("yellow bus"), 2: Concept("person", boxes=[[5, 6, 7, 8]], labels=[0])},
        4: {2: later},
        7: {3: Concept(boxes=[[1, 2, 3, 4]])},
    }
    assert concepts.changes(2)[2] == {2: later}
    assert concepts.on_index(2, 2) == {1: Concept("yellow bus"), 2: later}


def test_exemplars_on_pictures_by_name():
    concepts = parse_concepts([("--exemplar", "1,2,3,4@name:b"), ("--exemplar", "1,2,3,4,-@1")])
    files = ["a.png", "b.png"]
    concepts.resolve_names(PictureNames(files, unique_names(files)))
    assert concepts.changes(1) == {1: {1: Concept(boxes=[[1, 2, 3, 4]] * 2, labels=[0, 1])}}


@pytest.mark.parametrize(
    "args, message",
    [
        (["--concept", ""], "has no words"),
        (["--concept", " \t"], "has no words"),
        (["--concept", "bus\x01"], "not text"),
        (["--exemplar", "1,2,3"], "left,top,right,bottom"),
        (["--exemplar", "1,2,3,4,x"], "left,top,right,bottom"),
        (["--exemplar", "9,2,3,4"], "left must be less than right"),
        (["--exemplar", "1,2,3,4#2"], "no #object"),
        (["--exemplar", "1,2,3,4,-"], "only negative ones"),
        (["--exemplar", "1,2,3,4", "--exemplar", "1,2,3,4,-@5"], "frame 5: only negative ones"),
        (["--concept", "dog", "--exemplar", "1,2,65,9@3"], r"--exemplar of 'dog', frame 3: .*\(65, 9\) lies outside"),
        (["--concept", "dog", "--exemplar", "1,2,6,9@8", "--max-frames", "8"], "frame 8 is not processed"),
        (["--exemplar", "1,2,6,9@3", "--stride", "2"], "skipped by --stride 2; prompt frame 2 or 4"),
        (["--exemplar", "1,2,6,9@name:a"], "only images have names"),
        (["--concept", "dog", "--point", "3,4"], "--concept and --point cannot be mixed"),
        (["--text", "dog", "--exemplar", "1,2,3,4"], "--exemplar and --text cannot be mixed"),
        (["--concept", "dog", "--prompts", "a.json"], "--concept and --prompts cannot be mixed"),
        (["--concept", "dog", "--window", "3"], "--window: not supported by concepts"),
        (["--concept", "dog", "--decode-ahead"], "--decode-ahead: not supported by concepts"),
        (["--concept", "dog", "--encode-ahead"], "--encode-ahead: not supported by concepts"),
        (["--concept", "dog", "--conditional-memory", "on"], "--conditional-memory: not supported by concepts"),
        (["--tokens", "1", "--detect-every", "2"], "--detect-every: not supported by prompts other than concepts"),
        (["--point", "1,2", "--no-temporal-disambiguation"], "--no-temporal-disambiguation: not supported by prompts"),
    ],
)
def test_one_line_for_what_is_wrong(clip, tmp_path, capsys, args, message):
    assert run(Engine(), clip, tmp_path / "out", *args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    with pytest.raises(UserError, match=message):
        raise UserError(line)
    assert not (tmp_path / "out").exists()


def test_files_of_a_video(clip, tmp_path, capsys):
    engine, out = Engine(), tmp_path / "out"
    assert run(engine, clip, out, "--concept", "bus", "--concept", "dog", "--format", "ytvis") == 0
    data = json.loads((out / "results.json").read_text())
    assert [[(o["id"], o["concept"]) for o in frame["objects"]] for frame in data["frames"]][:5] == [
        [(1, "bus"), (2, "dog")],
        [(1, "bus"), (2, "dog")],
        [(1, "bus"), (2, "dog"), (3, "bus"), (4, "dog")],
        [(3, "bus"), (4, "dog")],
        [(3, "bus"), (4, "dog")],
    ]
    assert data["done"] == 8 and [(o["id"], o["prompt"]) for o in data["objects"]][-1] == (4, "dog")
    assert data["frames"][0]["objects"][1]["bbox"] == [0, 2, 20, 2]
    assert set(np.unique(np.asarray(Image.open(out / "masks" / "00002.png")))) == {0, 1, 2, 3, 4}
    assert set(np.unique(np.asarray(Image.open(out / "masks" / "00005.png")))) == {0}
    tracks = json.loads((out / "ytvis.json").read_text())
    assert [(t["id"], t["category_id"], t["category"], t["score"]) for t in tracks][:2] == [
        (1, 1, "bus", 0.5),
        (2, 2, "dog", 0.5),
    ]
    third = tracks[2]
    assert [code is not None for code in third["segmentations"]] == [False] * 2 + [True] * 3 + [False] * 3
    assert [len(third[key]) for key in ("bboxes", "areas")] == [8, 8] and third["areas"][2] == 40
    assert (coco.decode(third["segmentations"][2]).astype(bool) == rows({2: 1}).masks[0]).all()
    assert "ytvis.json" in capsys.readouterr().out


def test_tracks_of_an_earlier_run_are_replaced_and_others_kept(clip, tmp_path, capsys):
    for args in (["--format", "ytvis"], ["--format", "ytvis"], []):
        assert run(Engine(), clip, tmp_path / "out", "--no-overlay", "--concept", "bus", *args) == 0
        assert (tmp_path / "out" / "ytvis.json").exists() == bool(args)
    (tmp_path / "out" / "ytvis.json").write_text('[{"video_id": 1}]')
    assert run(Engine(), clip, tmp_path / "out", "--no-overlay", "--concept", "bus") == 0
    assert run(Engine(), clip, tmp_path / "out", "--no-overlay", "--concept", "bus", "--format", "ytvis") == 2
    assert "ytvis.json: not from this command" in capsys.readouterr().err


def test_concepts_start_and_change_on_their_frames(clip, tmp_path):
    engine = Engine()
    args = ["--exemplar", "1,1,9,9@4", "--concept", "bus", "--exemplar", "2,2,9,9@6", "--no-temporal-disambiguation"]
    assert run(engine, clip, tmp_path / "out", *args, "--detect-every", "3", "--max-objects", "7") == 0
    session = engine.session_made
    assert session.calls == [
        ("start", 0, Concept("bus")),
        ("add", 4, Concept(boxes=[[1, 1, 9, 9]])),
        ("change", 6, Concept("bus", boxes=[[2, 2, 9, 9]])),
    ]
    options = {"temporal_disambiguation": False, "max_objects": 7, "detect_every": 3}
    assert {name: session.options[name] for name in options} == options


def test_frames_before_the_first_concept_are_written(clip, tmp_path):
    engine = Engine()
    assert run(engine, clip, tmp_path / "out", "--exemplar", "1,1,9,9@5") == 0
    frames = json.loads((tmp_path / "out" / "results.json").read_text())["frames"]
    assert [frame["frame"] for frame in frames] == list(range(8)) and engine.session_made.frame == 3
    assert [[o["id"] for o in frame["objects"]] for frame in frames] == [[]] * 5 + [[1], [1], [1, 2]]


def test_exemplars_on_a_first_picture_that_cannot_be_read(pictures, tmp_path, capsys):
    (pictures / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    args = ["--exemplar", "1,1,9,9", "--exemplar", "2,2,9,9@2", "--concept", "bus", "--exemplar", "3,3,9,9"]
    engine = Engine()
    assert run(engine, pictures, tmp_path / "out", *args) == 2
    assert "frame 0 did not come" in capsys.readouterr().err
    assert engine.session_made.calls[2:] == [
        ("remove", 0, Concept(boxes=[[1, 1, 9, 9]])),
        ("change", 0, Concept("bus")),
        ("add", 1, Concept(boxes=[[2, 2, 9, 9]])),
    ]
    frames = json.loads((tmp_path / "out" / "results.json").read_text())["frames"]
    assert [[o["concept"] for o in frame["objects"]] for frame in frames] == [["bus"], ["bus", "exemplar"]]


def test_concepts_keep_their_numbers_where_another_does_not_start():
    changes = {0: {1: Concept("bus")}, 1: {2: Concept(boxes=[[1, 1, 9, 9]])}, 2: {3: Concept("dog")}}
    video = SimpleNamespace(frame_number=[0, 2].__getitem__, stride=1, notes=[])  # picture 1 cannot be read
    with Session([Concept("bus")]) as session:
        results = list(Follower(session, changes, None, video).stream([np.zeros((*SIZE, 3), np.uint8)] * 2))
    assert [result.prompt_ids for result in results] == [(1,), (1, 3)]


@pytest.mark.parametrize(
    "error, code", [(KeyboardInterrupt(), 130), (VideoError("frame 5 is broken"), 2), (ValueError("a fault"), 1)]
)
@pytest.mark.parametrize("fails", [0, 1, 2, 5])
def test_frames_that_wait_are_written_after_an_interrupt_or_error(clip, tmp_path, monkeypatch, error, code, fails):
    push = Session.push

    def fail(self, frame):
        if self.frame == fails:
            raise error
        return push(self, frame)

    monkeypatch.setattr(Session, "push", fail)
    assert run(Engine(), clip, tmp_path / "out", "--exemplar", "1,1,9,9@1") == code
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not data["complete"] and data["done"] == fails + 1  # one frame is before the first concept
    assert [int(frame["name"]) for frame in data["frames"]] == list(range(fails + 1))


def test_notes_and_unused_exemplars(clip, tmp_path, capsys):
    words = " ".join(["very"] * 31 + ["old", "bus"])
    args = ["--concept", words, "--exemplar", "1,1,9,9@6", "--exemplar", "1,1,9,9,-@30", "--max-objects", "2"]
    assert run(Engine(), clip, tmp_path / "out", *args) == 2
    assert "frame 30 did not come (the last one is 7); not used: 1 exemplar of" in capsys.readouterr().err
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    assert data["done"] == 8
    cut, full, unused = data["notes"]
    assert "is cut to 32 tokens" in cut and "frame 2 has 2 objects, the limit" in full and "frame 30" in unused


def test_an_image(pictures, tmp_path):
    engine, out = Engine(), tmp_path / "out"
    args = ["--concept", "bus", "--concept", "dog", "--exemplar", "1,1,9,9,-", "--format", "ytvis"]
    assert run(engine, pictures / "a.png", out, *args) == 0
    assert engine.detected == [[Concept("bus"), Concept("dog", boxes=[[1, 1, 9, 9]], labels=[0])]]
    (frame,) = json.loads((out / "results.json").read_text())["frames"]
    assert [(o["id"], o["concept"]) for o in frame["objects"]] == [(1, "bus"), (2, "bus"), (3, "dog")]
    assert (out / "overlay.png").exists() and len(json.loads((out / "ytvis.json").read_text())) == 3


def test_the_best_objects_of_an_image(pictures, tmp_path):
    out = tmp_path / "out"
    assert (
        run(Engine(counts=(300,)), pictures / "a.png", out, "--no-overlay", "--concept", "bus", "--max-objects", "5")
        == 0
    )
    data = json.loads((out / "results.json").read_text())
    assert len(data["objects"]) == 5 and "300 objects, the best 5 are kept" in data["notes"][0]


def test_separate_pictures_without_tracker(pictures, tmp_path):
    engine, out = Engine(tracker=False), tmp_path / "out"
    assert run(engine, pictures, out, "--exemplar", "1,1,9,9@name:b", "--concept", "dog") == 0
    assert [len(concepts) for concepts in engine.detected] == [1, 2, 1]
    frames = json.loads((out / "results.json").read_text())["frames"]
    assert [[(o["id"], o["concept"]) for o in frame["objects"]] for frame in frames] == [
        [(1, "dog"), (2, "dog")],
        [(3, "dog"), (4, "dog"), (5, "exemplar")],
        [(6, "dog"), (7, "dog")],
    ]


def test_a_video_needs_a_tracker(clip, tmp_path, capsys):
    assert run(Engine(tracker=False), clip, tmp_path / "out", "--concept", "dog") == 2
    assert "has no tracker" in capsys.readouterr().err
    assert run(Engine(tracker=False), clip, tmp_path / "out", "--concept", "dog", "--max-frames", "1") == 0


def test_a_list_of_sentences(pictures, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"a.png": ["bus", "dog"], "c.png": "dog"}))
    engine, out = Engine(), tmp_path / "out"
    assert run(engine, pictures, out, "--sentences", str(tmp_path / "list.json")) == 0
    assert engine.detected == [[Concept("bus"), Concept("dog")], [Concept("dog")]]
    data = json.loads((out / "a" / "results.json").read_text())
    assert [(o["id"], o["prompt"]) for o in data["objects"]] == [(1, "bus"), (2, "bus"), (3, "dog")]


def test_more_objects_than_indexed_masks_hold(pictures, tmp_path):
    out = tmp_path / "out"
    assert (
        run(Engine(counts=(150, 150)), pictures / "a.png", out, "--no-overlay", "--concept", "bus", "--concept", "dog")
        == 0
    )
    data = json.loads((out / "results.json").read_text())
    assert len(data["objects"]) == 300 and data["notes"] == [
        "masks/ has objects 1 to 255; 45 more are only in results.json"
    ]
    assert np.asarray(Image.open(out / "masks" / "a.png")).max() == 255


@pytest.mark.parametrize(
    "have, wanted, message",
    [
        (
            {Capability.CONCEPT_IMAGE},
            "text_video",
            r"cannot follow sentences; .* can: find .*\(--concept, --exemplar\)",
        ),
        ({Capability.CONCEPT_IMAGE}, "prompt_video", "cannot follow points, boxes and masks; .* can: find concepts"),
        ({Capability.CONCEPT_IMAGE}, "concept_video", "cannot follow concepts; .* can: find concepts in an image"),
        ({Capability.TEXT_VIDEO}, "concept_image", r"cannot find concepts .*; .* can: follow sentences \(--text\)"),
        ({Capability.PROMPT_VIDEO}, "concept_video", r"cannot follow concepts; .* can: .* \(--point, --box, --mask\)"),
    ],
)
def test_bundles_tell_what_they_take(have, wanted, message):
    networks = Networks.__new__(Networks)
    networks._networks, networks.capabilities = {}, frozenset(have)
    networks._bundle = SimpleNamespace(name="toy", manifest=SimpleNamespace(network_names="x"))
    with pytest.raises(UserError, match=message):
        getattr(networks, wanted)


def test_colours_of_a_concept_are_a_family():
    colours = ObjectColours({1: "bus", 2: "dog", 3: "cat"}, concepts=True)
    hue = {
        n: [Image.new("RGB", (1, 1), tuple(colours(n, obj))).convert("HSV").getpixel((0, 0))[0] for obj in range(60)]
        for n in (1, 2, 3)
    }
    assert max(hue[1]) < min(hue[2]) and max(hue[2]) < min(hue[3])
    assert len({tuple(colours(1, obj)) for obj in range(12)}) == 12


def test_overlays_have_ids():
    frame = np.full((480, 640, 3), 90, np.uint8)
    masks = np.zeros((1, 480, 640), bool)
    masks[:, 100:200, 100:200] = True
    images = []
    for obj in (3, 111):
        result = Result(0, (obj,), (1,), masks, np.ones(1, np.float32), np.zeros((1, 4), np.float32))
        images.append(Painter((480, 640), {1: "bus"}, concepts=True)(frame, result))
    assert ((images[0] != 90).any(axis=2).sum(axis=1) != (images[1] != 90).any(axis=2).sum(axis=1)).any()


def test_prompts_of_one_kind():
    assert parse_prompts([("--concept", "dog")]).labels == {1: "dog"}
    with pytest.raises(PromptError, match="cannot be mixed"):
        parse_prompts([("--concept", "dog"), ("--text", "dog")])
