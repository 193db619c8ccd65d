"""Masks over the WebSocket are those of the runtime in the same process: sentences, clicks, concepts, many clients."""

import contextlib
import io
import threading

import numpy as np
import pytest
from PIL import Image

import runtime
from helpers import numpy_sam3
from helpers.server import masks, png
from helpers.waiting import PATIENCE, wait_until
from runtime import Box, Concept, Mask, Points, Text
from runtime.serve.client import Client

A, B = Text(tokens=[0, 5, 2]), Text(tokens=[0, 9, 7, 2])
CLICK = {"points": [[10, 8]], "labels": [1]}


def clip(seed, count=9, height=20, width=30):
    return np.random.default_rng(seed).integers(40, 255, (count, height, width, 3), dtype=np.uint8)


def results(socket):
    found = socket.until("ended")
    assert found[-1]["message"] is None
    return [message for message in found if message["type"] == "result"]


def assert_equal(messages, expected):
    assert [message["frame"] for message in messages] == [result.frame_index for result in expected]
    for message, alone in zip(messages, expected, strict=True):
        np.testing.assert_array_equal(masks(message), alone.masks)
        assert [entry["id"] for entry in message["objects"]] == list(alone.object_ids)
        np.testing.assert_array_equal([entry["box"] for entry in message["objects"]], alone.boxes)
        np.testing.assert_allclose([entry["score"] for entry in message["objects"]], alone.scores, 1e-5)


def alone(engine, prompts, frames, **options):
    with engine.session(prompts, **options) as session:
        return list(session.stream(frames))


def test_sentences(text_engine, serve):
    frames = clip(0)
    with serve(text_engine).connect() as socket:
        started = socket.start([A, B], options={"window": 3})
        assert started["type"] == "started" and len(started["prompts"]) == 2 and started["colours"][0][0] == "#"
        assert started["window"] == 3
        for number, frame in enumerate(frames):
            socket.frame(frame, f"tag {number}", time=number / 25)
        socket.send("end")
        found = results(socket)
    assert_equal(found, alone(text_engine, [A, B], frames, window=3))
    assert [(m["tag"], m["time"]) for m in found] == [(f"tag {n}", n / 25) for n in range(9)]
    assert all(m["computed"] >= 0 and m["waited"] >= 0 for m in found)


def test_several_engines_have_the_streams_in_parts(text_engine, toy, serve):
    server = serve(text_engine, others=[runtime.load(toy, max_objects=16)], max_streams=3)
    assert [scheduler.max_streams for scheduler in server.service.scheduler.schedulers] == [2, 1]
    frames = clip(0)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(server.connect()) for _ in range(3)]
        for socket in sockets:
            assert socket.start([A])["type"] == "started"
        assert [len(scheduler.streams) for scheduler in server.service.scheduler.schedulers] == [2, 1]
        assert stack.enter_context(server.connect()).start([A])["busy"]
        for socket in sockets:
            for number, frame in enumerate(frames):
                socket.frame(frame, number)
            socket.send("end")
        for socket in sockets:
            assert_equal(results(socket), alone(text_engine, [A], frames))
    status, body = server.request("/metrics")
    assert status == 200 and b'samwise_frames_total{outcome="done"} 27.0' in body


def test_what_sentences_do_not_take(text_engine, serve, caplog):
    with serve(text_engine).connect() as socket:
        socket.start([A])
        socket.frame(clip(0, 1)[0], 0, {"1": CLICK})
        assert "takes no prompts on frames" in socket.receive()["message"]
        for kind, fields in (
            ("correct", {"prompts": {"1": CLICK}}),
            ("add_concept", {"concept": "dog"}),
            ("remove_concept", {"number": 1}),
        ):
            socket.send(kind, **fields)
            answer = socket.receive()
            assert answer["type"] == "error" and "this stream cannot" in answer["message"]
        socket.send("remove", object=1)
        answer = socket.receive()
        assert answer["type"] == "error" and "object 1 is the last one" in answer["message"]
    assert "internal fault" not in caplog.text


