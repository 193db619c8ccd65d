"""Files on disk that FFmpeg reads by way of a playlist, or of an address such as `concat:a.ts|b.ts`."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

_PLAYLIST = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:ffconcat|#EXTM3U|<\?xml|<MPD)")
"""Beginning of FFmpeg's list of files, of HLS and of DASH."""

_WRAPPER = re.compile(r"(concatf?|async|cache|crypto|file|subfile[^:]*):", re.IGNORECASE)
"""Protocols of FFmpeg that read files, or addresses of such protocols."""

_NUMBER = re.compile(r"%0?\d*d|\$[^$]*\$")
"""Number in a pattern of names: `%05d`, or `$Number$` in DASH."""

_QUOTED = re.compile(r'"([^"]*)"|>([^<>]*)<')
"""Attribute or text of an element."""


def playlist_files(path: Path) -> list[Path]:
    """Return the files that a playlist names, and those of the playlists among them; none for other files."""
    found: dict[Path, None] = {}
    pending = [path]
    while pending:
        for file in _named_files(pending.pop()):
            if file not in found:
                found[file] = None
                pending.append(file)
    return list(found)


def address_files(address: str) -> list[Path] | None:
    """Return the files of an address of files, and of the playlists among them; None for other addresses and paths."""
    if not _WRAPPER.match(address) or address.lower().startswith("file:"):
        return None
    files = [file for part in address.split("|") for file in _existing(part, Path())]
    if address.lower().startswith("concatf:"):
        files += [file for listed in files for line in _lines(listed) for file in _existing(line, Path())]
    return [*files, *(file for listed in files for file in playlist_files(listed))]


def _named_files(path: Path) -> Iterator[Path]:
    """Yield the files whose names stand in a playlist. Other words that are names of files do no harm."""
    with path.open("rb") as file:
        if not _PLAYLIST.match(file.read(64)):
            return
    for line in _lines(path):
        names = [line, *(part for pair in _QUOTED.findall(line) for part in pair)]
        if line.startswith("file"):
            names += [_unquoted(line[4:]), line[4:].strip()]
        for name in names:
            yield from _existing(name, path.parent)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in os.fsdecode(path.read_bytes()).splitlines()]


def _unquoted(text: str) -> str:
    r"""Return a word of FFmpeg's list without its quotes and escapes: 'it'\''s.mp4'."""
    words = shlex.shlex(text, posix=True)
    words.quotes, words.whitespace_split, words.commenters = "'", True, ""
    try:
        return words.get_token() or ""
    except ValueError:  # an open quote
        return ""


def _existing(name: str, folder: Path) -> Iterator[Path]:
    """Yield the files that a name may stand for, with its protocols, escapes and numbers resolved."""
    plain = name
    while match := _WRAPPER.match(plain):
        plain = plain[match.end() :]
    for text in {name, plain, unquote(plain), _unquoted(plain)}:
        path = folder / text
        if _NUMBER.search(text):
            yield from map(Path, glob.glob(_NUMBER.sub("*", glob.escape(str(path)))))
        elif os.path.isfile(path):
            yield path
