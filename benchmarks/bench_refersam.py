"""Sentences on images: cost of the second one on an image, gain of a batch, and plain PyTorch for comparison.

python -m pytest benchmarks/bench_refersam.py --benchmark-only --engine engines/refersam-vit_b-bert-448
"""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

import runtime

from .bench_clip import clip

TOKENS = 11
"""Length of a sentence, special tokens included: "the man in the red shirt on the left"."""

ROUNDS = 3


@pytest.fixture
def takes_images(loaded):
    """Skip bundles without sentences on single images."""
    if runtime.Capability.TEXT_IMAGE not in loaded.capabilities:
        pytest.skip("this bundle takes no sentences on single images")


_number = count()


def sentences(engine, n: int) -> list[runtime.Text]:
    """Return sentences that the engine has not encoded before."""
    top = engine.bundle.manifest.text["vocabulary"]
    numbers = [next(_number) for _ in range(n)]
    return [runtime.Text(tokens=[1 + (17 * k + 5 * j) % (top - 1) for j in range(TOKENS)]) for k in numbers]


def test_first_sentence(benchmark, info, loaded, takes_images):
    """A new image and a new sentence: all three stages."""
    (pixels,) = clip(1)

    def refer(prompts):
        return loaded.image(pixels).refer(prompts)

    benchmark.pedantic(refer, rounds=ROUNDS, warmup_rounds=1, setup=lambda: ((sentences(loaded, 1),), {}))
    info(sentences=1, new_picture=True)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_further_sentences(benchmark, info, loaded, takes_images, n):
    """New sentences on an image that is encoded already."""
    image = loaded.image(clip(1)[0])
    image.refer(sentences(loaded, 1))
    benchmark.pedantic(image.refer, rounds=ROUNDS, warmup_rounds=1, setup=lambda: ((sentences(loaded, n),), {}))
    info(sentences=n, new_picture=False, per_sentence=float(np.median(benchmark.stats.stats.data)) / n)


@pytest.mark.parametrize("folded", [False, True], ids=["official", "folded"])
def test_torch_eager(benchmark, info, bundle, loaded, takes_images, folded):
    """The same modules in PyTorch with random weights: as in the official code, and with the exact folds."""
    torch = pytest.importorskip("torch")
    from export.models.refersam import ReferSam
    from export.networks.refersam import stages

    if threads := loaded.backend.threads:
        torch.set_num_threads(threads)
    cut = {s.name: s for s in stages(ReferSam(config(bundle)), folded)}
    pixels = cut["image"].sample({})
    tokens = cut["text"].sample({"objects": 1, "tokens": TOKENS})

    def run():
        seen, text = cut["image"].run(pixels), cut["text"].run(tokens)["text"]
        return cut["fuse"].run({**seen, "text": text[None], "text_count": torch.tensor([TOKENS])})

    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1)
    info(sentences=1, new_picture=True, folded=folded)


def config(bundle):
    """Return the published network that has the bundle's width and text tower."""
    from dataclasses import replace

    from export.layers.text_towers import TowerConfig
    from export.layers.vit import VitConfig
    from export.models.refersam import ReferSamConfig

    manifest = bundle.manifest
    width = manifest.stages["image"].output("vit").shape[-1]
    plain = ReferSamConfig(image_size=manifest.image_size)
    text = TowerConfig() if "bert" in manifest.variant else TowerConfig("clip", 49408, 77, activation="quick_gelu")
    if width == 768:
        return replace(plain, text=text)
    if width != 1024:
        pytest.skip(f"no published ReferSAM is {width} wide")
    windows = tuple(0 if i % 6 == 5 else 14 for i in range(24))
    adapter = replace(plain.adapter, heads=16, value_width=512)
    return replace(plain, text=text, vit=VitConfig(1024, 16, windows, 4096), adapter=adapter)
