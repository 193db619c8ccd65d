"""The overlay video with its contact sheet, encoded in a thread while the next frame is drawn."""

from __future__ import annotations

import contextlib

import numpy as np

from .overlay import ContactSheet
from .video_writer import VideoWriter
from .writer_thread import WriterThread


class OverlayVideo:
    """Gives drawn images to a video and a sheet, in order.

    The encoder waits for threads of its own; the thread that draws need not wait with it.
    """

    def __init__(self, video: VideoWriter, sheet: ContactSheet) -> None:
        self._video = video
        self._sheet: ContactSheet | None = sheet
        self._thread: WriterThread | None = None

    def add(self, image: np.ndarray, time: float | None) -> None:
        """Queue one image, uint8 (H,W,3), which must not change any more; see `VideoWriter.add`.

        Raises InternalError for an earlier one that could not be written.
        """
        if self._thread is None:
            self._thread = WriterThread(self._encode, "encoder")
        self._thread.put(image, time)

    def _encode(self, image: np.ndarray, time: float | None) -> None:
        assert self._sheet is not None, "closed"
        self._video.add(image, time)
        self._sheet.add(image)

    def close(self, whole: bool = False, end: float | None = None) -> tuple[np.ndarray | None, list[str]]:
        """Finish the video; return the sheet, if there is an image, and notes. See `VideoWriter.close`.

        Raises InternalError, once: a second call returns nothing.
        """
        try:
            self._join()
        finally:
            self._video.close(whole, end)
        sheet, self._sheet = self._sheet, None
        return (sheet.render(), self._video.notes) if sheet is not None else (None, [])

    def abandon(self) -> None:
        """Encode the images in the queue, and leave the video unfinished."""
        with contextlib.suppress(Exception):
            self._join()
        self._video.abandon()

    def _join(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()
