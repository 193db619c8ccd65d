"""The web server: the page, streams over WebSocket, health, metrics, the end."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from .. import __version__
from ..bundle.demo import Demo
from ..errors import UserError
from . import wire
from .connection import Connection
from .protocols import HttpProtocol, SocketProtocol
from .service import Account, Service
from .uploads import Uploads

HERE = Path(__file__).parent
PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/stream.js": "stream.js"}
"""The files that are served, by their addresses."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class Guard:
    """Refuses requests of other pages, and other names of this host, which a foreign DNS server may point here; and
    requests of two lengths."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], origins: Sequence[str]) -> None:
        self._app, self._hosts, self._origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._allows(HTTPConnection(scope)):
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            answer = PlainTextResponse("forbidden host, origin or length", 403, {"Connection": "close"})
            return await answer(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
            await send(message)

        await self._app(scope, receive, with_headers)

    def _allows(self, connection: HTTPConnection) -> bool:
        headers = connection.headers
        host, origins = headers.get("host", ""), set(headers.getlist("origin")).difference(self._origins)
        try:
            name, pages = urlsplit(f"//{host}").hostname, {urlsplit(origin).netloc for origin in origins}
        except ValueError:
            return False
        # a proxy and this server may disagree where such a request ends
        is_ambiguous = "content-length" in headers and "transfer-encoding" in headers
        return (not self._hosts or name in self._hosts) and pages <= {host} and not is_ambiguous


class Web:
    """Handlers of the requests."""

    def __init__(self, service: Service) -> None:
        self._service, self._uploads = service, Uploads(service)
        bundle = service.engine.bundle
        folder = bundle.manifest.demo
        self._demo = Demo.load(bundle.folder / folder) if folder is not None else None

    def routes(self) -> list[Route | WebSocketRoute]:
        """Return the addresses."""
        model, uploads, guarded = f"/v2/models/{self._service.engine.bundle.name}", self._uploads, self._guarded
        return [
            *(Route(path, self._page) for path in PAGE),
            WebSocketRoute("/v1/stream", self._stream),
            Route("/v1/model", guarded(self._model)),
            Route("/v1/demo", guarded(self._clip)),
            Route("/v1/image", guarded(uploads.image), methods=["POST"]),
            Route("/v1/video", guarded(uploads.video), methods=["POST"]),
            Route("/v1/video/{id}", guarded(uploads.job), methods=["GET", "DELETE"]),
            Route("/v1/video/{id}/result", guarded(uploads.result)),
            Route("/v2", guarded(self._about)),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route(f"{model}/ready", self._ready),
            Route(model, guarded(self._metadata)),
            Route("/metrics", guarded(self._metrics)),
        ]

    def _guarded(self, handler: Callable[[Request, Account], Awaitable[Response]]) -> Callable[[Request], Any]:
        """Return a handler that wants a token, and tells errors as JSON."""

        async def handle(request: Request) -> Response:
            if (account := self._service.account(_token(request))) is None:
                self._service.metrics.refused.labels("token").inc()
                return JSONResponse({"error": "a token is needed: Authorization: Bearer TOKEN"}, 401)
            try:
                return await handler(request, account)
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception as error:
                text, is_busy = self._service.refuse(error)
                status = 503 if is_busy else 422 if isinstance(error, UserError) else 500
                return JSONResponse({"error": text, "busy": is_busy}, status, {"Retry-After": "5"} if is_busy else None)

        return handle

    async def _page(self, request: Request) -> Response:
        path = HERE / PAGE[request.url.path]
        return FileResponse(path) if path.exists() else PlainTextResponse("no such file", 404)

    async def _stream(self, socket: WebSocket) -> None:
        service, token = self._service, _token(socket)
        account = service.account(token)
        is_full = service.open_connections >= service.limits.connections
        if (account is None and token is not None) or is_full:
            service.metrics.refused.labels("connections" if is_full else "token").inc()
            return await socket.close(1008)
        await socket.accept()
        await Connection(socket, service, account, socket.scope.get("state", {})).run()

    async def _model(self, request: Request, account: Account) -> Response:
        service = self._service
        about = {
            **service.about,
            "networks": list(service.engine.networks),
            "capabilities": sorted(capability.name.lower() for capability in service.engine.capabilities),
            "image_size": service.engine.bundle.manifest.image_size,
            "cameras": sorted(service.cameras),
            "colours": wire.COLOURS,
            "limits": asdict(service.limits),
            "demonstration": [prompt.text for prompt in self._demo.prompts] if self._demo is not None else [],
        }
        return JSONResponse(about)

    async def _clip(self, request: Request, account: Account) -> Response:
        if self._demo is None:
            return JSONResponse({"error": "the model has no demonstration clip"}, 404)
        return FileResponse(self._demo.clip, media_type="video/mp4")

    async def _live(self, request: Request) -> Response:
        is_live = self._service.is_live
        return JSONResponse({"live": is_live}, 200 if is_live else 503)

    async def _ready(self, request: Request) -> Response:
        is_ready = await self._service.is_ready()
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def _about(self, request: Request, account: Account) -> Response:
        return JSONResponse({"name": "samwise-runtime", "version": __version__, "extensions": []})

    async def _metadata(self, request: Request, account: Account) -> Response:
        tensor = {"datatype": "BYTES", "shape": [1]}
        inputs = [{"name": "encoded", **tensor}, {"name": "prompts", **tensor}]
        about = {"name": self._service.engine.bundle.name, "versions": ["1"], "platform": "samwise-runtime"}
        return JSONResponse({**about, "inputs": inputs, "outputs": [{"name": "results", **tensor}]})

    async def _metrics(self, request: Request, account: Account) -> Response:
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _token(connection: HTTPConnection) -> str | None:
    kind, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def application(service: Service, hosts: Sequence[str] = LOOPBACK, origins: Sequence[str] = ()) -> ASGIApp:
    """Return the ASGI application. `hosts`: names of this server; none: any. `origins`: other pages that may use it."""
    return Guard(Starlette(routes=Web(service).routes()), hosts, origins)


class Server(uvicorn.Server):
    """Drains at the first SIGTERM or Ctrl-C; uvicorn itself closes every WebSocket at once. A second one ends it."""

    def __init__(self, app: ASGIApp, service: Service, **options: Any) -> None:
        self._service, limits = service, service.limits
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=type("Http", (HttpProtocol,), {"limits": limits}),
            ws=type("WebSocket", (SocketProtocol,), {"limits": limits}),
            ws_max_size=limits.message_bytes + limits.header_bytes,
            ws_ping_interval=0.4,  # a write to a client that was killed fails within a second
            ws_ping_timeout=None,
            ws_per_message_deflate=False,
            limit_concurrency=2 * limits.connections,  # of WebSockets and requests: one kind leaves room for the other
            timeout_graceful_shutdown=5,
            proxy_headers=False,
            server_header=False,
            lifespan="off",
            **options,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.is_draining:
            self.force_exit = self.should_exit = True
        else:
            self._service.is_draining = True
            threading.Thread(target=self._drain, name="samwise-drain", daemon=True).start()

    def _drain(self) -> None:
        self._service.drain()
        self.should_exit = True
