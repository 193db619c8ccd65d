"""Table of the variants with less latency, by kind of sentence."""

from benchmarks import accuracy_tables


def variant(*scores):
    kinds = ("noun", "motion", "motion")
    records = [
        {"clip": str(i), "text": kind, "kind": kind, "unseen": False, "j": jf, "f": jf}
        for i, (kind, jf) in enumerate(zip(kinds, scores, strict=True))
    ]
    return {"table": {"noun": {"J&F": scores[0]}, "motion": {"J&F": (scores[1] + scores[2]) / 2}}, "records": records}


def test_differences_are_paired_within_each_kind():
    variants = {"text": variant(0.8, 0.6, 0.4), "low latency": variant(0.8, 0.5, 0.3)}
    variants |= {"clips of four": variant(0.7, 0.6, 0.2), "clips of one frame": variant(0.8, 0.1, 0.1)}
    rows = accuracy_tables.latency({"variants": variants}).splitlines()[-2:]
    assert rows == [
        "| motion | 2 | 0.500 | -0.100 (-0.100 .. -0.100) | -0.100 (-0.200 .. +0.000) | -0.400 (-0.500 .. -0.300) |",
        "| noun | 1 | 0.800 | +0.000 (+0.000 .. +0.000) | -0.100 (-0.100 .. -0.100) | +0.000 (+0.000 .. +0.000) |",
    ]
