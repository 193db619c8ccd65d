"""Checks of prompts, and token ids of sentences."""

import dataclasses
import json

import numpy as np
import pytest

from runtime import Box, BundleError, Mask, Points, PromptError, Text
from runtime.bundle.manifest import Manifest
from runtime.tokenizer import Tokenizer, encode, verb_positions

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
        (lambda: Box("abcd"), "numbers"),
        (lambda: Mask(np.zeros((4, 4))), "empty"),
        (lambda: Mask(np.ones((4, 4, 3))), "(H,W)"),
        (lambda: Mask(np.ones((4, 4))).checked(8, 6), "4x4, the video 6x8"),
    ],
)
def test_invalid_geometry(make, error):
    with pytest.raises(PromptError, match=error.replace("(H,W)", r"\(H,W\)")):
        make()
