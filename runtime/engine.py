"""The engine: one loaded bundle, and every session that runs on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .backends import create
from .backends.base import Backend, Stage, load_stages
from .backends.split_stage import kernel_stages
from .bundle.bundle import Bundle, choose
from .device.kernels import choose_kernels
from .errors import PromptError, UserError
from .image import Picture
from .models import create_networks
from .models.samwise.session import Session
from .prompts import Text
from .results import Result
from .tracking.live import LiveSession
from .tracking.video import VideoSession

MAX_OBJECTS = 16
"""Rows of the memory pool unless `load` is told otherwise; a row that is never used costs no memory."""


class Timed:
    """A stage that adds up its calls and seconds. On an asynchronous device the seconds are those of enqueueing."""

    __slots__ = ("calls", "seconds", "spec", "stage")

    def __init__(self, stage: Stage) -> None:
        self.stage, self.spec = stage, stage.spec
        self.calls, self.seconds = 0, 0.0

    def run(self, **arrays: Any) -> None:
        start = time.perf_counter()
        self.stage.run(**arrays)
        self.seconds += time.perf_counter() - start
        self.calls += 1


class Engine:
    """A bundle on a backend. Sessions are independent of each other and share the weights and the memory pool.

    Not thread-safe: call it, and the sessions it gave out, from one thread.
    """

    def __init__(self, bundle: Bundle, backend: Backend, max_objects: int = MAX_OBJECTS, kernels: str = "auto") -> None:
        self.bundle, self.backend = bundle, backend
        self.kernels = choose_kernels(kernels, bundle.folder, backend.device)
        cut = kernel_stages(bundle, backend, self.kernels, kernels, max_objects)
        stages = {**load_stages(bundle, backend, without=cut), **cut}
        self.stages = {name: Timed(stage) for name, stage in stages.items()}
        self.networks = create_networks(bundle, self.stages, backend.device, max_objects)
        takers = [network for network in self.networks.values() if hasattr(network, "kernels")]
        if kernels == "on" and not takers:
            raise UserError(
                f"the bundle {bundle.name} ({bundle.manifest.network_names}) does not use compiled kernels; leave "
                f"--kernels on away"
            )
        for network in takers:
            network.kernels = self.kernels
        self._sessions: list[Any] = []

    @property
    def timings(self) -> dict[str, tuple[int, float]]:
        """Stage -> (calls, seconds) since the engine was loaded."""
        return {name: (s.calls, s.seconds) for name, s in self.stages.items()}

    def instrument(self, wrap: Callable[[Stage], Stage]) -> None:
        """Replace every stage by `wrap(stage)`, e.g. to record its inputs."""
        for timed in self.stages.values():
            timed.stage = wrap(timed.stage)

    def session(
        self,
        prompts: Sequence[Text] | None = None,
        logits: bool = False,
        conditional_memory: bool | None = None,
        **options: Any,
    ) -> Session | LiveSession:
        """Start following `prompts` through a new video; without prompts, follow clicks, boxes and masks as they come.

        prompts             sentences, one object each; None: a `LiveSession`, whose `push` takes prompts
        logits              whether results carry `low_res_logits`
        conditional_memory  False switches the conditional memory encoder off; None and True leave it as the bundle has it
        options             of a session with sentences: `memory=False` decodes every frame alone, `window=n` fuses clips of
                            n frames instead of the trained length, so that results come sooner; both are
                            approximations. Of a live session: see `runtime.tracking.state.Options`
        Raises PromptError for a prompt the bundle cannot take, UserError when the pool has no row left.
        """
        if prompts is None:
            return self._register(self.network("live", "follow clicks").live(logits, **options))
        unknown = sorted(set(options) - {"memory", "window"})
        if unknown:
            raise UserError(f"sessions with sentences have no option {', '.join(unknown)}; they have memory and window")
        if isinstance(prompts, (str, Text)) or not all(isinstance(p, Text) for p in prompts):
            raise PromptError("prompts must be a list of runtime.Text, e.g. [runtime.Text('the horse on the left')]")
        if not prompts:
            raise PromptError("no prompt: give at least one runtime.Text")
        session = Session(
            self,
            self.network("open", "follow sentences"),
            prompts,
            logits,
            conditional_memory,
            options.get("memory", True),
            options.get("window"),
        )
        self._sessions.append(session)
        return session

    def video(self, frames: Any, logits: bool = False, **options: Any) -> VideoSession:
        """Follow clicks, boxes and masks through a video whose frames are known: any frame, any order, either way.

        frames   uint8 RGB array (T,H,W,3), list of frames or of picture files, or a path that `runtime.media.video_reader` opens
        logits   whether results carry `low_res_logits`
        options  fill_hole_area=8, non_overlap_masks, max_cond_frames_in_attn ...: see `runtime.tracking.state.Options`
        Raises VideoError, UserError.
        """
        return self._register(self.network("video", "follow clicks").video(frames, logits, **options))

    def image(self, picture: Any) -> Picture:
        """Masks on one picture, uint8 RGB array (H,W,3) or a path: `predict` for clicks and boxes, `refer` for sentences.

        Raises VideoError.
        """
        return Picture(self, picture)

    def _register(self, session: Any) -> Any:
        self._sessions.append(session.belongs_to(self))
        return session

    def network(self, ability: str, words: str) -> Any:
        """The network of this bundle that has the method `ability`. Raises UserError that says what is missing."""
        for network in self.networks.values():
            if hasattr(network, ability):
                return network
        raise UserError(
            f"the bundle {self.bundle.name} ({self.bundle.manifest.network_names}) cannot {words}; "
            f"choose another one with model= or --model"
        )

    def can(self, ability: str) -> bool:
        """Whether `network(ability, ...)` would find one: `open` for sentences, `live` and `video` for clicks, `refer`."""
        return any(hasattr(network, ability) for network in self.networks.values())

    def step(self) -> list[Result]:
        """Run every session that has a complete clip waiting (see `Session.put`), in the order of their opening."""
        return [result for session in self._sessions if session.ready for result in session.advance()]

    def forget(self, session: Any) -> None:
        """Called by a session that closes."""
        if session in self._sessions:
            self._sessions.remove(session)

    def close(self) -> None:
        """Close every session."""
        for session in list(self._sessions):
            session.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def segment(self, frames: Iterable[Any], *sentences: str) -> Iterable[Result]:
        """Shortest way in: results of a whole video for these sentences."""
        with self.session([Text(s) for s in sentences]) as session:
            yield from session.stream(frames)


def load(
    engine: str | Path,
    model: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    max_objects: int = MAX_OBJECTS,
    verify: bool = True,
    kernels: str = "auto",
) -> Engine:
    """Load a bundle, or one out of a folder of bundles.

    engine       a bundle or a folder that holds bundles
    model        name of the bundle or of the network; needed only when several fit
    backend      `auto`, or a name in `runtime.backends.BACKENDS`; only `auto` may fall back. It takes OpenVINO where
                 `python -m runtime.autotune` found it exact and faster with this bundle
    threads      CPU threads; None lets the backend decide
    max_objects  rows of the memory pool, over all sessions
    verify       compare every file with its sha256 first
    kernels      `on`, `off` or `auto`: frames in and masks out by compiled kernels of the bundle (`export.kernels`);
                 `on`: attention as well, where the bundle has stages cut for it
    Raises BundleError, BackendError, UserError.
    """
    if max_objects < 1:
        raise UserError(f"max_objects must be 1 or more, not {max_objects}")
    bundle = choose(engine, model)
    if verify:
        bundle.verify()
    return Engine(bundle, create(backend, threads, bundle.manifest), max_objects, kernels)
