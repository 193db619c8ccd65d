"""Sources of pictures: the pages of an image file, the images of a folder, of a pattern of names, or of a list."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from ..bundle.placeholder import describe_placeholder
from ..errors import VideoError
from .frame_names import PictureNames, natural_key, unique_names
from .image_files import HEIF_ADVICE, can_read, count_pages, first_duration, read_image, read_pages
from .paths import glob_files, local_path, split_pattern
from .source import Frame, Source

FOLDER_FPS = 24.0
"""Frame rate assumed for a folder of images: that of DAVIS."""

MAX_LISTED = 20
"""File names that a message lists, and images that cannot be read."""

READABLE = ".png .jpg .webp .tif .bmp .gif ..."


def open_image_file(path: Path, pages: int, stride: int, strict: bool = False) -> Source:
    """Open an image file of `pages` pages."""
    duration = first_duration(path) if pages > 1 else None
    source = Source(
        str(path),
        (1 / duration if duration else FOLDER_FPS) / stride,
        -(-pages // stride),
        iter(()),
        count_is_exact=True,
        names=PictureNames([path.name], unique_names([path.name])) if pages == 1 else None,
        files=[path],
    )
    source.frames = read_pages(source, path, stride, strict)
    return source


def open_folder(folder: Path, stride: int, strict: bool = False) -> Source:
    """Open the images of a folder in natural order of their names: one frame each."""
    entries = sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name))
    reasons = {entry.name + "/" * entry.is_dir(): _reason(entry) for entry in entries}
    files = [folder / name for name, reason in reasons.items() if reason is None]
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    if not files:
        there = "; ".join(_left_out_notes(left_out)) or "it is empty"
        raise VideoError(f"{folder}: no images in this folder (looked for {READABLE}): {there}")
    if len(files) == 1 and (pages := count_pages(files[0])) > 1:
        source = open_image_file(files[0], pages, stride, strict)
    else:
        source = _sequence(str(folder), files, [file.name for file in files], stride, strict)
    source.notes += _left_out_notes(left_out)
    return source


def open_files(files: Sequence[str | Path], stride: int, strict: bool = False, name: str | None = None) -> Source:
    """Open a list of images in its order: one frame each. `name` for messages. Raises VideoError for other files."""
    paths = [local_path(file) for file in files]
    if not paths:
        raise VideoError("an empty list of images; give one file or more")
    for path in paths:
        if path.is_dir():
            raise VideoError(f"{path}: a folder, to be given alone; a list holds images")
        if not path.is_file():
            whole = " ".join(map(str, files))
            raise VideoError(f'put the path in quotes: "{whole}"' if Path(whole).exists() else missing(path))
        if not can_read(path.suffix.lower()) and not count_pages(path):
            raise VideoError(f"{path}: not an image; a list holds images, and a video is given alone")
    common = os.path.commonpath([path.absolute().parent for path in paths])
    names = [os.path.relpath(path.absolute(), common).replace(os.sep, "_") for path in paths]
    return _sequence(name or f"{paths[0]} ... {paths[-1].name}", paths, names, stride, strict)


def open_pattern(text: str, stride: int, strict: bool = False) -> Source | Path | None:
    """Open what a pattern such as `frames/*.jpg` or `frames/%05d.png` names: images, or the path of a single file.

    Returns None if `text` is no pattern. Raises VideoError if nothing fits it.
    """
    if re.search(r"%0?\d*d", split_pattern(text)[1]):
        found, missing_numbers = _numbered(text)
    elif glob.has_magic(text):
        found, missing_numbers = glob_files(text), ""
    else:
        return None
    if len(found) == 1:
        return Path(found[0])
    left_out = {file: reason for file in found if (reason := _reason(Path(file))) is not None}
    files = [file for file in found if file not in left_out]
    if not files:
        there = f", only {_listed(list(left_out))}; give one of them" if left_out else ""
        raise VideoError(f"{text}: no image has such a name{there}")
    source = open_files(files, stride, strict, text)
    source.notes += _left_out_notes(left_out)
    if missing_numbers:
        source.notes.append(f"{text}: there is no file for {missing_numbers}")
    return source


def missing(path: Path) -> str:
    """Return the message about a path that does not exist, with the name nearest to it that does."""
    if link := describe_placeholder(path):
        return f"{path}: {link}"
    if not path.parent.is_dir():
        advice = f"the folder {path.parent} does not exist"
    else:
        near = get_close_matches(path.name, os.listdir(path.parent), 1)
        advice = f"did you mean {path.parent / near[0]}?" if near else f"it is not in {path.parent.absolute()}"
    return f"{path}: no such file or folder; {advice}"


def _numbered(text: str) -> tuple[list[str], str]:
    """Return the files of a pattern such as `%05d.png` by number, and how many numbers between them have none."""
    match = re.match(r"(.*)%(0?\d*)d(.*)", text, re.DOTALL)
    assert match is not None
    before, number, after = match.groups()
    before, after = before.replace("%%", "%"), after.replace("%%", "%")
    digits = rf"\d{{{int(number)},}}" if number.startswith("0") and len(number) > 1 else r"\d+"
    files = {}
    for file in glob.glob(f"{glob.escape(before)}*{glob.escape(after)}"):
        middle = file[len(before) : len(file) - len(after)]
        if re.fullmatch(digits, middle):
            files[int(middle)] = file
    numbers = sorted(files)
    step = math.gcd(*(after - before for before, after in itertools.pairwise(numbers)))
    gaps = (numbers[-1] - numbers[0]) // step + 1 - len(files) if step else 0
    return [files[n] for n in numbers], f"{gaps} of the numbers {numbers[0]} to {numbers[-1]}" if gaps else ""


def _sequence(name: str, files: Sequence[Path], names: Sequence[str], stride: int, strict: bool) -> Source:
    source = Source(name, FOLDER_FPS / stride, -(-len(files) // stride), iter(()), count_is_exact=True)
    source.names, source.files = PictureNames(names, unique_names(names)), files
    source.frames = _read_files(source, files[::stride], strict)
    return source


def _read_files(source: Source, files: Sequence[Path], strict: bool) -> Iterator[Frame]:
    """Read images. Those that cannot be read are left out with a note, unless `strict` or there are no others."""
    errors: list[VideoError] = []
    notes: list[str] = []
    try:
        for position, file in enumerate(files):
            try:
                array = read_image(file, notes)
            except VideoError as error:
                if strict:
                    raise
                source.left_out.append(position)
                errors.append(error)
                continue
            yield Frame(array)
    finally:
        source.notes += notes[:MAX_LISTED]
        source.notes += [f"{source.name}: {len(notes) - MAX_LISTED} more such notes"] * (len(notes) > MAX_LISTED)
        source.notes += [f"left out: {error}" for error in errors[:MAX_LISTED]]
        source.notes += [f"left out: {len(errors) - MAX_LISTED} more images"] * (len(errors) > MAX_LISTED)
    if len(errors) == len(files):
        raise errors[0]


def _reason(entry: os.DirEntry[str] | Path) -> str | None:
    """Return why a file of a folder is not read; None for an image."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if entry.is_dir():
        return "a folder, to be given by itself"
    if entry.name.startswith("."):
        return "hidden"
    if not entry.is_file():
        return "neither a file nor a folder"
    if can_read(suffix):
        return None
    return HEIF_ADVICE if suffix in (".heic", ".heif") else f"not an image ({READABLE})"


def _left_out_notes(reasons: Mapping[str, str]) -> list[str]:
    """Return a note for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"{_listed(names)} {'is' if len(names) == 1 else 'are'} not read: {r}" for r, names in by_reason.items()]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
