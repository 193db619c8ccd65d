"""Official checkpoints to our networks: read without running code, sized from their tensors, every tensor accounted
for.

A checkpoint is what `torch.save` wrote: `{"model": tensors, ...}` or the tensors themselves, names with or without
`module.`. Sizes come from the tensors, except those that leave no trace in them (heads, windows and global blocks of
the trunk), which come from the table of published trunks; `"config"` in the file, written by our own training,
overrides all.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import UserError

from ..layers.hiera import STRIDES, HieraConfig
from ..models.sam import SamConfig

TRUNKS = {
    (96, 12): HieraConfig(96, 1, (1, 2, 7, 2), (8, 4, 14, 7), (5, 7, 9), 7),
    (96, 16): HieraConfig(96, 1, (1, 2, 11, 2), (8, 4, 14, 7), (7, 10, 13), 7),
    (112, 24): HieraConfig(112, 2, (2, 3, 16, 3), (8, 4, 14, 7), (12, 16, 20), 14),
    (144, 48): HieraConfig(144, 2, (2, 6, 36, 4), (8, 4, 16, 8), (23, 33, 43), 7),
}
"""Published trunks (tiny, small, base+, large) by width and number of blocks."""

UNUSED = (
    "*.num_batches_tracked",
    "text_encoder._float_tensor",
    "*.sentence_encoder.version",
    "*.lm_head.*",
    "*no_mem_pos_enc",
    "conditional_memory_encoder.transformerBlock.norm2.*",
    "*total_ops",
    "*total_params",
)
"""Tensors that official checkpoints hold and no computation reads. The last two are left by a counter of operations,
and the official code passes over them, too."""

NUMBERS = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
"""Types of tensors that a checkpoint may hold."""

SHARED = 4
"""How often, on average, a number of the file may be used."""

LARGEST = 1 << 20
"""Largest number a 'config' may hold; no real size comes near."""

DEEPEST = 1024
"""Most layers or blocks."""


def read(path: str | Path) -> tuple[dict[str, Tensor], Mapping[str, Any] | None]:
    """Tensors by name and the 'config' of a checkpoint, if it has one. Raises UserError; never runs code from the
    file."""
    return _contents(path)[:2]


def _contents(path: str | Path) -> tuple[dict[str, Tensor], Mapping[str, Any] | None, Mapping[str, Any]]:
    """Tensors, 'config', and the arguments of the official training command ('args'; empty where there are none)."""
    data = _load(Path(path))
    tensors = data.get("model", data) if isinstance(data, Mapping) else None
    if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(k, str) for k in tensors):
        raise UserError(f"{path}: holds no named tensors; expected a checkpoint saved as {{'model': state_dict}}")
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is a {type(value).__name__}, not a tensor; is this a whole checkpoint?")
    plain(tensors, path)
    config, arguments = data.get("config"), data.get("args")
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    return (
        tensors,
        config if isinstance(config, Mapping) else None,
        arguments if isinstance(arguments, Mapping) else {},
    )


def plain(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise UserError for a tensor that is not an array of numbers in the file: sparse, quantized, on no device, of a
    type without arithmetic, or claiming more numbers than are there, which sizes read from it would make us
    allocate."""
    claimed, storages = 0, {}
    for name, value in tensors.items():
        here = value.layout == torch.strided and value.device.type == "cpu"
        if not here or value.is_quantized or value.dtype not in NUMBERS:
            raise UserError(
                f"{path}: {name} is a {value.dtype} {value.layout} tensor on {value.device}, not an array "
                "of numbers; save the state_dict of a plain network"
            )
        storage = value.untyped_storage()
        claimed += value.numel() * value.element_size()
        storages[storage.data_ptr()] = storage.nbytes()
    # weights may be tied, so that a storage counts for several tensors; official files hold everything once
    if claimed > SHARED * sum(storages.values()):
        raise UserError(
            f"{path}: its tensors claim {claimed:,} bytes and hold {sum(storages.values()):,}; the file is "
            "damaged, download it again"
        )


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a checkpoint (.pth or .pt)")
    _check_archive(path)
    # official files are of torch's old format, which cannot be mapped, and carry their training arguments
    for mapped in (True, False):
        try:
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # torch raises a dozen kinds for a broken file
            failure = error
    if "weights_only" in str(failure) or "Weights only" in str(failure):
        raise UserError(
            f"{path}: holds Python objects besides tensors and is not opened; save it again as plain "
            "tensors, torch.save({'model': model.state_dict()}, path)"
        ) from None
    raise UserError(
        f"{path}: not readable as a torch checkpoint ({type(failure).__name__}); truncated or another kind "
        "of file? download it again"
    ) from None


