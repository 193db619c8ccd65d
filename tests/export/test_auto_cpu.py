"""The choice of precision and backend by measurement: which are tried, which is kept, and that `auto` follows."""

import logging
import shutil
from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from export import __main__ as command
from export import auto_cpu, bundle
from export.auto_cpu import Measured
from export.verify.parity_clip import ClipOutput
from helpers import toy_checkpoints
from helpers.mixer import mixer, network
from runtime import backends
from runtime.backends import autotune
from runtime.bundle.bundle import choose
from runtime.errors import BackendError

QUANTIZER = "onnxruntime.quantization.matmul_nbits_quantizer"

pytestmark = [
    pytest.mark.usefixtures("shared_traces"),
    pytest.mark.skipif(find_spec(QUANTIZER) is None, reason="this ONNX Runtime packs no weights"),
]

SECONDS = {("fp32", "ort"): 1.0, ("int8", "ort"): 0.9, ("int8-weights", "ort"): 0.8, ("int4-weights", "ort"): 0.7}
SECONDS |= {("fp32", "openvino"): 0.9, ("fp32", "openvino-bf16"): 0.5}


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return bundle.export_bundle(network(mixer()), tmp_path_factory.mktemp("exact"), "toy", check=False)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Seconds of the clip are from a table, and the logits lose a thousandth a bit. Returns the missing backends."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    missing = set()

    def run(folder, backend, threads, repeats=2):
        if backend in missing:
            raise BackendError(f"backend {backend!r} needs another library")
        precision = choose(folder).manifest.precision
        noise, logits = np.random.default_rng(1), np.random.default_rng(0).standard_normal((1, 64, 64))
        if (precision, backend) not in (("fp32", "ort"), ("fp32", "openvino")):
            logits += 0.01 * noise.standard_normal(logits.shape)
        return [ClipOutput(0, logits > 0, logits, np.zeros(1))], SECONDS[precision, backend]

    monkeypatch.setattr(auto_cpu, "timed_clip_in_child", run)
    return missing


def published(exact, out, max_loss):
    lines, exact = [], shutil.copytree(exact, out.parent / "work" / exact.name)
    return choose(auto_cpu.publish(exact, out, "toy-auto", max_loss, 1, lines.append)), "\n".join(lines)


def test_without_loss_an_exact_backend_is_chosen(exact, tmp_path, measured):
    found, text = published(exact, tmp_path / "out", 0.0)
    assert found.manifest.precision == "fp32" and autotune.choice(found.manifest) == "openvino"
    assert text.count("  loses more than 0") == len(auto_cpu.CANDIDATES) - 2, "but float32"
    assert text.count("chosen") == 1 and all(f"{p:14} {b:14}" in text for p, b in auto_cpu.CANDIDATES)


def test_the_fastest_within_the_loss_is_published(exact, tmp_path, measured):
    measured |= {"openvino", "openvino-bf16"}
    found, text = published(exact, tmp_path / "out", 0.9)
    found.verify()
    assert found.manifest.precision == "int4-weights" and autotune.choice(found.manifest) is None
    assert "fp32 on openvino: backend 'openvino' needs another library" in text
    assert {spec.precision for spec in found.manifest.stages.values()} == {"int4-weights"}


def test_auto_takes_the_chosen_backend(exact, tmp_path, measured, caplog):
    pytest.importorskip("openvino")
    measured |= {"openvino-bf16"}
    found, _ = published(exact, tmp_path / "out", 0.0)
    with caplog.at_level(logging.INFO, "runtime"):
        assert backends.create("auto", 1, found.manifest).name == "openvino"
    assert "chosen by export --precision auto-cpu" in caplog.text
    path = autotune.save_choice("abacus", found.manifest, 0.0, 0.0)
    assert backends.create("auto", 1, found.manifest).name == "ort", "a backend of another version"
    for damaged in (b"", b"[]", b"{}", b'{"backend": 7}'):
        path.write_bytes(damaged)
        assert autotune.choice(found.manifest) is None


@pytest.mark.parametrize("max_loss, backend", [(0.0, "ort"), (0.005, "fast"), (0.1, "faster")])
def test_the_fastest_within_a_loss(max_loss, backend):
    found = [Measured("fp32", *row, 1.0) for row in (("ort", 3.0, 0.0), ("fast", 2.0, 0.005), ("faster", 1.0, 0.1))]
    assert auto_cpu.fastest(found, max_loss).backend == backend


@pytest.mark.parametrize("level", [5.0, -50.0], ids=["a mask", "an empty mask"])
def test_empty_masks_do_not_hide_a_difference(level):
    logits = np.random.default_rng(0).standard_normal((1, 32, 32)).astype(np.float32) + level

    def output(x):
        return ClipOutput(0, x > 0, x, np.zeros(1))

    assert auto_cpu.loss([output(logits)], [output(logits.copy())]) == 0
    other = output(logits + np.roll(logits, 1, 2) - level)
    assert auto_cpu.loss([output(logits)], [other]) > 0.02 or level > 0


@pytest.mark.parametrize(
    "options", [["--max-loss", "0.1"], *(["--precision", "auto-cpu", "--max-loss", x] for x in ("-1", "1", "nan"))]
)
def test_a_loss_that_means_nothing_is_refused(options, capsys):
    assert command.main(["samwise", "--checkpoint", "x.pt", *options]) == 2
    assert capsys.readouterr().err.startswith("error: --max-loss goes with")


@pytest.mark.slow
def test_the_command_tries_and_publishes_what_it_says(tmp_path, monkeypatch, capsys):
    """From a checkpoint file; whichever is faster here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(auto_cpu, "CANDIDATES", (auto_cpu.EXACT, ("fp32", "abacus"), ("int8-weights", "ort")))
    toy_checkpoints.save(tmp_path / "toy.pt", "sam2", config=toy_checkpoints.networks()["sam2"][1])
    arguments = ["--precision", "auto-cpu", "--max-loss", "0.9", "--threads", "1", "--out", str(tmp_path / "out")]
    assert command.main(["sam2", "--checkpoint", str(tmp_path / "toy.pt"), *arguments]) == 0
    out = capsys.readouterr().out
    (chosen,) = (line for line in out.splitlines() if line.endswith("  chosen"))
    found = choose(tmp_path / "out")
    found.verify()
    assert found.name.endswith("-auto-cpu") and f"published {found.folder}" in out
    assert found.manifest.precision == chosen.split()[0] and chosen.split()[1] == "ort"
    assert "int8-weights on ort: measuring, " in out and "fp32 on abacus: " in out and "abacus: measuring" not in out
    assert autotune.choice(found.manifest) is None and "auto will take" not in out
