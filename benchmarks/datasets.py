"""Clips with sentences and ground truth: the nano dataset, and folders in the layouts of public data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export.nano.scores import Record, score


@dataclass(frozen=True, slots=True)
class Case:
    """One clip. `frames()` yields uint8 (H,W,3); sentence k refers to `masks[k]` (T,H,W) bool. `annotated`: the frames
    with ground truth, None for all."""

    name: str
    frames: Callable[[], Iterator[np.ndarray]]
    texts: list[str]
    masks: list[np.ndarray]
    kinds: list[str] = field(default_factory=list)
    unseen: list[bool] = field(default_factory=list)
    annotated: frozenset[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", self.kinds or ["sentence"] * len(self.texts))
        object.__setattr__(self, "unseen", self.unseen or [False] * len(self.texts))

    def promptable(self) -> Case:
        """Return one sentence per object, of those that show well on frame 0: for clicks, boxes and masks there."""
        chosen: list[int] = []
        for k, mask in enumerate(self.masks):
            shows = mask[0].sum() > max(60, 0.3 * mask.sum(axis=(1, 2)).max())
            if shows and not any((self.masks[c] == mask).all() for c in chosen):
                chosen.append(k)

        def of(values: list[Any]) -> list[Any]:
            return [values[k] for k in chosen]

        return replace(self, texts=of(self.texts), masks=of(self.masks), kinds=of(self.kinds), unseen=of(self.unseen))

    def records(self, predicted: np.ndarray, skip: int = 0) -> list[Record]:
        """Return the scores of predicted masks (N,T,H,W), over the annotated frames from `skip` on."""
        columns = zip(predicted, self.masks, self.texts, self.kinds, self.unseen, strict=True)
        records = []
        for mask, truth, text, kind, unseen in columns:
            counted = [t for t in range(skip, len(truth)) if self.annotated is None or t in self.annotated]
            records.append(Record(self.name, text, kind, unseen, *score(mask[counted], truth[counted])))
        return records


def nano(count: int, first: int = 0, split: str = "test", kinds: tuple[str, ...] | None = None) -> Iterator[Case]:
    """Yield clips of the nano dataset, drawn on the fly. `kinds`: only contrast groups of these kinds, in the longest
    clips. Needs the sprites (see `export.nano.sprites`)."""
    from export.nano.dataset import TEST_LENGTHS, SyntheticDataset, test_clips

    dataset = SyntheticDataset()
    clips = (
        test_clips(dataset, count, split, first)
        if kinds is None
        else (dataset.clip(split, seed, TEST_LENGTHS[-1], kinds) for seed in range(first, first + count))
    )
    for i, clip in enumerate(clips):
        said = clip.expressions
        columns = (
            [e.text for e in said],
            [clip.masks(e) for e in said],
            [e.kind for e in said],
            [e.unseen for e in said],
        )
        yield Case(f"{split}{first + i}", partial(iter, clip.frames), *columns)


def read_images(paths: list[Path]) -> Iterator[np.ndarray]:
    """Yield the images, uint8 (H,W,3)."""
    for path in paths:
        yield np.asarray(Image.open(path).convert("RGB"))


def need(path: Path) -> Path:
    """Return `path`. Raises FileNotFoundError that says what may be wrong if it is missing."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; is --data the folder that holds it, and --layout right?")
    return path


def frame_files(folder: Path, names: list[str] | None = None) -> list[Path]:
    """Return the images of a folder, in the order of `names` if given. Raises FileNotFoundError."""
    files = sorted(p for p in need(folder).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    by_name = {p.stem: p for p in files}
    if missing := sorted(set(names or ()) - by_name.keys()):
        raise FileNotFoundError(
            f"{folder}: lacks the image of frame {missing[0]}, {len(missing)} of {len(names or ())}"
        )
    return files if names is None else [by_name[n] for n in names]


def _indexed(folder: Path, frames: list[Path]) -> tuple[np.ndarray, frozenset[int] | None]:
    """Object numbers (T,H,W) of indexed PNGs, and which frames have one."""
    found = {t: folder / f"{p.stem}.png" for t, p in enumerate(frames)}
    found = {t: p for t, p in found.items() if p.is_file()}
    if not found:
        raise FileNotFoundError(f"{folder}: no mask for any frame")
    first = np.asarray(Image.open(next(iter(found.values()))))
    owners = np.zeros((len(frames), *first.shape[:2]), np.uint8)
    for t, path in found.items():
        owners[t] = np.asarray(Image.open(path))
    return owners, None if len(found) == len(frames) else frozenset(found)


def pictures(root: Path, video: str) -> Path:
    """Return JPEGImages/video, or the folder under the resolution folder that DAVIS puts between."""
    folders = [root / "JPEGImages" / size / video for size in ("480p", "Full-Resolution", "")]
    return next((f for f in folders if f.is_dir()), None) or need(folders[-1])


def expressions(root: Path) -> Iterator[Case]:
    """DAVIS-17, Ref-YouTube-VOS: JPEGImages, Annotations (indexed PNG), meta_expressions.json with exp and obj_id."""
    meta = json.loads(need(root / "meta_expressions.json").read_text(encoding="utf-8"))["videos"]
    for video, entry in meta.items():
        folder = pictures(root, video)
        frames = frame_files(folder, entry.get("frames"))
        annotations = root / "Annotations" / folder.relative_to(root / "JPEGImages")
        annotations = annotations if annotations.is_dir() else need(root / "Annotations" / video)
        owners, annotated = _indexed(annotations, frames)
        said = list(entry["expressions"].values())
        masks = [owners == int(e["obj_id"]) for e in said]
        yield Case(video, partial(read_images, frames), [e["exp"] for e in said], masks, annotated=annotated)


def mevis(root: Path) -> Iterator[Case]:
    """MeViS: JPEGImages, meta_expressions.json (exp, anno_id) and mask_dict.json (COCO run-length codes per frame)."""
    from pycocotools import mask as coco

    meta = json.loads(need(root / "meta_expressions.json").read_text(encoding="utf-8"))["videos"]
    codes = json.loads(need(root / "mask_dict.json").read_text(encoding="utf-8"))
    for video, entry in meta.items():
        frames = frame_files(pictures(root, video), entry.get("frames"))
        texts, masks = [], []
        for e in entry["expressions"].values():
            coded = [codes[str(a)] for a in e["anno_id"]]
            size = next(code["size"] for by_frame in coded for code in by_frame if code is not None)
            union = np.zeros((len(frames), *size), bool)
            for by_frame in coded:
                for t, code in enumerate(by_frame[: len(frames)]):
                    if code is not None:
                        union[t] |= coco.decode(code).astype(bool)
            masks.append(union)
            texts.append(e["exp"])
        yield Case(video, partial(read_images, frames), texts, masks)


LAYOUTS: dict[str, Callable[[Path], Iterator[Case]]] = {"davis": expressions, "ytvos": expressions, "mevis": mevis}
