"""Checks of prompts, and token ids of sentences."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from runtime import Box, BundleError, Concept, Mask, Points, PromptError, Text
from runtime.bundle.manifest import Manifest
from runtime.prompts.mask_values import masks_by_label
from runtime.tokenizer import Tokenizer, encode, encode_concept, verb_positions

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "the", "Ġdog", "Ġrun", "ning", "Ġleft", "Ġ狗"]


def manifest(**text):
    text = {"max_tokens": 8, "vocabulary": len(WORDS), "motion": True, **text}
    return Manifest(
        networks={"samwise": {"text": text}},
        variant="toy",
        precision="fp32",
        image_size=32,
        stages={},
        bounds={},
        tokenizer="tokenizer.json",
    )


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """Byte-level BPE as RoBERTa has it, with a few words; truncation and padding on, as in many published files."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, processors

    merges, vocabulary = [], {w: i for i, w in enumerate(WORDS[:4])}
    for word in WORDS[4:9]:
        parts = list(word)
        for part in parts:
            vocabulary.setdefault(part, len(vocabulary))
        while len(parts) > 1:
            if tuple(parts[:2]) not in merges:
                merges.append(tuple(parts[:2]))
            parts = [parts[0] + parts[1], *parts[2:]]
            vocabulary.setdefault(parts[0], len(vocabulary))
    library = Library(models.BPE(vocabulary, merges, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    library.enable_padding(length=12)
    library.enable_truncation(3)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file):
    return Tokenizer(tokenizer_file.parent)


def names(tokenizer_file, ids):
    words = {number: word for word, number in json.loads(tokenizer_file.read_text())["model"]["vocab"].items()}
    return [words[int(i)] for i in ids]


def test_sentence_becomes_special_tokens_and_words(tokenizer, tokenizer_file):
    ids = encode(Text("the dog running left"), manifest(vocabulary=100), tokenizer)
    assert ids.dtype == np.int64
    assert names(tokenizer_file, ids) == ["<s>", "the", "Ġdog", "Ġrun", "ning", "Ġleft", "</s>"]


def test_case_and_white_space_do_not_matter(tokenizer):
    m = manifest(vocabulary=100)
    a = encode(Text("  The DOG\t running\n left "), m, tokenizer)
    assert (a == encode(Text("the dog running left"), m, tokenizer)).all()


def test_case_matters_if_the_bundle_says_so(tokenizer):
    m = manifest(vocabulary=100, lowercase=False)
    assert len(encode(Text("THE"), m, tokenizer)) != len(encode(Text("the"), m, tokenizer))


def test_special_tokens_without_post_processor(tokenizer, tokenizer_file, tmp_path):
    data = json.loads(tokenizer_file.read_text())
    data["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    bare, m = Tokenizer(tmp_path), manifest(vocabulary=100)
    assert bare("the dog")[0] == tokenizer("the dog")[0]
    assert verb_positions(Text("the dog", verbs=["dog"]), m, bare).tolist() == [2]


def test_token_ids_are_not_changed():
    assert encode(Text(tokens=np.array([0, 4, 5, 2])), manifest(), None).tolist() == [0, 4, 5, 2]


def test_the_limit_counts_the_special_tokens(tokenizer):
    m = manifest(vocabulary=100, max_tokens=6)
    assert len(encode(Text("the dog running"), m, tokenizer)) == 6
    with pytest.raises(PromptError, match="7 tokens, more than the 6"):
        encode(Text("the dog running left"), m, tokenizer)


def test_missing_tokenizer_error_suggests_token_ids():
    with pytest.raises(PromptError, match="--tokenizer .*token ids"):
        encode(Text("the dog"), manifest(), None)


@pytest.mark.parametrize("tokens", [[0, 10, 2], [0, -1, 2]])
def test_ids_outside_the_vocabulary(tokens):
    with pytest.raises(PromptError, match="position 1 is outside the vocabulary 0..9"):
        encode(Text(tokens=tokens), manifest(), None)


def test_a_bundle_without_text():
    m = dataclasses.replace(manifest(), networks={"samwise": {}})
    with pytest.raises(PromptError, match="takes no text"):
        encode(Text("the dog"), m, None)
    with pytest.raises(PromptError, match="not a sentence"):
        encode(Box([0, 0, 1, 1]), manifest(), None)


@pytest.mark.parametrize(
    "content, error", [(None, "not there"), ("{}", "not a working tokenizer"), ("", "not a working tokenizer")]
)
def test_a_damaged_tokenizer(tmp_path, content, error):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match=error):
        Tokenizer.of(tmp_path, manifest())


@pytest.mark.parametrize(
    "text, error",
    [
        ("", "empty"),
        ("   \t", "blank"),
        ("\u200b", "blank"),
        (7, "must be a str, not int"),
        (b"dog", "must be a str, not bytes"),
        ("a\0b", "control character 0x00"),
        ("dog \udcff", "not text"),
        ("x" * 10_001, "10001 characters"),
    ],
)
def test_invalid_sentences(text, error):
    with pytest.raises(PromptError, match=error):
        Text(text)


@pytest.mark.parametrize(
    "kwargs, error",
    [
        ({}, "exactly one"),
        ({"text": "a", "tokens": [1]}, "exactly one"),
        ({"tokens": []}, "empty"),
        ({"tokens": [0.5]}, "integers"),
        ({"tokens": [[1]]}, "integers"),
        ({"tokens": "abc"}, "integers"),
        ({"tokens": [[1], [1, 2]]}, "integers"),
        ({"text": "a", "verbs": "run"}, "list"),
        ({"tokens": [1], "verbs": ["run"]}, "positions"),
    ],
)
def test_invalid_texts(kwargs, error):
    with pytest.raises(PromptError, match=error):
        Text(**kwargs)


def test_text_is_immutable_and_hashable():
    assert Text(tokens=[0, 1], verbs=[1]) == Text(tokens=(0, 1), verbs=np.array([1]))
    assert len({Text("a"), Text("a"), Text("b")}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Text("a").text = "b"


def test_verbs_by_position_and_by_word(tokenizer):
    m = manifest(vocabulary=100)
    assert verb_positions(Text(tokens=[0, 4, 5, 2], verbs=[2, 1, 1]), m, None).tolist() == [1, 2]
    # a word of two tokens has two positions, as the reference marks them
    assert verb_positions(Text("the dog running left", verbs=["Running"]), m, tokenizer).tolist() == [3, 4]
    assert verb_positions(Text("the dog"), m, tokenizer).size == 0


@pytest.mark.parametrize(
    "prompt, error",
    [
        (Text(tokens=[0, 4, 2], verbs=[3]), "outside the 3 tokens"),
        (Text(tokens=[0, 4, 2], verbs=[-1]), "outside"),
        (Text("the dog", verbs=["running"]), "not a word"),
    ],
)
def test_verbs_missing_from_the_text(tokenizer, prompt, error):
    with pytest.raises(PromptError, match=error):
        verb_positions(prompt, manifest(vocabulary=100), tokenizer)


def test_verbs_need_a_motion_prompt():
    with pytest.raises(PromptError, match="no motion prompt"):
        verb_positions(Text(tokens=[0, 4, 2], verbs=[1]), manifest(motion=False), None)


def test_points_and_boxes_scale():
    assert Points([[0.5, 0.25]], [1], normalized=True).scaled(100, 200).tolist() == [[100, 25]]
    assert Box([1, 2, 3, 4]).scaled(10, 10).tolist() == [1, 2, 3, 4]
    assert Mask(np.eye(3)).checked(3, 3).sum() == 3


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: Points([], []), "must be"),
        (lambda: Points([[1, 2]], [2]), "labels"),
        (lambda: Points([[1, 2]], [1, 0]), "labels"),
        (lambda: Points([[1, float("nan")]], [1]), "finite"),
        (lambda: Points([[2, 0]], [1], normalized=True), "0..1"),
        (lambda: Points([[5, 50]], [1]).scaled(10, 10), r"\(5, 50\) lies outside"),
        (lambda: Box([3, 0, 1, 4]), "left must be less"),
        (lambda: Box([1, 2, 3]), "4 numbers"),
        (lambda: Points([[1, 2]], [0.5]), r"labels must be .* not \[0.5\]"),
        (lambda: Points([[1, 2]], ["yes"]), "labels must be numbers"),
        (lambda: Points([[1, 2]], [float("nan")]), r"finite numbers, not \[nan\]"),
        (lambda: Points([[float("inf"), 2]], [1]), r"finite numbers, not \[\[inf, 2.0\]\]"),
        (lambda: Points([[-3, 2]], [1]).scaled(10, 10), r"\(-3, 2\) lies outside"),
        (lambda: Points([[1j, 2]], [1]), "points must be numbers"),
        (lambda: Points([[[1, 2]], [[3, 4]]], [1, 1]), r"\(K,2\)"),
        (lambda: Points([[-0.5, 0]], [1], normalized=True), r"0..1, not \[\[-0.5, 0.0\]\]"),
        (lambda: Box([350, 150, 60, 30]), r"\[350.0, 150.0, 60.0, 30.0\].*not a width and height"),
        (lambda: Box([3, 4, 3, 9]), "left must be less"),
        (lambda: Box([float("nan"), 0, 1, 1]), r"not \[nan, 0.0, 1.0, 1.0\]"),
        (lambda: Box([-4, 0, 5, 5]).scaled(10, 10), r"\(-4, 0\) lies outside"),
        (lambda: Box([[0, 0, 1, 1], [1, 1, 2, 2]]), r"4 numbers .* not \(2, 4\)"),
        (lambda: Box("abcd"), "numbers"),
        (lambda: Mask(np.zeros((4, 4))), "empty"),
        (lambda: Mask(np.ones((4, 4, 3))), "(H,W)"),
        (lambda: Mask(np.ones((4, 4))).checked(8, 6), "4x4, the video 6x8"),
    ],
)
def test_invalid_geometry(make, error):
    with pytest.raises(PromptError, match=error.replace("(H,W)", r"\(H,W\)")):
        make()


