"""Recognition of files that a download put in the place of another: Git LFS pointers and web pages."""

from __future__ import annotations

from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")


def describe_placeholder(path: Path) -> str | None:
    """Return what the file is and how to get the real one, None for a file that is none of these."""
    if not path.is_file():  # opening a pipe would block
        return None
    try:
        with path.open("rb") as file:
            head = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    except OSError:
        return None
    if head.startswith(POINTER):
        return "a Git LFS pointer, not the file itself; run `git lfs pull` in the clone, or download the file"
    if head.startswith(PAGES):
        return "a web page or a server's error message, not the file itself; use the link that downloads the file"
    return None
