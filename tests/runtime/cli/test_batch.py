"""Batches: folders of images with lists of sentences, and evaluation on files in the REFER layout."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from tokenizers import Tokenizer, models, pre_tokenizers

import runtime
from benchmarks import refcoco
from helpers import toy_refersam
from runtime.cli.app import main
from runtime.cli.batch import read_sentences

WORDS = {"the": 5, "dog": 20, "cat": 90, "left": 40}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The toy bundle with a tokenizer of four words."""
    import hashlib

    folder = tmp_path_factory.mktemp("bundles") / "toy_refersam"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"?": 0, **WORDS}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    toy_refersam.build(folder, tokenizer="tokenizer.json")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["tokenizer.json"] = digest
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(1)
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name, size in (("a.png", (40, 30)), ("b.png", (33, 50)), ("sub/c.png", (20, 20))):
        Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(size).save(folder / name)
    return folder


def run_batch(bundle, pictures, sentences, out, *options):
    paths = {"--engine": bundle, "--image": pictures, "--sentences": sentences, "--out": out}
    return main([*(str(part) for pair in paths.items() for part in pair), *options])


@pytest.mark.parametrize(
    "name, content",
    [
        ("list.csv", 'picture,sentence\na.png,the dog\na.png,"the cat, left"\nsub/c.png,dog\n'),
        ("list.json", json.dumps({"a.png": ["the dog", "the cat, left"], "sub/c.png": "dog"})),
        (
            "list.json",
            json.dumps(
                [
                    {"picture": "a.png", "sentences": ["the dog", "the cat, left"]},
                    {"picture": "sub/c.png", "sentences": ["dog"]},
                ]
            ),
        ),
    ],
)
def test_list_of_sentences(bundle, pictures, tmp_path, name, content, capsys):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    out = tmp_path / "out"
    assert run_batch(bundle, pictures, tmp_path / name, out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["sentences"] == 3
    results = json.loads((out / "a" / "results.json").read_text())
    assert [o["prompt"] for o in results["objects"]] == ["the dog", "the cat, left"] and results["complete"]
    indexed = np.asarray(Image.open(out / "a" / "masks" / "a.png"))
    assert indexed.shape == (30, 40) and (out / "sub" / "c" / "overlay.png").is_file()
    engine = runtime.load(bundle)
    want = engine.image(pictures / "a.png").refer([runtime.Text("the dog"), runtime.Text("the cat, left")])
    found = [coco.decode(o["segmentation"]).astype(bool) for o in results["frames"][0]["objects"]]
    assert (np.stack(found) == want.masks).all()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize(
    "name, content",
    [
        ("list.csv", 'picture,sentence\r\na.png,"the dog, Bär 狗"\r\n'),
        ("list.csv", "picture;sentence\na.png;the dog, Bär 狗\n"),
        ("list.txt", "picture\tsentence\na.png\tthe dog, Bär 狗\n"),
        ("list.json", '{"a.png": "the dog, Bär 狗"}'),
    ],
)
def test_encodings_of_a_list(tmp_path, name, content, encoding):
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert read_sentences(tmp_path / name) == {"a.png": [runtime.Text("the dog, Bär 狗")]}


def test_more_sentences_than_objects_by_default(bundle, pictures, tmp_path, capsys):
    """A network for videos takes an image as a video of one frame, with a memory for each sentence."""
    (tmp_path / "l.json").write_text(json.dumps({"a.png": ["dog"], "b.png": ["the dog"] * 18}))
    loaded = []
    arguments = ["--image", str(pictures), "--sentences", str(tmp_path / "l.json"), "--out", str(tmp_path / "out")]
    assert main(arguments, lambda *a, **k: loaded.append(k) or runtime.load(bundle)) == 0
    assert loaded[0]["max_objects"] == 18
    assert main([*arguments, "--max-objects", "17"], lambda *a, **k: 1 / 0) == 2
    assert "18 objects, more than --max-objects 17" in capsys.readouterr().err
    (tmp_path / "l.json").write_text(json.dumps({"a.png": ["dog"], "b.png": ["the dog"] * 256}))
    assert main(arguments, lambda *a, **k: 1 / 0) == 2
    assert "--no-masks" in capsys.readouterr().err


def test_images_that_share_a_stem(bundle, pictures, tmp_path):
    Image.open(pictures / "a.png").save(pictures / "a.jpg")
    (tmp_path / "l.json").write_text(json.dumps({"a.png": ["dog"], "a.jpg": ["dog"]}))
    assert run_batch(bundle, pictures, tmp_path / "l.json", tmp_path / "out") == 0
    assert (tmp_path / "out" / "a.jpg" / "results.json").is_file() and (tmp_path / "out" / "a.png").is_dir()


def test_every_image_has_a_folder_of_its_own_inside_the_output(bundle, pictures, tmp_path):
    image = Image.open(pictures / "a.png")
    names = ["a.png", "A.jpg", "...png", "con.png", "b\n.png", "sub/c.png", "sub/c.jpg", "./b.png"]
    for name in names[1:-1]:
        image.save(pictures / name, "JPEG" if name.endswith("jpg") else "PNG")
    image.save(pictures / "pages.tif", save_all=True, append_images=[image])
    (tmp_path / "l.json").write_text(json.dumps({name: ["dog"] for name in [*names, "pages.tif"]}))
    assert run_batch(bundle, pictures, tmp_path / "l.json", tmp_path / "out") == 0
    found = sorted(p.parent.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("results.json"))
    assert found == sorted(["a.png", "A.jpg", "_..", "_con", "b_", "sub/c.png", "sub/c.jpg", "b", "pages"])
    for folder in found:
        data = json.loads((tmp_path / "out" / folder / "results.json").read_text())
        assert (tmp_path / "out" / folder / "masks" / f"{data['frames'][0]['name']}.png").is_file()
        assert (len(data["notes"]) == 1 and "first of its 2 pages" in data["notes"][0]) == (folder == "pages")


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_failure_is_told_and_does_not_end_the_batch(bundle, pictures, tmp_path, damage, as_json, capsys):
    sentences = {"a.png": ["dog"], "b.png": ["dog"], "sub/c.png": ["cat", "dog"]}
    (tmp_path / "l.json").write_text(json.dumps(sentences))
    options = ["--json"] if as_json else []
    assert run_batch(bundle, pictures, tmp_path / "l.json", tmp_path / "out", *options) == 0
    capsys.readouterr()
    data = (pictures / "b.png").read_bytes()
    (pictures / "b.png").write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"hello"}[damage])
    assert run_batch(bundle, pictures, tmp_path / "l.json", tmp_path / "out", *options) == 2
    out, error = capsys.readouterr()
    last = error.splitlines()[-1]
    assert "b.png: failed: " in error and last.startswith("error: 1 of 3 images failed, the first one b.png: ")
    if as_json:
        totals = json.loads(out)
        assert (totals["pictures"], totals["sentences"], list(totals["failed"])) == (2, 3, ["b.png"])
    else:
        assert "2 images, 3 sentences" in out
    assert all((tmp_path / "out" / name / "results.json").is_file() for name in ("a", "sub/c"))
    assert not [path for path in (tmp_path / "out" / "b").rglob("*") if path.is_file()], "of the run before"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("l.csv", "file,text\na,b\n", "must name the columns"),
        ("l.csv", "picture,sentence\na.png,\n", "line 2: the text prompt"),
        ("l.csv", "picture,sentence\n", "no sentence in it"),
        ("l.csv", "picture,sentence\n../x.png,dog\n", "is outside the folder"),
        ("l.csv", "picture,sentence\nmissing.png,dog\n", "no such image"),
        ("l.csv", "picture,sentence\n,dog\n", "name of the image is missing"),
        ("l.csv", "picture,sentence\na.png\n", "line 2: the sentence is missing"),
        ("l.csv", "picture,sentence\na.png,the dog, on the left\n", "line 2: more fields than columns; put a sentence"),
        ("l.csv", "picture;sentence\na.png;dog;left\n", "line 2: more fields than columns"),
        ("l.csv", 'picture,sentence\na.png,"open quote\nb.png,cat\n', "not CSV"),
        ("l.csv", 'picture,sentence\na.png,"the "big" dog"\n', "not CSV"),
        ("l.json", "{", "not readable as JSON"),
        ("l.json", '{"a.png": ["dog"], "a.png": ["cat"]}', "the key 'a.png' stands twice"),
        ("l.json", "3", "must be an object"),
        ("l.json", '[{"picture": "a.png"}]', "entry 0"),
        ("l.json", '{"a.png": [3]}', "must be a str"),
        ("l.json", "{}", "no sentence in it"),
    ],
)
def test_invalid_lists(bundle, pictures, tmp_path, name, content, message, capsys):
    (tmp_path / name).write_text(content)
    code = run_batch(bundle, pictures, tmp_path / name, tmp_path / "out")
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1


