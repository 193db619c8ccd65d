"""Cameras on a network: endless streams of numbered frames over HTTP (MPEG-TS) and RTSP (H.264 in RTP over TCP)."""

from __future__ import annotations

import contextlib
import itertools
import re
import socketserver
import struct
import threading
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

HEIGHT, WIDTH, BITS, FPS = 48, 64, 12, 25
FIRST_TICK = 90_000
"""Time of frame 0 in RTP, in ticks of 1/90000 s; FFmpeg takes 0 for none."""


def numbered(number: int) -> np.ndarray:
    """A frame that shows the bits of its number as 12 blocks."""
    bits = number >> np.arange(BITS) & 1
    blocks = np.kron(bits.reshape(3, 4), np.ones((16, 16), np.uint8)).astype(np.uint8)
    return np.repeat((30 + 190 * blocks)[..., None], 3, axis=2)


def number_of(frame: np.ndarray) -> int:
    """The number that a frame shows."""
    return int(((frame[8::16, 8::16, 0] > 125).reshape(-1) << np.arange(BITS)).sum())


class Camera(socketserver.ThreadingTCPServer):
    """Serves numbered frames, as many as `send` was told, and hangs up after every `cut_after` of a connection.

    resets   whether the numbers of a new connection begin with 0
    refuses  number of connections behind the first one to hang up on
    """

    daemon_threads = allow_reuse_address = True

    def __init__(self, handler, cut_after=None, resets=False, refuses=0):
        super().__init__(("127.0.0.1", 0), handler)
        self.cut_after, self.resets, self.refuses = cut_after, resets, refuses
        self.sent, self.last, self.starts, self._due = -1, -1, [], threading.Semaphore(0)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        """Where it is watched."""
        return f"{self.RequestHandlerClass.scheme}://127.0.0.1:{self.server_address[1]}/live"

    def send(self, frames: int) -> None:
        """Let it send so many frames more, as soon as it is watched; with `last` as the last one unless it resets."""
        self.last += frames
        self._due.release(frames)

    def numbers(self) -> Iterator[int]:
        """Numbers of the frames of a connection, each when it is due."""
        start = 0 if self.resets else self.sent + 1
        self.starts.append(start)
        for number in itertools.count(start) if self.cut_after is None else range(start, start + self.cut_after):
            self._due.acquire()
            self.sent = number
            yield number


class Handler(socketserver.StreamRequestHandler):
    """Answers a client until it hangs up."""

    def handle(self):
        if self.server.starts and self.server.refuses:
            self.server.refuses -= 1
            return
        with contextlib.suppress(OSError):
            self.answer()

    def headers(self) -> tuple[str, str]:
        """Read a request; return its first word and its sequence number."""
        lines = [line.decode() for line in iter(lambda: self.rfile.readline().strip(), b"")]
        number = next((line.split(":")[1].strip() for line in lines if line.lower().startswith("cseq")), "")
        return (lines[0].split()[0] if lines else ""), number


def encoder(stream_of):
    """An H.264 encoder without delay, whose key frames come every 20 frames with all they need."""
    stream = stream_of("libx264", FPS)
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    stream.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "20", "x264-params": "repeat-headers=1"}
    return stream


class HttpHandler(Handler):
    """MPEG-TS without an end."""

    scheme = "http"
    is_alone = False

    def answer(self):
        self.headers()
        self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n")
        # closed here and told of no error: PyAV 17.0 may fall over what the garbage collector finds of it otherwise
        with av.open(self, "w", format="mpegts", options={"flush_packets": "1"}) as container:
            stream = encoder(container.add_stream)
            for number in self.server.numbers():
                if self.is_alone:
                    return
                frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                container.mux(stream.encode(frame))

    def write(self, data):
        try:
            self.wfile.write(data)
        except OSError:
            self.is_alone = True
        return len(data)


class RtspHandler(Handler):
    """A camera that speaks just enough RTSP for FFmpeg, with RTP on the same connection."""

    scheme = "rtsp"
    SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
    ANSWERS = {
        "OPTIONS": ("Public: OPTIONS, DESCRIBE, SETUP, PLAY", ""),
        "DESCRIBE": ("Content-Type: application/sdp", SDP + "a=rtpmap:96 H264/90000\r\na=control:track\r\n"),
        "SETUP": ("Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1", ""),
        "PLAY": ("Session: 1", ""),
    }

    def answer(self):
        method = ""
        while method != "PLAY":
            method, number = self.headers()
            if method not in self.ANSWERS:
                return
            header, body = self.ANSWERS[method]
            text = f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{header}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            self.wfile.write(text.encode())
        self.play()

    def play(self):
        codec = encoder(lambda name, rate: av.CodecContext.create(name, "w"))
        codec.time_base, sequence = Fraction(1, FPS), itertools.count()
        for number in self.server.numbers():
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = number, codec.time_base
            units = [u for p in codec.encode(frame) for u in re.split(b"\0\0\0?\1", bytes(p)) if u]
            for unit in units:
                marker = 0x80 if unit is units[-1] else 0
                rtp = struct.pack(
                    ">BBHII", 0x80, marker | 96, next(sequence) & 0xFFFF, FIRST_TICK + 90000 // FPS * number, 7
                )
                self.wfile.write(struct.pack(">BBH", 0x24, 0, len(rtp) + len(unit)) + rtp + unit)
