"""Fuzz targets: command lines with their prompt files, and videos. An input is bytes; see `Target`."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.manifest import Manifest
from runtime.cli.args import build_parser, parse_prompts
from runtime.cli.prompt_args import PromptSet
from runtime.media import video_reader
from runtime.tokenizer import encode, verb_positions

from .invariants import Broken, hold

HEIGHT, WIDTH = 48, 64


@dataclass(frozen=True, slots=True)
class Target:
    """`read` makes files of the bytes in a scratch folder and returns what reads them; `seeds` are good inputs to begin
    with; `words` are worth inserting. `structured`: inputs are JSON, and are mutated as such."""

    name: str
    read: Callable[[bytes, Path], Callable[[], Any]]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()
    structured: bool = False

    def __call__(self, data: bytes) -> str:
        """ "taken" or "refused". Raises Broken, or whatever else the input brought about."""
        with tempfile.TemporaryDirectory(prefix="fuzz-") as around:
            inside = Path(around, "inside")
            inside.mkdir()
            return hold(self.read(data, inside), Path(around))


def plain_json(data: bytes) -> Any:
    """The JSON that the bytes are, or None."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


# ------------------------------------------------------------------------------------------------------------ prompts


@functools.cache
def png() -> bytes:
    """A mask of the size of the imagined video."""
    from PIL import Image

    array = np.zeros((HEIGHT, WIDTH), np.uint8)
    array[10:30, 10:30] = 255
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def _prompt(data: bytes, inside: Path) -> Callable[[], Any]:
    """{"argv": [...], "files": {name: text}}; in `argv`, `FILES` is their folder. Other bytes are words of a
    command."""
    given = plain_json(data)
    if not isinstance(given, dict):
        given = {"argv": data.decode("utf-8", "surrogateescape").split("\n")}
    (inside / "a.png").write_bytes(png())
    for name, text in _strings(given.get("files")):
        with contextlib.suppress(OSError, ValueError):
            (inside / Path(name).name).write_bytes(text.encode("utf-8", "surrogatepass"))
    argv = given.get("argv")
    argv = [a.replace("FILES", str(inside)) for a in argv if isinstance(a, str)] if isinstance(argv, list) else []
    # what the caller names on purpose is read: a device has no end
    argv = [a for a in argv if not a.startswith("/dev")]
    return functools.partial(_ask, argv)


def _strings(value: Any) -> list[tuple[str, str]]:
    return [(k, v) for k, v in value.items() if isinstance(v, str)] if isinstance(value, dict) else []


MANIFEST = Manifest(
    {"samwise": {"text": {"max_tokens": 16, "vocabulary": 100, "motion": True}}}, "fuzz", "fp32", 32, {}, {}
)


