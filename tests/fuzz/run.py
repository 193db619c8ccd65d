"""Coverage-guided fuzzing of one target with atheris (libFuzzer for Python).

    python tests/fuzz/run.py video -max_total_time=600
    python tests/fuzz/run.py manifest corpus/ -artifact_prefix=out/     # keeps its corpus, and continues from it

libFuzzer drives the Hypothesis strategies and invariants of `tests/fuzz/test_fuzz.py`, guided by the branches of
`runtime/` and `export/`, until the time is over or an invariant is violated: then it writes the input to a file
`crash-*`, which repeats the finding when it is given as argument. Options are libFuzzer's (`-help=1` lists them).
Needs atheris: pip install 'samwise-runtime[fuzz]'.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]  # the packages of the clone and of its tests, from any folder

from fuzz import TARGETS

OPTIONS = ("-max_len=8192", "-len_control=0", "-timeout=120", "-rss_limit_mb=6000", "-print_final_stats=1")


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python tests/fuzz/run.py {{{','.join(TARGETS)}}} [folder of inputs] [libFuzzer option ...]")
    import atheris
    from hypothesis import given, settings

    with atheris.instrument_imports(include=["runtime", "export"]):
        from fuzz.targets import target

        chosen = target(sys.argv[1])
        for example in chosen.examples():
            chosen.check(example)  # imports what a reader imports late

    @settings(database=None, deadline=None)
    @given(chosen.inputs)
    def check(value: Any) -> None:
        chosen.check(value)

    atheris.Setup([sys.argv[0], *OPTIONS, *sys.argv[2:]], check.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
