"""SAMWISE checkpoints: mapping of all tensors, sizes from tensors, one-line errors for bad files, no code run."""

import argparse
import dataclasses
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from export.checkpoints.common import check_tensors
from export.checkpoints.samwise import load_samwise, samwise_config

torch = pytest.importorskip("torch")

from export.layers.hiera import PUBLISHED_TRUNKS
from export.models.sam import SamConfig
from export.models.samwise import Samwise, SamwiseConfig
from export.networks.samwise import settings
from helpers.toy_networks import toy_samwise_config
from runtime.errors import UserError

SHAPES = Path(__file__).parents[2] / "goldens" / "samwise" / "shapes_public_tiny.json"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Samwise(toy_samwise_config())


def saved(tmp_path, network, change=lambda data: None, **options):
    data = {"model": dict(network.state_dict()), "config": dataclasses.asdict(network.config)}
    change(data)
    torch.save(data, tmp_path / "x.pth", **options)
    return tmp_path / "x.pth"


def same(a, b):
    assert a.config == b.config
    theirs = b.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items())


def official_shapes():
    return {
        k: torch.empty(v["shape"], dtype=getattr(torch, v["dtype"]), device="meta")
        for k, v in json.loads(SHAPES.read_text()).items()
    }


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_round_trip(tmp_path, network, options):
    path = saved(tmp_path, network, lambda d: d.update(args=argparse.Namespace(lr=1e-5), epoch=3), **options)
    assert same(load_samwise(path), network)


def test_prefix_and_unused_tensors(tmp_path, network):
    def change(data):
        data["model"]["sam.no_mem_pos_enc"] = torch.zeros(1, 1, 32)
        data["model"]["text_encoder.model.encoder.lm_head.bias"] = torch.zeros(100)
        data["model"] = {f"module.{k}": v for k, v in data["model"].items() if not k.endswith("num_batches_tracked")}

    assert same(load_samwise(saved(tmp_path, network, change)), network)


def test_half_precision_is_widened(tmp_path, network):
    path = saved(
        tmp_path,
        network,
        lambda d: d["model"].update({k: v.half() for k, v in d["model"].items() if v.is_floating_point()}),
    )
    model = load_samwise(path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_public_tiny_is_sized_from_its_tensors():
    tensors = official_shapes()
    config = samwise_config(tensors)
    assert config == SamwiseConfig()
    with torch.device("meta"):
        check_tensors(Samwise(config), tensors, "tiny")


@pytest.mark.parametrize("trunk", PUBLISHED_TRUNKS.values(), ids=PUBLISHED_TRUNKS)
@pytest.mark.parametrize(
    "motion, score, conditional, patches",
    [
        (False, True, 128, (8, 4, 2)),
        (True, True, 128, (8, 4, 2)),
        (False, False, 0, (0, 0, 0)),
        (False, True, 128, (4, 4, 4)),
    ],
)
def test_variants_are_recognised(trunk, motion, score, conditional, patches):
    config = SamwiseConfig(
        sam=SamConfig(hiera=trunk, text_width=768, motion=motion, object_score=score), conditional_hidden=conditional
    )
    config = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, patches=patches))
    with torch.device("meta"):
        model = Samwise(config)
    assert samwise_config(model.state_dict()) == config


def drop(data):
    del data["model"]["sam.no_mem_embed"]


def add(data):
    data["model"]["sam.extra.weight"] = torch.zeros(3)


def misshape(data):
    data["model"]["sam.no_obj_ptr"] = torch.zeros(1, 31)


def spoil(data):
    data["model"]["sam.no_obj_ptr"] = torch.full((1, 32), float("nan"))


def integers(data):
    data["model"]["sam.no_obj_ptr"] = torch.zeros(1, 32, dtype=torch.int64)


def not_a_tensor(data):
    data["model"]["sam.no_obj_ptr"] = "hello"