def test_clicks_with_corrections_and_objects_that_come_and_go(click_engine, serve):
    frames, mask = clip(1, 6), np.zeros((20, 30), bool)
    mask[3:9, 5:17] = True
    size, counts = [20, 30], runtime_rle(mask)
    with click_engine.live() as live:
        expected = live.push(frames[0], {1: Points([[10, 8]], [1])})
        expected += live.push(frames[1], {7: Box((3, 3, 20, 12)), 2: Mask(mask)})
        expected.append(live.correct({1: Points([[4, 4]], [0])}))
        live.remove(7)
        expected += [live.push(frame)[0] for frame in frames[2:]]
    with serve(click_engine).connect() as socket:
        socket.start()
        socket.frame(frames[0], 0, {"1": CLICK})
        socket.frame(frames[1], 1, {"7": {"box": [3, 3, 20, 12]}, "2": {"mask": {"size": size, "counts": counts}}})
        socket.send("correct", prompts={"1": {"points": [[4, 4]], "labels": [0]}})
        socket.send("remove", object=7)
        for number, frame in enumerate(frames[2:], 2):
            socket.frame(frame, number)
        socket.send("end")
        found = results(socket)
    assert_equal(found, expected)
    assert [(m["tag"], m["corrected"]) for m in found[:4]] == [(0, False), (1, False), (1, True), (2, False)]


def runtime_rle(mask):
    from pycocotools import mask as coco

    return coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


def test_concepts_that_change(concept_engine, serve):
    frames = [numpy_sam3.picture(0, 3), numpy_sam3.picture(0, 3), numpy_sam3.picture(0, 1), numpy_sam3.picture(1)]
    red, green = Concept(tokens=[1]), Concept(tokens=[2])
    options = {"temporal_disambiguation": False}
    with concept_engine.session([red], max_objects=64, **options) as session:
        expected = session.push(frames[0])
        session.add_concept(green)
        expected += session.push(frames[1])
        expected.append(session.correct({0: Points([[3, 3]], [1])}))
        session.remove_concept(2)
        session.remove(0)
        expected += [r for frame in frames[2:] for r in session.push(frame)]
    with serve(concept_engine).connect() as socket:
        socket.start([{"concept": None, "tokens": [1]}], options=options)
        socket.frame(frames[0], 0)
        socket.send("add_concept", concept=None, tokens=[2])
        socket.frame(frames[1], 1)
        socket.send("correct", prompts={"0": {"points": [[3, 3]], "labels": [1]}})
        socket.send("remove_concept", number=2)
        socket.send("remove", object=0)
        for number, frame in enumerate(frames[2:], 2):
            socket.frame(frame, number)
        socket.send("end")
        everything = socket.until("ended")
    assert_equal([m for m in everything if m["type"] == "result"], expected)
    assert [sorted(m["concepts"]) for m in everything if m["type"] == "concepts"] == [["1", "2"], ["1"]]
    assert len(expected[0].object_ids) == 2


