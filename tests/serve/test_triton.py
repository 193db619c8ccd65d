"""Triton Inference Server itself: clients of another process, many sequences, and how they end.

`TRITON_ENV` names an environment with the wheel of the server, its clients and this checkout, as CONTRIBUTING.md says.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
ENV = os.environ.get("TRITON_ENV")
PYTHON = Path(ENV or "") / "bin" / "python"
CLIENTS = ROOT / "tests" / "helpers" / "triton_clients.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not ENV, reason="TRITON_ENV names no environment with nvidia-pytriton (CONTRIBUTING.md)"),
]


def free_ports():
    """The first of three that are free."""
    while True:
        first = random.randrange(20000, 60000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as sockets:
            for number in range(first, first + 3):
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", number))
            return first


def is_ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait(condition, seconds=300):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return value


@contextlib.contextmanager
def serving(folder, *options):
    port = free_ports()
    command = [
        PYTHON,
        "-m",
        "runtime.serve.triton",
        "--engine",
        ROOT / "engines" / "nano",
        "--out",
        folder / "repository",
    ]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--run", "--port", str(port), "--threads", "1", *options], cwd=folder, stdout=log, stderr=log
        )
        try:
            wait(lambda: is_ready(port) or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            yield port, process
        finally:
            process.terminate()
            process.wait(120)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of a server with eight streams."""
    where = subprocess.run(
        [PYTHON, "-c", "import runtime; print(runtime.__file__)"], cwd="/", capture_output=True, text=True
    )
    assert Path(where.stdout.strip()) == ROOT / "runtime" / "__init__.py", (
        f"{ENV}: pip install -e {ROOT} {where.stderr}"
    )
    with serving(tmp_path_factory.mktemp("triton"), "--max-streams", "8") as (port, _):
        yield port


def run(scenario, port, folder):
    """What a client has printed, and its masks by sequence."""
    command = [PYTHON, CLIENTS, scenario, str(port), folder / f"{scenario}.npz"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    file = folder / f"{scenario}.npz"
    return json.loads(done.stdout), dict(np.load(file)) if file.is_file() else {}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run("alone", 0, tmp_path_factory.mktemp("alone"))[1]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_request_and_response(server, alone, tmp_path, protocol):
    said, masks = run(protocol, server, tmp_path)
    for key in ("3", "gate"):
        np.testing.assert_array_equal(masks[key], alone[key])
    assert masks["image"].shape == (1, *alone["3"].shape[1:])
    client_error = "[400]" if protocol == "http" else "[StatusCode.INVALID_ARGUMENT]"
    for text, words in zip(
        said, ["not open", "not open", "picture", "prompt is empty", "5000", "17 prompts"], strict=True
    ):
        assert text.startswith(client_error) and words in text and "\n" not in text and "/" not in text


def test_eight_interleaved_sequences(server, alone, tmp_path):
    said, masks = run("stream", server, tmp_path)
    assert said == [] and masks.keys() == alone.keys()
    for key in alone:
        np.testing.assert_array_equal(masks[key], alone[key])


def test_too_many_sequences(server, tmp_path):
    said, _ = run("too_many", server, tmp_path)
    (busy, *without_start, not_open), num_frames = said
    assert "all 8 streams are in use" in busy and "not open" in not_open and num_frames == 8
    assert len(without_start) == 2 and all("must specify the START flag" in text for text in without_start)


def test_a_killed_client_frees_its_place(server, alone, tmp_path):
    killed = subprocess.Popen([PYTHON, CLIENTS, "begin", str(server), "none"], cwd=tmp_path, stdout=-1, text=True)
    assert killed.stdout.readline() == "begun\n"
    killed.kill()
    killed.communicate()
    said, masks = run("stream", server, tmp_path)
    assert said == []
    np.testing.assert_array_equal(masks["gate"], alone["gate"])


def stubs(process):
    """Process ids of the python processes of a server by model."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            grandparent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
            if words[0].endswith("triton_python_backend_stub") and process.pid in (parent, grandparent):
                found["segment_stream" if "/segment_stream/" in words[1] else "segment"] = int(folder.name)
    return found


def probe(port, folder):
    command = [PYTHON, "-m", "runtime.serve.triton", "--probe", f"http://127.0.0.1:{port}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_idle_sequences_and_a_dead_process(server, tmp_path):
    with serving(tmp_path, "--idle", "2") as (port, process):
        assert probe(port, tmp_path).returncode == 0
        said, _ = run("idle", port, tmp_path)
        assert "idle for 4 s" in said[0] and "START flag" in said[1]
        os.kill(stubs(process)["segment_stream"], signal.SIGKILL)
        done = wait(lambda: found if (found := probe(port, tmp_path)).returncode else None)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert is_ready(port)  # which is why there is a probe


def test_the_server_ends_at_a_signal(server, tmp_path):
    with serving(tmp_path) as (_, process):
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
