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
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from ..errors import PromptError, UserError, VideoError, reject_unknown, summarize
from ..imaging.rle import decode_rle, encode_rle
from ..media.image_files import check_frame
from ..models.options import ConceptOptions, TextOptions
from ..prompts import Box, Concept, Mask, Points, Text
from ..results import Result
from ..tracking.state import TrackingKeywords
from .limits import Limits

MASKS = ("png", "rle", "bits", "none")
"""Forms of masks that a client may ask for."""

OPTIONS = {*TextOptions.__slots__, *ConceptOptions.__slots__, *TrackingKeywords.__annotations__}
"""Options of a session that a client may set."""

COLOURS = [
    "#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hsv_to_rgb(0.98 + i * 0.6180339887 % 1, 0.72, 1.0))
    for i in range(64)
]
"""Colour of object id i: COLOURS[i % 64]. A golden ratio apart, hues of successive objects differ."""

ALPHA = 128
"""Opacity of a mask, of 255."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_START = ("type", "prompts", "keep", "masks", "rate", "options", "camera", "token")
_FRAME = ("type", "tag", "time", "prompts")

Prompts = list[Text] | list[Concept] | None


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
        raise UserError(f"a message is a JSON object with a type, not {_kind(value)}")
    return value


def split(data: bytes, limits: Limits) -> tuple[dict[str, Any], memoryview]:
    """Return header and payload of a binary message. Raises UserError."""
    if len(data) < 4:
        raise UserError(f"a binary message of {len(data)} bytes; it begins with the length of its header, 4 bytes")
    (length,) = struct.unpack_from(">I", data)
    if length > len(data) - 4:
        raise UserError(f"the message ends before its header of {length:,} bytes; send 4 bytes, header, picture")
    header = parse(bytes(data[4 : 4 + length]), limits)
    if header.get("type") != "frame":
        raise UserError('a binary message has the type "frame"')
    return header, memoryview(data)[4 + length :]


@dataclass(frozen=True, slots=True)
class Start:
    """A checked `start`: `prompts` None where points, boxes and masks come with the frames."""

    prompts: Prompts
    keep: str = "all"
    masks: str = "png"
    rate: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    camera: str | None = None

    @property
    def labels(self) -> list[str]:
        """Words to show, by prompt."""
        return [prompt.label for prompt in self.prompts or ()]


def start(message: Mapping[str, Any], limits: Limits) -> Start:
    """Return the checked message. Raises UserError, PromptError."""
    reject_unknown("start", message, _START)
    keep, masks = message.get("keep", "all"), message.get("masks", "png")
    if keep not in ("all", "latest"):
        raise UserError('keep must be "all" or "latest"')
    check_masks(masks)
    rate = message.get("rate")
    if rate is not None and not (_is_number(rate) and 0 < rate <= 1000):
        raise UserError("rate must be null or frames a second, above 0")
    camera = message.get("camera")
    if camera is not None and not isinstance(camera, str):
        raise UserError("camera must be the name of a camera")
    prompts = sentences(message.get("prompts", []), limits)
    options = check_options(message.get("options", {}), limits)
    if prompts and isinstance(prompts[0], Concept):  # the video has no end
        options.setdefault("max_objects", limits.objects)
    return Start(prompts, keep, masks, rate, options, camera)


def check_masks(masks: Any) -> str:
    """Return a form of masks. Raises UserError."""
    if masks not in MASKS:
        raise UserError(f"masks must be one of {', '.join(MASKS)}")
    return str(masks)


def check_options(options: Any, limits: Limits) -> dict[str, Any]:
    """Return the options of a session. Raises UserError; the session checks them against each other."""
    if not isinstance(options, dict):
        raise UserError(f"options must be an object, not {_kind(options)}")
    reject_unknown("options", options, sorted(OPTIONS))
    for name, value in options.items():
        if not (value is None or isinstance(value, bool) or (isinstance(value, int) and -1 <= value <= limits.option)):
            raise UserError(f"options.{name} must be true, false, null or a whole number up to {limits.option}")
    return dict(options)


def sentences(values: Any, limits: Limits) -> Prompts:
    """Return sentences or concepts; None for an empty list. Raises PromptError."""
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise PromptError('prompts must be a list like [{"text": "the red car"}] or [{"concept": "bus"}]')
    if len(values) > limits.prompts:
        raise PromptError(f"{len(values)} prompts, more than {limits.prompts}; send fewer")
    concepts = [value for value in values if "concept" in value or "boxes" in value]
    if not concepts:
        return [_text(value) for value in values] or None
    if len(concepts) < len(values):
        raise PromptError("prompts must be all sentences or all concepts")
    return [concept(value) for value in values]


def _text(value: Mapping[str, Any]) -> Text:
    reject_unknown("a sentence", value, ("text", "tokens", "verbs"))
    return Text(value.get("text"), tokens=value.get("tokens"), verbs=value.get("verbs"))


def concept(value: Mapping[str, Any]) -> Concept:
    """Return a concept. Raises PromptError."""
    reject_unknown("a concept", value, ("concept", "tokens", "boxes", "labels"))
    words, boxes = value.get("concept"), value.get("boxes")
    return Concept(words, tokens=value.get("tokens"), boxes=boxes, labels=value.get("labels"))


def concepts_of(session: Any) -> dict[int, str]:
    """Return the concepts of a session by number. Raises PromptError for another kind of session."""
    if not hasattr(session, "concepts"):
        raise PromptError("this stream follows no concepts; start one with them")
    return {number: concept.label for number, concept in session.concepts.items()}


def visual_prompts(values: Any, limits: Limits) -> dict[int, Any]:
    """Return points, boxes and masks by object. Raises PromptError."""
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(value, dict) for value in values.values()):
        raise PromptError('prompts on a frame must be an object like {"1": {"points": [[x, y]], "labels": [1]}}')
    if len(values) > limits.objects:
        raise PromptError(f"{len(values)} objects, more than {limits.objects}; send fewer")
    return {object_id(key): _visual(value, limits) for key, value in values.items()}


def object_id(key: Any) -> int:
    """Return the number of an object. Raises PromptError."""
    if isinstance(key, bool) or not re.fullmatch("[0-9]{1,9}", str(key)):
        raise PromptError(f"an object is a whole number, not {summarize(repr(key), 40)}")
    return int(key)


def _visual(value: Mapping[str, Any], limits: Limits) -> Any:
    reject_unknown("a prompt", value, ("points", "labels", "box", "mask"))
    if "mask" in value:
        return Mask(decode_rle(value["mask"], limits.pixels))
    found: list[Any] = [Box(value["box"])] if "box" in value else []
    if "points" in value:
        found.append(Points(value["points"], value.get("labels", [])))
    if not found:
        raise PromptError('a prompt has "points" and "labels", a "box", or a "mask"')
    return found if len(found) > 1 else found[0]


def frame(header: Mapping[str, Any], limits: Limits) -> tuple[float | None, dict[int, Any]]:
    """Return time and prompts of a frame. Raises UserError."""
    reject_unknown("a frame", header, _FRAME)
    time = header.get("time")
    if time is not None and not _is_number(time):
        raise UserError("time must be null or a number of seconds")
    return time, visual_prompts(header.get("prompts"), limits)


def tag(header: Mapping[str, Any], limits: Limits) -> Any:
    """Return the tag of a frame. Raises UserError."""
    value = header.get("tag")
    if not (value is None or isinstance(value, str) or _is_number(value)) or len(str(value)) > limits.tag_characters:
        raise UserError(f"tag must be a number or a string of at most {limits.tag_characters} characters")
    return value


def picture(data: bytes | memoryview, limits: Limits) -> np.ndarray:
    """Return a picture as uint8 RGB (H,W,3), upright. Its size is checked before a pixel is decoded.

    Raises VideoError.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > limits.pixels:
                raise VideoError(f"a picture of {image.width}x{image.height}; at most {limits.pixels:,} pixels")
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise VideoError("an animation; send its frames as pictures of their own")
            return check_frame(ImageOps.exif_transpose(image), 0, None)
    except VideoError as error:
        raise VideoError(str(error).removeprefix("frame 0: ")) from None
    except Exception as error:  # Pillow's readers raise a dozen types for a damaged file
        reason = "" if "BytesIO" in str(error) else f" ({summarize(error, 80)})"
        raise VideoError(f"not a JPEG, PNG or WebP picture, or a damaged one{reason}") from None


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


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a string" if isinstance(value, str) else "something else"


