"""SAM 3 at its published size beside transformers' Sam3Model with the same random weights: one frame, two concepts.

    python -m pytest benchmarks/bench_sam3.py --benchmark-only [--backend openvino-bf16] [--precision int8-weights]

It exports the weights first, into a temporary folder of 3.3 GB, and takes some ten minutes; `--layers 2` less, and
`--keep DIR` keeps the bundle for the next run. With another backend than ONNX Runtime or another precision than float32
the scores of all queries and the masks of the best are compared with ONNX Runtime's in float32.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import runtime
from runtime.backends.ort import OrtBackend
from runtime.bundle.bundle import choose
from runtime.engine import Engine
from runtime.metrics import clip_jaccard

from . import rss

MEMORY = 16 * 2**30
ROUNDS = 2
NAME = "sam3"
KEPT = 10
"""Queries whose masks are computed, of 200: as many objects as a picture may have. Random weights keep none or all."""
WORDS = (736, 2368), (10712, 6235)
"""Tokens of the two concepts, between those that begin and end a sentence."""
BEGIN, END = 49406, 49407


@pytest.fixture
def transformers() -> Any:
    """Modules of SAM 3 in transformers; skips where they or the memory are missing."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers.models.sam3", reason="needs transformers 5, which has Sam3Model")
    if (have := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) < MEMORY:
        pytest.skip(f"needs {MEMORY >> 30} GiB of memory, not {have / 2**30:.0f}")
    return import_module("transformers.models.sam3.modeling_sam3")


@pytest.fixture
def work(request: pytest.FixtureRequest) -> Iterator[Path]:
    """`--keep`, or a folder that is removed at once: pytest keeps those of the latest runs, and the bundle is large."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(request.config.option.keep or folder)


def build(transformers: Any, layers: int | None) -> Any:
    """Return transformers' model with random weights; `layers` of trunk and text encoder, None: as published."""
    import torch

    config = transformers.Sam3Config()
    if layers is not None:
        trunk = config.vision_config.backbone_config
        trunk.num_hidden_layers = config.text_config.num_hidden_layers = layers
        trunk.global_attn_indexes = [layers - 1]
    torch.manual_seed(0)
    return transformers.Sam3Model(config).eval()


def export_bundle(model: Any, folder: Path) -> Path:
    """Export the weights of transformers' model without comparison, unless they are in `folder` already."""
    if (folder / NAME / "manifest.json").exists():
        return folder / NAME
    from export import bundle
    from export.checkpoints import sam3 as checkpoints
    from export.checkpoints import sam3_hugging_face
    from export.models.sam3 import Sam3
    from export.networks import base

    tensors = sam3_hugging_face.renamed(model.state_dict())
    ours = Sam3(checkpoints.sam3_config(tensors, sam3_hugging_face.hidden_sizes(model.config.to_dict())))
    checkpoints.load_tensors(ours, tensors, "transformers", checkpoints.UNUSED)
    return bundle.export_bundle(base.describe("sam3", ours), folder, NAME, variants=("ort",), check=False)


def in_precision(exact: Path, precision: str) -> Path:
    """Return the folder of the bundle in another precision, made from the graphs in float32 if it is not there yet."""
    from export import auto_cpu

    folder = auto_cpu.folder_of(exact, precision)
    return folder if (folder / "manifest.json").exists() else auto_cpu.convert(exact, precision)


