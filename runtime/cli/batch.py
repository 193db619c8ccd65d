"""A folder of pictures and a list of sentences about each: `--image FOLDER --sentences FILE`.

The list is CSV with a header line (`picture,sentence`, one line per sentence) or JSON, either
`{"a.jpg": ["the dog", "the cat"]}` or `[{"picture": "a.jpg", "sentences": ["the dog", "the cat"]}]`. Every picture gets
a folder of its own in --out, with the files that a run with one picture writes; what is there stays when a run is
stopped.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import PromptError, UserError, VideoError
from ..media.image_files import read_image
from ..prompts import Text
from .writers import Outputs

COLUMNS = ("picture", "sentence")


def read_list(path: Path) -> dict[str, list[Text]]:
    """Sentences by picture, in the order of the file. Raises UserError that names the line or the entry."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --sentences takes a CSV or JSON file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); save it as UTF-8") from None
    found: dict[str, list[Text]] = {}
    for where, picture, sentence in (_json if path.suffix.lower() == ".json" else _csv)(path, text):
        if not isinstance(picture, str) or not picture.strip():
            raise UserError(f"{where}: no picture is named")
        if Path(picture).is_absolute() or ".." in Path(picture).parts:
            raise UserError(f"{where}: {picture!r} does not lie in the folder of --image")
        try:
            found.setdefault(picture.strip(), []).append(Text(sentence))
        except PromptError as error:
            raise UserError(f"{where}: {error}") from None
    if not found:
        raise UserError(f"{path}: holds no sentence")
    return found


def _csv(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
    rows = csv.DictReader(text.splitlines())
    missing = [c for c in COLUMNS if c not in (rows.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: the first line must name the columns {','.join(COLUMNS)}")
    try:
        for row in rows:
            yield f"{path}, line {rows.line_num}", row["picture"], row["sentence"]
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: not CSV ({error})") from None


def _json(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if isinstance(data, dict):
        data = [{"picture": picture, "sentences": sentences} for picture, sentences in data.items()]
    if not isinstance(data, list):
        raise UserError(f"{path}: must be an object of lists, or a list of objects with picture and sentences")
    for number, entry in enumerate(data):
        sentences = entry.get("sentences") if isinstance(entry, dict) else None
        if isinstance(sentences, str):
            sentences = [sentences]
        if not isinstance(sentences, list):
            raise UserError(f"{path}, entry {number}: needs a picture and a list of sentences")
        for sentence in sentences:
            yield f"{path}, entry {number}", entry.get("picture"), sentence


def run(args: Any, load: Any) -> int:
    """The command for a list: one result per picture. Raises UserError, before anything runs if a picture is amiss."""
    if args.video is None or not Path(args.video).is_dir():
        raise UserError("--sentences needs a folder of pictures: --image FOLDER")
    if args.asked or args.auto:
        raise UserError("--sentences says what to look for; leave --text, clicks and --auto away")
    folder, listed = Path(args.video), read_list(Path(args.sentences))
    for picture in listed:
        if not (folder / picture).is_file():
            raise VideoError(f"{folder / picture}: no such picture; {args.sentences} names it")
    names = [_stem(p) if [_stem(q) for q in listed].count(_stem(p)) == 1 else p for p in listed]
    start, done = time.perf_counter(), 0
    with load(
        args.engine, model=args.model, backend=args.backend, threads=args.threads, kernels=args.kernels
    ) as engine:
        for (picture, prompts), name in zip(listed.items(), names):
            _one(args, engine, folder / picture, name, prompts)
            done += len(prompts)
            if not args.json:
                print(f"{picture}: {len(prompts)} sentence{'s' * (len(prompts) > 1)}", file=sys.stderr)
    seconds = time.perf_counter() - start
    if args.json:
        numbers = {"pictures": len(listed), "sentences": done, "seconds": round(seconds, 3)}
        print(json.dumps({**numbers, "out": str(args.out)}))
    else:
        print(f"{len(listed)} pictures, {done} sentences in {seconds:.1f} s; written: {args.out}")
    return 0


def _stem(picture: str) -> str:
    """A picture's name without its ending, which names its folder unless two pictures share it."""
    return Path(picture).with_suffix("").as_posix()


def _one(args: Any, engine: Any, path: Path, name: str, prompts: list[Text]) -> None:
    frame, start = read_image(path), time.perf_counter()
    result = engine.image(frame).refer(prompts)
    seconds = time.perf_counter() - start
    labels = {i: prompt.label for i, prompt in enumerate(prompts, 1)}
    manifest = engine.bundle.manifest
    header = {
        "picture": {"name": path.name, "width": frame.shape[1], "height": frame.shape[0]},
        "model": {
            "bundle": engine.bundle.name,
            "network": manifest.network_names,
            "variant": manifest.variant,
            "precision": manifest.precision,
            "backend": engine.backend.name,
        },
        "objects": [{"id": i, "prompt": label} for i, label in labels.items()],
    }
    outputs = Outputs(Path(args.out) / name, frame.shape[:2], 1.0, labels, header, args.overlay, args.masks, still=True)
    with outputs:
        outputs.add(Path(name).name, frame, result)
        outputs.close({"complete": True, "seconds": round(seconds, 4)})
