"""Messages of the wire protocol (docs/guides/serving.md): checked on the way in, packed on the way out.

A text message is a JSON object. A binary one is the length of a JSON header in 4 bytes, big-endian, the header, and a
payload. Whatever a client sends, these functions raise `UserError` or return.
"""

from __future__ import annotations

import colorsys
import io
import json
import math
import re
import secrets
import struct
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from ..errors import BackendError, BundleError, Busy, UserError, reject_unknown, summarize
from ..imaging.rle import encode_rle
from ..media.image_files import decode_image
from ..models.options import ConceptOptions, TextOptions
from ..prompts import Concept, Text
from ..prompts.json_prompts import parse_objects, parse_prompts
from ..results import Result
from ..scheduler import Delivery
from ..tracking.state import TrackingKeywords
from .limits import Limits

MASKS = ("png", "rle", "bits", "none")
"""Forms of masks that a client may ask for."""

OPTIONS = sorted(
    {*TextOptions.__slots__, *ConceptOptions.__slots__, *TrackingKeywords.__annotations__}
    - {"max_cond_frames_in_attn", "encode_ahead"}
)
"""Options of a session that a client may set. Left out: one for each value of which the engine keeps other memory, and
one whose results come later than `window` tells a client."""

COLOURS = [
    "#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hsv_to_rgb(0.98 + i * 0.6180339887 % 1, 0.72, 1.0))
    for i in range(64)
]
"""Colour of object id i: COLOURS[i % 64]. A golden ratio apart, hues of successive objects differ."""

ALPHA = 128
"""Opacity of a mask, of 255."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


# -- in ---------------------------------------------------------------------------------------------------------------


def parse(text: str | bytes, limits: Limits) -> dict[str, Any]:
    """Return a JSON object. Raises UserError for anything else, also for one that is too long or nested too deeply."""
    if len(text) > limits.header_bytes:
        raise UserError(f"{len(text):,} bytes of JSON, more than {limits.header_bytes:,}; send less")
    try:
        text = text.decode() if isinstance(text, bytes) else text
        _check_depth(text, limits.json_depth)
        value = json.loads(text, parse_constant=_not_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({summarize(error, 80)})") from None
    if not isinstance(value, dict):
        raise UserError('a message is a JSON object like {"type": "end"}')
    return value


def _check_depth(text: str, limit: int) -> None:
    depth = 0
    for character in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if character in "[{" else -1
        if depth > limit:
            raise ValueError(f"nested more than {limit} deep")


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _not_finite(text)


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no finite number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def split(data: bytes, limits: Limits) -> tuple[dict[str, Any], bytes]:
    """Return header and payload of a binary message. Raises UserError."""
    length = int.from_bytes(data[:4], "big")
    if len(data) < 4 or length > len(data) - 4:
        raise UserError("the message ends before its header; send its length in 4 bytes, the header, the picture")
    header = parse(data[4 : 4 + length], limits)
    if header.get("type") != "frame":
        raise UserError('a binary message has the type "frame"')
    return header, data[4 + length :]


_START: dict[str, tuple[Callable[[Any], bool], str]] = {
    "keep": (lambda value: value in ("all", "latest"), '"all" or "latest"'),
    "masks": (lambda value: value in MASKS, f"one of {', '.join(MASKS)}"),
    "rate": (
        lambda value: value is None or (_is_number(value) and 0 < value <= 1000),
        "null or frames a second, above 0",
    ),
    "camera": (lambda value: value is None or isinstance(value, str), "the name of a camera"),
    "options": (lambda value: isinstance(value, dict), "an object"),
}
"""Fields of a `start`: what fits, and its description."""


@dataclass(frozen=True, slots=True)
class Start:
    """A checked `start`: `prompts` None where points, boxes and masks come with the frames."""

    prompts: list[Text] | list[Concept] | None
    keep: str = "all"
    masks: str = "png"
    rate: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    camera: str | None = None


def start(message: Mapping[str, Any], limits: Limits) -> Start:
    """Return the checked message. Raises UserError, PromptError."""
    given = {name: value for name, value in message.items() if name not in ("type", "token", "prompts")}
    reject_unknown("start", given, _START)
    for name, value in given.items():
        fits, expected = _START[name]
        if not fits(value):
            raise UserError(f"{name} of a start must be {expected}")
    if given.get("camera") is not None:
        given["keep"] = "latest"
    prompts = parse_prompts(message.get("prompts", []), limits.prompts)
    options = check_options(given.pop("options", {}), limits)
    if prompts and isinstance(prompts[0], Concept):  # the video has no end
        options["max_objects"] = min(options.get("max_objects") or limits.objects, limits.objects)
    return Start(prompts, options=options, **given)


def check_options(options: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Return the options of a session, whose values it checks itself. Raises UserError."""
    reject_unknown("options", options, OPTIONS)
    for name, value in options.items():
        if not (value is None or (isinstance(value, int) and -1 <= value <= limits.option)):
            raise UserError(f"options.{name} must be true, false, null or a whole number up to {limits.option}")
    return dict(options)


