"""Sentences on one picture: calls of stages, batches and padding, masks at source size, bad input."""

import numpy as np
import pytest
from PIL import Image

import runtime
from helpers import toy_refersam
from helpers import toy_samwise as toy
from runtime import PromptError, Text, UserError, VideoError
from runtime.imaging.upsample import CornerAlignedUpsampler, corner_matrix


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return runtime.load(toy_refersam.build(tmp_path_factory.mktemp("bundles") / "toy_refersam"))


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return np.asarray(Image.fromarray(rng.integers(0, 256, (8, 6, 3), np.uint8)).resize((50, 37)))


def logits_of(frame, tokens):
    """The toy's arithmetic in plain numpy."""
    picture = np.asarray(Image.fromarray(frame).resize((32, 32), Image.BILINEAR)).astype(np.float64) / 255
    pixels = (picture - 0.5) / 0.25
    red = pixels[..., 0].reshape(8, 4, 8, 4).mean((1, 3))
    return red - 0.01 * np.mean(tokens)


def calls(engine):
    return {name: count for name, (count, _) in engine.timings.items()}


def test_result(engine, frame):
    tokens = [[5, 80, 20], [90], [3, 4, 5, 6, 7]]
    result = engine.image(frame).refer([Text(tokens=t) for t in tokens], logits=True)
    want = np.stack([logits_of(frame, t) for t in tokens])
    np.testing.assert_allclose(result.low_res_logits, want, atol=1e-5)
    np.testing.assert_allclose(result.coarse_logits, want / 2, atol=1e-5)
    np.testing.assert_allclose(result.scores, [0.01 * np.mean(t) for t in tokens], atol=1e-6)
    assert result.masks.shape == (3, 37, 50) and result.masks.dtype == bool and result.object_ids == (1, 2, 3)
    assert result.boxes.shape == (3, 4)
    plain = engine.image(frame).refer([Text(tokens=tokens[0])])
    assert plain.low_res_logits is None and plain.coarse_logits is None
    assert (plain.masks[0] == result.masks[0]).all()


def test_a_picture_and_a_sentence_are_encoded_once(engine, frame):
    before = calls(engine)
    picture = engine.image(frame)
    assert calls(engine) == before
    picture.refer([Text(tokens=[11, 12]), Text(tokens=[13])])
    picture.refer([Text(tokens=[13]), Text(tokens=[14])])
    engine.image(frame).refer([Text(tokens=[11, 12])])
    ran = {name: count - before[name] for name, count in calls(engine).items()}
    assert ran == {"image": 2, "text": 3, "fuse": 3}


def test_more_sentences_than_a_batch(engine, frame):
    tokens = [[i + 1] * (i % 4 + 1) for i in range(7)]
    before = calls(engine)["fuse"]
    result = engine.image(frame).refer([Text(tokens=t) for t in tokens], logits=True)
    assert calls(engine)["fuse"] - before == 3
    np.testing.assert_allclose(result.low_res_logits, [logits_of(frame, t) for t in tokens], atol=1e-5)


def test_padding_changes_nothing(engine, frame):
    picture = engine.image(frame)
    alone = picture.refer([Text(tokens=[7, 9])], logits=True)
    padded = picture.refer([Text(tokens=[7, 9]), Text(tokens=[1] * 8)], logits=True)
    np.testing.assert_allclose(padded.low_res_logits[0], alone.low_res_logits[0], atol=1e-6)


def test_results_are_not_overwritten(engine, frame):
    picture = engine.image(frame)
    first = picture.refer([Text(tokens=[7])], logits=True)
    kept = first.low_res_logits.copy(), first.scores.copy()
    picture.refer([Text(tokens=[99])], logits=True)
    assert (first.low_res_logits == kept[0]).all() and (first.scores == kept[1]).all()


def test_oldest_sentence_is_evicted(engine, frame, monkeypatch):
    monkeypatch.setattr("runtime.models.refersam.MAX_CACHED_SENTENCES", 2)
    picture, encoded = engine.image(frame), []
    tokens = (21, 22, 21, 23, 21, 23, 22, 23, 21)
    for token in tokens:
        before = calls(engine)["text"]
        picture.refer([Text(tokens=[token])])
        encoded.append(calls(engine)["text"] - before)
    assert encoded == [1, 1, 0, 1, 0, 0, 1, 0, 1], "22 makes room for 23, then 21 for 22"


@pytest.mark.parametrize("low, size", [(8, (37, 50)), (8, (8, 8)), (8, (5, 3)), (112, (448, 448)), (4, (1, 9))])
def test_upsampling_aligns_corners(low, size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(low).normal(size=(2, low, low)).astype(np.float32)
    want = torch.nn.functional.interpolate(torch.from_numpy(x)[:, None], size, mode="bilinear", align_corners=True)
    want = want[:, 0].numpy()
    upsampler = CornerAlignedUpsampler(low, size)
    np.testing.assert_allclose(upsampler.logits(x), want, atol=2e-5)
    sure = np.abs(want) > 1e-4
    assert (upsampler.masks(x) == (want >= 0))[sure].all()
    assert upsampler.masks(np.zeros((1, low, low), np.float32)).all()


def test_corner_weights():
    matrix = corner_matrix(3, 5)
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]])


def test_a_path_is_opened(engine, frame, tmp_path):
    Image.fromarray(frame).save(tmp_path / "a.png")
    by_path = engine.image(tmp_path / "a.png").refer([Text(tokens=[5])])
    assert (by_path.masks == engine.image(frame).refer([Text(tokens=[5])]).masks).all()
    assert engine.image(str(tmp_path / "a.png")).size == (37, 50)


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([], "no prompt"),
        ("the dog", "list of runtime.Text"),
        (["the dog"], "list of"),
        (Text("a"), "list of"),
        (None, "list of"),
        ([Text("the dog")], "no tokenizer"),
        ([Text(tokens=[1] * 9)], "9 tokens, more than the 8"),
        ([Text(tokens=[1, 100])], "outside the vocabulary"),
    ],
)
def test_bad_prompts(engine, frame, prompts, message):
    with pytest.raises(PromptError, match=message):
        engine.image(frame).refer(prompts)


def test_bad_pictures(engine, tmp_path):
    with pytest.raises(VideoError):
        engine.image(np.zeros((4, 4), np.uint8))
    with pytest.raises(VideoError, match="missing.png"):
        engine.image(tmp_path / "missing.png")


def test_unsupported_tasks_are_refused(engine, frame):
    with pytest.raises(UserError, match="cannot segment an image by points"):
        engine.image(frame).predict(points=[[1, 1]], labels=[1])
    with pytest.raises(UserError, match="cannot follow sentences"):
        engine.session([Text(tokens=[1])])


def test_video_network_segments_one_picture(tmp_path, frame):
    engine = runtime.load(toy.build(tmp_path / "toy"))
    prompts = [Text(tokens=[0, 5, 2]), Text(tokens=[0, 50, 2])]
    result = engine.image(frame).refer(prompts, logits=True)
    with engine.session(prompts, logits=True) as session:
        want = [*session.push(frame), *session.flush()][0]
    assert (result.masks == want.masks).all() and (result.low_res_logits == want.low_res_logits).all()
    assert result.coarse_logits is None
    again = engine.image(frame).refer(prompts, logits=True)
    assert (again.low_res_logits == want.low_res_logits).all(), "nothing is remembered"
