"""Reading of checkpoints: sizes come from the tensors, and every tensor is accounted for.

Official files are `{"model": tensors, ...}`; `files.py` reads further formats and `names.py` finds the tensors under
other keys and prefixes. Sizes come from the tensors, except those that tensors do not show (heads, windows and global
blocks of the trunk), which come from the published trunks; a `"config"` in the file, written by the training here,
overrides both.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from runtime.bundle.placeholder import describe_placeholder
from runtime.errors import UserError, summarize

from ..layers.hiera import PUBLISHED_TRUNKS, STRIDES, HieraConfig
from ..models.sam import SamConfig
from .files import read_file, some
from .names import find_tensors, is_counter

UNUSED = (
    "text_encoder._float_tensor",
    "*.sentence_encoder.version",
    "*.lm_head.*",
    "*no_mem_pos_enc",
    "conditional_memory_encoder.transformerBlock.norm2.*",
)
"""Patterns of tensors of SAMWISE that no computation reads."""

ROTATIONS = ".freqs_cis"
"""Ending of the names of SAM 3's rotary tables: complex constants that only tell the sizes."""

_NUMERIC = "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool"
NUMERIC_DTYPES = {getattr(torch, name) for name in _NUMERIC.split()}
"""Types of tensors that a checkpoint may contain."""

MAX_SHARING = 4
"""Maximum ratio of the bytes that tensors claim to the bytes in the file: weights may be tied."""

MAX_IMAGE_SIZE = 8192
"""Maximum side of the input image."""

MAX_SIZE = 1 << 20
"""Maximum of a number in a 'config', far above any real size."""

MAX_DEPTH = 1024
"""Maximum number of layers or blocks."""


class Checkpoint(NamedTuple):
    """Tensors by name, 'config' (if any), and the arguments of the official training command (or empty)."""

    tensors: dict[str, Tensor]
    config: Mapping[str, Any] | None
    arguments: Mapping[str, Any]


def read(path: str | Path, network: str) -> Checkpoint:
    """Read the tensors of `network`, a command of the export, wherever they are in a checkpoint. Raises UserError."""
    data = read_file(Path(path))
    entries, keys = find_tensors(data, network, path)
    for name, value in entries.items():
        if not isinstance(value, Tensor) and "." in name:
            raise UserError(f"{path}: {name} is a {type(value).__name__}, not a tensor; is this a whole checkpoint?")
    # what trainings save beside plain tensors: numbers, texts, the state of the optimizer
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    require_plain_tensors(tensors, path)
    config: Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] = {}
    for level in itertools.accumulate(keys, lambda level, key: level[key], initial=data):
        written, options = level.get("config"), level.get("args")
        if isinstance(written, Mapping) and "sam" in written:  # ours; others keep their training's options there
            config = written
        options = vars(options) if isinstance(options, argparse.Namespace) else options
        arguments = options if isinstance(options, Mapping) else arguments
    return Checkpoint(tensors, config, arguments)


