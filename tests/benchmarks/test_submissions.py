"""Archives for evaluation servers, read by a reader written from the public descriptions of the three data sets."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnxruntime")

import runtime
from benchmarks import accuracy, submissions

TEXTS = ["the crab", "the house", "a fish", "the red thing"]
SIZE = 40, 60


def data_set(root, central, videos=(("b1", 3), ("a2", 2)), expressions=4):
    """A split without masks. `central`: expressions lie beside the split, as in Ref-YouTube-VOS and Ref-DAVIS."""
    meta, rng = {}, np.random.default_rng(0)
    for name, count in videos:
        frames = [f"{5 * t:05d}" for t in range(count)]
        folder = root / "valid" / "JPEGImages" / name
        folder.mkdir(parents=True)
        for frame in frames:
            Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(folder / f"{frame}.jpg")
        said = {str(k): {"exp": TEXTS[k % 4], "obj_id": str(k // 4 + 1)} for k in range(expressions)}
        meta[name] = {"frames": frames, "expressions": said}
    file = (
        root / "meta_expressions" / "valid" / "meta_expressions.json"
        if central
        else root / "valid" / "meta_expressions.json"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"videos": meta}))
    return meta


def image(archive, name):
    picture = Image.open(io.BytesIO(archive.read(name)))
    picture.load()
    return picture


@pytest.fixture(scope="module")
def engine():
    with runtime.load("engines/nano", threads=1) as loaded:
        yield loaded


def command(root, layout, out, *more):
    arguments = [
        "--engine",
        "engines/nano",
        "--threads",
        "1",
        "--data",
        root / "valid",
        "--layout",
        layout,
        "--submit",
        out,
    ]
    return accuracy.main([str(a) for a in (*arguments, *more)])


@pytest.mark.parametrize(("layout", "prefix", "central"), [("mevis", "", False), ("ytvos", "Annotations/", True)])
def test_one_binary_png_per_expression_and_frame(engine, tmp_path, layout, prefix, central):
    meta = data_set(tmp_path, central, expressions=2)
    if central:  # videos of the test split are not part of the server's valid set
        test = tmp_path / "meta_expressions" / "test" / "meta_expressions.json"
        test.parent.mkdir()
        test.write_text(json.dumps({"videos": {"b1": meta.pop("b1")}}))
    assert command(tmp_path, layout, tmp_path / "out.zip") == 0
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        wanted = {
            f"{prefix}{video}/{key}/{frame}.png"
            for video, entry in meta.items()
            for key in entry["expressions"]
            for frame in entry["frames"]
        }
        assert sorted(archive.namelist()) == sorted(wanted)
        for name in wanted:
            picture = image(archive, name)
            assert picture.mode == "L" and picture.size == SIZE[::-1] and set(np.unique(picture)) <= {0, 255}
        video, entry = list(meta.items())[-1]
        files = [tmp_path / "valid" / "JPEGImages" / video / f"{frame}.jpg" for frame in entry["frames"]]
        with engine.session([runtime.Text(TEXTS[0]), runtime.Text(TEXTS[1])]) as session:
            for file, result in zip(files, session.stream(files), strict=True):
                for key, mask in zip(("0", "1"), result.masks, strict=True):
                    assert np.array_equal(
                        np.asarray(image(archive, f"{prefix}{video}/{key}/{file.stem}.png")) > 0, mask
                    )
    assert not (tmp_path / "out.zip.parts").exists()


def test_davis_has_one_numbered_image_per_annotator(engine, tmp_path):
    data_set(tmp_path, central=True, videos=(("bear", 2),), expressions=8)
    assert command(tmp_path, "davis", tmp_path / "out.zip") == 0
    files = sorted((tmp_path / "valid" / "JPEGImages" / "bear").iterdir())
    with engine.session([runtime.Text(TEXTS[k % 4]) for k in range(8)]) as session:
        masks = np.stack([result.masks for result in session.stream(files)])
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert sorted(archive.namelist()) == [f"anno_{a}/bear/0000{t}.png" for a in range(4) for t in range(2)]
        for annotator in range(4):
            for t in range(2):
                picture = image(archive, f"anno_{annotator}/bear/0000{t}.png")
                numbers = np.asarray(picture)
                assert picture.mode == "P" and set(np.unique(numbers)) <= {0, 1, 2}
                assert picture.getpalette()[3:9] == [128, 0, 0, 0, 128, 0]
                first, second = masks[t, annotator], masks[t, 4 + annotator]
                assert np.array_equal(numbers > 0, first | second)
                assert (numbers[first & ~second] == 1).all() and (numbers[second & ~first] == 2).all()


def test_a_stopped_run_goes_on(engine, tmp_path, monkeypatch):
    data_set(tmp_path, central=False, expressions=1)
    real, seen = submissions._segment, []

    def stop_at_the_second(*args):
        if seen:
            raise KeyboardInterrupt
        seen.append(args[1].name)
        real(*args)

    monkeypatch.setattr(submissions, "_segment", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        submissions.submit(engine, tmp_path / "valid", "mevis", tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()
    monkeypatch.setattr(submissions, "_segment", lambda *args: (seen.append(args[1].name), real(*args)))
    assert submissions.submit(engine, tmp_path / "valid", "mevis", tmp_path / "out.zip") == 2
    assert seen == ["b1", "a2"]


def test_what_is_wrong_is_one_line(engine, tmp_path, capsys):
    meta = data_set(tmp_path, central=False, expressions=1)
    out = tmp_path / "out.zip"
    out.write_bytes(b"")
    assert command(tmp_path, "mevis", out) == 2 and "exists; remove it" in capsys.readouterr().err
    out.unlink()
    (tmp_path / "out.zip.parts").mkdir()
    (tmp_path / "out.zip.parts" / "settings.json").write_text("{}")
    assert command(tmp_path, "mevis", out) == 2 and "another bundle or data set" in capsys.readouterr().err
    (tmp_path / "valid" / "JPEGImages" / "a2" / f"{meta['a2']['frames'][0]}.jpg").unlink()
    assert command(tmp_path, "mevis", out) == 2 and "lacks the image of frame 00000, 1 of 2" in capsys.readouterr().err
    assert accuracy.main(["--engine", "engines/nano", "--submit", str(out)]) == 2
    assert "--submit needs --data" in capsys.readouterr().err
