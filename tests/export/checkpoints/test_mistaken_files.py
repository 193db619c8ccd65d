"""Files and folders that are not the checkpoint they are given as: the refusal says what they are; shards are read."""

import gzip
import io
import json
import tarfile
import zipfile

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from export.checkpoints.files import read_file, weight_files
from export.checkpoints.refersam import load_refersam
from export.checkpoints.sam2 import load_sam2
from export.checkpoints.samwise import load_samwise
from helpers.errors import one_line
from helpers.toy_checkpoints import networks
from runtime.errors import UserError

LOADERS = [load_samwise, load_sam2, lambda path: load_refersam(path, 64)]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 155906050\n"
ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.9.0:" + bytes(range(256))


def archive(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return out.getvalue()


def tape():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        info = tarfile.TarInfo("model.pt")
        info.size = 3
        file.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()


def script():
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), out)
    return out.getvalue()


FILES = {
    "pointer": (POINTER, "Git LFS pointer"),
    "pointer with a mark": (b"\xef\xbb\xbf" + POINTER.replace(b"\n", b"\r\n"), "Git LFS pointer"),
    "empty": (b"", "empty file"),
    "page": (b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>", "web page"),
    "page of a drive": (b"<html><head><title>Google Drive - Quota exceeded</title>", "web page"),
    "error of a store": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page or a server"),
    "json": (b'{"error": "Repository not found"}', "JSON, not readable as a checkpoint.*Repository not found"),
    "text": (b"Entry not found", "text, not readable as a checkpoint.*Entry not found"),
    "blob link": (b"../../blobs/4d7a214614ab", "text, not readable as a checkpoint.*blobs"),
    "onnx": (ONNX, "ONNX graph"),
    "engine file": (b"ftrt" + bytes(range(1, 200)), "TensorRT engine"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(range(200)), "HDF5"),
    "dvc": (b"outs:\n- md5: 0123\n  size: 1234\n  path: sam2.pt\n", "DVC pointer"),
    "annex": (b"/annex/objects/MD5E-s123--abcdef.pt\n", "git-annex pointer"),
    "npy": (b"\x93NUMPY\1\0" + bytes(99), "array of NumPy"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(range(200)), "GGUF"),
    "gzip": (gzip.compress(bytes(range(256))), "unpack it"),
    "tar": (tape(), "tar archive"),
    "zip of a checkpoint": (archive("sam2/model.pt", "sam2/a.yaml"), "zip archive of sam2/model.pt, sam2/a.yaml"),
    "npz": (archive("a.npy", "b.npy"), "zip archive of a.npy"),
    "script": (script(), "TorchScript"),
    "interrupted": (bytes(4096), "interrupted download"),
    "unknown": (bytes(range(128, 256)) * 8, "not readable as a torch checkpoint"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["x.pt", "model.safetensors"])
def test_files_of_another_kind(tmp_path, kind, name):
    content, words = FILES[kind]
    (tmp_path / name).write_bytes(content)
    if name.endswith("safetensors") and kind in ("zip of a checkpoint", "npz", "script", "unknown"):
        words = "not readable"
    for load in LOADERS:
        with pytest.raises(UserError, match=words) as caught:
            load(tmp_path / name)
        assert name in one_line(caught)


def test_pickled_classes_are_named(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"Python objects besides tensors \(torch.nn.modules.linear.Linear\)"):
        read_file(tmp_path / "x.pt")


def test_broken_link(tmp_path):
    (tmp_path / "x.pt").symlink_to("gone.pt")
    with pytest.raises(UserError, match="a link to gone.pt, which does not exist"):
        read_file(tmp_path / "x.pt")


def write_shards(folder, tensors, library="model.safetensors", count=3):
    """Write tensors as Hugging Face's libraries split them; returns the names of the shards."""
    stem, end = library.split(".")
    names = [f"{stem}-{i + 1:05}-of-{count:05}.{end}" for i in range(count)]
    places = {tensor: names[i % count] for i, tensor in enumerate(tensors)}
    for name in names:
        part = {tensor: value.contiguous() for tensor, value in tensors.items() if places[tensor] == name}
        safetensors.save_file(part, folder / name) if end == "safetensors" else torch.save(part, folder / name)
    (folder / f"{library}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return names


@pytest.mark.parametrize("library", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_loaded_whole(tmp_path, library):
    tensors = networks()["refersam"][0]
    names = write_shards(tmp_path, tensors, library)
    for path in (tmp_path, tmp_path / f"{library}.index.json"):
        state = load_refersam(path, 64).state_dict()
        assert all(torch.equal(state[name], value) for name, value in tensors.items())
        assert [file.name for file in weight_files(path)] == names


@pytest.mark.parametrize("library", ["model.safetensors", "pytorch_model.bin"])
def test_shards_without_an_index(tmp_path, library):
    """Their names tell how many there are. The advice for one of them works."""
    tensors = networks()["refersam"][0]
    names = write_shards(tmp_path, tensors, library)
    (tmp_path / f"{library}.index.json").unlink()
    assert [file.name for file in weight_files(tmp_path)] == names and read_file(tmp_path).keys() == tensors.keys()
    with pytest.raises(UserError, match=f"one shard of 3; give the folder, with {names[0]}, {names[2]}$"):
        read_file(tmp_path / names[1])
    (tmp_path / "whole.pt").write_bytes(b"")
    with pytest.raises(UserError, match="give one of its files: whole.pt$"):
        read_file(tmp_path)
    (tmp_path / "whole.pt").unlink()
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=f"lacks {names[1]}, 1 of 3 shards; download"):
        read_file(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("start", ["", "./", ".//"])
def test_an_index_as_editors_save_it(tmp_path, encoding, start):
    names = write_shards(tmp_path, {f"a{i}": torch.zeros(i + 1) for i in range(6)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(': "model', f': "{start}model'), encoding=encoding)
    assert [file.name for file in weight_files(tmp_path)] == names


@pytest.mark.parametrize("library", ["model.safetensors", "pytorch_model.bin"])
def test_shards_that_are_missing_or_given_alone(tmp_path, library):
    first, second, third = write_shards(tmp_path, {f"a{i}": torch.zeros(i + 1) for i in range(6)}, library)
    for load in LOADERS:
        with pytest.raises(UserError, match=f"one shard of 3; give the folder, with {first}, {third} and") as caught:
            load(tmp_path / second)
        one_line(caught)
    (tmp_path / third).write_bytes(POINTER)
    with pytest.raises(UserError, match=f"{third}: shard is a Git LFS pointer"):
        read_file(tmp_path)
    (tmp_path / second).unlink()
    with pytest.raises(UserError, match=f"lacks {second}, 1 of the 3 shards") as caught:
        read_file(tmp_path)
    one_line(caught)


@pytest.mark.parametrize(
    "content", [b"", POINTER, b"{}", b"[]", b"{", b'{"weight_map": {"a": 3}}', b'{"weight_map": {"a": "../x.bin"}}']
)
def test_damaged_index(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(UserError, match="index.json: ") as caught:
        read_file(tmp_path)
    one_line(caught)


@pytest.mark.parametrize(
    "files, words",
    [
        ([], "download the whole repository"),
        (["sam2.pt", "sam2.yaml", "other.ckpt"], "give one of its files: other.ckpt, sam2.pt"),
        ([".metadata", "__0_0.distcp"], "dcp_to_torch"),
        (["manifest.json", "graphs"], "a bundle"),
        (["zero_to_fp32.py", "latest"], "zero_to_fp32.py"),
    ],
)
def test_folders_without_weights(tmp_path, files, words):
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    for load in LOADERS:
        with pytest.raises(UserError, match=words) as caught:
            load(tmp_path)
        one_line(caught)


def test_safetensors_file_of_official_names(tmp_path):
    tensors = networks()["refersam"][0]
    for name in ("x.safetensors", "x.pt"):  # recognised by content
        safetensors.save_file({f"module.{k}": v.contiguous() for k, v in tensors.items()}, tmp_path / name)
        state = load_refersam(tmp_path / name, 64).state_dict()
        assert all(torch.equal(state[k], v) for k, v in tensors.items())


def test_whole_file_whose_name_says_one_of_one(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "model-00001-of-00001.bin")
    assert "a" in read_file(tmp_path / "model-00001-of-00001.bin")
