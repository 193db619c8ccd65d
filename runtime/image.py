"""One picture, and whatever the networks of a bundle can say about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .media.image_files import check_frame
from .media.video_reader import open_video
from .models.sam2.image import ImageSession
from .prompts import Text, check_sentences
from .results import Prediction, Result

if TYPE_CHECKING:
    from .results import Segment


class Picture:
    """Made by `Engine.image`. Each network encodes the picture when it is first asked, and once."""

    def __init__(self, engine: Any, picture: Any) -> None:
        """`picture`: uint8 RGB (H,W,3), or a path. Raises VideoError."""
        if isinstance(picture, (str, Path)):
            with open_video(picture, max_frames=1) as opened:
                picture = next(opened)
        self._engine, self.frame = engine, check_frame(picture, 0, None)
        self._clicked: ImageSession | None = None
        self._seen: Any = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.frame.shape[:2]

    def predict(self, points: Any = None, labels: Any = None, **prompt: Any) -> Prediction:
        """Masks for clicks, a box or mask logits; see `ImageSession.predict`. Raises PromptError, UserError."""
        return self._by_clicks().predict(points, labels, **prompt)

    def segment_all(self, **options: Any) -> list[Segment]:
        """Masks of everything in the picture; see `ImageSession.segment_all`. Raises UserError."""
        return self._by_clicks().segment_all(**options)

    def _by_clicks(self) -> ImageSession:
        if self._clicked is None:
            self._clicked = self._engine.network("image", "segment by clicks").image(self.frame)
        return self._clicked

    def refer(self, prompts: Sequence[Text], logits: bool = False) -> Result:
        """One mask per sentence, at the picture's size.

        prompts  sentences, in one batch
        logits   whether the result carries `low_res_logits`, and `coarse_logits` where the network has them
        A network for videos answers too: the picture is a video of one frame, and nothing is remembered.
        Raises PromptError for a sentence the bundle cannot take, UserError for a bundle that takes none.
        """
        check_sentences(prompts)
        network = next((n for n in self._engine.networks.values() if hasattr(n, "refer")), None)
        if network is None:
            with self._engine.session(prompts, logits) as session:
                return next(iter(session.stream([self.frame])))
        if self._seen is None:
            self._seen = network.see(self.frame)
        return network.refer(self._seen, prompts, logits)