def require_plain_tensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise UserError for a tensor that is not an array of numbers in the file.

    That is: sparse, quantized, on the meta device, of a type without arithmetic, or claiming more numbers than the file
    contains, which would be allocated for sizes read from it.
    """
    claimed, storages = 0, {}
    for name, value in tensors.items():
        in_memory = value.layout == torch.strided and value.device.type == "cpu"
        if not in_memory or value.is_quantized or not (value.dtype in NUMERIC_DTYPES or name.endswith(ROTATIONS)):
            raise UserError(
                f"{path}: {name} is a {value.dtype} {value.layout} tensor on {value.device}, not an array "
                "of numbers; save the state_dict of a plain network"
            )
        storage = value.untyped_storage()
        claimed += value.numel() * value.element_size()
        storages[storage.data_ptr()] = storage.nbytes()
    if claimed > MAX_SHARING * sum(storages.values()):
        raise UserError(
            f"{path}: its tensors claim {claimed:,} bytes of {sum(storages.values()):,}; the file is damaged, "
            "download it again"
        )


def load_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, unused: tuple[str, ...] = UNUSED
) -> None:
    """Copy `tensors` into `model` by name. Raises UserError for missing, unknown, misshapen or non-finite ones."""
    check_tensors(model, tensors, path, unused)
    wanted = model.state_dict()
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"{path}: {name} contains values that are not finite; the file is damaged, download it again"
            )
    with torch.no_grad():
        for name in wanted.keys() & tensors.keys():
            wanted[name].copy_(tensors[name])


def check_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, unused: tuple[str, ...] = UNUSED
) -> None:
    """Check names, shapes and types as `load_tensors` does; the model may be on the meta device."""
    expected = model.state_dict()
    missing = [k for k in expected if k not in tensors and not is_counter(k)]
    if missing:
        raise UserError(f"{path}: lacks {some(missing)}; is it a checkpoint of this network?")
    unneeded = [k for k in tensors if k not in expected and not is_counter(k)]
    unknown = [k for k in unneeded if not any(fnmatch.fnmatchcase(k, pattern) for pattern in unused)]
    if unknown:
        raise UserError(f"{path}: contains {some(unknown)}, unknown to this network; is it of another version?")
    for name, value in expected.items():
        if name in tensors and tensors[name].shape != value.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(value.shape)}; "
                "is it a checkpoint of another size?"
            )
        if name in tensors and tensors[name].is_floating_point() != value.is_floating_point():
            raise UserError(f"{path}: {name} has type {tensors[name].dtype}, expected {value.dtype}")


def hugging_face_config(path: Path) -> dict[str, Any]:
    """Read the config.json of a folder, or beside a file; empty if there is none. Raises UserError."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        what = describe_placeholder(file) or f"not readable ({type(error).__name__}); download the whole repository"
        raise UserError(f"{file}: {what}") from None
    return config if isinstance(config, dict) else {}


def config_from(kind: type, data: Any) -> Any:
    """Build a config dataclass from nested plain data. Raises TypeError or ValueError for unknown or invalid fields."""
    if not isinstance(data, Mapping):
        raise TypeError(f"config of {kind.__name__} is a {type(data).__name__}")
    defaults = {
        f.name: f.default_factory() if callable(f.default_factory) else f.default for f in dataclasses.fields(kind)
    }
    unknown = data.keys() - defaults.keys()
    if unknown:
        raise ValueError(f"config of {kind.__name__} has an unknown field {sorted(map(str, unknown))[0]}")
    values = {}
    for name, value in data.items():
        default = defaults[name]
        if dataclasses.is_dataclass(default):
            values[name] = config_from(type(default), value)
        elif isinstance(default, tuple):
            if not isinstance(value, (list, tuple)) or len(value) > MAX_DEPTH:
                raise TypeError(f"config field {name} must be a list of numbers")
            values[name] = tuple(_number(name, v) for v in value)
        elif isinstance(default, bool):
            values[name] = bool(value)
        elif isinstance(default, str):
            if not isinstance(value, str):
                raise TypeError(f"config field {name} must be text")
            values[name] = value
        else:
            values[name] = _number(name, value)
    return kind(**values)


