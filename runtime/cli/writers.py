"""Output files of a run: `results.json`, indexed masks, an overlay video and a contact sheet.

Every frame added is on disk in forms that can be read at any moment: a line of `results.jsonl`, a whole PNG, a
fragment of the video. `Outputs.close` turns the lines into `results.json`. When the disk is full, partly written data
is removed, finished files stay, and an InternalError reports it in one line.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SamwiseRuntimeError, UserError
from ..imaging.rle import encode_rle
from ..results import NO_STAMP, Result, Stamp
from .output_folder import (
    CONTACT_SHEET,
    LINES,
    MASKS,
    OVERLAY_IMAGE,
    OVERLAY_VIDEO,
    PART,
    RESULTS,
    TOOL,
    YTVIS,
    OutputFolder,
    lock,
    mark_png,
)
from .overlay import ContactSheet, Painter, index_map, palette
from .overlay_video import OverlayVideo
from .source_file import SourceFile
from .summary import object_label
from .video_writer import VideoWriter
from .write_errors import report_write_errors
from .ytvis import write_ytvis

if TYPE_CHECKING:
    from PIL import Image

MAX_INDEXED_ID = 255
"""Largest object id in an indexed PNG."""

FORMAT = 1
"""Version of results.json."""


class ResultsWriter:
    """Writes `results.jsonl` and from it `results.json`: masks as COCO run lengths, boxes x, y, width, height."""

    def __init__(self, folder: Path, header: Mapping[str, Any], concepts: Mapping[int, str] | None = None) -> None:
        """`concepts`: label of each prompt, written with every object; None: only the header says which it has."""
        self.lines, self.path, self._concepts = folder / LINES, folder / RESULTS, concepts
        self._header = {"format": FORMAT, "tool": TOOL, **header}
        with report_write_errors(self.lines):
            self._file = open(self.lines, "wb", buffering=0)  # noqa: SIM115 - closed by `close` or `abandon`
            lock(self._file)
        self._append(self._header)

    def add(self, name: str, result: Result, stamp: Stamp = NO_STAMP) -> dict[str, Any]:
        """Append one frame. Returns what was written."""
        objects = []
        for i, (obj, code) in enumerate(zip(result.object_ids, encode_rle(result.masks), strict=True)):
            x0, y0, x1, y1 = (round(float(v), 2) for v in result.boxes[i])
            objects.append(
                {
                    "id": obj,
                    **({} if self._concepts is None else {"concept": self._concepts[result.prompt_ids[i]]}),
                    "score": round(float(result.scores[i]), 6),
                    "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                    "area": int(result.masks[i].sum()),
                    "segmentation": code,
                }
            )
        record = {
            "frame": result.frame_index,
            "name": name,
            "time": _rounded(stamp.time),
            "pts_seconds": _rounded(stamp.pts_seconds),
            "source_frame": stamp.source_frame,
            "objects": objects,
        }
        self._append(record)
        return record

    def close(self, footer: Mapping[str, Any]) -> None:
        """Write results.json from the lines, then delete the lines."""
        self._file.close()
        part = self.path.with_suffix(PART)
        try:
            with report_write_errors(self.path), open(self.lines, "rb") as lines, open(part, "wb") as out:
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
            self.lines.unlink()

    def abandon(self) -> None:
        """Close the lines; they stay."""
        self._file.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        line = _encode(record, separators=(",", ":")) + b"\n"
        start = self._file.tell()
        with report_write_errors(self.lines):
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
        self.folder, self._small_on_top = folder / MASKS, small_on_top
        self._left_out: set[int] = set()
        self._palette = palette().tobytes()
        with report_write_errors(self.folder):
            self.folder.mkdir(exist_ok=True)

    def add(self, name: str, result: Result) -> None:
        """Write one frame, without objects whose ids an indexed PNG cannot hold."""
        from PIL import Image

        self._left_out |= {obj for obj in result.object_ids if obj > MAX_INDEXED_ID}
        image = Image.fromarray(index_map(result, self._small_on_top), "P")
        image.putpalette(self._palette)
        write_png(self.folder / f"{name}.png", image)

    def notes(self) -> list[str]:
        """Return notes about objects that appeared during the run, with ids that an indexed PNG cannot hold."""
        count = len(self._left_out)
        return [f"{MASKS}/ has objects 1 to {MAX_INDEXED_ID}; {count} more are only in {RESULTS}"] if count else []


def check_ids(object_ids: Iterable[int]) -> None:
    """Raise UserError for an object id that an indexed PNG cannot hold."""
    for obj in object_ids:
        if not 1 <= obj <= MAX_INDEXED_ID:
            raise UserError(f"object {obj}: indexed masks hold objects 1 to {MAX_INDEXED_ID}; use --no-masks")


def write_png(path: Path, image: Image.Image) -> None:
    """Write a PNG with the mark of this command, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    part = path.with_name(path.stem + PART)
    with report_write_errors(path):
        try:
            part.write_bytes(mark_png(buffer.getvalue(), path.name))
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Objects of a run and the files to write about them.

    labels        prompt id -> label
    objects       object id -> prompt id of the objects known before the first frame
    overlay       whether to draw the results
    masks         whether to write indexed masks
    is_image      the source is one image: the overlay is an image as well
    small_on_top  whether smaller masks cover larger ones, instead of those with a higher score the others
    sample_aspect_ratio  width of a pixel of the source by its height
    source        file of the source, for the sound of the overlay; None if it is not a video file
    concepts      prompts are concepts: results name that of every object, overlays have ids and colours by concept
    ytvis         whether to write tracks of YouTube-VIS
    events        is given the record of every frame, and the labels of its objects, once it is written
    show          is given every drawn image
    """

    labels: Mapping[int, str]
    objects: Mapping[int, int]
    overlay: bool = True
    masks: bool = True
    is_image: bool = False
    small_on_top: bool = False
    sample_aspect_ratio: Fraction = Fraction(1)
    source: SourceFile | None = None
    concepts: bool = False
    ytvis: bool = False
    events: Callable[[Mapping[str, Any], Sequence[str]], None] | None = None
    show: Callable[[np.ndarray], None] | None = None


class Outputs:
    """All files of one run in one folder. A context manager; call `close` inside it to finish `results.json`."""

    def __init__(
        self, folder: str | Path, size: tuple[int, int], fps: float, header: Mapping[str, Any], options: OutputOptions
    ) -> None:
        """`size` (height, width) of the source; `header` of results.json, to which the objects are added.

        Raises UserError for a file in the folder that is not of an earlier run and would be replaced; InternalError.
        """
        self.folder = Path(folder)
        if options.masks:
            check_ids(options.objects)
        with report_write_errors(self.folder):
            self._plan = OutputFolder(self.folder, options.overlay, options.masks, options.is_image, options.ytvis)
            self._plan.prepare()
        labels, top = options.labels, options.small_on_top
        objects = [{"id": obj, "prompt": object_label(labels, p, obj)} for obj, p in options.objects.items()]
        concepts = labels if options.concepts else None
        self._results = ResultsWriter(self.folder, {**header, "objects": objects}, concepts)
        self._labels, self._prompts = labels, dict(options.objects)
        self._masks = MaskWriter(self.folder, top) if options.masks else None
        self._events, self._show, self._overlay = options.events, options.show, options.overlay
        draws = options.overlay or options.show is not None
        self._painter = Painter(size, labels, top, options.concepts) if draws else None
        self._video: OverlayVideo | None = None
        if self._painter is not None and options.overlay and not options.is_image:
            aspect, path = options.sample_aspect_ratio, self.folder / OVERLAY_VIDEO
            video = VideoWriter(path, self._painter.canvas, fps, aspect, options.source)
            self._video = OverlayVideo(video, ContactSheet(sample_aspect_ratio=float(aspect)))

    def add(self, name: str, frame: np.ndarray, result: Result, stamp: Stamp = NO_STAMP) -> None:
        """Write one frame and its result. Raises InternalError.

        name   stem of its mask's file
        stamp  when it is shown, and where it is in the source
        """
        record = self._results.add(name, result, stamp)
        self._prompts |= dict(zip(result.object_ids, result.prompt_ids, strict=True))
        if self._events is not None:
            self._events(record, [object_label(self._labels, self._prompts[obj], obj) for obj in result.object_ids])
        if self._masks is not None:
            self._masks.add(name, result)
        if self._painter is not None:
            image = self._painter(frame, result)
            if self._show is not None:
                self._show(image)
            if self._overlay:
                self._add_overlay(image, stamp.time)

    def _add_overlay(self, image: np.ndarray, time: float | None) -> None:
        if self._video is not None:
            self._video.add(image, time)
        else:
            self._write_image(OVERLAY_IMAGE, image)

    def _write_image(self, name: str, image: np.ndarray) -> None:
        from PIL import Image

        write_png(self.folder / name, Image.fromarray(image))

    def close_overlay(self, whole: bool = False, end: float | None = None) -> list[str]:
        """Finish the overlay and return notes about it and the masks. Raises InternalError.

        `whole`: the source was read to its end, so that its last frame and its sound last as long as there, or the
        frame until `end`, in seconds from the first one.
        """
        notes = self._masks.notes() if self._masks is not None else []
        if self._video is None:
            return notes
        sheet, of_video = self._video.close(whole, end)
        if sheet is not None:
            self._write_image(CONTACT_SHEET, sheet)
        return notes + of_video

    def close(self, footer: Mapping[str, Any]) -> list[Path]:
        """Finish every file; `footer` goes into results.json. Returns the files written. Raises InternalError."""
        try:
            if self._plan.ytvis:
                write_ytvis(self.folder / YTVIS, self._results.lines, self._prompts, self._labels)
        finally:
            self._results.close(footer)
        self.close_overlay()
        paths = (self.folder / name for name in (OVERLAY_VIDEO, OVERLAY_IMAGE, CONTACT_SHEET, MASKS, YTVIS, RESULTS))
        return [path for path in paths if self._plan.writes(path) and path.exists()]

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *exc: object) -> None:
        self._results.abandon()
        if self._video is not None:
            self._video.abandon()


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _encode(record: Mapping[str, Any], **kwargs: Any) -> bytes:
    # a file name may hold bytes that are not text; escaped, they are valid JSON
    return json.dumps(record, ensure_ascii=False, **kwargs).encode("utf-8", "backslashreplace")
