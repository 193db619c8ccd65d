"""First stage of SAMWISE's image trunk, which sees one frame and no text, and runs as soon as the frame is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from ...device.base import Array, Device
from ...device.graphs import GraphCache, SharedGraphs

if TYPE_CHECKING:
    from ...backends.base import Stage


class FrameEncoder:
    """Writes the maps of frames into the arrays of their clip."""

    def __init__(self, stage: Stage, device: Device, sizes: Mapping[str, int]) -> None:
        self._stage, self._device, self._sizes = stage, device, sizes
        self.num_beside = partial(device.workers.frames_of, stage.spec)
        """Returns how many frames should wait for each other: on a host, small ones run side by side."""
        self._pixels = self.new_pixels(self.num_beside())
        """Network input of frames whose clip has none of its own, each read before the next one is written."""
        self._shared = SharedGraphs(device, partial(self.new_maps, 1), max_graphs=1)

    def new_pixels(self, count: int) -> Array:
        """Allocate the network input of frames, (count,3,I,I)."""
        tensor = self._stage.spec.input("pixels")
        return self._device.empty(tensor.resolve({**self._sizes, "frames": count}), tensor.dtype)

    def new_maps(self, count: int) -> dict[str, Array]:
        """Allocate the maps of frames."""
        sizes = {**self._sizes, "frames": count}
        return {t.name: self._device.empty(t.resolve(sizes), t.dtype) for t in self._stage.spec.outputs}

    def encode(
        self, clip: Mapping[str, Array], frames: Mapping[int, Callable[[Array], None]], graphs: GraphCache | None = None
    ) -> None:
        """Run on frames of the clip: place in it -> what writes their pixels (3,I,I) before.

        graphs  of a clip with pixels of its own; None: those that sessions share
        """
        join_streams(self._device, graphs)
        works = [partial(self._encode, clip, graphs, slot, *frame) for slot, frame in enumerate(frames.items())]
        self._device.workers.run_all(works)

    def _encode(
        self,
        clip: Mapping[str, Array],
        graphs: GraphCache | None,
        slot: int,
        offset: int,
        write_pixels: Callable[[Array], None],
    ) -> None:
        maps = {name: array[offset : offset + 1] for name, array in clip.items()}
        pixels = maps.pop("pixels", self._pixels[slot : slot + 1])
        write_pixels(pixels[0])
        run = partial(self._stage.run, pixels=pixels)
        if graphs is None:
            self._shared.run("frame", lambda arrays: run(**arrays), {}, maps)
        elif graphs.graph_ready():
            graphs.run(offset, partial(run, **maps))
        else:
            run(**maps)

    def encode_alone(self, frame: Mapping[str, Array], write_pixels: Callable[[Array], None]) -> None:
        """Run on one frame in arrays of its own, `pixels` among them, as a work of `Workers`."""
        write_pixels(frame["pixels"][0])
        self._stage.run(**frame)

    def copy(self, frame: Mapping[str, Array], clip: Mapping[str, Array], offset: int) -> None:
        """Take the maps of a frame of another clip."""
        for tensor in self._stage.spec.outputs:
            self._device.copy(frame[tensor.name], clip[tensor.name][offset])


def join_streams(device: Device, graphs: GraphCache | None) -> None:
    """Wait for clips on the second stream, which use the same scratch, unless `graphs` run there."""
    if graphs is None or not graphs.beside or not graphs.graph_ready():
        device.join()