@pytest.mark.parametrize(
    "change, words",
    [
        (drop, "lacks sam.no_mem_embed"),
        (add, "contains sam.extra.weight"),
        (misshape, r"sam.no_obj_ptr has shape \(1, 31\)"),
        (spoil, "sam.no_obj_ptr contains values that are not finite"),
        (integers, "sam.no_obj_ptr has type"),
        (not_a_tensor, "sam.no_obj_ptr is a str"),
    ],
)
def test_wrong_tensors_are_named(tmp_path, network, change, words):
    with pytest.raises(UserError, match=words) as caught:
        load_samwise(saved(tmp_path, network, change))
    assert "\n" not in str(caught.value) and "x.pth" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["sam"].update(image_size=10**12),
        lambda c: c["sam"].update(image_size=65),
        lambda c: c["sam"].update(memory_layers=10**6),
        lambda c: c["sam"].update(width="wide"),
        lambda c: c.update(sam=3),
        lambda c: c.update(colour=1),
        lambda c: c["sam"].update(decoder_heads=5),
        lambda c: c["sam"].update(decoder_heads=0),
        lambda c: c["adapter"].update(patches=[4]),
        lambda c: c["sam"]["hiera"].update(windows=[0, 0, 0, 0]),
        lambda c: c["text"].update(pad=-1),
    ],
)
def test_bad_configs_are_refused(tmp_path, network, change):
    with pytest.raises(UserError) as caught:
        load_samwise(saved(tmp_path, network, lambda data: change(data["config"])))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 60, b"\x80\x02}q\x00.", b"\x80\x02]q\x00."])
def test_files_that_are_not_checkpoints(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="x.pth") as caught:
        load_samwise(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_truncated(tmp_path, network, options):
    path = saved(tmp_path, network, **options)
    content = path.read_bytes()
    for part in (0.2, 0.6, 0.99):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(UserError, match="x.pth"):
            load_samwise(path)


@pytest.mark.parametrize(
    "data", [{"model": {}}, {"model": 3}, [], 7, {1: torch.zeros(1)}, {"weights": [torch.zeros(1)]}]
)
def test_other_contents(tmp_path, data):
    torch.save(data, tmp_path / "x.pth")
    with pytest.raises(UserError):
        load_samwise(tmp_path / "x.pth")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(UserError, match="no such file"):
            load_samwise(path)


def test_another_network(tmp_path):
    torch.save({"model": {"no_mem_embed": torch.zeros(1, 1, 256)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="not a SAMWISE checkpoint"):
        load_samwise(tmp_path / "x.pth")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
def test_no_code_is_run(tmp_path, writer):
    data, path = {"model": {"a": Trap(tmp_path / "ran")}}, tmp_path / "x.pth"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(data))
    else:
        torch.save(data, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(UserError):
        load_samwise(path)
    assert not (tmp_path / "ran").exists()


def test_another_image_size(tmp_path, network):
    """The same weights; a size in which the patches of the adapters do not fit is refused."""
    path = saved(tmp_path, network)
    larger, theirs = load_samwise(path, image_size=96), network.state_dict()
    assert larger.config == replace(network.config, sam=replace(network.config.sam, image_size=96))
    assert all(torch.equal(value, theirs[name]) for name, value in larger.state_dict().items())
    for size in (0, 80, 16384):
        with pytest.raises(UserError, match=f"--image-size {size}: give a multiple of 32 up to 8192, such as"):
            load_samwise(path, image_size=size)


def test_the_resize_rule_is_the_official_one_for_official_trunks():
    """`max_size - 4` of the reference; networks that were trained here use all of their size."""
    small = toy_samwise_config()
    official = replace(small, sam=replace(small.sam, image_size=512, hiera=PUBLISHED_TRUNKS["tiny"]))
    with torch.device("meta"):
        assert settings(Samwise(official))["samwise"]["resize"] == {"rule": "samwise_video", "short": 508, "max": 512}
        assert settings(Samwise(small))["samwise"]["resize"]["short"] == 64
