"""Videos on a web server: whole and cut files are told apart as on disk."""

import functools
import http.server
import io
import os
import threading

import av
import pytest

from helpers import media
from runtime import SamwiseRuntimeError, open_video

CUTS = {"whole": 0, "last frame": 30, "some frames": 400}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files and ranges of them."""

    def log_message(self, *_):
        pass

    def send_head(self):
        with open(self.translate_path(self.path), "rb") as file:
            data = file.read()
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        return io.BytesIO(data[start:])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A folder, and the address at which it is served."""
    folder = tmp_path_factory.mktemp("served")
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in [name for name in os.environ if name.lower() == "http_proxy"]:
        monkeypatch.delenv(name)


def write(path, long_last, options):
    """Write 24 frames, the last of which is shown for 5 seconds if it is `long_last`."""
    codec = "libvpx" if path.suffix == ".webm" else "libx264"
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"bf": "0"} if codec == "libx264" else {}
        arrays = (av.VideoFrame.from_ndarray(array, format="rgb24") for array in media.clip(24))
        packets = [packet for frame in [*arrays, None] for packet in stream.encode(frame)]
        if long_last:
            packets[-1].duration = round(5 / packets[-1].time_base)
        out.mux(packets)


def read(source):
    """Return the number of frames, and the end of the error if there is one."""
    count, error = 0, None
    try:
        with open_video(source) as video:
            for _ in video:
                count += 1
    except SamwiseRuntimeError as failure:
        error = str(failure).partition(": cut short: ")[2]
    return count, error


@pytest.mark.parametrize("long_last", [False, True])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    "name, options",
    [
        ("a.mp4", {"movflags": "faststart"}),
        ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", {}),
        ("a.webm", {}),
    ],
)
def test_a_served_file_is_read_as_one_on_disk(server, name, options, cut, long_last):
    folder, address = server
    write(folder / name, long_last, options)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) - CUTS[cut]])
    count, error = read(f"{address}/{name}")
    if cut == "whole":
        assert (count, error) == (24, None)
    elif name != "fragments.mp4":  # what a file says of its parts is read on disk only
        assert (count, error) == read(folder / name)
        assert error or (cut == "last frame" and name != "a.mp4")
