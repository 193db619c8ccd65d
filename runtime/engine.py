"""The engine: one loaded bundle, and every session that runs on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload
from weakref import WeakSet

from .backends import create
from .backends.base import Backend, ProfiledStage, Stage, load_stages
from .backends.split_loading import load_split_stages
from .bundle.bundle import Bundle, choose
from .device.cubin import Kernels
from .device.graphs import choose_graphs
from .device.kernels import choose_kernels
from .errors import UserError, reject_unknown
from .image import ImagePredictor
from .media.random_access import CACHE_BYTES, open_sequence
from .models import Networks, check_networks
from .models.base import Capability
from .models.options import ConceptOptions, TextOptions
from .models.sam3.session import ConceptSession
from .models.samwise.session import TextSession
from .models.warm import warm as warm_up
from .prompts import Concept, Text, check_texts
from .tracking.live import LiveSession
from .tracking.session import Session, SessionType, synchronized
from .tracking.state import TrackingKeywords, TrackingOptions
from .tracking.video import VideoSession

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_OBJECTS = 16
"""Objects that may be tracked at a time by default; see `load`. One that is never used costs no memory."""


class Engine:
    """A bundle on a backend. Sessions are independent of each other and share the weights and the object memory.

    The engine and what it opens may be used from any thread, also one session from several threads. One lock per engine
    lets one call compute at a time, so threads save no time: they wait for each other. `stream` and `propagate` hold it
    for a frame at a time, not while the caller has a result. A call within a call of the same thread is refused. A
    session that is garbage is closed.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        max_objects: int = MAX_OBJECTS,
        kernels: str = "auto",
        graphs: str = "auto",
    ) -> None:
        check_networks(bundle)
        choose_graphs(graphs, backend.device)
        self.bundle, self.backend = bundle, backend
        self._lock = backend.device.lock
        self._sessions: WeakSet[Session] = WeakSet()
        # a device of CUDA is current in the thread of a call under its lock
        self.kernels, self.stages, self.networks = self._lock.run(_load, bundle, backend, max_objects, kernels)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Tasks that the networks of the bundle can do."""
        return self.networks.capabilities

    @property
    def timings(self) -> dict[str, tuple[int, float]]:
        """Stage -> (calls, seconds) since the engine was loaded."""
        return {name: (stage.calls, stage.seconds) for name, stage in self.stages.items()}

    def instrument(self, wrap: Callable[[Stage], Stage]) -> None:
        """Replace every loaded stage by `wrap(stage)`, for example to record what it is given.

        From then on they run one after the other, also where small frames ran side by side.
        """
        self.backend.device.workers.count = 1
        for stage in self.stages.values():
            stage.stage = wrap(stage.stage)

    @overload
    def session(
        self,
        prompts: Sequence[Text],
        logits: bool = False,
        *,
        conditional_memory: bool | None = None,
        memory: bool = True,
        window: int | None = None,
        latency: str = "clip",
        decode_ahead: bool = False,
        encode_ahead: bool = False,
        reference_quirks: bool = False,
    ) -> TextSession: ...

    @overload
    def session(
        self,
        prompts: Sequence[Concept],
        logits: bool = False,
        *,
        temporal_disambiguation: bool = True,
        max_objects: int | None = None,
        num_frames: int | None = None,
        detect_every: int = 1,
        hide_unmatched_after_hotstart: bool = False,
    ) -> ConceptSession: ...

    @synchronized
    def session(
        self, prompts: Sequence[Text] | Sequence[Concept], logits: bool = False, **options: Any
    ) -> TextSession | ConceptSession:
        """Start following sentences (`Text`, one object each) or concepts (all objects of each) through a new video.

        prompts  all `Text` or all `Concept`; their numbers, from 1, are the `prompt_ids` of results
        logits   whether results carry `low_res_logits`
        options  see `TextOptions` and `ConceptOptions`
        Raises PromptError for a prompt the bundle cannot take, UserError when there is no room for another object.
        """
        if isinstance(prompts, Sequence) and any(isinstance(prompt, Concept) for prompt in prompts):
            reject_unknown("session", options, ["logits", *ConceptOptions.__slots__])
            network, concepts = self.networks.concept_video, [Concept.of(prompt) for prompt in prompts]
            return self._opened(network.open_concept_session(concepts, logits, ConceptOptions(**options)))
        reject_unknown("session", options, ["logits", *TextOptions.__slots__])
        texts = check_texts(prompts, "runtime.Text or runtime.Concept")
        return self._opened(self.networks.text_video.open_text_session(texts, logits, TextOptions(**options)))

    @synchronized
    def live(self, logits: bool = False, **options: Unpack[TrackingKeywords]) -> LiveSession:
        """Start tracking objects through a video whose frames come one by one, by prompts given with them.

        `logits`: whether results carry `low_res_logits`; `options`: see `TrackingOptions`. Raises UserError.
        """
        network = self.networks.prompt_video
        tracking = _tracking_options("live", network.tracking_defaults, options)
        return self._opened(network.open_live(logits, tracking))

    def video(
        self, frames: Any, logits: bool = False, cache_bytes: int = CACHE_BYTES, **options: Unpack[TrackingKeywords]
    ) -> VideoSession:
        """Start tracking objects through a video whose frames are known: prompts on any frame, propagation either way.

        frames       uint8 RGB array (T,H,W,3), list of frames or of image files, or what `open_video` opens or has
                     opened, with an end; arrays are not copied and must not change while the session is open
        logits       whether results carry `low_res_logits`
        cache_bytes  decoded frames of a video file that are kept in memory, in bytes
        options      see `TrackingOptions`
        Raises VideoError, UserError.
        """
        network = self.networks.prompt_video
        tracking = _tracking_options("video", network.tracking_defaults, options)
        sequence = open_sequence(frames, cache_bytes)  # without the lock: it may take long
        return self._opened(self._lock.run(network.open_video, sequence, logits, tracking))

    def image(self, image: Any) -> ImagePredictor:
        """Start predicting on one image: uint8 RGB array (H,W,3), an image of Pillow, or a path.

        The first frame is taken of a file of several, with a warning. Raises VideoError.
        """
        return ImagePredictor(self.networks, image)

    def _opened(self, session: SessionType) -> SessionType:
        self._sessions.add(session)
        return session

    def close(self) -> None:
        """Close every session, after a call that runs."""
        self._lock.run_after(self._close_sessions)

    def _close_sessions(self) -> None:
        for session in list(self._sessions):
            session.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _load(
    bundle: Bundle, backend: Backend, max_objects: int, kernels: str
) -> tuple[Kernels | None, dict[str, ProfiledStage], Networks]:
    """Load kernels and stages, and make the networks of them."""
    compiled = choose_kernels(kernels, bundle.folder, backend.device)
    split = load_split_stages(bundle, backend, compiled, kernels, max_objects)
    loaded = {**load_stages(bundle, backend, without=split), **split}
    stages = {name: ProfiledStage(stage) for name, stage in loaded.items()}
    networks = Networks(bundle, stages, backend.device, max_objects, compiled)
    if kernels == "on" and not any(network.uses_kernels for network in networks.values()):
        raise UserError(
            f"the bundle {bundle.name} ({bundle.manifest.network_names}) does not use compiled kernels; "
            "remove --kernels on"
        )
    return compiled, stages, networks


def _tracking_options(what: str, defaults: TrackingOptions, options: TrackingKeywords) -> TrackingOptions:
    own = ["logits", "cache_bytes"] if what == "video" else ["logits"]
    reject_unknown(what, options, [*own, *TrackingKeywords.__annotations__])
    return replace(defaults, **options)


def load(
    engine: str | Path,
    model: str | None = None,
    backend: str = "auto",
    threads: int | None = None,
    max_objects: int = MAX_OBJECTS,
    verify: bool = True,
    kernels: str = "auto",
    graphs: str = "auto",
    warm: bool = False,
) -> Engine:
    """Load a bundle, or one out of a folder of bundles.

    engine       a bundle or a folder that holds bundles
    model        name of the bundle or of the network; needed only when several fit
    backend      `auto`, or a name in `runtime.backends.BACKENDS`; only `auto` may fall back. It takes OpenVINO where
                 `python -m runtime.autotune` found it exact and faster with this bundle
    threads      CPU threads; None lets the backend decide
    max_objects  objects that may be tracked at a time, over all sessions
    verify       compare every file with its sha256 first
    kernels      `on`, `off` or `auto`: frames in and masks out by compiled kernels of the bundle (`export.kernels`);
                 `on`: attention as well, where the bundle has stages split for it
    graphs       `auto`: on CUDA, work that repeats is recorded as CUDA graphs where the backend can; `on`: it raises
                 BackendError where it cannot; `off`: nothing is recorded
    warm         on CUDA, follow one object through synthetic frames first, twice, so that the first frames of the first
                 video are as fast as those of later ones; no effect on a CPU
    Raises BundleError, BackendError, UserError.
    """
    if max_objects < 1:
        raise UserError(f"max_objects must be 1 or more, not {max_objects}")
    bundle = choose(engine, model)
    if verify:
        bundle.verify()
    loaded = Engine(bundle, create(backend, threads, bundle.manifest), max_objects, kernels, graphs)
    if warm and loaded.backend.device.name != "cpu":
        warm_up(loaded.networks, bundle.manifest)
        for stage in loaded.stages.values():
            stage.calls, stage.seconds = 0, 0.0
    return loaded
