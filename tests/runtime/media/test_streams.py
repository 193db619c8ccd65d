"""Which stream of a container is read, and what is said of the others."""

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from helpers import media
from runtime import VideoError
from runtime.media.decoding import demux
from runtime.media.video_reader import open_video

NONE, DEFAULT, COVER = Disposition(0), Disposition.default, Disposition.attached_pic


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    Image.new("RGB", (200, 200), (200, 0, 0)).save(folder / "cover.png")
    with av.open(str(folder / "cover.mp4"), "w") as out:
        stream = out.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 200, 200, "yuvj420p"
        picture = av.VideoFrame.from_ndarray(np.full((200, 200, 3), 90, np.uint8), format="rgb24")
        out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return {
        "main": media.write(folder / "main.mp4", media.clip(6, 96, 128)),
        "preview": media.write(folder / "preview.mp4", media.clip(6, 24, 32)),
        "sound": media.write_audio(folder / "sound.mp4"),
        "cover": folder / "cover.mp4",
    }


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".ts"])
@pytest.mark.parametrize(
    "names, dispositions, read, left_out",
    [
        (["preview", "main"], [NONE, DEFAULT], "main", "0 (h264 32x24)"),
        (["main", "preview"], [DEFAULT, NONE], "main", "1 (h264 32x24)"),
        (["preview", "main"], [DEFAULT, DEFAULT], "main", "0 (h264 32x24)"),
        (["sound", "preview", "main"], [DEFAULT, DEFAULT, DEFAULT], "main", "1 (h264 32x24)"),
        (["preview", "main", "preview"], [DEFAULT] * 3, "main", "0 (h264 32x24), 2 (h264 32x24)"),
    ],
)
def test_the_default_stream_is_read_and_others_are_named(tmp_path, parts, suffix, names, dispositions, read, left_out):
    path = media.write_streams(tmp_path / f"a{suffix}", *[parts[name] for name in names], dispositions=dispositions)
    with open_video(path) as video:
        assert video.size == ((96, 128) if read == "main" else (24, 32))
        assert len(list(video)) == 6
    (note,) = video.notes
    assert note.startswith(f"{path}: only video stream ") and note.endswith(f"left out: {left_out}")


def test_a_small_default_stream_is_preferred(tmp_path, parts):
    path = media.write_streams(tmp_path / "a.mkv", parts["preview"], parts["main"], dispositions=[DEFAULT, NONE])
    with open_video(path) as video:
        assert video.size == (24, 32) and "left out: 1 (h264 128x96)" in video.notes[0]


@pytest.mark.parametrize("names", [["cover", "preview"], ["preview", "cover"], ["sound", "cover", "preview"]])
def test_a_cover_is_no_video(tmp_path, parts, names):
    kinds = {"cover": COVER, "preview": DEFAULT, "sound": DEFAULT}
    dispositions = [kinds[name] for name in names]
    path = media.write_streams(tmp_path / "a.mp4", *[parts[name] for name in names], dispositions=dispositions)
    with open_video(path) as video:
        assert video.size == (24, 32) and len(list(video)) == 6
    assert video.notes == []


def test_a_stream_that_cannot_be_decoded_is_left_out(tmp_path, parts):
    path = media.write_streams(tmp_path / "a.mkv", parts["preview"], parts["main"], dispositions=[DEFAULT, DEFAULT])
    data = path.read_bytes()
    at = data.rindex(b"V_MPEG4/ISO/AVC", 0, data.index(b"\x1f\x43\xb6\x75"))  # the codec of the last stream
    path.write_bytes(data[:at] + b"V_UNKNOWN/CODEC" + data[at + 15 :])
    with open_video(path) as video:
        assert video.size == (24, 32) and len(list(video)) == 6
    assert video.notes[0].endswith("left out: 1 (unknown codec)")


def test_a_stream_that_begins_within_the_file_is_no_error():
    class Container:
        calls = 0

        def demux(self, stream):
            self.calls += 1
            yield self.calls
            if self.calls == 1:
                raise IndexError("list index out of range")

    assert list(demux(Container(), None)) == [1, 2]


def test_what_is_there_instead_of_a_video_is_named(tmp_path, parts):
    song = media.write_streams(tmp_path / "a.mp4", parts["sound"], parts["cover"], dispositions=[DEFAULT, COVER])
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:09,000\nhello\n")
    for path, what in (
        (parts["sound"], "only audio"),
        (song, "only audio and a cover picture"),
        (tmp_path / "a.srt", "only subtitles"),
    ):
        with pytest.raises(VideoError, match=f"no video in it, {what}$"):
            open_video(path)


def test_streams_of_one_container_keep_their_frames_apart(tmp_path, parts):
    path = media.write_streams(tmp_path / "a.mkv", parts["preview"], parts["main"], dispositions=[NONE, DEFAULT])
    assert (np.stack(list(open_video(path))) == np.stack(list(open_video(parts["main"])))).all()


def test_a_video_with_one_frame_is_a_still_and_one_of_unknown_length_is_not(tmp_path):
    """A count of one frame decides on what is written, and is therefore always exact."""
    one = media.write(tmp_path / "one.mp4", media.clip(1))
    raw = media.write(tmp_path / "one.h264", media.clip(1))
    for path in (one, raw):
        with open_video(path) as video:
            assert (video.count, video.count_is_exact, video.max_count) == (1, True, 1)
            assert len(list(video)) == 1
    slow = media.write(tmp_path / "slow.mkv", media.clip(5), times=[0, 0.1, 0.2, 0.3, 30])
    data = slow.read_bytes()
    at = data.index(b"\x23\xe3\x83")  # the declared duration of a frame, overwritten with a void element
    size = data[at + 3] & 0x7F
    slow.write_bytes(data[:at] + bytes([0xEC, 0x82 + size]) + bytes(2 + size) + data[at + 4 + size :])
    for path, stride in ((slow, 1), (slow, 4), (one, 3)):
        with open_video(path, stride=stride) as video:
            want = -(-(1 if path == one else 5) // stride)
            assert video.count != 1 or want == 1
            assert len(list(video)) == want
    with open_video(slow, max_frames=1) as video:
        assert (video.count, video.count_is_exact) == (1, True)
