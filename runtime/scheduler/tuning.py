"""How many streams a scheduler decodes in one call: measured on this machine, kept in the user's cache folder.

`python -m runtime.autotune --streams N` measures. A larger batch loads a GPU better, but a bad kernel can lose.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..backends import autotune
from ..engine import Engine

MAX_BATCH = 16
"""Most streams that are decoded in one call."""


@dataclass(frozen=True, slots=True)
class BatchTuning:
    """Frames per second of `streams` streams by batch, and the batch that `Scheduler` takes from then on."""

    backend: str
    bundle: str
    fingerprint: str
    processor: str
    streams: int
    frames_per_second: dict[str, float]
    batch: int


def save(tuning: BatchTuning) -> Path:
    """Write a result in one step and return its path. Raises InternalError when the folder cannot be written."""
    return autotune.write(_path(tuning.backend, tuning.fingerprint, tuning.processor), asdict(tuning))


def default_batch(engine: Engine) -> int:
    """Return the measured batch of this bundle, backend and processor; unmeasured: 1 on a CPU, `MAX_BATCH` on a GPU."""
    wanted = autotune.fingerprint(engine.bundle.manifest), autotune.processor()
    try:
        data = json.loads(_path(engine.backend.name, *wanted).read_text(encoding="utf-8"))
        found = BatchTuning(**{field.name: data[field.name] for field in fields(BatchTuning)})
        if (found.fingerprint, found.processor) == wanted and 1 <= found.batch <= MAX_BATCH:
            return found.batch
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 1 if engine.backend.device.name == "cpu" else MAX_BATCH


def _path(backend: str, fingerprint: str, processor: str) -> Path:
    return autotune.cache_path(f"streams-{backend}", fingerprint, processor)
