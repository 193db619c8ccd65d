"""What is carried to a bare GPU machine: one architecture's code, weights made there, pieces that come one by one."""

import hashlib
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from benchmarks import gpu_carry, gpu_slim, gpu_weights
from runtime.bundle.bundle import choose
from runtime.bundle.manifest import Manifest, StageSpec, TensorSpec

NANO = Path(__file__).resolve().parents[2] / "engines" / "nano"
CODE = {(2, 80): b"ampere" * 20, (2, 90): b"hopper" * 30, (1, 90): b"ptx" * 40, (2, 120): b"blackwell" * 9}


def fat_binary(parts):
    """A header, and entries with headers of 64 bytes, as CUDA 13 writes them."""
    entries = b""
    for (kind, architecture), code in parts.items():
        header = struct.pack("<HHIQ", kind, 0x101, 64, len(code)).ljust(0x1C, b"\0") + struct.pack("<I", architecture)
        entries += header.ljust(64, b"\0") + code
    return gpu_slim.MAGIC + struct.pack("<HHQ", 1, 16, len(entries)) + entries


def test_code_of_one_architecture_stays():
    stray = gpu_slim.MAGIC + b"not a header of a fat binary"
    library = bytearray(b"\x7fELF host code" + stray + fat_binary(CODE) + b"more host code" + fat_binary(CODE) + stray)
    before = bytes(library)
    zeroed = gpu_slim.keep_architecture(library, 90)
    assert zeroed == 2 * sum(len(code) for key, code in CODE.items() if key != (2, 90))
    assert len(library) == len(before) and library.count(CODE[2, 90]) == 2
    assert not any(code in library for key, code in CODE.items() if key != (2, 90))
    assert library.count(stray) == 2 and b"more host code" in library, "what is no code of a GPU is left alone"
    assert [part[2:] for part in gpu_slim.entries(library)] == [*CODE, *CODE], "tables stay"


@pytest.fixture
def bundle(tmp_path):
    """One stage with a large tensor, a small one and a large one of integers, in a file beside the graph."""
    rng = np.random.default_rng(0)
    weights = {
        "large": (rng.standard_normal((64, 64)) * 0.5 + 3).astype(np.float16),
        "small": rng.standard_normal(8).astype(np.float16),
        "table": np.arange(1024, dtype=np.int64),
    }
    folder = tmp_path / "source" / "big"
    (folder / "graphs").mkdir(parents=True)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, (1,))
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, (1,))
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out], initializers))
    onnx.save(model, folder / "graphs" / "s.onnx", save_as_external_data=True, location="s.data", size_threshold=0)
    tensors = (TensorSpec("x", "float16", (1,)),), (TensorSpec("y", "float16", (1,)),)
    stages = {"s": StageSpec("s", *tensors, files={"default": "graphs/s.onnx"})}
    files = {
        f"graphs/{n}": hashlib.sha256((folder / "graphs" / n).read_bytes()).hexdigest() for n in ("s.onnx", "s.data")
    }
    source = Manifest.load(NANO)
    Manifest(source.networks, "big", "fp16", 128, stages, {}, {}, files=files).dump(folder)
    return folder, weights


def arrays(folder):
    model = onnx.load(folder / "graphs" / "s.onnx")
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_large_weights_are_drawn_anew_and_all_else_is_kept(bundle, tmp_path):
    folder, weights = bundle
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    gpu_weights.without_weights(folder, tmp_path / "light" / "big")
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    light = arrays(tmp_path / "light" / "big")
    assert not light["large"].any(), "zeros compress to nothing"
    gpu_weights.fill(tmp_path / "light" / "big")
    found = arrays(tmp_path / "light" / "big")
    assert found["large"].dtype == np.float16 and not np.array_equal(found["large"], weights["large"])
    assert abs(found["large"].mean() - 3) < 0.05 and abs(found["large"].std() - 0.5) < 0.05
    for name in ("small", "table"):
        np.testing.assert_array_equal(found[name], weights[name])
    choose(tmp_path / "light" / "big").verify()
    once = (tmp_path / "light" / "big" / "graphs" / "s.data").read_bytes()
    gpu_weights.fill(tmp_path / "light" / "big")
    assert (tmp_path / "light" / "big" / "graphs" / "s.data").read_bytes() == once


