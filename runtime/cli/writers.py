"""Output files of a run: `results.json`, indexed masks, an overlay video and a contact sheet.

Every frame added is on disk in forms that can be read at any moment: a line of `results.jsonl`, a whole PNG, a
fragment of the video. `Outputs.close` turns the lines into `results.json`. When the disk is full, partly written data
is removed, finished files stay, and an InternalError reports it in one line.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InternalError, SamwiseRuntimeError, UserError, summarize
from ..results import Result
from .overlay import ContactSheet, Painter, index_map, palette
from .summary import object_label

if TYPE_CHECKING:
    import av
    from av.container import OutputContainer
    from PIL import Image

MAX_INDEXED_ID = 255
"""Largest object id in an indexed PNG."""

FORMAT = 1
"""Version of results.json."""


@contextlib.contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system or of FFmpeg while `path` is written into an InternalError of one line."""
    try:
        yield
    except SamwiseRuntimeError:
        raise
    except (OSError, ValueError) as error:  # the classes that FFmpeg's errors derive from
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; free some space"
        else:
            reason = f"cannot be written ({summarize(error)}); check the folder"
        raise InternalError(f"{path}: {reason} or choose another --out; frames finished before are kept") from None


class ResultsWriter:
    """Writes `results.jsonl` and from it `results.json`: masks as COCO run lengths, boxes x, y, width, height."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self._lines, self.path = folder / "results.jsonl", folder / "results.json"
        self._header = {"format": FORMAT, **header}
        with report_write_errors(self._lines):
            self.path.unlink(missing_ok=True)
            self._file = open(self._lines, "wb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._append(self._header)

    def add(self, name: str, result: Result) -> None:
        """Append one frame."""
        from pycocotools import mask as coco

        codes = coco.encode(np.asfortranarray(result.masks.transpose(1, 2, 0), np.uint8)) if len(result.masks) else []
        objects = []
        for i, (obj, code) in enumerate(zip(result.object_ids, codes, strict=True)):
            x0, y0, x1, y1 = (round(float(v), 2) for v in result.boxes[i])
            objects.append(
                {
                    "id": obj,
                    "score": round(float(result.scores[i]), 6),
                    "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                    "area": int(result.masks[i].sum()),
                    "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
                }
            )
        self._append({"frame": result.frame_index, "name": name, "objects": objects})

    def close(self, footer: Mapping[str, Any]) -> None:
        """Write results.json from the lines, then delete the lines."""
        self._file.close()
        part = self.path.with_suffix(".json.part")
        try:
            with report_write_errors(self.path), open(self._lines, "rb") as lines, open(part, "wb") as out:
                next(lines)
                head = _encode({**self._header, **footer}, indent=1)
                out.write(head[:-2] + b',\n "frames": [')  # head ends in a line feed and a brace
                for i, line in enumerate(lines):
                    out.write((b",\n  " if i else b"\n  ") + line.rstrip(b"\n"))
                out.write(b"\n ]\n}\n")
        except SamwiseRuntimeError:
            part.unlink(missing_ok=True)
            raise
        with report_write_errors(self.path):
            os.replace(part, self.path)
            self._lines.unlink()

    def _append(self, record: Mapping[str, Any]) -> None:
        line = _encode(record, separators=(",", ":")) + b"\n"
        start = self._file.tell()
        with report_write_errors(self._lines):
            try:
                # an unbuffered file may write a part and return its length; writing the rest then raises the error
                done = 0
                while done < len(line):
                    done += self._file.write(line[done:])
            except OSError:
                with contextlib.suppress(OSError):  # remove the partly written line
                    self._file.truncate(start)
                raise


class MaskWriter:
    """Writes one indexed PNG per frame in the DAVIS palette. The index of an object is its id."""

    def __init__(self, folder: Path, small_on_top: bool = False) -> None:
        self.folder, self._small_on_top = folder / "masks", small_on_top
        self._palette = palette().tobytes()
        with report_write_errors(self.folder):
            self.folder.mkdir(exist_ok=True)

    def add(self, name: str, result: Result) -> None:
        """Write one frame. Raises UserError for an object id that an indexed PNG cannot hold."""
        from PIL import Image

        check_ids(result.object_ids)
        image = Image.fromarray(index_map(result, self._small_on_top), "P")
        image.putpalette(self._palette)
        write_png(self.folder / f"{name}.png", image)


def check_ids(object_ids: Iterable[int]) -> None:
    """Raise UserError for an object id that an indexed PNG cannot hold."""
    for obj in object_ids:
        if not 1 <= obj <= MAX_INDEXED_ID:
            raise UserError(f"object {obj}: indexed masks hold objects 1 to {MAX_INDEXED_ID}; use --no-masks")


def write_png(path: Path, image: Image.Image) -> None:
    """Write a PNG, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    part = path.with_suffix(".part")
    with report_write_errors(path):
        try:
            part.write_bytes(buffer.getvalue())
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


