"""The logic of `benchmarks.gpu_check` on a fake device: tiny sizes, kernels in Triton's interpreter, counted time."""

import json
import os
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from benchmarks import gpu_check
from runtime.kernels import plan


class FakeBench:
    """Runs on the CPU; every measurement takes a millisecond. Counts what was measured."""

    device, capability, multiprocessors, name = "cpu", 90, 4, "fake"

    def __init__(self):
        self.measured = 0

    def seconds(self, work):
        work()
        self.measured += 1
        return 1e-3

    eager_seconds = seconds

    def allocated(self):
        return 4096

    used = allocated


TINY = gpu_check.Workload(
    memory=plan.MemorySizes(1, 16, 2, 4),
    objects=(1, 2),
    flash=(plan.FlashConfig(16, 16, 4, 2), plan.FlashConfig(16, 24, 4, 2)),  # a block of 24 cannot be compiled
    windows=(plan.WindowSizes(1, 4, 4, 4),),
    window=(plan.WindowConfig(),),
    frames=(((6, 8), (12, 16)),),
    image_size=16,
    matrix=16,
    copy_bytes=1 << 10,
    steps=3,
    compiled=False,
    engines=Path("nowhere"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "deep" / "result.json"
    result = gpu_check.check(FakeBench(), TINY, path)
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    return result


def test_every_section_is_present_and_none_failed(data):
    assert data["failed"] == []
    assert {
        "machine",
        "ceilings",
        "memory_attention",
        "window_attention_p4_t1",
        "preprocess_6p",
        "postprocess_6p",
        "graph_gain",
        "flat_memory",
        "cubins",
        "pipeline",
    } == set(data["sections"])


def test_failing_configuration_is_recorded_and_not_chosen(data):
    good, bad = data["sections"]["memory_attention"]["sweep"]
    assert "error" in bad and "seconds" not in bad
    assert data["sections"]["memory_attention"]["winner"] == good and good["relative_error"] <= 2e-3


def test_rates_follow_from_counted_work(data):
    memory = data["sections"]["memory_attention"]
    assert memory["keys"] == 2 * 16 + 4
    assert memory["winner"]["tflops"] == pytest.approx(2 * 16 * 36 * (256 + 64) / 1e-3 / 1e12)
    assert memory["pytorch"]["default"]["tflops"] == pytest.approx(2 * 16 * 36 * 512 / 1e-3 / 1e12)
    ceiling = 2 * 16**3 / 1e-3 / 1e12
    assert memory["share_of_ceiling"] == pytest.approx(memory["winner"]["tflops"] / ceiling)


def test_checks_pass(data):
    sections = data["sections"]
    assert sections["preprocess_6p"]["equal"] and sections["postprocess_6p"]["wrong_pixels"] == 0
    assert sections["window_attention_p4_t1"]["winner"]["relative_error"] <= 2e-3
    assert sections["flat_memory"]["flat"]
    assert [entry["objects"] for entry in sections["memory_attention"]["objects"]] == [1, 2]


def test_verdicts_need_a_measurement():
    assert not any(v["met"] for v in gpu_check.verdicts(None, [None]))
    memory = {"speedup_over_fastest_pytorch": 1.4, "share_of_ceiling": 0.49}
    met = {
        v["what"]: v["met"]
        for v in gpu_check.verdicts(memory, [{"speedup_over_eager": 2.5}, {"speedup_over_eager": 1.9}])
    }
    assert met == {
        "memory_attention_over_pytorch": True,
        "memory_attention_share_of_ceiling": False,
        "window_attention_over_eager": False,
    }


def test_failing_section_does_not_stop_the_others(tmp_path):
    report = gpu_check.Report(tmp_path / "r.json", FakeBench())
    assert report.section("bad", lambda: 1 / 0) is None and report.section("good", lambda: 2) == 2
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["failed"] == ["bad"] and "ZeroDivisionError" in written["sections"]["bad"]["error"]
    assert written["sections"]["good"] == 2


def test_summary_prints_errors_and_numbers(data):
    text = gpu_check.summary(data)
    assert ("flash 16x16" in text and "NOT MET" in text) or "met" in text
