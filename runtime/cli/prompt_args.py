"""Clicks, boxes and masks from the command line or from a prompt file.

On the command line: `x,y` with `,+` (on the object, the default) or `,-` (beside it), then `@frame` (default 0) and
`#object`. A box or mask without `#` starts a new object; a point without `#` belongs to the object named last. A prompt
file is a JSON list of objects like {"object": 1, "frame": 0, "points": [[x, y]], "labels": [1]}, {"object": 2, "box":
[left, top, right, bottom]}, {"object": 3, "mask": "mask.png", "name": "what to write beside it"}.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PromptError, VideoError, summarize
from ..media.image_files import read_image
from ..prompts import Box, Mask, Points

_PLACE = re.compile(r"(?P<what>.*?)(?:@(?P<frame>\d+))?(?:#(?P<object>\d+))?(?:@(?P<late>\d+))?$", re.DOTALL)


@dataclass(slots=True)
class Pointed:
    """`prompts` by frame of the source, then by object id; `labels` by object id."""

    prompts: dict[int, dict[int, list[Points | Box | Mask]]] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    last: int = 0

    def add(self, prompt: Points | Box | Mask, frame: int, obj: int | None, name: str | None = None) -> None:
        """Add one prompt; `obj` None as the head of this file says. Points on one object and frame are joined."""
        if obj is None:
            fresh = not isinstance(prompt, Points) or not self.last
            obj = max(self.labels, default=0) + 1 if fresh else self.last
        if obj < 1:
            raise PromptError(f"object {obj}: ids start at 1")
        self.last = obj
        self.labels[obj] = name or self.labels.get(obj) or f"object {obj}"
        parts = self.prompts.setdefault(frame, {}).setdefault(obj, [])
        if isinstance(prompt, Points) and parts and isinstance(parts[-1], Points):
            old = parts.pop()
            prompt = Points([*old.points, *prompt.points], [*old.labels, *prompt.labels])
        if not isinstance(prompt, Points) and any(not isinstance(part, Points) for part in parts):
            raise PromptError(
                f"object {obj} has a box or mask on frame {frame} already; give the other one its own #object"
            )
        if parts and Mask in (type(prompt), type(parts[0])):
            raise PromptError(f"object {obj}, frame {frame}: a mask says it all; leave points and boxes away")
        parts.append(prompt)

    def check(self, size: tuple[int, int], stride: int, count: int | None) -> None:
        """Raise PromptError for what lies outside the picture (height, width), or on a frame that will not be seen."""
        for frame, objects in self.prompts.items():
            if frame % stride:
                raise PromptError(f"frame {frame} is not looked at with --stride {stride}; prompt a multiple of it")
            if count is not None and frame // stride >= count:
                raise PromptError(f"frame {frame} is not looked at: the last one is {(count - 1) * stride}")
            for part in (part for parts in objects.values() for part in parts):
                part.checked(*size) if isinstance(part, Mask) else part.scaled(*size)

    def by_index(self, stride: int) -> dict[int, dict[int, list[Points | Box | Mask]]]:
        """`prompts` by the number of the frame among those that are looked at."""
        return {frame // stride: objects for frame, objects in self.prompts.items()}


def read(pairs: list[tuple[str, str]]) -> Pointed:
    """Prompts from options and their values, in their order. Raises PromptError."""
    pointed = Pointed()
    for option, value in pairs:
        if option == "--prompts":
            _file(pointed, Path(value))
            continue
        match = _PLACE.match(value)
        frame = _whole(option, match["frame"] or match["late"] or "0")
        obj = _whole(option, match["object"]) if match["object"] else None
        pointed.add(_MAKE[option](match["what"]), frame, obj)
    return pointed


def _whole(option: str, digits: str) -> int:
    if len(digits) > 18:
        raise PromptError(f"{option}: no frame or object has a number of {len(digits)} digits")
    return int(digits)


def _point(text: str) -> Points:
    *numbers, sign = text.split(",") if text.count(",") == 2 else (*text.split(","), "+")
    label = {"+": 1, "1": 1, "-": 0, "0": 0}.get(sign.strip())
    try:
        x, y = map(float, numbers)
    except ValueError:
        x = label = None
    if label is None:
        raise PromptError(f"--point {text!r}: give x,y or x,y,- in pixels, like 200,130 or 200,130,-@12#2")
    return Points([[x, y]], [label])


def _box(text: str) -> Box:
    try:
        corners = [float(part) for part in text.split(",")]
    except ValueError:
        corners = []
    if len(corners) != 4:
        raise PromptError(f"--box {text!r}: give left,top,right,bottom in pixels, like 350,150,600,330 or 0,0,9,9@12#2")
    return Box(corners)


def _mask(text: str, folder: Path = Path()) -> Mask:
    try:
        return Mask(read_image(folder / text).any(axis=2))
    except VideoError as error:
        raise PromptError(f"--mask {error}") from None


_MAKE = {"--point": _point, "--box": _box, "--mask": _mask}


def _file(pointed: Pointed, path: Path) -> None:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PromptError(f"--prompts {path}: not readable as JSON ({summarize(error)})") from None
    if not isinstance(entries, list) or not entries:
        raise PromptError(f'--prompts {path}: must be a list of prompts, like [{{"box": [0, 0, 9, 9]}}]')
    for number, entry in enumerate(entries):
        try:
            _entry(pointed, entry, path.parent)
        except PromptError as error:
            raise PromptError(f"--prompts {path}: prompt {number}: {error}") from None


def _entry(pointed: Pointed, entry: Any, folder: Path) -> None:
    known = {"object", "frame", "points", "labels", "box", "mask", "name"}
    if not isinstance(entry, dict) or set(entry) - known:
        raise PromptError(f"must be an object with some of {', '.join(sorted(known))}")
    frame, obj, name = entry.get("frame", 0), entry.get("object"), entry.get("name")
    if type(frame) is not int or frame < 0 or (obj is not None and type(obj) is not int):
        raise PromptError("frame and object must be whole numbers")
    if (name is not None and not isinstance(name, str)) or not isinstance(entry.get("mask", ""), str):
        raise PromptError("name and mask must be strings")
    parts: list[Points | Box | Mask] = []
    if "box" in entry:
        parts.append(Box(entry["box"]))
    if "mask" in entry:
        parts.append(_mask(entry["mask"], folder))
    if "points" in entry:
        points = entry["points"]
        parts.append(Points(points, entry.get("labels", [1] * len(points) if isinstance(points, list) else 1)))
    if not parts:
        raise PromptError("it has neither points nor box nor mask")
    for part in parts:
        pointed.add(part, frame, obj, name)
        obj = pointed.last
