"""Prompts: a sentence (`Text`), a concept (`Concept`), or points, a box or a mask of one object.

Plain values that check themselves when they are made, so that a mistake is reported where it was made. Checks that
need the size of the video are in `scaled` and `checked`, those that need the bundle in `tokenizer.encode`.
"""

from .concept import Concept, check_concepts
from .text import Text, check_texts
from .visual import Box, Mask, Points

__all__ = ["Box", "Concept", "Mask", "Points", "Text", "check_concepts", "check_texts"]
