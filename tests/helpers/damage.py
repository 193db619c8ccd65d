"""Damage of one file of a bundle."""

from __future__ import annotations

import os
from pathlib import Path

KINDS = ("cut", "noise", "gone", "folder", "link", "loop", "pipe")


def damage_file(path: Path, kind: str, amount: int = 0) -> Path:
    """Replace a file by a cut or changed one, nothing, a folder, a link to a device or to itself, or a pipe.

    `amount` is the length that is kept, or the place of the changed byte. What is not a file is left as it is.
    """
    if not path.is_file() or path.is_symlink():
        return path
    content = path.read_bytes()
    path.unlink()
    if kind == "cut":
        path.write_bytes(content[: amount % (len(content) + 1)])
    elif kind == "noise":
        at = amount % len(content)
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 + amount % 255)]) + content[at + 1 :])
    elif kind == "folder":
        path.mkdir()
    elif kind in ("link", "loop"):
        path.symlink_to("/dev/zero" if kind == "link" else path)
    elif kind == "pipe":
        os.mkfifo(path)
    return path
