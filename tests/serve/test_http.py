"""Pictures and whole files over HTTP, and what the server says about itself."""

import contextlib
import io
import json
import socket
import time
import urllib.parse
import zipfile

import numpy as np
import pytest
from PIL import Image

import runtime
from helpers import numpy_sam3
from helpers.media import write
from helpers.server import png
from helpers.waiting import PATIENCE, Stopwatch, wait_until
from runtime import Box, Points, Text
from runtime.cli.app import main
from runtime.serve.limits import Limits

A, B = Text(tokens=[0, 5, 2]), Text(tokens=[0, 9, 7, 2])
TOKENS = [{"tokens": [0, 5, 2]}, {"tokens": [0, 9, 7, 2]}]
CLICKS = {"1": {"points": [[10, 8]], "labels": [1]}, "4": {"box": [3, 3, 12, 12]}}
FRAME = np.random.default_rng(0).integers(40, 255, (20, 30, 3), dtype=np.uint8)


def query(path, **fields):
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    return path + "?" + urllib.parse.urlencode(texts)


def decoded(answer):
    from pycocotools import mask as coco

    return np.array([coco.decode(entry["rle"]) for entry in answer["objects"]], bool)


def test_a_picture(text_engine, click_engine, concept_engine, serve):
    status, body = serve(text_engine).request(query("/v1/image", prompts=TOKENS), png(FRAME))
    expected = text_engine.image(FRAME).refer([A, B])
    assert status == 200
    np.testing.assert_array_equal(decoded(json.loads(body)), expected.masks)
    clicks = serve(click_engine)
    with click_engine.live() as live:
        (expected,) = live.push(FRAME, {1: Points([[10, 8]], [1]), 4: Box((3, 3, 12, 12))})
    status, body = clicks.request("/v1/image", png(FRAME), **{"X-Prompts": json.dumps(CLICKS)})
    np.testing.assert_array_equal(decoded(json.loads(body)), expected.masks)
    assert [entry["id"] for entry in json.loads(body)["objects"]] == [1, 4]
    status, body = clicks.request(query("/v1/image", prompts=CLICKS, masks="png"), png(FRAME))
    index = np.asarray(Image.open(io.BytesIO(body)))
    np.testing.assert_array_equal(index == 2, expected.masks[1])
    path, picture = query("/v1/image", prompts=[{"concept": None, "tokens": [1]}]), numpy_sam3.picture(0, 3)
    found = json.loads(serve(concept_engine).request(path, png(picture))[1])
    (expected,) = concept_engine.image(picture).detect([runtime.Concept(tokens=[1])])
    np.testing.assert_array_equal(decoded(found), expected.masks)
    assert len(expected.masks) == 2


