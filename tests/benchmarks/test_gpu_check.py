"""`benchmarks.gpu_check`: sections in processes of their own, their limits, the report, exit codes."""

import json
import os
import threading
import time

import pytest

from benchmarks import gpu_check, gpu_run
from benchmarks.gpu_check import Check, Options, chosen, exit_code
from benchmarks.gpu_monitor import FIELDS, Monitor
from benchmarks.gpu_sections import SECTIONS, Section
from helpers.fake_sections import LONG
from helpers.waiting import PATIENCE, wait_until

FAKE = "helpers.fake_sections:Machine"


@pytest.fixture(autouse=True)
def helpers_in_children(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.dirname(__file__)))


def section(name, limit=PATIENCE, least=0.0, **options):
    return Section(name, f"helpers.fake_sections:{name}", limit, least, **options)


def check(tmp_path, sections, launch=gpu_check.launch, **options):
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    options = {"budget": 1e6, "machine": FAKE, "out": tmp_path / "deep" / "r.json"} | options
    report = Check(Options(**options), work, launch).run(sections)
    if options["out"]:
        assert json.loads(options["out"].read_text()) == json.loads(json.dumps(report))
    return report


def inline(context, folder):
    """Run a section in this process: tests of the order need no others."""
    return 0 if gpu_run.execute(context) else 1


def alive(process):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_every_failure_is_contained(tmp_path, monkeypatch):
    """One section raises, one hangs, others die in three ways: those between are unharmed."""
    monkeypatch.setattr(gpu_check, "GRACE", 0.1)
    names = ("raises", "good", "hangs", "dies", "aborts", "exits", "shortened", "does_not_apply", "sees")
    sections = [section(n, **({"limit": 0.6} if n == "hangs" else {})) for n in names]
    report = check(tmp_path, sections)
    entries = report["sections"]
    assert list(entries) == list(names), "in order, none left out"
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "raises": "failed",
        "good": "done",
        "hangs": "killed",
        "dies": "failed",
        "aborts": "failed",
        "exits": "failed",
        "shortened": "shortened",
        "does_not_apply": "skipped",
        "sees": "done",
    }
    assert entries["raises"]["reason"] == "ArithmeticError: the result is wrong"
    assert any("fake_sections.py" in line for line in entries["raises"]["where"])
    assert entries["hangs"]["reason"] == "at its limit of 1 s" and entries["hangs"]["seconds"] < LONG / 2
    assert [entries[n]["reason"] for n in ("dies", "aborts", "exits")] == ["signal 9", "signal 6", "exit code 7"]
    assert [entries[n]["result"]["before"] for n in ("raises", "dies")] == [2, 4], "kept to the last"
    assert entries["shortened"]["result"]["left_out"] == ["part 1", "part 2"]
    assert entries["sees"]["result"]["seen"]["value"] == 1, "later sections know earlier results"
    assert exit_code(report, sections) == 1


def test_a_section_that_hangs_is_killed_with_what_it_has_started(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 0.1)
    for limit in (0.6, 5.0, PATIENCE):  # a busy machine starts a process late
        folder = tmp_path / str(limit)
        folder.mkdir()
        entry = check(folder, [section("hangs", limit)])["sections"]["hangs"]
        assert entry["status"] == "killed"
        if "child" in entry["result"]:
            break
    assert entry["result"]["before"] == 3, "what it stored is kept"
    wait_until(lambda: not any(alive(entry["result"][key]) for key in ("process", "child")))


def test_the_report_is_written_after_each_section(tmp_path):
    seen, out = [], tmp_path / "r.json"

    def launch(context, folder):
        seen.append(list(json.loads(out.read_text())["sections"]) if out.exists() else [])
        return inline(context, folder)

    check(tmp_path, [section("good"), section("raises"), section("sees")], launch, out=out)
    assert seen == [[], ["good"], ["good", "raises"]]


def test_a_small_budget_shortens_and_skips_with_the_reason(tmp_path):
    now, limits = [0.0], []

    def launch(context, folder):
        limits.append(context.seconds)
        now[0] += 30.0
        return inline(context, folder)

    sections = [section("good", 50.0, 10.0), section("sees", 50.0, 10.0), section("shortened", 50.0, 25.0)]
    (tmp_path / "work").mkdir()
    report = Check(Options(budget=80.0, machine=FAKE), tmp_path / "work", launch, clock=lambda: now[0]).run(sections)
    assert limits == [50.0, 46.0], "the second gets what is left"
    assert report["sections"]["shortened"] == {
        "status": "skipped",
        "reason": "16 s of the budget are left, and it takes 25 at least",
        "seconds": 0.0,
        "clocks": {},
    }


