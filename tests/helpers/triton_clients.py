"""Clients of a Triton server, run by the Python of an environment with `tritonclient` and this package.

    python triton_clients.py SCENARIO PORT OUT

PORT is that of HTTP; gRPC has the next one. OUT is a npz file for masks by sequence. What was said is printed as JSON.
"""

import io
import itertools
import json
import os
import queue
import sys
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http
from PIL import Image

import runtime
from runtime.bundle.demo import Demo

NANO = Path(__file__).resolve().parents[2] / "engines" / "nano"
FRAMES = 9
DEMO = Demo.load(NANO / "demo")
CLIP = list(itertools.islice(runtime.open_video(DEMO.clip), FRAMES + 7))
KEYS = [1, 2, 3, 4, "gate", "yard", "door", "b-4"]
TEXTS = {str(key): [DEMO.prompts[i % 3].text] * (1 + i % 2) for i, key in enumerate(KEYS)}
VIDEOS = {str(key): CLIP[i : i + FRAMES] for i, key in enumerate(KEYS)}


def start_prompts(key):
    return [{"text": text} for text in TEXTS[str(key)]]


def tensor(client, name, array, kind):
    made = client.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array)
    return made


def inputs(client, frame=None, prompts=None, encoded=None):
    made = [] if frame is None else [tensor(client, "frame", frame, "UINT8")]
    if prompts is not None:
        made.append(tensor(client, "prompts", np.array([json.dumps(prompts).encode()], np.object_), "BYTES"))
    if encoded is not None:
        made.append(tensor(client, "encoded", np.array([encoded], np.object_), "BYTES"))
    return made


def unpack(answer):
    """Masks of the results of an answer by frame."""
    lines, bits = answer.as_numpy("results"), answer.as_numpy("masks")
    found, at = {}, 0
    for result in map(json.loads, [] if lines is None else lines):
        (height, width), count = result["size"], len(result["objects"])
        nbytes = -(-height * width // 8) * count
        rows = bits[at : at + nbytes].reshape(count, -1)
        found[result["frame"]] = np.unpackbits(rows, axis=1, count=height * width).reshape(count, height, width) > 0
        at += nbytes
    return found


def alone(_, out):
    """The in-process runtime."""
    engine, masks = runtime.load(NANO, threads=1), {}
    for key, texts in TEXTS.items():
        with engine.session([runtime.Text(text) for text in texts]) as session:
            masks[key] = np.stack([result.masks for result in session.stream(VIDEOS[key])])
    np.savez(out, **masks)
    return None


def unary(client, port, out):
    """Two interleaved sequences and images on `segment`, and mistakes."""
    server = client.InferenceServerClient(f"127.0.0.1:{port}")

    def infer(*args, key=0, start=False, end=False, **given):
        return server.infer(
            "segment", inputs(client, *args, **given), sequence_id=key, sequence_start=start, sequence_end=end
        )

    masks = {"3": {}, "gate": {}}
    for number in range(FRAMES):
        for key in (3, "gate"):
            prompts = start_prompts(key) if number == 0 else None
            end = number == FRAMES - 1 and key == 3
            masks[str(key)] |= unpack(infer(VIDEOS[str(key)][number], prompts, key=key, start=number == 0, end=end))
    masks["gate"] |= unpack(infer(key="gate", end=True))  # alone
    data = io.BytesIO()
    Image.fromarray(CLIP[2]).save(data, "PNG")
    masks["image"] = unpack(infer(None, start_prompts(3), encoded=data.getvalue()))
    np.savez(out, **{key: np.stack([found[i] for i in sorted(found)]) for key, found in masks.items()})
    said = []
    for given in [
        {"frame": CLIP[0], "key": 77},  # without START
        {"key": 78, "end": True},
        {"encoded": b"GIF89a", "prompts": start_prompts(1)},
        {"frame": CLIP[0], "prompts": [{"text": ""}]},
        {"frame": CLIP[0], "prompts": {"1": {"points": [[5000, 1]], "labels": [1]}}},
        {"frame": CLIP[0], "prompts": [{"text": "a"}] * 17},
    ]:
        try:
            infer(**given)
            said.append("no error")
        except Exception as error:
            said.append(str(error))
    return said


class Streams:
    """A gRPC stream with requests of many sequences."""

    def __init__(self, port):
        self.server, self.answers = grpc.InferenceServerClient(f"127.0.0.1:{port + 1}"), queue.Queue()
        self.server.start_stream(lambda result, error: self.answers.put((result, error)))
        self.sent = 0

    def send(self, key, frame=None, prompts=None, start=False, end=False):
        self.sent += 1
        self.server.async_stream_infer(
            "segment_stream",
            inputs(grpc, frame, prompts),
            sequence_id=key,
            sequence_start=start,
            sequence_end=end,
            request_id=str(key),
            enable_empty_final_response=True,
        )

    def receive(self):
        """An answer: (sequence, masks by frame, whether it is the last one, error)."""
        result, error = self.answers.get(timeout=300)
        if error is not None:
            return None, {}, True, str(error)
        response = result.get_response()
        return response.id, unpack(result), response.parameters["triton_final_response"].bool_param, None


def stream(port, out):
    """Eight interleaved sequences, all sent at once."""
    streams, masks, said = Streams(port), {key: {} for key in TEXTS}, []
    for number in range(FRAMES):
        for key in KEYS:
            is_last = number == FRAMES - 1 and key != 2
            prompts = start_prompts(key) if number == 0 else None
            streams.send(key, VIDEOS[str(key)][number], prompts, number == 0, is_last)
    streams.send(2, end=True)  # alone
    for _ in iter(lambda: streams.sent, 0):
        key, found, is_last, error = streams.receive()
        streams.sent -= is_last
        if error is not None:
            said.append(error)
        else:
            masks[key] |= found
    np.savez(out, **{key: np.stack([found[i] for i in sorted(found)]) for key, found in masks.items() if found})
    return said


def too_many(port, _):
    """Nine of eight sequences; then one on the place of another."""
    streams = Streams(port)
    for key in range(1, 9):
        streams.send(key, CLIP[0], [{"text": DEMO.prompts[0].text}], start=True)
    streams.send(9, CLIP[0], [{"text": "a"}], start=True)
    answers = [streams.receive()]
    streams.send(9, CLIP[1])
    streams.send(55, CLIP[1])
    streams.send(56, end=True)
    answers += [streams.receive() for _ in range(3)]
    for key in range(1, 9):
        streams.send(key, end=True)
    while sum(is_last for _, _, is_last, _ in answers) < streams.sent:
        answers.append(streams.receive())
    return [sorted(error for *_, error in answers if error), sum(len(found) for _, found, _, _ in answers)]


def begin(port, _):
    """Eight sequences that never end; the process is killed."""
    streams = Streams(port)
    for key in range(101, 109):
        streams.send(key, CLIP[0], [{"text": DEMO.prompts[0].text}], start=True)
        streams.send(key, CLIP[1])
    print("begun", flush=True)
    time.sleep(600)


def idle(port, _):
    """A sequence without requests, until it is closed, and its next request."""
    streams = Streams(port)
    streams.send(5, CLIP[0], [{"text": DEMO.prompts[0].text}], start=True)
    said = [streams.receive()[3]]
    streams.send(5, CLIP[1])
    return [*said, streams.receive()[3]]


if __name__ == "__main__":
    name, port, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if name in ("http", "grpc"):
        found = unary({"http": http, "grpc": grpc}[name], port + (name == "grpc"), out)
    else:
        found = globals()[name](port, out)
    print(json.dumps(found), flush=True)
    os._exit(0)  # a stream that is open, as those here are, would be waited for
