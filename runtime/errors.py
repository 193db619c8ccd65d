"""Exceptions of the public interface.

Every message says what is wrong, where, and how to correct it, in one line. The command turns `UserError` into exit
code 2 (the caller's mistake) and `InternalError` into exit code 1 (ours), without a traceback.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import numpy as np

MAX_MESSAGE_CHARS = 1000
"""Maximum message length; longer messages are truncated in the middle."""

_ADDRESS = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{1,20}:/+\S*[^\s'\":;,.)]")
_HOST = re.compile(r"(?:\[[\w:.%-]*\]|[\w.-]*)(?::\d{1,5})?")
_CERTAIN_HOST = re.compile(
    r"(?:\d+\.\d+\.\d+\.\d+(?::\d+)?|\[[0-9A-Fa-f:.]+\](?::\d+)?|[\w-]+(?:\.[\w-]+)+|localhost)(?=[/?#]|$)"
)
_WORD = "live|stream|video|image|main|sub|media|camera|cam|channel|ch|index|playlist|master|feed|test|h26[45]|[a-z]"
_PIECE = r"(?:[a-z]{2,12}\d{0,8}|\d{1,8})"
_PUBLIC_NAME = re.compile(
    rf"(?:{_WORD})?[-_]?\d{{0,3}}(?:\.\w{{2,5}})?"
    rf"|{_PIECE}(?:(?:[-_. +]|%20){_PIECE}){{0,4}}\.(?:mp4|m4v|mov|mkv|webm|avi|gif|png|jpe?g|tiff?|webp)",
    re.IGNORECASE,
)
"""Names in an address that are no keys: words of cameras, and media files named by words and numbers."""


class SamwiseRuntimeError(Exception):
    """Base of all exceptions of this package.

    The message is one printable line, whatever a file name in it holds, and addresses in it hold no secret.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(_ADDRESS.sub(lambda address: hide_secrets(address[0]), str(message))))


class InternalError(SamwiseRuntimeError):
    """A failure that the caller did not cause: a full disk, a backend that fails. Exit code 1."""


class UserError(SamwiseRuntimeError):
    """A mistake that the caller can correct: a bad argument, a bad file, a bundle that does not fit. Exit code 2."""


class Busy(UserError):
    """There is no room for another stream or object now; there may be later."""


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


def hide_secrets(address: str) -> str:
    """Return scheme, host and port of an address, and the last part of its path unless that may be a key.

    User info ends at the last `@`, because a password that is not percent-encoded may hold any character, unless the
    address begins with what can only be a host.
    """
    match = re.match(r"([^:/]*)(:?/{0,2})(.*)", address, re.DOTALL)
    assert match is not None  # every group may be empty
    scheme, slashes, rest = match.groups()
    if scheme.lower() == "file":
        return address
    if not _CERTAIN_HOST.match(rest):
        rest = rest.rpartition("@")[2]
    host = _HOST.match(rest)
    assert host is not None
    path = re.split(r"[?#]", rest[host.end() :], maxsplit=1)[0].rstrip("/")
    name = path.rpartition("/")[2] if path.startswith("/") else path
    shown = "/" * bool(path) + (name if path.startswith("/") and _PUBLIC_NAME.fullmatch(name) else "***" * bool(path))
    return f"{scheme}{slashes}{host[0]}{shown}"


def check_types(options: Any) -> None:
    """Raise UserError for a flag or a float of a dataclass, by its annotation, that has a value such as "no"."""
    for field in fields(options):
        value, kind = getattr(options, field.name), str(field.type)
        if kind == "float":
            check_number(value, field.name)
        if kind not in ("bool", "bool | None") or (kind != "bool" and value is None):
            continue
        if not isinstance(value, (int, np.bool_, np.integer)) or value not in (0, 1):
            raise UserError(f"{field.name} must be True or False, not {value!r}")


def check_number(value: Any, name: str) -> None:
    """Raise UserError unless a value is a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or value != value:
        raise UserError(f"{name} must be a number, not {value!r}")


def reject_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise UserError that lists the known options of `what` when one that does not exist is given."""
    known = list(known)
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"{what} has no option {', '.join(unknown)}; it has {', '.join(known)}")
