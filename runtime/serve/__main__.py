"""The command `python -m runtime.serve`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import ssl
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..backends.autotune import num_cores
from ..cli.args import Parser, add_engine, positive
from ..engine import Engine, load
from ..errors import SamwiseRuntimeError, UserError, fail, summarize

CPU_ENGINES, SMALL_BYTES = 2, 1 << 30
"""Engines on a CPU unless told otherwise, and below which size of a bundle; measured on two cores."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until a signal; return the exit code."""
    try:
        return _serve(_parser().parse_args(argv))
    except SamwiseRuntimeError as error:
        return fail(error)


def _parser() -> Parser:
    parser = Parser(prog="python -m runtime.serve", description="Serve a bundle: a page, streams, pictures, files.")
    add_engine(parser)
    add = parser.add_argument
    engines = "engines, each with its part of the streams and of the cores (default: 2 on a CPU, else 1)"
    add("--engines", type=positive, metavar="N", help=engines)
    add("--max-streams", type=positive, default=8, metavar="N", help="streams at a time (default: 8)")
    add(
        "--max-objects",
        type=positive,
        default=64,
        metavar="N",
        help="objects at a time, over all streams (default: 64)",
    )
    warm = "on a GPU, run synthetic frames before listening, so that the first frames are as fast as later ones"
    add("--warm", action="store_true", help=warm)
    add("--host", default="127.0.0.1", help="address to listen on; another than this machine needs --token-file")
    add("--port", type=int, default=8000, help="port (default: 8000)")
    add("--token-file", type=Path, metavar="FILE", help="file of tokens, one a line: who has none is refused")
    add(
        "--origin", action="append", default=[], help="address of another page that may use the server; repeat for more"
    )
    camera = "a camera that clients may name: a number, a file or an address; repeat for more"
    add("--camera", action="append", default=[], metavar="NAME=SOURCE", help=camera)
    add("--tls-cert", metavar="FILE", help="certificate in PEM, for https")
    add("--tls-key", metavar="FILE", help="its key")
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="(default: info)")
    return parser


def _serve(args: argparse.Namespace) -> int:
    try:
        from .service import Service, read_tokens
        from .web import LOOPBACK, Server, application
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install 'samwise-runtime[serve]'") from None
    tokens = read_tokens(args.token_file) if args.token_file is not None else []
    is_local = args.host in LOOPBACK
    if not is_local and not tokens:
        raise UserError(f"--host {args.host} lets other machines in: give --token-file FILE with a token in it")
    tls = _tls(args.tls_cert, args.tls_key) if args.tls_cert or args.tls_key else {}
    cameras = dict(_camera(text) for text in args.camera)
    listener = listen(args.host, args.port)
    logging.basicConfig(level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(1e-3)  # of 5 ms by default, for which the event loop would wait for threads that compute
    with contextlib.ExitStack() as stack:
        engine, *others = (stack.enter_context(one) for one in _engines(args))
        service = Service(engine, tokens=tokens, cameras=cameras, max_streams=args.max_streams, others=others)
        try:
            service.probe()
            app = application(service, LOOPBACK if is_local else (), args.origin)
            scheme, port = "https" if tls else "http", listener.getsockname()[1]
            print(f"{engine.bundle.name}: {scheme}://{args.host}:{port}", file=sys.stderr, flush=True)
            Server(app, service, log_config=None, access_log=args.log_level == "debug", **tls).run([listener])
        finally:
            service.close()
    return 0


def _engines(args: argparse.Namespace) -> Iterator[Engine]:
    """Load the engines; without `--threads` they share the cores.

    On a CPU two engines of half the cores finish more frames than one of all, but those of one stream later.
    """
    number = args.engines or max(1, min(CPU_ENGINES, num_cores(), args.max_streams))
    threads = args.threads or (None if number == 1 else max(1, num_cores() // number))
    first = load(args.engine, args.model, args.backend, threads, args.max_objects, warm=args.warm)
    yield first
    folder, files = first.bundle.folder, first.bundle.manifest.files
    is_small = (
        first.backend.device.name == "cpu" and sum((folder / file).stat().st_size for file in files) < SMALL_BYTES
    )
    for _ in range(number - 1 if args.engines or is_small else 0):
        yield load(args.engine, args.model, args.backend, threads, args.max_objects, verify=False, warm=args.warm)


def _tls(cert: str | None, key: str | None) -> dict[str, Any]:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert or "", key or "", password="")  # never ask for it
    except OSError as error:
        cause = summarize(error)
        raise UserError(f"--tls-cert and --tls-key name a certificate and its key in PEM, both ({cause})") from None
    return {"ssl_certfile": cert, "ssl_keyfile": key}


def listen(host: str, port: int) -> socket.socket:
    """Open the socket of the server. Raises UserError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}, port {port}: cannot listen ({summarize(error)}); choose another --port") from None


def _camera(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not (name and equals and source):
        raise UserError(f"--camera {text}: write NAME=SOURCE, like gate=rtsp://host/stream")
    return name, source


if __name__ == "__main__":
    sys.exit(main())
