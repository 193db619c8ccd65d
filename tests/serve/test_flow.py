"""Clients that go, stall or wait; quotas; faults; health; the end."""

import contextlib
import gc
import signal
import socket as sockets
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

import runtime
from helpers import numpy_sam3
from helpers.server import png
from helpers.waiting import PATIENCE, Stopwatch, wait_until
from runtime.serve.limits import Limits

CLICK = {"1": {"points": [[10, 8]], "labels": [1]}}
FRAME = np.full((20, 30, 3), 80, np.uint8)
GOOD = png(FRAME)


class Gate:
    """A stage that waits where it is closed, or fails."""

    def __init__(self, stage):
        self.stage, self.spec = stage, stage.spec
        self.open, self.entered, self.error = threading.Event(), threading.Event(), None
        self.open.set()

    def run(self, **arrays):
        self.entered.set()
        assert self.open.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        self.stage.run(**arrays)


@pytest.fixture
def gated(toy_sam2_bundle):
    """An engine whose image encoder can be stopped, and the gate."""
    engine, gates = runtime.load(toy_sam2_bundle, max_objects=8), {}
    engine.instrument(lambda stage: gates.setdefault(stage.spec.name, Gate(stage)))
    yield engine, gates["image_encoder"]
    gates["image_encoder"].open.set()


def vanish(socket, kind):
    """Close a connection as the kernel does when its process is killed: with unread data by a reset, else by FIN."""
    raw = socket.raw.socket
    if kind == "reset":
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    raw.shutdown(sockets.SHUT_RDWR) if kind == "fin" else None
    raw.close()


@pytest.mark.parametrize("kind", ["fin", "reset"])
@pytest.mark.parametrize("frames", [1, 60])
def test_a_client_that_disappears_frees_its_place_within_a_second(gated, serve, kind, frames):
    """Also while the server waits for room and reads nothing: 60 frames do not fit, because the engine stands still."""
    engine, gate = gated
    server = serve(engine, Limits(pending=4))
    socket = server.connect()
    socket.start()
    gate.open.clear()
    for number in range(frames):
        socket.frame(GOOD, number, CLICK)
    assert gate.entered.wait(PATIENCE)
    time.sleep(0.2)
    vanish(socket, kind)
    watch = Stopwatch()
    wait_until(lambda: not server.service.streams)
    assert watch.seconds < 1.5
    gate.open.set()
    wait_until(lambda: not server.service.scheduler.streams)
    assert engine.networks.prompt_video and server.request("/v2/health/live")[0] == 200


def test_a_client_that_disappears_while_its_stream_is_opened(gated, serve):
    engine, gate = gated
    server = serve(engine)
    with server.connect() as first:
        first.start()
        gate.open.clear()
        first.frame(GOOD, 0, CLICK)
        assert gate.entered.wait(PATIENCE)
        second = server.connect()
        second.send("start")
        wait_until(lambda: len(server.service.streams) == 2)
        vanish(second, "fin")
        watch = Stopwatch()
        wait_until(lambda: len(server.service.streams) == 1)
        assert watch.seconds < 2
        gate.open.set()
        first.receive()
        wait_until(lambda: len(server.service.scheduler.streams) == 1)


def test_a_slow_reader_is_held_and_then_cut(gated, serve):
    engine, _ = gated
    server = serve(engine, Limits(results=3, idle_seconds=2))
    frame = png(np.full((800, 1200, 3), 80, np.uint8))
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 8192)
    raw.connect(("127.0.0.1", server.port))
    with server.connect(sock=raw, max_queue=1, close_timeout=0.1) as socket:
        socket.start(masks="bits")
        (client,) = server.service.streams
        sent = threading.Thread(target=lambda: send_all(socket, frame, 60), daemon=True)
        sent.start()
        wait_until(lambda: client.is_held)
        done = client.stream.num_done
        time.sleep(0.3)
        assert client.stream.num_done <= done + 1 and len(client._outbox._items) <= 5
        wait_until(lambda: not server.service.streams)


