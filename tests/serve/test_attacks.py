"""What strangers may try: each gets one line, and the server goes on."""

import contextlib
import io
import json
import re
import socket as sockets
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from websockets.exceptions import ConnectionClosed, InvalidStatus

from helpers.server import png
from helpers.waiting import PATIENCE, Stopwatch
from runtime.serve import wire
from runtime.serve.limits import Limits

FRAME = np.full((20, 30, 3), 80, np.uint8)
GOOD = png(FRAME)
CLICK = {"1": {"points": [[10, 8]], "labels": [1]}}
LIMITS = Limits(message_bytes=1 << 20, header_bytes=8 << 10, pixels=4_000_000, objects=8)


@pytest.fixture(scope="module")
def server(click_engine):
    from helpers.server import Running

    running = Running(click_engine, LIMITS)
    yield running
    running.close()


@pytest.fixture(scope="module")
def hasty(click_engine):
    """A server that does not wait for the head of a request."""
    from helpers.server import Running

    running = Running(click_engine, replace(LIMITS, head_seconds=0.4))
    yield running
    running.close()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(side):
    """A PNG that says it has side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(side * 3 + 1) * 16, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def text_bomb():
    """A PNG whose text chunks are much larger when they are decompressed."""
    info, data = PngImagePlugin.PngInfo(), io.BytesIO()
    for _ in range(80):
        info.add_text("a", "x" * 1_000_000, zip=True)
    Image.fromarray(FRAME).save(data, "PNG", pnginfo=info)
    return data.getvalue()


def animation(kind, count=40):
    frames, data = [Image.fromarray(FRAME + n) for n in range(count)], io.BytesIO()
    frames[0].save(data, kind, save_all=True, append_images=frames[1:])
    return data.getvalue()


def other_format(kind):
    data = io.BytesIO()
    Image.fromarray(FRAME).save(data, kind)
    return data.getvalue()


def lying_jpeg():
    """A JPEG that claims 65,000 x 65,000 pixels."""
    data = bytearray(other_format("JPEG"))
    position = data.index(b"\xff\xc0")
    data[position + 5 : position + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


PICTURES = {
    "no picture": (b"hello", "not a picture"),
    "nothing": (b"", "not a picture"),
    "60,000 x 60,000": (bomb(60_000), "picture"),
    "9,000 x 9,000": (bomb(9_000), "9000x9000 pixels; send at most"),
    "a JPEG of another size": (lying_jpeg(), "picture"),
    "text chunks": (text_bomb(), "picture"),
    "an animated PNG": (animation("PNG"), "an animation"),
    "an animated WebP": (animation("WEBP"), "an animation"),
    "a GIF": (other_format("GIF"), "not a picture of the kinds JPEG, PNG, WEBP"),
    "a TIFF": (other_format("TIFF"), "not a picture of the kinds"),
    "half of a picture": (GOOD[:60], "picture"),
    "a playlist": (b"#EXTM3U\nfile:///etc/passwd\n", "not a picture"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "not a picture"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n", "not a picture"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(server, name):
    data, expected = PICTURES[name]
    with server.connect() as socket:
        socket.start(masks="none")
        socket.frame(data, 1, CLICK)
        answer = socket.receive()
        assert answer["type"] == "failed" and answer["tag"] == 1 and expected in answer["message"]
        goes_on(socket, answer)


def encoded(kind="PNG", mode=None, image=None, **options):
    image, data = Image.fromarray(FRAME) if image is None else image, io.BytesIO()
    (image.convert(mode) if mode else image).save(data, kind, **options)
    return data.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


UNUSUAL = {
    "turned by EXIF": (encoded("JPEG", exif=turned()), [30, 20]),
    "EXIF that is none": (encoded("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 60), [20, 30]),
    "CMYK": (encoded("JPEG", "CMYK"), [20, 30]),
    "progressive": (encoded("JPEG", progressive=True), [20, 30]),
    "16 bits": (encoded(image=Image.fromarray(np.full((20, 30), 40_000, np.uint16))), [20, 30]),
    "1 bit": (encoded(mode="1"), [20, 30]),
    "grey with alpha": (encoded(mode="LA"), [20, 30]),
    "palette with a transparent colour": (encoded(mode="P", transparency=3), [20, 30]),
    "WebP with alpha": (encoded("WEBP", "RGBA", lossless=True), [20, 30]),
    "bytes after the picture": (GOOD + bytes(5000), [20, 30]),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_pictures_are_frames(server, name):
    data, size = UNUSUAL[name]
    with server.connect() as socket:
        socket.start(masks="none")
        socket.frame(data, 1, CLICK)
        answer = socket.receive()
        assert answer["type"] == "result" and answer["size"] == size


def goes_on(socket, answer):
    """The answer tells nothing of the machine, and the stream lives."""
    text = json.dumps(answer)
    assert len(text) < 1400
    assert not re.search(r"/(tmp|usr|root|home|etc)|0x[0-9a-f]{6}|Traceback|\.py|Pillow|numpy", text)
    socket.frame(GOOD, "good", CLICK)
    good = socket.receive()
    assert good["type"] == "result" and good["tag"] == "good"


FRAMES = {
    "outside the picture": ({"prompts": {"1": {"points": [[9999, 1]], "labels": [1]}}}, "lies outside"),
    "before the picture": ({"prompts": {"1": {"points": [[-5, 1]], "labels": [1]}}}, "lies outside"),
    "labels": ({"prompts": {"1": {"points": [[1, 1]], "labels": [7]}}}, "labels must be"),
    "ragged": ({"prompts": {"1": {"points": [[1, 1], [2]], "labels": [1, 1]}}}, "must be"),
    "points of words": ({"prompts": {"1": {"points": "everything", "labels": [1]}}}, "must be"),
    "many points": ({"prompts": {"1": {"points": [[1, 1]] * 257, "labels": [1] * 257}}}, "points must be"),
    "a list": ({"prompts": [1, 2]}, "prompts on a frame must be"),
    "no prompt": ({"prompts": {"1": {}}}, "a prompt has"),
    "unknown": ({"prompts": {"1": {"file": "/etc/passwd"}}}, "has no option file"),
    "id": ({"prompts": {"-1": CLICK["1"]}}, "whole number"),
    "id of words": ({"prompts": {"__class__": CLICK["1"]}}, "whole number"),
    "huge id": ({"prompts": {"9" * 300: CLICK["1"]}}, "whole number"),
    "other digits": ({"prompts": {"\N{SUPERSCRIPT TWO}": CLICK["1"]}}, "whole number"),
    "many objects": ({"prompts": {str(n): CLICK["1"] for n in range(9)}}, "9 objects, more than 8"),
    "flat box": ({"prompts": {"1": {"box": [5, 5, 5, 9]}}}, "left must be less"),
    "empty mask": ({"prompts": {"1": {"mask": {"size": [20, 30], "counts": [600]}}}}, "mask"),
    "mask too long": ({"prompts": {"1": {"mask": {"size": [20, 30], "counts": [10, 10**6]}}}}, "add up to"),
    "mask below 0": ({"prompts": {"1": {"mask": {"size": [20, 30], "counts": [-5, 605]}}}}, "counts"),
    "mask string": ({"prompts": {"1": {"mask": {"size": [20, 30], "counts": "o" * 4000}}}}, "mask"),
    "mask of zeros": ({"prompts": {"1": {"mask": {"size": [0, 0], "counts": ""}}}}, "mask"),
    "huge mask": ({"prompts": {"1": {"mask": {"size": [10**9, 10**9], "counts": "0"}}}}, "mask"),
    "many large masks": (
        {"prompts": {str(n): {"mask": {"size": [2000, 2000], "counts": [1, 3_999_999]}} for n in range(8)}},
        "masks of more than 16,000,000 pixels",
    ),
    "other size": ({"prompts": {"1": {"mask": {"size": [2, 2], "counts": [1, 3]}}}}, "the video 30x20"),
    "time": ({"time": "now"}, "time must be"),
    "field": ({"path": "x"}, "a frame has no option path"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_headers_of_frames(server, name):
    fields, expected = FRAMES[name]
    with server.connect() as socket:
        socket.start(masks="none")
        socket.raw.send(wire.pack({"type": "frame", "tag": name, **fields}, GOOD))
        answer = socket.receive()
        assert answer["type"] == "failed" and answer["tag"] == name and expected in answer["message"]
        goes_on(socket, answer)


MESSAGES = {
    "not JSON": ("{", "not JSON"),
    "a list": ("[1,2]", "a message is a JSON object"),
    "null": ("null", "a message is a JSON object"),
    "no type": ("{}", "type must be one of"),
    "type of a list": ('{"type":["start"]}', "type must be one of"),
    "a dunder": ('{"type":"__init__"}', "type must be one of"),
    "nested lists": ("[" * 8000, "nested more than"),
    "nested objects": ('{"a":' * 1000 + "1" + "}" * 1000, "nested more than"),
    "nested in a string that does not end": ('"' + "[" * 8000, "nested more than"),
    "too long": ('{"type":"' + "x" * 9000 + '"}', "more than 8,192"),
    "not a number": ('{"type":"correct","prompts":{"1":{"points":[[NaN,1]],"labels":[1]}}}', "no finite number"),
    "infinite": ('{"type":"correct","prompts":{"1":{"points":[[1e999,1]],"labels":[1]}}}', "no finite number"),
    "many digits": ('{"type":"remove","object":' + "9" * 5000 + "}", "not JSON"),
    "half a character": ('{"type":"\\ud800"}', "type must be one of"),
    "a correction before a frame": ('{"type":"correct","prompts":{"1":{"box":[1,1,5,5]}}}', "no frame to correct"),
    "no correction": ('{"type":"correct"}', "frame"),
    "an object that is not there": ('{"type":"remove","object":5}', "no object 5"),
    "an object of words": ('{"type":"remove","object":"x"}', "whole number"),
    "true": ('{"type":"remove","object":true}', "whole number"),
    "a concept": ('{"type":"add_concept","concept":"dog"}', "this stream cannot add concept"),
    "number": ('{"type":"remove_concept","number":-1}', "whole number"),
    "a second start": ('{"type":"start"}', "a stream is open"),
    "short": (b"ab", "ends before its header"),
    "empty": (b"", "ends before its header"),
    "header length": (b"\xff\xff\xff\xff{}", "ends before its header"),
    "header of bytes": (b"\0\0\0\4\xff\xfe\xfd\xfc", "not JSON"),
    "header of a list": (b"\0\0\0\2[]", "a message is a JSON object"),
    "other type": (wire.pack({"type": "start"}), 'has the type "frame"'),
    "huge tag": (wire.pack({"type": "frame", "tag": "x" * 101}, GOOD), "tag must be"),
    "tag of a list": (wire.pack({"type": "frame", "tag": [1]}, GOOD), "tag must be"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(server, name):
    message, expected = MESSAGES[name]
    with server.connect() as socket:
        socket.start(masks="none")
        socket.raw.send(message)
        answer = socket.receive()
        assert answer["type"] == "error" and expected in answer["message"]
        goes_on(socket, answer)


STARTS = {
    "prompts of a number": ({"prompts": 7}, "prompts must be a list"),
    "strings": ({"prompts": ["the car"]}, "prompts must be a list"),
    "17 sentences": ({"prompts": [{"text": "a"}] * 17}, "17 prompts, more than 16"),
    "mixed": ({"prompts": [{"text": "a"}, {"concept": "b"}]}, "all sentences or all concepts"),
    "blank": ({"prompts": [{"text": " \t"}]}, "blank"),
    "control characters": ({"prompts": [{"text": "a\x00b"}]}, "not text"),
    "half a character": ({"prompts": [{"text": "a\ud800"}]}, "not text"),
    "text of a number": ({"prompts": [{"text": 5}]}, "must be a str"),
    "what the bundle cannot": ({"prompts": [{"text": "a car"}]}, "cannot follow sentences"),
    "keep": ({"keep": "some"}, "keep of a start must be"),
    "keep of a list": ({"keep": ["all"]}, "keep of a start must be"),
    "masks": ({"masks": "jpeg"}, "masks of a start must be"),
    "rate": ({"rate": -1}, "rate of a start must be"),
    "rate of words": ({"rate": "fast"}, "rate of a start must be"),
    "an address": ({"camera": "rtsp://10.0.0.1/stream"}, "no camera of this name; cameras: none"),
    "a file": ({"camera": "/etc/passwd"}, "no camera of this name"),
    "camera of a number": ({"camera": 0}, "camera of a start must be"),
    "logits": ({"options": {"logits": True}}, "options has no option logits"),
    "of the scheduler": ({"options": {"max_pending": 10**9}}, "no option max_pending"),
    "weight": ({"options": {"weight": 1000}}, "no option weight"),
    "results later than told": ({"options": {"encode_ahead": True}}, "no option encode_ahead"),
    "memory of its own": ({"options": {"max_cond_frames_in_attn": 9}}, "no option max_cond_frames_in_attn"),
    "large": ({"options": {"memory_temporal_stride": 10**6}}, "whole number up to"),
    "words": ({"options": {"fill_hole_area": "8"}}, "whole number up to"),
    "unknown": ({"model": "../../etc"}, "start has no option model"),
}


@pytest.mark.parametrize("name", STARTS)
def test_starts(server, name):
    fields, expected = STARTS[name]
    with server.connect() as socket:
        socket.frame(GOOD)
        assert socket.receive()["message"].startswith("no stream is open")
        socket.raw.send(json.dumps({"type": "start", **fields}))
        answer = socket.receive()
        assert answer["type"] == "error" and expected in answer["message"]
        assert socket.start(masks="none")["type"] == "started"
        goes_on(socket, answer)


def test_thousands_of_corrections(server):
    with server.connect(close_timeout=0.1) as socket:
        socket.start(masks="none")
        socket.frame(GOOD, 0, CLICK)
        for _ in range(1000):
            socket.send("correct", prompts={"1": {"points": [[3, 3]], "labels": [0]}})
    watch = Stopwatch()
    assert server.request("/v2/health/live")[0] == 200 and watch.seconds < 2


def test_a_message_that_is_too_large(server):
    with server.connect() as socket:
        socket.start()
        with pytest.raises(ConnectionClosed) as closed:
            socket.raw.send(bytes(2 << 20))
            socket.until("never")
        # a reset by the kernel, for the bytes that were not read, may overtake the frame with the code
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://["}])
def test_pages_of_others_are_refused(server, headers):
    with pytest.raises(InvalidStatus) as refused:
        server.connect(additional_headers=headers)
    assert refused.value.response.status_code == 403
    assert server.request("/v1/image", GOOD, **headers)[0] == 403


def test_the_own_page_is_not(server):
    with server.connect(additional_headers={"Origin": server.address}) as socket:
        assert socket.start()["type"] == "started"
    assert server.request("/v1/model", Origin=server.address)[0] == 200


def test_other_pages_that_the_operator_names(click_engine, serve):
    running = serve(click_engine, origins=["https://app.example"])
    assert running.request("/v1/model", Origin="https://app.example")[0] == 200
    assert running.request("/v1/model", Origin="https://app.example.evil")[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "[::", ""])
def test_other_names_of_this_host_are_refused(server, host):
    assert server.request("/v1/model", Host=host)[0] in (400, 403)
    with sockets.create_connection(("127.0.0.1", server.port)) as raw:
        key = (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
            + "A" * 22
            + "=="
        )
        raw.sendall(f"GET /v1/stream HTTP/1.1\r\nHost: {host}\r\n{key}\r\n\r\n".encode())
        assert raw.recv(100).split()[1] in (b"403", b"400")


PATHS = [
    "/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/v1/demo/../../manifest.json",
    "/page.py",
    "/web.py",
    "//etc",
]


@pytest.mark.parametrize("path", PATHS)
def test_only_named_files_are_served(server, path):
    assert server.request(path)[0] == 404


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b""),
        (b"", b""),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 80_000, b"HTTP/1.1 400"),
        (b"\x16\x03\x01\x02\x00", b""),
        (b"BOGUS\r\n\r\n", b"HTTP/1.1 400"),
    ],
)
def test_heads_that_do_not_end(hasty, sent, answer):
    with sockets.create_connection(("127.0.0.1", hasty.port), timeout=PATIENCE) as raw:
        raw.sendall(sent)
        try:
            got = raw.recv(1000)
        except ConnectionResetError:
            got = b""
    assert got.startswith(answer)


def test_a_trickle_is_no_progress(hasty):
    """One byte at a time would keep a connection for hours."""
    with sockets.create_connection(("127.0.0.1", hasty.port), timeout=PATIENCE) as raw:
        watch = Stopwatch()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100):
                raw.sendall(b"X")
                time.sleep(0.05)
        assert watch.seconds < 3


def test_fragments_without_end(server):
    with server.connect() as socket:
        socket.start()
        with pytest.raises((ConnectionClosed, OSError)):
            for _ in range(5000):
                socket.raw.socket.sendall(b"\x02\x80\0\0\0\0" if _ == 0 else b"\x00\x80\0\0\0\0")
            socket.receive()
    assert server.request("/v2/health/live")[0] == 200


@pytest.mark.parametrize("opcode", ["ping", "pong"])
@pytest.mark.parametrize("payload", [b"", b"x" * 125])
def test_floods_of_pings(server, opcode, payload):
    """No application sees them; unread answers would pile up. A thousand a second are harmless."""
    frame = bytes([0x89 if opcode == "ping" else 0x8A, 0x80 + len(payload), 0, 0, 0, 0]) + payload
    with server.connect(close_timeout=0.1) as socket:
        socket.start(masks="none")
        socket.raw.socket.sendall(frame * 900)
        socket.frame(GOOD, 1, CLICK)
        assert socket.receive()["tag"] == 1
        watch = Stopwatch()
        with pytest.raises(OSError):
            while watch.seconds < 10:
                socket.raw.socket.sendall(frame * 1000)
        assert server.request("/v2/health/live")[0] == 200


def test_floods_of_empty_messages_wait(click_engine, serve):
    """They have no bytes to count, but each is work."""
    with serve(click_engine, Limits(bytes_per_second=20 << 10, message_cost=1 << 10)).connect() as socket:
        watch, started = Stopwatch(), time.monotonic()
        for _ in range(30):
            socket.raw.send(b"")
        for _ in range(30):
            assert "ends before its header" in socket.receive()["message"]
        assert time.monotonic() - started > 0.4 and watch.seconds < 5


UPGRADE = (
    "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    + "A" * 22
    + "=="
)


@pytest.mark.parametrize("more", ["\r\nContent-Length: 5\r\n\r\nhello", "\r\nContent-Length: 5\r\n\r\n"])
def test_a_handshake_that_does_not_end(hasty, more):
    with sockets.create_connection(("127.0.0.1", hasty.port), timeout=PATIENCE) as raw:
        raw.sendall(f"GET /v1/stream HTTP/1.1\r\nHost: localhost{UPGRADE}{more}".encode())
        with contextlib.suppress(ConnectionResetError):
            assert not raw.recv(100).startswith(b"HTTP/1.1 101")


AMBIGUOUS = [
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    b"Content-Length: -1\r\n\r\n",
    b"Content-Length: 4, 4\r\nTransfer-Encoding: identity\r\n\r\nabcd",
    b"Content-Length : 4\r\n\r\nabcd",
]


@pytest.mark.parametrize("headers", AMBIGUOUS)
def test_requests_whose_end_is_ambiguous(hasty, headers):
    """A proxy in front could see one request where the server sees two."""
    with sockets.create_connection(("127.0.0.1", hasty.port), timeout=PATIENCE) as raw:
        raw.sendall(
            b"POST /v1/image HTTP/1.1\r\nHost: localhost\r\n"
            + headers
            + b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while more := raw.recv(4096):
                answer += more
    assert (
        answer.split()[1] in (b"400", b"403", b"501") and answer.count(b"HTTP/1.1 ") == 1 and b"samwise_" not in answer
    )


def test_of_several_origins_each_counts(server):
    for origins in (("http://evil.example", server.address), (server.address, "http://evil.example")):
        lines = "".join(f"Origin: {origin}\r\n" for origin in origins)
        with sockets.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as raw:
            raw.sendall(f"GET /v1/model HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{lines}\r\n".encode())
            assert raw.recv(100).split()[1] == b"403"


def test_the_page_allows_nothing_foreign(server):
    import urllib.request

    answer = urllib.request.urlopen(server.address + "/")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff" and "Server" not in answer.headers