def test_interleaved_clients_get_the_masks_of_each_alone(text_engine, serve):
    sources = [([A], clip(0)), ([B, A], clip(1, 12)), ([A, B], clip(2, 5, 18, 24)), ([B], clip(3, 7))]
    expected, found, server = [alone(text_engine, *source) for source in sources], {}, serve(text_engine)

    def follow(index):
        prompts, frames = sources[index]
        with server.connect() as socket:
            socket.start(prompts)
            for number, frame in enumerate(frames):
                socket.frame(frame, number)
            socket.send("end")
            found[index] = results(socket)

    threads = [threading.Thread(target=follow, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for index, thread in enumerate(threads):
        thread.join(PATIENCE)
        assert_equal(found[index], expected[index])
    wait_until(lambda: not server.service.streams and not server.service.scheduler.streams)


@pytest.mark.parametrize("form", ["png", "rle", "none"])
def test_forms_of_masks(click_engine, serve, form):
    from pycocotools import mask as coco

    frame, prompts = clip(4, 1)[0], {1: Points([[10, 8]], [1]), 2: Box((3, 3, 12, 12))}
    with click_engine.live() as live:
        (expected,) = live.push(frame, prompts)
    with serve(click_engine).connect() as socket:
        started = socket.start(masks=form)
        assert started["window"] is None
        socket.frame(frame, None, {"1": CLICK, "2": {"box": [3, 3, 12, 12]}})
        message = socket.receive()
    if form == "png":
        image = Image.open(io.BytesIO(message["payload"]))
        index = np.zeros(expected.masks.shape[1:], int)
        for position, mask in enumerate(expected.masks, 1):
            index[mask] = position
        np.testing.assert_array_equal(np.asarray(image), index)
        rgba = np.asarray(image.convert("RGBA"))
        assert not rgba[index == 0, 3].any() and (rgba[index > 0, 3] == 128).all()
        assert "#" + bytes(image.getpalette()[3:6]).hex() == started["colours"][1]
    elif form == "rle":
        for entry, mask in zip(message["objects"], expected.masks, strict=True):
            np.testing.assert_array_equal(coco.decode(entry["rle"]), mask)
    assert form == "png" or message["payload"] == b""


def test_a_stream_follows_another_on_the_same_connection(text_engine, serve):
    server = serve(text_engine)
    with server.connect() as socket:
        for end in ("cancel", "end"):
            assert socket.start([A])["type"] == "started"
            assert socket.start([A])["message"].startswith("a stream is open")
            socket.frame(clip(0, 1)[0])
            socket.send(end)
            last = socket.until("ended")[-1]
            assert last["done"] == (end == "end") or end == "cancel"


def test_frames_of_another_source_that_the_server_reads(text_engine, serve, tmp_path):
    from helpers.media import write

    path = write(tmp_path / "gate.mp4", clip(5, 6, 32, 48), fps=30)
    with runtime.open_video(path) as video:
        expected = alone(text_engine, [A], list(video), window=1)
    with serve(text_engine, cameras={"gate": str(path)}).connect() as socket:
        assert "no camera of this name; cameras: gate" in socket.start([A], camera="door")["message"]
        socket.start([A], camera="gate", options={"window": 1})
        socket.frame(clip(5, 1)[0])
        found = socket.until("ended")
    assert "reads the camera" in next(m for m in found if m["type"] == "error")["message"]
    assert_equal([m for m in found if m["type"] == "result"], expected)


def test_the_client(text_engine, click_engine, serve):
    frames = clip(6, 7)
    found = list(Client(serve(text_engine).address).stream(frames, [A, B]))
    for result, expected in zip(found, alone(text_engine, [A, B], frames), strict=True):
        np.testing.assert_array_equal(result.masks, expected.masks)
        np.testing.assert_array_equal(result.scores, expected.scores)
        assert (result.object_ids, result.frame_index) == (expected.object_ids, expected.frame_index)
    client = Client(serve(click_engine).address)
    prompts = {0: {1: Points([[10, 8]], [1])}, 2: {2: [Box((3, 3, 12, 12)), Points([[5, 5]], [0])]}}
    with click_engine.live() as live:
        expected = list(live.stream(frames, prompts))
    for result, other in zip(client.stream(frames, prompts), expected, strict=True):
        np.testing.assert_array_equal(result.masks, other.masks)
    with pytest.raises(runtime.UserError, match="cannot follow sentences"):
        next(client.stream(frames, ["the red car"]))
    for _ in client.stream(frames, prompts):
        break  # the rest is not taken
    with pytest.raises(runtime.VideoError, match="no such file"):
        list(client.stream("missing.mp4", prompts))
    with pytest.raises(runtime.UserError, match="cannot be reached"):
        next(Client("http://127.0.0.1:9").stream(frames, prompts))


def test_lossy_pictures_are_upright(click_engine, serve):
    """A picture of a telephone is turned as its EXIF data says, as a file would be."""
    frame, data = clip(7, 1)[0], io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(frame).save(data, "JPEG", exif=exif)
    with serve(click_engine).connect() as socket:
        socket.start(masks="none")
        socket.frame(data.getvalue(), 0, {"1": {"points": [[19, 29]], "labels": [1]}})
        assert socket.receive()["size"] == [30, 20]
        socket.frame(png(frame), 1)
        assert "size changed" in socket.receive()["message"]
