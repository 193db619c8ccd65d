"""uvicorn's protocols with limits of time: request heads that do not come, clients that have gone."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from .limits import Limits, Rate

MAX_FRAGMENTS = 1024
"""Fragments of one message; empty ones would not count as bytes."""


class HttpProtocol(H11Protocol):
    """Closes a connection on which no request is complete for `head_seconds`, to twice that."""

    limits = Limits()
    _seen: Any = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if (raw := transport.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.limits.socket_bytes)
            # asyncio does this only for some listeners; without it a body waits 40 ms until its head is acknowledged
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # of data that is not acknowledged
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.limits.idle_seconds * 1000))
        self._timer = self.loop.call_later(self.limits.head_seconds, self._check)

    def _check(self) -> None:
        if self.cycle is self._seen and (self.cycle is None or self.cycle.response_complete):
            return self.transport.abort()
        self._seen = self.cycle
        self._timer = self.loop.call_later(self.limits.head_seconds, self._check)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._stop()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class SocketProtocol(WebSocketsSansIOProtocol):
    """Tells the application at once that a client has gone, while it does not read. Cuts handshakes that do not end,
    and floods of pings, which no application sees."""

    limits = Limits()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._control = Rate(self.limits.control_frames)
        if hasattr(transport, "max_size"):
            transport.max_size = self.limits.read_bytes
        self._timer = self.loop.call_later(self.limits.head_seconds, transport.abort)

    def handle_connect(self, event: Any) -> None:
        self._timer.cancel()
        self.lost = asyncio.Event()
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["state"].update(lost=self.lost, abort=self.transport.abort)

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            return self.transport.abort()
        super().handle_cont(event)

    def handle_ping(self) -> None:
        if self._takes_control():
            super().handle_ping()

    def handle_pong(self, event: Any) -> None:
        if self._takes_control():
            super().handle_pong(event)

    def _takes_control(self) -> bool:
        if self._control.take(1) > 0:
            self.transport.abort()
        return not self.transport.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._timer.cancel()
        if hasattr(self, "lost"):
            self.lost.set()