class Tensor:
    """An array of another library, which converts itself, or says why it does not."""

    def __init__(self, values, error=None):
        self.values, self.error = np.asarray(values), error

    def __array__(self, dtype=None, copy=None):
        if self.error is not None:
            raise self.error
        return self.values.astype(dtype) if dtype is not None else self.values


@pytest.mark.parametrize(
    "points, labels",
    [
        ([[7, 5]], [1]),
        ((7, 5), 1),
        ([7.0, 5.0], [1]),
        ([[7, 5]], 1.0),
        ([[7, 5]], [True]),
        (np.float32([[7, 5]]), np.float32([1])),
        (np.array([[[7, 5]]]), np.array([[1]])),
        (np.array([[7, 5]], np.uint8), np.array([[True]])),
        ([np.array([7, 5])], np.int32(1)),
        (Tensor([[7, 5]]), Tensor([1])),
        ([(np.float64(7), 5)], (np.True_,)),
    ],
)
def test_forms_of_a_point(points, labels):
    assert Points(points, labels) == Points(((7.0, 5.0),), (1,))


@pytest.mark.parametrize(
    "box",
    [
        (1, 2, 3, 4),
        [[1, 2, 3, 4]],
        [[1, 2], [3, 4]],
        np.float32([[1, 2, 3, 4]]),
        np.array([[[1, 2, 3, 4]]]),
        [np.int64(1), 2.0, 3, 4],
        Tensor([1, 2, 3, 4]),
    ],
)
def test_forms_of_a_box(box):
    assert Box(box) == Box((1.0, 2.0, 3.0, 4.0))


