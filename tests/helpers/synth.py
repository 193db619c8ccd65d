"""Deterministic synthetic weights, pictures, clips and masks of the golden tests.

Every number is a fixed integer function of (tensor name, seed), scaled by float32 products and sums: nothing depends
on the order of a state dict, on numpy's distribution code or on libm, so two machines get the same bits.

The source is the Philox4x64 counter generator with the 128-bit key crc32(name) XOR seed, raw 64-bit outputs only. A
normal sample is the centred sum of the four 16-bit lanes of one output (Irwin-Hall, n = 4), scaled to unit variance and
bounded by +-3.46, so there are no extreme outliers. The golden files hold checksums of what is made here.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterable, Mapping

import numpy as np
from PIL import Image

from .synth_recipes import Recipe

f32 = np.float32
_IRWIN_HALL_STD = f32(((65536.0**2 - 1.0) / 12.0 * 4.0) ** 0.5)


def raw(name: str, seed: int, count: int) -> np.ndarray:
    """`count` raw uint64 words, a function of (name, seed) only."""
    key = (zlib.crc32(name.encode("utf-8")) ^ (seed & 0xFFFFFFFF)) & 0xFFFFFFFF
    return np.random.Philox(key=key).random_raw(count)


def normal(name: str, seed: int, shape: Iterable[int]) -> np.ndarray:
    """Zero-mean float32 array of unit variance."""
    shape = tuple(int(n) for n in shape)
    lanes = raw(name, seed, math.prod(shape)).astype("<u8", copy=False).view("<u2").reshape(-1, 4)
    # exact: the sum fits in int32 and in the 24-bit mantissa of float32
    total = lanes.sum(axis=1, dtype=np.int32) - np.int32(2 * 65535)
    return (total.astype(f32) / _IRWIN_HALL_STD).reshape(shape)


def make_tensor(name: str, shape: Iterable[int], seed: int, scale: float = 1.0) -> np.ndarray:
    """Activation used as an input of the stand-alone module checks."""
    return normal(name, seed, shape) * f32(scale)


TRANSPOSED = ("output_upscaling.0.weight", "output_upscaling.3.weight", "proj_vis_up.0.weight")
"""Transposed convolutions: the weight is (in, out, kh, kw) instead of (out, in, kh, kw)."""

BUFFERS = {
    "num_batches_tracked": lambda shape: np.zeros(shape, np.int64),
    "_float_tensor": lambda shape: np.zeros(shape, f32),
    "version": lambda shape: np.full(shape, 3.0, f32),
    "position_ids": lambda shape: np.arange(shape[-1], dtype=np.int64).reshape(shape),
    "token_type_ids": lambda shape: np.zeros(shape, np.int64),
}
"""Entries of a state dict that are not weights, by the last part of their name."""


def _weight(recipe: Recipe, name: str, shape: tuple[int, ...], seed: int, offsets: Mapping) -> np.ndarray:
    """One entry of a state dict; its rule depends only on its name and shape."""
    last = name.rsplit(".", 1)[-1]
    if last in BUFFERS:
        return BUFFERS[last](shape)
    # RoBERTa's language model head shares the token embedding
    name = name.replace("lm_head.weight", "sentence_encoder.embed_tokens.weight")
    z = normal(name, seed, shape)
    if last == "running_mean":
        return z * f32(0.1)
    if last == "running_var":
        return f32(1.0) + z * f32(0.1)
    for part, std, mean in recipe.free:
        if part in name:
            out = z * f32(std) + f32(mean) if mean else z * f32(std)
            if last == "weight" and ("embed_tokens" in name or "embed_positions" in name):
                out[1] = 0.0  # the padding row, as in fairseq
            return out
    if last == "gamma":  # layer scale of ConvNeXt
        return f32(0.5) + z * f32(0.1)
    if last in ("bias", "in_proj_bias"):
        return z * f32(0.05) + np.asarray(offsets.get(name, 0.0), f32)
    if len(shape) == 1:  # weights of norms
        return f32(1.0) + z * f32(0.05)
    return _matrix(recipe, name, shape, seed, z)


def _matrix(recipe: Recipe, name: str, shape: tuple[int, ...], seed: int, z: np.ndarray) -> np.ndarray:
    """Weight of a linear layer or a convolution, scaled by fan-in."""
    fan_in = math.prod(shape[1:])
    if name.endswith(TRANSPOSED):
        fan_in = shape[0]
        if shape[-1] > 1:  # nearly the same value for every sub-pixel: smooth upsampling
            shared, rest = recipe.upsampling
            z = normal(name + "#base", seed, (*shape[:2], 1, 1)) * f32(shared) + z * f32(rest)
    for ending, axis in recipe.antisymmetric:
        if name.endswith(ending):
            first, second = np.split(z, 2, axis=axis)
            z = np.concatenate([first, -first + second * f32(0.25)], axis=axis)
    gain = next((gain for part, ending, gain in recipe.gains if part in name and name.endswith(ending)), 1.0)
    out = z * f32(gain / fan_in**0.5)
    if name.endswith("in_proj_weight"):  # packed queries, keys and values
        out[: 2 * (shape[0] // 3)] *= f32(1.5)
    return out


def make_state_dict(
    recipe: Recipe, shapes: Mapping, seed: int, offsets: Mapping | None = None, scales: Mapping | None = None
) -> dict[str, np.ndarray]:
    """Tensors by name. `shapes`: name -> shape or {"shape": ..., "dtype": ...}.

    `offsets` (name -> numbers added to a bias) and `scales` (name -> factor) come from the json of a case.
    """
    offsets = {**recipe.offsets, **(offsets or {})}
    out = {}
    for name, shape in shapes.items():
        shape = tuple(shape["shape"] if isinstance(shape, Mapping) else shape)
        out[name] = _weight(recipe, name, shape, seed, offsets)
        if name in (scales or {}):
            out[name] = out[name] * f32(scales[name])
    return out


class _Canvas:
    """An integer picture of gradients, shapes and faint grain; all parameters follow from (name, seed)."""

    def __init__(self, name: str, height: int, width: int, seed: int) -> None:
        self.height, self.width, self.short = height, width, max(1, min(height, width))
        self.y, self.x = np.indices((height, width), np.int64)
        self.numbers = [int(v % np.uint64(1 << 20)) for v in raw(f"{name}.params", seed, 128)]
        grain = (raw(f"{name}.grain", seed, height * width) & np.uint64(7)).astype(np.int64)
        self.grain = grain.reshape(height, width, 1) - 3

    def shape_numbers(self, k: int) -> list[int]:
        """The twelve numbers of shape `k`."""
        return self.numbers[16 + 12 * k : 28 + 12 * k]

    def gradient(self, t: int = 0) -> np.ndarray:
        """Background of frame `t` (H,W,3)."""
        s, channels = self.short, []
        for c in range(3):
            a, b, phase, drift = self.numbers[4 * c : 4 * c + 4]
            v = (a % 5 - 2) * self.x + (b % 5 - 2) * self.y + phase % (2 * s) + (drift % 7 - 3) * t * max(1, s // 90)
            channels.append(40 + triangle(v, s, 150) + triangle(self.y + self.x // 2 + 5 * t, s // 2, 40))
        return np.stack(channels, -1)

    def draw(self, image: np.ndarray, k: int, size: int, cx: int, cy: int) -> np.ndarray:
        """Shape `k` on top of `image`."""
        dx, dy = self.x - cx, self.y - cy
        squared = dx * dx + dy * dy
        disc = squared <= size * size
        inside = (
            disc,
            (np.abs(dx) <= size) & (np.abs(dy) <= (size * 2) // 3),  # box
            np.abs(dx) + np.abs(dy) <= size,  # diamond
            disc & (squared >= (size * size) // 3),  # ring
        )[k % 4]
        colour = np.array([n % 256 for n in self.shape_numbers(k)[7:10]], np.int64)
        shade = 1000 - (np.abs(dx) + np.abs(dy)) * 250 // max(1, size)
        return np.where(inside[..., None], colour * shade[..., None] // 1000, image)

    def finish(self, image: np.ndarray) -> np.ndarray:
        """Grain on top, as uint8."""
        return np.clip(image + self.grain, 0, 255).astype(np.uint8)


def triangle(v: np.ndarray, period: int, amplitude: int) -> np.ndarray:
    """Integer triangle wave in [0, amplitude]."""
    m = np.mod(v, 2 * period)
    return (np.where(m > period, 2 * period - m, m) * amplitude) // period


def make_image(height: int, width: int, seed: int) -> np.ndarray:
    """A uint8 picture (H,W,3) with six shapes."""
    canvas = _Canvas("image", height, width, seed)
    image = canvas.gradient()
    for k in range(6):
        q = canvas.shape_numbers(k)
        size = canvas.short // 12 + q[0] % max(1, canvas.short // 6)
        image = canvas.draw(
            image, k, size, *(size + n % max(1, a - 2 * size) for n, a in zip(q[1:3], (width, height), strict=True))
        )
    return canvas.finish(image)


def make_clip(num_frames: int, height: int, width: int, seed: int, flat_frames: Collection[int] = ()) -> np.ndarray:
    """A uint8 video (T,H,W,3) with four moving shapes.

    Frames in `flat_frames` are nearly flat grey pictures without shapes: the object has left the view.
    """
    canvas = _Canvas("clip", height, width, seed)
    s = canvas.short
    frames = []
    for t in range(num_frames):
        if t in flat_frames:
            frames.append(canvas.finish(118 + np.repeat(triangle(canvas.x, s, 12)[..., None], 3, -1)))
            continue
        image = canvas.gradient(t)
        for k in range(4):
            q = canvas.shape_numbers(k)
            size = s // 10 + q[0] % max(1, s // 7)
            cx = _bounce(q[5], q[1], q[2], width, size, t)
            image = canvas.draw(image, k, size, cx, _bounce(q[6], q[3], q[4], height, size, t))
        frames.append(canvas.finish(image))
    return np.stack(frames)


def _bounce(start: int, speed: int, sign: int, extent: int, size: int, t: int) -> int:
    """Centre of a shape that moves along an axis of length `extent` and stays inside."""
    span = extent - 2 * size
    velocity = (1 + speed % 3) * max(1, extent // 80) * (1 if sign & 1 else -1)
    return size + int(triangle(np.int64(start % span + velocity * t), span, span))


def make_mask(height: int, width: int, cx: int, cy: int, rx: int, ry: int) -> np.ndarray:
    """A bool mask (H,W): a filled ellipse in integer arithmetic."""
    y, x = np.indices((height, width), np.int64)
    return (x - cx) ** 2 * ry * ry + (y - cy) ** 2 * rx * rx <= (rx * ry) ** 2


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow's antialiased bilinear resize of a uint8 picture; the aspect ratio is ignored."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def normalize_image(image: np.ndarray) -> np.ndarray:
    """uint8 (H,W,3) -> float32 (3,H,W) with ImageNet's mean and deviation."""
    x = (image.astype(f32) / f32(255) - f32((0.485, 0.456, 0.406))) / f32((0.229, 0.224, 0.225))
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def crc(array: np.ndarray) -> int:
    """Checksum of one array."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def crc_state_dict(tensors: Mapping[str, np.ndarray]) -> int:
    """Checksum of all tensors in the order of their sorted names."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(np.ascontiguousarray(tensors[name]).tobytes(), zlib.crc32(name.encode("utf-8"), value))
    return value
