"""What TensorRT-RTX compiled when engines were loaded here, kept for the next start.

An engine built ahead of time gets its last compilation on the GPU that runs it. The library collects the results in a
runtime cache; this file stores it beside the engines, or in the user's cache folder where the bundle cannot be written.
A file belongs to one set of engines, one library version and one compute capability; what else it must fit (GPU model,
driver) the library checks itself. A file that does not fit is ignored with one line in the log and replaced in the end.

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
    """sha256 of the engines that a cache belongs to. Raises BundleError for an unreadable index."""
    engines = sorted(e.graph for e in engine_index.read(bundle) if (e.library, e.version) == (library, version))
    return hashlib.sha256(json.dumps([library, version, capability, engines]).encode()).hexdigest()


class StoredCache:
    """The runtime cache of one bundle on one GPU: `attach` it to every context's config, `save` it at the end."""

    def __init__(self, bundle: Path, library: str, version: str, capability: int) -> None:
        self._key = key(bundle, library, version, capability)
        name = f"sm_{capability}-{self._key[:16]}{SUFFIX}"
        # beside the engines first; a deployed bundle is often read-only
        self._places = (bundle / engine_index.FOLDER / f"{library}-{version}" / name, cache_folder() / name)
        self._cache: Any = None
        self._stored = b""
        """Digest of what was read, so that an unchanged cache is not written again."""

    def attach(self, config: Any) -> None:
        """Let a context that is created from `config` use the cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        config.set_runtime_cache(self._cache)

    def _load(self) -> None:
        for path in self._places:
            try:
                content = path.read_bytes()
            except OSError:
                continue  # none here yet
            reason = self._refusal(content)
            if reason is None:
                return
            log.info("%s: ignored, %s; kernels are compiled again", path, reason)

    def _refusal(self, content: bytes) -> str | None:
        """Hand the stored cache to the library; why it is of no use, or None."""
        head, _, blob = content.partition(b"\n")
        digest = hashlib.sha256(blob).digest()
        try:
            fields = json.loads(head)
            # a library that parses a file cut short may crash where we get an answer
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
        """Write the cache where it can be written, in one step. Never raises: a finished run must not fail for this."""
        if self._cache is None:
            return
        try:
            memory = self._cache.serialize()
            blob = b"" if memory is None else bytes(memory)
        except Exception as error:  # the GPU may be gone at the end of a process
            log.info("runtime cache not kept: %s", summarize(error))
            return
        digest = hashlib.sha256(blob).digest()
        if not blob or digest == self._stored:
            return
        head = {"format": FORMAT, "key": self._key, "sha256": digest.hex()}
        content = json.dumps(head).encode() + b"\n" + blob
        reason = ""
        for path in self._places:
            try:
                replace_file(path, content)
                self._stored = digest
                return
            except OSError as error:
                reason = f"{path.parent}: {error.strerror}"
        log.info("runtime cache not kept: %s", reason)


def stored(bundle: Path, library: str, version: str, capability: int) -> StoredCache | None:
    """A cache for this bundle; None where its engines are unknown."""
    try:
        return StoredCache(bundle, library, version, capability)
    except (BundleError, RuntimeError) as error:  # RuntimeError: a user without a home
        log.info("no runtime cache: %s", error)
        return None