def test_array_of_another_library_that_is_not_on_the_host():
    gpu = Tensor([0], TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first"))
    for make in (lambda: Points(gpu, [1]), lambda: Points([[1, 1]], gpu), lambda: Box(gpu), lambda: Mask(gpu)):
        with pytest.raises(PromptError, match="cpu"):
            make()
    grad = Tensor([0], RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy()"))
    with pytest.raises(PromptError, match="detach"):
        Mask(grad)


INSIDE = np.hypot(*(np.mgrid[:40, :60] - np.array([20, 26]).reshape(2, 1, 1))) < 12.3
"""A disc."""

DISTANCE = 12.3 - np.hypot(*(np.mgrid[:40, :60] - np.array([20, 26]).reshape(2, 1, 1)))
"""Positive inside it."""

COVERAGE = (DISTANCE + 0.5).clip(0, 1)
"""Share of each pixel inside it."""


@pytest.mark.parametrize(
    "array",
    [
        INSIDE,
        INSIDE.astype(np.uint8),
        INSIDE.astype(np.int64),
        INSIDE.astype(np.uint8) * 255,
        INSIDE.astype(np.uint8) * 200,
        INSIDE.astype(np.uint8) * 3,
        INSIDE.astype(np.uint16) * 65535,
        INSIDE.astype(np.int32) * 4095,
        INSIDE.astype(np.float32),
        INSIDE.astype(np.float64) * 255,
        INSIDE[..., None],
        INSIDE[None],
        INSIDE[None, :, :, None],
        INSIDE.tolist(),
        Tensor(INSIDE),
        1 / (1 + np.exp(-2 * DISTANCE)),
        (1 / (1 + np.exp(-DISTANCE))).astype(np.float16),
        DISTANCE.astype(np.float32),
        np.where(INSIDE, 10.0, -10.0),
        np.where(INSIDE, 0.7, 0.2),
        np.where(INSIDE, 1.0000001, -1e-7),
        np.round(COVERAGE * 255).astype(np.uint8),
        np.round(COVERAGE * 3).astype(np.uint8) * 85,
        np.round(COVERAGE * 65535).astype(np.uint16),
        np.round(COVERAGE * 255),
        np.round(255 / (1 + np.exp(-DISTANCE / 3))).astype(np.uint8),
        np.round(255 / (1 + np.exp(-DISTANCE / 40))).astype(np.uint8),
    ],
)
def test_kinds_of_masks(array):
    mask = Mask(array).checked(40, 60)
    assert mask.dtype == bool and (mask == INSIDE).mean() > 0.98 and mask[20, 26] and not mask[0, 0]


def test_soft_edge_of_a_box_is_no_object():
    box = np.zeros((20, 20), np.uint8)
    box[4:12, 4:12], box[4:12, 12] = 255, 64
    assert masks_by_label(box).keys() == {0} and masks_by_label(box)[0].sum() == 64


NUMBERED = np.zeros((20, 30), np.uint8)
NUMBERED[2:9, 2:9], NUMBERED[2:9, 9:16], NUMBERED[12:18, 20:26] = 1, 2, 5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float32])
@pytest.mark.parametrize("void", [False, True])
def test_mask_of_numbered_objects(dtype, void):
    array = NUMBERED.astype(dtype)
    if void:
        array[2:9, 16] = 255
    masks = masks_by_label(array)
    assert {label: int(mask.sum()) for label, mask in masks.items()} == {1: 49, 2: 49, 5: 36}
    with pytest.raises(PromptError, match=r"several objects, \[1, 2, 5\]; .*Mask\(array == 1\)"):
        Mask(array)
    assert Mask(array == 2).array.sum() == 49


