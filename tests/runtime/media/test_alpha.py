"""Transparency: composited over black, whatever file it comes in."""

from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from helpers import media
from runtime.media.video_reader import open_video


def clip(half=128):
    """Frames (2, 48, 64, 4): green that is transparent at the top, half transparent below, and red that is opaque."""
    rgba = np.zeros((2, 48, 64, 4), np.uint8)
    rgba[..., :] = 0, 200, 0, 0
    rgba[:, 16:32, :, 3] = half
    rgba[:, 32:] = 200, 20, 20, 255
    return rgba


VIDEOS = {
    "vp8.webm": ("libvpx", "yuva420p", {"auto-alt-ref": "0"}),
    "vp9.webm": ("libvpx-vp9", "yuva420p", {}),
    "vp9.mkv": ("libvpx-vp9", "yuva420p", {}),
    "prores.mov": ("prores_ks", "yuva444p10le", {"profile": "4444"}),
    "png.mov": ("png", "rgba", {}),
    "png64.mov": ("png", "rgba64be", {}),
    "qtrle.mov": ("qtrle", "argb", {}),
    "ffv1.mkv": ("ffv1", "bgra", {}),
    "ffv1_yuva.mkv": ("ffv1", "yuva444p", {}),
    "utvideo.avi": ("utvideo", "gbrap", {}),
    "raw.avi": ("rawvideo", "bgra", {}),
    "animation.apng": ("apng", "rgba", {}),
}


def write(path, codec, pix_fmt, options, rgba):
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=12, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pix_fmt
        for array in rgba:
            frame = av.VideoFrame.from_ndarray(array, format="rgba").reformat(format=pix_fmt)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def shown(path):
    frames = np.stack(list(open_video(path))).astype(int)
    return [frames[:, rows].mean((0, 1, 2)) for rows in (slice(2, 14), slice(18, 30), slice(34, 46))]


@pytest.mark.parametrize("name", VIDEOS)
def test_videos(tmp_path, name):
    path = write(tmp_path / name, *VIDEOS[name], clip())
    for got, want in zip(shown(path), [(0, 0, 0), (0, 100, 0), (200, 20, 20)], strict=True):
        assert got == pytest.approx(want, abs=6)


@pytest.mark.parametrize("name", ["vp8.webm", "vp9.webm", "vp9.mkv"])
def test_copied_streams(tmp_path, name):
    """What cuts or repacks a file without encoding writes the tag of transparency in capitals."""
    path = write(tmp_path / name, *VIDEOS[name], clip())
    copied = tmp_path / f"copied_{name}"
    with av.open(str(path)) as source, av.open(str(copied), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        stream.metadata["ALPHA_MODE"] = "1"
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    for got, want in zip(shown(copied), [(0, 0, 0), (0, 100, 0), (200, 20, 20)], strict=True):
        assert got == pytest.approx(want, abs=6)


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.png", {}),
        ("a.tif", {}),
        ("a.webp", {"lossless": True, "exact": True}),
        ("animation.png", {"save_all": True}),
        ("animation.webp", {"save_all": True, "lossless": True, "exact": True}),
        ("pages.tif", {"save_all": True}),
        ("a.gif", {}),
        ("animation.gif", {"save_all": True, "disposal": 2}),
    ],
)
def test_pictures(tmp_path, name, options):
    gif = name.endswith(".gif")  # it has no half transparency
    images = [Image.fromarray(array) for array in clip(255 if gif else 128)]
    more = {"append_images": images[1:]} if "save_all" in options else {}
    images[0].save(tmp_path / name, **options, **more)
    for got, want in zip(shown(tmp_path / name), [(0, 0, 0), (0, 200 if gif else 100, 0), (200, 20, 20)], strict=True):
        assert got == pytest.approx(want, abs=2)


@pytest.mark.parametrize("name, codec", [("a.webm", "libvpx-vp9"), ("b.webm", "libvpx")])
def test_videos_without_transparency_keep_their_decoder(tmp_path, name, codec):
    path = media.write(tmp_path / name, codec=codec)
    with av.open(str(path)) as container:
        want = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (np.stack(list(open_video(path))) == np.stack(want)).all()


def test_a_build_without_the_decoder_says_so(tmp_path, monkeypatch):
    path = write(tmp_path / "a.webm", *VIDEOS["vp9.webm"], clip())

    def create(name, mode):
        raise ValueError(name)

    monkeypatch.setattr(av, "CodecContext", SimpleNamespace(create=create))
    with open_video(path) as video:
        list(video)
    assert "its transparency is ignored" in video.notes[0]