# -- out --------------------------------------------------------------------------------------------------------------


def pack(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """Return a binary message."""
    head = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return struct.pack(">I", len(head)) + head + payload


def result(
    found: Result, masks: str, tag: Any = None, waited: float = 0.0, computed: float = 0.0, corrected: bool = False
) -> bytes:
    """Return a result as a message."""
    header = {"type": "result", "tag": tag, "frame": found.frame_index, "time": found.time, "masks": masks}
    header |= {"waited": round(waited, 4), "computed": round(computed, 4), "corrected": corrected}
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
    """Return the masks as the bytes after a header."""
    if masks == "bits":
        return np.packbits(found.masks.reshape(len(found.masks), -1), axis=1).tobytes()
    return _indexed_png(found) if masks == "png" else b""


def _indexed_png(found: Result) -> bytes:
    """Return a PNG whose index is the position of the object, from 1; 0 is transparent, later objects are on top."""
    from PIL import Image

    index = np.zeros(found.masks.shape[1:], np.uint8)
    for position, mask in enumerate(found.masks[:255], 1):
        index[mask] = position
    image, data = Image.fromarray(index, "P"), io.BytesIO()
    colours = [COLOURS[obj % len(COLOURS)] for obj in found.object_ids[:255]]
    image.putpalette(bytes(3) + b"".join(bytes.fromhex(colour[1:]) for colour in colours))
    image.save(data, "PNG", compress_level=1, transparency=bytes([0, *[ALPHA] * len(colours)]))
    return data.getvalue()
