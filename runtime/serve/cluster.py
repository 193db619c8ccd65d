"""Ray Serve: the web server in as many replicas as its streams need.

    serve run runtime.serve.cluster:build engine=engines/

A WebSocket, one stream, stays with the replica that took it. Requests with the same header `x-session-id` go to the
same replica while it has room.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from ..engine import load
from ..errors import UserError, reject_unknown
from .service import Service, read_tokens
from .web import LOOPBACK, application

ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
OPTIONS = ("engine", "model", "backend", "threads", "max_objects", "max_streams", "token_file", "num_cpus", "num_gpus")
NUMBERS = {"threads": int, "max_objects": int, "max_streams": int, "num_cpus": float, "num_gpus": float}
"""Those that are numbers; on the command line all are texts."""
DRAIN_SECONDS = 60
"""From the shutdown of a replica to its end by force; longer than its streams have to end."""


class Segmenter:
    """A replica: one engine with its scheduler."""

    def __init__(self, max_streams: int, token_file: str | None, **options: Any) -> None:
        self._engine = load(**options)
        self._tokens = read_tokens(Path(token_file)) if token_file else []
        self._service = Service(self._engine, tokens=self._tokens, max_streams=max_streams)
        self._service.probe()
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application, as `serve.ingress` asks."""
        app = application(self._service, ()) if self._tokens else _local(application(self._service))
        return Starlette(routes=[Mount("/", app)])

    async def check_health(self) -> None:
        """Compute a picture. Raises what the engine raises; Ray then replaces the replica."""
        await self._service.call(self._service.probe)

    def _drain(self) -> None:
        """End the streams when Ray has begun to stop this replica: what waits is computed and sent."""
        while not _is_stopping():
            time.sleep(0.5)
        self._service.drain()

    def __del__(self) -> None:
        if hasattr(self, "_service"):
            self._service.close()
            self._engine.close()


def _local(app: ASGIApp) -> ASGIApp:
    """Return an application that serves this machine only, whatever Ray's proxy listens to."""

    async def serve_local(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["client"][0] in LOOPBACK:
            return await app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        await PlainTextResponse("other machines are let in with a token: give token_file", 403)(scope, receive, send)

    return serve_local


def _is_stopping() -> bool:
    """Tell whether Ray is stopping the replica of this process. It tells the deployment itself only at the end."""
    actors = ray._private.worker.global_worker.actors.values()
    replicas = (getattr(actor, "_replica_impl", None) for actor in actors)
    return any(getattr(replica, "_shutting_down", False) for replica in replicas)


def build(args: Mapping[str, Any]) -> Any:
    """Return the application for `serve run`. Raises UserError.

    engine, model, backend, threads, max_objects  as `runtime.load` takes them, at the same path on every host
    max_streams         streams at a time of a replica (default: 8); with half of them on each, another one is started
    token_file          tokens, one a line; without it only this machine is served
    num_cpus, num_gpus  what a replica takes of the cluster (default: two CPU cores)
    """
    reject_unknown("runtime.serve.cluster:build", args, OPTIONS)
    if "engine" not in args:
        raise UserError("runtime.serve.cluster:build needs engine=FOLDER, a bundle or a folder of bundles")
    given = {"max_objects": 64, "max_streams": 8, "token_file": None, "num_gpus": 0, **args}
    for name, kind in NUMBERS.items():
        try:
            given |= {name: kind(given[name])} if name in given else {}
        except (TypeError, ValueError):
            raise UserError(f"{name} must be a number, not {given[name]!r}") from None
    gpus, max_streams = given.pop("num_gpus"), given["max_streams"]
    cpus = given.pop("num_cpus", 1 if gpus else 2)
    given.setdefault("threads", None if gpus else max(1, int(cpus)))
    deployment = serve.deployment(
        serve.ingress()(Segmenter),
        name="Segmenter",
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=max_streams,
        autoscaling_config=AutoscalingConfig(
            min_replicas=1,
            max_replicas=8,
            target_ongoing_requests=max(1, max_streams / 2),
            upscale_delay_s=10,
            downscale_delay_s=600,
        ),
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        health_check_timeout_s=DRAIN_SECONDS,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )
    return deployment.bind(**given)
