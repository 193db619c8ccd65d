"""Registry of the networks that can be exported, and the functions that each of their modules defines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from ..stage import Stage


class NetworkExport(Protocol):
    """Functions of a module in `export.networks`."""

    def load(self, path: str | Path, **options: Any) -> nn.Module:
        """Load a checkpoint as a network in eval mode. `options`: see `Entry`. Raises UserError."""

    def stages(self, model: nn.Module) -> Sequence[Stage]:
        """Split the network into stages, in the order of execution."""

    def settings(self, model: nn.Module) -> dict[str, dict[str, Any]]:
        """Return the settings in the manifest, by network; see `docs/architecture.md`, "Settings of a manifest"."""

    def clip(
        self,
        model: nn.Module,
        networks: Mapping[str, Any],
        frames: Sequence[np.ndarray],
        tokens: Sequence[int],
        verbs: Sequence[int],
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Run a clip in plain torch, the reference of the parity check; see `export.verify.references`."""

    def variant(self, model: nn.Module) -> str:
        """Name the size of the network, for instance `tiny`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A module of `export.networks`, the options of its `load`, and whether kernels can run its attention.

    `split_attention`: the stages can be split for kernels by `export.split_attention`.
    """

    module: str
    options: frozenset[str] = frozenset()
    split_attention: bool = False


NETWORKS: Mapping[str, Entry] = {
    # memory attention that serves SAM 2's clicks, too, has other sizes and rules than the kernel's
    "samwise": Entry("samwise", frozenset({"image_size"}), split_attention=True),
    "sam2": Entry("sam2", frozenset({"image_size"})),
    "refersam": Entry("refersam", frozenset({"image_size"})),
    "samwise+sam2": Entry("samwise_sam2", frozenset({"image_size"})),
    "sam3": Entry("sam3", frozenset({"image_size"})),
    "nano-concepts": Entry("nano_concepts"),
}


def network(name: str) -> NetworkExport:
    """Import the module of a network. Raises UserError for a name that is not in `NETWORKS`."""
    if name not in NETWORKS:
        raise UserError(f"network {name!r} is unknown; choose one of {', '.join(sorted(NETWORKS))}")
    return cast(NetworkExport, import_module(f".{NETWORKS[name].module}", __package__))
