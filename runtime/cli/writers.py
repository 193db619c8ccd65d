"""Results on disk: `results.json`, indexed masks, an overlay video and a contact sheet.

Every frame that was added is on disk in forms that can be read at any moment: a line of `results.jsonl`, a whole PNG, a
fragment of the video. `Outputs.close` turns the lines into `results.json`. When the disk is full, what was cut off is
taken back, what is whole stays, and a InternalError says so in one line.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InternalError, SamwiseRuntimeError, UserError, summarize
from ..results import Result
from .overlay import ContactSheet, Painter, palette, stack

MAX_INDEXED = 255
"""Largest object id in an indexed PNG."""

FORMAT = 1
"""Version of results.json."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what an operating system says while `path` is written into one line."""
    try:
        yield
    except SamwiseRuntimeError:
        raise
    except (OSError, ValueError) as error:  # FFmpeg's own errors derive from one of these
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = (
            "the disk is full; free some space" if full else f"cannot be written ({summarize(error)}); check the folder"
        )
        raise InternalError(f"{path}: {why} or choose another --out; what was finished before is kept") from None


class Records:
    """`results.jsonl` while it runs, then `results.json`. Masks are COCO run lengths, boxes x, y, width, height."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self._lines, self.path = folder / "results.jsonl", folder / "results.json"
        self._header = {"format": FORMAT, **header}
        with writing(self._lines):
            self.path.unlink(missing_ok=True)
            self._file = open(self._lines, "wb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._append(self._header)

    def add(self, name: str, result: Result) -> None:
        """Append one frame."""
        from pycocotools import mask as coco

        lengths = coco.encode(np.asfortranarray(result.masks.transpose(1, 2, 0), np.uint8)) if len(result.masks) else []
        objects = []
        for i, (identity, code) in enumerate(zip(result.object_ids, lengths)):
            x0, y0, x1, y1 = (round(float(v), 2) for v in result.boxes[i])
            objects.append(
                {
                    "id": identity,
                    "score": round(float(result.scores[i]), 6),
                    "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                    "area": int(result.masks[i].sum()),
                    "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
                }
            )
        self._append({"frame": result.frame_index, "name": name, "objects": objects})

    def close(self, footer: Mapping[str, Any]) -> None:
        """Write results.json beside the lines, then drop the lines."""
        self._file.close()
        part = self.path.with_suffix(".json.part")
        try:
            with writing(self.path), open(self._lines, "rb") as lines, open(part, "wb") as out:
                next(lines)
                head = _encode({**self._header, **footer}, indent=1)
                out.write(head[:-2] + b',\n "frames": [')  # head ends in a line feed and a brace
                for i, line in enumerate(lines):
                    out.write((b",\n  " if i else b"\n  ") + line.rstrip(b"\n"))
                out.write(b"\n ]\n}\n")
        except SamwiseRuntimeError:
            part.unlink(missing_ok=True)
            raise
        with writing(self.path):
            os.replace(part, self.path)
            self._lines.unlink()

    def _append(self, record: Mapping[str, Any]) -> None:
        line = _encode(record, separators=(",", ":")) + b"\n"
        start = self._file.tell()
        with writing(self._lines):
            try:
                # an unbuffered file may take a part and say so by its return value; the rest then fails with the reason
                done = 0
                while done < len(line):
                    done += self._file.write(line[done:])
            except OSError:
                with contextlib.suppress(OSError):  # half a line is worth nothing: take it back
                    self._file.truncate(start)
                raise


class Masks:
    """One indexed PNG per frame in the DAVIS palette; an object's index is its id."""

    def __init__(self, folder: Path, small_on_top: bool = False) -> None:
        self.folder, self._small_on_top = folder / "masks", small_on_top
        self._palette = palette().tobytes()
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)

    def add(self, name: str, result: Result) -> None:
        """Write one frame. Raises UserError for an object that does not fit."""
        from PIL import Image

        check_ids(result.object_ids)
        image = Image.fromarray(stack(result, self._small_on_top), "P")
        image.putpalette(self._palette)
        write_png(self.folder / f"{name}.png", image)


def check_ids(identities: Iterable[int]) -> None:
    """Raise UserError for an object id that an indexed PNG cannot hold."""
    for identity in identities:
        if not 1 <= identity <= MAX_INDEXED:
            raise UserError(f"indexed masks hold objects 1 to {MAX_INDEXED}, not {identity}; use --no-masks")


