"""Files that a library refuses: the message says which version is installed and which is needed."""

from types import ModuleType

import pytest

from runtime import versions
from runtime.errors import BundleError
from runtime.tokenizer import Tokenizer


def library(name, version):
    module = ModuleType(name)
    module.__version__ = version
    return module


@pytest.mark.parametrize(
    "name, version, needed",
    [
        ("tokenizers", "0.19.1", "0.21"),
        ("tokenizers", "0.20.4rc1", "0.21"),
        ("onnxruntime", "1.19.2", "1.20"),
        ("openvino", "2025.4.1-20426-82bbf0292c5-releases/2025/4", "2026.3"),
        ("openvino", "2026.2.1-1-x", "2026.3"),
    ],
)
def test_old_version_is_named_with_the_needed_one(name, version, needed):
    message = versions.remedy(library(name, version))
    assert message == f"{name} {version} is installed, {needed} or newer is needed: pip install --upgrade {name}"


@pytest.mark.parametrize("name, version", [("tokenizers", "0.21.0"), ("tokenizers", "1.0"), ("openvino", "custom")])
def test_new_version_may_still_be_older_than_the_file(name, version):
    message = versions.remedy(library(name, version))
    assert message.startswith("export the bundle again, or, if a newer") and version in message


def test_tokenizer_that_an_old_library_cannot_read(tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    monkeypatch.setattr(tokenizers, "__version__", "0.19.1")
    with pytest.raises(BundleError, match=r"not a working tokenizer .*; tokenizers 0.19.1 is installed, 0.21 or newer"):
        Tokenizer(tmp_path)


def test_graph_of_a_newer_format(tmp_path):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from runtime.backends.ort import OrtBackend
    from runtime.bundle.manifest import StageSpec

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1,))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])
    model = onnx.helper.make_model(graph, ir_version=99)
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=rf"cannot load it .*newer onnxruntime than the installed {ort.__version__}"):
        OrtBackend().load(tmp_path / "g.onnx", StageSpec("g", (), (), {}))