class VideoWriter:
    """Writes an H.264 video in fragments that play even if the process is killed; an ordinary MP4 in the end."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        """`size` (height, width), both even."""
        import av

        self.path = path
        # FFmpeg 7.1 and later convert the fragments into an ordinary file at the end
        hybrid = av.library_versions.get("libavformat", (0,)) >= (61, 7)
        flags = "hybrid_fragmented" if hybrid else "frag_keyframe+empty_moov+default_base_moof"
        options = {"movflags": flags, "flush_packets": "1"}
        with report_write_errors(path):
            self._container: OutputContainer | None = av.open(str(path), "w", format="mp4", options=options)
            try:
                self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            except (av.FFmpegError, ValueError):
                raise InternalError("this build of PyAV has no libx264; pip install av, or use --no-overlay") from None
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        second = max(1, round(fps))
        speed = {"preset": "veryfast", "rc-lookahead": str(min(20, second))}
        self._stream.options = {"crf": "20", "g": str(second), **speed}
        self._stream.codec_context.time_base = 1 / self._stream.codec_context.framerate
        self._count = 0

    def add(self, image: np.ndarray) -> None:
        """Append one image, uint8 (*size, 3)."""
        import av

        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts = self._count
        self._count += 1
        self._write(frame)

    def close(self) -> None:
        """Finish the file. Raises InternalError."""
        container = self._container
        if container is None:
            return
        try:
            if self._count:
                self._write(None)
        finally:
            self._container = None
            with report_write_errors(self.path):
                container.close()

    def abandon(self) -> None:
        """Close the file unfinished; its complete fragments play."""
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(Exception):
                container.close()

    def _write(self, frame: av.VideoFrame | None) -> None:
        assert self._container is not None, "closed"
        with report_write_errors(self.path):
            for packet in self._stream.encode(frame):
                self._container.mux(packet)


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Objects of a run and the files to write about them.

    labels        prompt id -> label
    objects       object id -> prompt id of the objects known before the first frame
    overlay       whether to draw the results
    masks         whether to write indexed masks
    is_image      the source is one image: the overlay is an image as well
    small_on_top  whether smaller masks cover larger ones, instead of those with a higher score the others
    """

    labels: Mapping[int, str]
    objects: Mapping[int, int]
    overlay: bool = True
    masks: bool = True
    is_image: bool = False
    small_on_top: bool = False


class Outputs:
    """All files of one run in one folder. A context manager; call `close` inside it to finish `results.json`."""

    def __init__(
        self, folder: str | Path, size: tuple[int, int], fps: float, header: Mapping[str, Any], options: OutputOptions
    ) -> None:
        """`size` (height, width) of the source; `header` of results.json, to which the objects are added."""
        self.folder = Path(folder)
        if options.masks:
            check_ids(options.objects)
        _prepare(self.folder)
        labels, top = options.labels, options.small_on_top
        objects = [{"id": obj, "prompt": object_label(labels, p, obj)} for obj, p in options.objects.items()]
        self._results = ResultsWriter(self.folder, {**header, "objects": objects})
        self._masks = MaskWriter(self.folder, top) if options.masks else None
        self._painter = Painter(size, labels, top) if options.overlay else None
        self._video: VideoWriter | None = None
        self._sheet: ContactSheet | None = None
        if self._painter is not None and not options.is_image:
            self._video = VideoWriter(self.folder / "overlay.mp4", self._painter.canvas, fps)
            self._sheet = ContactSheet()

    def add(self, name: str, frame: np.ndarray, result: Result) -> None:
        """Write one frame and its result. `name`: stem of its mask's file. Raises InternalError."""
        self._results.add(name, result)
        if self._masks is not None:
            self._masks.add(name, result)
        if self._painter is not None:
            self._add_overlay(self._painter(frame, result))

    def _add_overlay(self, image: np.ndarray) -> None:
        if self._video is not None and self._sheet is not None:
            self._video.add(image)
            self._sheet.add(image)
        else:
            self._write_image("overlay.png", image)

    def _write_image(self, name: str, image: np.ndarray) -> None:
        from PIL import Image

        write_png(self.folder / name, Image.fromarray(image))

    def close(self, footer: Mapping[str, Any]) -> list[Path]:
        """Finish every file; `footer` goes into results.json. Returns the files written. Raises InternalError."""
        self._results.close(footer)
        if self._video is not None:
            self._video.close()
        sheet = self._sheet.render() if self._sheet is not None else None
        if sheet is not None:
            self._write_image("contact.png", sheet)
        names = ("overlay.mp4", "overlay.png", "contact.png", "masks", "results.json")
        return [self.folder / name for name in names if (self.folder / name).exists()]

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._video is not None:
            self._video.abandon()


def _encode(record: Mapping[str, Any], **kwargs: Any) -> bytes:
    # a file name may hold bytes that are not text; escaped, they are valid JSON
    return json.dumps(record, ensure_ascii=False, **kwargs).encode("utf-8", "backslashreplace")


def _prepare(folder: Path) -> None:
    """Create the folder and delete the files of an earlier run in it, which would look like results of this one."""
    with report_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        old = list((folder / "masks").glob("*.png"))
        if old and not any((folder / name).exists() for name in ("results.json", "results.jsonl")):
            raise UserError(f"{folder / 'masks'}: holds images that are not from this command; choose another --out")
        for path in (*old, *(folder / name for name in ("overlay.mp4", "overlay.png", "contact.png"))):
            path.unlink(missing_ok=True)
