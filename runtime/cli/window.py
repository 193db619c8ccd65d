"""Window that shows the overlay while it runs, by tkinter, which most Pythons have, and Pillow.

OpenCV would be 60 MB for one function. The window is a process of its own, this file run as a program: it answers while
a frame is computed, and has the main thread, which tkinter needs.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import threading
from typing import IO, Any

import numpy as np

REFRESH_MS = 30
SCREEN_PART = 0.9
"""Part of the screen that the window may cover."""
NO_WINDOW = 3
"""Exit code of the program if no window opens."""
HEADER = struct.Struct("<II")
"""Height and width, before the bytes of an image."""


def unavailable_reason() -> str | None:
    """Return why no window can be opened; None if one may."""
    try:
        import tkinter  # noqa: F401
    except ImportError:
        return "this Python has no tkinter (Debian and Ubuntu: apt-get install python3-tk)"
    if sys.platform not in ("win32", "darwin") and not os.environ.get("DISPLAY"):
        return "no display (DISPLAY is not set)"
    return None


class Window:
    """A window for images. `show` returns at once; of several images between two refreshes the last one is shown."""

    def __init__(self, title: str) -> None:
        self._process = subprocess.Popen([sys.executable, __file__, title], stdin=subprocess.PIPE)
        self._image: np.ndarray | None = None
        self._changed, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._send, daemon=True, name="window")
        self._thread.start()

    def show(self, image: np.ndarray) -> None:
        """Show an image, uint8 (H,W,3). Raises KeyboardInterrupt once the user has closed the window."""
        code = self._process.poll()
        if code == 0:
            raise KeyboardInterrupt
        if code is not None:  # it said why
            return
        self._image = image
        self._changed.set()

    def close(self) -> None:
        """Close the window. May be called twice."""
        self._ended = True
        self._changed.set()
        self._thread.join(timeout=2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._process.kill()
        self._process.wait()

    def _send(self) -> None:
        """Write the newest image whenever there is one."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError), pipe:
            while self._changed.wait() and not self._ended:
                self._changed.clear()
                image = self._image
                if image is not None:
                    pipe.write(HEADER.pack(*image.shape[:2]) + image.tobytes())
                    pipe.flush()


def read_image(pipe: IO[bytes]) -> np.ndarray | None:
    """Return the next image of a pipe, uint8 (H,W,3); None at its end."""
    header = pipe.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    height, width = HEADER.unpack(header)
    data = pipe.read(height * width * 3)
    return np.frombuffer(data, np.uint8).reshape(height, width, 3) if len(data) == height * width * 3 else None


def main(title: str, pipe: IO[bytes]) -> int:
    """Show the images of a pipe until it ends, or the user closes the window or presses q. Returns the exit code."""
    import tkinter

    try:
        root = tkinter.Tk(className=title)
    except tkinter.TclError as error:
        print(f"note: --show: no window opened ({error}); the run goes on", file=sys.stderr)
        return NO_WINDOW
    label = tkinter.Label(root, borderwidth=0)
    label.pack()
    root.title(title)
    for key in ("q", "<Escape>"):
        root.bind(key, lambda event: root.destroy())
    newest: list[np.ndarray | None] = []

    def read() -> None:
        while not newest or newest[-1] is not None:
            newest[:] = [read_image(pipe)]

    def refresh(shown: Any = None, photo: Any = None) -> None:
        image = newest[-1] if newest else shown
        if newest and image is None:
            return root.destroy()
        if image is not shown:
            photo = image if image is None else _photo(root, image)
            label.configure(image=photo)
        root.after(REFRESH_MS, refresh, image, photo)  # a picture lives as long as something refers to it

    threading.Thread(target=read, daemon=True).start()
    refresh()
    root.mainloop()
    return 0


def _photo(root: Any, image: np.ndarray) -> Any:
    """Return the image for tkinter, made smaller where the screen is."""
    from PIL import Image, ImageTk

    picture = Image.fromarray(image)
    picture.thumbnail((round(SCREEN_PART * root.winfo_screenwidth()), round(SCREEN_PART * root.winfo_screenheight())))
    return ImageTk.PhotoImage(picture, master=root)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.stdin.buffer))
