"""Fuzzing of everything that reads untrusted input: targets, invariants, and the coverage-guided campaign."""

TARGETS = {
    "manifest": "bundles",
    "prompt": "prompts",
    "video": "videos",
    "checkpoint": "checkpoints",
    "tokenizer": "tokenizer_files",
}
"""Target -> module that defines it as `TARGET`; `checkpoint` and `tokenizer` need torch. Imports nothing: `run.py`
instruments the readers before they are imported."""