def write_png(path: Path, image: Any) -> None:
    """Write a whole PNG or none."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    part = path.with_suffix(".part")
    with writing(path):
        try:
            part.write_bytes(buffer.getvalue())
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


class Overlay:
    """H.264 video, written in fragments so that it plays even if the process is killed; an ordinary MP4 in the end."""

    def __init__(self, path: Path, canvas: tuple[int, int], fps: float) -> None:
        import av

        self.path = path
        # FFmpeg 7.1 and later turn the fragments into an ordinary file at the end
        hybrid = av.library_versions.get("libavformat", (0,)) >= (61, 7)
        flags = "hybrid_fragmented" if hybrid else "frag_keyframe+empty_moov+default_base_moof"
        self._container: Any = None
        with writing(path):
            self._container = av.open(str(path), "w", format="mp4", options={"movflags": flags, "flush_packets": "1"})
            try:
                self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            except (av.FFmpegError, ValueError):
                raise InternalError("this build of PyAV has no libx264; pip install av, or use --no-overlay") from None
        self._stream.height, self._stream.width = canvas
        self._stream.pix_fmt = "yuv420p"
        second = max(1, round(fps))
        self._stream.options = {
            "crf": "20",
            "preset": "veryfast",
            "g": str(second),
            "rc-lookahead": str(min(20, second)),
        }
        self._stream.codec_context.time_base = 1 / self._stream.codec_context.framerate
        self._count = 0

    def add(self, image: np.ndarray) -> None:
        """Append one picture, uint8 (*canvas, 3)."""
        import av

        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts = self._count
        self._count += 1
        self._write(frame)

    def close(self) -> None:
        """Finish the file. Raises InternalError when it cannot be."""
        if self._container is None:
            return
        container = self._container
        try:
            if self._count:
                self._write(None)
        finally:
            self._container = None
            with writing(self.path):
                container.close()

    def abandon(self) -> None:
        """Let go of the file as it is: its complete fragments play."""
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(Exception):
                container.close()

    def _write(self, frame: Any) -> None:
        with writing(self.path):
            for packet in self._stream.encode(frame):
                self._container.mux(packet)


class Outputs:
    """All that one run writes into one folder. A context manager; leave it by `close` for a finished `results.json`."""

    def __init__(
        self,
        folder: str | Path,
        size: tuple[int, int],
        fps: float,
        labels: Mapping[int, str],
        header: Mapping[str, Any],
        overlay: bool = True,
        masks: bool = True,
        still: bool = False,
        small_on_top: bool = False,
    ) -> None:
        """`size` (height, width) of the source; `labels` by object id; `still`: one picture, so the overlay is one."""
        self.folder = Path(folder)
        if masks:
            check_ids(labels)
        _clear(self.folder)
        self._records = Records(self.folder, header)
        self._masks = Masks(self.folder, small_on_top) if masks else None
        self._painter = Painter(size, labels, small_on_top) if overlay else None
        self._still = still
        self._sheet = ContactSheet() if overlay and not still else None
        self._overlay: Overlay | None = None
        if self._painter is not None and not still:
            self._overlay = Overlay(self.folder / "overlay.mp4", self._painter.canvas, fps)

    def add(self, name: str, frame: np.ndarray, result: Result) -> None:
        """Write one frame and its result. `name`: stem of its mask's file. Raises InternalError."""
        self._records.add(name, result)
        if self._masks is not None:
            self._masks.add(name, result)
        if self._painter is not None:
            self._paint(self._painter(frame, result))

    def _paint(self, picture: np.ndarray) -> None:
        if self._overlay is not None and self._sheet is not None:
            self._overlay.add(picture)
            self._sheet.add(picture)
        else:
            self._save("overlay.png", picture)

    def _save(self, name: str, picture: np.ndarray) -> None:
        from PIL import Image

        write_png(self.folder / name, Image.fromarray(picture))

    def close(self, footer: Mapping[str, Any]) -> list[Path]:
        """Finish every file; `footer` goes into results.json. Returns what was written. Raises InternalError."""
        self._records.close(footer)
        if self._overlay is not None:
            self._overlay.close()
        sheet = self._sheet.render() if self._sheet is not None else None
        if sheet is not None:
            self._save("contact.png", sheet)
        names = ("overlay.mp4", "overlay.png", "contact.png", "masks", "results.json")
        return [self.folder / name for name in names if (self.folder / name).exists()]

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._overlay is not None:
            self._overlay.abandon()


def _encode(record: Mapping[str, Any], **kwargs: Any) -> bytes:
    # a file name may hold bytes that are no text; escaped they are JSON all the same
    return json.dumps(record, ensure_ascii=False, **kwargs).encode("utf-8", "backslashreplace")


def _clear(folder: Path) -> None:
    """Make the folder, without what an earlier run left: it would pass for results of this one. Other files stay."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        old = list((folder / "masks").glob("*.png"))
        if old and not any((folder / name).exists() for name in ("results.json", "results.jsonl")):
            raise UserError(f"{folder / 'masks'}: holds pictures that are not from this command; choose another --out")
        for path in (*old, *(folder / name for name in ("overlay.mp4", "overlay.png", "contact.png"))):
            path.unlink(missing_ok=True)
