"""The stream of one client: its frames on their way in, its results on their way out."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

from starlette.websockets import WebSocket

from ..errors import UserError
from ..results import Result
from ..scheduler import Delivery, Outcome, Stream
from . import wire
from .service import SHUTDOWN, Account, Service

Message = Mapping[str, Any] | Callable[[], bytes]
"""JSON, or what packs a result in another thread."""


class Close(Exception):
    """The end of a connection: code of the WebSocket, and why."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Outbox:
    """Messages to one client, in order. Who fills it stops where it is full, and goes on at `on_room`."""

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket, self._service = socket, service
        self._items: deque[tuple[Message, int]] = deque()
        self._bytes = 0
        self._filled, self.has_room = asyncio.Event(), asyncio.Event()
        self.has_room.set()
        self.on_room: Callable[[], None] = lambda: None

    def put(self, message: Message, nbytes: int = 0) -> None:
        """Add a message that takes `nbytes` of memory until it is sent."""
        self._items.append((message, nbytes))
        self._bytes += nbytes
        self._filled.set()
        if len(self._items) >= self._service.limits.results or self._bytes > self._service.limits.result_bytes:
            self.has_room.clear()

    async def run(self) -> None:
        """Send. Raises Close when the client does not read, or after the end of its stream when the server ends."""
        while await self._filled.wait():
            message, nbytes = self._items[0]
            try:
                await asyncio.wait_for(self._send(message), self._service.limits.idle_seconds)
            except asyncio.TimeoutError:
                raise Close(1008, "the results are not read") from None
            self._items.popleft()
            self._bytes -= nbytes
            if not self._items:
                self._filled.clear()
                self.has_room.set()
                self.on_room()
            if isinstance(message, Mapping) and message["type"] == "ended" and self._service.is_draining:
                raise Close(1012, SHUTDOWN)

    async def _send(self, message: Message) -> None:
        if isinstance(message, Mapping):
            return await self._socket.send_text(json.dumps(message))
        with self._service.metrics.seconds.labels("encode").time():
            data = await self._service.code(message)
        await self._socket.send_bytes(data)


class ClientStream:
    """The stream of a connection, used on the loop; `deliver` on any thread."""

    def __init__(self, start: wire.Start, service: Service, account: Account, outbox: Outbox) -> None:
        self.start, self.account, self._service, self._outbox = start, account, service, outbox
        self._loop = asyncio.get_running_loop()
        self.stream: Stream | None = None
        self.is_over = self.is_held = False
        self.concepts = dict(enumerate([prompt.label for prompt in start.prompts or ()], 1))
        """Prompts by number; those of concepts change."""
        self.num_objects = 0
        """Objects of the last result."""
        self.active = time.monotonic()
        """Time of the last delivery."""
        self._progress = asyncio.Event()

    async def open(self) -> Stream:
        """Open the stream. Raises Busy, PromptError, UserError."""
        limits, start = self._service.limits, self.start
        options = {"keep": start.keep, "rate": start.rate, "max_pending": limits.pending, **start.options}
        options["max_pending_bytes"] = limits.pending_bytes
        opening = self._service.call(self._service.scheduler.open, start.prompts, self.deliver, **options)
        try:
            self.stream = await asyncio.shield(opening)
        except asyncio.CancelledError:  # the client has gone meanwhile
            opening.add_done_callback(lambda f: None if f.cancelled() or f.exception() else f.result().cancel())
            raise
        self._outbox.on_room = partial(self._hold, False)
        return self.stream

    def leave(self) -> None:
        """Cancel the stream and give its place back. Twice is harmless."""
        self.is_over = True
        self._service.streams.discard(self)
        stream, self.stream = self.stream, None  # its memory must not wait for this connection
        if stream is not None:
            stream.cancel()

    # -- out ----------------------------------------------------------------------------------------------------------

    def deliver(self, delivery: Delivery) -> None:
        """Pass on what has become of a frame."""
        self._loop.call_soon_threadsafe(self._delivered, delivery)

    def _delivered(self, delivery: Delivery) -> None:
        self.active = time.monotonic()
        self._progress.set()
        outcome, error, explain = delivery.outcome, delivery.error, self._service.explain
        if outcome is Outcome.END:
            counts = {name: getattr(self.stream, f"num_{name}", 0) for name in ("done", "dropped", "failed")}
            self.leave()
            message = SHUTDOWN if self._service.is_draining else None if error is None else explain(error)
            return self._outbox.put({"type": "ended", "message": message, **counts})
        self._service.metrics.count(delivery)
        if delivery.result is not None:
            self.num_objects = len(delivery.result.object_ids)
            self._put_result(delivery.result, delivery)
        elif error is not None:
            self._outbox.put({"type": "failed", "tag": delivery.tag, "message": explain(error)})
        elif self.start.camera is None:  # else the client does not know of the frame
            self._outbox.put({"type": "dropped", "tag": delivery.tag})
        if not self._outbox.has_room.is_set():
            self._hold(True)

    def _put_result(self, result: Result, delivery: Delivery, is_corrected: bool = False) -> None:
        pack = partial(wire.result, result, delivery, self.start.masks, is_corrected)
        self._outbox.put(pack, result.masks.nbytes)

    def _hold(self, is_held: bool) -> None:
        if self.stream is not None and self.is_held != is_held:
            self.is_held = is_held
            self.stream.hold(is_held)

    @property
    def is_waiting(self) -> bool:
        """Whether the engine has something to do for it, even if others are first."""
        return self.stream is not None and not self.is_over and self.stream.is_ready

    @property
    def opened(self) -> Stream:
        """The stream of the scheduler. Raises UserError when it has ended."""
        if self.stream is None:
            raise UserError("this stream has ended; open another one")
        return self.stream

    # -- in -----------------------------------------------------------------------------------------------------------

    async def put(self, image: Any, prompts: dict[int, Any], tag: Any, seconds: float | None) -> None:
        """Put a frame, waiting for room. Raises PromptError, UserError after the end."""
        stream = self.opened
        while not stream.put(image, prompts or None, tag, time=seconds):
            self._progress.clear()  # set by a delivery, or when the session has taken all frames that wait
            taken: Future[None] = stream.call(lambda session: None)
            taken.add_done_callback(lambda f: self._loop.call_soon_threadsafe(self._progress.set))
            await self._progress.wait()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the session after the frames that wait. Raises what it raises."""
        return (await self._call(method, *arguments))[0]

    async def correct(self, prompts: dict[int, Any]) -> None:
        """Correct the frame that the session has had last, and put its new result."""
        result, tag = await self._call("correct", prompts)
        self._put_result(result, Delivery(Outcome.DONE, tag), is_corrected=True)

    async def _call(self, method: str, *arguments: Any) -> tuple[Any, Any]:
        """Return what a method of the session returns, and the tag of the frame that the session has had last."""
        stream = self.opened

        def call(session: Any) -> tuple[Any, Any]:
            if not hasattr(session, method):
                raise UserError(f"this stream cannot {method.replace('_', ' ')}; start one with clicks or concepts")
            return getattr(session, method)(*arguments), stream.last_tag

        future = asyncio.wrap_future(stream.call(call))
        await asyncio.wait([future])
        if future.cancelled():
            raise UserError("the stream has ended")
        return future.result()
