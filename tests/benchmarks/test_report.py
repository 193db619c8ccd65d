"""Published tables: generated from measurements, and up to date."""

import copy
import json
from types import SimpleNamespace

import pytest

from benchmarks import accuracy_tables, report, tables

MACHINE = {
    "cpu": "Some CPU",
    "cores": 2,
    "threads": None,
    "onnxruntime": "1.31",
    "torch": "2.13",
    "backend": "ort",
    "matmul_gflops": 200.0,
    "command": "pytest benchmarks/ --engine=/home/me/engines/toy --checkpoint /a/b.pth",
}


def case(name, median, **info):
    shared = {"machine": MACHINE, "bundle": "toy", "precision": "fp32", "bundle_sha256": "abc"}
    return {
        "name": f"{name}[toy]",
        "stats": {"rounds": 3, "median": median, "data": [median] * 3},
        "extra_info": shared | info,
    }


@pytest.fixture
def measured():
    return {
        "datetime": "2026-11-20T10:00:00",
        "benchmarks": [
            case("test_sentences", 1.0, sentences=1, per_sentence=1.0, frames_per_second=8.0, peak_rss_mb=300),
            case("test_sentences", 1.6, sentences=2, per_sentence=0.8, frames_per_second=5.0, peak_rss_mb=400),
            case(
                "test_sentence",
                9.0,
                pytorch="eager",
                frames=16,
                frames_per_second=8.5,
                runtime_seconds=[2.0, 1.0],
                pytorch_seconds=[4.0, 3.0],
                pytorch_over_runtime=2.5,
                worst_iou=0.9999,
                mean_iou=1.0,
            ),
            case("test_objects", 0.3, objects=1, seconds_per_frame=0.3, seconds_of_objects=0.1, gflop_of_objects=2.0),
            case(
                "test_objects",
                0.4,
                objects=2,
                seconds_per_frame=0.4,
                seconds_of_objects=0.19,
                gflop_of_objects=4.0,
                further_over_own=1.0,
            ),
            case(
                "test_stage",
                0.01,
                stage="neck",
                sizes={"frames": 1},
                gflop=1.0,
                p50=0.01,
                p95=0.012,
                gflops=100.0,
                of_matmul_peak=0.5,
            ),
            case("test_export", 100.0, peak_rss_of_command_mb=1234),
            {"name": "test_kernel", "stats": {}, "extra_info": {}},
        ],
    }


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_summarized_figures_reach_the_tables(measured):
    kept = report.summarize(measured)["cpu-toy-ort.json"]
    assert len(kept["cases"]) == 7 and "machine" not in kept["cases"][0]
    assert tables.second_over_first(kept) == pytest.approx(0.6)
    page = tables.page([kept])
    line = tables.overview([kept]).splitlines()[2]
    assert cells(line) == ["toy (fp32)", "ort", "8.5", "", "2.5x", "0.6", "", "300 MB"]
    assert "| toy (fp32) | ort | 8.5 | 2.5x | 0.6 | 300 MB |" in page
    assert cells(tables.summary([kept]).splitlines()[2]) == ["toy (fp32)", "8.5", "", "2.5x", "300 MB"]
    for row in (
        "| a sentence | eager | 16 | 1.5 | 3.5 | 2.5x | 0.9999 | 1 |",
        "| 2 | 0.4 | 0.19 | 4 | 2 | 1.9 | 1 |",
        "| `neck` | frames 1 | 10 | 12 | 1 | 100 | 0.5 |",
        "every stage and a clip compared | 100 | 1234 |",
        "Some CPU, 2 cores",
    ):
        assert row in page, row
    assert "`pytest benchmarks/ --engine=toy --checkpoint b.pth`" in page
    assert "first mask" not in page  # not measured, not mentioned


def test_a_note_is_shown_in_both_texts(measured):
    kept = report.summarize(measured)["cpu-toy-ort.json"] | {"note": "Beside other work."}
    summary = tables.summary([kept])
    assert "| toy (fp32) * |" in summary and "\n\\* toy: Beside other work.\n" in summary
    assert "**Beside other work.**" in tables.page([kept])


def test_file_without_figures_is_refused(measured):
    with pytest.raises(ValueError, match="no case"):
        report.summarize(measured | {"benchmarks": measured["benchmarks"][-1:]})


def test_new_cases_replace_old_ones_of_the_same_bundle(measured, tmp_path):
    old = report.summarize(measured)["cpu-toy-ort.json"]
    target = tmp_path / "cpu-toy-ort.json"
    target.write_text(json.dumps(old))
    new = copy.deepcopy(old) | {"cases": [{"name": "test_sentences", "sentences": 1, "median": 0.5}]}
    merged = report.merge(target, new)
    assert [c["median"] for c in merged["cases"] if c["name"] == "test_sentences"] == [0.5]
    assert {c["name"] for c in merged["cases"]} == {
        "test_sentences",
        "test_sentence",
        "test_objects",
        "test_stage",
        "test_export",
    }
    assert report.merge(target, new | {"bundle_sha256": "other"})["cases"] == new["cases"]


