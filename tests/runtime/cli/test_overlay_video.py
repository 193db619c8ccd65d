"""Overlay videos: times, colours, pixel aspect and sound of the source."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from helpers import media
from runtime import open_video
from runtime.cli import video_writer
from runtime.cli.app import main
from runtime.cli.overlay import ContactSheet, Painter
from runtime.cli.source_file import SourceFile
from runtime.cli.video_writer import VideoWriter

BEEP = 0.5
"""Time at which the sound of `write_clip` starts, in seconds of that sound."""


def image(level=90, size=(64, 96)):
    return np.full((*size, 3), level, np.uint8)


def write_overlay(path, times, fps=10.0, size=(64, 96), whole=False, **kwargs):
    """Write an overlay with one frame at each time."""
    writer = VideoWriter(path, size, fps, **kwargs)
    for number, time in enumerate(times):
        writer.add(image(20 + 10 * (number % 20), size), time)
    writer.close(whole)
    return writer


def frame_times(path):
    with av.open(str(path)) as video:
        return [float(frame.time) for frame in video.decode(video=0)]


def duration(path):
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        return float(stream.duration * stream.time_base)


# --------------------------------------------------------------------------------------------------------------- times

TIMES = {
    "constant": [i / 10 for i in range(20)],
    "ntsc_film": [i * 1001 / 24000 for i in range(20)],
    "ntsc": [i * 1001 / 30000 for i in range(20)],
    "fast": [i / 240 for i in range(40)],
    "variable": [i / 20 for i in range(20)] + [1 + i / 4 for i in range(5)],
    "milliseconds": [0, 0.033, 0.066, 0.1, 0.134, 0.2, 0.3, 0.366, 1.6, 2.0],
    "hourly": [0, 3600, 7200, 10800],
    "a_day": [0, 86400.5],
    "dropped": [0, 0.1, 0.2, 1.7, 1.8],
    "one": [0],
}


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_frames_are_shown_when_those_of_the_source_are(tmp_path, times):
    fps = (len(times) - 1) / times[-1] if times[-1] else 25.0
    write_overlay(tmp_path / "o.mp4", times, fps)
    assert frame_times(tmp_path / "o.mp4") == pytest.approx(times, abs=1e-5)
    assert duration(tmp_path / "o.mp4") == pytest.approx(times[-1] + 1 / fps, abs=1e-3)


@pytest.mark.parametrize("fps", [10.0, 24000 / 1001, 29.97, 0.5, 1000.0])
def test_frames_without_times_have_a_constant_rate(tmp_path, fps):
    write_overlay(tmp_path / "o.mp4", [None] * 9, fps)
    assert frame_times(tmp_path / "o.mp4") == pytest.approx([i / fps for i in range(9)], abs=1e-4)
    with av.open(str(tmp_path / "o.mp4")) as video:
        assert float(video.streams.video[0].average_rate) == pytest.approx(fps, rel=1e-4)


@pytest.mark.parametrize("times", [[0, 0, 0], [0, 0.2, 0.1, 0.3], [0, 1e-9]])
def test_times_that_do_not_increase_lose_no_frame(tmp_path, times):
    write_overlay(tmp_path / "o.mp4", times)
    found = frame_times(tmp_path / "o.mp4")
    assert len(found) == len(times) and found == sorted(set(found)) and found == pytest.approx(sorted(times), abs=0.11)


def test_the_first_frame_is_shown_at_zero_by_every_player(tmp_path):
    write_overlay(tmp_path / "o.mp4", TIMES["variable"])
    with av.open(str(tmp_path / "o.mp4")) as video:
        packets = [packet for packet in video.demux(video=0) if packet.dts is not None]
    assert packets[0].pts == 0 and all(packet.pts == packet.dts for packet in packets), "no B-frames"
    assert b"elst" not in (tmp_path / "o.mp4").read_bytes() or frame_times(tmp_path / "o.mp4")[0] == 0


def test_the_index_is_at_the_front(tmp_path):
    write_overlay(tmp_path / "o.mp4", TIMES["constant"])
    data = (tmp_path / "o.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat") and b"moof" not in data


def write_uneven(path, codec="libx264", times=TIMES["variable"]):
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for frame, time in zip(media.clip(len(times)), times, strict=True):
            frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name, stride, count", [("a.mp4", 1, None), ("a.mkv", 3, None), ("a.mp4", 2, 7)])
def test_results_have_the_times_of_the_source(toy, tmp_path, name, stride, count):
    clip, out = write_uneven(tmp_path / name), tmp_path / "out"
    limit = ["--max-frames", str(count)] if count else []
    source = ["--video", str(clip), "--stride", str(stride), *limit, "--out", str(out)]
    assert main(["--engine", str(toy), "--tokens", "0,5,2", *source]) == 0
    right = TIMES["variable"][::stride][:count]
    results = json.loads((out / "results.json").read_text())["frames"]
    assert [frame["time"] for frame in results] == pytest.approx(right, abs=1e-3)
    assert frame_times(out / "overlay.mp4") == pytest.approx(right, abs=1e-3)


def test_pictures_have_no_times(toy, tmp_path):
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(media.clip(3)):
        Image.fromarray(frame).save(tmp_path / "in" / f"{number}.png")
    assert main(["--engine", str(toy), "--tokens", "5", "--video", str(tmp_path / "in"), "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())["frames"]
    assert [frame["time"] for frame in results] == [None] * 3
    assert frame_times(tmp_path / "overlay.mp4") == pytest.approx([0, 1 / 24, 2 / 24], abs=1e-4)


@pytest.mark.parametrize("hours", [5, 7, 14, 29.9])
def test_a_gap_of_hours_in_the_overlay(tmp_path, hours):
    """MP4 holds no gap of more than 32 bits; the frame before it is repeated."""
    times = [0, 0.1, 0.2, hours * 3600, hours * 3600 + 0.1]
    write_overlay(tmp_path / "o.mp4", times)
    found = frame_times(tmp_path / "o.mp4")
    assert all(min(abs(time - t) for t in found) < 1e-4 for time in times) and len(found) <= 20
    assert duration(tmp_path / "o.mp4") == pytest.approx(times[-1] + 0.1, abs=1e-3)


def test_a_last_frame_that_is_short_is_so_in_the_overlay(tmp_path):
    """The average rate of a source with a long gap says nothing about its last frame."""
    times = [0, 0.1, 0.2, 7200, 7200.1]
    media.write(tmp_path / "a.mp4", media.clip(5), times=times, encoder={"bf": "0"})
    overlay_of(tmp_path / "a.mp4", tmp_path / "o.mp4")
    assert duration(tmp_path / "o.mp4") < 7200.5 and frame_times(tmp_path / "o.mp4") == pytest.approx(times, abs=1e-3)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_the_last_frame_of_an_animation_stays_as_long_as_there(toy, tmp_path, name):
    frames = [Image.fromarray(frame) for frame in media.clip(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=[100, 200, 2000])
    command = [
        "--engine",
        str(toy),
        "--tokens",
        "0,5,2",
        "--video",
        str(tmp_path / name),
        "--out",
        str(tmp_path / "out"),
    ]
    for options, right in (([], 2.3), (["--max-frames", "2"], 0.2)):
        assert main([*command, *options]) == 0
        assert duration(tmp_path / "out" / "overlay.mp4") == pytest.approx(right, abs=1e-3)


def test_a_last_frame_that_stays_does_so_in_the_overlay(tmp_path):
    """A file that is read to its end lasts as long as its source; one that is cut off ends after its last frame."""
    write_overlay(tmp_path / "source.mp4", [0, 0.1, 3.0], fps=1.0)
    source = SourceFile(tmp_path / "source.mp4")
    for whole, right in ((True, 4.0), (False, 0.2)):
        write_overlay(tmp_path / "o.mp4", [0, 0.1], whole=whole, source=source)
        assert duration(tmp_path / "o.mp4") == pytest.approx(right, abs=1e-3)


# ------------------------------------------------------------------------------------------------------ colours, aspect

COLOURS = [(230, 40, 40), (40, 60, 230), (20, 200, 60), (250, 240, 30), (128, 128, 128), (0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("size", [(16, 16), (96, 160), (480, 640), (720, 1280)])
def test_colours_are_those_of_bt709_and_tagged(tmp_path, size):
    writer = VideoWriter(tmp_path / "o.mp4", size, 10.0)
    for colour in COLOURS:
        writer.add(np.broadcast_to(np.uint8(colour), (*size, 3)).copy())
    writer.close()
    with av.open(str(tmp_path / "o.mp4")) as video:
        context = video.streams.video[0].codec_context
        tags = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
        assert tuple(map(int, tags)) == (1, 1, 1, 1) and context.pix_fmt == "yuv420p"
        assert b"colrnclx" in (tmp_path / "o.mp4").read_bytes()
        for frame, right in zip(video.decode(video=0), COLOURS, strict=True):
            shown = frame.reformat(format="rgb24", src_colorspace="ITU709", src_color_range="MPEG").to_ndarray()
            assert np.abs(shown[4:-4, 4:-4].mean((0, 1)) - right).max() <= 3


@pytest.mark.parametrize("ratio", [Fraction(2), Fraction(8, 9), Fraction(64, 45), Fraction(1, 2), Fraction(1)])
def test_the_pixel_aspect_is_kept(tmp_path, ratio):
    write_overlay(tmp_path / "o.mp4", [None] * 2, sample_aspect_ratio=ratio)
    with av.open(str(tmp_path / "o.mp4")) as video:
        assert Fraction(video.streams.video[0].sample_aspect_ratio or 1) == ratio
    sheet = ContactSheet(sample_aspect_ratio=float(ratio))
    sheet.add(image())
    height, width = sheet.render().shape[:2]
    assert width / height == pytest.approx(96 / 64 * ratio, rel=0.01)


def test_the_pixel_aspect_of_the_source_reaches_the_overlay(toy, tmp_path):
    write_overlay(tmp_path / "wide.mp4", [None] * 2, sample_aspect_ratio=Fraction(2))
    source = ["--video", str(tmp_path / "wide.mp4"), "--out", str(tmp_path / "out")]
    assert main(["--engine", str(toy), "--tokens", "0,5,2", *source]) == 0
    with open_video(tmp_path / "out" / "overlay.mp4") as overlay:
        assert overlay.sample_aspect_ratio == 2 and overlay.size == (512, 768)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (15, 17), (10, 5000), (5000, 10), (481, 853)])
def test_every_frame_size_can_be_encoded(tmp_path, size):
    canvas = Painter(size, {}).canvas
    write_overlay(tmp_path / "o.mp4", [None] * 2, size=canvas)
    with open_video(tmp_path / "o.mp4") as overlay:
        assert overlay.size == canvas and len(list(overlay)) == 2


# --------------------------------------------------------------------------------------------------------------- sound


def write_clip(path, codec="aac", delay=0.0, sound_delay=0.0, rate=48000, seconds=2.0):
    """Write a clip of black frames, white from 0.5 s on, whose sound is silent until then: a clapperboard."""
    with av.open(str(path), "w") as target:
        video, sound = target.add_stream("libx264", rate=10), target.add_stream(codec, rate=rate, layout="mono")
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base, video.options = Fraction(1, 1000), {"bf": "0"}
        for number in range(round(10 * seconds)):
            frame = av.VideoFrame.from_ndarray(image(255 * (number >= 10 * BEEP), (48, 64)), format="rgb24")
            frame.pts, frame.time_base = round(1000 * (delay + number / 10)), Fraction(1, 1000)
            target.mux(video.encode(frame))
        wave = np.sin(np.arange(round(rate * seconds)) / rate * 2 * np.pi * 880) * 0.5
        wave[: round(rate * BEEP)] = 0
        for start in range(0, len(wave), 1024):
            part = (wave[start : start + 1024] * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
            frame.rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = start + round(sound_delay * rate)
            target.mux(sound.encode(frame))
        target.mux(video.encode(None))
        target.mux(sound.encode(None))
    return path


def overlay_of(path, out, count=None, stride=1, sound=True):
    """Write an overlay of a file as the command does."""
    with open_video(path, stride, count) as video:
        source = SourceFile(video.path, video.start, sound)
        writer = VideoWriter(out, video.size, video.fps, source=source)
        for number, frame in enumerate(video):
            writer.add(frame, video.frame_time(number))
        writer.close(whole=count is None)
    return writer


def sound_of(path):
    """Return the codec of the sound, and when it starts, becomes loud and ends; None without sound."""
    with av.open(str(path)) as source:
        if not source.streams.audio:
            return None
        stream = source.streams.audio[0]
        frames = list(source.decode(stream))
        loud = next(
            frame.time + np.argmax(np.abs(samples) > level) / frame.rate
            for frame in frames
            for samples in [frame.to_ndarray().ravel()]
            for level in [8000 if samples.dtype == np.int16 else 0.25]
            if np.abs(samples).max() > level
        )
        return stream.codec_context.name, frames[0].time, loud, frames[-1].time + frames[-1].samples / frames[-1].rate


def white_at(path):
    with av.open(str(path)) as source:
        return next(float(f.time) for f in source.decode(video=0) if f.to_ndarray(format="gray").mean() > 128)


@pytest.mark.parametrize(
    "name, codec, kept",
    [
        ("a.mp4", "aac", "aac"),
        ("a.ts", "aac", "aac"),
        ("a.mkv", "flac", "flac"),
        ("a.mkv", "libmp3lame", "mp3float"),
        ("a.mkv", "libopus", "opus"),
        ("a.mov", "pcm_s16le", "aac"),
        ("a.avi", "pcm_s16le", "aac"),
        ("a.mkv", "mp2", "aac"),
    ],
)
@pytest.mark.parametrize("delays", [(0, 0), (0.3, 0), (0, 0.3)], ids=["together", "late_video", "late_sound"])
def test_sound_is_kept_in_sync(tmp_path, name, codec, kept, delays):
    delays = (0, 0) if name == "a.avi" else delays  # AVI has no times
    clip = write_clip(tmp_path / name, codec, *delays)
    writer = overlay_of(clip, tmp_path / "o.mp4")
    found, _, loud, _ = sound_of(tmp_path / "o.mp4")
    assert found == kept and writer.notes == []
    assert frame_times(tmp_path / "o.mp4")[0] == 0
    assert loud - white_at(tmp_path / "o.mp4") == pytest.approx(delays[1] - delays[0], abs=0.03)


def test_copied_sound_is_the_same_bytes(tmp_path):
    clip = write_clip(tmp_path / "a.mp4")
    overlay_of(clip, tmp_path / "o.mp4")
    packets = []
    for path in (clip, tmp_path / "o.mp4"):
        with av.open(str(path)) as source:
            packets.append([bytes(packet) for packet in source.demux(audio=0) if packet.dts is not None])
    assert packets[0] == packets[1]


@pytest.mark.parametrize("codec, name", [("aac", "a.mp4"), ("pcm_s16le", "a.mov")])
def test_sound_ends_with_the_frames(tmp_path, codec, name):
    overlay_of(write_clip(tmp_path / name, codec), tmp_path / "o.mp4", count=8)
    _, _, loud, end = sound_of(tmp_path / "o.mp4")
    assert loud == pytest.approx(BEEP, abs=0.03) and end == pytest.approx(0.8, abs=0.05)


def test_sound_and_stride(tmp_path):
    overlay_of(write_clip(tmp_path / "a.mp4"), tmp_path / "o.mp4", stride=5)
    assert sound_of(tmp_path / "o.mp4")[2] == pytest.approx(BEEP, abs=0.03)
    assert frame_times(tmp_path / "o.mp4") == pytest.approx([0, 0.5, 1.0, 1.5], abs=1e-3)
    assert duration(tmp_path / "o.mp4") == pytest.approx(2.0, abs=0.01)


def test_sound_can_be_left_out(toy, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", seconds=0.4)
    command = ["--engine", str(toy), "--tokens", "0,5,2", "--video", str(clip), "--out", str(tmp_path / "out")]
    for option, expected in (([], True), (["--no-sound"], False)):
        assert main([*command, *option]) == 0
        with av.open(str(tmp_path / "out" / "overlay.mp4")) as overlay:
            assert bool(overlay.streams.audio) is expected


def test_sound_that_cannot_be_read_is_noted(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "a.mp4", seconds=0.4)
    source = SourceFile(clip)
    writer = VideoWriter(tmp_path / "o.mp4", (64, 96), 10.0, source=source)
    writer.add(image())
    clip.unlink()
    writer.close()
    assert len(writer.notes) == 1 and "a.mp4" in writer.notes[0] and "sound" in writer.notes[0]
    assert frame_times(tmp_path / "o.mp4") == [0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.mp4"]


def test_damaged_sound_does_not_end_the_run(tmp_path):
    clip = tmp_path / "damaged.mkv"
    with av.open(str(write_clip(tmp_path / "a.mkv", "mp2"))) as source, av.open(str(clip), "w") as target:
        streams = {stream: target.add_stream_from_template(stream) for stream in source.streams}
        for number, packet in enumerate(p for p in source.demux() if p.dts is not None):
            if packet.stream.type == "audio" and number % 4 == 0:
                data, times, stream = b"\x5a" * packet.size, (packet.pts, packet.dts, packet.time_base), packet.stream
                packet = av.Packet(data)
                packet.stream, (packet.pts, packet.dts, packet.time_base) = stream, times
            packet.stream = streams[packet.stream]
            target.mux(packet)
    overlay_of(clip, tmp_path / "o.mp4")
    assert len(frame_times(tmp_path / "o.mp4")) == 20
    _, start, _, end = sound_of(tmp_path / "o.mp4")
    assert start == 0 and end == pytest.approx(2.0, abs=0.06)


def test_a_full_disk_at_the_end_keeps_the_fragments(tmp_path, monkeypatch):
    from runtime import InternalError

    writer = VideoWriter(tmp_path / "o.mp4", (64, 96), 10.0)
    for _ in range(3):
        writer.add(image())

    def fail(self, path, source, whole):
        path.write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_writer.VideoWriter, "_copy_to", fail)
    with pytest.raises(InternalError, match="the disk is full"):
        writer.close()
    assert len(frame_times(tmp_path / "o.mp4")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]
