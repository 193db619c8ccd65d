"""Small videos for tests, made with PyAV."""

import contextlib
import socket
import struct
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def clip(count=12, height=48, width=64):
    """Frames (T, H, W, 3) uint8: a red square that moves right; the bottom rows encode the frame number."""
    frames = np.full((count, height, width, 3), 16, np.uint8)
    for i, frame in enumerate(frames):
        x = (4 + 2 * i) % (width - 24)
        frame[12:36, x : x + 20] = 250, 20, 20
        frame[40:] = 16 + 4 * (i % 50)
    return frames


def write(
    path: Path,
    frames=None,
    codec="libx264",
    pix_fmt="yuv420p",
    source="rgb24",
    fps=24,
    rotate=None,
    audio=False,
    gop=12,
    times=None,
    encoder=None,
    **options,
):
    """Write frames to a file; its suffix selects the container.

    rotate  degrees by which an MP4 file is shown rotated
    times   seconds at which the frames are shown
    """
    frames = clip() if frames is None else frames
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.options = ({"g": str(gop), "crf": "10"} if codec == "libx264" else {}) | (encoder or {})
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format=source)
            if times is not None:
                frame.pts, frame.time_base = round(times[i] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if rotate is not None:
        cosine, sine = np.cos(np.radians(rotate)), np.sin(np.radians(rotate))
        set_matrix(path, cosine, -sine, sine, cosine)
    return path


def write_streams(path: Path, *parts: Path, dispositions=(), options=None):
    """Copy the streams of several files into one."""
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(av.open(str(path), "w", options=options or {}))
        sources = [stack.enter_context(av.open(str(part))) for part in parts]
        streams = [(source, s, out.add_stream_from_template(s)) for source in sources for s in source.streams]
        for (_, _, stream), disposition in zip(streams, dispositions, strict=False):
            stream.disposition = disposition.value
        for source, original, stream in streams:
            for packet in source.demux(original):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
            source.seek(0)
    return path


def write_audio(path: Path, seconds=0.1):
    """Write a file with an audio stream only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, round(48000 * seconds)), np.float32), format="fltp", layout="mono"
        )
        frame.rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def truncate(path: Path, part: float) -> Path:
    """Write the first part of a file to a new one, as an interrupted copy leaves it."""
    data = path.read_bytes()
    out = path.with_name("truncated_" + path.name)
    out.write_bytes(data[: int(len(data) * part)])
    return out


def corrupt(path: Path, start: float, count: int, step: int = 1) -> Path:
    """Copy a file with `count` bytes changed, every `step`th one from the fraction `start` on."""
    data = bytearray(path.read_bytes())
    at = int(len(data) * start)
    for i in range(at, min(len(data), at + count * step), step):
        data[i] ^= 0x5A
    out = path.with_name("corrupted_" + path.name)
    out.write_bytes(data)
    return out


def damage_packets(path: Path, numbers) -> Path:
    """Copy a video with the contents of some packets, by their order in the file, overwritten."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as source:
        packets = [bytes(packet) for packet in source.demux(video=0) if packet.size]
    at = 0
    for number, packet in enumerate(packets):
        at = data.index(packet, at)
        if number in numbers or number - len(packets) in numbers:
            data[at : at + len(packet)] = b"\xff" * len(packet)
        at += len(packet)
    out = path.with_name("damaged_" + path.name)
    out.write_bytes(data)
    return out


def lose_packets(path: Path, places) -> Path:
    """Copy a transport stream without some of its packets, given as frame and number in it (None: all of a frame)."""
    data = path.read_bytes()
    packets, frames = [data[at : at + 188] for at in range(0, len(data), 188)], []
    for number, packet in enumerate(packets):
        if (packet[1] & 0x1F, packet[2]) == (1, 0):
            if packet[1] & 0x40:
                frames.append([])
            frames[-1].append(number)
    lost = {n for frame, number in places for n in (frames[frame] if number is None else [frames[frame][number]])}
    out = path.with_name("lossy_" + path.name)
    out.write_bytes(b"".join(packet for number, packet in enumerate(packets) if number not in lost))
    return out


def set_matrix(path: Path, a, b, c, d) -> Path:
    """Write a display matrix into an MP4 file: the picture's (x, y) is shown at (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16
    data[at : at + 36] = struct.pack(">9i", *(round(v * 65536) for v in (a, b, 0, c, d, 0, 0, 0, 16384)))
    path.write_bytes(data)
    return path


def drop_packets(path: Path) -> Path:
    """Copy a video without every third packet that is not a key frame."""
    out = path.with_name("dropped_" + path.name)
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            if packet.is_keyframe or number % 3:
                packet.stream = stream
                target.mux(packet)
    return out


class Server(threading.Thread):
    """Sends bytes to each of the first `times` clients, then closes."""

    def __init__(self, data, times):
        super().__init__(daemon=True)
        self.data, self.times = data, times
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.start()

    def run(self):
        for _ in range(self.times):
            with contextlib.suppress(OSError), self.socket.accept()[0] as client:  # the client may hang up first
                client.sendall(self.data)
        self.socket.close()