def test_a_machine_that_is_given_pieces_has_one_report(tmp_path):
    """The second run adds its sections, knows the results of the first, and replaces what it runs again."""
    (tmp_path / "a").mkdir()
    check(tmp_path / "a", [section("good"), section("raises")], inline, out=tmp_path / "r.json")
    (tmp_path / "b").mkdir()
    report = check(tmp_path / "b", [section("sees"), section("raises")], inline, out=tmp_path / "r.json", resume=True)
    assert list(report["sections"]) == ["good", "sees", "raises"]
    assert report["sections"]["sees"]["result"]["seen"]["value"] == 1
    (tmp_path / "c").mkdir()
    assert list(check(tmp_path / "c", [section("sees")], inline, out=tmp_path / "r.json")["sections"]) == ["sees"]


def test_what_cannot_run_without_another_is_skipped(tmp_path):
    report = check(tmp_path, [section("raises"), section("good", after=("raises",)), section("sees")], inline)
    assert report["sections"]["good"]["reason"] == "needs raises, which did not succeed"
    assert report["sections"]["sees"]["status"] == "done"


def test_without_a_device_nothing_else_runs(tmp_path):
    sections = [section("device", required=True), section("good")]
    report = check(tmp_path, sections, inline, machine="helpers.fake_sections:NoMachine")
    assert list(report["sections"]) == ["device"] and exit_code(report, sections) == 2
    assert "no CUDA device" in report["sections"]["device"]["reason"]


@pytest.mark.parametrize(
    "names, code",
    [(["good", "sees"], 0), (["good", "shortened"], 0), (["good", "does_not_apply"], 0), (["raises", "good"], 1)],
)
def test_exit_code(tmp_path, names, code):
    sections = [section(name) for name in names]
    assert exit_code(check(tmp_path, sections, inline), sections) == code


def test_a_runtime_that_did_not_run_is_a_failure(tmp_path):
    """Kernels may all be right: without the runtime the check is not green."""
    sections = [section("good"), section("does_not_apply", runtime=True)]
    assert exit_code(check(tmp_path, sections, inline), sections) == 1


def test_a_budget_that_ends_before_the_runtime_is_a_failure(tmp_path):
    sections = [section("good"), section("sees", least=1e9, runtime=True)]
    assert exit_code(check(tmp_path, sections, inline), sections) == 1


def test_only_names_sections_and_groups_and_takes_what_they_need():
    assert [s.name for s in chosen("nano_plain")] == ["machine", "nano_on_cpu", "nano_plain"]
    assert [s.name for s in chosen("clicks")][:2] == ["machine", "nano_on_cpu"] and len(chosen("clicks")) == 5
    assert chosen(None) == list(SECTIONS)
    with pytest.raises(SystemExit, match="no section speed; there are machine, ceilings"):
        chosen("nano, speed")


def test_the_order_is_that_of_value():
    names = [s.name for s in SECTIONS]
    assert len(set(names)) == len(names)
    order = ["machine", "ceilings", "shipped_kernels", "frames_and_masks", "nano_plain", "nano_graphs", "nano_kernels"]
    order += ["clicks_plain", "base_stages", "base_plain", "base_graphs", "base_kernels", "pytorch_eager"]
    order += ["pytorch_compiled", "objects", "streams", "sweep_flash", "sweep_tma", "sweep_specialized"]
    assert sorted(order, key=names.index) == order and names[-1] == "sweep_specialized"
    for s in SECTIONS:
        assert callable(gpu_run.load(s.function)) and s.least <= s.limit
        assert all(names.index(needed) < names.index(s.name) for needed in s.after)


def test_clocks_and_power_are_kept_beside_times():
    lines = iter(["1980, 2619, 512.3, 54, 98\n", "1755, 2619, [N/A], 55, 100\n", "\n"])
    begin, done = time.monotonic(), threading.Event()

    def ask():
        line = next(lines, None)
        if line is None:
            done.set()
        return line or ""

    with Monitor(ask, period=0.0) as monitor:
        assert done.wait(PATIENCE)
    found = monitor.summary(begin, time.monotonic())
    assert found["sm_mhz"] == {"min": 1755.0, "median": 1867.5, "max": 1980.0}
    assert found["watts"] == {"min": 512.3, "median": 512.3, "max": 512.3} and set(found) == set(FIELDS)
    assert monitor.summary(begin - 2, begin - 1) == {}


def test_a_machine_without_nvidia_smi_has_no_clocks(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with Monitor() as monitor:
        time.sleep(0.01)
    assert monitor.summary(0.0, time.monotonic()) == {}


def test_command(tmp_path, monkeypatch, capsys):
    """Without a device it ends with 2 and says why; what is not given has its usual value."""
    monkeypatch.chdir(tmp_path)
    assert gpu_check.main(["--only", "ceilings"]) == 2
    assert "failed machine" in capsys.readouterr().out
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert report["budget_seconds"] == 600 and report["sections"]["machine"]["status"] == "failed"


def test_help(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "for all sections (default: 600)" in text and "folder of bundles (default: engines)" in text