def send_all(socket, frame, count):
    prompts = {str(obj): {"box": [1, 1, 15, 15]} for obj in range(8)}
    with contextlib.suppress(ConnectionClosed, OSError):
        for number in range(count):
            socket.frame(frame, number, None if number else prompts)


def test_a_reader_that_stalls_for_a_while_loses_nothing(click_engine, serve):
    server = serve(click_engine, Limits(results=2, pending=3))
    with server.connect() as socket:
        socket.start()
        sender = threading.Thread(target=lambda: send_all(socket, GOOD, 80))
        sender.start()
        for number in range(80):
            if number % 20 == 5:
                time.sleep(0.15)
            assert socket.receive()["tag"] == number
        sender.join()


def test_the_latest_frames_are_kept_and_drops_are_told(gated, serve):
    engine, gate = gated
    with serve(engine, Limits(pending=2, results=64)).connect() as socket:
        socket.start(keep="latest")
        gate.open.clear()
        socket.frame(GOOD, 0, CLICK)
        assert gate.entered.wait(PATIENCE)
        for number in range(1, 9):
            socket.frame(GOOD, number, {"2": {"box": [2, 2, 9, 9]}} if number == 3 else None)
        time.sleep(0.5)
        gate.open.set()
        socket.send("end")
        found = socket.until("ended")
    tags = {kind: [m["tag"] for m in found if m["type"] == kind] for kind in ("result", "dropped")}
    assert tags == {"result": [0, 3, 8], "dropped": [1, 2, 4, 5, 6, 7]}
    assert {name: found[-1][name] for name in ("done", "dropped", "failed")} == {"done": 3, "dropped": 6, "failed": 0}


def test_frames_larger_than_the_bound_in_bytes_do_not_stop_a_clip(text_engine, serve):
    """One frame waits at a time, and a clip of four needs four before there is a result."""
    with serve(text_engine, Limits(pending_bytes=10)).connect() as socket:
        socket.start([runtime.Text(tokens=[0, 5, 2])])
        for number in range(6):
            socket.frame(GOOD, number)
        socket.send("end")
        assert [m["tag"] for m in socket.until("ended")[:-1]] == list(range(6))


@pytest.mark.parametrize("kind", ["end", "cancel", "gone"])
def test_the_memory_of_a_stream_is_free_when_it_ends(click_engine, serve, kind):
    """Whether its connection lives or not, and without the garbage collector."""
    server = serve(click_engine)
    gc.disable()
    try:
        with server.connect(close_timeout=0.1) as socket:
            socket.start()
            socket.frame(GOOD, 0, CLICK)
            socket.receive()
            session = weakref.ref(next(iter(server.service.streams)).stream._session)
            assert session() is not None
            watch = Stopwatch()
            vanish(socket, "fin") if kind == "gone" else socket.send(kind)
            wait_until(lambda: session() is None)
            assert watch.seconds < 5
            if kind != "gone":
                assert socket.receive()["type"] == "ended" and socket.start()["type"] == "started"
    finally:
        gc.enable()


@pytest.mark.parametrize("then", ["frame", "correct", "remove", "end"])
def test_what_comes_when_the_stream_has_just_ended_is_told_in_one_line(gated, serve, caplog, then):
    engine, gate = gated
    with serve(engine).connect() as socket:
        for _ in range(8):
            socket.start()
            gate.open.clear()
            socket.frame(GOOD, 0, CLICK)
            assert gate.entered.wait(PATIENCE)
            gate.entered.clear()
            socket.send("cancel")
            gate.open.set()
            if then == "frame":
                socket.frame(GOOD, 1)
            else:
                socket.send(
                    then, **({"prompts": CLICK} if then == "correct" else {"object": 1} if then == "remove" else {})
                )
            found = socket.until("ended")
            assert not [message for message in found if "fault" in str(message.get("message"))]
            socket.send("start", prompts=7)  # its answer comes after all others
            while "prompts must be a list" not in str(socket.receive().get("message")):
                pass
    assert "internal fault" not in caplog.text


