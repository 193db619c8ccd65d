"""Check of error messages."""

from runtime.errors import MAX_MESSAGE_CHARS


def one_line(caught):
    """Message of `pytest.raises`, which must be one printable line of limited length."""
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.isprintable() and len(message) <= MAX_MESSAGE_CHARS + 5
    return message
