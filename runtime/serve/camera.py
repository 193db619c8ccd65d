"""Cameras that the server reads: named by the operator, so that no address of a client is ever opened."""

from __future__ import annotations

import logging
import threading
import time

from ..errors import UserError
from ..media.video_reader import open_video
from ..scheduler import Stream
from .stream import ClientStream

log = logging.getLogger(__name__)


def follow(source: str, client: ClientStream, stream: Stream) -> None:
    """Put the frames of a camera into a stream, in a thread that ends with it."""
    threading.Thread(target=_follow, args=(source, client, stream), name="samwise-camera", daemon=True).start()


def _follow(source: str, client: ClientStream, stream: Stream) -> None:
    try:
        with open_video(source) as video:
            started = time.monotonic()
            for number, image in enumerate(video):
                seconds = number / video.fps if video.time is None else video.time
                if not video.live:  # a file comes as fast as a camera would
                    time.sleep(max(0.0, started + seconds - time.monotonic()))
                if client.is_over:
                    return
                if not client.is_held:  # else the client does not read, and frames are dropped here
                    stream.put(image, None, number, time=seconds)
        stream.end()
    except Exception as error:
        if not client.is_over:
            name = client.start.camera
            log.error("the camera %s cannot be read", name, exc_info=error)
            stream.cancel(UserError(f"the camera {name} cannot be read; tell the operator"))
