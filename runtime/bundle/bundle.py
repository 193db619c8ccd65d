"""Bundles on disk: search, choice, verification."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from .catalog import export_command
from .manifest import MANIFEST, Manifest
from .placeholder import describe_placeholder

GENERIC_EXPORT = "python -m export NETWORK --checkpoint FILE"
DEMONSTRATIONS = ("nano", "nano-concepts")
"""Bundles that ship with the project: a bundle of the user is preferred to them, the first of them to the others."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder with a manifest that has been read and checked."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.folder.name

    def verify(self) -> None:
        """Compare every file with its sha256. Raises BundleError that names the first file that differs."""
        for name, digest in self.manifest.files.items():
            path = self.folder / name
            try:
                if not path.is_file():  # reading a pipe or an endless device would not terminate
                    raise FileNotFoundError
                found = file_sha256(path)
            except OSError:
                raise BundleError(
                    f"{path}: missing from the bundle; copy it again or export the bundle again"
                ) from None
            if found != digest:
                altered = "altered since the export (sha256 differs); copy it again or export again"
                raise BundleError(f"{path}: {describe_placeholder(path) or altered}")

    def require_contents(self) -> None:
        """Raise BundleError for a file in whose place a download put another, for instance a Git LFS pointer."""
        for path in (self.folder / name for name in self.manifest.files):
            if placeholder := describe_placeholder(path):
                raise BundleError(f"{path}: {placeholder}")

    @property
    def subgraphs(self) -> frozenset[str]:
        """Names of the stages that only split stages use (`runtime/backends/split_stage.py`)."""
        return frozenset(name for split in self.manifest.split_stages.values() for name in split.subgraphs)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def find(folder: str | Path) -> list[Bundle]:
    """Return every bundle at `folder` or directly inside it, by name. Raises BundleError for a missing folder."""
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return [Bundle(folder.resolve(), Manifest.load(folder))]
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; export a bundle into it with `python -m export`")
    return [Bundle(sub.resolve(), Manifest.load(sub)) for sub in sorted(folder.iterdir()) if (sub / MANIFEST).is_file()]


def choose(folder: str | Path, model: str | None = None) -> Bundle:
    """Return one bundle: by name, else by network, else the only one; a demonstration where no other fits.

    Raises BundleError that lists the bundles when none or several fit.
    """
    folder = Path(folder)
    # a damaged bundle beside the named one must not prevent loading
    bundles = find(folder / model if model is not None and (folder / model / MANIFEST).is_file() else folder)
    command = export_command(model or "samwise", folder.parent if (folder / MANIFEST).is_file() else folder)
    if not bundles:
        raise BundleError(f"{folder}: no bundle here; export one with `{command or GENERIC_EXPORT}`")
    named = [b for b in bundles if b.name == model]
    fitting = named or [b for b in bundles if model is None or model in b.manifest.networks]
    if not fitting:
        names = ", ".join(f"{b.name} ({b.manifest.network_names})" for b in bundles)
        raise BundleError(
            f"{folder}: no bundle or network {model!r}; found {names}"
            + (f"; export it with `{command}`" if command else "")
        )
    own = [b for b in fitting if b.name not in DEMONSTRATIONS]
    chosen = named or own or sorted(fitting, key=lambda b: DEMONSTRATIONS.index(b.name))[:1]
    if len(chosen) > 1:
        wanted = "several bundles fit" if model is None else f"several bundles have the network {model}"
        names = ", ".join(b.name for b in fitting)
        raise BundleError(f"{folder}: {wanted}; write one of these names for --model or model=: {names}")
    return chosen[0]