@pytest.mark.parametrize("count, dtype", [(150, np.uint8), (254, np.uint8), (150, np.uint16), (3000, np.uint16)])
def test_mask_of_many_numbered_objects(count, dtype):
    """Cells of a microscope: areas of 2x2 pixels with background between them, numbered from 1."""
    side = int(np.ceil(count**0.5))
    numbers = np.zeros(side * side, dtype)
    numbers[:count] = np.arange(1, count + 1)
    array = np.zeros((side, 3, side, 3), dtype)
    array[:, :2, :, :2] = numbers.reshape(side, 1, side, 1)
    masks = masks_by_label(array.reshape(3 * side, 3 * side))
    assert list(masks) == list(range(1, count + 1)) and all(mask.sum() == 4 for mask in masks.values())


@pytest.mark.parametrize(
    "values, dtype", [((240, 250), np.uint8), ((230, 240, 255), np.uint8), ((60001, 60009), np.uint16)]
)
def test_areas_of_high_values_are_not_merged(values, dtype):
    array = np.zeros((20, 30), dtype)
    for i, value in enumerate(values):
        array[2:9, 2 + 9 * i : 9 + 9 * i] = value
    with pytest.raises(PromptError, match="areas of the values .*; number the objects 1, 2, 3"):
        Mask(array)


def test_void_label_beside_one_object():
    array = np.where(NUMBERED == 1, 1, 0)
    array[2:9, 9] = 255
    with pytest.warns(UserWarning, match="7 pixels of the void label 255 beside object 1"):
        assert Mask(array).array.sum() == 49


