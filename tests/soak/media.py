"""Videos for the endurance run, made on the spot: broken files, and a camera that drops."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import numpy as np

HEIGHT, WIDTH, FRAMES = 96, 160, 24


def picture(number: int, height: int, width: int) -> np.ndarray:
    """A square that moves over a gradient, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    out = np.stack([(x + number) % 256, (y + 2 * number) % 256, (x + y) % 256], -1).astype(np.uint8)
    at = (3 * number) % (width - 40)
    out[20:60, at : at + 40] = (220, 40, 60)
    return out


class Media:
    """`files` by the name of what is wrong with them."""

    def __init__(self, folder: Path) -> None:
        whole = _video(folder / "whole.mp4", movflags="faststart")
        data = whole.read_bytes()
        self.files = {
            "truncated packet": _file(folder / "truncated.mp4", data[: len(data) * 2 // 3]),
            "damaged packets": _file(folder / "damaged.mp4", _noise(data)),
            "missing frames": _without(whole, folder / "missing.mp4"),
            "camera": _video(folder / "camera.ts"),
            "damaged picture": _pictures(folder / "damaged", damaged=4),
            "picture of another size": _pictures(folder / "sizes", other=5),
        }


def _video(path: Path, **options: str) -> Path:
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"g": "8", "bf": "0", "threads": "1"}
        for i in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i, HEIGHT, WIDTH), format="rgb24")))
        container.mux(stream.encode())
    return path


def _without(path: Path, out: Path) -> Path:
    """The same video without every third packet that is no key frame."""
    import av

    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            if packet.is_keyframe or number % 3:
                packet.stream = stream
                target.mux(packet)
    return out


def _noise(data: bytes) -> bytes:
    """Every 97th byte of the second half, where the packets are, turned over."""
    out = bytearray(data)
    for at in range(len(out) // 2, len(out), 97):
        out[at] ^= 0xFF
    return bytes(out)


def _pictures(folder: Path, damaged: int | None = None, other: int | None = None) -> Path:
    from PIL import Image

    folder.mkdir()
    for i in range(6):
        size = (HEIGHT, WIDTH) if i != other else (WIDTH, HEIGHT)
        path = folder / f"{i}.png"
        Image.fromarray(picture(i, *size)).save(path)
        if i == damaged:
            path.write_bytes(path.read_bytes()[:300])
    return folder


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


class Camera(threading.Thread):
    """Serves bytes to each of the first `times` callers and hangs up; then nobody answers any more."""

    def __init__(self, data: bytes, times: int) -> None:
        super().__init__(daemon=True, name="camera of the endurance run")
        self._data, self._times = data, times
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    def run(self) -> None:
        with self._socket:
            for _ in range(self._times):
                try:
                    with self._socket.accept()[0] as caller:
                        caller.sendall(self._data)
                except OSError:  # the caller hung up first, or the run is over
                    continue

    def __enter__(self) -> Camera:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join(timeout=10)
        self._socket.close()
