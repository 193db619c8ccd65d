"""SAM 3 checkpoints: official names and Hugging Face's, whole and of the image model alone, and their sizes."""

import functools
import json
import operator
import re
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from export.checkpoints import sam3, sam3_hugging_face
from export.checkpoints.common import check_tensors
from export.checkpoints.refersam import load_refersam
from export.checkpoints.sam2 import load_sam2
from export.checkpoints.samwise import load_samwise
from export.models.sam3 import Sam3, Sam3Config, tiny_test_config
from helpers.errors import one_line
from runtime.errors import UserError

IMAGE_ONLY = ["detector.", ""]

OFFICIAL = (
    (r"\.text_model\.embeddings\.position_embedding\.weight$", ".positional_embedding"),
    (r"\.text_model\.embeddings\.", "."),
    (r"\.text_model\.final_layer_norm\.", ".ln_final."),
    (r"\.text_model\.encoder\.layers\.", ".transformer.resblocks."),
    (r"(resblocks\.\d+)\.self_attn\.", r"\1.attn."),
    (r"(resblocks\.\d+)\.layer_norm", r"\1.ln_"),
    (r"(resblocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.c_fc."),
    (r"(resblocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.c_proj."),
    (r"^tracker\.memory_attention\.", "tracker.transformer.encoder."),
    (r"^tracker\.memory_encoder\.", "tracker.maskmem_backbone."),
    (r"(sam_mask_decoder\.transformer\.layers\.\d+\.mlp)\.layers\.0\.", r"\1.lin1."),
    (r"(sam_mask_decoder\.transformer\.layers\.\d+\.mlp)\.layers\.1\.", r"\1.lin2."),
)


def toy():
    """The toy network with a text tower of whole heads: official files do not say how many there are."""
    tiny = tiny_test_config()
    return replace(tiny, text=replace(tiny.text, width=128, heads=2))


