"""On-disk runtime cache of TensorRT-RTX: kernels compiled when engines were loaded here, for the next start.

An engine built ahead of time is compiled on the GPU that runs it. The library collects the results in a runtime cache;
this module saves it beside the engines, or in the user's cache folder where the bundle cannot be written. A file is
valid for one set of engines, one library version and one compute capability; the library itself checks GPU model and
driver. A file that is not valid is ignored with one line in the log, and replaced in the end.

Source: IRuntimeConfig and IRuntimeCache of TensorRT-RTX; one cache may serve the contexts of several engines.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from ..bundle import engine_index
from ..errors import BundleError, summarize
from .cache_folder import cache_folder, replace_file

log = logging.getLogger("runtime")

FORMAT = 1
SUFFIX = ".rtxcache"


def key(bundle: Path, library: str, version: str, capability: int) -> str:
    """Return the sha256 of the engines that a cache belongs to. Raises BundleError for an unreadable index."""
    engines = sorted(e.graph for e in engine_index.read(bundle) if (e.library, e.version) == (library, version))
    return hashlib.sha256(json.dumps([library, version, capability, engines]).encode()).hexdigest()


class RuntimeCache:
    """The runtime cache of one bundle on one GPU: `attach` it to every context's config, `save` it at the end."""

    def __init__(self, bundle: Path, library: str, version: str, capability: int) -> None:
        self._key = key(bundle, library, version, capability)
        name = f"sm_{capability}-{self._key[:16]}{SUFFIX}"
        # beside the engines first; a deployed bundle is often read-only
        self._paths = (bundle / engine_index.FOLDER / f"{library}-{version}" / name, cache_folder() / name)
        self._cache: Any = None
        self._stored = b""
        """Digest of the file that was read, so that an unchanged cache is not written again."""

    def attach(self, config: Any) -> None:
        """Make contexts created from `config` use the cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        config.set_runtime_cache(self._cache)

    def _load(self) -> None:
        for path in self._paths:
            try:
                content = path.read_bytes()
            except OSError:
                continue  # not written yet
            reason = self._rejection_reason(content)
            if reason is None:
                return
            log.info("%s: ignored, %s; kernels are compiled again", path, reason)

    def _rejection_reason(self, content: bytes) -> str | None:
        """Load `content` into the library's cache; return why it cannot be used, or None."""
        head, _, blob = content.partition(b"\n")
        digest = hashlib.sha256(blob).digest()
        try:
            fields = json.loads(head)
            # the library may crash on a truncated file
            if (fields["format"], fields["sha256"]) != (FORMAT, digest.hex()):
                return "it is damaged"
            if fields["key"] != self._key:
                return "it belongs to other engines"
        except (ValueError, TypeError, KeyError):
            return "it is damaged"
        if not self._cache.deserialize(blob):
            return "the library refuses it: another GPU model, driver or version"
        self._stored = digest
        return None

    def save(self) -> None:
        """Write the cache to the first writable folder. Never raises, so that a run does not fail at its end."""
        if self._cache is None:
            return
        try:
            memory = self._cache.serialize()
            blob = b"" if memory is None else bytes(memory)
        except Exception as error:  # the GPU may be gone at the end of a process
            log.info("runtime cache not saved: %s", summarize(error))
            return
        digest = hashlib.sha256(blob).digest()
        if not blob or digest == self._stored:
            return
        head = {"format": FORMAT, "key": self._key, "sha256": digest.hex()}
        content = json.dumps(head).encode() + b"\n" + blob
        reason = ""
        for path in self._paths:
            try:
                replace_file(path, content)
                self._stored = digest
                return
            except OSError as error:
                reason = f"{path.parent}: {error.strerror}"
        log.info("runtime cache not saved: %s", reason)


def open_cache(bundle: Path, library: str, version: str, capability: int) -> RuntimeCache | None:
    """Return the cache of this bundle; None where its engines are unknown."""
    try:
        return RuntimeCache(bundle, library, version, capability)
    except (BundleError, RuntimeError) as error:  # RuntimeError: no home directory
        log.info("no runtime cache: %s", error)
        return None
