"""One WebSocket: messages in, one stream at a time, messages out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import Busy, UserError
from ..prompts import Concept
from ..prompts.json_prompts import parse_concept, parse_number, parse_objects
from . import camera, wire
from .service import SHUTDOWN, Account, Service
from .stream import ClientStream, Close, Outbox

ORDERS = ("start", "correct", "remove", "add_concept", "remove_concept", "end", "cancel")
"""Types of text messages, each with a method of `Connection`."""


class Connection:
    """A WebSocket from its opening to its end. `account` None: the first message has to bring a token.

    `state`: may have `lost`, an event that is set when the client has gone, which a reader that waits for room would
    not see; and `abort`, which ends the connection without waiting for the client.
    """

    def __init__(self, socket: WebSocket, service: Service, account: Account | None, state: Mapping[str, Any]) -> None:
        self._socket, self._service, self._account = socket, service, account
        self._lost, self._abort = state.get("lost", asyncio.Event()), state.get("abort", lambda: None)
        self._outbox = Outbox(socket, service)
        self._current: ClientStream | None = None
        self._opened = time.monotonic()

    async def run(self) -> None:
        """Serve the connection until it ends."""
        self._service.open_connections += 1
        pending = {asyncio.ensure_future(work) for work in (self._read(), self._outbox.run(), self._lost.wait())}
        try:
            timeout = self._service.limits.session_seconds
            done, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            errors = [task.exception() for task in done] or [Close(1008, f"connected for {timeout:g} s; connect again")]
        finally:
            self._service.open_connections -= 1
            while pending:  # `wait_for` before Python 3.12 may swallow a cancellation
                self._leave()
                for task in pending:
                    task.cancel()
                others, pending = await asyncio.wait(pending, timeout=0.1)
                for task in others:
                    task.cancelled() or task.exception()  # seen, so that asyncio does not report it
            self._leave()
        if (error := errors[0]) is not None and not isinstance(error, WebSocketDisconnect):
            await self._close(error if isinstance(error, Close) else Close(1011, self._service.explain(error)))

    def _leave(self) -> None:
        if self._current is not None:
            self._current.leave()

    async def _close(self, error: Close) -> None:
        """Tell the client why it ends; without waiting for one that does not read."""
        with contextlib.suppress(Exception):
            message = {"type": "error", "message": str(error), "busy": False}
            await asyncio.wait_for(self._socket.send_text(json.dumps(message)), 1)
            return await self._socket.close(error.code, str(error)[:120])
        self._abort()

    async def _read(self) -> None:
        while True:
            await self._outbox.has_room.wait()  # answers that are not read must not pile up
            message = await self._next()
            if message["type"] == "websocket.disconnect":
                return
            size = len(message.get("bytes") or message.get("text") or "")
            bytes_of = (self._account or self._service.everybody).bytes
            await asyncio.sleep(bytes_of.take(max(size, self._service.limits.message_cost)))
            try:
                await self._handle(message)
            except (Close, asyncio.CancelledError):
                raise
            except Exception as error:
                text, is_busy = self._service.refuse(error)
                self._outbox.put({"type": "error", "message": text, "busy": is_busy})

    async def _next(self) -> Any:
        """Return the next message. Raises Close after a while without one, unless frames wait or results go out.

        Without a token the time counts from the start of the connection, whatever comes.
        """
        limits, is_known = self._service.limits, self._account is not None
        wait = limits.idle_seconds if is_known else limits.head_seconds
        started = time.monotonic() if is_known else self._opened
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                return await asyncio.wait_for(self._socket.receive(), started + wait - time.monotonic())
            if self._current is not None:
                started = time.monotonic() if self._current.is_waiting else max(started, self._current.active)
            if time.monotonic() - started >= wait:
                raise Close(1008, f"no {'message' if is_known else 'token'} for {wait:g} s; connect again")

    async def _handle(self, message: Mapping[str, Any]) -> None:
        if (data := message.get("bytes")) is not None:
            return await self._frame(data)
        order = await self._service.code(wire.parse, message["text"], self._service.limits)
        if (name := order.get("type")) not in ORDERS:
            raise UserError(f"type must be one of {', '.join(ORDERS)}")
        await getattr(self, f"_{name}")(order)

    @property
    def _stream(self) -> ClientStream:
        if self._current is None or self._current.is_over:
            raise UserError("no stream is open; send a start first")
        return self._current

    # -- messages -----------------------------------------------------------------------------------------------------

    async def _start(self, order: Mapping[str, Any]) -> None:
        account = self._account or self._service.account(order.get("token"))
        if account is None:
            await asyncio.sleep(0.5)  # against guessing
            raise Close(1008, "a token is needed, in the header Authorization or in the first message")
        self._account = account
        start = wire.start(order, self._service.limits)
        if self._current is not None and not self._current.is_over:
            raise UserError("a stream is open; send end or cancel, and start after it has ended")
        await asyncio.sleep(account.starts.take(1))
        if self._service.is_draining:
            raise Busy(SHUTDOWN)
        cameras = self._service.cameras
        if start.camera is not None and start.camera not in cameras:
            raise UserError(f"there is no camera of this name; cameras: {', '.join(cameras) or 'none'}")
        self._service.check_room(account)
        self._current = ClientStream(start, self._service, account, self._outbox)
        self._service.streams.add(self._current)
        try:
            stream = await self._current.open()
        except BaseException:
            self._current.leave()
            raise
        about = {**self._service.about, "stream": f"{id(stream):x}", "colours": wire.COLOURS}
        is_text = start.prompts is not None and not isinstance(start.prompts[0], Concept)
        window = 1 if start.options.get("latency") == "low" else start.options.get("window")
        about["window"] = (window or about["window"]) if is_text else None
        about["prompts"] = list(self._current.concepts.values())
        self._outbox.put({"type": "started", **about})
        if start.camera is not None:
            camera.follow(cameras[start.camera], self._current, stream)

    async def _frame(self, data: bytes) -> None:
        code, limits, account = self._service.code, self._service.limits, self._account
        header, encoded = await code(wire.split, data, limits)
        current = self._stream
        assert account is not None
        if current.start.camera is not None:
            raise UserError("the server reads the camera of this stream; send no frames")
        tag = wire.tag(header, limits)
        try:
            image, prompts, seconds = await code(wire.frame, header, encoded, limits)
            await account.take_frame(image.shape)
            await current.put(image, prompts, tag, seconds)
        except Exception as error:
            self._service.metrics.frames.labels("refused").inc()
            message = SHUTDOWN if self._service.is_draining else self._service.explain(error)
            self._outbox.put({"type": "failed", "tag": tag, "message": message})

    async def _correct(self, order: Mapping[str, Any]) -> None:
        assert self._account is not None
        limits = self._service.limits
        prompts = await self._service.code(parse_objects, order.get("prompts"), limits.objects, limits.pixels)
        await asyncio.sleep(self._account.frames.take(1))
        await self._stream.correct(prompts)

    async def _remove(self, order: Mapping[str, Any]) -> None:
        await self._stream.call("remove", parse_number(order.get("object"), "an object"))

    async def _add_concept(self, order: Mapping[str, Any]) -> None:
        concept, stream = parse_concept({name: order[name] for name in order if name != "type"}), self._stream
        if len(stream.concepts) >= self._service.limits.prompts:
            raise UserError(f"a stream has at most {len(stream.concepts)} concepts; remove one first")
        stream.concepts[await stream.call("add_concept", concept)] = concept.label
        self._outbox.put({"type": "concepts", "concepts": stream.concepts})

    async def _remove_concept(self, order: Mapping[str, Any]) -> None:
        number, stream = parse_number(order.get("number"), "a concept"), self._stream
        await stream.call("remove_concept", number)
        stream.concepts.pop(number, None)
        self._outbox.put({"type": "concepts", "concepts": stream.concepts})

    async def _end(self, order: Mapping[str, Any]) -> None:
        stream = self._stream.opened
        stream.end() if order["type"] == "end" else stream.cancel()

    _cancel = _end
