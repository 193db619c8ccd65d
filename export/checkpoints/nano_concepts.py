"""Checkpoints of nano's concept detector, written by the training here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runtime.errors import UserError

from ..models.nano_concepts import NanoConcepts, NanoConceptsConfig
from .common import config_from, load_tensors, reported_as, require_plain_tensors
from .files import read_file


def load_nano_concepts(path: str | Path) -> NanoConcepts:
    """Load a checkpoint as a network in eval mode. Raises UserError."""
    data = read_file(Path(path))
    tensors, config = (data.get(name) if isinstance(data, Mapping) else None for name in ("model", "config"))
    if not isinstance(tensors, Mapping) or not isinstance(config, Mapping) or "tracker" not in config:
        raise UserError(f"{path}: not a checkpoint of nano's concepts; make one: python -m export.nano.train_concepts")
    require_plain_tensors(tensors, path)
    with reported_as(path, "nano-concepts"):
        model = NanoConcepts(config_from(NanoConceptsConfig, config))
    load_tensors(model, tensors, path)
    return model.eval()
