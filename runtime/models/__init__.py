"""Networks. A network is one file, one class and one line in `NETWORKS`.

A network class says which stages run in which order. It knows no backend and no file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Mapping

from ..errors import BundleError

if TYPE_CHECKING:
    from ..backends import Stage
    from ..bundle import Bundle
    from ..device import Device

NETWORKS = {
    "samwise": "runtime.models.samwise:Samwise",
}


def create_network(bundle: Bundle, stages: Mapping[str, Stage], device: Device, objects: int) -> Any:
    """The network of a bundle with its buffers allocated. Raises BundleError for one this runtime does not know."""
    name = bundle.manifest.model
    if name not in NETWORKS:
        raise BundleError(f"{bundle.folder}: network {name!r} is not one of {', '.join(NETWORKS)}; upgrade samwise-runtime")
    module, _, cls = NETWORKS[name].partition(":")
    network = getattr(importlib.import_module(module), cls)
    missing = sorted(set(network.STAGES) - set(stages))
    if missing:
        raise BundleError(f"{bundle.folder}: stages {', '.join(missing)} are missing; export the bundle again")
    return network(bundle, stages, device, objects)