# -- quotas -----------------------------------------------------------------------------------------------------------


def test_a_token_is_needed(click_engine, serve):
    server = serve(click_engine, Limits(streams=2), tokens=["first-token", "second-token"])
    assert server.request("/")[0] == server.request("/v2/health/ready")[0] == 200
    for path in ("/v1/model", "/metrics", "/v1/video/x"):
        assert server.request(path)[0] == 401 == server.request(path, Authorization="Bearer first-toke")[0]
    assert server.request("/v1/image", GOOD)[0] == 401
    assert server.request("/v1/model", Authorization="Bearer first-token")[0] == 200
    with pytest.raises(InvalidStatus):
        server.connect(additional_headers={"Authorization": "Bearer guess"})
    with server.connect(additional_headers={"Authorization": "Bearer second-token"}) as socket:
        assert socket.start()["type"] == "started"
    with server.connect() as socket:
        assert socket.start(token="first-token")["type"] == "started"
    for attempt in ({"token": "guess"}, {"token": ["first-token"]}, {}):
        with server.connect() as socket:
            assert "a token is needed" in socket.start(**attempt)["message"]
            with pytest.raises(ConnectionClosed):
                socket.receive()
    with serve(click_engine, Limits(head_seconds=0.5), tokens=["first-token"]).connect() as stranger:
        answer, watch = "", Stopwatch()
        while not answer.startswith("no token for 0.5 s"):
            with contextlib.suppress(ConnectionClosed):
                stranger.send("end")
            answer = stranger.receive()["message"]
            time.sleep(0.05)
        assert watch.seconds < 3


def test_streams_of_a_token_and_of_all(click_engine, serve):
    server = serve(click_engine, Limits(streams=2), tokens=["first-token", "second-token"], max_streams=3)
    sockets = [server.connect() for _ in range(4)]
    tokens = ["first-token"] * 3 + ["second-token"]
    answers = [socket.start(token=token) for socket, token in zip(sockets, tokens, strict=True)]
    assert [answer["type"] for answer in answers] == ["started", "started", "error", "started"]
    assert answers[2]["busy"] and "this token has 2 streams" in answers[2]["message"]
    with server.connect() as fifth:
        answer = fifth.start(token="second-token")
        assert answer["busy"] and "all 3 streams" in answer["message"]
        sockets[0].raw.close()
        wait_until(lambda: len(server.service.scheduler.streams) == 2)
        assert fifth.start(token="second-token")["type"] == "started"
    for socket in sockets:
        socket.raw.close()


def test_frames_beyond_the_rate_wait(click_engine, serve):
    with serve(click_engine, Limits(frames_per_second=20)).connect() as socket:
        socket.start(masks="none")
        watch, started = Stopwatch(), time.monotonic()
        for number in range(32):
            socket.frame(GOOD, number, CLICK if number == 0 else None)
        for number in range(32):
            assert socket.receive()["tag"] == number
        assert time.monotonic() - started > 0.4 and watch.seconds < 5


def test_idle_and_long_connections_end(click_engine, serve):
    server = serve(click_engine, Limits(idle_seconds=0.6, session_seconds=1.2))
    with server.connect() as idle:
        idle.start()
        assert "no message for 0.6 s" in idle.receive()["message"]
    with server.connect() as long:
        long.start()
        for number in range(8):
            long.frame(GOOD, number)
            assert long.receive()["tag"] == number
            time.sleep(0.1)
        assert long.receive()["message"] == "connected for 1.2 s; connect again"
    wait_until(lambda: not server.service.streams)


@pytest.mark.parametrize("more", [0, 3])
def test_who_waits_for_the_engine_is_not_idle(gated, serve, more):
    engine, gate = gated
    with serve(engine, Limits(idle_seconds=0.4)).connect() as socket:
        socket.start()
        gate.open.clear()
        for number in range(1 + more):
            socket.frame(GOOD, number, CLICK)
        socket.send("end")
        assert gate.entered.wait(PATIENCE)
        time.sleep(1)
        gate.open.set()
        assert socket.until("ended")[-1]["done"] == 1 + more


