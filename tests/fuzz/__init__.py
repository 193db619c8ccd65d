"""Fuzzing of everything that reads untrusted input: targets, invariants, and the coverage-guided campaign."""

TARGETS = ("manifest", "prompt", "video", "checkpoint", "tokenizer")
"""Modules that define a `TARGET`; `checkpoint` and `tokenizer` need torch. Not imported here: `run.py` instruments the
readers before they are imported."""
