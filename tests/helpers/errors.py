"""Checks of error messages."""

from collections.abc import Callable
from typing import Any

from runtime.errors import MAX_MESSAGE_CHARS


def one_line(caught):
    """Message of `pytest.raises`, which must be one printable line of limited length."""
    return check_line(str(caught.value))


def check_line(message: str) -> str:
    """Return a message, which must be one printable line of limited length."""
    if len(message.splitlines()) != 1 or not message.isprintable() or len(message) > MAX_MESSAGE_CHARS + 5:
        raise AssertionError(f"not one printable line of at most {MAX_MESSAGE_CHARS} characters: {message!r}")
    return message


def expect_error(kind: type[Exception], action: Callable[[], Any]) -> None:
    """Run an action that must fail with a one-line error of this kind."""
    try:
        action()
    except kind as error:
        check_line(str(error))
    else:
        raise AssertionError(f"no {kind.__name__} where one was expected")
