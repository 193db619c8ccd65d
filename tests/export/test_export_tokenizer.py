"""Conversion of tokenizers of every accepted form to one file."""

import gzip
import json

import pytest

pytest.importorskip("torch")
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from export import tokenizer as tok
from runtime.errors import UserError

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SENTENCES = ["a person riding a horse on the left", "the dog, running!", "Ünïcode café — 犬", "two  spaces"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """vocab.json and merges.txt of a small byte-level BPE, as Hugging Face's slow tokenizers save them."""
    folder = tmp_path_factory.mktemp("tokenizer")
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train_from_iterator(
        SENTENCES * 3,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    t.model.save(str(folder))
    return folder


def reference(folder, sentence):
    """The same through transformers, which knows how RoBERTa wraps a sentence."""
    from transformers import RobertaTokenizerFast

    return RobertaTokenizerFast.from_pretrained(folder)(sentence)["input_ids"]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_vocabulary_and_merges_give_robertas_ids(pair, sentence):
    pytest.importorskip("transformers")
    assert tok.load(pair).encode(sentence).ids == reference(pair, sentence)


def test_all_forms_agree(pair, tmp_path):
    want = tok.load(pair).encode(SENTENCES[0]).ids
    assert tok.write(pair, tmp_path) == "tokenizer.json"
    for source in (pair / "vocab.json", pair / "merges.txt", tmp_path, tmp_path / "tokenizer.json"):
        assert tok.load(source).encode(SENTENCES[0]).ids == want
    assert want[0] == 0 and want[-1] == 2


def test_written_file_neither_pads_nor_truncates(pair, tmp_path):
    t = tok.load(pair)
    t.enable_truncation(4)
    t.enable_padding(length=64)
    t.save(str(tmp_path / "own.json"))
    tok.write(tmp_path / "own.json", tmp_path)
    assert len(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(SENTENCES[0]).ids) not in (4, 64)


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "neither"),
        ({"tokenizer.json": "{"}, "not a working tokenizer file"),
        ({"vocab.json": "[]", "merges.txt": ""}, "not a vocabulary"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "has no '<s>'"),
        ({"vocab.json": '{"<s>": 0, "</s>": 2, "a": 1}', "merges.txt": "a b c\n"}, "merge 1"),
        ({"vocab.json": '{"<s>": 0, "</s>": 2, "a": 1}', "merges.txt": "#version: 0.2\na b\n"}, "does not fit"),
    ],
)
def test_bad_sources_name_the_file(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        tok.load(tmp_path)


@pytest.mark.parametrize("names", [["tokenizer.json"], ["vocab.json", "merges.txt"], ["merges.txt"], ["vocab.txt"]])
def test_placeholders_are_named(pair, tmp_path, names):
    for name in ("vocab.json", "merges.txt") if "merges.txt" in names else ():
        (tmp_path / name).write_bytes((pair / name).read_bytes())
    for name in names:
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1559\n")
    with pytest.raises(UserError, match=f"{names[0]}: a Git LFS pointer"):
        tok.load(tmp_path)


def test_missing_source(tmp_path):
    with pytest.raises(UserError, match="no such tokenizer"):
        tok.load(tmp_path / "nowhere")


def test_larger_than_the_checkpoints_vocabulary(pair):
    with pytest.raises(UserError, match="the checkpoint only 100"):
        tok.load(pair, vocabulary=100)


def test_bert_from_a_word_list(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "##s", "cafe", ",", "left", "a", "on"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    for source in (tmp_path, tmp_path / "vocab.txt"):
        ids = tok.load(source, len(words)).encode("The dogs, Café").ids
        assert [words[i] for i in ids] == ["[CLS]", "the", "dog", "##s", ",", "cafe", "[SEP]"]
    (tmp_path / "vocab.txt").write_text("the\ndog\n")
    with pytest.raises(UserError, match="has no '\\[CLS\\]'"):
        tok.load(tmp_path)


def test_clip_tokenizer_is_known(tmp_path):
    from tokenizers import processors

    vocab = {"<|startoftext|>": 1, "<|endoftext|>": 2, "<unk>": 0, "a": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.post_processor = processors.RobertaProcessing(("<|endoftext|>", 2), ("<|startoftext|>", 1))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tok.load(tmp_path, 4).encode("a").ids == [1, 3, 2]


WORDS = ["a yellow school bus", "DOGS and cats, running!", "it's the player's 2nd 100m", *SENTENCES[2:]]
MORE = ["", "!?...", "we'll don't 'tis o'clock", "42 x7y", "<|endoftext|> bus", "tab\tand\nline", "🚌 bus"]


def bytes_to_unicode():
    """OpenAI's order of the byte-level alphabet: printable bytes first."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {b: chr(b) for b in own}
    return table | {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in table)}


@pytest.fixture(scope="module")
def merges():
    """Merges that join every word of `WORDS` from its left end."""
    table, pairs = bytes_to_unicode(), {}
    for word in " ".join(WORDS).lower().split():
        *first, last = (table[byte] for byte in word.encode())
        tokens = [*first, last + "</w>"]
        pairs |= {("".join(tokens[:n]), tokens[n]): None for n in range(1, len(tokens))}
    return list(pairs)


def clip_vocabulary(merges):
    """As OpenAI's tokenizer builds it."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(v + "</w>" for v in letters), *("".join(m) for m in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


@pytest.fixture(scope="module")
def clip(merges, tmp_path_factory):
    """OpenAI's file, compressed and plain, and the pair of files of Hugging Face."""
    folder = tmp_path_factory.mktemp("clip")
    text = '"bpe_simple_vocab_16e6.txt#version: 0.2\n' + "\n".join(" ".join(pair) for pair in merges) + "\n"
    (folder / "gz").mkdir()
    (folder / "plain").mkdir()
    (folder / "pair").mkdir()
    (folder / "gz" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "plain" / "bpe_simple_vocab_16e6.txt").write_text(text, encoding="utf-8")
    (folder / "pair" / "vocab.json").write_text(json.dumps(clip_vocabulary(merges)), encoding="utf-8")
    (folder / "pair" / "merges.txt").write_text("#version: 0.2\n" + text.split("\n", 1)[1], encoding="utf-8")
    return folder


SOURCES = [
    "gz",
    "gz/bpe_simple_vocab_16e6.txt.gz",
    "plain",
    "plain/bpe_simple_vocab_16e6.txt",
    "pair",
    "pair/vocab.json",
]


@pytest.mark.parametrize("source", SOURCES)
def test_clip_gives_the_ids_of_transformers(merges, clip, source, tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5.0")  # takes tables, not only files, since then
    vocab = clip_vocabulary(merges)
    theirs = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    tok.write(clip / source, tmp_path, len(vocab))
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ours.get_vocab() == vocab
    for text in WORDS + MORE:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
    ids = ours.encode("a yellow school BUS").ids
    assert ids[0] == vocab["<|startoftext|>"] and ids[-1] == vocab["<|endoftext|>"]
    assert [key for i in ids[1:-1] for key, value in vocab.items() if value == i] == [
        *("a</w>", "yellow</w>", "school</w>", "bus</w>")
    ]


def test_clip_takes_the_first_merges_of_a_longer_list(merges, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(tok, "CLIP_MERGE_COUNT", 3)
    assert tok.load(clip / "gz").get_vocab_size() == 512 + 3 + 2


@pytest.mark.parametrize(
    "content, message",
    [
        (b"text", "not a list of merges"),
        (gzip.compress(b"#version: 0.2\na b\n", mtime=0)[:-9], "not a list of merges"),
        (gzip.compress(b"\xff\xfe", mtime=0), "not a list of merges"),
        (gzip.compress(b"#version: 0.2\na b c\n", mtime=0), "merge 1 is not two tokens"),
        (gzip.compress(b"#version: 0.2\nab cd\n", mtime=0), "does not fit"),
    ],
)
def test_damaged_list_of_clip(tmp_path, content, message):
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(content)
    with pytest.raises(UserError, match=message):
        tok.load(tmp_path)
