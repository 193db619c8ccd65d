"""Folders and streams on a real Ray of two cores; skipped without Ray (`pip install "ray[serve]"`)."""

import asyncio
import importlib
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

import runtime
from helpers import media
from runtime.cli.output_folder import read_head

pytest.importorskip("ray", reason="Ray is not installed; it has an environment of its own (CONTRIBUTING.md)")
pytest.importorskip("starlette")
connect = pytest.importorskip("websockets.sync.client").connect
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
NANO = str(ROOT / "engines" / "nano")
SMALL = {"include_dashboard": False, "object_store_memory": 200 << 20, "log_to_driver": False}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """One mark for all processes of this test."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("SAMWISE_TEST", f"{os.getpid()}-{time.time()}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def processes(title):
    """Ids of the processes of this test whose title begins so, in order."""
    mark, found = os.environ["SAMWISE_TEST"].encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(title) and mark in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return value


# -- a folder ---------------------------------------------------------------------------------------------------------


def test_a_folder_whose_actor_is_killed(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for name in "abcd":
        media.write(videos / f"{name}.mp4", media.clip(60))
    (videos / "broken.mp4").write_bytes((videos / "a.mp4").read_bytes()[:900])
    command = [sys.executable, "-m", "runtime.serve.folder", videos, "--text", "the red square", "--out", out,
               "--engine", NANO, "--no-overlay", "--workers", "2", "--json"]  # fmt: skip
    first = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(out.glob("*/results.jsonl")) and len(processes(b"ray::Worker")) == 2)
    os.kill(processes(b"ray::Worker")[0], signal.SIGKILL)
    shown, err = first.communicate(timeout=600)
    assert first.returncode == 2, err
    totals = json.loads(shown)
    assert (totals["videos"], list(totals["failed"])) == (4, [str(videos / "broken.mp4")])
    assert all(read_head(out / name)["complete"] for name in "abcd")

    alone = tmp_path / "alone"
    local = [part for part in command if part not in ("--workers", "2")]
    subprocess.run([*map(str, local), "--out", alone], capture_output=True, timeout=300)
    for name in "abcd":
        one, many = (json.loads((f / name / "results.json").read_text())["frames"] for f in (alone, out))
        assert one == many

    (out / "b" / "results.json").unlink()
    media.write(videos / "broken.mp4", media.clip(4))
    again = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    assert (json.loads(again.stdout)["videos"], json.loads(again.stdout)["before"]) == (2, 3)
    wait_for(lambda: not processes(b"ray::"))


def test_a_signal_ends_the_processes(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for name, count in (("a", 4), ("b", 3000)):
        media.write(videos / f"{name}.mp4", media.clip(count))
    command = [sys.executable, "-m", "runtime.serve.folder", videos, "--text", "the red square", "--out", out,
               "--engine", NANO, "--no-overlay", "--workers", "2"]  # fmt: skip
    run = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: read_head(out / "a").get("complete") and len(list((out / "b").glob("masks/*"))) > 2)
    run.send_signal(signal.SIGTERM)
    shown, err = run.communicate(timeout=120)
    assert run.returncode == 143 and "1 videos" in shown, err
    wait_for(lambda: not processes(b"ray::"))
    assert not read_head(out / "b").get("complete")


# -- the deployment ---------------------------------------------------------------------------------------------------


def test_arguments_of_the_deployment():
    from runtime.serve.cluster import build

    with pytest.raises(runtime.UserError, match="engine=FOLDER"):
        build({})
    with pytest.raises(runtime.UserError, match="has no option egine"):
        build({"egine": "engines"})
    for text in ("two", None):
        with pytest.raises(runtime.UserError, match="max_streams .* number"):
            build({"engine": "engines", "max_streams": text})
    bound = build({"engine": "engines", "max_streams": "6", "num_gpus": "0.5"})._bound_deployment
    assert bound.max_ongoing_requests == 6 and bound.ray_actor_options["num_gpus"] == 0.5
    assert build({"engine": "engines"})._bound_deployment.init_kwargs["threads"] == 2


def test_the_configuration_that_is_shipped():
    import yaml
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "examples" / "ray_serve.yaml").read_text()))
    (application,) = config.applications
    module, name = application.import_path.split(":")
    bound = getattr(importlib.import_module(module), name)(application.args)._bound_deployment
    assert [deployment.name for deployment in application.deployments] == [bound.name]


def test_other_machines_need_a_token():
    from runtime.serve.cluster import _local

    async def app(scope, receive, send):
        sent.append("served")

    async def send(message):
        sent.append(message.get("status", message.get("code")))

    for kind, client, want in [("http", "127.0.0.1", "served"), ("http", "10.0.0.9", 403), ("websocket", "::2", 1008)]:
        sent = []
        asyncio.run(_local(app)({"type": kind, "client": (client, 1), "headers": []}, None, send))
        assert sent[0] == want


# -- streams ----------------------------------------------------------------------------------------------------------


class Client:
    """One stream, frame by frame."""

    def __init__(self, port, session):
        headers = {"x-session-id": session}
        address = f"ws://127.0.0.1:{port}/v1/stream"
        self.socket = connect(address, additional_headers=headers, max_size=None).__enter__()
        prompts = [{"text": "the red square"}]
        self.socket.send(json.dumps({"type": "start", "prompts": prompts, "keep": "all", "masks": "rle"}))
        self.started, self.results, self.texts = json.loads(self.socket.recv(timeout=60)), [], []

    def send(self, frames):
        for tag, frame in enumerate(frames):
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, "PNG")
            header = json.dumps({"type": "frame", "tag": tag}).encode()
            self.socket.send(struct.pack(">I", len(header)) + header + buffer.getvalue())

    def receive(self, count=None):
        """Read results: `count` of them, or until the stream has ended."""
        while count is None or len(self.results) < count:
            message = self.socket.recv(timeout=120)
            if isinstance(message, str):
                self.texts.append(json.loads(message))
                if self.texts[-1]["type"] == "ended":
                    return
            else:
                (length,) = struct.unpack_from(">I", message)
                self.results.append(json.loads(message[4 : 4 + length]))

    def masks(self):
        return [[coco.decode(obj["rle"]).astype(bool) for obj in result["objects"]] for result in self.results]


def streams_of(port, session):
    """Streams that the replica of a session has."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"x-session-id": session})
    with urllib.request.urlopen(request, timeout=30) as answer:
        (line,) = (x for x in answer.read().decode().splitlines() if x.startswith("samwise_streams "))
    return int(float(line.split()[1]))


