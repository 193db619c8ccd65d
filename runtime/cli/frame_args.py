"""Frames and objects that follow a prompt on the command line: `@12`, `@name:00005`, `#2`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..errors import PromptError
from ..media.frame_names import PictureNames
from ..media.paths import local_path

NAME_PREFIX = "name:"
"""Prefix of a picture's name where a frame's number may be given."""

_SUFFIXES = re.compile(
    rf"(?P<prompt>.*?)(?:(?:@(?P<frame>\d+|{NAME_PREFIX}.+?))?(?:#(?P<object>\d+))?"
    rf"|#(?P<first>\d+)@(?P<late>\d+|{NAME_PREFIX}.+))$",
    re.DOTALL,
)


def resolve_frames(
    numbers: Iterable[int], named: Iterable[str], names: PictureNames | None, notes: list[str]
) -> dict[str, int]:
    """Return the frames of pictures by name, and note `numbers` of frames that may be meant as names.

    `names`: those of the source; None if its frames have numbers only. Raises PromptError.
    """
    if names is None:
        for name in named:
            raise PromptError(f"@{NAME_PREFIX}{name}: only images have names; give the number of a frame, like @5")
        return {}
    for number in sorted(numbers):
        if (other := names.other_numbered(number)) is not None:
            advice = f"for the picture named {other} write @{NAME_PREFIX}{other}"
            if number >= len(names.files):
                raise PromptError(f"there is no frame {number}, the last one is {len(names.files) - 1}; {advice}")
            notes.append(f"frame {number} is {names.files[number]}; {advice}")
    return {name: names.find(name) for name in named}


def check_frame(frame: int, stride: int, max_count: int | None) -> None:
    """Raise PromptError for a prompt on a frame that is not processed; `max_count` as in `PromptSet.check`."""
    last = None if max_count is None else (max_count - 1) * stride
    before = frame - frame % stride
    if last is not None and before > last:
        raise PromptError(f"frame {frame} is not processed: the last one is {last}")
    if before < frame:
        after = f" or {before + stride}" if last is None or before < last else ""
        raise PromptError(f"frame {frame} is skipped by --stride {stride}; prompt frame {before}{after}")


def describe_unused(prompts: Mapping[int, str], processed: Sequence[int]) -> list[str]:
    """Describe the prompts on frames other than those that were processed, by their numbers in the source."""
    last, numbers = processed[-1] if processed else -1, set(processed)
    return [
        f"frame {frame} did not come (the last one is {last}); not used: {prompt}"
        for frame, prompt in sorted(prompts.items())
        if frame not in numbers
    ]


def split_frame(option: str, text: str) -> tuple[str, int | str]:
    """Split `@frame` or `@name:picture` off a prompt; without it the frame is 0. Raises PromptError."""
    match = _SUFFIXES.match(text)
    assert match is not None
    if match["object"]:
        raise PromptError(f"{option} {text!r}: takes no #object; it belongs to the --concept before it")
    return match["prompt"], parse_frame(option, match["frame"] or "0")


def split_suffixes(option: str, value: str) -> tuple[re.Match[str], str]:
    """Split a value into a prompt and its suffixes; return the match, and the mask file that exists, if any."""
    ends = [len(value), *(i for i in range(len(value) - 1, 0, -1) if value[i] in "@#")]
    for end in ends if option == "--mask" else ():
        suffixes = _SUFFIXES.match(value[end:])
        if suffixes is not None and not suffixes["prompt"] and local_path(value[:end]).is_file():
            return suffixes, value[:end]
    match = _SUFFIXES.match(value)
    assert match is not None  # every group may be empty
    return match, ""


def parse_frame(option: str, text: str) -> int | str:
    return text.removeprefix(NAME_PREFIX) if text.startswith(NAME_PREFIX) else parse_int(option, text)


def parse_int(option: str, digits: str) -> int:
    if len(digits) > 18:
        raise PromptError(f"{option}: a frame or object number of {len(digits)} digits is too large")
    return int(digits)