BAD = {
    "no prompt": ({}, png(FRAME), "no prompt"),
    "no picture": ({"prompts": CLICKS}, b"hello", "not a picture"),
    "not JSON": ({"prompts": "[{"}, png(FRAME), "not JSON"),
    "smuggled": ({"prompts": '[],"options":7,"x":[]'}, png(FRAME), "no prompt"),
    "options": ({"prompts": CLICKS, "options": "[]"}, png(FRAME), "options must be"),
    "masks": ({"prompts": CLICKS, "masks": "gif"}, png(FRAME), "masks must be"),
    "outside": ({"prompts": {"1": {"points": [[99, 99]], "labels": [1]}}}, png(FRAME), "lies outside"),
    "what the bundle cannot": ({"prompts": [{"text": "a car"}]}, png(FRAME), "cannot"),
    "too large": ({"prompts": CLICKS}, bytes(2 << 20), "more than 1,048,576 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_pictures_that_are_refused(click_engine, serve, name):
    fields, data, expected = BAD[name]
    status, body = serve(click_engine, Limits(message_bytes=1 << 20)).request(query("/v1/image", **fields), data)
    answer = json.loads(body)
    assert status == 422 and expected in answer["error"] and "/" not in answer["error"].replace("and/or", "")


def clip_file(folder, count=7, **options):
    frames = np.random.default_rng(3).integers(40, 255, (count, 32, 48, 3), dtype=np.uint8)
    return write(folder / "clip.mp4", frames, fps=6, **options)


def finished(server, job):
    while (state := json.loads(server.request(f"/v1/video/{job}")[1]))["state"] not in ("done", "failed"):
        time.sleep(0.02)
    return state


def upload(server, data, **fields):
    status, body = server.request(query("/v1/video", **fields), data)
    assert status == 202
    return json.loads(body)["id"]


def as_command(engine, path, out, *prompts):
    assert main(["--video", str(path), *prompts, "--out", str(out), "--no-overlay"], load=lambda *a, **k: engine) == 0
    return json.loads((out / "results.json").read_text()), {p.name: p.read_bytes() for p in (out / "masks").iterdir()}


def test_a_file_gives_the_files_of_the_command(toy, toy_sam2_bundle, serve, tmp_path):
    path = clip_file(tmp_path)
    clicks = {"0": {"1": CLICKS["1"]}, "2": {"2": CLICKS["4"]}}
    cases = [
        (toy, TOKENS, ("--tokens", "0,5,2", "--tokens", "0,9,7,2")),
        (toy_sam2_bundle, clicks, ("--point", "10,8", "--box", "3,3,12,12@2")),
    ]
    for number, (bundle, prompts, arguments) in enumerate(cases):
        server = serve(runtime.load(bundle))
        job = upload(server, path.read_bytes(), prompts=prompts)
        state = finished(server, job)
        assert (state["state"], state["done"], state["total"]) == ("done", 7, 7)
        with zipfile.ZipFile(io.BytesIO(server.request(f"/v1/video/{job}/result")[1])) as archive:
            found = json.loads(archive.read("results.json"))
            masks = {name[6:]: archive.read(name) for name in archive.namelist() if name.startswith("masks/")}
        expected, files = as_command(runtime.load(bundle), path, tmp_path / str(number), *arguments)
        assert found["frames"] == expected["frames"] and masks == files
        assert found["complete"] and found["objects"] == expected["objects"] and found["format"] == expected["format"]
        assert set(found) == set(expected) and found["video"] == {**expected["video"], "name": "the file"}
        assert str(tmp_path) not in json.dumps(found)
        assert server.request(f"/v1/video/{job}", method="DELETE")[0] == 200
        assert server.request(f"/v1/video/{job}")[0] == 404


def test_concepts_of_a_file_are_numbered_from_1(concept_engine, serve, tmp_path):
    frames = np.stack([numpy_sam3.picture(0, 3, size=(32, 48))] * 3)
    path = write(tmp_path / "clip.mp4", frames, fps=6)
    server = serve(concept_engine)
    job = upload(server, path.read_bytes(), prompts=[{"concept": None, "tokens": [1]}])
    assert finished(server, job)["done"] == 3
    with zipfile.ZipFile(io.BytesIO(server.request(f"/v1/video/{job}/result")[1])) as archive:
        found = json.loads(archive.read("results.json"))
    assert [entry["id"] for entry in found["frames"][0]["objects"]] == [1, 2]
    assert all("concept" in entry for entry in found["frames"][0]["objects"])


FILES = {
    "nothing": b"",
    "words": b"hello " * 100,
    "a playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
    "a list of files": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    "a DASH manifest": b'<?xml version="1.0"?><MPD><Period><BaseURL>file:///etc/passwd</BaseURL></Period></MPD>',
    "SDP": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "a picture": png(FRAME),
    "a GIF": b"GIF89a" + bytes(100),
    "raw": bytes(range(256)) * 40,
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_containers_of_video(click_engine, serve, name):
    server = serve(click_engine)
    state = finished(server, upload(server, FILES[name], prompts={"0": CLICKS}))
    assert state["state"] == "failed" and state["message"].startswith("the file")
    assert "/" not in state["message"] and "passwd" not in state["message"]


def test_a_movie_that_refers_to_another_file(click_engine, serve, tmp_path):
    """A QuickTime movie may name the file that has its frames."""
    data = bytearray(clip_file(tmp_path).read_bytes())
    position = data.index(b"url \0\0\0\1")
    data[position + 7] = 0  # the frames are elsewhere
    server = serve(click_engine)
    state = finished(server, upload(server, bytes(data), prompts={"0": CLICKS}))
    assert "/" not in (state["message"] or "")


def test_jobs_are_limited_private_and_expire(click_engine, serve, tmp_path):
    limits, data = Limits(videos=2, video_seconds=0.3, video_bytes=100_000), clip_file(tmp_path).read_bytes()
    server = serve(click_engine, limits, tokens=["first-token", "second-token"])
    first, second = ({"Authorization": f"Bearer {name}-token"} for name in ("first", "second"))
    path = query("/v1/video", prompts={"0": CLICKS})
    jobs = [json.loads(server.request(path, data, **first)[1])["id"] for _ in range(2)]
    status, body = server.request(path, data, **first)
    assert status == 503 and json.loads(body)["busy"]
    assert server.request(path, data, **second)[0] == 202
    assert server.request(f"/v1/video/{jobs[0]}", **second)[0] == 404
    assert server.request(f"/v1/video/{jobs[0]}/result", **second)[0] == 404
    wait_until(lambda: json.loads(server.request(f"/v1/video/{jobs[0]}", **first)[1]).get("state") in ("done", None))
    wait_until(lambda: server.request(f"/v1/video/{jobs[0]}", **first)[0] == 404)
    wait_until(lambda: server.request(f"/v1/video/{jobs[1]}", **first)[0] == 404)
    status, body = server.request(path, data * 30, **first)
    assert status == 422 and "more than 100,000 bytes" in json.loads(body)["error"]
    assert server.request(path, data, **first)[0] == 202, "a refused file takes no place"


@pytest.mark.parametrize("path", ["/v1/image", "/v1/video"])
def test_an_upload_that_stops_is_given_up(click_engine, serve, path):
    server = serve(click_engine, Limits(idle_seconds=0.5))
    given = query(path, prompts=CLICKS if path == "/v1/image" else {"0": CLICKS})
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as raw:
        raw.sendall(f"POST {given} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\nabc".encode())
        answer = raw.recv(2000)
        while b"}" not in answer and (more := raw.recv(2000)):  # headers and body may come one after the other
            answer += more
    assert answer.startswith(b"HTTP/1.1 422") and b"the upload has stopped" in answer
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(f"POST {given} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\nabc".encode())
    wait_until(lambda: server.request("/v2/health/ready")[0] == 200)


@pytest.mark.parametrize("path", ["/v1/image", "/v1/video"])
def test_an_upload_that_trickles_is_given_up(click_engine, serve, path):
    """Each byte is within the time of one, and the upload would hold its place for hours."""
    server = serve(click_engine, Limits(idle_seconds=0.5))
    given = query(path, prompts=CLICKS if path == "/v1/image" else {"0": CLICKS})
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as raw:
        raw.sendall(f"POST {given} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n".encode())
        raw.settimeout(0.1)
        watch, answer = Stopwatch(), b""
        while not answer:
            with contextlib.suppress(TimeoutError):
                answer = raw.recv(2000)
            assert watch.seconds < 5
            with contextlib.suppress(OSError):
                raw.sendall(b"x")
    assert answer.startswith(b"HTTP/1.1 422")


def test_a_job_waits_for_room(click_engine, serve, tmp_path):
    server = serve(click_engine, max_streams=1)
    with server.connect() as client:
        client.start()
        job = upload(server, clip_file(tmp_path).read_bytes(), prompts={"0": CLICKS})
        time.sleep(0.3)
        assert json.loads(server.request(f"/v1/video/{job}")[1])["state"] == "running"
    assert finished(server, job)["done"] == 7


def test_a_job_is_cancelled(click_engine, serve, tmp_path):
    server = serve(click_engine)
    job = upload(server, clip_file(tmp_path, 300).read_bytes(), prompts={"0": CLICKS})
    assert json.loads(server.request(f"/v1/video/{job}", method="DELETE")[1])["state"] == "cancelled"
    wait_until(lambda: not server.service.scheduler.streams)
    assert server.request(f"/v1/video/{job}/result")[0] == 404


def test_an_error_of_a_file_tells_no_path(click_engine, serve, tmp_path):
    server = serve(click_engine, Limits(pixels=1000))
    data = clip_file(tmp_path).read_bytes()
    state = finished(server, upload(server, data, prompts={"0": CLICKS}))
    assert state["message"] == "frames of 48x32 are too large; scale the video down"
    broken = serve(click_engine)
    state = finished(broken, upload(broken, data[: len(data) // 2], prompts={"0": CLICKS}))
    assert state["state"] == "failed" and "/" not in state["message"]


def test_what_the_server_says_about_itself(serve):
    nano = runtime.load("engines/nano", threads=1)
    server = serve(nano, cameras={"gate": "rtsp://user:secret@host/stream"})
    about = json.loads(server.request("/v1/model")[1])
    assert about["model"] == "nano" and "samwise" in about["networks"] and "text_video" in about["capabilities"]
    assert about["demonstration"][0] == "the crab in the video" and about["cameras"] == ["gate"]
    assert about["limits"]["message_bytes"] > 0 and "secret" not in json.dumps(about)
    assert server.request("/v1/demo")[1] == (nano.bundle.folder / "demo" / "clip.mp4").read_bytes()
    assert json.loads(server.request("/v2/models/nano")[1])["name"] == "nano"
    assert json.loads(server.request("/v2")[1])["version"] == runtime.__version__
    assert server.request("/v2/models/nano/ready")[0] == 200 and server.request("/v2/models/other")[0] == 404
    assert server.request("/")[1].startswith(b"<!DOCTYPE html>") or server.request("/")[1].startswith(b"<!doctype")
    assert server.request("/v1/image", method="PUT")[0] == 405
