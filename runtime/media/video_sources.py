"""Where frames come from: a picture, a folder of pictures, a video file, a camera or a network address.

Each opener returns a `Source`: facts about the video, and an iterator of uint8 RGB arrays (H, W, 3) in display
orientation, with grayscale, deep and transparent frames treated as in `pictures.py`. PyAV is imported when a source
needs it.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import VideoError
from .image_files import PICTURES, check_size, is_picture, over_black, read_picture, reason

FOLDER_FPS = 24.0
"""A folder of frames carries no speed; 24 is that of DAVIS."""

RETRIES = 3
"""How often a camera or stream that drops is opened again, after 1, 2 and 4 seconds, before that is an error."""

RETRY_SECONDS = 1.0
TIMEOUT_SECONDS = 10.0
"""A network source or camera that gives nothing for so long has dropped."""


@dataclass(slots=True)
class Source:
    """`count` is the number of frames that will come (None: unknown), `names` their file stems where they are files."""

    name: str
    fps: float
    count: int | None
    read: Iterator[np.ndarray]
    live: bool = False
    names: list[str] | None = None
    notes: list[str] = field(default_factory=list)


def open_source(source: str | Path | int, stride: int = 1) -> Source:
    """Open any kind of source; of its frames every `stride`-th is read. Raises VideoError."""
    text = str(source)
    if isinstance(source, int) or (re.fullmatch(r"\d{1,3}", text) and not Path(text).exists()):
        return _camera(int(text), stride)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        return _address(text, stride)
    path = Path(source)
    try:
        if not path.exists():
            raise VideoError(f"{path}: no such file or folder")
        if path.is_dir():
            return _folder(path, stride)
        if path.is_char_device():
            return _device(text, text, "v4l2", stride)
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes); copy or record it again")
    except OSError as error:
        raise VideoError(f"{path}: not readable ({reason(error)}); check the path and its permissions") from None
    return _picture(path) if is_picture(path) else _file(path, stride)


def _picture(path: Path) -> Source:
    return Source(str(path), FOLDER_FPS, 1, iter([read_picture(path)]), names=[path.stem])


def _folder(path: Path, stride: int) -> Source:
    files = sorted(
        (f for f in path.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith(".")),
        key=lambda f: natural(f.name),
    )[::stride]
    if not files:
        raise VideoError(f"{path}: no pictures in this folder (looked for {' '.join(PICTURES)})")
    return Source(str(path), FOLDER_FPS / stride, len(files), map(read_picture, files), names=[f.stem for f in files])


def natural(name: str) -> list[Any]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), part) if part.isdigit() else (1, 0, part.lower()) for part in parts]


# ------------------------------------------------------------------------------------------------------------- video


def _file(path: Path, stride: int) -> Source:
    import av

    def opened() -> Any:
        # absolute: FFmpeg would take what stands before a colon for a protocol, and read another file or a pipe
        return av.open(str(path.absolute()), options={"probesize": "20000000"})

    return _video(str(path), opened, stride, live=False)


def _address(url: str, stride: int) -> Source:
    import av

    shown = re.sub(r"//[^/@]*@", "//", url)  # a password in the address is not for logs and results
    scheme = url.split(":", 1)[0].lower()
    options = {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
    if scheme.startswith("http"):
        options = {"reconnect": "1", "reconnect_delay_max": "4"}

    def opened() -> Any:
        return av.open(url, options=options, timeout=(TIMEOUT_SECONDS, TIMEOUT_SECONDS))

    return _video(shown, opened, stride, live=None if scheme.startswith("http") else scheme != "file")


def _camera(number: int, stride: int) -> Source:
    if sys.platform == "darwin":
        return _device(f"camera {number}", str(number), "avfoundation", stride)
    device = Path(f"/dev/video{number}")
    if not device.exists():
        found = ", ".join(sorted((d.name[5:] for d in Path("/dev").glob("video*")), key=natural)) or "none"
        raise VideoError(f"camera {number}: no {device} on this machine (cameras found: {found})")
    return _device(f"camera {number}", str(device), "v4l2", stride)


def _device(name: str, device: str, kind: str, stride: int) -> Source:
    import av

    def opened() -> Any:
        return av.open(device, format=kind, timeout=(TIMEOUT_SECONDS, TIMEOUT_SECONDS))

    return _video(name, opened, stride, live=True)


def _video(name: str, opened: Callable[[], Any], stride: int, live: bool | None) -> Source:
    """A source that PyAV reads. `live` None: live if it has no known length."""
    import av

    try:
        container = opened()
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{name}: {_open_failed(error, bool(live))}") from None
    try:
        stream = _stream(container, name)
        check_size(stream.codec_context.height, stream.codec_context.width, name)
    except BaseException:
        container.close()
        raise
    live = not container.duration if live is None else live
    fps = float(stream.average_rate or stream.guessed_rate or FOLDER_FPS)
    count = 0 if live else stream.frames or round(fps * (container.duration or 0) / 1e6)
    source = Source(name, fps / stride, -(-count // stride) or None, iter(()), live=live)
    source.read = _live(source, container, opened, stride) if live else _decode(source, container, stride)
    return source


def _stream(container: Any, name: str) -> Any:
    if container.format.name in ("tty", "ansi"):  # FFmpeg renders any text file as a video of its letters
        raise VideoError(f"{name}: a text file, not a video")
    streams = [s for s in container.streams.video if "attached" not in str(getattr(s, "disposition", "")).lower()]
    if not streams:
        kinds = " and ".join(sorted({s.type for s in container.streams}))
        raise VideoError(f"{name}: no video in it, " + (f"only {kinds}" if kinds else "it is damaged or cut short"))
    if streams[0].codec_context is None:
        raise VideoError(f"{name}: the video is in a format that this build of PyAV cannot decode; convert it to H.264")
    streams[0].thread_type = "AUTO"
    return streams[0]


def _decode(source: Source, container: Any, stride: int) -> Iterator[np.ndarray]:
    """Frames of a file. What the container promised and did not hold is an error, after the frames that it held."""
    import av

    decoded = damaged = 0
    last = 0.0
    with container:
        stream = _stream(container, source.name)
        try:
            for packet in container.demux(stream):
                for frame in packet.decode():
                    damaged += bool(frame.is_corrupt)
                    last = frame.time if frame.time is not None else last
                    if decoded % stride == 0:
                        yield _array(frame, source.name)
                    decoded += 1
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{source.name}: damaged or cut short after {decoded} frame{'s' * (decoded != 1)} ({reason(error)})"
            ) from None
        promised = _promised_seconds(container, stream)
    if decoded == 0:
        raise VideoError(f"{source.name}: holds no frame that can be decoded; the file is damaged or cut short")
    if promised - last > max(0.5, 5 / float(stream.average_rate or FOLDER_FPS)):
        raise VideoError(
            f"{source.name}: cut short: it ends at {last:.1f} of {promised:.1f} seconds, after {decoded} frames"
        )
    if damaged:
        source.notes.append(f"{source.name}: {damaged} of {decoded} frames are damaged; masks there may be wrong")


def _promised_seconds(container: Any, stream: Any) -> float:
    """Length of the video by its header; 0 where the header does not speak of the video alone."""
    tag = re.fullmatch(r"(\d{1,6}):(\d{1,2}):(\d{1,2}(?:\.\d*)?)", stream.metadata.get("DURATION", ""))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 and stream.frames else 0.0


def _live(source: Source, container: Any, opened: Callable[[], Any], stride: int) -> Iterator[np.ndarray]:
    """Frames of a camera or network stream until it is closed; reopened when it drops."""
    import av

    decoded, failures, why = 0, 0, "it ended"
    while True:
        try:
            if container is None:
                container = opened()
            with container:
                for packet in container.demux(_stream(container, source.name)):
                    for frame in _lenient(packet):
                        failures = 0
                        if decoded % stride == 0:
                            yield _array(frame, source.name)
                        decoded += 1
            why = "it ended"
        except (av.FFmpegError, OSError) as error:
            why = reason(error)
        container = None
        failures += 1
        if failures > RETRIES:
            raise VideoError(
                f"{source.name}: dropped after {decoded} frames ({why}) and did not come back "
                f"in {RETRIES} tries; check the cable, the address or the network"
            )
        time.sleep(RETRY_SECONDS * 2 ** (failures - 1))


def _lenient(packet: Any) -> list[Any]:
    """Who joins a stream in its middle gets broken packets until the next key frame: no reason to stop."""
    import av

    try:
        return packet.decode()
    except av.InvalidDataError:
        return []


def _array(frame: Any, where: str) -> np.ndarray:
    check_size(frame.height, frame.width, where)
    if any(c.is_alpha for c in frame.format.components):
        array = over_black(frame.to_ndarray(format="rgba"))
    else:
        array = frame.to_ndarray(format="rgb24")
    # PyAV gives degrees counter-clockwise, as rot90 takes them
    turns = round(frame.rotation / 90) % 4
    # a picture one pixel wide comes with gaps between its rows
    return np.ascontiguousarray(np.rot90(array, turns))


def _open_failed(error: BaseException, live: bool) -> str:
    if live:
        return f"does not answer ({reason(error)}); check the address, the cable or the network"
    if type(error).__name__ == "InvalidDataError":
        return "not a video, or damaged beyond reading (no valid header); copy or record it again"
    return f"cannot be opened ({reason(error)})"
