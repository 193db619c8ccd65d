"""Damaged and long files: all that decodes is delivered, what is missing is told, and a cut file is an error."""

import re
from itertools import product
from types import SimpleNamespace

import av
import numpy as np
import pytest

from helpers import media
from runtime import VideoError
from runtime.media.completeness import is_cut
from runtime.media.decoding import Decoder
from runtime.media.source import Source
from runtime.media.video_reader import open_video

COUNT = 24
CODECS = {
    "h264": ("a.mkv", "libx264", {"bf": "0", "g": "6"}),
    "h264 with B-frames": ("a.mp4", "libx264", {"bf": "2", "g": "12"}),
    "hevc": ("a.mkv", "libx265", {"x265-params": "keyint=12:log-level=none"}),
    "vp8": ("a.webm", "libvpx", {"g": "6"}),
    "vp9": ("a.webm", "libvpx-vp9", {"g": "6"}),
    "mpeg4": ("a.mp4", "mpeg4", {"g": "6"}),
    "mpeg2": ("a.mkv", "mpeg2video", {"g": "6"}),
    "prores": ("a.mov", "prores_ks", {}),
    "ffv1": ("a.mkv", "ffv1", {}),
    "avi": ("a.avi", "libx264", {"bf": "2", "g": "12"}),
    "flv": ("a.flv", "libx264", {"bf": "2", "g": "6"}),
}
PLACES = {"first": [0], "key": [12], "middle": [9], "last": [-1], "tail": [-5, -3, -1], "many": range(3, 20, 3)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    made = {}

    def make(kind):
        if kind not in made:
            name, codec, encoder = CODECS[kind]
            pix_fmt = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
            folder = tmp_path_factory.mktemp("whole")
            made[kind] = media.write(folder / name, media.clip(COUNT), codec=codec, pix_fmt=pix_fmt, encoder=encoder)
        return made[kind]

    return make


def decodable(path):
    """Return the times of the frames that FFmpeg gives: one thread, on past errors."""
    times = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                times += [frame.time for frame in packet.decode()]
            except av.FFmpegError:
                continue
    return times


# the first packet of H.264 in AVI has the only description of the stream
@pytest.mark.parametrize("kind, place", [case for case in product(CODECS, PLACES) if case != ("avi", "first")])
def test_damaged_packets_are_left_out_and_told(whole, kind, place):
    path = media.damage_packets(whole(kind), PLACES[place])
    want = decodable(path)
    if not want:
        with pytest.raises(VideoError, match="no frame can be decoded"):
            open_video(path)
        return
    with open_video(path) as video:
        times = [video.frame_time(index) for index, _ in enumerate(video)]
    assert len(times) == len(want)
    if kind != "avi":
        shown = np.maximum.accumulate(np.array(want) - want[0])  # damage may disturb the order of B-frames
        assert times == pytest.approx(shown, abs=2e-3)
    notes = " ".join(video.notes)
    if missing := COUNT - len(want):
        assert f"damaged, {missing} frame{'s' * (missing != 1)} missing: " in notes
    else:
        assert "frames are damaged" in notes or not notes
    if place == "first" and missing:
        assert "before the first" in notes


@pytest.mark.parametrize("kind", CODECS)
def test_strict_ends_at_the_first_damage(whole, kind):
    path = media.damage_packets(whole(kind), [9])
    if len(decodable(path)) < COUNT and kind != "mpeg2":  # FFmpeg's decoder of MPEG-2 tells no errors
        with pytest.raises(VideoError, match=r"damaged or cut short after \d+ frames"):
            list(open_video(path, strict=True))
    assert len(list(open_video(whole(kind), strict=True))) == COUNT


@pytest.mark.parametrize("kind, place", list(product(sorted({*CODECS} - {"avi"}), ["first", "key", "tail"])))
def test_strict_ends_at_all_that_is_noted(whole, kind, place):
    """The error also comes where FFmpeg tells none, and frames are missing or marked as damaged."""
    path = media.damage_packets(whole(kind), PLACES[place])
    try:
        with open_video(path) as video:
            count = sum(1 for _ in video)
        if not video.notes:
            return
    except VideoError:
        count = 0
    with pytest.raises(VideoError, match=r"damaged or cut short after \d+ frames") as caught:
        list(open_video(path, strict=True))
    assert int(re.search(r"after (\d+)", str(caught.value))[1]) <= count


TRANSPORT = {"h264": ("libx264", {"bf": "2", "g": "6"}), "mpeg2": ("mpeg2video", {"g": "6", "qmin": "1", "qmax": "2"})}
LOSSES = {
    "in a frame": [[5, 1]],
    "one packet": [[5, 0]],
    "the end of a frame": [[5, -1]],
    "a frame": [[5, None]],
    "another frame": [[6, None]],
    "two places": [[4, 1], [18, None]],
}


@pytest.fixture(scope="module")
def transport(tmp_path_factory):
    rng = np.random.default_rng(0)
    clip = (media.clip(COUNT) // 2 + rng.integers(0, 60, (COUNT, 48, 64, 3))).astype(np.uint8)
    folder = tmp_path_factory.mktemp("transport")
    return {
        kind: media.write(folder / f"{kind}.ts", clip, codec=codec, encoder=encoder)
        for kind, (codec, encoder) in TRANSPORT.items()
    }


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", TRANSPORT)
def test_lost_packets_of_a_transport_stream_are_told(transport, kind, loss):
    path = media.lose_packets(transport[kind], LOSSES[loss])
    with open_video(path) as video:
        count = sum(1 for _ in video)
    assert count >= COUNT - 4 and re.search(r"frames? missing|incomplete|frames are damaged", " ".join(video.notes))
    with pytest.raises(VideoError, match="damaged or cut short"):
        list(open_video(path, strict=True))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", TRANSPORT)
def test_joined_transport_streams_are_whole(transport, tmp_path, kind, strict):
    (tmp_path / "a.ts").write_bytes(transport[kind].read_bytes() * 3)
    for source in (tmp_path / "a.ts", f"concat:{transport[kind]}|{transport[kind]}"):
        with open_video(source, strict=strict) as video:
            assert sum(1 for _ in video) == COUNT * (3 if source == tmp_path / "a.ts" else 2)
        assert video.notes == []


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mov"])
@pytest.mark.parametrize("damage", ["noise", "inverted"])
def test_damaged_motion_jpeg_is_told(tmp_path, suffix, damage):
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 255, (8, 48, 64, 3), np.uint8)
    path = media.write(
        tmp_path / f"a.{suffix}", clip, codec="mjpeg", pix_fmt="yuvj420p", encoder={"huffman": "default"}
    )
    with av.open(str(path)) as source:
        packets = [bytes(packet) for packet in source.demux(video=0) if packet.size]
    data, at = bytearray(path.read_bytes()), path.read_bytes().index(packets[4])
    start, end = at + packets[4].rindex(b"\xff\xda") + 40, at + len(packets[4]) - 40
    data[start:end] = {
        "noise": rng.integers(0, 255, end - start, np.uint8).tobytes(),
        "inverted": bytes(255 - value for value in data[start:end]),
    }[damage]
    path.write_bytes(data)
    with open_video(path) as video:
        frames = list(video)
        times = [video.frame_time(index) for index in range(8)]
    assert video.notes == [f"{path}: 1 of 8 frames are damaged; masks there may be wrong"]
    assert times == pytest.approx([i / 24 for i in range(8)], abs=2e-3)
    whole = np.stack(decoded(path))
    assert [i for i in range(8) if (frames[i] != whole[i]).any()] in ([], [4])
    with pytest.raises(VideoError, match="damaged or cut short after 4 frames"):
        list(open_video(path, strict=True))


def decoded(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("kind", CODECS)
def test_whole_files_have_no_notes(whole, kind):
    with open_video(whole(kind)) as video:
        assert sum(1 for _ in video) == COUNT
    assert video.notes == []


@pytest.mark.parametrize("kind", ["h264", "vp9", "mpeg4"])
def test_nothing_decodes(whole, kind):
    with pytest.raises(VideoError, match="no frame can be decoded"):
        open_video(media.damage_packets(whole(kind), range(COUNT)))


def test_places_beyond_the_first_are_counted(whole):
    with open_video(media.damage_packets(whole("ffv1"), range(1, 16, 2))) as video:
        list(video)
    assert "(at 0.04 s)" in video.notes[0] or "after frame 0" in video.notes[0]
    with open_video(media.damage_packets(whole("h264 with B-frames"), range(13, 24))) as video:
        assert sum(1 for _ in video) == 13
    assert "11 frames missing" in video.notes[0]


@pytest.mark.parametrize("limits, count", [({"stride": 2}, 12), ({"max_frames": 5}, 5)])
def test_limits_count_delivered_frames(whole, limits, count):
    path = media.damage_packets(whole("h264"), [9])
    assert len(list(open_video(path, **limits))) == count


LONG_LAST = [i / 24 for i in range(12)] + [0.6]


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_a_long_last_frame_is_no_damage(tmp_path, name, options):
    path = long_last(tmp_path / name, **options)
    with open_video(path) as video:
        assert sum(1 for _ in video) == 12
    assert video.notes == []


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.ts", "a.flv"])
def test_a_long_last_frame_in_other_containers(tmp_path, name):
    with open_video(long_last(tmp_path / name)) as video:
        assert sum(1 for _ in video) == 12
    assert video.notes == []


def long_last(path, **options):
    """Write 12 frames, of which the last is shown for 5 seconds."""
    codec = "libvpx" if path.suffix == ".webm" else "libx264"
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"bf": "0"} if codec == "libx264" else {}
        arrays = (av.VideoFrame.from_ndarray(array, format="rgb24") for array in media.clip(12))
        packets = [packet for frame in [*arrays, None] for packet in stream.encode(frame)]
        packets[-1].duration = round(5 / packets[-1].time_base)
        out.mux(packets)
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.ts"])
def test_sound_longer_than_the_picture_is_no_damage(tmp_path, name):
    codec = "mpeg4" if name == "a.avi" else "libx264"
    video = media.write(tmp_path / "v.mp4", media.clip(12), codec=codec)
    sound = media.write_audio(tmp_path / "s.mp4", seconds=4)
    path = media.write_streams(tmp_path / name, video, sound)
    with open_video(path) as video:
        assert sum(1 for _ in video) == 12
    assert video.notes == []


def test_what_follows_the_video_in_the_file_is_no_damage(tmp_path):
    path = media.write(tmp_path / "a.mp4", media.clip(12))
    path.write_bytes(path.read_bytes() + bytes(4000))
    assert len(list(open_video(path))) == 12


def test_a_stale_duration_is_no_damage(tmp_path):
    path = media.write(tmp_path / "a.mkv", media.clip(12))
    data = path.read_bytes()
    assert data.count(b"00:00:00.500") == 1
    path.write_bytes(data.replace(b"00:00:00.500", b"00:00:09.500"))
    assert len(list(open_video(path))) == 12


@pytest.mark.parametrize("sound", [False, True], ids=["silent", "with sound"])
@pytest.mark.parametrize("part", [0.5, 0.9])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm", "fragments.mp4"])
def test_a_file_that_is_cut_is_an_error_after_its_frames(tmp_path, name, part, sound):
    codec = "libvpx" if name.endswith("webm") else "libx264"
    options = {"movflags": "frag_keyframe+empty_moov" if "frag" in name else "faststart"} if name[-1] in "4v" else {}
    path = media.write(tmp_path / name, media.clip(72), codec=codec, **({} if sound else options))
    if sound and codec == "libx264":
        tone = media.write_audio(tmp_path / "s.mp4", seconds=3)
        path = media.write_streams(tmp_path / f"with_{name}", path, tone, options=options)
    cut = media.truncate(path, part)
    want, got = decodable(cut), []
    with pytest.raises(VideoError, match="cut short"):
        got.extend(open_video(cut))
    assert len(got) == len(want) < 72


def boxes(data):
    """Return the types and starts of the outermost boxes."""
    found, at = [], 0
    while at + 8 <= len(data):
        found.append((data[at + 4 : at + 8].decode(), at))
        at += int.from_bytes(data[at : at + 4], "big")
    return found


@pytest.fixture(scope="module")
def fragments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fragments")
    flags = (
        "frag_keyframe+empty_moov",
        "frag_keyframe",
        "frag_keyframe+empty_moov+default_base_moof",
        "dash+frag_keyframe",
    )
    return {f: media.write(folder / f"{i}.mp4", media.clip(36), movflags=f).read_bytes() for i, f in enumerate(flags)}


@pytest.mark.parametrize("kind", ["moof", "mdat", "sidx", "head"])
@pytest.mark.parametrize("part", ["start", 2, 12, 0.5, -1])
def test_fragments_that_are_cut_anywhere(fragments, tmp_path, kind, part):
    for flags, data in fragments.items():
        starts = [at for name, at in boxes(data) if name == ("moof" if kind == "head" else kind)]
        for start in starts[-1:]:
            length = 8 if kind == "head" else int.from_bytes(data[start : start + 4], "big")
            kept = 0 if part == "start" else part if part in (2, 12) else int(length * part) % length
            (tmp_path / "a.mp4").write_bytes(data[: start + kept])
            is_clean = boxes(data[: start + kept])[-1][0] == "mdat" and kept == 0
            got = []
            if is_clean:  # nothing tells that there was more
                got.extend(open_video(tmp_path / "a.mp4"))
            else:
                with pytest.raises(VideoError, match="cut short|no valid header"):
                    got.extend(open_video(tmp_path / "a.mp4"))
            assert len(got) < 36, flags


def test_what_follows_the_last_fragment_may_be_cut(fragments, tmp_path):
    for data in fragments.values():
        start = boxes(data)[-1][1]
        assert boxes(data)[-1][0] == "mfra"
        for end in (start, start + 20, len(data) - 1):
            (tmp_path / "a.mp4").write_bytes(data[:end])
            assert len(list(open_video(tmp_path / "a.mp4"))) == 36


@pytest.mark.parametrize("name, codec", [("a.webm", "libvpx"), ("a.mkv", "libx264")])
def test_live_matroska_that_is_cut(tmp_path, name, codec):
    path = media.write(tmp_path / name, media.clip(24), codec=codec, encoder={"g": "6"}, live="1")
    assert is_cut(path) is None and len(list(open_video(path))) == 24
    data = path.read_bytes()
    for part in (0.6, 0.8, 0.95, 1 - 1 / len(data)):
        path.write_bytes(data[: int(len(data) * part)])
        got = []
        with pytest.raises(VideoError, match="cut short"):
            got.extend(open_video(path))
        assert len(got) == len(decodable(path)) < 24


def test_a_long_avi_is_cut_in_a_later_chunk(tmp_path):
    chunks = b"".join(b"RIFF" + (100).to_bytes(4, "little") + bytes(100) for _ in range(3))
    for length, want in ((len(chunks), False), (len(chunks) - 50, True), (len(chunks) - 120, True)):
        (tmp_path / "a.avi").write_bytes(chunks[:length])
        assert is_cut(tmp_path / "a.avi") is want


def test_sizes_that_files_declare(tmp_path):
    for name in ("a.mp4", "a.mkv", "a.avi", "a.mov"):
        path = media.write(tmp_path / name)
        assert is_cut(path) is False
        assert is_cut(media.truncate(path, 0.6)) is True
    assert is_cut(media.write(tmp_path / "a.ts")) is None
    for data in (b"", b"RIFF", b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x01", b"\0\0\0\0mdat" + bytes(40)):
        (tmp_path / "b").write_bytes(data)
        assert is_cut(tmp_path / "b") is None


def test_a_decoder_with_times_of_its_own_loses_no_frames(tmp_path):
    path = media.write(tmp_path / "a.mkv", media.clip(6))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoder = Decoder(stream, Source("a", 24, None, iter(())), lambda: av.open(str(path)), strict=False)
        context = decoder._context
        decoder._context = SimpleNamespace(decode=lambda packet: [shifted(frame) for frame in context.decode(packet)])
        frames = [frame for packet in container.demux(stream) for frame in decoder.decode(packet)]
        assert len(frames) == 6 and decoder.notes() == []


def shifted(frame):
    frame.pts += 7
    return frame
