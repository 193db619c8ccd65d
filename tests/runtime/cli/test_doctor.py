"""The installation check: backends that work, GPUs, bundles, next steps."""

import os
import shutil

import pytest

pytest.importorskip("onnxruntime")

from runtime.cli import doctor


@pytest.fixture(autouse=True)
def two_backends(monkeypatch):
    monkeypatch.setattr(doctor, "BACKENDS", ("ort", "ort-cuda"))


def program(folder, text):
    folder.mkdir(exist_ok=True)
    path = folder / "nvidia-smi"
    path.write_text(text)
    path.chmod(0o755)
    return str(folder)


def test_report_of_a_clone(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "#!/bin/sh\nexit 9\n"))
    assert doctor.main(["--engine", "engines"]) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "ort works" in lines and any(line.startswith("ort-cuda - ") and "pip" in line for line in lines)
    assert "GPU none that nvidia-smi knows" in lines
    assert any(line.startswith("nano samwise+sam2, fp16") for line in lines)
    assert "see that it works python -m runtime.run --engine engines/nano" in lines
    assert any(line.startswith("export sam2 python -m export sam2 --checkpoint facebook/") for line in lines)
    assert max(map(len, out.splitlines())) < 160


def test_a_gpu_that_no_backend_uses(monkeypatch, tmp_path, capsys):
    line = "NVIDIA L4, 8.9, 23034 MiB, 550.54.15"
    monkeypatch.setenv("PATH", program(tmp_path / "bin", f"#!/bin/sh\necho '{line}'\n") + os.pathsep + os.defpath)
    doctor.main(["--engine", str(tmp_path)])
    out = capsys.readouterr().out
    assert "NVIDIA L4, compute capability 8.9, 23034 MiB, driver 550.54.15" in out
    assert "use the GPU" in out and "none" in out


def test_nothing_works(monkeypatch, tmp_path, capsys):
    """A damaged bundle is named; exit code 1."""
    shutil.copytree("engines/nano-concepts", tmp_path / "mine")
    (tmp_path / "mine" / "manifest.json").write_text("{")
    monkeypatch.setattr(doctor, "BACKENDS", ("ort-cuda",))
    assert doctor.main(["--engine", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "install a backend" in out and "damaged: " in out and "manifest.json" in out
