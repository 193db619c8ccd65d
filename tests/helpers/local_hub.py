"""A server that answers as the Hugging Face Hub does, and as plain file servers do, and can be told to fail."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub:
    """Repositories are `files[owner/name][file] = bytes`; other addresses are `plain[path] = bytes`.

    silent     connections end without an answer
    ranges     a part of a file can be asked for
    gated      repositories that ask for consent
    cut_after  bytes after which the next download ends; None: no end
    altered    files that are sent with other bytes than their hash says
    requests   method, path and Range of each request
    """

    def __init__(self):
        self.reset()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def reset(self, files=None, plain=None):
        """Serve these files, with no fault."""
        self.files, self.plain = files or {}, plain or {}
        self.gated, self.altered, self.cut_after, self.requests = set(), set(), None, []
        self.ranges, self.silent = True, False

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        if self.hub.silent:
            self.close_connection = True
            return None
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if path in self.hub.plain:
            kind = "text/html" if self.hub.plain[path].startswith(b"<") else "application/octet-stream"
            return self.send_file(self.hub.plain[path], {"Content-Type": kind}, body)
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repository, rest = "/".join(parts[:2]), parts[2:]
        files = self.hub.files.get(repository)
        if files is None:
            return self.send(401 if api else 404, {"X-Error-Code": "RepoNotFound"}, b"{}", body)
        if repository in self.hub.gated and not (api and rest[:1] == ["revision"]):
            return self.send(403, {"X-Error-Code": "GatedRepo"}, b"{}", body)
        if api:
            return self.send(
                200, {"Content-Type": "application/json"}, json.dumps(self.listing(files, rest)).encode(), body
            )
        name = "/".join(rest[2:])  # resolve/<revision>/<file>
        if name not in files:
            return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"", body)
        digest = hashlib.sha256(files[name]).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "X-Linked-ETag": f'"{digest}"'}
        headers["X-Linked-Size"] = str(len(files[name]))
        data = files[name][:-1] + b"!" if name in self.hub.altered else files[name]
        return self.send_file(data, headers, body)

    def listing(self, files, rest):
        if rest[:1] == ["tree"]:
            return [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
        siblings = [{"rfilename": name} for name in files]
        return {"id": "repository", "sha": COMMIT, "siblings": siblings, "private": False, "gated": False}

    def send_file(self, data, headers, body):
        asked, status = self.headers.get("Range"), 200
        if asked and self.hub.ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(data)
            if start >= len(data):
                return self.send(416, {"Content-Range": f"bytes */{len(data)}"}, b"", body)
            headers |= {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
            data, status = data[start:end], 206
        self.send(status, headers, data, body)

    def send(self, status, headers, data, body):
        self.send_response(status)
        for name, value in ({"Content-Type": "application/octet-stream"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return
        if self.hub.cut_after is not None and len(data) > self.hub.cut_after:
            data, self.hub.cut_after, self.close_connection = data[: self.hub.cut_after], None, True
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def log_message(self, *_):
        pass
