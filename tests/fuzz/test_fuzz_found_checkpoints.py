"""Regression tests for checkpoints found by fuzzing."""

import json
import zipfile

import pytest

from export.checkpoints.files import read_file
from helpers.errors import one_line
from runtime.errors import UserError


@pytest.fixture(scope="module")
def tensors():
    torch = pytest.importorskip("torch")
    from export.models.sam2 import Sam2
    from helpers.toy_networks import toy_sam2_config

    torch.manual_seed(0)
    return Sam2(toy_sam2_config()).sam.state_dict()


def refused(path, data, *words):
    """Saved and refused by SAM 2's loader in one line with these words."""
    import torch

    from export.checkpoints.sam2 import load_sam2

    torch.save({"model": data}, path)
    with pytest.raises(UserError) as caught:
        load_sam2(path)
    message = one_line(caught)
    assert all(word in message for word in words), message


def test_tensors_of_unsupported_kinds(tensors, tmp_path):
    import torch

    name = next(iter(tensors))
    for value, word in (
        (tensors[name].to_sparse(), "sparse"),
        (tensors[name].to("meta"), "meta"),
        (tensors[name].to(torch.complex64), "complex64"),
        (torch.zeros(4).to(torch.float8_e4m3fn), "float8"),
    ):
        refused(tmp_path / "x.pt", {**tensors, name: value}, name, word, "not an array of numbers")


def test_tensors_that_claim_more_than_the_file_holds(tensors, tmp_path):
    """Networks are sized from the tensors: one number repeated 2^40 times must not be allocated."""
    import torch

    refused(tmp_path / "x.pt", {**tensors, "no_mem_embed": torch.zeros(1).expand(1, 1, 1 << 40)}, "claim", "damaged")


def test_names_of_tensors_with_line_breaks(tensors, tmp_path):
    import torch

    refused(tmp_path / "x.pt", {**tensors, "a\nb\u2028c": torch.zeros(1)})


def test_checkpoint_that_unpacks_to_more_than_its_size(tmp_path):
    pytest.importorskip("torch")

    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/data/0", bytes(10_000_000))
        archive.writestr("x/version", "3\n")
    with pytest.raises(UserError, match="unpacks to") as caught:
        read_file(tmp_path / "x.pth")
    one_line(caught)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name",
    [
        "vl_adapter.interactions.999999999.extra_extractors.0.x",
        "vl_adapter.prompt_blocks.999999999.x",
        "sam_mask_decoder.transformer.layers.999999999.x",
        "vl_adapter.vis_model.blocks.\u00b2.x",
    ],
)
def test_tensor_names_with_excessive_module_numbers(tmp_path, name):
    torch = pytest.importorskip("torch")
    from export.checkpoints.refersam import build
    from export.models import refersam
    from helpers.toy_networks import toy_refersam_config

    with torch.device("meta"):
        tensors = refersam.ReferSam(toy_refersam_config()).state_dict()
    with pytest.raises(UserError, match="not a ReferSAM checkpoint"):
        build({**tensors, name: torch.zeros(1, device="meta")}, tmp_path / "x.pth", 64)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(vision_config="x"),
        lambda c: c.update(mask_decoder_config=[]),
        lambda c: c.update(image_size="big"),
        lambda c: c.update(memory_attention_num_layers=10**9),
        lambda c: c["vision_config"].update(backbone_config=3),
        lambda c: c["vision_config"]["backbone_config"].update(hidden_size=10**9),
        lambda c: c["vision_config"]["backbone_config"].update(blocks_per_stage=[1] * 5000),
    ],
)
def test_hugging_face_configs_of_wrong_types_and_sizes(tensors, tmp_path, change):
    from export.checkpoints.sam2 import load_sam2
    from helpers import hugging_face

    config = hugging_face.config()
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(hugging_face.safetensors(tensors))
    with pytest.raises(UserError) as caught:
        load_sam2(tmp_path)
    one_line(caught)
