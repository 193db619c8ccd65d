"""CUDA graphs: whether work is recorded, and the recorded graphs by what they do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import BackendError, UserError
from .base import Array, Device

if TYPE_CHECKING:
    from ..backends.base import Stage

MODES = ("auto", "on", "off")

MAX_GRAPHS = 8
"""Most graphs of one cache. The conditional memory of a batch is due for all tracks or for none, unless they switched
on different frames."""

MAX_STAGE_GRAPHS = 32
"""Most graphs of one stage: while memory fills up, its shapes change with every frame."""


def choose_graphs(mode: str, device: Device) -> None:
    """Let a device capture graphs: `auto` where it can, `off` never; with `on`, work that cannot be captured raises.

    Raises UserError for another mode, BackendError for `on` on a device without graphs.
    """
    if mode not in MODES:
        raise UserError(f"graphs {mode!r} is not one of {', '.join(MODES)}")
    if mode == "on" and not device.supports_graph_capture:
        raise BackendError("--graphs on needs a CUDA backend; remove it on a CPU")
    device.requires_graphs = mode == "on"
    if mode == "off":
        device.supports_graph_capture = False


class GraphCache:
    """Captures work as a graph and replays it later, one graph per key.

    The key names everything that decides which work is enqueued; the arrays it uses must stay at their addresses.
    """

    def __init__(
        self,
        device: Device,
        first_frame: int = 0,
        max_graphs: int = MAX_GRAPHS,
        evicts: bool = False,
        beside: bool = False,
    ) -> None:
        """`first_frame`: the first frame from which on no shape changes any more; `evicts`: a key beyond `max_graphs`
        takes the place of the one that was used longest ago, instead of none; `beside`: see `Device.capture`."""
        self._device, self._first_frame, self.beside = device, first_frame, beside
        self._max_graphs, self._evicts = max_graphs, evicts
        self.graphs: dict[Hashable, Callable[[], None] | None] = {}

    def graph_ready(self, frame: int = 0) -> bool:
        """Tell whether the work of `frame` may be captured."""
        return self._device.supports_graph_capture and frame >= self._first_frame

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Run `work`: directly the first time, as a graph from the second time on.

        The first run makes every allocation that a library needs for these shapes, which a capture does not allow.
        """
        if key not in self.graphs:
            if self._evicts and len(self.graphs) == self._max_graphs:
                del self.graphs[next(iter(self.graphs))]
            if len(self.graphs) < self._max_graphs:
                self.graphs[key] = None
            self._run_directly(work)
            return
        graph = self.graphs.pop(key) or self._device.capture(work, self.beside)
        self.graphs[key] = graph  # the latest one is the last
        if graph is None:
            self._run_directly(work)
        else:
            graph()

    def _run_directly(self, work: Callable[[], None]) -> None:
        if self.beside:
            self._device.join()  # it uses the scratch of the graphs
        work()


class SharedGraphs:
    """Graphs on arrays that users take in turns: inputs are copied there before the work, and outputs from there after.

    Nothing lies there between two calls, so one recording serves all users of a shape.
    """

    def __init__(self, device: Device, allocate: Callable[[], Mapping[str, Array]], max_graphs: int) -> None:
        """`allocate` makes the arrays, as large as any of a call: a user's may be shorter in the first dimension."""
        self._device, self._allocate, self._arrays = device, allocate, dict[str, Array]()
        self._graphs = GraphCache(device, max_graphs=max_graphs, evicts=True)

    @property
    def is_ready(self) -> bool:
        """Whether work is recorded."""
        return self._graphs.graph_ready()

    def run(
        self,
        key: Hashable,
        work: Callable[[Mapping[str, Array]], None],
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> None:
        """Run `work`, which `key` names, on arrays by name: on the user's own where nothing is recorded."""
        if not self.is_ready:
            work({**inputs, **outputs})
            return
        self._arrays = self._arrays or dict(self._allocate())
        arrays = {name: self._arrays[name][: len(array)] for name, array in {**inputs, **outputs}.items()}
        for name, array in inputs.items():
            self._device.copy(array, arrays[name])
        self._graphs.run((key, *((name, len(array)) for name, array in arrays.items())), partial(work, arrays))
        for name, array in outputs.items():
            self._device.copy(arrays[name], array)


class RecordedStage:
    """A stage whose calls are recorded, one graph for each set of addresses and shapes; the latest ones are kept."""

    def __init__(self, stage: Stage, device: Device) -> None:
        self._stage, self.spec = stage, stage.spec
        self._graphs = GraphCache(device, max_graphs=MAX_STAGE_GRAPHS, evicts=True)

    def run(self, **arrays: Any) -> None:
        """Run on these arrays of the device."""
        if not self._graphs.graph_ready():
            self._stage.run(**arrays)
            return
        key = tuple((name, array.ptr, array.shape) for name, array in arrays.items())
        self._graphs.run(key, partial(self._stage.run, **arrays))
