"""Registry of the networks. A network is one class and one line in `NETWORKS`.

A network class says which stages run in which order. It knows no backend and no file.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar, cast

from ..bundle.bundle import Bundle
from ..device.base import Device
from ..device.cubin import Kernels
from ..device.graphs import RecordedStage
from ..device.inputs import UploadingStage
from ..errors import BundleError, UserError
from ..tracking.frames import FrameReader
from .base import (
    Capability,
    ConceptImageNetwork,
    ConceptVideoNetwork,
    Network,
    PromptImageNetwork,
    PromptVideoNetwork,
    TextImageNetwork,
    TextVideoNetwork,
    check_signature,
)
from .context import NetworkContext

if TYPE_CHECKING:
    from ..backends.base import Stage

T = TypeVar("T")

NETWORKS = {
    "samwise": "runtime.models.samwise.network:Samwise",
    "sam2": "runtime.models.sam2.network:Sam2",
    "refersam": "runtime.models.refersam:ReferSam",
    "sam3": "runtime.models.sam3.network:Sam3",
}

OPTIONS = {
    Capability.TEXT_VIDEO: " (--text)",
    Capability.TEXT_IMAGE: " (--text)",
    Capability.PROMPT_VIDEO: " (--point, --box, --mask)",
    Capability.CONCEPT_IMAGE: " (--concept, --exemplar)",
}
"""Options of the command for a task, for messages."""


UPLOADING = frozenset({"geometry_encoder", "mask_prompt", "image", "fuse"})
"""Stages in which ONNX Runtime uploads tables of pointers, from memory of the host that it takes back: a recorded graph
would read it later (`tests/fake_cuda_runtime/`). Those that an export calls `graph_safe` do not any more."""


class Networks(Mapping[str, Network]):
    """The networks of a bundle by name, and the one for each capability. `lock`: see `Device`."""

    def __init__(
        self, bundle: Bundle, stages: Mapping[str, Stage], device: Device, max_objects: int, kernels: Kernels | None
    ) -> None:
        """Create every network of a bundle that `check_networks` has passed."""
        self._bundle, self.lock, self.frame_reader = bundle, device.lock, FrameReader(device, kernels)
        self._networks: dict[str, Network] = {}
        for name, settings in bundle.manifest.networks.items():
            network = _network_class(name, bundle)
            own: dict[str, Stage] = _own(network, stages)
            if device.records_stages and network.records_stages:
                recorded = [stage for stage in own if stage not in UPLOADING or own[stage].spec.graph_safe]
                own |= {stage: RecordedStage(own[stage], device) for stage in recorded}
            if device.name != "cpu":
                own = {stage: UploadingStage(loaded, device) for stage, loaded in own.items()}
            context = NetworkContext(bundle, settings, own, device, max_objects, kernels)
            self._networks[name] = network(context)
        self.capabilities = frozenset().union(*(network.capabilities for network in self._networks.values()))

    def __getitem__(self, name: str) -> Network:
        return self._networks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._networks)

    def __len__(self) -> int:
        return len(self._networks)

    @property
    def memory_rows(self) -> tuple[int, int]:
        """Numbers of objects that hold memory, and for which there is room, in the pools that were used."""
        rows = [pool.rows for network in self._networks.values() for pool in list(network.pools)]
        return sum(used for used, _ in rows), sum(free for _, free in rows)

    @property
    def text_video(self) -> TextVideoNetwork:
        """The network that follows sentences. Raises UserError, like the others, when the bundle has none."""
        return cast(TextVideoNetwork, self._find(Capability.TEXT_VIDEO))

    @property
    def prompt_video(self) -> PromptVideoNetwork:
        return cast(PromptVideoNetwork, self._find(Capability.PROMPT_VIDEO))

    @property
    def prompt_image(self) -> PromptImageNetwork:
        return cast(PromptImageNetwork, self._find(Capability.PROMPT_IMAGE))

    @property
    def text_image(self) -> TextImageNetwork:
        return cast(TextImageNetwork, self._find(Capability.TEXT_IMAGE))

    @property
    def concept_image(self) -> ConceptImageNetwork:
        return cast(ConceptImageNetwork, self._find(Capability.CONCEPT_IMAGE))

    @property
    def concept_video(self) -> ConceptVideoNetwork:
        return cast(ConceptVideoNetwork, self._find(Capability.CONCEPT_VIDEO))

    def _find(self, capability: Capability) -> Network:
        for network in self._networks.values():
            if capability in network.capabilities:
                return network
        can = ", ".join(c.value + OPTIONS.get(c, "") for c in Capability if c in self.capabilities)
        raise UserError(
            f"the bundle {self._bundle.name} ({self._bundle.manifest.network_names}) cannot {capability.value}; "
            f"choose another one with model= or --model, or what this one can: {can}"
        )


def check_networks(bundle: Bundle) -> None:
    """Check settings, stages and tensors of every network before anything is loaded. Raises BundleError."""
    manifest = bundle.manifest
    for name, settings in manifest.networks.items():
        network = _network_class(name, bundle)
        network.settings_schema(settings, f"{bundle.folder}: networks.{name}")
        missing = sorted(set(network.required_stages) - set(manifest.stages))
        if missing:
            raise BundleError(f"{bundle.folder}: stages {', '.join(missing)} are missing; export the bundle again")
        try:
            check_signature(name, network.signature, manifest, _own(network, manifest.stages))
        except BundleError as error:
            raise BundleError(f"{bundle.folder}: no whole {name} network: {error}") from None


def _network_class(name: str, bundle: Bundle) -> type[Network]:
    if name not in NETWORKS:
        raise BundleError(
            f"{bundle.folder}: network {name!r} is not one of {', '.join(NETWORKS)}; upgrade samwise-runtime"
        )
    module, _, cls = NETWORKS[name].partition(":")
    network: type[Network] = getattr(importlib.import_module(module), cls)
    return network


def _own(network: type[Network], stages: Mapping[str, T]) -> dict[str, T]:
    """Select the stages of a network."""
    return {n: stages[n] for n in (*network.required_stages, *network.optional_stages) if n in stages}
