"""Networks that can be exported, by name. A network file offers `load(path)`, `stages(model)` and `settings(model)`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from runtime.errors import UserError

MODELS = {
    "samwise": "export.models.samwise",
    "sam2": "export.models.sam2",
    "refersam": "export.models.refersam",
    "samwise+sam2": "export.models.samwise_sam2",
}


def network(name: str) -> ModuleType:
    """The module of a network. Raises UserError for a name that is not in `MODELS`."""
    if name not in MODELS:
        raise UserError(f"network {name!r} is unknown; choose one of {', '.join(sorted(MODELS))}")
    return import_module(MODELS[name])
