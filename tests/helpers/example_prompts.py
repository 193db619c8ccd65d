"""Command lines with prompts, and prompt files."""

from __future__ import annotations

import json
from typing import Any


def examples() -> list[Any]:
    """{"argv": [...], "files": {name: text or JSON}}; in `argv`, FILES stands for the folder of the files."""
    entries = [
        {"object": 1, "frame": 0, "points": [[1, 2], [3.5, 4]], "labels": [1, 0], "name": "a"},
        {"object": 2, "box": [1, 2, 3, 4]},
        {"mask": "a.png", "frame": 2},
    ]
    commands = (
        "--text the_red_square --verbs red",
        "--tokens 0,5,2 --verbs 1",
        "--auto",
        "--help",
        "--point 20,30,-@12#2 --point 1.5,2",
        "--box 1,2,30,40#3@7 --point 5,6",
        "--exemplar 5,6,7,8@9 --concept the_red_square --exemplar 1,2,30,40,-@3 --exemplar 1,2,3,4.5",
        "--mask FILES/a.png@3#9",
        "--prompts FILES/p.json",
        "--stride 3 --point 1,1@6",
        "--max-frames 5 --window 2 --threads 2 --conditional-memory on",
    )
    return [
        {"argv": [w.replace("_", " ") for w in line.split()], "files": {"p.json": content}}
        for line in commands
        for content in (entries, json.dumps(entries))
    ]