def official(model):
    """Tensors under official names, with those that no computation reads."""
    tensors, packed = {}, {}
    for name, value in model.state_dict().items():
        for pattern, new in OFFICIAL:
            name = re.sub(pattern, new, name)
        if match := re.fullmatch(r"(.+resblocks.+\.attn)\.([qkv])_proj\.(.+)", name):
            packed.setdefault(f"{match[1]}.in_proj_{match[3]}", {})[match[2]] = value
        else:
            tensors[name] = value
    tensors |= {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in packed.items()}
    trunk = model.config.trunk
    for i in range(trunk.blocks):
        side = trunk.side if i in trunk.global_blocks else trunk.window
        name = f"detector.backbone.vision_backbone.trunk.blocks.{i}.attn.freqs_cis"
        tensors[name] = torch.ones(side * side, trunk.head_width // 2, dtype=torch.complex64)
    unused = ("backbone.language_backbone.encoder.text_projection", "geometry_encoder.points_direct_project.weight")
    levels = ("backbone.vision_backbone.convs.3.conv_1x1.bias", "segmentation_head.pixel_decoder.norms.2.weight")
    tensors |= {"detector." + name: torch.zeros(3) for name in (*unused, *levels)}
    return tensors | {"tracker.no_mem_pos_enc": torch.zeros(1, 1, 32)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Sam3(toy()).eval()


def same(loaded, model):
    """Whether a network has the config of `model`, tracker aside, and all its tensors are those of `model`."""
    want = model.state_dict()
    assert loaded.config.trunk == model.config.trunk and loaded.config.text == model.config.text
    return all(torch.equal(value, want[name]) for name, value in loaded.state_dict().items())


def test_official_names_with_and_without_the_model_key(model, tmp_path):
    tensors = official(model)
    for data in ({"model": tensors}, tensors, {"model": {"module." + n: v for n, v in tensors.items()}, "epoch": 3}):
        torch.save(data, tmp_path / "sam3.pt")
        loaded = sam3.load_sam3(tmp_path / "sam3.pt")
        assert loaded.config == model.config and same(loaded, model)
        assert set(loaded.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("prefix", IMAGE_ONLY)
@pytest.mark.parametrize("neck", [True, False], ids=["tracker's neck", "no neck"])
def test_image_model_alone(model, tmp_path, prefix, neck):
    tensors = {
        prefix + name.removeprefix("detector."): value
        for name, value in official(model).items()
        if not name.startswith("tracker.") and (neck or "sam2_convs" not in name)
    }
    torch.save({"model": tensors}, tmp_path / "image.pt")
    loaded = sam3.load_sam3(tmp_path / "image.pt")
    assert loaded.config.tracker is None and same(loaded, model)


@pytest.mark.parametrize("load", [load_samwise, load_sam2, lambda path: load_refersam(path, 64)])
def test_other_loaders_name_the_command(model, tmp_path, load):
    torch.save({"model": official(model)}, tmp_path / "sam3.pt")
    with pytest.raises(UserError, match="python -m export sam3"):
        load(tmp_path / "sam3.pt")


def without(part):
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


@pytest.mark.parametrize(
    "change, message",
    [
        (without("freqs_cis"), "no config.json and no freqs_cis"),
        (without("blocks.1.attn.freqs_cis"), "lacks detector.backbone.vision_backbone.trunk.blocks.1.attn.freqs_cis"),
        (without("sam2_convs"), "lacks detector.backbone.vision_backbone.sam2_convs"),
        (without("tracker.obj_ptr_proj"), "lacks tracker.obj_ptr_proj"),
        (without("blocks.2."), "not numbered"),
        (lambda tensors: tensors | {"detector.extra": torch.zeros(2)}, "contains detector.extra"),
        (lambda tensors: tensors | {"tracker.no_obj_ptr": torch.zeros(1, 3)}, "has shape"),
    ],
)
def test_damaged_files(model, tmp_path, change, message):
    torch.save({"model": change(official(model))}, tmp_path / "sam3.pt")
    with pytest.raises(UserError, match=message) as caught:
        sam3.load_sam3(tmp_path / "sam3.pt")
    one_line(caught)


@pytest.fixture(scope="module")
def video():
    pytest.importorskip("transformers.models.sam3_video", reason="needs transformers 5")
    from helpers import transformers_sam3

    return transformers_sam3.video_model()


def saved(model, folder, **options):
    model.save_pretrained(folder, **options)
    return folder


def test_hugging_face_folder(video, tmp_path):
    """Every tensor is mapped: of the whole in one file and in shards, and of the image model alone."""
    loaded = sam3.load_sam3(saved(video, tmp_path / "one"))
    names = sam3_hugging_face.renamed(video.state_dict())
    assert set(loaded.state_dict()) <= set(names)
    assert all(torch.equal(value, names[name]) for name, value in loaded.state_dict().items())
    config = loaded.config
    assert (config.trunk.head_width, config.trunk.global_blocks, config.trunk.window) == (16, (1, 3), 4)
    assert (config.text.heads, config.tracker.decoder_heads, config.tracker.side) == (2, 4, 8)
    assert config.tracker.pointer_positions and not config.tracker.has_trunk

    shards = saved(video, tmp_path / "shards", max_shard_size="200KB")
    assert len(list(shards.glob("model-*-of-*.safetensors"))) > 1
    assert same(sam3.load_sam3(shards), loaded)

    alone = sam3.load_sam3(saved(video.detector_model, tmp_path / "image"))
    assert alone.config.tracker is None and same(alone, loaded)


def test_hugging_face_folder_of_the_detector_with_its_prefix(video, tmp_path):
    """As folders are from which tensors of the tracker were removed."""
    from safetensors.torch import load_file, save_file

    saved(video, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({n: v for n, v in tensors.items() if n.startswith("detector_model.")}, tmp_path / "model.safetensors")
    assert sam3.load_sam3(tmp_path).config.tracker is None
    with pytest.raises(UserError, match="python -m export sam3"):
        load_sam2(tmp_path)


@pytest.mark.parametrize(
    "keys, value, message",
    [
        (["image_size"], 100, "image size 100 is not a multiple of 56"),
        (["image_size"], 56 * 10**6, "up to 8192"),
        (["image_size"], None, "not a SAM 3 checkpoint"),
        (["num_attention_heads"], 3, "not made of heads of width 21"),
        (["num_attention_heads"], 32, "not made of heads of width 2"),
        (["num_attention_heads"], 0, "not a SAM 3 checkpoint"),
        (["global_attn_indexes"], "a", "not a SAM 3 checkpoint"),
        (["global_attn_indexes"], [1, 9], "global blocks"),
        ([], None, "not a SAM 3 checkpoint"),
        (["/text_config", "num_attention_heads"], 5, "not a multiple of its 5 heads"),
        (["/text_config", "hidden_act"], "silu", "activation 'silu'"),
        (["/tracker_config", "mask_decoder_config", "num_attention_heads"], 3, "does not fit its 3 heads"),
    ],
)
def test_config_of_another_network(video, tmp_path, keys, value, message):
    """`keys` lead to a value, from the trunk's part of config.json, the detector's or the whole."""
    saved(video, tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    parts = {"/text_config": ["detector_config", "text_config"], "/tracker_config": ["tracker_config"]}
    trunk = ["detector_config", "vision_config", "backbone_config"]
    *path, last = [*parts[keys[0]], *keys[1:]] if keys and keys[0] in parts else [*trunk, *keys]
    functools.reduce(operator.getitem, path, data)[last] = value
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=message) as caught:
        sam3.load_sam3(tmp_path)
    one_line(caught)


def test_hugging_face_tensors_without_config(video, tmp_path):
    saved(video, tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        sam3.load_sam3(tmp_path)


def test_tracker_with_its_prefix_once_and_twice(video, tmp_path):
    """The published file has it once; transformers 5.24 doubles it when it saves."""
    from safetensors.torch import load_file, save_file

    saved(video, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    want = sam3.load_sam3(tmp_path)
    for prefix in ("tracker_model.", "tracker_model.tracker_model."):
        named = {sam3_hugging_face.TRACKER.sub(prefix, name): value for name, value in tensors.items()}
        save_file(named, tmp_path / "model.safetensors")
        assert same(sam3.load_sam3(tmp_path), want)


def test_published_network():
    """Names and sizes of the published Sam3VideoModel, without memory for its numbers."""
    pytest.importorskip("transformers.models.sam3_video")
    from transformers.models.sam3_video.configuration_sam3_video import Sam3VideoConfig
    from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoModel

    with torch.device("meta"):
        theirs = Sam3VideoModel(Sam3VideoConfig())
        tensors = sam3_hugging_face.renamed(theirs.state_dict())
        config = sam3.sam3_config(tensors, sam3_hugging_face.hidden_sizes(theirs.config.to_dict()))
        assert config == Sam3Config() and sam3.sam3_config(tensors) == Sam3Config()
        check_tensors(Sam3(config), tensors, "facebook/sam3", sam3.UNUSED)
