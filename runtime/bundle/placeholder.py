"""Recognition of files that stand in the place of others: pointers, links, web pages, archives, and text."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from ..errors import summarize

PLACEHOLDERS = (
    (
        rb"version https://git-lfs\.github\.com/spec/",
        "a Git LFS pointer, not the file itself; run `git lfs pull` in the clone, or download the file",
    ),
    (rb"[/\\]annex[/\\]objects[/\\]", "a git-annex pointer, not the file itself; run `git annex get` in the clone"),
    (
        rb"(?s)(?=(.*\n)?outs:).*\bpath:",
        "a DVC pointer, not the file itself; run `dvc pull`, and give the file beside it",
    ),
    (
        rb"<!doctype|<html|<head|<\?xml|<!--",
        "a web page or a server's error message, not the file itself; use the link that downloads the file",
    ),
)
"""Pattern of the beginning of a file, in small letters -> what the file is."""

OTHER_FILES = (
    (rb"PK\x03\x04", "a zip archive; unpack it and give what is in it"),
    (rb"\x93NUMPY", "an array of NumPy; read it with numpy.load and give the array to the Python API"),
    (rb"\x1f\x8b|BZh|7z\xbc\xaf|Rar!|\xfd7zXZ|\x28\xb5\x2f\xfd", "compressed; unpack it and give what is in it"),
    (rb"\x89HDF", "an HDF5 file; read it with h5py and give the array to the Python API"),
    (rb"%PDF", "a PDF, not an image; save its pages as PNG"),
)
"""Pattern of the first bytes of a file that is neither picture nor video -> what the file is."""


def describe_placeholder(path: Path) -> str | None:
    """Return what the file is and how to get the real one, None for a file that is none of these."""
    if path.is_symlink() and not path.exists():
        target = str(path.readlink())
        advice = "; run `git annex get` in the clone" if "annex" in target else ""
        return f"a link to {target}, which does not exist{advice}"
    if not path.is_file():  # opening a pipe would block
        return None
    try:
        with path.open("rb") as file:
            head = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    except OSError:
        return None
    return next((what for pattern, what in PLACEHOLDERS if re.match(pattern, head)), None)


def describe_other_file(path: Path) -> str | None:
    """Return what a file is that is certainly neither picture nor video, None for others."""
    if not path.is_file():
        return describe_placeholder(path)
    with path.open("rb") as file:
        head = file.read(8)
    found = next((what for pattern, what in OTHER_FILES if re.match(pattern, head)), None)
    return found or describe_placeholder(path)


def describe_unreadable(path: Path) -> str | None:
    """Return what a file is that could not be read as a picture or video, None if its first bytes do not show it."""
    if (found := describe_other_file(path)) or not path.is_file():
        return found
    with path.open("rb") as file:
        head = file.read(512)
    if re.match(rb"\s*(#EXTM3U|ffconcat|v=0)", head):  # text that FFmpeg reads; its own error tells more
        return None
    return describe_text(head, "not an image and not a video")


def describe_text(head: bytes, what: str) -> str | None:
    """Return that a file that begins with `head` is text and `what` it is not; None if it is no text."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head).strip()  # the last character may be cut
    except UnicodeDecodeError:
        return None
    if not text or not all(c.isprintable() or c.isspace() for c in text):
        return None
    kind = "JSON" if text[0] in "{[" else "text"
    return f"{kind}, {what}: {summarize(text, 60)!r}; download it again, signed in if needed"