def choose_image_size(wanted: int | None, own: int, multiple: int) -> int:
    """Return the side of the input image: `wanted`, or `own`, that of the training. Raises UserError unless it fits."""
    if wanted is None:
        return own
    if not multiple <= wanted <= MAX_IMAGE_SIZE or wanted % multiple:
        nearest = min(max(round(wanted / multiple), 1), MAX_IMAGE_SIZE // multiple) * multiple
        raise UserError(
            f"--image-size {wanted}: give a multiple of {multiple} up to {MAX_IMAGE_SIZE}, such as {nearest}"
        )
    return wanted


def _number(name: str, value: Any) -> int:
    limit = MAX_DEPTH if any(word in name for word in ("layers", "blocks", "depth")) else MAX_SIZE
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise ValueError(f"config field {name} is {value!r}, not a number in 0..{limit}")
    coarsest = STRIDES[-1]
    if name == "image_size" and not (coarsest <= value <= MAX_IMAGE_SIZE and value % coarsest == 0):
        raise ValueError(
            f"config field image_size is {value}, not a multiple of {coarsest} in {coarsest}..{MAX_IMAGE_SIZE}"
        )
    return value


def count_modules(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Count the modules `prefix`0, `prefix`1, ... Raises ValueError unless they are numbered consecutively."""
    numbers = {k[len(prefix) :].split(".")[0] for k in tensors if k.startswith(prefix)}
    if numbers != {str(i) for i in range(len(numbers))}:
        raise ValueError(f"modules under {prefix} are not numbered 0..{len(numbers) - 1}")
    return len(numbers)


@contextmanager
def reported_as(path: str | Path, network: str) -> Iterator[None]:
    """Turn errors of reading sizes from a checkpoint into a UserError: `path` is not a checkpoint of `network`."""
    try:
        yield
    except (LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError) as error:
        detail = f"lacks {error.args[0]}" if isinstance(error, KeyError) else summarize(error, 200)
        raise UserError(f"{path}: not a {network} checkpoint ({detail})") from None


def hiera_config(tensors: Mapping[str, Tensor], prefix: str) -> HieraConfig:
    """Return the published trunk of the tensors under `prefix`. Raises KeyError, ValueError."""
    width, depth = tensors[prefix + "patch_embed.proj.weight"].shape[0], count_modules(tensors, prefix + "blocks.")
    published = {(trunk.width, sum(trunk.blocks)): trunk for trunk in PUBLISHED_TRUNKS.values()}
    if (width, depth) not in published:
        known = ", ".join(f"{w}x{d}" for w, d in published)
        raise ValueError(f"trunk of width {width} with {depth} blocks is none of the published ones: {known}")
    return published[width, depth]


def sam_config(
    tensors: Mapping[str, Tensor], prefix: str = "", hiera: HieraConfig | None = None, trunk: bool = True
) -> SamConfig:
    """Read the sizes of the SAM 2 part, whose names start with `prefix`. Raises KeyError, ValueError.

    Without `hiera` the trunk must be a published one; `trunk` false: features come from outside.
    """

    def shape(name: str) -> torch.Size:
        return tensors[prefix + name].shape

    text = prefix + "sam_prompt_encoder.project_text.layers.0.weight"
    return SamConfig(
        hiera=(hiera or hiera_config(tensors, prefix + "image_encoder.trunk.")) if trunk else HieraConfig(),
        has_trunk=trunk,
        width=shape("no_mem_embed")[-1],
        ages=shape("maskmem_tpos_enc")[0],
        memory_width=shape("maskmem_tpos_enc")[-1],
        memory_layers=count_modules(tensors, prefix + "memory_attention.layers."),
        memory_hidden=shape("memory_attention.layers.0.linear1.weight")[0],
        decoder_depth=count_modules(tensors, prefix + "sam_mask_decoder.transformer.layers."),
        decoder_hidden=shape("sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight")[0],
        iou_hidden=shape("sam_mask_decoder.iou_prediction_head.layers.0.weight")[0],
        prompt_channels=shape("sam_prompt_encoder.mask_downscaling.3.weight")[0],
        mask_channels=tuple(shape(f"memory_encoder.mask_downsampler.encoder.{i}.weight")[0] for i in (0, 3, 6, 9)),
        fuser_blocks=count_modules(tensors, prefix + "memory_encoder.fuser.layers."),
        object_score=prefix + "sam_mask_decoder.obj_score_token.weight" in tensors,
        text_width=tensors[text].shape[1] if text in tensors else 0,
        motion=prefix + "sam_prompt_encoder.project_motion_prompts.layers.0.weight" in tensors,
        pointer_positions=prefix + "obj_ptr_tpos_proj.weight" in tensors,
    )
