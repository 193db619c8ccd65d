"""Networks. A network is one file, one class and one line in `NETWORKS`.

A network class says which stages run in which order. It knows no backend and no file.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import BundleError
from . import base

if TYPE_CHECKING:
    from ..backends.base import Stage
    from ..bundle.bundle import Bundle
    from ..device.base import Device

NETWORKS = {
    "samwise": "runtime.models.samwise.network:Samwise",
    "sam2": "runtime.models.sam2.network:Sam2",
    "refersam": "runtime.models.refersam:ReferSam",
}


def create_networks(bundle: Bundle, stages: Mapping[str, Stage], device: Device, objects: int) -> dict[str, Any]:
    """The networks that a bundle serves, with their buffers allocated, by name.

    Weights trained for sentences and for clicks alike are one bundle with two networks. Raises BundleError for a network this runtime does not know.
    """
    return {name: _create(name, bundle, stages, device, objects) for name in bundle.manifest.networks}


def _create(name: str, bundle: Bundle, stages: Mapping[str, Stage], device: Device, objects: int) -> Any:
    if name not in NETWORKS:
        raise BundleError(
            f"{bundle.folder}: network {name!r} is not one of {', '.join(NETWORKS)}; upgrade samwise-runtime"
        )
    module, _, cls = NETWORKS[name].partition(":")
    network = getattr(importlib.import_module(module), cls)
    missing = sorted(set(network.STAGES) - set(stages))
    if missing:
        raise BundleError(f"{bundle.folder}: stages {', '.join(missing)} are missing; export the bundle again")
    specs = {n: stages[n].spec for n in (*network.STAGES, *getattr(network, "OPTIONAL", ())) if n in stages}
    try:
        base.check(name, bundle.manifest, specs)
    except BundleError as error:
        raise BundleError(f"{bundle.folder}: no whole {name} network: {error}") from None
    return network(bundle, stages, device, objects)