def best_queries(engine: runtime.Engine, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (Q,) of the first concept's queries, and their masks (Q,H,W)."""
    (found,) = engine.image(frame).detect([concepts()[0]], threshold=0.0)
    return found.scores, found.masks


def cost(folder: Path, engine: runtime.Engine, frame: np.ndarray, threads: int | None) -> dict[str, float]:
    """Compare with float32 on ONNX Runtime: largest difference of a score, IoU of the masks of its best queries."""
    plain = OrtBackend(threads)
    plain.keeps_memory = False  # the measurement needs the memory
    with Engine(choose(folder), plain) as reference:
        scores, masks = best_queries(reference, frame)
    best = np.argsort(-scores)[:KEPT]
    others, other_masks = best_queries(engine, frame)
    ious = [clip_jaccard(masks[i : i + 1], other_masks[i : i + 1]) for i in best]
    return {
        "score_difference": float(np.abs(scores - others).max()),
        "worst_iou": min(ious),
        "mean_iou": float(np.mean(ious)),
    }


def concepts() -> list[runtime.Concept]:
    return [runtime.Concept(tokens=[BEGIN, *words, END]) for words in WORDS]


def runs_ours(engine: runtime.Engine, frame: np.ndarray) -> list[Callable[[], Any]]:
    """Return a search for the first concept on a new frame, and for the second on the same frame; warm up."""
    images, network = [engine.image(frame)], cast(Any, engine.networks.concept_image)
    scores = [found.scores for found in images[0].detect(concepts(), threshold=0.0)]
    limits = [float(np.sort(each)[-KEPT - 1 : -KEPT].mean()) for each in scores]

    def detect(number: int) -> list[runtime.Result]:
        network.detector._texts.clear()  # words are new, as in transformers
        return images[0].detect(concepts()[number : number + 1], threshold=limits[number])

    def first() -> list[runtime.Result]:
        images[:] = [engine.image(frame.copy())]
        return detect(0)

    return [first, lambda: detect(1)]


def runs_theirs(model: Any, engine: runtime.Engine) -> list[Callable[[], Any]]:
    """Return the same searches in transformers, which takes a frame that is encoded already."""
    import torch

    side, longest = engine.bundle.manifest.image_size, engine.bundle.manifest.text["max_tokens"]
    pixels, frames = torch.randn(1, 3, side, side), []

    def tokens(words: tuple[int, ...]) -> dict[str, Any]:
        ids = torch.zeros(1, longest, dtype=torch.long)
        ids[0, : len(words) + 2] = torch.tensor([BEGIN, *words, END])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    def first() -> None:
        frames[:] = [model.get_vision_features(pixels)]
        model(vision_embeds=frames[0], **tokens(WORDS[0]))

    return [first, lambda: model(vision_embeds=frames[0], **tokens(WORDS[1]))]


def trunk_operations(model: Any) -> float:
    """Return the floating-point operations of the products of the trunk on one frame."""
    c = model.config.vision_config.backbone_config
    tokens, windows = (c.image_size // c.patch_size) ** 2, c.window_size**2
    linear = c.num_hidden_layers * 2 * tokens * (4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size)
    seen = [tokens if i in c.global_attn_indexes else windows for i in range(c.num_hidden_layers)]
    return linear + sum(4 * tokens * keys * c.hidden_size for keys in seen)


def test_concepts(benchmark, machine, backend, transformers, work, request):
    """Seconds in turn: ours and theirs, each the first concept on a frame and the second."""
    import torch

    layers, threads, precision = (getattr(request.config.option, name) for name in ("layers", "threads", "precision"))
    torch.set_num_threads(threads or os.cpu_count() or 1)
    model = build(transformers, layers)
    exact = export_bundle(model, work)
    folder = in_precision(exact, precision)
    gc.collect()
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    with runtime.load(folder, backend=backend, threads=threads) as engine:
        differences = cost(exact, engine, frame, threads) if (backend, precision) != ("ort", "fp32") else {}
        rss.reset_peak()
        calls = {"runtime": runs_ours(engine, frame), "pytorch": runs_theirs(model, engine)}
        seconds: dict[str, list[list[float]]] = {name: [] for name in calls}

        def turn() -> None:
            for name, (first, second) in calls.items():
                times = [time.perf_counter()]
                with torch.inference_mode():
                    for call in (first, second):
                        call()
                        times.append(time.perf_counter())
                seconds[name].append(np.diff(times).tolist())

        benchmark.pedantic(turn, rounds=ROUNDS)
        encoder, frames = (engine.timings["image_encoder"][i] for i in (1, 0))
        manifest = engine.bundle.manifest
    best = {name: np.min(values, axis=0) for name, values in seconds.items()}
    benchmark.extra_info.update(
        machine=machine | {"backend": backend},
        bundle=("sam3-large" if layers is None else f"sam3-{layers}-layers") + f"-{precision}".removesuffix("-fp32"),
        precision=manifest.precision,
        bundle_sha256=sha256("".join(sorted(manifest.files.values())).encode()).hexdigest()[:16],
        runtime_seconds=best["runtime"].tolist(),
        pytorch_seconds=best["pytorch"].tolist(),
        pytorch_over_runtime=float(best["pytorch"][0] / best["runtime"][0]),
        second_over_first=float(best["runtime"][1] / best["runtime"][0]),
        trunk_seconds=encoder / frames,
        trunk_gflop=trunk_operations(model) / 1e9,
        peak_rss_mb=rss.peak_mb(),
        **differences,
    )
