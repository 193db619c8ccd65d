"""ONNX Runtime on CUDA without a GPU: which libraries it needs, and nodes that it would run on the CPU."""

import logging
from importlib import metadata
from types import SimpleNamespace

import pytest

from runtime import versions
from runtime.backends import create, ort
from runtime.bundle.manifest import StageSpec
from runtime.errors import BackendError


@pytest.fixture
def library(monkeypatch):
    """A library with CUDA, whose calls are listed; the device is never reached."""
    calls = []
    names = {"__version__": "1.31.1", "get_available_providers": lambda: ["CUDAExecutionProvider"]}
    fake = SimpleNamespace(**names, preload_dlls=lambda: calls.append("preload"), calls=calls)
    monkeypatch.setattr(ort, "_import", lambda: fake)
    monkeypatch.setattr(ort, "_libraries_loaded", False)
    monkeypatch.setattr(ort.ctypes, "CDLL", lambda name: calls.append(name))

    def device():
        calls.append("device")
        raise BackendError("no CUDA device 0 here")

    monkeypatch.setattr(ort, "Cuda", device)
    return fake


def without_cudnn(monkeypatch):
    def load(name):
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ort.ctypes, "CDLL", load)


def test_libraries_are_loaded_once_before_the_device(library):
    for _ in range(2):
        with pytest.raises(BackendError, match="no CUDA device"):
            ort.OrtCudaBackend()
    assert library.calls == ["preload", ort.CUDNN, "device", "device"]


def test_a_library_that_preloads_nothing_is_taken_as_it_is(library):
    del library.preload_dlls
    with pytest.raises(BackendError, match="no CUDA device"):
        ort.OrtCudaBackend()
    assert library.calls == [ort.CUDNN, "device"]


def test_what_the_library_prints_is_logged(library, monkeypatch, caplog, capsys):
    monkeypatch.setattr(library, "preload_dlls", lambda: print("Failed to load libcublasLt.so.13"))
    with caplog.at_level(logging.INFO, "runtime"), pytest.raises(BackendError):
        ort.OrtCudaBackend()
    assert "Failed to load libcublasLt.so.13" in caplog.text and capsys.readouterr().out == ""


def test_missing_cudnn_is_found_at_the_start(library, monkeypatch):
    without_cudnn(monkeypatch)
    with pytest.raises(BackendError) as raised:
        ort.OrtCudaBackend()
    message = str(raised.value)
    assert "cuDNN 9" in message and "pip install 'onnxruntime-gpu[cuda,cudnn]==1.31.1'" in message
    assert "\n" not in message and "device" not in library.calls


def test_auto_does_not_take_a_gpu_without_cudnn(monkeypatch, caplog, library):
    from runtime import backends

    without_cudnn(monkeypatch)
    real = backends._create
    monkeypatch.setattr(backends, "AUTO", ("ort-cuda", "next"))
    monkeypatch.setattr(
        backends, "_create", lambda name, threads: f"the {name} backend" if name == "next" else real(name, threads)
    )
    with caplog.at_level(logging.INFO, "runtime"):
        assert create("auto") == "the next backend"
    assert "backend ort-cuda not used: CUDA convolutions need cuDNN 9" in caplog.text


def placed(**operators):
    """A session whose nodes are placed: provider -> operators."""
    parts = [
        SimpleNamespace(ep_name=name, get_nodes=lambda ops=ops: [SimpleNamespace(op_type=op) for op in ops])
        for name, ops in operators.items()
    ]
    return SimpleNamespace(get_providers=lambda: [*operators], get_provider_graph_assignment_info=lambda: parts)


def cuda_backend():
    backend = object.__new__(ort.OrtCudaBackend)
    backend._ort = SimpleNamespace(__version__="1.31.1")
    return backend


@pytest.mark.parametrize("operator", ["GridSample", "Conv", "MatMul", "Resize", "LayerNormalization", "Softmax"])
def test_a_node_that_computes_on_the_cpu_is_refused(tmp_path, operator):
    ours = ["Conv"] * 3
    session = placed(CUDAExecutionProvider=ours, CPUExecutionProvider=["Concat", operator, operator])
    with pytest.raises(BackendError, match=rf"g.onnx: .* no CUDA kernel for 2 {operator} .*--backend ort"):
        cuda_backend()._check_provider(session, tmp_path / "g.onnx")


def test_shape_arithmetic_may_run_on_the_cpu(tmp_path):
    """The operators that onnxruntime-gpu 1.31.1 places there in the graphs of nano and base+."""
    shapes = ["Add", "Cast", "Concat", "Mul", "Reshape", "Squeeze"]
    session = placed(CUDAExecutionProvider=["Conv"], CPUExecutionProvider=shapes)
    cuda_backend()._check_provider(session, tmp_path / "g.onnx")


def test_an_old_library_does_not_tell_where_nodes_are(tmp_path):
    session = SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    cuda_backend()._check_provider(session, tmp_path / "g.onnx")


def test_placement_is_asked_of_the_real_library(tmp_path):
    """On the CPU every node is on the CPU: the library that is installed here records it."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("this onnxruntime does not tell where nodes are")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 2)) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Softmax", ["x"], ["y"])], "g", value[:1], value[1:])
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    sessions = []

    class Recording(ort.OrtBackend):
        _configure = ort.OrtCudaBackend._configure

        def _check_provider(self, session, file):
            sessions.append(session)

    with pytest.raises(Exception, match="manifest"):
        Recording().load(tmp_path / "g.onnx", StageSpec("g", (), (), {}))
    assert ort.nodes_on_cpu(sessions[0]) == {"Softmax": 1}


@pytest.mark.parametrize(
    "installed, message",
    [
        (None, "a CUDA backend needs cuda-core: pip install 'samwise-runtime[gpu]'"),
        ("0.4.2", "cuda-core 0.4.2 is installed, 0.5 or newer is needed: pip install --upgrade 'cuda-core[cu13]'"),
        (
            "1.2.2",
            "cuda-core 1.2.2 is installed but cannot be imported (cannot import name 'bindings' from 'cuda'): "
            "pip install --upgrade 'cuda-core[cu13]'",
        ),
    ],
)
def test_the_message_names_the_version_of_cuda_core(monkeypatch, installed, message):
    def version(name):
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(metadata, "version", version)
    assert versions.cuda_core_remedy("cannot import name 'bindings' from 'cuda'") == message


def test_a_cuda_core_that_exports_nothing_is_named(monkeypatch):
    """0.4.2: the package is there, its classes are not."""
    import sys

    from runtime.device.driver import CudaCore

    package = type(sys)("cuda")
    package.core = type(sys)("cuda.core")
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.core", package.core)
    monkeypatch.setattr(metadata, "version", lambda name: "0.4.2")
    with pytest.raises(BackendError, match=r"cuda-core 0\.4\.2 is installed, 0\.5 or newer"):
        CudaCore()