def test_connections_are_limited(click_engine, serve):
    server = serve(click_engine, Limits(connections=3))
    held = [server.connect() for _ in range(3)]
    with pytest.raises(InvalidStatus):
        server.connect()
    assert server.request("/v2/health/live")[0] == 200, "requests have room of their own"
    for socket in held:
        socket.raw.close()
    wait_until(lambda: not server.service.open_connections)
    server.connect().raw.close()


# -- faults and health ------------------------------------------------------------------------------------------------


def test_a_fault_has_an_id_and_its_traceback_is_in_the_log(gated, serve, caplog):
    engine, gate = gated
    server = serve(engine)
    with server.connect() as socket:
        socket.start()
        gate.error = RuntimeError("/secret/path is broken")
        socket.frame(GOOD, 0, CLICK)
        message = socket.receive()["message"]
        assert message.startswith("internal fault, id ") and "secret" not in message
        assert message.rpartition(" ")[2] in caplog.text and "/secret/path is broken" in caplog.text
        assert server.request("/v2/health/ready")[0] == 503
        gate.error = None
        server.service._probed = -100.0
        assert server.request("/v2/health/ready")[0] == 200, "a real inference went well"


def test_live_tells_that_the_engine_stands_still(gated, serve):
    engine, gate = gated
    server = serve(engine, Limits(stuck_seconds=0.3))
    with server.connect() as socket:
        socket.start()
        gate.open.clear()
        socket.frame(GOOD, 0, CLICK)
        assert server.request("/v2/health/live")[0] == 200
        wait_until(lambda: server.request("/v2/health/live")[0] == 503)
        assert server.request("/v2/health/ready")[0] == 503
        gate.open.set()
        socket.receive()
        assert server.request("/v2/health/live")[0] == server.request("/v2/health/ready")[0] == 200