def _ask(argv: list[str]) -> None:
    """The command line up to the prompts that a session would take."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            args = build_parser("fuzz").parse_args(argv)
    except SystemExit as error:
        if error.code not in (0, None):
            raise Broken(f"left with {error.code} instead of an error") from None
        return
    prompts = parse_prompts(args.prompt_args)
    if isinstance(prompts, PromptSet):
        prompts.check((HEIGHT, WIDTH), args.stride, args.max_frames or 100)
        prompts.by_index(args.stride)
        return
    for prompt in prompts:
        if prompt.text is None:
            encode(prompt, MANIFEST, None)
        verb_positions(prompt, MANIFEST, lambda text: (list(range(len(text.split()))), _spans(text)))


def _spans(text: str) -> list[tuple[int, int]]:
    at, out = 0, []
    for word in text.split():
        out.append((at, at + len(word)))
        at += len(word) + 1
    return out


def _prompt_seeds() -> list[bytes]:
    lists = [
        ["--text", "the red square", "--verbs", "red"],
        ["--tokens", "0,5,2", "--verbs", "1"],
        ["--auto"],
        ["--help"],
        ["--point", "20,30,-@12#2", "--point", "1.5,2"],
        ["--box", "1,2,30,40#3@7", "--point", "5,6"],
        ["--mask", "FILES/a.png@3#9"],
        ["--prompts", "FILES/p.json"],
        ["--stride", "3", "--point", "1,1@6"],
        ["--max-frames", "5", "--window", "2", "--threads", "2", "--conditional-memory", "on"],
    ]
    entries = json.dumps(
        [
            {"object": 1, "frame": 0, "points": [[1, 2], [3.5, 4]], "labels": [1, 0], "name": "a"},
            {"object": 2, "box": [1, 2, 3, 4]},
            {"mask": "a.png", "frame": 2},
        ]
    )
    return [json.dumps({"argv": argv, "files": {"p.json": entries}}).encode() for argv in lists]


PROMPT = Target(
    "prompt",
    _prompt,
    _prompt_seeds,
    structured=True,
    words=tuple(
        w.encode()
        for w in (
            "--text",
            "--tokens",
            "--verbs",
            "--point",
            "--box",
            "--mask",
            "--prompts",
            "@0",
            "#1",
            ",-",
            "nan",
            "1e400",
            "9" * 5000,
            "\u0663",
            "FILES/p.json",
            "FILES/a.png",
            '{"points":',
            '"labels":',
            "[[",
            "]]",
        )
    ),
)


# ------------------------------------------------------------------------------------------------------------- videos

SUFFIXES = (".mp4", ".webm", ".png", ".gif", ".ts", ".jpg", ".avi", ".y4m", ".mkv", "", ".tif", ".webp")
FOLDER = 255
"""First byte of an input that is a folder of pictures, parted by `PART`."""
PART = b"--part--"


def _video(data: bytes, inside: Path) -> Callable[[], Any]:
    """The first byte chooses the suffix, the rest is the file; or a folder of pictures."""
    kind, content = (data[0], data[1:]) if data else (0, b"")
    if kind == FOLDER:
        path = inside / "folder"
        path.mkdir()
        for i, part in enumerate(content.split(PART)[:8]):
            (path / f"{i}.png").write_bytes(part)
    else:
        path = inside / f"video{SUFFIXES[kind % len(SUFFIXES)]}"
        path.write_bytes(content)
    return functools.partial(_watch_video, path)


def _watch_video(path: Path) -> None:
    """Every frame of it, up to 32; they are pictures, and what is said of them is possible."""
    with video_reader.open_video(path, max_frames=32) as frames:
        if frames.count is not None and frames.count < 1:
            raise Broken(f"a video of {frames.count} frames")
        if not 0 < frames.fps < math.inf:
            raise Broken(f"a video of {frames.fps} frames per second")
        for index, frame in enumerate(frames):
            if frame.dtype != np.uint8 or frame.shape != (*frames.size, 3) or not frame.flags.c_contiguous:
                raise Broken(f"frame {index} is {frame.dtype} {frame.shape} of {frames.size}")
            frames.frame_name(index)


def clip(count: int = 6) -> Iterator[np.ndarray]:
    """Frames of a square that moves."""
    for i in range(count):
        frame = np.full((HEIGHT, WIDTH, 3), 16, np.uint8)
        frame[12:36, 2 * i : 2 * i + 20] = 250, 20, 20
        yield frame


def _encoded(folder: Path, suffix: str, codec: str, pix_fmt: str = "yuv420p", **options: str) -> bytes:
    import av

    path = folder / f"a{suffix}"
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        for frame in clip():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def _still(kind: str, mode: str = "RGB") -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(next(clip(1))).convert(mode).save(out, kind)
    return out.getvalue()


@functools.cache
def _video_seeds() -> list[bytes]:
    made: list[tuple[str, bytes]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for suffix, codec, options in (
            (".mp4", "libx264", {}),
            (".mp4", "mpeg4", {"movflags": "faststart"}),
            (".webm", "libvpx", {}),
            (".ts", "libx264", {}),
            (".avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
            (".gif", "gif", {"pix_fmt": "rgb8"}),
            (".mkv", "ffv1", {}),
        ):
            made.append((suffix, _encoded(folder, suffix, codec, **options)))
    made += [
        (".png", _still("PNG")),
        (".png", _still("PNG", "LA")),
        (".jpg", _still("JPEG")),
        (".tif", _still("TIFF", "I;16")),
        (".webp", _still("WEBP")),
        (".y4m", b"YUV4MPEG2 W16 H16 F24:1 C420\n" + b"FRAME\n" + bytes(384)),
    ]
    return [bytes([SUFFIXES.index(suffix)]) + data for suffix, data in made] + [
        bytes([FOLDER]) + PART.join([_still("PNG")] * 3)
    ]


VIDEO = Target(
    "video",
    _video,
    _video_seeds,
    words=(
        b"moov",
        b"mdat",
        b"stsd",
        b"trak",
        b"avc1",
        b"IHDR",
        b"IDAT",
        b"acTL",
        b"fcTL",
        b"tRNS",
        b"eXIf",
        b"\xff\xd8",
        b"RIFF",
        b"GIF89a",
        b"#EXTM3U\n#EXTINF:1,\n/dev/zero\n",
        b"ffconcat version 1.0\nfile '/dev/zero'\n",
        b"YUV4MPEG2 W0 H0 F0:0\n",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\0\0\0\0",
        PART,
    ),
)
