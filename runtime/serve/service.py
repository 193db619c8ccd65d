"""What all connections of a server share: the scheduler, limits, accounts of the tokens, messages of errors."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..backends.autotune import num_cores
from ..engine import Engine
from ..errors import Busy, UserError, summarize
from ..models.base import Capability
from ..prompts import Concept, Text
from ..scheduler import SchedulerGroup
from . import wire
from .limits import Limits, Rate
from .metrics import Metrics

T = TypeVar("T")
log = logging.getLogger(__name__)
SHUTDOWN = "the server is shutting down; connect again"


class Account:
    """What the clients of one token use."""

    def __init__(self, limits: Limits) -> None:
        self.starts, self.frames = Rate(limits.starts_per_second), Rate(limits.frames_per_second)
        self.pixels, self.bytes = Rate(limits.pixels_per_second), Rate(limits.bytes_per_second)

    async def take_frame(self, shape: Sequence[int]) -> None:
        """Count a frame, waiting where there are too many."""
        await asyncio.sleep(max(self.frames.take(1), self.pixels.take(shape[0] * shape[1])))


@dataclass(eq=False)
class Service:
    """An engine with its scheduler, as the web server and Ray use it.

    others   more engines of the same bundle: each has its part of the streams
    tokens   who may come in; none: everybody
    cameras  addresses of the cameras that clients may name
    """

    engine: Engine
    limits: Limits = field(default_factory=Limits)
    tokens: Sequence[str] = ()
    cameras: Mapping[str, str] = field(default_factory=dict)
    max_streams: int = 8
    others: Sequence[Engine] = ()

    def __post_init__(self) -> None:
        self.scheduler = SchedulerGroup.of([self.engine, *self.others], self.max_streams)
        self.streams: set[Any] = set()
        """Streams of clients, with their `account` and `num_objects`."""
        self.metrics = Metrics(self.scheduler, self.streams)
        self._accounts = {token.encode(): Account(self.limits) for token in self.tokens}
        self.everybody = Account(self.limits)
        """Of clients without a token."""
        self._codecs = ThreadPoolExecutor(min(4, num_cores()), "samwise-codec")
        self._callers = ThreadPoolExecutor(self.max_streams + self.limits.images, "samwise-call")
        self._probed, self._is_ok = 0.0, True
        manifest = self.engine.bundle.manifest
        window = getattr(self.engine.networks.text_video, "window", None) if Capability.TEXT_VIDEO in self.can else None
        self.about = {"network": manifest.network_names, "model": self.engine.bundle.name, "window": window}
        self.on_close: list[Callable[[], None]] = []
        self.is_draining = False
        self.open_connections = 0

    @property
    def can(self) -> frozenset[Capability]:
        """Capabilities of the bundle."""
        return self.engine.capabilities

    def account(self, token: Any) -> Account | None:
        """Return the account of a token; None for a wrong one."""
        if not self._accounts:
            return self.everybody
        given, found = str(token or "").encode("utf-8", "replace"), None
        for known, account in self._accounts.items():  # all of them, so that the time tells nothing
            if secrets.compare_digest(known, given):
                found = account
        return found

    def check_room(self, account: Account) -> None:
        """Raise Busy when a token has all its streams."""
        if sum(stream.account is account for stream in self.streams) >= self.limits.streams:
            raise Busy(f"this token has {self.limits.streams} streams, the most that it may have; end one")

    async def code(self, function: Callable[..., T], *args: Any) -> T:
        """Run a codec (pictures, masks) in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._codecs, function, *args)

    def call(self, function: Callable[..., T], *args: Any, **options: Any) -> asyncio.Future[T]:
        """Run what waits for the engine in a thread."""
        return asyncio.wrap_future(self._callers.submit(function, *args, **options))

    def explain(self, error: BaseException) -> str:
        """Return what a client may read about an error. What is not its fault is logged, with an id."""
        kind, text = wire.explain(error, log.error)
        self._is_ok &= kind != "fault"  # until a probe says otherwise
        return text

    def refuse(self, error: Exception) -> tuple[str, bool]:
        """Count a request that is refused; return what the client may read, and whether it may work later."""
        is_busy = isinstance(error, Busy)
        self.metrics.refused.labels("busy" if is_busy else "message").inc()
        return self.explain(error), is_busy

    # -- health -------------------------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """Whether the engine makes progress, or has nothing to do."""
        return self.scheduler.stuck_seconds < self.limits.stuck_seconds

    async def is_ready(self) -> bool:
        """Whether new streams are welcome, and the last inference was right; after a fault one is tried."""
        if self.is_draining or not self.is_live:
            return False
        if not self._is_ok and time.monotonic() - self._probed > 5:
            self._probed = time.monotonic()
            try:
                await asyncio.wait_for(self.call(self.probe), 10)
                self._is_ok = True
            except Exception as error:
                log.warning("not ready: the engine fails", exc_info=error)
        return self._is_ok

    def probe(self) -> None:
        """Compute a small picture. Raises what the engine raises."""
        frame, can = np.zeros((64, 64, 3), np.uint8), self.can

        def infer(engine: Engine) -> None:
            image = engine.image(frame)
            words = Text("a thing") if engine.bundle.manifest.tokenizer else Text(tokens=[0, 2])
            if can & {Capability.TEXT_VIDEO, Capability.TEXT_IMAGE}:
                image.refer([words])
            elif Capability.PROMPT_IMAGE in can:
                image.predict([[32, 32]], [1])
            elif Capability.CONCEPT_IMAGE in can:
                image.detect([Concept.of(words)])

        self.scheduler.submit(infer).result()

    # -- end ----------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take no new streams, and wait until what waits is computed and sent, for `drain_seconds` at most."""
        self.is_draining = True
        end = time.monotonic() + self.limits.drain_seconds
        self.scheduler.drain(self.limits.drain_seconds)
        while self.open_connections and time.monotonic() < end:
            time.sleep(0.05)

    def close(self) -> None:
        """End everything but the engines, which are the caller's."""
        self.is_draining = True
        self.scheduler.close()
        for close in self.on_close:
            close()
        for pool in (self._codecs, self._callers):
            pool.shutdown(wait=False, cancel_futures=True)


def read_tokens(path: Path) -> list[str]:
    """Return the tokens of a file, one a line. Raises UserError."""
    try:
        tokens = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"token file {path}: not readable ({summarize(error)})") from None
    if any(0 < len(token) < 8 for token in tokens) or not any(tokens):
        raise UserError(f"token file {path}: write tokens of 8 or more characters, one a line")
    return [token for token in tokens if token]
