"""Pictures and video files over HTTP."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from ..cli.concept_task import join
from ..engine import Engine
from ..errors import Busy, UserError
from ..prompts import Concept
from ..prompts.json_prompts import parse_number, parse_objects, parse_prompts
from ..results import Result
from . import wire
from .service import Account, Service
from .videos import Videos


class Uploads:
    """Handlers of the requests with a file. Prompts are in the query, or in the header X-Prompts."""

    def __init__(self, service: Service) -> None:
        self._service, self._limits, self._videos, self._num_images = service, service.limits, Videos(service), 0
        service.on_close.append(self._videos.close)

    async def image(self, request: Request, account: Account) -> Response:
        """Segment a picture."""
        limits, service, form = self._limits, self._service, request.query_params.get("masks", "rle")
        if form not in ("rle", "png", "none"):
            raise UserError("masks must be rle, png or none")
        texts, clicks, _ = await service.code(self._read, request, self._objects)
        if self._num_images >= limits.images:
            raise Busy(f"{limits.images} pictures are in work; try again")
        self._num_images += 1
        try:
            data = bytearray()
            async for chunk in self._body(request, account):
                data += chunk
                if len(data) > limits.message_bytes:
                    raise UserError(f"a picture of more than {limits.message_bytes:,} bytes; send a smaller one")
            frame = await service.code(wire.picture, bytes(data), limits)
            await account.take_frame(frame.shape)
            work = functools.partial(segment, frame=frame, prompts=texts or clicks)
            found = await asyncio.wrap_future(service.scheduler.submit(work))
        finally:
            self._num_images -= 1
        if form == "png":
            return Response(await service.code(wire.payload, found, form), media_type="image/png")
        return JSONResponse(await service.code(wire.describe, found, form))

    async def video(self, request: Request, account: Account) -> Response:
        """Begin a job."""
        prompts = await self._service.code(self._read, request, self._by_frame)
        job = await self._videos.add(self._body(request, account), account, *prompts)
        return JSONResponse(job.describe(), 202)

    async def job(self, request: Request, account: Account) -> Response:
        """Tell the progress of a job, or cancel and delete it."""
        if (job := self._videos.find(request.path_params["id"], account)) is None:
            return JSONResponse({"error": "there is no such job"}, 404)
        if request.method == "DELETE":
            self._videos.remove(job)
        return JSONResponse(job.describe())

    async def result(self, request: Request, account: Account) -> Response:
        """Return the zip of a job that is done."""
        job = self._videos.find(request.path_params["id"], account)
        if job is None or job.state != "done":
            return JSONResponse({"error": "there is no result of this job"}, 404)
        return FileResponse(job.result, media_type="application/zip", filename="result.zip")

    def _read(self, request: Request, parse_clicks: Callable[[Any], Any]) -> tuple[Any, Any, dict[str, Any]]:
        """Return sentences or concepts, else clicks, and options. Raises UserError, PromptError."""
        prompts = request.query_params.get("prompts") or request.headers.get("x-prompts") or "[]"
        options = request.query_params.get("options") or "{}"
        given = wire.parse(f'{{"prompts": {prompts}, "options": {options}}}', self._limits)
        if not isinstance(given["options"], dict):
            raise UserError("options must be an object")
        clicks = parse_clicks(given["prompts"]) if isinstance(given["prompts"], dict) else {}
        texts = None if clicks else parse_prompts(given["prompts"] or [], self._limits.prompts)
        if not (texts or clicks):
            raise UserError('no prompt; add one to the address, like ?prompts=[{"text":"the red car"}]')
        return texts, clicks, wire.check_options(given["options"], self._limits)

    def _objects(self, value: Any) -> dict[int, Any]:
        return parse_objects(value, self._limits.objects, self._limits.pixels)

    def _by_frame(self, value: dict[str, Any]) -> dict[int, Any]:
        return {parse_number(frame, "a frame"): self._objects(objects) for frame, objects in value.items()}

    async def _body(self, request: Request, account: Account) -> AsyncIterator[bytes]:
        chunks, limits = request.stream(), self._limits
        patience = limits.idle_seconds
        while True:
            started = time.monotonic()
            try:
                chunk = await asyncio.wait_for(chunks.__anext__(), patience)
            except StopAsyncIteration:
                return
            except asyncio.TimeoutError:
                raise UserError("the upload has stopped; send it again") from None
            patience += len(chunk) / limits.upload_rate - (time.monotonic() - started)
            patience = min(patience, limits.idle_seconds)
            await asyncio.sleep(account.bytes.take(len(chunk)))
            yield chunk


def segment(engine: Engine, frame: np.ndarray, prompts: Any) -> Result:
    """Find sentences or concepts in a picture, or what points, boxes and masks show. Raises PromptError, UserError."""
    if isinstance(prompts, dict):
        with engine.live() as live:
            return live.push(frame, prompts)[0]
    image = engine.image(frame)
    return join(image.detect(prompts), 0, frame) if isinstance(prompts[0], Concept) else image.refer(prompts)
