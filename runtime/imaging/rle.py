"""Run lengths of masks in COCO's form."""

from __future__ import annotations

from typing import Any

import numpy as np


def encode_rle(masks_nhw: np.ndarray) -> list[dict[str, Any]]:
    """Return bool masks (N,H,W) as `{"size": [H, W], "counts": str}`."""
    from pycocotools import mask as coco

    # one by one: pycocotools holds the interpreter's lock, and other threads of a server have to go on
    codes = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks_nhw]
    return [{"size": list(code["size"]), "counts": code["counts"].decode("ascii")} for code in codes]
