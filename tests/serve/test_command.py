"""The command `python -m runtime.serve`: what it refuses, and a process from its start to SIGTERM."""

import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import runtime
from helpers.waiting import PATIENCE, wait_until
from runtime.serve import __main__ as serve_command
from runtime.serve import web
from runtime.serve.__main__ import main
from runtime.serve.client import Client

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "engines" / "nano"
PEM = str(Path(__file__).with_name("localhost.pem"))
"""A certificate that signs itself, until 2126, and its key."""
REFUSED = {
    "open to all": (["--host", "0.0.0.0"], "give --token-file"),
    "no token file": (["--token-file", "missing"], "missing: not readable"),
    "camera": (["--camera", "rtsp://host"], "write NAME=SOURCE"),
    "engine": (["--engine", "missing"], "no such folder"),
    "certificate": (["--tls-cert", "missing"], "--tls-cert and --tls-key"),
    "certificate alone": (["--tls-cert", PEM], "in PEM, both (No such file"),
    "key alone": (["--tls-key", PEM], "in PEM, both (No such file"),
    "no certificate": (["--tls-cert", __file__, "--tls-key", PEM], "in PEM, both"),
    "no key": (["--tls-cert", PEM, "--tls-key", __file__], "in PEM, both"),
    "port": (["--port", "99999"], "choose another --port"),
    "option": (["--ports", "1"], "unrecognized arguments"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, capsys):
    arguments, expected = REFUSED[name]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["", "\n\n", "short\n", "good-token-1\nbad\n"])
def test_tokens_that_are_none(text, tmp_path, capsys):
    (tmp_path / "tokens").write_text(text)
    assert main(["--token-file", str(tmp_path / "tokens")]) == 2
    assert "8 or more characters" in capsys.readouterr().err


def test_a_process_from_its_start_to_sigterm():
    """Streams that run are finished, the exit code is 0."""
    command = [sys.executable, "-m", "runtime.serve", "--engine", str(NANO), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    lines = []
    threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True).start()
    try:
        wait_until(lambda: process.poll() is None and re.search(r"http://127\.0\.0\.1:(\d+)", "".join(lines)))
        address = re.search(r"http://127\.0\.0\.1:\d+", "".join(lines))[0]
        with runtime.open_video(NANO / "demo" / "clip.mp4", max_frames=12) as video:
            frames = list(video)
        sent = threading.Event()

        def source():
            yield from frames
            sent.set()
            wait_until(lambda: process.poll() is not None)  # the client would go on

        found = []

        def follow():
            with pytest.raises(runtime.UserError, match="shutting down"):
                for result in Client(address).stream(source(), ["the crab in the video"]):
                    found.append(result)

        thread = threading.Thread(target=follow)
        thread.start()
        assert sent.wait(PATIENCE)
        wait_until(lambda: len(found) >= 8)  # a window; the others wait
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        thread.join(PATIENCE)
    finally:
        process.kill()
    with runtime.load(NANO, threads=1) as engine, engine.session([runtime.Text("the crab in the video")]) as session:
        for expected, result in zip(session.stream(frames), found, strict=True):
            np.testing.assert_array_equal(result.masks, expected.masks)
    assert not [line for line in lines if "Traceback" in line]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=2)


def test_https(toy, monkeypatch, capfd):
    servers, run = [], web.Server.run
    monkeypatch.setattr(web.Server, "run", lambda server, listeners: (servers.append(server), run(server, listeners)))
    monkeypatch.setenv("SSL_CERT_FILE", PEM)
    options = ["--engine", str(toy), "--engines", "1", "--port", "0", "--tls-cert", PEM, "--tls-key", PEM]
    thread = threading.Thread(target=main, args=[options])
    thread.start()
    wait_until(lambda: servers and servers[0].started)
    address = re.search(r"https://127\.0\.0\.1:\d+", capfd.readouterr().err)[0]
    try:
        frame = np.full((20, 30, 3), 90, np.uint8)
        assert len(list(Client(address).stream([frame] * 3, [runtime.Text(tokens=[0, 5, 2])]))) == 3
        assert urllib.request.urlopen(f"{address}/v2/health/live").status == 200
        with pytest.raises(OSError):
            urllib.request.urlopen(f"{address.replace('https', 'http')}/v2/health/live")
    finally:
        servers[0].should_exit = True
        thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("options", "cores", "threads"),
    [
        ([], 2, [1, 1]),
        ([], 8, [4, 4]),
        ([], 1, [None]),
        (["--max-streams", "1"], 8, [None]),
        (["--engines", "1"], 8, [None]),
        (["--engines", "3"], 8, [2, 2, 2]),
        (["--engines", "3", "--threads", "5"], 8, [5, 5, 5]),
        (["--threads", "5"], 8, [5, 5]),
    ],
)
def test_engines_share_the_cores(toy, monkeypatch, options, cores, threads):
    given = []

    def load(engine, model, backend, threads, *more, **options):
        given.append(threads)
        return runtime.load(engine, model, backend, 1, *more, **options)

    monkeypatch.setattr(serve_command, "num_cores", lambda: cores)
    monkeypatch.setattr(serve_command, "load", load)
    engines = list(serve_command._engines(serve_command._parser().parse_args(["--engine", str(toy), *options])))
    assert given == threads and len(engines) == len(threads)
    assert len({id(engine) for engine in engines}) == len(engines)


def test_a_large_bundle_has_one_engine(toy, monkeypatch):
    monkeypatch.setattr(serve_command, "num_cores", lambda: 8)
    monkeypatch.setattr(serve_command, "SMALL_BYTES", 100)
    assert len(list(serve_command._engines(serve_command._parser().parse_args(["--engine", str(toy)])))) == 1
    with pytest.raises(runtime.UserError, match="--engines: .*1 or more"):
        serve_command._parser().parse_args(["--engine", str(toy), "--engines", "0"])
