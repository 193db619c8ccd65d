"""One step of a cross-modal adapter: the newest frames of a clip whose earlier frames are not computed again.

Of an earlier frame its map is kept as it enters hierarchical selective attention. Only its keys and values are
projected, with its present position in the clip, and its map counts in the average that the words attend to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.positions import sine_steps
from .cross_modal_adapter import AdapterStage, from_patches, to_patches


class AdapterStep(nn.Module):
    """vision (T,h,w,C), text (L,W), kept (K,h,w,D), kept_index (K) -> both adapted, narrow (T,h,w,D).

    The T newest frames are the last ones of a clip of K + T. `kept_index` is the place of each kept map in the clip,
    from 0; kept maps come in any order. `narrow` are the maps to keep of the newest frames.
    """

    def __init__(self, whole: AdapterStage) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, vision: Tensor, text: Tensor, kept: Tensor, kept_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.whole
        narrow = a.down(vision).relu()
        t = a.text_down(text)[None]
        clip = torch.cat((kept, narrow))
        y = narrow + self.selective(clip, kept.shape[0], kept_index) if a.patch else narrow
        pixels = y.flatten(0, 2)[None]
        y = (pixels * a.v2t(pixels, t))[0].view_as(narrow)
        t = t * a.t2v(t, clip.mean(0).flatten(0, 1)[None])
        return vision + a.up(y).relu(), text + a.text_up(t[0]), narrow

    def selective(self, clip_thwc: Tensor, num_kept: int, kept_index: Tensor) -> Tensor:
        """Return the output of hierarchical selective attention for the frames behind the kept ones."""
        a = self.whole
        x = to_patches(clip_thwc[None], a.patch)
        time = sine_steps(clip_thwc, x.shape[-1])
        time = torch.cat((time[kept_index], time[num_kept:]))
        x = a.norm(x + time[:, None] + a.positions)
        newest, every = x[:, num_kept:].flatten(1, 2), x.flatten(1, 2)
        num_chunks = max(n for n in (1, 2, 4) if x.shape[0] % n == 0)
        attended = a.attention(newest, every, (0, num_chunks))
        return from_patches(attended, a.patch, *clip_thwc.shape[1:3])[0]
