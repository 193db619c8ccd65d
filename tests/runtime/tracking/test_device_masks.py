"""Masks that the device made with the logits: taken for those of the host where these logits are the result's."""

import numpy as np
import pytest

from runtime.imaging.gpu import MaskBits
from runtime.tracking.prompt_inputs import NO_POINTS
from runtime.tracking.requests import DecodeRequest, DecoderOutput
from runtime.tracking.step import object_output


@pytest.mark.parametrize("hole, area, kept", [(False, 8, True), (True, 8, False), (True, 0, True)])
@pytest.mark.parametrize("given", [False, True])
def test_bits_are_those_of_logits_without_filled_holes(hole, area, kept, given):
    logits = np.where(np.arange(36).reshape(6, 6) == 14, -1.0 if hole else 1.0, 1.0).astype(np.float32)
    logits[4:] = -1
    bits, vector = MaskBits(np.zeros((1, 5), np.uint8), np.zeros((1, 5), np.int32)), np.zeros(4, np.float32)
    decoded = DecoderOutput(logits, None, vector, 0, 1.0, vector, (0, 0), mask_bits=bits)
    request = DecodeRequest(NO_POINTS, True, output_logits=logits if given else None)
    output = object_output(request, decoded, area)
    assert (output.mask_bits is bits) == (kept and not given), "a mask that is given is the result, not the decoder's"
