"""Exceptions of the public interface.

Every message says what is wrong, where, and how to correct it, in one line. The command turns `UserError` into exit
code 2 (the caller's mistake) and `InternalError` into exit code 1 (ours), without a traceback.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable

MAX_MESSAGE_CHARS = 1000
"""Maximum message length; longer messages are truncated in the middle."""


class SamwiseRuntimeError(Exception):
    """Base of all exceptions of this package. The message is one printable line, whatever a file name in it holds."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class InternalError(SamwiseRuntimeError):
    """A failure that the caller did not cause: a full disk, a backend that fails. Exit code 1."""


class UserError(SamwiseRuntimeError):
    """A mistake that the caller can correct: a bad argument, a bad file, a bundle that does not fit. Exit code 2."""


class BundleError(UserError):
    """A bundle is missing, incomplete, altered, of a newer format, or built for other hardware."""


class PromptError(UserError):
    """A prompt is empty, blank, too long, of the wrong type, or the bundle cannot take it."""


class VideoError(UserError):
    """A video or image cannot be read, has no frame, or changes its size between frames."""


class BackendError(UserError):
    """The requested backend is not installed or cannot run this bundle on this machine."""


def fail(error: SamwiseRuntimeError, debug: bool = False) -> int:
    """Print `error` as one line on standard error and return the exit code of the command.

    With `debug`, the traceback of the exception that is being handled precedes it.
    """
    if debug:
        traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    return 2 if isinstance(error, UserError) else 1


def summarize(error: BaseException | str, limit: int = 160) -> str:
    """Return the message of `error` (its class name if it has none) on one line of at most `limit` characters."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:limit].rstrip(".")


def one_line(text: str) -> str:
    """Return `text` on one line of at most `MAX_MESSAGE_CHARS` characters, unprintable ones escaped."""
    text = " ".join(_shortened(text).split())
    if not text.isprintable():
        text = _shortened("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))
    return text


def _shortened(text: str) -> str:
    return (
        text
        if len(text) <= MAX_MESSAGE_CHARS
        else f"{text[: MAX_MESSAGE_CHARS * 2 // 3]} ... {text[-(MAX_MESSAGE_CHARS // 4) :]}"
    )


def reject_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise UserError that lists the known options of `what` when one that does not exist is given."""
    known = list(known)
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"{what} has no option {', '.join(unknown)}; it has {', '.join(known)}")