def _check_archive(path: Path) -> None:
    """torch stores and never compresses, so what unpacks to more than the file is a bomb. Raises UserError."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # of torch's old format, or damaged: torch will say
        return
    if unpacked > path.stat().st_size:
        raise UserError(
            f"{path}: unpacks to {unpacked:,} bytes, more than the file has; torch writes no such file, "
            "download it again"
        )


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, unused: tuple[str, ...] = UNUSED) -> None:
    """Copy `tensors` into `model` by name. Raises UserError for missing, unknown, misshapen or non-finite ones."""
    check(model, tensors, path, unused)
    wanted = model.state_dict()
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{path}: {name} holds numbers that are not finite; the file is damaged, download it again")
    with torch.no_grad():
        for name in wanted.keys() & tensors.keys():
            wanted[name].copy_(tensors[name])


def check(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, unused: tuple[str, ...] = UNUSED) -> None:
    """The part of `fill` that looks at names, shapes and types only; the model may be on the meta device."""
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in tensors and not k.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"{path}: lacks {_some(missing)}; is it a checkpoint of this network?")
    unknown = [k for k in tensors if k not in wanted and not any(fnmatch.fnmatchcase(k, u) for u in unused)]
    if unknown:
        raise UserError(f"{path}: holds {_some(unknown)}, which this network does not have; is it of another version?")
    for name, value in wanted.items():
        if name in tensors and tensors[name].shape != value.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(value.shape)}; "
                "is it a checkpoint of another size?"
            )
        if name in tensors and tensors[name].is_floating_point() != value.is_floating_point():
            raise UserError(f"{path}: {name} has type {tensors[name].dtype}, expected numbers like {value.dtype}")


def _some(names: list[str]) -> str:
    """A few names and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def config_from(kind: type, data: Any) -> Any:
    """A config dataclass from nested plain data. Raises TypeError or ValueError for anything but known, sane fields."""
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
        like = defaults[name]
        if dataclasses.is_dataclass(like):
            values[name] = config_from(type(like), value)
        elif isinstance(like, tuple):
            if not isinstance(value, (list, tuple)) or len(value) > DEEPEST:
                raise TypeError(f"config field {name} must be a list of numbers")
            values[name] = tuple(_number(name, v) for v in value)
        elif isinstance(like, bool):
            values[name] = bool(value)
        else:
            values[name] = _number(name, value)
    return kind(**values)


def _number(name: str, value: Any) -> int:
    largest = DEEPEST if any(word in name for word in ("layers", "blocks", "depth")) else LARGEST
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise ValueError(f"config field {name} is {value!r}, not a number in 0..{largest}")
    coarsest = STRIDES[-1]
    if name == "image_size" and not (coarsest <= value <= 8192 and value % coarsest == 0):
        raise ValueError(f"config field image_size is {value}, not a multiple of {coarsest} in {coarsest}..8192")
    return value


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of consecutive children `prefix`0, `prefix`1, ..."""
    numbers = {k[len(prefix) :].split(".")[0] for k in tensors if k.startswith(prefix)}
    return next(i for i in range(len(numbers) + 1) if str(i) not in numbers)


def hiera_config(tensors: Mapping[str, Tensor], prefix: str) -> HieraConfig:
    """The published trunk whose width and depth the tensors under `prefix` have. Raises KeyError, ValueError."""
    width, depth = tensors[prefix + "patch_embed.proj.weight"].shape[0], _count(tensors, prefix + "blocks.")
    if (width, depth) not in TRUNKS:
        known = ", ".join(f"{w}x{d}" for w, d in TRUNKS)
        raise ValueError(f"trunk of width {width} with {depth} blocks is none of the published ones: {known}")
    return TRUNKS[width, depth]


def sam_config(tensors: Mapping[str, Tensor], prefix: str = "") -> SamConfig:
    """Sizes of the SAM 2 part, whose names start with `prefix`. Raises KeyError, ValueError."""

    def shape(name: str) -> torch.Size:
        return tensors[prefix + name].shape

    text = prefix + "sam_prompt_encoder.project_text.layers.0.weight"
    return SamConfig(
        hiera=hiera_config(tensors, prefix + "image_encoder.trunk."),
        width=shape("no_mem_embed")[-1],
        ages=shape("maskmem_tpos_enc")[0],
        memory_width=shape("maskmem_tpos_enc")[-1],
        memory_layers=_count(tensors, prefix + "memory_attention.layers."),
        memory_hidden=shape("memory_attention.layers.0.linear1.weight")[0],
        decoder_depth=_count(tensors, prefix + "sam_mask_decoder.transformer.layers."),
        decoder_hidden=shape("sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight")[0],
        iou_hidden=shape("sam_mask_decoder.iou_prediction_head.layers.0.weight")[0],
        prompt_channels=shape("sam_prompt_encoder.mask_downscaling.3.weight")[0],
        mask_channels=tuple(shape(f"memory_encoder.mask_downsampler.encoder.{i}.weight")[0] for i in (0, 3, 6, 9)),
        fuser_blocks=_count(tensors, prefix + "memory_encoder.fuser.layers."),
        object_score=prefix + "sam_mask_decoder.obj_score_token.weight" in tensors,
        text_width=tensors[text].shape[1] if text in tensors else 0,
        motion=prefix + "sam_prompt_encoder.project_motion_prompts.layers.0.weight" in tensors,
        pointer_positions=prefix + "obj_ptr_tpos_proj.weight" in tensors,
    )