@pytest.fixture
def serving():
    """Ray Serve with two replicas of nano; its port."""
    import ray
    from ray import serve

    from runtime.serve.cluster import build

    ray.init("local", num_cpus=2, **SMALL)
    port = 8131
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    application = build({"engine": NANO, "num_cpus": "0.5", "max_streams": "3"})
    two = application._bound_deployment.options(autoscaling_config=None, num_replicas=2)
    application._bound_deployment = two
    serve.run(application, route_prefix="/")
    yield port
    serve.shutdown()
    ray.shutdown()


def test_streams_on_two_replicas(serving):
    from ray import serve

    frames = media.clip(24)
    with runtime.load(NANO) as engine:
        want = [result.masks for result in engine.session([runtime.Text("the red square")]).stream(frames)]

    # a session stays with its replica: two of the names are on two replicas
    one = Client(serving, "camera 0")
    assert one.started["type"] == "started"
    names = [f"camera {number}" for number in range(1, 20)]
    assert [streams_of(serving, "camera 0") for _ in range(6)] == [1] * 6
    other = next(name for name in names if streams_of(serving, name) == 0)
    two = Client(serving, other)
    assert [streams_of(serving, other) for _ in range(6)] == [1] * 6

    # a client that disappears gives its place back
    gone = Client(serving, other)
    gone.send(frames[:4])
    wait_for(lambda: streams_of(serving, other) == 2)
    gone.socket.socket.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: streams_of(serving, other) == 1)

    # one replica is killed, the other stream goes on
    for client in (one, two):
        client.send(frames[:12])
        client.receive(8)
    before = processes(b"ray::ServeReplica")
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    lost, lives = [], []
    for client in (one, two):
        try:
            client.send(frames[12:])
            client.socket.send(json.dumps({"type": "end"}))
            client.receive()
            lives.append(client)
        except Exception as error:
            lost.append(error)
    assert len(lives) == len(lost) == 1 and "close frame" in str(lost[0])
    (client,) = lives
    # tags of both sends begin at 0
    assert [result["frame"] for result in client.results] == list(range(24))
    assert all((np.stack(got) == mask).all() for got, mask in zip(client.masks(), want, strict=True))

    # another takes its place, and a stream of the same session is taken again
    wait_for(lambda: len(set(processes(b"ray::ServeReplica")) - {before[0]}) == 2)
    wait_for(lambda: serve.status().applications["default"].status == "RUNNING")
    again = [Client(serving, "camera 0"), Client(serving, other)]

    # what waits is computed and sent before the replicas end
    for client in again:
        client.send(frames)
        client.receive(1)
    serve.delete("default", _blocking=False)
    for client in again:
        client.receive()
        assert client.texts[-1]["message"] == "the server is shutting down; connect again"
        assert client.texts[-1]["done"] == 24 == len(client.results)
        assert all((np.stack(got) == mask).all() for got, mask in zip(client.masks(), want, strict=True))
