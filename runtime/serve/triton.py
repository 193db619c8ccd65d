"""The command `python -m runtime.serve.triton`: a model repository for Triton Inference Server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..bundle.bundle import choose
from ..cli.args import Parser, add_engine, positive
from ..errors import InternalError, SamwiseRuntimeError, UserError, fail, summarize

CONFIG = """# written by python -m runtime.serve.triton
name: "{name}"
backend: "python"
max_batch_size: 0
input [
  {{ name: "frame" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] optional: true }},
  {{ name: "encoded" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "prompts" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [
  {{ name: "results" data_type: TYPE_STRING dims: [ -1 ] }},
  {{ name: "masks" data_type: TYPE_UINT8 dims: [ -1 ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]  # one engine; it chooses its device itself
parameters [
{parameters}
]
"""
SEQUENCES = """model_transaction_policy {{ decoupled: true }}
sequence_batching {{
  max_sequence_idle_microseconds: {idle}
  # Triton lets sequences beyond this number wait; the model refuses those beyond its own, at once
  oldest {{ max_candidate_sequences: 4096 }}
  # an input that is always there, for requests without any
  control_input [ {{ name: "START" control [ {{ kind: CONTROL_SEQUENCE_START bool_false_true: [ false, true ] }} ] }} ]
}}
"""
SCRIPT = '''"""Model `{name}` of Triton."""

from runtime.serve.triton_model import {model} as TritonPythonModel  # noqa: F401
'''
MODELS = {"segment_stream": "SegmentStream", "segment": "Segment"}
PROBES = ('[{"text": "a thing"}]', '{"1": {"points": [[32, 32]], "labels": [1]}}', '[{"concept": "thing"}]')
"""Prompts of which every bundle takes one."""


def write(out: Path, parameters: dict[str, str], idle: float) -> None:
    """Write the repository. Raises UserError."""
    entries = {**parameters, "idle": str(idle), "FORCE_CPU_ONLY_INPUT_TENSORS": "yes"}
    lines = [f'  {{ key: "{k}" value: {{ string_value: {json.dumps(v)} }} }}' for k, v in entries.items()]
    for name, model in MODELS.items():
        config = CONFIG.format(name=name, parameters=",\n".join(lines))
        config += SEQUENCES.format(idle=round(idle * 1e6)) if name == "segment_stream" else ""
        script = SCRIPT.format(name=name, model=model)
        try:
            (out / name / "1").mkdir(parents=True, exist_ok=True)
            (out / name / "config.pbtxt").write_text(config, encoding="utf-8")
            (out / name / "1" / "model.py").write_text(script, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out {out}: {summarize(error)}") from None


def run(out: Path, host: str, port: int) -> int:
    """Run the server until it ends, and return its exit code. SIGINT and SIGTERM end it."""
    with tempfile.TemporaryDirectory() as scratch:
        command, environment = _server(Path(scratch))
        for kind, number in (("http", port), ("grpc", port + 1), ("metrics", port + 2)):
            command += [f"--{kind}-address={host}", f"--{kind}-port={number}"]
        command += ["--disable-auto-complete-config", f"--model-repository={out}"]
        started: list[subprocess.Popen[bytes]] = []
        signals: list[int] = []

        def end(number: int, _: object) -> None:
            signals.append(number)
            for process in started:
                process.terminate()

        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, end)
        started.append(subprocess.Popen(command, env=environment))
        if signals:  # one that came meanwhile
            started[0].terminate()
        return started[0].wait()


def _server(scratch: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command of the server that is installed, and its environment. Raises UserError."""
    # its python processes run the first interpreter of PATH
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    if (found := shutil.which("tritonserver")) is not None:
        return [found], environment
    wheel = find_spec("pytriton")
    if wheel is None or wheel.origin is None:
        raise UserError("tritonserver is not in PATH; install it, or in an environment of its own nvidia-pytriton")
    package = Path(wheel.origin).parent
    backend = shutil.copytree(package / "tritonserver" / "backends" / "python", scratch / "python")
    stubs, version = (
        package / "tritonserver" / "python_backend_stubs",
        f"{sys.version_info.major}.{sys.version_info.minor}",
    )
    shutil.copy2(stubs / version / "triton_python_backend_stub", backend)
    # a stub that was moved does not find its libraries
    libraries = [sysconfig.get_config_var("LIBDIR"), str(package.parent / "nvidia_pytriton.libs")]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")])
    return [str(package / "tritonserver" / "bin" / "tritonserver"), f"--backend-directory={scratch}"], environment


def probe(address: str) -> None:
    """Infer on one frame: a server whose model's process is dead still says that it is ready. Raises InternalError."""
    frame = {"name": "frame", "datatype": "UINT8", "shape": [64, 64, 3], "data": [90] * 64 * 64 * 3}
    for prompts in PROBES:
        text = {"name": "prompts", "datatype": "BYTES", "shape": [1], "data": [prompts]}
        body = json.dumps({"inputs": [frame, text], "outputs": [{"name": "results"}]}).encode()
        try:
            with urllib.request.urlopen(f"{address.rstrip('/')}/v2/models/segment/infer", body, 60) as answer:
                json.loads(json.load(answer)["outputs"][0]["data"][0])
                return
        except urllib.error.HTTPError as error:
            reason = summarize(error.read().decode(errors="replace"))
        except (OSError, ValueError, LookupError) as error:
            reason = summarize(error)
    raise InternalError(f"{address} does not infer: {reason}")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the repository, and run or probe a server; return the exit code."""
    try:
        args = _parser().parse_args(argv)
        if args.probe is not None:
            probe(args.probe)
            return 0
        if args.out is None:
            raise UserError("--out FOLDER is missing, the model repository to write")
        options = {"backend": args.backend, "threads": args.threads, "max_objects": args.max_objects}
        engine = str(choose(args.engine, args.model).folder.resolve())
        write(
            args.out, {"engine": engine, "load": json.dumps(options), "max_streams": str(args.max_streams)}, args.idle
        )
        return run(args.out, args.host, args.port) if args.run else 0
    except SamwiseRuntimeError as error:
        return fail(error)


def _parser() -> Parser:
    parser = Parser(prog="python -m runtime.serve.triton", description="Serve a bundle by Triton Inference Server.")
    add_engine(parser)
    add = parser.add_argument
    add("--out", type=Path, metavar="FOLDER", help="model repository to write")
    add("--run", action="store_true", help="run tritonserver on it")
    add("--max-streams", type=positive, default=8, metavar="N", help="sequences at a time (default: 8)")
    add("--idle", type=positive, default=300, metavar="SECONDS", help="until an idle sequence is closed (default: 300)")
    add("--max-objects", type=positive, default=64, metavar="N", help="objects at a time, over all (default: 64)")
    add("--host", default="127.0.0.1", help="address of --run (default: 127.0.0.1); Triton has no access control")
    add("--port", type=positive, default=8000, help="port for HTTP; the next two: gRPC, metrics (default: 8000)")
    add("--probe", metavar="URL", help="only infer on one frame by the server at this address")
    return parser


if __name__ == "__main__":
    sys.exit(main())