def frame(header: Mapping[str, Any], data: bytes, limits: Limits) -> tuple[np.ndarray, dict[int, Any], float | None]:
    """Return pixels, prompts and time of a frame. Raises UserError, PromptError, VideoError."""
    reject_unknown("a frame", header, ("type", "tag", "time", "prompts"))
    time = header.get("time")
    if time is not None and not _is_number(time):
        raise UserError("time must be null or a number of seconds")
    prompts = parse_objects(header.get("prompts"), limits.objects, limits.pixels)
    return picture(data, limits), prompts, time


def tag(header: Mapping[str, Any], limits: Limits) -> Any:
    """Return the tag of a frame. Raises UserError."""
    value = header.get("tag")
    if not (value is None or isinstance(value, str) or _is_number(value)) or len(str(value)) > limits.tag_characters:
        raise UserError(f"tag must be a number or a string of at most {limits.tag_characters} characters")
    return value


def picture(data: bytes, limits: Limits) -> np.ndarray:
    """Return a JPEG, PNG or WebP picture as uint8 RGB (H,W,3), upright. Raises VideoError."""
    return decode_image(data, ("JPEG", "PNG", "WEBP"), limits.pixels)


def explain(error: BaseException, log: Callable[[str], object]) -> tuple[str, str]:
    """Return the kind of an error, `busy`, `mistake` or `fault`, and what a client may read of it.

    A fault is not the client's: `log` gets its traceback, and the client an id to find it by.
    """
    if isinstance(error, UserError) and not isinstance(error, BundleError | BackendError):
        return "busy" if isinstance(error, Busy) else "mistake", str(error)
    name = f"internal fault, id {secrets.token_hex(4)}"
    log(f"{name}: {''.join(traceback.format_exception(error))}")
    return "fault", name


# -- out --------------------------------------------------------------------------------------------------------------


def pack(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """Return a binary message."""
    head = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return struct.pack(">I", len(head)) + head + payload


def result(found: Result, delivery: Delivery, masks: str, corrected: bool = False) -> bytes:
    """Return a result, and what the scheduler says about it, as a message."""
    header = {"type": "result", "tag": delivery.tag, "frame": found.frame_index, "time": found.time, "masks": masks}
    header |= {"waited": round(delivery.waited, 4), "computed": round(delivery.computed, 4), "corrected": corrected}
    return pack(header | describe(found, masks), payload(found, masks))


def describe(found: Result, masks: str) -> dict[str, Any]:
    """Return size and objects of a result as JSON."""
    rows = zip(found.object_ids, found.prompt_ids, found.scores.tolist(), found.boxes.tolist(), strict=True)
    objects: list[dict[str, Any]] = [
        {"id": int(i), "prompt": int(p), "score": score, "box": box} for i, p, score, box in rows
    ]
    if masks == "rle":
        for entry, code in zip(objects, encode_rle(found.masks), strict=True):
            entry["rle"] = code
    return {"size": list(found.masks.shape[1:]), "objects": objects}


def payload(found: Result, masks: str) -> bytes:
    """Return the masks as the bytes after a header.

    png: the index is the position of the object, from 1; 0 is transparent, later objects are on top.
    """
    if masks == "bits":
        return np.packbits(found.masks.reshape(len(found.masks), math.prod(found.masks.shape[1:])), axis=1).tobytes()
    if masks != "png":
        return b""
    from PIL import Image

    index = np.zeros(found.masks.shape[1:], np.uint8)
    for position, mask in enumerate(found.masks[:255], 1):
        index[mask] = position
    image, data = Image.fromarray(index, "P"), io.BytesIO()
    colours = [COLOURS[obj % len(COLOURS)] for obj in found.object_ids[:255]]
    image.putpalette(bytes(3) + b"".join(bytes.fromhex(colour[1:]) for colour in colours))
    image.save(data, "PNG", compress_level=1, transparency=bytes([0, *[ALPHA] * len(colours)]))
    return data.getvalue()
