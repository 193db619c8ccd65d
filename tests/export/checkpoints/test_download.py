"""Checkpoints and tokenizers by name: from a local server that answers as the Hugging Face Hub, and from addresses."""

import re
import shlex

import pytest

pytest.importorskip("torch")
huggingface_hub = pytest.importorskip("huggingface_hub")

from export import __main__ as command
from export.checkpoints import download
from export.networks import NETWORKS
from helpers.local_hub import LocalHub
from runtime.bundle.catalog import CATALOG, DEFAULTS, export_command
from runtime.errors import UserError

WEIGHTS = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def server():
    hub = LocalHub()
    yield hub
    hub.close()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    repositories = {
        "me/tiny": {"config.json": b"{}", "model.safetensors": WEIGHTS, "model.pt": b"old", "README.md": b"text"},
        "me/official": {"sam9.pt": WEIGHTS, "LICENSE": b"text"},
        "FacebookAI/roberta-base": {"vocab.json": b"{}", "merges.txt": b"#", "pytorch_model.bin": WEIGHTS},
    }
    server.reset(repositories, {"/files/sam.pt": WEIGHTS, "/page": b"<html>too many downloads</html>"})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    addresses = {"sam.pt": ("sam.pt", f"{server.address}/files/sam.pt"), "page": ("page.pt", f"{server.address}/page")}
    monkeypatch.setattr(download, "ADDRESSES", addresses)
    real = huggingface_hub.snapshot_download

    def snapshot_download(repository, **options):
        return real(repository, **options, endpoint=server.address, cache_dir=tmp_path / "hub", token=False)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return server


def downloaded(hub):
    return [path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]


@pytest.mark.parametrize(
    ("name", "file", "others"),
    [
        ("me/tiny", "model.safetensors", ["config.json"]),  # safetensors are preferred to other formats
        ("me/official", "", []),  # the only file of a repository without them
        ("me/official/sam9.pt", "", []),
        ("me/tiny/model.safetensors", "", []),
    ],
)
def test_a_repository_is_downloaded_once(hub, name, file, others):
    path = download.checkpoint(name, report=lambda line: None)
    assert (path / file if file else path).read_bytes() == WEIGHTS
    assert sorted(downloaded(hub)) == sorted([*others, file or path.name])
    hub.requests.clear()
    assert download.checkpoint(name, report=lambda line: None) == path and not downloaded(hub)
    hub.requests.clear()
    assert download.checkpoint(name, offline=True, report=lambda line: None) == path and not hub.requests


def test_a_path_that_exists_is_no_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "tiny").mkdir(parents=True)
    (tmp_path / "sam.pt").write_bytes(b"mine")
    assert download.checkpoint("me/tiny") == download.tokenizer("me/tiny")
    assert download.checkpoint("sam.pt").read_bytes() == b"mine" and not hub.requests


@pytest.mark.parametrize(("name", "path"), [("me/tiny", "model.safetensors"), ("me/official", "")])
def test_other_bytes_than_the_published_hash_are_refused_and_removed(hub, name, path):
    hub.altered = {"model.safetensors", "sam9.pt"}
    with pytest.raises(UserError, match=r"sha256 is not the published one; the file was removed"):
        download.checkpoint(name, report=lambda line: None)
    hub.altered = set()
    found = download.checkpoint(name, report=lambda line: None)
    assert (found / path).read_bytes() == WEIGHTS


def test_a_file_of_the_cache_that_was_altered_is_refused(hub):
    path = download.checkpoint("me/official", report=lambda line: None)
    path.resolve().write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"sam9\.pt: its sha256 is not the published one"):
        download.checkpoint("me/official", offline=True, report=lambda line: None)


def test_what_cannot_be_had_says_what_to_do(hub):
    def error(name, **options):
        with pytest.raises(UserError) as caught:
            download.checkpoint(name, report=lambda line: None, **options)
        return str(caught.value)

    assert re.search("no such file or folder here, and no such repository .*HF_TOKEN", error("me/none"))
    assert re.search(
        "downloads are off; download the files of .* by hand and give their folder", error("me/tiny", offline=True)
    )
    assert re.search("downloads are off; download .* by hand to .*checkpoints/sam.pt", error("sam.pt", offline=True))
    assert "run again to go on" in error("page") and "web page instead of a file" in error("page")
    assert "no such file; give the path" in error("weights/samwise.pth")
    hub.gated.add("me/tiny")
    assert re.search("accept the terms at .*, then run `hf auth login`", error("me/tiny"))
    hub.silent = True
    assert re.search("no answer from .* by hand|download failed .* by hand", error("me/official"))
    assert re.search("download failed .*; run again to go on, or download .* by hand to", error("sam.pt"))


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(hub, ranges, tmp_path):
    hub.cut_after, hub.ranges = 60000, ranges
    with pytest.raises(UserError, match="60,000 of 102,400 bytes"):
        download.checkpoint("sam.pt", report=lambda line: None)
    path = download.checkpoint("sam.pt", report=lambda line: None)
    assert path.read_bytes() == WEIGHTS and path == tmp_path / "torch" / "hub" / "checkpoints" / "sam.pt"
    assert hub.requests[-1] == ("GET", "/files/sam.pt", "bytes=60000-"), "a server without ranges sends all of it again"
    assert list(path.parent.iterdir()) == [path]
    hub.requests.clear()
    assert download.checkpoint("sam.pt") == path and not hub.requests


def test_a_partial_file_that_is_as_long_as_the_whole_is_downloaded_again(hub, tmp_path):
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "sam.pt.incomplete").write_bytes(b"?" * len(WEIGHTS))
    assert download.checkpoint("sam.pt", report=lambda line: None).read_bytes() == WEIGHTS


def test_a_tokenizer_is_downloaded_without_weights(hub):
    folder = download.tokenizer("roberta-base")
    assert sorted(file.name for file in folder.iterdir()) == ["merges.txt", "vocab.json"]
    assert download.tokenizer("no/such/folder/at all").name == "at all", "the tokenizer's own error names what it takes"


def test_a_checkpoint_by_name_has_a_tokenizer(hub, tmp_path):
    named = download.checkpoint("sam.pt", report=lambda line: None)
    assert download.default_tokenizer("samwise", "sam.pt", named) == "roberta-base"
    assert download.default_tokenizer("sam2", "sam.pt", named) is None
    assert download.default_tokenizer("samwise", str(named), named) is None, "a path downloads nothing"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    assert download.default_tokenizer("sam3", "me/sam3", folder) == str(folder)


def test_the_command_says_what_it_cannot_find(hub, tmp_path, capsys):
    assert command.main(["sam2", "--checkpoint", "me/tiny", "--offline", "--out", str(tmp_path)]) == 2
    assert "error: me/tiny: not in the cache, and downloads are off" in capsys.readouterr().err


@pytest.mark.parametrize("model", [*CATALOG, *DEFAULTS])
def test_the_command_that_a_missing_bundle_asks_for_is_understood(model, tmp_path):
    words = shlex.split(export_command(model, tmp_path))
    assert words[:3] == ["python", "-m", "export"]
    options = command.parser().parse_args(words[3:])
    assert options.network in NETWORKS and options.name == DEFAULTS.get(model, model) and options.out == tmp_path
    assert options.checkpoint in download.ADDRESSES or download.REPOSITORY.fullmatch(options.checkpoint)
