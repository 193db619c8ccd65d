"""Run lengths of masks in COCO's form."""

from __future__ import annotations

from typing import Any

import numpy as np


def encode_rle(masks_nhw: np.ndarray) -> list[dict[str, Any]]:
    """Return bool masks (N,H,W) as `{"size": [H, W], "counts": str}`."""
    from pycocotools import mask as coco

    codes = coco.encode(np.asfortranarray(masks_nhw.transpose(1, 2, 0), np.uint8)) if len(masks_nhw) else []
    return [{"size": list(code["size"]), "counts": code["counts"].decode("ascii")} for code in codes]