@pytest.fixture
def carried(bundle, tmp_path, monkeypatch):
    """The pieces of a fake wheel, nano's clip and the bundle."""

    def download(names, python, folder):
        assert "onnxruntime-gpu" in names and python == "3.12"
        folder.mkdir()
        with zipfile.ZipFile(folder / "onnxruntime_gpu-1-cp312.whl", "w") as wheel:
            wheel.writestr(gpu_carry.PROVIDER, fat_binary(CODE))
            wheel.writestr("onnxruntime/capi/libonnxruntime.so.1", b"for C")
            wheel.writestr("onnxruntime/transformers/a.py", b"")
            wheel.writestr("onnxruntime/__init__.py", b"name = 'carried'\n")

    monkeypatch.setattr(gpu_carry, "download", download)
    monkeypatch.setattr(
        gpu_carry, "write_clip", lambda nano, file: np.savez(file, frames=np.zeros((2, 4, 4, 3), np.uint8))
    )
    monkeypatch.setattr(gpu_carry, "compile_kernels", lambda bundle, capability: None)
    out = tmp_path / "gpu_carry"
    assert gpu_carry.main(["pack", "--out", str(out), "--bundle", str(bundle[0]), "--piece-mb", "0.0005"]) == 0
    return out


def test_pieces_come_one_by_one(carried, tmp_path, capsys):
    pieces = sorted(carried.iterdir())
    assert len(pieces) > 1 and all(sum(f.stat().st_size for f in p.glob("*.xz.*")) <= 500 for p in pieces)
    to = tmp_path / "there"
    assert not gpu_carry.unpack(pieces[-1], to) and not (to / "site").exists()
    assert f"1 of {len(pieces)} pieces are here; carry contents.tar.xz.00" in capsys.readouterr().out
    for piece in pieces[:-2]:
        assert not gpu_carry.unpack(piece, to)
    assert gpu_carry.unpack(pieces[-2], to)
    assert capsys.readouterr().out.endswith(f"export PYTHONPATH={to / 'site'}\n")
    library = (to / "site" / gpu_carry.PROVIDER).read_bytes()
    assert CODE[2, 90] in library and CODE[2, 80] not in library
    files = {path.relative_to(to / "site").as_posix() for path in (to / "site").rglob("*") if path.is_file()}
    assert files == {gpu_carry.PROVIDER, "onnxruntime/__init__.py"}, "what Python does not load is not carried"
    choose(to / "engines" / "big").verify()
    assert arrays(to / "engines" / "big")["large"].any()
    with np.load(to / "nano_clip.npz") as clip:
        assert clip["frames"].shape == (2, 4, 4, 3)


def test_a_damaged_piece_is_named(carried, tmp_path, capsys):
    piece = next(carried.glob("piece_1/*.xz.*"))
    piece.write_bytes(b"x" + piece.read_bytes()[1:])
    assert gpu_carry.main(["unpack", str(carried), "--to", str(tmp_path / "there")]) == 1
    assert "contents.tar.xz.01: damaged" in capsys.readouterr().err


def test_a_folder_without_pieces(tmp_path, capsys):
    assert gpu_carry.main(["unpack", str(tmp_path), "--to", str(tmp_path / "there")]) == 1
    assert "no pieces.json" in capsys.readouterr().err


def test_a_piece_is_at_most_60_megabytes(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(gpu_carry.CarryError, match="61 is not between 0 and 60"):
        gpu_carry.split(tmp_path / "a", tmp_path / "out", 61)


def test_libraries_of_pytorch_are_found_beside_onnxruntime(tmp_path):
    (tmp_path / "venv" / "nvidia" / "cu13" / "lib").mkdir(parents=True)
    (tmp_path / "site").mkdir()
    for _ in range(2):
        gpu_carry.link_libraries(tmp_path / "site", [str(tmp_path / "venv")])
    assert (tmp_path / "site" / "nvidia" / "cu13" / "lib").is_dir()
    gpu_carry.link_libraries(tmp_path / "site", [str(tmp_path / "nothing")])


def test_the_index_names_every_piece(carried):
    indices = {path.read_text() for path in carried.rglob("pieces.json")}
    assert len(indices) == 1 and len(json.loads(indices.pop())) == len(list(carried.iterdir()))
