"""The exceptions that a caller meets.

Every message says what is wrong, where, and how to mend it, in one line. The command turns `UserError` into exit
code 2 (the caller's mistake) and every other `RuntimeFault` into exit code 1 (ours), without a traceback.
"""

from __future__ import annotations

import sys

LONGEST = 1000
"""Characters of a message. Of a longer one, which repeats what it was given, the middle is left out."""


class RuntimeFault(Exception):
    """Something went wrong that is not the caller's doing (a full disk, a backend that fails). Exit code 1.

    Messages often repeat names out of a file; whatever those hold, the message stays one printable line.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class UserError(RuntimeFault):
    """The caller can mend it: a bad argument, a bad file, a bundle that does not fit. Exit code 2."""


class BundleError(UserError):
    """A bundle is missing, incomplete, altered, of a newer format, or built for other hardware."""


class PromptError(UserError):
    """A prompt is empty, blank, too long, of the wrong type, or the bundle cannot take it."""


class VideoError(UserError):
    """A video or picture cannot be read, holds no frame, or changes its size on the way."""


class BackendError(UserError):
    """The backend that was asked for is not installed or cannot run this bundle on this machine."""


def fail(error: RuntimeFault) -> int:
    """Tell a command's user; returns the command's exit code."""
    print(f"error: {error}", file=sys.stderr)
    return 2 if isinstance(error, UserError) else 1


def one_line(text: str) -> str:
    """`text` on one line of at most `LONGEST` characters: white space is one blank, what cannot be shown is escaped."""
    text = " ".join(_shortened(text).split())
    if not text.isprintable():
        text = _shortened("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))
    return text


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST * 2 // 3]} ... {text[-(LONGEST // 4) :]}"
