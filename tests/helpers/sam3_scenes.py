"""Procedural scenes of the SAM 3 orchestration cases: what a detector and a tracker report, frame by frame.

A scene is a small dictionary (stored in the case's json) of *sources*: moving
ellipses on the 288x288 grid of mask logits.  From it come, frame by frame,

    detections(scene, t)          what the detector reports: mask logits and scores
    track(scene, key, birth, t)   what the tracker reports for an object that was
                                  born from a detection of source `key` on frame `birth`

so a case needs no network: the code under test gets these two as input and has
to make the decisions.  Everything is integer arithmetic followed by one IEEE
division, so two machines get bit-identical arrays.

A source is a dictionary with
    key       name
    path      waypoints [frame, cx, cy, rx, ry], 1/16 of a grid cell, linear in
              between (floor), held before the first and after the last one
    slot      row of the detector output that holds it
    detect    intervals [first, last, score]; not reported on other frames
    missed    frames on which the detector overlooks it
    echo      list of [slot, score * 1000, dx, dy]: weaker copies of the detection
    track     intervals [first, last, score logit]; outside them the track is empty
              (all logits -10, score logit -6)
    lead      optional: [frame, path] -- from `frame` on, the *track* follows this
              other path (it has been captured by another object)
    height    peak of the mask logits (default 8)
    holes     list of [dx, dy, w, h] in grid cells from the centre, set to -3
    specks    list of [dx, dy, w, h] in grid cells from the centre, set to +3
              (holes and specks are in the track, and in the detection)
"""

from __future__ import annotations

import itertools
import zlib

import numpy as np

GRID = 288
EMPTY = np.float32(-10.0)


def _hash(*parts) -> int:
    return zlib.crc32("/".join(str(p) for p in parts).encode("utf-8")) & 0xFFFFFFFF


def _at(path: list, t: int) -> tuple:
    """Waypoints -> (cx, cy, rx, ry) on frame t, integers."""
    if t <= path[0][0]:
        return tuple(path[0][1:])
    for a, b in itertools.pairwise(path):
        if t <= b[0]:
            return tuple(p + (q - p) * (t - a[0]) // (b[0] - a[0]) for p, q in zip(a[1:], b[1:], strict=True))
    return tuple(path[-1][1:])


_YY, _XX = np.meshgrid(
    np.arange(GRID, dtype=np.int64) * 16 + 8, np.arange(GRID, dtype=np.int64) * 16 + 8, indexing="ij"
)


def ellipse(cx: int, cy: int, rx: int, ry: int, peak: float, holes=(), specks=()) -> np.ndarray:
    """float32 logits: peak * (1 - (dx/rx)^2 - (dy/ry)^2), not below -10."""
    rx, ry = max(int(rx), 8), max(int(ry), 8)
    area = (rx * ry) ** 2
    level = area - (_XX - cx) ** 2 * (ry * ry) - (_YY - cy) ** 2 * (rx * rx)
    out = np.maximum(np.float64(peak) * level / area, -10.0).astype(np.float32)
    x0, y0 = cx // 16, cy // 16
    for value, squares in ((np.float32(-3.0), holes), (np.float32(3.0), specks)):
        for dx, dy, w, h in squares:
            top, left = max(y0 + dy, 0), max(x0 + dx, 0)
            out[top : max(y0 + dy + h, 0), left : max(x0 + dx + w, 0)] = value
    return out


def _source(scene: dict, key: str) -> dict:
    return next(s for s in scene["sources"] if s["key"] == key)


def _value(intervals: list, t: int):
    for first, last, value in intervals:
        if first <= t <= last:
            return value
    return None


def detections(scene: dict, t: int):
    """(mask logits float32 [Q, 288, 288], scores float32 [Q], list of source keys or None)."""
    rows = scene["queries"]
    masks = np.full((rows, GRID, GRID), EMPTY, np.float32)
    scores = np.array([(5 + i) / 1000 for i in range(rows)], np.float32)
    keys: list = [None] * rows
    for s in scene["sources"]:
        score = _value(s["detect"], t)
        if score is None or t in s.get("missed", ()):
            continue
        h = _hash(scene["seed"], s["key"], t, "detector")
        cx, cy, rx, ry = _at(s["path"], t)
        jitter = (h % 41 - 20) / 2000
        copies = [(s["slot"], score + jitter, 0, 0)]
        copies += [(e[0], score + jitter - e[1] / 1000, e[2], e[3]) for e in s.get("echo", ())]
        for n, (slot, p, dx, dy) in enumerate(copies):
            g = (h >> 8) + 7 * n
            masks[slot] = ellipse(
                cx + dx + g % 9 - 4,
                cy + dy + g // 9 % 9 - 4,
                rx + g // 81 % 5 - 2,
                ry + g // 405 % 5 - 2,
                6.0,
                s.get("holes", ()),
                s.get("specks", ()),
            )
            scores[slot] = np.float32(p)
            keys[slot] = s["key"]
    return masks, scores, keys


def track(scene: dict, key: str, birth: int, t: int):
    """(mask logits float32 [288, 288], object score logit) of an object born from `key` on frame `birth`."""
    s = _source(scene, key)
    h = _hash(scene["seed"], key, birth, t, "tracker")
    score = 10.0 if t == birth else _value(s["track"], t)
    if score is None:
        return np.full((GRID, GRID), EMPTY, np.float32), -6.0 - (h % 7) / 8
    path = s["path"]
    if "lead" in s and t >= s["lead"][0]:
        path = _source(scene, s["lead"][1])["path"]
    cx, cy, rx, ry = _at(path, t)
    mask = ellipse(
        cx + h % 7 - 3,
        cy + h // 7 % 7 - 3,
        rx + h // 49 % 5 - 2,
        ry + h // 245 % 5 - 2,
        s.get("height", 8.0),
        s.get("holes", ()),
        s.get("specks", ()),
    )
    return mask, score + (0.0 if t == birth else (h >> 12) % 64 / 64)
