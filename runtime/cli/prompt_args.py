"""Points, boxes and masks from the command line or from a prompt file.

On the command line: `x,y` with `,+` (on the object, the default) or `,-` (on the background), then `@frame` (default 0)
or `@name:picture`, and `#object`. A box or mask without `#` starts a new object; a point without `#` belongs to the
object named last. A prompt file is a JSON list of objects like {"object": 1, "frame": 0, "points": [[x, y]], "labels":
[1]}, {"object": 2, "box": [left, top, right, bottom]}, {"object": 3, "mask": "mask.png", "name": "label of the
object"}.

A mask file may hold several objects (`mask_files.py`). Their ids are its indices, or the next ones free for colours;
later files of this kind prompt the same objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PromptError, UserError
from ..media.frame_names import PictureNames
from ..media.paths import local_path
from ..prompts import Box, Mask, Points
from ..prompts.mask_values import NO_LABEL
from ..prompts.numbers import floats
from .frame_args import (
    NAME_PREFIX,
    check_frame,
    describe_unused,
    parse_frame,
    parse_int,
    resolve_frames,
    split_suffixes,
)
from .mask_files import Masks, read_masks
from .text_files import read_json

VisualPrompt = Points | Box | Mask

ENTRY_KEYS = ("box", "frame", "labels", "mask", "name", "object", "points")


@dataclass(slots=True)
class PromptSet:
    """Visual prompts of a run.

    prompts   frame number in the source -> object id -> prompts
    named     name of a picture -> object id -> prompts, until `resolve_names`
    labels    object id -> label
    last      object id of the prompt added last; 0 before the first
    numbered  label in mask files of several objects -> object id
    longer_names  name of a picture -> the same with the `#object` that followed, which may belong to the name
    files     files that were read
    notes     remarks on mask files, to show at the end of the run
    """

    prompts: dict[int, dict[int, list[VisualPrompt]]] = field(default_factory=dict)
    named: dict[str, dict[int, list[VisualPrompt]]] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    last: int = 0
    longer_names: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    numbered: dict[Any, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, prompt: VisualPrompt, frame: int | str, obj: int | None, name: str | None = None) -> None:
        """Add one prompt, on the frame of a number or name. Points on the same object and frame are merged.

        Without `obj` it belongs to a new object, or, if it is a point, to the object named last.
        """
        if obj is None:
            is_new = not isinstance(prompt, Points) or not self.last
            obj = max(self.labels, default=0) + 1 if is_new else self.last
        if obj < 1:
            raise PromptError(f"object {obj}: ids start at 1")
        self.last = obj
        self.labels[obj] = name or self.labels.get(obj) or f"object {obj}"
        parts = self._objects(frame).setdefault(obj, [])
        if isinstance(prompt, Points):
            if parts and isinstance(previous := parts[-1], Points):
                parts.pop()
                points = np.concatenate([previous.points, prompt.points])
                prompt = Points(points, np.concatenate([previous.labels, prompt.labels]))
        elif any(not isinstance(part, Points) for part in parts):
            where = f"object {obj} already has a box or mask on frame {frame}"
            raise PromptError(f"{where}; give one of them another #object")
        if parts and Mask in (type(prompt), type(parts[0])):
            raise PromptError(f"object {obj}, frame {frame}: a mask prompt cannot be combined with points or a box")
        parts.append(prompt)

    def _objects(self, frame: int | str) -> dict[int, list[VisualPrompt]]:
        """Return the prompts on a frame by object, to be changed."""
        return self.named.setdefault(frame, {}) if isinstance(frame, str) else self.prompts.setdefault(frame, {})

    def resolve_names(self, names: PictureNames | None) -> None:
        """Find the frames of prompts on pictures by name, and note numbers that may be meant as names.

        `names`: those of the source; None if its frames have numbers only. Raises PromptError.
        """
        for name, longer in self.longer_names.items():
            if names is not None and names.has(longer):
                if names.has(name):
                    raise PromptError(f"@{NAME_PREFIX}{longer}: may be two pictures; write the ending of its name, too")
                self.named[longer] = self.named.pop(name)
        found = resolve_frames(self.prompts, self.named, names, self.notes)
        for name, objects in self.named.items():
            for obj, part in [(obj, part) for obj, parts in objects.items() for part in parts]:
                self.add(part, found[name], obj)
        self.named.clear()

    def add_file(self, path: Path, frame: int | str, obj: int | None, name: str | None = None) -> None:
        """Add the mask file `path`: each of its objects, or only `obj`. Raises PromptError."""
        self.files.append(path)
        masks, notes = read_masks(path)
        self.notes += [note for note in notes if note not in self.notes]
        if obj is not None and len(masks) > 1:
            if obj not in masks:
                listed = ", ".join(map(str, masks))
                raise PromptError(f"{path}: holds the objects {listed}; omit the id {obj}, or give one of theirs")
            masks = {obj: masks[obj]}
        for label, mask in masks.items():
            label_id = self._labelled(label, frame, masks) if obj is None else obj
            self.add(Mask(mask), frame, label_id, f"{name} {label}" if name and len(masks) > 1 else name)
            if len(masks) > 1:
                self.numbered[label] = self.last
        if any(isinstance(label, str) for label in masks) and len(masks) > 1:
            self.notes.append(f"{path}: " + ", ".join(f"{c} is object {self.numbered[c]}" for c in masks))

    def _labelled(self, label: Any, frame: int | str, masks: Masks) -> int | None:
        """Return the object that a label of a mask file stands for; None: a new one."""
        known = self.numbered.get(label)
        if len(masks) > 1:
            return known or (label if isinstance(label, int) else None)
        if known is not None and known not in self._objects(frame):
            return known
        return label if isinstance(label, int) and label != NO_LABEL and label not in self.labels else None

    def check(self, size: tuple[int, int], stride: int, max_count: int | None) -> None:
        """Raise PromptError for a prompt outside the image (height, width) or on a frame that is not processed.

        `max_count`: number of processed frames that is not exceeded; None if unknown.
        """
        for frame, objects in self.prompts.items():
            check_frame(frame, stride, max_count)
            for obj, part in ((obj, part) for obj, parts in objects.items() for part in parts):
                try:
                    part.checked(*size) if isinstance(part, Mask) else part.scaled(*size)
                except PromptError as error:
                    raise PromptError(f"object {obj}, frame {frame}: {error}") from None

    def unused(self, processed: Sequence[int]) -> list[str]:
        """Describe the prompts on frames other than those that were processed, by their numbers in the source."""
        described = {
            frame: ", ".join(
                f"{' and '.join(p.label for p in parts)} of {self.labels[o]}" for o, parts in objects.items()
            )
            for frame, objects in self.prompts.items()
        }
        return describe_unused(described, processed)

    def by_index(self, stride: int) -> dict[int, dict[int, list[VisualPrompt]]]:
        """Return `prompts` by the number of the frame among those processed."""
        return {frame // stride: objects for frame, objects in self.prompts.items()}


def parse_prompt_set(prompt_args: Sequence[tuple[str, str]]) -> PromptSet:
    """Parse pairs of option and value, in order. Raises PromptError."""
    prompts = PromptSet()
    for option, value in prompt_args:
        if option == "--prompts":
            _read_file(prompts, local_path(value))
            continue
        match, path = split_suffixes(option, value)
        obj = match["object"] or match["first"]
        frame = parse_frame(option, match["frame"] or match["late"] or "0")
        number = parse_int(option, obj) if obj else None
        if isinstance(frame, str) and match["object"]:
            prompts.longer_names[frame] = f"{frame}#{obj}"
        if option == "--mask":
            prompts.add_file(local_path(path or match["prompt"]), frame, number)
        else:
            prompts.add(_PARSERS[option](match["prompt"]), frame, number)
    return prompts


def _parse_point(text: str) -> Points:
    *numbers, sign = text.split(",") if text.count(",") == 2 else (*text.split(","), "+")
    label = {"+": 1, "1": 1, "-": 0, "0": 0}.get(sign.strip())
    try:
        x, y = map(float, numbers)
    except ValueError:
        label = None
    if label is None:
        raise PromptError(f"--point {text!r}: give x,y or x,y,- in pixels, like 200,130 or 200,130,-@12#2")
    return Points([[x, y]], [label])


def _parse_box(text: str) -> Box:
    try:
        corners = [float(part) for part in text.split(",")]
    except ValueError:
        corners = []
    if len(corners) != 4:
        raise PromptError(f"--box {text!r}: give left,top,right,bottom in pixels, like 350,150,600,330 or 0,0,9,9@12#2")
    return Box(corners)


_PARSERS: dict[str, Callable[[str], Points | Box]] = {"--point": _parse_point, "--box": _parse_box}


def _read_file(prompts: PromptSet, path: Path) -> None:
    prompts.files.append(path)
    try:
        entries = read_json(path)
    except UserError as error:
        raise PromptError(f"--prompts {error}") from None
    if not isinstance(entries, list) or not entries:
        raise PromptError(f'--prompts {path}: must be a list of prompts, like [{{"box": [0, 0, 9, 9]}}]')
    for number, entry in enumerate(entries):
        try:
            _add_entry(prompts, entry, path.parent)
        except PromptError as error:
            raise PromptError(f"--prompts {path}: prompt {number}: {error}") from None


def _add_entry(prompts: PromptSet, entry: Any, folder: Path) -> None:
    if not isinstance(entry, dict) or set(entry) - set(ENTRY_KEYS):
        raise PromptError(f"must be an object with some of {', '.join(ENTRY_KEYS)}")
    frame, obj, name = _whole(entry.get("frame", 0)), _whole(entry.get("object")), entry.get("name")
    is_name = isinstance(frame, str) and len(frame) > len(NAME_PREFIX) and frame.startswith(NAME_PREFIX)
    is_number = type(frame) is int and frame >= 0
    if not (is_name or is_number) or (obj is not None and type(obj) is not int):
        raise PromptError('frame and object must be integers, or frame a name like "name:00005"')
    frame = frame.removeprefix(NAME_PREFIX) if is_name else frame
    if (name is not None and not isinstance(name, str)) or not isinstance(entry.get("mask", ""), str):
        raise PromptError("name and mask must be strings")
    parts: list[Points | Box] = []
    if "box" in entry:
        parts.append(Box(entry["box"]))
    if "points" in entry:
        points = floats(entry["points"], "points")
        parts.append(Points(points, entry.get("labels", [1] * max(points.size // 2, 1))))
    if "mask" in entry:
        prompts.add_file(folder / entry["mask"], frame, obj, name)
        obj = prompts.last
    elif not parts:
        raise PromptError("needs at least one of points, box and mask")
    for part in parts:
        prompts.add(part, frame, obj, name)
        obj = prompts.last


def _whole(value: Any) -> Any:
    """Return a float without fraction as an integer, and other values as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
