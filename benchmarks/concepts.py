"""Concepts in images and videos on fresh clips of the nano dataset: HOTA with and without association, and cgF1.

    python -m benchmarks.concepts --engine engines/nano-concepts --json benchmarks/results/nano_concepts.json

Each test clip is searched for one concept that is there and one that is not. HOTA is that of `hota.py`, over the
concepts that are there; objects found for absent ones are counted apart. cgF1 is that of SAM 3 (Carion et al., 2025) on
the first frames: 100 times the F1 of all objects of the concepts that are there, averaged over IoU 0.50 .. 0.95, times
Matthews' correlation of finding anything with anything being there. Intervals are 95 % bootstrap intervals over clips.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from export.nano.concept_batches import MIN_PIXELS
from export.nano.concepts import ConceptQuery, concept_clip, concepts
from export.nano.dataset import SyntheticClip, SyntheticDataset
from export.nano.grammar import held_out
from runtime.imaging.masks import mask_iou
from runtime.tracking.matching import AssociationOptions, non_maximum_suppression

from .hota import Counts, Frame, count

FRAMES = 32
"""Longer than the 15 frames for which SAM 3 holds results back."""

F1_THRESHOLDS = np.arange(0.5, 0.99, 0.05)

VARIANTS: dict[str, dict[str, Any] | None] = {
    "full association": {},
    "detect_every=4": {"detect_every": 4},
    "temporal_disambiguation=False": {"temporal_disambiguation": False},
    "detection without association": None,
}
"""Variant -> options of the session; None: each frame on its own, with new ids."""


KINDS = ("noun", "colour", "unseen pair", "size")


@dataclass(frozen=True, slots=True)
class ConceptCase:
    """A clip with a concept that is there and one that is not."""

    clip: SyntheticClip
    there: ConceptQuery
    absent: ConceptQuery

    @property
    def kind(self) -> str:
        """Kind of the concept that is there; a pair of colour and noun that training never shows is one of its own."""
        colour, _, noun = self.there.text.rpartition(" ")
        return "unseen pair" if held_out(noun, colour) else self.there.kind

    def truth(self) -> list[Frame]:
        """Return the true objects of every frame."""
        frames = []
        for labels in self.clip.instance_map:
            seen = [i for i in self.there.actors if (labels == i + 1).sum() >= MIN_PIXELS]
            frames.append((seen, np.array([labels == i + 1 for i in seen]).reshape(-1, *labels.shape)))
        return frames


def cases(count: int, first: int = 0, split: str = "test") -> Iterator[ConceptCase]:
    """Draw clips; the kinds of the concepts take turns where a clip has them."""
    dataset = SyntheticDataset()
    for seed in range(first, first + count):
        clip = concept_clip(dataset, split, seed, FRAMES)
        rng = np.random.default_rng([5, seed])
        found = concepts(clip)
        there = _choose(rng, [q for q in found if q.actors], ("colour", "noun", "colour", "size"), seed)
        absent = _choose(rng, [q for q in found if not q.actors], ("other colour", "other noun"), seed)
        yield ConceptCase(clip, there, absent)


def _choose(rng: np.random.Generator, found: Sequence[ConceptQuery], kinds: Sequence[str], turn: int) -> ConceptQuery:
    of_kind = [q for q in found if q.kind == kinds[turn % len(kinds)]] or found
    return of_kind[int(rng.integers(len(of_kind)))]


def follow(engine: runtime.Engine, frames: np.ndarray, text: str, options: dict[str, Any] | None) -> list[Frame]:
    """Return the objects of a concept on every frame."""
    if options is None:
        ids = itertools.count()
        return [([next(ids) for _ in masks], masks) for masks, _ in (detect(engine, frame, text) for frame in frames)]
    with engine.session([runtime.Concept(text)], **options) as session:
        return [(result.object_ids, result.masks) for result in session.stream(frames)]


def detect(engine: runtime.Engine, frame: np.ndarray, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return masks (K,H,W) and scores of a concept on one frame, with the suppression of duplicates of a session."""
    (found,) = engine.image(frame).detect([runtime.Concept(text)], logits=True)
    assert found.low_res_logits is not None
    kept = non_maximum_suppression(found.low_res_logits, found.scores, AssociationOptions())
    return found.masks[kept], found.scores[kept]


