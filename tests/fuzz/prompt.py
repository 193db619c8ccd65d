"""Fuzz target `prompt`: the command line, prompt files and masks."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers import example_prompts
from runtime.bundle.manifest import Manifest
from runtime.cli.args import build_parser, parse_prompts
from runtime.cli.concept_args import ConceptSet
from runtime.cli.prompt_args import PromptSet
from runtime.tokenizer import encode, verb_positions

from .invariants import InvariantViolation
from .mutations import damaged_json
from .targets import Target

HEIGHT, WIDTH = 48, 64
"""Size of the imagined video."""
MANIFEST = Manifest(
    {"samwise": {"text": {"max_tokens": 16, "vocabulary": 100, "motion": True}}}, "fuzz", "fp32", 32, {}, {}
)
WORDS = (
    *"--text --tokens --verbs --point --box --mask --prompts @0 #1 ,- nan 1e400 FILES/p.json FILES/a.png [[ ]]".split(),
    *("--concept", "--exemplar"),
    *('{"points":', '"labels":', "9" * 5000, "\u0663"),
)


def _prepare(data: Any, inside: Path) -> Callable[[], None]:
    """Read {"argv": [...], "files": {name: text or JSON}}; in `argv`, FILES stands for the folder of the files."""
    data = data if isinstance(data, dict) else {"argv": data}
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 10:30] = 255
    Image.fromarray(mask).save(inside / "a.png")
    files, argv = data.get("files"), data.get("argv")
    for name, text in files.items() if isinstance(files, dict) else ():
        with contextlib.suppress(OSError, ValueError):
            text = text if isinstance(text, str) else json.dumps(text)
            (inside / Path(name).name).write_bytes(text.encode("utf-8", "surrogatepass"))
    argv = [str(a).replace("FILES", str(inside)) for a in argv] if isinstance(argv, list) else []
    # a file that the caller names is read, and a device has no end
    return functools.partial(_parse, [a for a in argv if not a.startswith("/dev")])


def _parse(argv: list[str]) -> None:
    """Parse the command line up to the prompts that a session takes."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            args = build_parser("fuzz").parse_args(argv)
    except SystemExit as error:
        if error.code not in (0, None):
            raise InvariantViolation(f"exit code {error.code} instead of an error") from None
        return
    prompts = parse_prompts(args.prompt_args)
    if isinstance(prompts, ConceptSet):
        prompts.resolve_names(None)
        prompts.check((HEIGHT, WIDTH), args.stride, args.max_frames or 100)
        prompts.changes(args.stride)
        return
    if isinstance(prompts, PromptSet):
        prompts.check((HEIGHT, WIDTH), args.stride, args.max_frames or 100)
        prompts.by_index(args.stride)
        return
    for prompt in prompts:
        if prompt.text is None:
            encode(prompt, MANIFEST, None)
        verb_positions(prompt, MANIFEST, _split)


def _split(text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Number and span of every word."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    return list(range(len(spans))), spans


TARGET = Target(_prepare, example_prompts.examples, damaged_json(example_prompts.examples, WORDS))