def test_pytorch_variants_are_kept_apart(measured, tmp_path):
    """One may be measured later than the other."""
    old = report.summarize(measured)["cpu-toy-ort.json"]
    target = tmp_path / "cpu-toy-ort.json"
    target.write_text(json.dumps(old))
    eager = next(c for c in old["cases"] if c["name"] == "test_sentence")
    merged = report.merge(target, old | {"cases": [eager | {"pytorch": "compiled", "pytorch_over_runtime": 2.0}]})
    page = tables.page([merged])
    assert "| a sentence | eager | 16 | 1.5 | 3.5 | 2.5x |" in page
    assert "| a sentence | torch.compile | 16 | 1.5 | 3.5 | 2x |" in page


def test_sentences_on_pictures():
    kept = report.summarize(
        {
            "datetime": "2026-11-20",
            "benchmarks": [
                case("test_first_sentence", 2.0, sentences=1),
                case("test_further_sentences", 0.5, sentences=1, per_sentence=0.5),
                case("test_further_sentences", 0.8, sentences=2, per_sentence=0.4),
                case("test_torch_eager", 6.0, folded=True),
            ],
        }
    )
    page, line = tables.page(list(kept.values())), tables.overview(list(kept.values())).splitlines()[2]
    assert (
        "| known, 2 more | 0.8 | 0.4 |" in page and "| new, with one sentence, in PyTorch with our folds | 6 |" in page
    )
    assert line.split("|")[6].strip() == "0.25"


def test_concepts_say_what_limits_them():
    figures = {"runtime_seconds": [36.0, 2.9], "pytorch_seconds": [41.0, 5.0], "pytorch_over_runtime": 1.139}
    figures |= {"second_over_first": 0.0806, "trunk_seconds": 33.3, "trunk_gflop": 5390.0, "peak_rss_mb": 9000}
    kept = report.summarize({"datetime": "2026-11-26T10:00:00", "benchmarks": [case("test_concepts", 80.0, **figures)]})
    (measured,) = kept.values()
    text = tables.page([measured])
    assert "| 36 | 2.9 | 0.081 | 41 | 5 | 1.14x |" in text
    assert "5.39 TFLOP, 26.9 s at the rate of a large product here; the trunk takes 33.3 s, 81% of that rate" in text
    assert "| toy (fp32) | ort | 1.14x | 0.081 |" in text


def test_operations_of_the_published_trunk():
    pytest.importorskip("torch")
    from benchmarks.bench_sam3 import trunk_operations

    sizes = {"image_size": 1008, "patch_size": 14, "window_size": 24, "hidden_size": 1024, "intermediate_size": 4736}
    trunk = SimpleNamespace(**sizes, num_hidden_layers=32, global_attn_indexes=[7, 15, 23, 31])
    config = SimpleNamespace(vision_config=SimpleNamespace(backbone_config=trunk))
    assert trunk_operations(SimpleNamespace(config=config)) == pytest.approx(5.4e12, rel=0.01)


def test_numbers_are_short_and_without_exponents():
    assert [tables.number(x) for x in (None, 0.0123456, 1234.5, 2.0, 999.6, 12345678.0)] == [
        "",
        "0.0123",
        "1230",
        "2",
        "1000",
        "12300000",
    ]


def test_the_readme_has_a_small_table():
    lines = tables.summary(report.load()).splitlines()
    rows = lines[: lines.index("")]
    assert len(rows) - 2 <= 5 and all(len(cells(row)) <= 5 for row in rows)


def test_published_texts_are_up_to_date():
    assert report.stale_files(report.load(), report.load_accuracy()) == []


def test_staleness_is_detected():
    results, accuracy = report.load(), report.load_accuracy()
    assert results and accuracy, "no measurement is committed"
    elsewhere = copy.deepcopy(results)
    elsewhere[0]["machine"]["cpu"] = "Other CPU"
    assert report.stale_files(elsewhere, accuracy) == ["benchmarks.md", "README.md"]
    worse = copy.deepcopy(accuracy)
    worse[0]["variants"]["text"]["table"]["all"]["J&F"] -= 0.2
    assert report.stale_files(results, worse) == ["README.md", "nano.md"]


def test_accuracy_reaches_the_tables():
    row = {"n": 3, "J": 0.7, "F": 0.8, "J&F": 0.75, "interval": [0.7, 0.8]}
    measured = {
        "clips": 2,
        "kinds": ["later"],
        "variants": {
            "text": {"table": {"all": row, "later": row, "noun": {"n": 0}}},
            "memory off": {
                "table": {"all": row},
                "against_first": {"n": 3, "difference": -0.1, "interval": [-0.2, -0.05]},
            },
        },
    }
    text = accuracy_tables.nano([measured])
    assert (
        "2 clips of later:" in text
        and "| memory off | 3 | 0.700 | 0.800 | **0.750** | 0.700 .. 0.800 | -0.100 (-0.200 .. -0.050) |" in text
    )
    assert "| later | 3 |" in text and "noun" not in text
    assert accuracy_tables.nano_line([measured]).startswith("nano on 2 unseen clips, J&F: text 0.75 (")


def test_a_readme_without_marks_is_an_error():
    with pytest.raises(ValueError, match="marks"):
        report.replace_section("# Nothing", "text")


def test_the_plot_is_drawn(measured, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import plot

    files = plot.draw(list(report.summarize(measured).values()), tmp_path / "plot")
    assert [f.suffix for f in files] == [".png", ".svg"] and all(f.stat().st_size > 5000 for f in files)
