"""Batch mode of the command: `--image FOLDER --sentences FILE`, a folder of images and a list of sentences about each.

The list is CSV with a header line (`picture,sentence`, one line per sentence) or JSON, either
`{"a.jpg": ["the dog", "the cat"]}` or `[{"picture": "a.jpg", "sentences": ["the dog", "the cat"]}]`. Every image has a
folder of its own in --out, named by its stem or by its whole name where stems are equal, with the files of a run on one
image; those written before a run is stopped stay. An image that fails does not end the batch, but gives exit code 2.

With a bundle that takes concepts, a sentence names all objects of a kind.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from ..engine import Engine
from ..errors import PromptError, UserError, VideoError, summarize
from ..media.frame_names import unique_names
from ..media.image_files import read_image
from ..models.base import Capability
from ..prompts import Concept, Text
from ..results import Result
from .args import choose_max_objects
from .concept_task import detect, join
from .output_folder import OutputFolder, identities
from .summary import describe_engine
from .text_files import read_json, read_text
from .writers import OutputOptions, Outputs, check_ids

COLUMNS = ("picture", "sentence")


def read_sentences(path: Path) -> dict[str, list[Text]]:
    """Read the sentences by image, in the order of the file. Raises UserError that names the line or the entry."""
    sentences: dict[str, list[Text]] = {}
    parse = _parse_json if path.suffix.lower() == ".json" else _parse_csv
    for where, image, sentence in parse(path):
        if not isinstance(image, str) or not image.strip():
            raise UserError(f"{where}: the name of the image is missing")
        if Path(image).is_absolute() or ".." in Path(image).parts:
            raise UserError(f"{where}: {image!r} is outside the folder of --image")
        if sentence is None:
            raise UserError(f"{where}: the sentence is missing")
        try:
            sentences.setdefault(Path(image.strip()).as_posix(), []).append(Text(sentence))
        except PromptError as error:
            raise UserError(f"{where}: {error}") from None
    if not sentences:
        raise UserError(f"{path}: no sentence in it")
    return sentences


def _parse_csv(path: Path) -> Iterator[tuple[str, Any, Any]]:
    text = read_text(path)
    first, _, rest = text.partition("\n")
    if first.startswith("sep="):  # Excel's
        text, first = rest, rest.partition("\n")[0]
    # spreadsheets separate by what the language of the system uses
    delimiter = max(",;\t", key=first.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        if not set(COLUMNS) <= set(rows.fieldnames):
            raise UserError(f"{path}: the first line must name the columns {','.join(COLUMNS)}")
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if None in row:
                quotes = f'put a sentence that holds {delimiter!r} in quotes, like "the dog, on the left"'
                raise UserError(f"{where}: more fields than columns; {quotes}")
            yield where, row["picture"], row["sentence"]
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: not CSV ({summarize(error)})") from None


def _parse_json(path: Path) -> Iterator[tuple[str, Any, Any]]:
    data = read_json(path)
    if isinstance(data, dict):
        data = [{"picture": image, "sentences": sentences} for image, sentences in data.items()]
    if not isinstance(data, list):
        raise UserError(f"{path}: must be an object of lists, or a list of objects with picture and sentences")
    for number, entry in enumerate(data):
        sentences = entry.get("sentences", entry.get("sentence")) if isinstance(entry, dict) else None
        if isinstance(sentences, str):
            sentences = [sentences]
        if not isinstance(sentences, list):
            raise UserError(f"{path}, entry {number}: needs a picture and a list of sentences")
        for sentence in sentences:
            yield f"{path}, entry {number}", entry.get("picture"), sentence


def run(args: argparse.Namespace, load: Callable[..., AbstractContextManager[Engine]]) -> int:
    """Run the batch and return the exit code. Raises UserError, if an image is missing before the engine loads."""
    if not isinstance(args.video, str) or not Path(args.video).is_dir():
        raise UserError("--sentences needs a folder of images: --image FOLDER")
    if args.prompt_args or args.auto:
        raise UserError("--sentences gives the prompts; remove --text, --auto and visual prompts")
    if args.format:
        raise UserError(f"--format {args.format}: not supported by --sentences; remove it")
    folder, sentences = Path(args.video), read_sentences(Path(args.sentences))
    for image in sentences:
        if not (folder / image).is_file():
            raise VideoError(f"{folder / image}: no such image, but {args.sentences} names it")
    names = dict(zip(sentences, unique_names([Path(image).as_posix() for image in sentences]), strict=True))
    inputs = identities([args.sentences, *(folder / image for image in sentences)])
    for name in names.values():
        OutputFolder(Path(args.out) / name, args.overlay, args.masks, is_image=True).check(inputs)
    most = max(map(len, sentences.values()))
    if args.masks:
        check_ids([most])
    max_objects, start = choose_max_objects(args, most), time.perf_counter()
    failed: dict[str, UserError] = {}
    with load(max_objects=max_objects) as engine:
        for image, prompts in sentences.items():
            try:
                _segment(args, engine, folder / image, names[image], prompts)
            except UserError as error:  # of this image; the others are not affected
                failed[image] = error
                print(f"{image}: failed: {error}", file=sys.stderr)
                continue
            if not args.json:
                print(f"{image}: {len(prompts)} sentence{'s' * (len(prompts) > 1)}", file=sys.stderr)
    done = {image: prompts for image, prompts in sentences.items() if image not in failed}
    _print_totals(args, done, failed, time.perf_counter() - start)
    if failed:
        first = next(iter(failed))
        raise UserError(f"{len(failed)} of {len(sentences)} images failed, the first one {first}: {failed[first]}")
    return 0


def _print_totals(
    args: argparse.Namespace, done: dict[str, list[Text]], failed: dict[str, UserError], seconds: float
) -> None:
    sentences = sum(map(len, done.values()))
    if args.json:
        totals = {"pictures": len(done), "sentences": sentences, "seconds": round(seconds, 3), "out": str(args.out)}
        print(json.dumps({**totals, "failed": {image: str(error) for image, error in failed.items()}}))
    else:
        print(f"{len(done)} images, {sentences} sentences in {seconds:.1f} s; written: {args.out}")


def _find(engine: Engine, frame: np.ndarray, prompts: list[Text]) -> tuple[Result, bool]:
    """Return the objects that the sentences name, and whether they are concepts, of several objects each."""
    if engine.capabilities & {Capability.TEXT_IMAGE, Capability.TEXT_VIDEO}:
        return engine.image(frame).refer(prompts), False
    concepts = {number: Concept.of(prompt) for number, prompt in enumerate(prompts, 1)}
    return join(detect(engine, frame, concepts), 0, frame), True


def _segment(args: argparse.Namespace, engine: Engine, path: Path, name: str, prompts: list[Text]) -> None:
    """Segment one image and write its files. Raises UserError, and then leaves no files of an earlier run."""
    notes: list[str] = []
    for earlier in OutputFolder(Path(args.out) / name, args.overlay, args.masks, is_image=True).check():
        earlier.unlink(missing_ok=True)
    frame, start = read_image(path, notes), time.perf_counter()
    result, are_concepts = _find(engine, frame, prompts)
    seconds = time.perf_counter() - start
    height, width = frame.shape[:2]
    header = {"picture": {"name": path.name, "width": width, "height": height}, "model": describe_engine(engine)}
    labels = {i: prompt.label for i, prompt in enumerate(prompts, 1)}
    objects = dict(zip(result.object_ids, result.prompt_ids, strict=True))
    options = OutputOptions(labels, objects, args.overlay, args.masks, is_image=True, concepts=are_concepts)
    with Outputs(Path(args.out) / name, (height, width), 1.0, header, options) as outputs:
        outputs.add(Path(name).name, frame, result)
        outputs.close({"complete": True, "seconds": round(seconds, 4), "notes": notes})
