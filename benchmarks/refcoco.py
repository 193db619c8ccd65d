"""RefCOCO, RefCOCO+ and RefCOCOg in the REFER layout: oIoU, mIoU and precision of a bundle.

    python -m benchmarks.refcoco --engine engines/refersam --data refer/refcoco --images refer/train2014 --split val

`--data` holds `instances.json` (COCO: images, annotations with polygons or run lengths) and `refs(unc).p`,
`refs(umd).p`, `refs(google).p` or the same list as `refs.json`. A `.p` is a pickle; it is read with an unpickler that
makes nothing but plain values. Every sentence counts once:

    oIoU   sum of intersections / sum of unions       mIoU   mean of the sentences' IoU
    P@X    share of sentences with an IoU of at least X

Masks are scored at the image's own size. `--at-input` scores at the network's size against the target shrunk to it
(nearest neighbour), as CARIS does it, whose figures ReferSAM's paper continues. Sentences longer than the bundle takes
are cut as in training: plainly for BERT, keeping the end token for CLIP.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

import runtime
from runtime.errors import SamwiseRuntimeError, UserError, fail
from runtime.imaging.upsample import CornerAlignedUpsampler
from runtime.media.image_files import read_image
from runtime.prompts import Text
from runtime.tokenizer import Tokenizer

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class Reference:
    """One object of one image with its sentences; `mask` (H,W) bool."""

    image: str
    mask: np.ndarray
    sentences: tuple[str, ...]


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, strings, lists, dicts; a pickle that names any class is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it wants {module}.{name}")


def load_references(data: Path, split: str) -> Iterator[Reference]:
    """Read the references of a split, image by image. Raises UserError for missing or malformed files."""
    references, instances = _references(data), _json(data / "instances.json")
    try:
        by_id = {image["id"]: image for image in instances["images"]}
        objects = {annotation["id"]: annotation for annotation in instances["annotations"]}
        chosen = [r for r in references if r["split"] == split]
        if not chosen:
            splits = ", ".join(sorted({r["split"] for r in references}))
            raise UserError(f"{data}: no reference of split {split!r}; there are {splits}")
        for r in sorted(chosen, key=lambda r: r["image_id"]):
            image = by_id[r["image_id"]]
            mask = decode(objects[r["ann_id"]]["segmentation"], image["height"], image["width"])
            yield Reference(image["file_name"], mask, tuple(s["sent"] for s in r["sentences"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{data}: not in the REFER layout ({type(error).__name__}: {error})") from None


def _references(data: Path) -> list[dict[str, Any]]:
    if (data / "refs.json").is_file():
        return _json(data / "refs.json")
    files = sorted(data.glob("refs*.p"))
    if not files:
        raise UserError(f"{data}: holds neither refs.json nor refs(...).p; --data is the folder of one data set")
    try:
        return _PlainUnpickler(io.BytesIO(files[0].read_bytes()), encoding="utf-8").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{files[0]}: not a list of plain values ({' '.join(str(error).split())[:100]})") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; --data is the folder of one data set") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode COCO's three forms of a mask (polygons, run lengths, compressed run lengths) as bool (H,W)."""
    if isinstance(segmentation, list):
        lengths = coco.frPyObjects(segmentation, height, width)
    elif isinstance(segmentation["counts"], list):
        lengths = [coco.frPyObjects(segmentation, height, width)]
    else:
        lengths = [segmentation]
    return coco.decode(coco.merge(lengths)).astype(bool)


@dataclass(slots=True)
class Score:
    """Sums over sentences."""

    intersection: int = 0
    union: int = 0
    ious: list[float] = field(default_factory=list)

    def add(self, mask: np.ndarray, target: np.ndarray) -> None:
        both, either = int((mask & target).sum()), int((mask | target).sum())
        self.intersection, self.union = self.intersection + both, self.union + either
        self.ious.append(both / either if either else 0.0)

    def figures(self) -> dict[str, float]:
        """In percent."""
        ious = np.array(self.ious)
        precision = {f"P@{x:g}": 100 * float((ious >= x).mean()) for x in THRESHOLDS}
        return {"oIoU": 100 * self.intersection / max(1, self.union), "mIoU": 100 * float(ious.mean()), **precision}


def prompt(engine: runtime.Engine, tokenizer: Tokenizer | None, sentence: str) -> Text:
    """Return the sentence, truncated to the bundle's maximum length."""
    text = engine.bundle.manifest.text or {}
    tokens = tokenizer(" ".join(sentence.lower().split()))[0] if tokenizer else []
    if len(tokens) <= text["max_tokens"]:
        return Text(sentence)
    cut = tokens[: text["max_tokens"]]
    return Text(tokens=[*cut[:-1], tokens[-1]] if text.get("keep_end") else cut)


def evaluate(
    engine: runtime.Engine, references: Iterable[Reference], images: Path, at_input: bool = False
) -> dict[str, Any]:
    """Compute figures over all sentences, with their number and the seconds it took."""
    manifest = engine.bundle.manifest
    tokenizer = Tokenizer.of(engine.bundle.folder, manifest)
    size = (manifest.image_size, manifest.image_size)
    score, start = Score(), time.perf_counter()
    for name, of_image in groupby(references, lambda r: r.image):
        image = engine.image(read_image(images / name))
        for reference in of_image:
            target = reference.mask
            if image.size != target.shape:
                raise UserError(f"{images / name}: is {image.size}, its masks are {target.shape}")
            result = image.refer([prompt(engine, tokenizer, s) for s in reference.sentences], logits=at_input)
            masks, low = result.masks, result.low_res_logits
            if at_input and low is not None:
                masks = CornerAlignedUpsampler(low.shape[1], size).masks(low)
                target = np.asarray(Image.fromarray(target).resize(size, Image.Resampling.NEAREST))
            for mask in masks:
                score.add(mask, target)
    if not score.ious:
        raise UserError("no reference to score; raise --limit")
    return {**score.figures(), "sentences": len(score.ious), "seconds": time.perf_counter() - start}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refcoco", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--engine", default="engines", help="a bundle, or a folder of bundles with --model")
    add("--model", help="name of the bundle or of the network")
    add("--backend", default="auto")
    add("--threads", type=int)
    add("--data", required=True, type=Path, help="folder with instances.json and refs(...).p or .json")
    add("--images", required=True, type=Path, help="folder of the images")
    add("--split", default="val", help="val, testA, testB, test (default: %(default)s)")
    add("--limit", type=int, help="only the first N objects")
    add("--at-input", action="store_true", help="score at the network's size")
    options = parser.parse_args(arguments)
    try:
        with runtime.load(options.engine, options.model, options.backend, options.threads) as engine:
            references = islice(load_references(options.data, options.split), options.limit)
            figures = evaluate(engine, references, options.images, options.at_input)
    except SamwiseRuntimeError as error:
        return fail(error)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
