"""Image API: point, box and mask prompts, automatic masks, sentences and concepts on one image."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError, VideoError, check_number, reject_unknown
from .media.video_reader import VideoReader, open_video
from .models import Networks
from .models.base import Capability, ConceptImage, PromptImage, TextImage
from .models.options import AutomaticMaskKeywords, AutomaticMaskOptions, TextOptions
from .prompts import Concept, Text, check_concepts, check_texts
from .results import Prediction, Result, Segment
from .tracking.session import synchronized

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ImagePredictor:
    """One image and the networks of a bundle; made by `Engine.image`. Each network encodes it once, on first use.

    It may be used from any thread; see `Engine`.
    """

    def __init__(self, networks: Networks, image: Any) -> None:
        """`image`: uint8 RGB (H,W,3), also in GPU memory, an image of Pillow, or a path. Raises VideoError."""
        if isinstance(image, (str, os.PathLike)):
            with open_video(image if isinstance(image, str) else Path(image), max_frames=2) as opened:
                image, has_more = next(opened), _has_more(opened)
            if has_more:  # after closing: the decoder's thread ignores warnings of Pillow, and all others meanwhile
                warnings.warn(f"{opened.name}: its first frame is taken, and no other", stacklevel=3)
        # a copy: networks encode it later, when the caller may have used the buffer again
        self._networks, self.frame = networks, networks.frame_reader.check_image(image)
        self._lock = networks.lock
        self._prompt_image: PromptImage | None = None
        self._text_image: TextImage | None = None
        self._concept_image: ConceptImage | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.frame.shape[:2]
        return height, width

    @synchronized
    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask: bool = True,
        normalized: bool = False,
    ) -> Prediction:
        """Predict masks for a prompt, or for a batch of B prompts of one kind.

        points      (K,2) x, y in pixels, or (B,K,2); labels (K,) or (B,K), 1 on the object, 0 beside it
        box         (4,) left, top, right, bottom, or (B,4)
        mask_input  (s,s) or (1,s,s) logits of an earlier prediction, or (B,1,s,s)
        multimask   three candidates; else one, mask 0 or the best candidate where mask 0 is unstable
        normalized  points and boxes are given in 0..1
        Raises PromptError, UserError.
        """
        return self._encoded().predict(points, labels, box, mask_input, multimask, normalized)

    @synchronized
    def segment_all(self, **options: Unpack[AutomaticMaskKeywords]) -> list[Segment]:
        """Segment everything in the image, without prompts; see `AutomaticMaskOptions`. Raises UserError."""
        reject_unknown("segment_all", options, AutomaticMaskKeywords.__annotations__)
        return self._encoded().segment_all(AutomaticMaskOptions(**options))

    def _encoded(self) -> PromptImage:
        if self._prompt_image is None:
            self._prompt_image = self._networks.prompt_image.open_image(self.frame)
        return self._prompt_image

    def refer(self, prompts: Sequence[Text], logits: bool = False) -> Result:
        """Find one mask per sentence, at the size of the image; all sentences are one batch.

        `logits`: whether the result carries `low_res_logits`, and `coarse_logits` where the network has them. A network
        for videos is accepted, too: the image is a video of one frame.
        Raises PromptError for a sentence the bundle cannot take, UserError for a bundle that takes none.
        """
        check_texts(prompts)
        if Capability.TEXT_IMAGE not in self._networks.capabilities:
            open_session = self._networks.text_video.open_text_session
            with self._lock.run(open_session, prompts, logits, TextOptions()) as session:
                return next(session.stream([self.frame]))
        return self._lock.run(self._refer, prompts, logits)

    def _refer(self, prompts: Sequence[Text], logits: bool) -> Result:
        if self._text_image is None:
            self._text_image = self._networks.text_image.encode_image(self.frame)
        return self._text_image.refer(prompts, logits)

    @synchronized
    def detect(
        self, concepts: Sequence[Concept | Text], threshold: float = 0.5, logits: bool = False, semantic: bool = False
    ) -> list[Result]:
        """Find all objects of each concept, several concepts in one batch; one result per concept.

        concepts   words, exemplar boxes, or both
        threshold  probability above which an object is returned
        logits     whether results carry `low_res_logits`
        semantic   whether results carry `semantic_mask`
        Object ids count the objects of a result from 1, `prompt_ids` repeat the number of the concept, `boxes` are the
        network's own, which may reach beyond the image. Raises PromptError, UserError.
        """
        wanted = check_concepts(concepts)
        check_number(threshold, "threshold")
        if not 0 <= threshold < 1:
            raise UserError(f"threshold must be in 0..1, not {threshold}")
        if self._concept_image is None:
            self._concept_image = self._networks.concept_image.open_concept_image(self.frame)
        return self._concept_image.detect(wanted, threshold, logits, semantic)


def _has_more(opened: VideoReader) -> bool:
    """Tell whether a frame follows the first one."""
    if opened.count_is_exact:
        return opened.count != 1
    try:
        return next(opened, None) is not None
    except VideoError:  # of another size, for example
        return True
