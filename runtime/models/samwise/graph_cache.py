"""CUDA graphs of the frames of one batch of tracks."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from ...device.base import Device

MAX_GRAPHS = 8
"""Most graphs of one batch. Its conditional memory is due for all tracks or for none, unless they switched on different
frames."""


class GraphCache:
    """Captures the work of a frame as a graph and replays it on later frames, one graph per key.

    The key names everything that decides which work is enqueued; the arrays it uses must stay at their addresses.
    """

    def __init__(self, device: Device, first_frame: int, max_graphs: int = MAX_GRAPHS) -> None:
        """`first_frame`: the first frame from which on no shape changes any more."""
        self._device, self._first_frame, self._max_graphs = device, first_frame, max_graphs
        self.graphs: dict[Hashable, Callable[[], None] | None] = {}

    def graph_ready(self, frame: int) -> bool:
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
