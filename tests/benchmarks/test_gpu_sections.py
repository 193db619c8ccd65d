"""Sections of `benchmarks.gpu_check` on a fake machine: tiny sizes, kernels in Triton's interpreter, counted time."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from benchmarks import gpu_run, gpu_sections, gpu_table
from benchmarks.gpu_check import Check, Options, exit_code
from export.networks import samwise as samwise_network
from helpers import toy_exports
from helpers import toy_samwise as toy
from runtime.kernels import candidates, plan

BUDGET = 1e6
SECTIONS = [replace(section, limit=BUDGET) for section in gpu_sections.SECTIONS]
"""With time for all parts, however busy the machine is: without it they are left out."""

NANO = Path(__file__).resolve().parents[2] / "engines" / "nano"
TINY = json.loads((Path(__file__).parents[1] / "helpers" / "gpu_sizes.json").read_text())
FLASH = plan.FlashConfig(16, 16, 4, 2)
# a block of 24 cannot be compiled
SWEEP = (FLASH, plan.FlashConfig(16, 24, 4, 2), plan.FlashConfig(16, 16, 4, 2, specialize=True))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads of PyTorch wait for each other longer than they compute at these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    work = tmp_path_factory.mktemp("gpu")
    shutil.copytree(NANO, work / "engines" / "nano")
    toy.build(work / "engines" / "toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "flash_candidates", lambda capability: SWEEP)
        patch.setattr(candidates, "window_candidates", lambda capability: (plan.WindowConfig(),))
        patch.setattr(plan, "FLASH", {80: FLASH, 90: FLASH})
        patch.setattr(torch, "compile", lambda module, **options: module)
        options = Options(work / "r.json", False, BUDGET, work / "engines", None, "helpers.fake_gpu:FakeMachine", TINY)

        def inline(context, folder):
            return 0 if gpu_run.execute(context) else 1

        (work / "work").mkdir()
        return Check(options, work / "work", inline).run(SECTIONS)


def test_every_section_is_reached_and_none_fails(report):
    entries = report["sections"]
    assert list(entries) == [section.name for section in SECTIONS]
    skipped = {name: entry["reason"] for name, entry in entries.items() if entry["status"] == "skipped"}
    assert {name: entry.get("reason") for name, entry in entries.items() if entry["status"] == "failed"} == {}
    assert set(skipped) == {"cubins", "split_stages", "tensorrt", "sweep_tma"}, skipped
    assert exit_code(report, SECTIONS) == 0


def result(report, section):
    return report["sections"][section]["result"]


def test_masks_are_compared_with_those_of_the_cpu_frame_by_frame(report):
    for task in ("nano", "clicks"):
        for mode in ("plain", "graphs", "kernels"):
            found = result(report, f"{task}_{mode}")
            assert all(len(found[turn]["iou_by_frame"]) == TINY["demo_frames"] for turn in ("first", "second"))
            assert found["second"]["least_iou"] > 0.999
    assert "compiled_kernels" not in result(report, "nano_kernels"), "nano ships kernels"
    assert result(report, "base_kernels")["compiled_kernels"]["count"] == 3, "also frames without rounding"


def test_stages_are_compared_with_the_cpu(report):
    stages = result(report, "base_stages")["stages"]
    assert set(stages) == set(toy.GRAPHS)
    assert all(
        row["seconds"] > 0 and row["cpu_seconds"] > 0 and row["relative_error"] < 1e-5 for row in stages.values()
    )


def test_videos_count_what_a_frame_costs(report):
    for mode in ("plain", "graphs", "kernels"):
        video = result(report, f"base_{mode}")["video"]
        per_frame = video["calls_per_frame"]
        assert per_frame["allocate"] == per_frame["pinned"] == 0 and video["grown_bytes"] == 0
        assert per_frame["synchronize"] + per_frame["wait_event"] == 1
        assert (video["captures"] > 0 and per_frame["launch"] > 0) is (mode != "plain")
        assert result(report, f"base_{mode}")["iou_to_plain"] == 1.0
    ahead = result(report, "base_ahead")
    assert ahead["video"]["ms_per_frame"] > 0 and ahead["video_and_clip"]["ms_per_frame"] > 0
    assert ahead["iou_to_plain"] == 1.0
    assert result(report, "base_default")["video"]["captures"] > 0, "graphs are recorded by default"
    assert {"objects_1", "objects_2"} < set(result(report, "objects"))
    assert {"streams_1", "streams_2"} < set(result(report, "streams"))


def test_pytorch_runs_the_same_clip(report):
    for how in ("eager", "compiled"):
        assert result(report, f"pytorch_{how}")["video"]["frames"] == TINY["pytorch_frames"]


def test_failing_configuration_is_recorded_and_not_chosen(report):
    found = result(report, "sweep_flash")
    good, bad = found["sweep"]
    assert "error" in bad and "seconds" not in bad
    assert found["winner"] == good and good["relative_error"] <= 2e-3
    assert [entry["objects"] for entry in found["objects"]] == TINY["objects"]


def test_rates_follow_from_counted_work(report):
    memory = result(report, "shipped_kernels")["memory_attention"]
    assert memory["keys"] == 2 * 16 + 4
    assert memory["winner"]["tflops"] == pytest.approx(2 * 16 * 36 * (256 + 64) / 1e-3 / 1e12)
    assert memory["pytorch"]["default"]["tflops"] == pytest.approx(2 * 16 * 36 * 512 / 1e-3 / 1e12)
    ceiling = 2 * 16**3 / 1e-3 / 1e12
    assert memory["share_of_ceiling"] == pytest.approx(memory["winner"]["tflops"] / ceiling)


def test_checks_pass(report):
    images = result(report, "frames_and_masks")
    assert images["preprocess_6p"]["equal"] and images["postprocess_6p"]["wrong_pixels"] == 0
    frames, masks = ([name for name, *_ in TINY[rules]] for rules in ("frame_rules", "mask_rules"))
    assert all(images[f"frame_{name}_6p"]["largest_difference"] <= 1e-6 for name in frames)
    assert all(images[f"masks_{name}_6p"]["wrong_pixels"] == 0 for name in masks)
    assert result(report, "shipped_kernels")["window_attention_p4_t1"]["winner"]["relative_error"] <= 2e-3
    assert result(report, "memory_of_kernels")["flat_memory"]["flat"]


@pytest.mark.parametrize("machine", ["WithoutPyTorch", "WithoutLibraries"])
def test_without_pytorch_sections_of_the_runtime_run_and_the_others_are_skipped(tmp_path, monkeypatch, machine):
    for name in ("torch", "triton"):
        monkeypatch.setitem(sys.modules, name, None)
    shutil.copytree(NANO, tmp_path / "engines" / "nano")
    options = Options(None, False, 600.0, tmp_path / "engines", None, f"helpers.fake_gpu:{machine}", TINY)
    runs = {"machine", "nano_on_cpu", "nano_plain"}
    sections = [s for s in SECTIONS if s.group in ("kernels", "sweeps") or s.name in runs]
    (tmp_path / "work").mkdir()

    def inline(context, folder):
        return 0 if gpu_run.execute(context) else 1

    entries = Check(options, tmp_path / "work", inline).run(sections)["sections"]
    done = runs | ({"frames_and_masks"} if machine == "WithoutPyTorch" else set())
    assert {name for name, entry in entries.items() if entry["status"] == "done"} == done
    others = {name: entry for name, entry in entries.items() if name not in done}
    assert {entry["status"] for entry in others.values()} == {"skipped"}
    assert all("torch" in entry["reason"] for entry in others.values())
    assert entries["frames_and_masks"]["result"]["no_pytorch"] == "No module named 'torch'"


def test_table_has_our_modes_pytorch_the_limit_and_the_iou(report):
    lines = gpu_table.table(report).splitlines()
    assert lines[0].split() == "plain graphs kernels PyTorch eager torch.compile limit IoU".split()
    base = next(line for line in lines if line.startswith("base+, ms per frame"))
    assert len(base.removeprefix("base+, ms per frame").split()) == 7
    assert any(line.startswith("memory attention (PyTorch: SDPA), us") for line in lines)
    assert any("flash 16x24" in line and "power of 2" in line for line in lines)
    assert any(line == "skipped sweep_tma: no such configuration can run on sm_90" for line in lines)
    assert sum(line.startswith(("met ", "NOT MET")) for line in lines) == len(gpu_table.TARGETS)


def test_targets_need_a_measurement():
    assert not any(verdict["met"] for verdict in gpu_table.verdicts({}))
    iou = {"first": {"least_iou": 0.99}, "second": {"least_iou": 0.98}}
    memory = {"speedup_over_fastest_pytorch": 1.4, "share_of_ceiling": 0.49}
    found = {
        "shipped_kernels": {
            "memory_attention": memory,
            "window_attention_a": {"winner": {}, "speedup_over_eager": 2.5},
            "window_attention_b": {"winner": {}, "speedup_over_eager": 1.9},
        },
        **{f"nano_{mode}": iou for mode in gpu_table.MODES},
        **{f"clicks_{mode}": iou for mode in ("plain", "graphs")},
        "base_plain": {"video": {"ms_per_frame": 10.0}},
        "base_graphs": {"video": {"ms_per_frame": 5.0}},
        "pytorch_eager": {"video": {"ms_per_frame": 26.0}},
    }
    verdicts = {v["what"]: (v["measured"], v["met"]) for v in gpu_table.verdicts(found)}
    assert verdicts["nano_least_iou"] == (0.98, True)
    assert verdicts["clicks_least_iou"] == (None, False), "one mode was not compared"
    assert verdicts["base_over_pytorch_eager"] == (5.2, True)
    assert verdicts["base_over_torch_compile"] == (None, False)
    assert verdicts["memory_attention_over_sdpa"] == (1.4, True)
    assert verdicts["memory_attention_share_of_ceiling"] == (0.49, False)
    assert verdicts["window_attention_over_eager"] == (1.9, False)


def test_wrong_masks_fail(tmp_path, monkeypatch):
    """Masks that are those of another frame, as a stale graph gives them."""
    from benchmarks import gpu_video

    shutil.copytree(NANO, tmp_path / "engines" / "nano")
    (tmp_path / "work").mkdir()
    shift = gpu_video.TASKS["nano"]
    cpu = [s for s in SECTIONS if s.name in ("nano_on_cpu", "nano_plain")]

    def launch(context, folder):
        if context.section.endswith("nano_plain"):
            monkeypatch.setitem(gpu_video.TASKS, "nano", lambda *args: shift(*args)[::-1])
        return 0 if gpu_run.execute(context) else 1

    options = Options(None, False, BUDGET, tmp_path / "engines", None, "helpers.fake_gpu:FakeMachine", TINY)
    entry = Check(options, tmp_path / "work", launch).run(cpu)["sections"]["nano_plain"]
    assert entry["status"] == "failed" and "less than 0.97" in entry["reason"]
    assert len(entry["result"]["second"]["iou_by_frame"]) == 2, "kept to look at"


def test_the_schedule_of_pytorch_stays_on_its_device(monkeypatch):
    """On the device `meta`, which computes nothing, as on a GPU: an operation on tensors of two devices raises."""
    from export.verify.references import samwise_clip

    model = toy_exports.samwise().eval()
    networks = samwise_network.settings(model)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.zeros(self.shape, dtype=self.dtype, device="cpu"))
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: True)
    frames = [np.zeros((24, 32, 3), np.uint8)] * 6  # the last one with conditional memory
    torch.set_default_device("meta")
    try:
        found = list(samwise_clip(model.to("meta"), networks, frames, [0, 5, 2]))
    finally:
        torch.set_default_device("cpu")
    assert len(found) == len(frames) and found[-1][0].shape == (1, 24, 32)


def test_a_stage_that_is_wrong_on_the_gpu_is_named(tmp_path, monkeypatch):
    """One output of one stage differs: the section fails, and the others keep their errors."""
    from benchmarks import gpu_pipeline
    from helpers.fake_cuda import Cuda

    toy.build(tmp_path / "engines" / "toy")
    (tmp_path / "work").mkdir()
    time_stage = gpu_pipeline.time_stage

    def wrong(stage, sizes, device, *rounds):
        seconds, outputs = time_stage(stage, sizes, device, *rounds)
        if stage.spec.name == "memory_attention" and isinstance(device, Cuda):
            outputs = {name: array * 1.1 for name, array in outputs.items()}
        return seconds, outputs

    monkeypatch.setattr(gpu_pipeline, "time_stage", wrong)
    options = Options(None, False, BUDGET, tmp_path / "engines", None, "helpers.fake_gpu:FakeMachine", TINY)
    sections = [s for s in SECTIONS if s.name == "base_stages"]
    launch = lambda context, folder: 0 if gpu_run.execute(context) else 1  # noqa: E731
    entry = Check(options, tmp_path / "work", launch).run(sections)["sections"]["base_stages"]
    assert entry["reason"] == "ArithmeticError: memory_attention: further from the CPU than 0.01"
    assert set(entry["result"]["stages"]) == set(toy.GRAPHS)


def test_a_variant_for_the_backend_is_timed_beside_the_default(tmp_path):
    from benchmarks import gpu_stages
    from runtime.backends.base import load_stage
    from runtime.bundle.bundle import choose

    context = gpu_run.Context("", str(tmp_path / "r.json"), 60.0, str(tmp_path), machine="helpers.fake_gpu:FakeMachine")
    run, bundle = gpu_run.Run(replace(context, sizes=TINY)), choose(NANO)
    backend = run.machine.backend("ort-cuda")
    backend.variants = ("cuda", "default")
    loaded = {name: load_stage(bundle, backend, name) for name in ("adapter_1", "neck")}
    found = gpu_stages._other_variants(run, bundle, backend, loaded)
    assert set(found) == {"adapter_1"} and found["adapter_1"] > 0, "the neck has one variant"
    assert backend.variants == ("cuda", "default")
