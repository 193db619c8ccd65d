"""Registry of the networks that can be exported."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from runtime.errors import UserError

MODELS = {
    "samwise": "export.networks.samwise",
    "sam2": "export.networks.sam2",
    "refersam": "export.networks.refersam",
    "samwise+sam2": "export.networks.samwise_sam2",
}


def network(name: str) -> ModuleType:
    """The module of a network. Raises UserError for a name that is not in `MODELS`."""
    if name not in MODELS:
        raise UserError(f"network {name!r} is unknown; choose one of {', '.join(sorted(MODELS))}")
    return import_module(MODELS[name])
