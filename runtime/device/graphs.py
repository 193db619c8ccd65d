"""CUDA graphs: whether work is recorded, and the recorded graphs by what they do."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from ..errors import BackendError, UserError
from .base import Device

MODES = ("auto", "on", "off")

MAX_GRAPHS = 8
"""Most graphs of one cache. The conditional memory of a batch is due for all tracks or for none, unless they switched
on different frames."""


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

    def __init__(self, device: Device, first_frame: int = 0, max_graphs: int = MAX_GRAPHS) -> None:
        """`first_frame`: the first frame from which on no shape changes any more."""
        self._device, self._first_frame, self._max_graphs = device, first_frame, max_graphs
        self.graphs: dict[Hashable, Callable[[], None] | None] = {}

    def graph_ready(self, frame: int = 0) -> bool:
        """Tell whether the work of `frame` may be captured."""
        return self._device.supports_graph_capture and frame >= self._first_frame

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Run `work`: directly the first time, as a graph from the second time on.

        The first run makes every allocation that a library needs for these shapes, which a capture does not allow.
        """
        if key not in self.graphs:
            if len(self.graphs) < self._max_graphs:
                self.graphs[key] = None
            work()
            return
        graph = self.graphs[key]
        if graph is None:
            graph = self.graphs[key] = self._device.capture(work)
        (graph or work)()
