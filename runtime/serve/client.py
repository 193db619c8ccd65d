"""Client of a server: frames go out, results come back as `runtime.Result`."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Busy, InternalError, UserError, summarize
from ..imaging.rle import encode_rle
from ..media.frame_iterables import iterate_frames
from ..prompts import Box, Concept, Mask, Points, Text
from ..results import Result
from . import wire

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


class Client:
    """A server by its address; `token` where it needs one."""

    def __init__(self, address: str = "http://127.0.0.1:8000", token: str | None = None) -> None:
        self._address = "ws" + address.rstrip("/").removeprefix("http") + "/v1/stream"
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def stream(
        self,
        frames: Any,
        prompts: Sequence[str | Text | Concept] | Mapping[int, Mapping[int, Any]] = (),
        *,
        encoding: str = "PNG",
        **start: Any,
    ) -> Iterator[Result]:
        """Send frames and yield a result for each.

        frames    arrays (H,W,3), or what `runtime.open_video` opens or has opened
        prompts   sentences or concepts; or by frame and object: points, boxes, masks
        encoding  PNG, or JPEG: smaller, and masks differ a little
        start     `keep`, `rate` and `options` of the protocol
        Raises UserError with what the server says, Busy where it has no room.
        """
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        by_frame = prompts if isinstance(prompts, Mapping) else {}
        first = {"type": "start", "masks": "bits", "prompts": [_as_json(p) for p in prompts if not by_frame], **start}
        try:
            # no pings: while the server lets it wait, their answers wait behind frames
            options: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None}
            with connect(self._address, additional_headers=self._headers, **options) as socket:
                socket.send(json.dumps(first))
                _checked(json.loads(socket.recv()))
                errors: list[Exception] = []
                arguments = (socket, frames, by_frame, encoding, errors)
                threading.Thread(target=_send, args=arguments, daemon=True).start()
                for message in socket:
                    if isinstance(message, bytes):
                        yield _unpack(message)
                    elif _checked(json.loads(message))["type"] == "ended":
                        break
        except (OSError, WebSocketException) as error:
            raise UserError(f"{self._address}: cannot be reached, or hung up ({summarize(error)})") from None
        if errors:
            raise errors[0]


def _send(
    socket: ClientConnection, frames: Any, prompts: Mapping[int, Any], encoding: str, errors: list[Exception]
) -> None:
    from PIL import Image
    from websockets.exceptions import ConnectionClosed

    with suppress(ConnectionClosed):  # the receiving side says why
        try:
            for number, (frame, stamp) in enumerate(iterate_frames(frames)):
                data = io.BytesIO()
                Image.fromarray(frame).save(data, encoding, compress_level=1, quality=95)
                given = {str(obj): _as_json(prompt) for obj, prompt in prompts.get(number, {}).items()}
                header = {"type": "frame", "tag": number, "time": stamp.time, "prompts": given}
                socket.send(wire.pack(header, data.getvalue()))
        except ConnectionClosed:
            raise
        except Exception as error:  # of the source; raised where results are taken
            errors.append(error)
        socket.send('{"type": "end"}')


def _as_json(prompt: Any) -> dict[str, Any]:
    if isinstance(prompt, list):
        return {name: value for part in prompt for name, value in _as_json(part).items()}
    if isinstance(prompt, Mask):
        return {"mask": encode_rle(prompt.array[None])[0]}
    if isinstance(prompt, Box):
        return {"box": prompt.xyxy}
    if isinstance(prompt, Points):
        return {"points": prompt.points, "labels": prompt.labels}
    if isinstance(prompt, Concept):
        return {"concept": prompt.text, "tokens": prompt.tokens, "boxes": prompt.boxes, "labels": prompt.labels}
    return {
        name: value for name, value in asdict(prompt if isinstance(prompt, Text) else Text(prompt)).items() if value
    }


def _unpack(message: bytes) -> Result:
    length = int.from_bytes(message[:4], "big")
    header = json.loads(message[4 : 4 + length])
    objects, (height, width) = header["objects"], header["size"]
    bits = np.frombuffer(message[4 + length :], np.uint8).reshape(len(objects), -(-height * width // 8))
    masks = np.unpackbits(bits, axis=1, count=height * width).reshape(-1, height, width).astype(bool)
    columns = [[entry[name] for entry in objects] for name in ("id", "prompt", "score", "box")]
    scores, boxes = np.array(columns[2], np.float32), np.array(columns[3], np.float32).reshape(-1, 4)
    return Result(header["frame"], tuple(columns[0]), tuple(columns[1]), masks, scores, boxes, time=header["time"])


def _checked(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message. Raises the error that it reports."""
    text = message.get("message")
    if text is None:
        return message
    if text.startswith("internal fault"):
        raise InternalError(f"the server has an {text}")
    raise Busy(text) if message.get("busy") else UserError(text)