@pytest.mark.parametrize(
    "array, error",
    [
        (np.where(INSIDE, np.nan, 0.0), "not finite"),
        (np.where(INSIDE, np.inf, 0.0), "not finite: 0 to inf"),
        (np.where(INSIDE, 1, -1), "integers from -1 to 1"),
        (np.where(INSIDE, 0.4, 0.1), "empty: its probabilities are 0.4 at most"),
        (np.where(INSIDE, -0.5, -3.0), "empty"),
        (np.where(INSIDE, 1.1, -0.1), "-0.1 to 1.1: neither probabilities"),
        (np.where(INSIDE, 7.5, 0.0), "neither probabilities"),
        (np.where(INSIDE, 70000, 0), "integers from 0 to 70000"),
        (NUMBERED * 51, r"areas of the grey values \[51, 102\]; number the objects 1, 2, 3"),
        (np.where(INSIDE, 255, 128).astype(np.uint8) * (DISTANCE > -5), "areas of the grey values"),
        (np.dstack([INSIDE] * 4), r"\(40, 60, 4\)"),
        (INSIDE + 0j, "complex"),
        (np.full((4, 4), "a"), "array of numbers"),
        (None, "array of numbers"),
        ([[1, 2], [3]], "one"),
    ],
)
def test_masks_without_a_clear_meaning(array, error):
    with pytest.raises(PromptError, match=error):
        Mask(array)


def test_mask_of_a_turned_video():
    with pytest.raises(PromptError, match="60x40, the video 40x60 .turned by 90 degrees."):
        Mask(INSIDE).checked(60, 40)


MASKED = np.ma.masked_array([1, 2, 3, 4], [0, 0, 0, 1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Points(np.ma.masked_array([[1, 2], [3, 4]], [[0, 0], [1, 1]]), [1, 1]),
        lambda: Points([(1, 2)] * 4, np.ma.masked_array([1, 1, 1, 0], [0, 0, 0, 1])),
        lambda: Box(MASKED),
        lambda: Mask(np.ma.masked_array(np.eye(4), np.eye(4))),
        lambda: Text(tokens=MASKED),
        lambda: Text(tokens=[1, 2], verbs=np.ma.masked_array([0, 1], [0, 1])),
        lambda: Concept("a bus", boxes=MASKED[None]),
        lambda: Concept("a bus", boxes=[[1, 2, 3, 4]], labels=np.ma.masked_array([1], [1])),
    ],
)
def test_masked_arrays_are_refused(make):
    with pytest.raises(PromptError, match="not a masked array; give array.filled"):
        make()
    assert Box(np.ma.masked_array([1, 2, 3, 4])).xyxy == (1, 2, 3, 4)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "float32"])
@pytest.mark.parametrize("void", [255, 65535])
def test_the_void_label_beside_an_object_is_told(dtype, void):
    if void > 255 and dtype == "uint8":
        return
    labels = np.zeros((8, 8), dtype)
    labels[:4], labels[4] = 3, void
    with pytest.warns(UserWarning, match=f"8 pixels of the void label {void} beside object 3; they are left out"):
        assert Mask(labels).array.sum() == 32


def test_masks_without_a_void_label_warn_of_nothing(recwarn):
    for array in (np.eye(4) * 255, np.eye(4) > 0, np.eye(4), np.eye(4) * 3):
        assert Mask(array).array.sum() == 4
    assert not recwarn


@pytest.mark.parametrize(
    "words, cleaned",
    [
        ("Yellow  BUS", "yellow bus"),
        ("bus &amp; car", "bus & car"),
        ("<i>bus</i> &amp;amp;amp; car", "<i>bus</i> &amp; car"),
        ("&lt;sign&gt;", "<sign>"),
        ("caf&eacute;&nbsp;table", "café table"),
        ("cafÃ© table", "café table"),
        ("childâ€™s toy", "child's toy"),
        ("a \u201cred\u201d car", 'a "red" car'),
        ("ｙｅｌｌｏｗ　ﬁre truck", "yellow fire truck"),
        ("cafe\u0301", "café"),
        ("\ufeff\t a\u2003bus\u2028stop\n", "a bus stop"),
        ("狗 на улице", "狗 на улице"),
    ],
)
def test_concepts_are_cleaned_as_by_clip(words, cleaned):
    seen = []

    def tokenizer(text):
        seen.append(text)
        return [4], [(0, 0)]

    ids, cut = encode_concept(Text(words), manifest(padding=0), tokenizer)
    assert seen == [cleaned] and ids.tolist() == [4] + [0] * 7 and not cut


@pytest.mark.parametrize("words", ["&nbsp;", "&#32;&#x3000;", "&amp;nbsp;", "\ufeff&#10;"])
def test_a_concept_without_words_after_cleaning(words):
    with pytest.raises(PromptError, match="empty|blank"):
        encode_concept(Text(words), manifest(padding=0), lambda text: ([], []))


def test_concepts_need_ftfy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(PromptError, match="pip install ftfy"):
        encode_concept(Text("a bus"), manifest(padding=0), lambda text: ([4], []))
