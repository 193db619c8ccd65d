"""Checksums of the synthetic inputs of the golden tests, as recorded with the official code's outputs."""

import json
from pathlib import Path

import pytest

from helpers import synth
from helpers.synth_recipes import REFERSAM, SAM2, SAMWISE

GOLDENS = Path(__file__).parent / "goldens"
CASES = {
    "samwise/golden_public_tiny": (SAMWISE, "shapes_public_tiny"),
    "samwise/golden_public_tiny_cme": (SAMWISE, "shapes_public_tiny"),
    **{f"sam2/public_p{i}": (SAM2, "shapes") for i in range(1, 4)},
    "refersam/public_vitb_bert": (REFERSAM, "shapes"),
}


@pytest.mark.parametrize("case", CASES)
def test_weights(case):
    recipe, shapes = CASES[case]
    path = GOLDENS / f"{case}.json"
    weights = json.loads(path.read_text())["weights"]
    shapes = json.loads((path.parent / f"{shapes}.json").read_text())
    shapes = {name: shapes[name] for name in weights["crc32"]}
    made = synth.make_state_dict(recipe, shapes, weights["seed"], weights["bias_offsets"], weights.get("scales"))
    assert {name: synth.crc(tensor) for name, tensor in made.items()} == weights["crc32"]


@pytest.mark.parametrize("case", [*(c for c in CASES if not c.startswith("refersam")), "sam2/public_p4"])
def test_clips(case):
    clip = json.loads((GOLDENS / f"{case}.json").read_text())["clip"]
    arguments = {k: v for k, v in clip.items() if k not in ("function", "crc32")}
    assert synth.crc(synth.make_clip(**arguments)) == clip["crc32"]


def test_picture_of_refersam():
    meta = json.loads((GOLDENS / "refersam" / "public_vitb_bert.json").read_text())
    image = synth.make_image(meta["image"]["height"], meta["image"]["width"], meta["image"]["seed"])
    resized = synth.resize_image(image, *meta["input_size"])
    found = synth.crc(image), synth.crc(resized), synth.crc(synth.normalize_image(resized))
    assert found == tuple(meta["image"][k] for k in ("crc32", "resized_crc32", "normalized_crc32"))


def test_all_weights_of_sam2_tiny():
    weights = json.loads((GOLDENS / "sam2" / "public_p4.json").read_text())["weights"]
    shapes = json.loads((GOLDENS / "sam2" / "shapes.json").read_text())
    made = synth.make_state_dict(SAM2, shapes, weights["seed"], weights["bias_offsets"], weights["scales"])
    assert synth.crc_state_dict(made) == weights["crc32_all"]
