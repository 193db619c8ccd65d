"""Errors of the operating system and of FFmpeg while output is written, as errors of this package."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from ..errors import InternalError, SamwiseRuntimeError, summarize


@contextlib.contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system or of FFmpeg while `path` is written into an InternalError of one line."""
    try:
        yield
    except SamwiseRuntimeError:
        raise
    except (OSError, ValueError) as error:  # the classes that FFmpeg's errors derive from
        reason = "the disk is full; free some space"
        if not is_disk_full(error):
            reason = f"cannot be written ({summarize(error)}); check the folder"
        raise InternalError(f"{path}: {reason} or choose another --out; frames finished before are kept") from None


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error of the operating system or of FFmpeg is a lack of space."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
