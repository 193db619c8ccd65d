"""The thread that encodes the overlay: beside drawing, in order, with the errors of the encoder."""

import contextlib
import threading

import numpy as np
import pytest

from helpers.waiting import PATIENCE
from runtime import InternalError
from runtime.cli.overlay import ContactSheet
from runtime.cli.overlay_video import OverlayVideo


class Encoder:
    """Keeps the images; the encoding of each may be held up, or fail."""

    def __init__(self, fails_at=None):
        self.images, self.ended, self.fails_at = [], [], fails_at
        self.notes, self.go = ["a note"], threading.Event()

    def add(self, image, time):
        assert self.go.wait(PATIENCE)
        if len(self.images) == self.fails_at:
            raise InternalError("the disk is full")
        self.images.append((int(image[0, 0, 0]), time))

    def close(self, whole, end):
        self.ended.append((whole, end))

    def abandon(self):
        self.ended.append("abandoned")


def image(number):
    return np.full((12, 16, 3), number, np.uint8)


def test_images_are_drawn_while_one_is_encoded():
    video = OverlayVideo(encoder := Encoder(), ContactSheet(width=16))
    video.add(image(0), 0.0)
    video.add(image(1), 0.5)
    assert encoder.images == []
    encoder.go.set()
    video.add(image(2), None)
    sheet, notes = video.close(True, 1.5)
    assert encoder.images == [(0, 0.0), (1, 0.5), (2, None)] and encoder.ended == [(True, 1.5)]
    assert notes == ["a note"] and sheet.shape == (2 * 12 + 4, 2 * 16 + 4, 3)
    assert video.close() == (None, [])


@pytest.mark.parametrize("count", [1, 2, 6])
def test_an_error_of_the_encoder_is_raised_and_the_video_closed(count):
    video = OverlayVideo(encoder := Encoder(fails_at=min(1, count - 1)), ContactSheet(width=16))
    encoder.go.set()
    with contextlib.suppress(InternalError):  # by one of the next images, if it is known then
        for number in range(count):
            video.add(image(number), None)
    with pytest.raises(InternalError, match="the disk is full"):
        video.close(True)
    assert len(encoder.images) == min(1, count - 1) and encoder.ended == [(True, None)]
    video.close()


def test_an_abandoned_video_has_the_images_before():
    video = OverlayVideo(encoder := Encoder(fails_at=1), ContactSheet(width=16))
    encoder.go.set()
    video.add(image(0), None)
    video.add(image(1), None)
    video.abandon()
    video.abandon()
    assert encoder.images == [(0, None)] and encoder.ended == ["abandoned"] * 2


def test_a_video_without_images_is_closed():
    video = OverlayVideo(encoder := Encoder(), ContactSheet())
    assert video.close() == (None, ["a note"]) and encoder.ended == [(False, None)]