def test_health_is_quick_under_load(click_engine, serve):
    server, is_over, seconds = serve(click_engine), threading.Event(), []

    def follow():
        with server.connect() as socket:
            socket.start()
            while not is_over.is_set():
                socket.frame(GOOD, 0, CLICK)
                socket.receive()

    threads = [threading.Thread(target=follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        watch = Stopwatch()
        assert server.request("/v2/health/live")[0] == 200
        seconds.append(watch.seconds)
    is_over.set()
    for thread in threads:
        thread.join()
    assert sorted(seconds)[37] < 0.5, "a busy machine; docs/guides/serving.md has what is measured on a quiet one"


def test_small_answers_do_not_wait_for_acknowledgements(click_engine, serve):
    """The kernel would hold the body of an answer back for 40 ms, until the client acknowledges its head."""
    server = serve(click_engine)
    with server.connect():
        (protocol,) = server.server.server_state.connections
        raw = protocol.transport.get_extra_info("socket")
        assert raw.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY)


def test_metrics_of_batches(text_engine, serve):
    server = serve(text_engine)
    with server.connect() as socket:
        socket.start([runtime.Text(tokens=[0, 5, 2])])
        for number in range(4):
            socket.frame(GOOD, number)
        socket.send("end")
        socket.until("ended")
    lines = server.request("/metrics")[1].decode().splitlines()
    assert "samwise_batch_size_count 4.0" in lines and 'samwise_batch_size_bucket{le="1"} 4.0' in lines


def test_metrics(click_engine, serve):
    server = serve(click_engine)
    with server.connect() as socket:
        socket.start()
        socket.frame(GOOD, 0, CLICK)
        socket.receive()
        socket.frame(b"no picture", 1)
        socket.receive()
        text = server.request("/metrics")[1].decode()
    for line in (
        "samwise_streams 1.0",
        "samwise_objects 1.0",
        'samwise_frames_total{outcome="done"} 1.0',
        'samwise_frames_total{outcome="refused"} 1.0',
        'samwise_frame_seconds_count{part="compute"} 1.0',
        'samwise_frame_seconds_count{part="encode"} 1.0',
        'samwise_stage_seconds_total{stage="image_encoder"}',
    ):
        assert line in text
    assert "samwise_streams 0.0" in server.request("/metrics")[1].decode()


def families(server):
    """Types of the metrics by name, and values by name and labels."""
    lines = server.request("/metrics")[1].decode().splitlines()
    types = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE"))
    return types, dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_names_and_types_of_metrics(click_engine, serve):
    types, _ = families(serve(click_engine))
    counters = ("samwise_frames_total", "samwise_stage_seconds_total", "samwise_refused_total")
    gauges = ("samwise_streams", "samwise_objects", "samwise_pool_rows")
    for kind, names in (
        ("counter", counters),
        ("gauge", gauges),
        ("histogram", ("samwise_frame_seconds", "samwise_batch_size")),
    ):
        for name in names:
            assert types.pop(name) == kind
            assert f"`{name}" in Path("docs/guides/serving.md").read_text()
    assert not {name for name in types if not name.endswith("_created")}


@pytest.mark.parametrize("kind", ["sentences", "clicks", "concepts"])
def test_rows_of_the_object_memory(text_engine, click_engine, concept_engine, toy, serve, kind):
    engine, prompts = {
        "sentences": (text_engine, [runtime.Text(tokens=[0, 5, 2]), runtime.Text(tokens=[0, 9, 2])]),
        "clicks": (click_engine, ()),
        "concepts": (concept_engine, [runtime.Concept(tokens=[1])]),
    }[kind]
    server = serve(engine, others=[runtime.load(toy, max_objects=16)] if kind == "sentences" else ())
    frame = numpy_sam3.picture(0, 3) if kind == "concepts" else FRAME
    clicks = {"1": CLICK["1"], "2": {"box": [2, 2, 9, 9]}} if kind == "clicks" else None

    def rows():
        values = families(server)[1]
        return [int(float(values[f'samwise_pool_rows{{state="{state}"}}'])) for state in ("used", "free")]

    options = {"sentences": {"window": 1}, "clicks": {}, "concepts": {"temporal_disambiguation": False}}[kind]
    with server.connect() as socket:
        socket.start(prompts, options=options)
        socket.frame(frame, 0, clicks)
        socket.receive()
        used, free = rows()
        assert used == 2 and used + free == {"sentences": 32, "clicks": 16, "concepts": 1 << 16}[kind]
    wait_until(lambda: rows() == [0, used + free])


# -- the end ----------------------------------------------------------------------------------------------------------


def test_what_waits_is_delivered_at_sigterm(gated, serve):
    engine, gate = gated
    server = serve(engine)
    with server.connect() as socket, server.connect() as other:
        socket.start()
        gate.open.clear()
        for number in range(9):
            socket.frame(GOOD, number, CLICK if number == 0 else None)
        assert gate.entered.wait(PATIENCE)
        wait_until(lambda: sum(stream.num_waiting for stream in server.service.scheduler.streams) == 8)
        server.server.handle_exit(signal.SIGTERM, None)
        assert server.request("/v2/health/ready")[0] == 503 and server.request("/v2/health/live")[0] == 200
        assert other.start()["busy"]
        gate.open.set()
        assert [socket.receive()["tag"] for _ in range(9)] == list(range(9))
        ended = socket.receive()
        assert ended["done"] == 9 and "shutting down" in ended["message"]
        with pytest.raises(ConnectionClosed) as closed:
            socket.until("never")
        assert closed.value.rcvd.code == 1012
    server.thread.join(PATIENCE)
    assert not server.thread.is_alive()


def test_a_second_signal_ends_at_once(gated, serve):
    engine, gate = gated
    server = serve(engine)
    with server.connect() as socket:
        socket.start()
        gate.open.clear()
        socket.frame(GOOD, 0, CLICK)
        assert gate.entered.wait(PATIENCE)
        server.server.handle_exit(signal.SIGTERM, None)
        time.sleep(0.3)
        assert server.thread.is_alive()
        server.server.handle_exit(signal.SIGTERM, None)
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()
        gate.open.set()