def test_options_that_exclude_each_other(bundle, pictures, tmp_path, capsys):
    (tmp_path / "l.json").write_text('{"a.png": ["dog"]}')
    base = ["--engine", str(bundle), "--sentences", str(tmp_path / "l.json")]
    assert main([*base, "--image", str(pictures / "a.png")]) == 2 and "needs a folder" in capsys.readouterr().err
    assert main([*base, "--image", str(pictures), "--text", "dog"]) == 2 and "remove --text" in capsys.readouterr().err
    missing = ["--engine", str(bundle), "--image", str(pictures), "--sentences", str(tmp_path / "none.csv")]
    assert main(missing) == 2 and "no such file" in capsys.readouterr().err


def test_one_image(bundle, pictures, tmp_path, capsys):
    image = ["--engine", str(bundle), "--image", str(pictures / "b.png")]
    code = main([*image, "--text", "the dog", "--text", "cat", "--out", str(tmp_path / "out"), "--json"])
    assert code == 0, capsys.readouterr().err
    assert np.asarray(Image.open(tmp_path / "out" / "masks" / "b.png")).shape == (50, 33)


@pytest.mark.parametrize(
    "name, content",
    [
        ("l.csv", "Picture, Sentence\na.png,dog\n./a.png,cat\n"),
        ("l.csv", 'sep=;\npicture;sentence\na.png;dog\na.png;"cat"\n'),
        ("l.json", '[{"picture": "a.png", "sentence": "dog"}, {"picture": "./a.png", "sentences": ["cat"]}]'),
    ],
)
def test_forms_of_a_list(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert {image: [t.text for t in texts] for image, texts in read_sentences(tmp_path / name).items()} == {
        "a.png": ["dog", "cat"]
    }


def test_read_sentences_keeps_the_order(tmp_path):
    (tmp_path / "l.csv").write_text("sentence,picture\nz,b\ny,a\nx,b\n")
    found = read_sentences(tmp_path / "l.csv")
    assert {k: [t.text for t in v] for k, v in found.items()} == {"b": ["z", "x"], "a": ["y"]}


# -- RefCOCO --------------------------------------------------------------------------------------------------------


@pytest.fixture
def refer(bundle, pictures, tmp_path):
    """Two objects: the target of one is exactly the mask of the bundle, that of the other its complement."""
    engine = runtime.load(bundle)
    found = {p: engine.image(pictures / p).refer([runtime.Text("the dog")]).masks[0] for p in ("a.png", "b.png")}
    targets = {1: found["a.png"], 2: ~found["b.png"]}

    def lengths(mask):
        code = coco.encode(np.asfortranarray(mask, np.uint8))
        return {"size": code["size"], "counts": code["counts"].decode()}

    data = tmp_path / "refcoco"
    data.mkdir()
    images = [
        {"id": i, "file_name": p, "height": m.shape[0], "width": m.shape[1]}
        for i, (p, m) in enumerate(found.items(), 1)
    ]
    annotations = [{"id": 10 + i, "segmentation": lengths(m)} for i, m in targets.items()]
    (data / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    refs = [{"image_id": i, "ann_id": 10 + i, "split": "val", "sentences": [{"sent": "the dog"}]} for i in (1, 2)]
    with (data / "refs(unc).p").open("wb") as file:
        pickle.dump(refs, file, protocol=0)
    return engine, data, targets, pictures


def test_refcoco_figures(refer, capsys):
    engine, data, targets, pictures = refer
    figures = refcoco.evaluate(engine, refcoco.load_references(data, "val"), pictures)
    assert figures["mIoU"] == 50 and figures["P@0.5"] == 50 and figures["P@0.9"] == 50 and figures["sentences"] == 2
    area = targets[1].sum()
    assert figures["oIoU"] == pytest.approx(100 * area / (area + targets[2].size))
    command = ["--engine", str(engine.bundle.folder), "--data", str(data), "--images", str(pictures)]
    assert refcoco.main([*command, "--at-input"]) == 0 and json.loads(capsys.readouterr().out)["sentences"] == 2
    assert refcoco.main([*command, "--split", "testA"]) == 2
    assert "no reference of split" in capsys.readouterr().err


def test_a_pickle_may_hold_plain_values_only(refer):
    _, data, _, _ = refer

    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    (data / "refs(unc).p").write_bytes(pickle.dumps([Harm()]))
    with pytest.raises(runtime.UserError, match="not a list of plain values"):
        next(refcoco.load_references(data, "val"))


def test_three_encodings_of_masks():
    square = np.zeros((10, 12), bool)
    square[2:6, 3:8] = True
    code = coco.encode(np.asfortranarray(square, np.uint8))
    runs, last, column = [], 0, square.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate(([0], column.astype(int))))).tolist()
    for edge in [*edges, column.size]:
        runs.append(edge - last)
        last = edge
    for form in (code, {"size": [10, 12], "counts": runs}, [[3, 2, 8, 2, 8, 6, 3, 6]]):
        assert (refcoco.decode(form, 10, 12) == square).all()


def test_long_sentences_are_truncated(bundle):
    engine = runtime.load(bundle)
    tokenizer = runtime.tokenizer.Tokenizer.of(engine.bundle.folder, engine.bundle.manifest)
    long = "the dog left of the cat left of the dog"
    assert refcoco.prompt(engine, tokenizer, long).tokens == tuple(tokenizer(long)[0][:8])
    engine.bundle.manifest.text["keep_end"] = True
    assert refcoco.prompt(engine, tokenizer, long).tokens == (*tokenizer(long)[0][:7], WORDS["dog"])
    assert refcoco.prompt(engine, tokenizer, "the dog").text == "the dog"
