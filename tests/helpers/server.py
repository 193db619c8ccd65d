"""A server in a thread, and a raw client of its WebSocket."""

import contextlib
import io
import json
import threading
import urllib.error
import urllib.request

import numpy as np
from PIL import Image
from websockets.sync.client import connect

import runtime
from helpers.waiting import PATIENCE, wait_until
from runtime.serve import wire
from runtime.serve.__main__ import listen
from runtime.serve.limits import Limits
from runtime.serve.service import Service
from runtime.serve.web import LOOPBACK, Server, application


class Running:
    """A server that runs."""

    def __init__(self, engine, limits=None, hosts=LOOPBACK, origins=(), port=0, **options):
        self.engine, self.limits = engine, limits or Limits()
        self.service = Service(engine, self.limits, **options)
        app = application(self.service, hosts, origins)
        self.server, listener = Server(app, self.service, log_config=None), listen("127.0.0.1", port)
        self.port = listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started)
        self.address = f"http://127.0.0.1:{self.port}"

    def connect(self, **options):
        options = {"compression": None, "max_size": None, "ping_interval": None, "open_timeout": PATIENCE, **options}
        return Socket(connect(f"ws://127.0.0.1:{self.port}/v1/stream", **options))

    def request(self, path, data=None, method=None, **headers):
        """Return status and body."""
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        with contextlib.closing(self._open(request)) as answer:
            return answer.status, answer.read()

    @staticmethod
    def _open(request):
        try:
            return urllib.request.urlopen(request, timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            return error

    def close(self):
        self.server.force_exit = self.server.should_exit = True
        self.thread.join(PATIENCE)
        self.service.close()


class Socket:
    """A WebSocket that speaks the protocol."""

    def __init__(self, socket):
        self.raw = socket.__enter__()  # `connect` of newer versions connects only then

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.raw.close()

    def send(self, kind, **fields):
        self.raw.send(json.dumps({"type": kind, **fields}))

    def start(self, prompts=(), **fields):
        """Start a stream and return the answer."""
        self.send("start", prompts=[as_json(p) for p in prompts], **{"masks": "bits", **fields})
        return self.receive()

    def frame(self, image, tag=None, prompts=None, **fields):
        data = image if isinstance(image, bytes) else png(image)
        self.raw.send(wire.pack({"type": "frame", "tag": tag, "prompts": prompts, **fields}, data))

    def receive(self, timeout=PATIENCE):
        """Return the next message; of a result, the header with `payload`."""
        message = self.raw.recv(timeout)
        if isinstance(message, str):
            return json.loads(message)
        length = int.from_bytes(message[:4], "big")
        return json.loads(message[4 : 4 + length]) | {"payload": message[4 + length :]}

    def until(self, kind):
        """Return all messages up to one of this type."""
        found = [self.receive()]
        while found[-1]["type"] != kind:
            found.append(self.receive())
        return found


def as_json(prompt):
    if isinstance(prompt, dict):
        return prompt
    if isinstance(prompt, runtime.Concept):
        return {"concept": prompt.text, "tokens": prompt.tokens}
    return {"tokens": prompt.tokens} if prompt.text is None else {"text": prompt.text}


def png(image):
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def masks(message):
    """Return the masks of a result with packed bits."""
    height, width = message["size"]
    bits = np.frombuffer(message["payload"], np.uint8).reshape(len(message["objects"]), -(-height * width // 8))
    return np.unpackbits(bits, axis=1, count=height * width).reshape(-1, height, width).astype(bool)
