"""The manifest: round trip, and one-line errors for invalid ones."""

import json
import shutil

import pytest

import runtime
from runtime.bundle import bundle
from runtime.bundle.manifest import MANIFEST, Manifest
from runtime.errors import BackendError, BundleError


@pytest.fixture
def copy(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "toy")
    return tmp_path / "toy"


def edit(folder, change):
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


def test_round_trip(copy, tmp_path):
    manifest = Manifest.load(copy)
    manifest.dump(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert manifest.stages["memory_encoder"].output("maskmem_features").resolve({"objects": 2}) == (2, 4, 2)


SPLIT = {"kernel": "k", "subgraphs": ["neck"], "constants": "neck.onnx", "tensors": {}, "sizes": {}}
CHANGES = {
    "newer format": (lambda d: d.update(format=99), "upgrade"),
    "no stages": (lambda d: d.pop("stages"), "manifest.stages"),
    "size as text": (lambda d: d.update(image_size="big"), "image_size"),
    "size true": (lambda d: d.update(image_size=True), "image_size"),
    "huge size": (lambda d: d.update(image_size=10**9), "image_size"),
    "unknown dtype": (lambda d: d["stages"]["neck"]["inputs"][0].update(dtype="float1"), "float1"),
    "negative size": (lambda d: d["stages"]["neck"]["inputs"][0].update(shape=[-1]), "neither"),
    "symbol without bounds": (lambda d: d["bounds"].pop("frames"), "frames"),
    "bounds upside down": (lambda d: d["bounds"].update(frames=[4, 1]), "bounds.frames"),
    "outside": (lambda d: d["stages"]["neck"]["files"].update(default="../neck.onnx"), "inside the bundle"),
    "absolute": (lambda d: d.update(tokenizer="/etc/passwd"), "inside the bundle"),
    "unlisted file": (lambda d: d["files"].pop("neck.onnx"), "neck.onnx"),
    "no variant": (lambda d: d["stages"]["neck"].update(files={}), "default"),
    "older format": (lambda d: d.update(format=1), "python -m export upgrade"),
    "no format": (lambda d: d.pop("format"), "manifest.format"),
    "no network": (lambda d: d.update(networks={}), "at least one network"),
    "networks a list": (lambda d: d.update(networks=["samwise"]), "manifest.networks"),
    "attribute missing": (lambda d: d["stages"]["neck"].pop("bf16_ok"), "neck.bf16_ok"),
    "attribute as text": (lambda d: d["stages"]["neck"]["inputs"][0].update(keep_fp32="no"), "keep_fp32"),
    "typical a list": (lambda d: d["stages"]["neck"].update(typical=[1]), "neck.typical"),
    "stride zero": (lambda d: d["stages"]["neck"].update(stride=0), "neck.stride"),
    "split stages a number": (lambda d: d.update(split_stages=3), "manifest.split_stages"),
    "split stage a number": (lambda d: d.update(split_stages={"neck": 1}), "split_stages.neck"),
    "split stage without fields": (lambda d: d.update(split_stages={"neck": {}}), "split_stages.neck.kernel"),
    "subgraphs a number": (lambda d: d.update(split_stages={"neck": SPLIT | {"subgraphs": 4}}), "neck.subgraphs"),
    "subgraph a list": (lambda d: d.update(split_stages={"neck": SPLIT | {"subgraphs": ["neck", ["b"]]}}), "subgraphs"),
    "subgraph unknown": (lambda d: d.update(split_stages={"neck": SPLIT | {"subgraphs": ["nose"]}}), "'nose'"),
    "split stage unknown": (lambda d: d.update(split_stages={"nose": SPLIT}), "'nose'"),
    "constants outside": (
        lambda d: d.update(split_stages={"neck": SPLIT | {"constants": "../x"}}),
        "inside the bundle",
    ),
    "constants unlisted": (lambda d: d.update(split_stages={"neck": SPLIT | {"constants": "x.npz"}}), "x.npz"),
    "stages a list": (lambda d: d.update(stages=[]), "manifest.stages"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_bad_manifest_is_refused(copy, name):
    change, words = CHANGES[name]
    edit(copy, change)
    with pytest.raises(BundleError, match=words) as error:
        Manifest.load(copy)
    assert "\n" not in str(error.value) and MANIFEST in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000])
def test_files_that_are_not_manifests_are_refused(copy, text):
    (copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError):
        Manifest.load(copy)


def test_altered_and_missing_files_are_refused(copy):
    (copy / "neck.onnx").write_bytes((copy / "neck.onnx").read_bytes() + b" ")
    with pytest.raises(BundleError, match="neck.onnx: altered"):
        runtime.load(copy)
    (copy / "neck.onnx").unlink()
    with pytest.raises(BundleError, match="neck.onnx: missing"):
        runtime.load(copy)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", [MANIFEST, "neck.onnx", "tokenizer.json"])
@pytest.mark.parametrize(
    "content, words",
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1559\n", "a Git LFS pointer"),
        ("\ufeff\r\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
        ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
    ],
)
def test_placeholders_of_files_are_named(copy, name, content, words, verify):
    if name == "tokenizer.json":  # any further file of the bundle
        edit(copy, lambda d: d["files"].update({name: "0" * 64}))
    (copy / name).write_text(content)
    if name == "tokenizer.json" and not verify:  # the failure of one graph tells about all files
        (copy / "neck.onnx").write_bytes(b"broken")
    with pytest.raises(BundleError, match=f"{name}: {words}") as caught:
        runtime.load(copy, verify=verify)
    assert "\n" not in str(caught.value)


def test_unknown_network_and_missing_stage(copy):
    edit(copy, lambda d: d["stages"].pop("neck"))
    with pytest.raises(BundleError, match="neck"):
        runtime.load(copy)
    edit(copy, lambda d: d.update(networks={"sam9": {}}))
    with pytest.raises(BundleError, match="sam9"):
        runtime.load(copy)


def test_signature_that_differs_from_the_graph_is_refused(copy):
    edit(copy, lambda d: d["stages"]["neck"]["inputs"][0].update(name="vision"))
    with pytest.raises(BundleError, match="neck.onnx"):
        runtime.load(copy)


def test_choosing_among_bundles(toy, tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        bundle.choose(tmp_path / "absent")
    with pytest.raises(BundleError, match="no bundle here"):
        bundle.choose(tmp_path)
    for name in ("nano", "mine"):
        shutil.copytree(toy, tmp_path / name)
    assert bundle.choose(tmp_path).name == "mine", "the user's own before the demonstration"
    assert bundle.choose(tmp_path, "nano").name == "nano"
    with pytest.raises(BundleError, match=r"found mine.*nano \(samwise\)$"):
        bundle.choose(tmp_path, "absent")
    command = f"python -m export sam2 --checkpoint facebook/sam2.1-hiera-tiny --name sam2.1-tiny --out {tmp_path}"
    for place in (tmp_path, tmp_path / "mine"):
        with pytest.raises(BundleError, match=f"found mine.*; export it with `{command}`$"):
            bundle.choose(place, "sam2.1-tiny")
    shutil.copytree(toy, tmp_path / "other")
    with pytest.raises(BundleError, match="several"):
        bundle.choose(tmp_path)
    with pytest.raises(BundleError, match="several bundles have the network samwise; write .* mine, nano, other$"):
        bundle.choose(tmp_path, "samwise")
    shutil.copytree(toy, tmp_path / "samwise")
    assert bundle.choose(tmp_path, "samwise").name == "samwise", "a bundle's name before a network's"
    for name in ("samwise", "other"):
        shutil.rmtree(tmp_path / name)
    assert bundle.choose(tmp_path, "samwise").name == "mine", "the user's own before the demonstration"
    shutil.rmtree(tmp_path / "mine")
    assert bundle.choose(tmp_path, "samwise").name == "nano"
    shutil.copytree(toy, tmp_path / "nano-concepts")
    assert bundle.choose(tmp_path).name == bundle.choose(tmp_path, "samwise").name == "nano", "the first demonstration"
    assert bundle.choose(tmp_path, "nano-concepts").name == "nano-concepts"


def test_named_bundle_loads_beside_a_damaged_one(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "good")
    shutil.copytree(toy, tmp_path / "bad")
    (tmp_path / "bad" / MANIFEST).write_text("{")
    assert bundle.choose(tmp_path, "good").name == "good"
    with pytest.raises(BundleError, match="bad"):
        bundle.choose(tmp_path)


def test_unknown_backend_and_bad_threads(toy):
    with pytest.raises(BackendError, match="auto, ort"):
        runtime.load(toy, backend="cuda9")
    with pytest.raises(BackendError, match="threads"):
        runtime.load(toy, threads=0)
    assert runtime.load(toy, threads=1).backend.threads == 1
