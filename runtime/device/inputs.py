"""Arrays of the host that stages take, uploaded side by side: in one copy per frame, or per call of a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from .base import Array, Device
from .scratch import Field, GrowableBuffers, aligned, side_by_side

if TYPE_CHECKING:
    from ..backends.base import Stage

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Filled:
    """An array that `write` fills where it is uploaded from."""

    shape: tuple[int, ...]
    dtype: np.dtype
    write: Callable[[np.ndarray], None]


HostArrays: TypeAlias = Mapping[str, "np.ndarray | Filled"]
"""Inputs by name."""


class InputBlock:
    """Arrays of the host for all calls of a frame, uploaded in one copy.

    Inputs of a later call that are known before the first one travel with it: `upload` takes them by their *owner*, the
    object that the call is made for, and `take` finds them again. The next upload writes over all of them.
    """

    def __init__(self, device: Device) -> None:
        self._device, self._blocks = device, GrowableBuffers(device)
        self._ahead: list[tuple[object, dict[str, Array]]] = []

    def reserve(self, nbytes: int) -> None:
        """Make room for so many bytes besides those that there is room for; an upload of more makes it itself."""
        self._blocks.reserve("inputs", self._blocks.reserve("inputs", 0).nbytes + aligned(nbytes))

    def upload(self, arrays: HostArrays, *ahead: tuple[object, HostArrays]) -> dict[str, Array]:
        """Return `arrays` on the device; they are valid until the next upload. `ahead`: of later calls, by owner."""
        host = numbered([arrays, *(group for _, group in ahead)])
        fields, total = side_by_side({name: (array.shape, array.dtype) for name, array in host.items()})
        block = self._blocks.reserve("inputs", total)
        if total:
            self._write(block, total, fields, host)
        there = {name: field.of(block) for name, field in fields.items()}
        self._ahead = [(owner, of_number(there, i)) for i, (owner, _) in enumerate(ahead, 1)]
        return of_number(there, 0)

    def _write(self, block: Array, total: int, fields: Mapping[str, Field], host: HostArrays) -> None:
        pinned = self._device.staging(block)
        for name, field in fields.items():
            array, to = host[name], field.of(pinned)
            if isinstance(array, Filled):
                array.write(to)
            else:
                to[...] = array
        if pinned is not block:  # on the host they are one
            self._device.upload(pinned[:total], block[:total])

    def take(self, owner: object, make: Callable[[], HostArrays]) -> dict[str, Array]:
        """Return the inputs of the call that `owner` stands for: uploaded before, else made and uploaded now."""
        found = next((i for i, (known, _) in enumerate(self._ahead) if known is owner), None)
        return self.upload(make()) if found is None else self._ahead.pop(found)[1]


def numbered(groups: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """Return the inputs of several calls in one mapping; see `of_number`."""
    return {f"{i}.{name}": array for i, group in enumerate(groups) for name, array in group.items()}


def of_number(arrays: Mapping[str, Array], number: int) -> dict[str, Array]:
    """Return the inputs of one call of a mapping that `numbered` has made."""
    prefix = f"{number}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


class UploadingStage:
    """A stage on a device that may be given arrays of the host as inputs: points, labels, indices, masks.

    Its block on the device is written again by its next call, in the order of the stream, after this one has read it.
    """

    def __init__(self, stage: Stage, device: Device) -> None:
        self._stage, self.spec = stage, stage.spec
        self._inputs = InputBlock(device)

    def run(self, **arrays: Any) -> None:
        host = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
        self._stage.run(**{**arrays, **self._inputs.upload(host)} if host else arrays)