def measure(engine: runtime.Engine, chosen: Sequence[ConceptCase], options: dict[str, Any] | None) -> dict[str, Any]:
    """Return scores of a variant with intervals, and per kind of concept."""
    began, counts, false_objects = time.perf_counter(), [], []
    for i, case in enumerate(chosen):
        counts.append(count(case.truth(), follow(engine, case.clip.frames, case.there.text, options)))
        false_objects.append(
            np.mean([len(ids) for ids, _ in follow(engine, case.clip.frames, case.absent.text, options)])
        )
        _progress(f"{i + 1}/{len(chosen)} clips, HOTA {Counts.total(counts).scores['HOTA']:.3f}")
    kinds = {kind: [c for c, case in zip(counts, chosen, strict=True) if case.kind == kind] for kind in KINDS}
    return {
        **summary(counts),
        "false_objects": round(float(np.mean(false_objects)), 4),
        "kinds": {kind: {"n": len(part), **summary(part)} for kind, part in kinds.items() if part},
        "seconds": round(time.perf_counter() - began, 1),
    }


def summary(counts: Sequence[Counts], draws: int = 2000) -> dict[str, Any]:
    """Return HOTA, DetA and AssA over clips, each with its interval."""
    rng = np.random.default_rng(0)
    drawn = [Counts.total(counts[i] for i in rng.integers(0, len(counts), len(counts))).scores for _ in range(draws)]
    found = Counts.total(counts).scores
    interval = {name: np.quantile([d[name] for d in drawn], [0.025, 0.975]).round(4).tolist() for name in found}
    return {name: {"value": round(value, 4), "interval": interval[name]} for name, value in found.items()}


def image_scores(engine: runtime.Engine, chosen: Sequence[ConceptCase]) -> dict[str, float]:
    """Return cgF1 and its factors on the first frames: pmF1, the F1 of objects, and IL_MCC, that of presence."""
    matched, objects, there, found = np.zeros(len(F1_THRESHOLDS)), 0, [], []
    for case in chosen:
        frame = case.clip.frames[0]
        ids, masks = case.truth()[0]
        detected, _ = detect(engine, frame, case.there.text)
        there += [bool(len(ids)), False]
        found += [bool(len(detected)), bool(len(detect(engine, frame, case.absent.text)[0]))]
        if ids:
            matched += _matched(mask_iou(masks, detected))
            objects += len(ids) + len(detected)
    f1 = float(np.mean(2 * matched / objects))
    correlation = matthews(np.array(there), np.array(found))
    return {"cgF1": round(100 * f1 * correlation, 2), "pmF1": round(f1, 4),
            "IL_MCC": round(correlation, 4), "n": len(there)}  # fmt: skip


def matthews(truth: np.ndarray, found: np.ndarray) -> float:
    """Return Matthews' correlation of two bool arrays, 0 where one of them does not vary."""
    pairs = [np.count_nonzero((truth == a) & (found == b)) for a, b in ((1, 1), (0, 0), (0, 1), (1, 0))]
    tp, tn, fp, fn = pairs
    sides = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return float((tp * tn - fp * fn) / sides**0.5) if sides else 0.0


def _matched(iou: np.ndarray) -> np.ndarray:
    """Return the number of pairs that are matched at each threshold."""
    from scipy.optimize import linear_sum_assignment

    return (iou[linear_sum_assignment(-iou)] >= F1_THRESHOLDS[:, None]).sum(1)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}  ", end="", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.concepts", description="HOTA and cgF1 of concepts")
    add = parser.add_argument
    add("--engine", default="engines/nano-concepts", help="bundle (default: %(default)s)")
    add("--clips", type=int, default=60, help="clips to measure (default: %(default)s)")
    add("--first", type=int, default=0, help="number of the first clip")
    add("--split", choices=("val", "test"), default="test")
    add("--variant", choices=VARIANTS, action="append", help="variant to run; may be repeated (default: all)")
    add("--threads", type=int)
    add("--json", type=Path, help="write the tables here")
    args = parser.parse_args(argv)
    try:
        engine = runtime.load(args.engine, threads=args.threads)
        chosen = list(cases(args.clips, args.first, args.split))
    except (runtime.SamwiseRuntimeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report: dict[str, Any] = {
        "clips": len(chosen),
        "frames": FRAMES,
        "images": image_scores(engine, chosen),
        "variants": {},
    }
    print(f"first frames: {report['images']}")
    for name in args.variant or VARIANTS:
        report["variants"][name] = row = measure(engine, chosen, VARIANTS[name])
        shown = "  ".join(f"{k} {v['value']:.3f} ({v['interval'][0]:.3f} .. {v['interval'][1]:.3f})"
                          for k, v in row.items() if isinstance(v, dict) and "value" in v)  # fmt: skip
        print(f"{name}: {shown}  false objects {row['false_objects']:.3f}  {row['seconds']:.0f} s", flush=True)
        if args.json:  # after each variant, for all of them take long
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
