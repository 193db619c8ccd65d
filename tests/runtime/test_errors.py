"""Messages are one line and hold no secret of an address."""

import time
import traceback

import pytest

from runtime import VideoError
from runtime.cli.app import main
from runtime.errors import hide_secrets
from runtime.media.video_reader import open_video

ADDRESSES = [
    # user info, also with characters that should be percent-encoded
    ("rtsp://admin:SECRET@10.0.0.1/x", "rtsp://10.0.0.1/x"),
    ("rtsp://admin:p@SECRET@10.0.0.1:554/x", "rtsp://10.0.0.1:554/x"),
    ("rtsp://admin:SECRET%40SECRET@10.0.0.1/x", "rtsp://10.0.0.1/x"),
    ("rtsp://admin:pa/SECRET@cam/x", "rtsp://cam/x"),
    ("rtsp://admin:p?SECRET@cam/x", "rtsp://cam/x"),
    ("rtsp://admin:p#SECRET@cam/x", "rtsp://cam/x"),
    ("rtsp://admin:p@ss/SECRET@cam/x", "rtsp://cam/x"),
    ("rtsp://admin:12345/SECRET@cam/x", "rtsp://cam/x"),
    ("rtsp://admin:SEC RET@cam/x", "rtsp://cam/x"),
    ("https://SECRET@raw.example.com/clip.mp4", "https://raw.example.com/clip.mp4"),
    ("RTSP://admin:SECRET@[fe80::1%25eth0]:554/live", "RTSP://[fe80::1%25eth0]:554/live"),
    # path
    ("rtmp://a.rtmp.example.com/live2/SECRET-abcd-1234", "rtmp://a.rtmp.example.com/***"),
    ("rtmp://live.example.com/app/live_123456_SECRET", "rtmp://live.example.com/***"),
    ("http://h:80/token=SECRET", "http://h:80/***"),
    ("http://h/SECRET/clip.mp4", "http://h/clip.mp4"),
    ("http://h/SECRET/", "http://h/***"),
    ("http://h/hls/SECRETkey.m3u8", "http://h/***"),
    ("http://h/x;jsessionid=SECRET", "http://h/***"),
    # query and fragment
    ("https://h.example.com/clip.mp4?X-Amz-Signature=SECRET#t=SECRET", "https://h.example.com/clip.mp4"),
    ("https://h.example.com/x?user=a@b.com&token=SECRET", "https://h.example.com/x"),
    ("srt://h:9?passphrase=SECRET&streamid=SECRET", "srt://h:9"),
    ("https://h/#access_token=SECRET", "https://h"),
    # nothing to hide
    ("rtsp://127.0.0.1:9/live", "rtsp://127.0.0.1:9/live"),
    ("rtsp://nvr:554/Streaming/Channels/101", "rtsp://nvr:554/101"),
    ("https://h/videos/IMG_20240101_120000.mp4", "https://h/IMG_20240101_120000.mp4"),
    ("udp://@239.0.0.1:1234", "udp://239.0.0.1:1234"),
    ("file:///tmp/a@b/c.mp4", "file:///tmp/a@b/c.mp4"),
]


@pytest.mark.parametrize("address, shown", ADDRESSES)
def test_secrets_of_addresses(address, shown):
    assert hide_secrets(address) == shown
    assert hide_secrets(shown) == shown or shown.startswith("file")


@pytest.mark.parametrize("address", [a for a, _ in ADDRESSES if "SECRET" in a])
@pytest.mark.parametrize("text", ["{}", "unrecognized arguments: {}: wrong", "'{}', and more", "cache:{}"])
def test_messages_hold_no_secret(address, text):
    if " " in address:
        pytest.skip("an address ends at a space")
    message = str(VideoError(text.format(address)))
    assert "SECRET" not in message and "admin" not in message


@pytest.mark.parametrize(
    "source",
    [
        *("rtsp:/admin:SECRET@127.0.0.1/x", "rtsp:admin:SECRET@127.0.0.1/x", "rtsp//admin:SECRET@127.0.0.1/x"),
        *("admin:SECRET@127.0.0.1/x", "cache:rtsp://admin:SECRET@127.0.0.1/x", " rtsp://admin:SECRET@127.0.0.1/x"),
        *("http//127.0.0.1/x?token=SECRET", "rtsp://admin:p@SECRET@127.0.0.1:9/x", "tcp://127.0.0.1:9/SECRET"),
        *("nosuchscheme://admin:SECRET@127.0.0.1/x", "http://127.0.0.1:9/x?token=SECRET"),
        *("192.168.1.5:554/user=admin_password=SECRET_stream=0.sdp", "192.168.1.5/user=admin&password=SECRET&stream=0"),
        *("127.0.0.1/cgi-bin/mjpg;user=admin;pwd=SECRET", "camera.local:8080/user=admin_password=SECRET.sdp"),
    ],
)
def test_a_source_that_fails_shows_no_secret(source, capfd):
    with pytest.raises(VideoError) as caught:
        open_video(source)
    error: BaseException | None = caught.value
    while error is not None:
        assert "SECRET" not in "".join(map(str, [error, *error.args, vars(error)]))
        error = error.__cause__ or error.__context__
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "args",
    [
        ["rtsp://admin:p@SECRET@127.0.0.1:9/x"],
        ["--video", "rtsp://admin:p@SECRET@127.0.0.1:9/x", "--point", "1,1", "--debug"],
        ["--video", "rtsp://admin:p@SECRET@127.0.0.1:9/x", "--point", "1,1", "rtsp://u:SECRET@h/x"],
        ["--image", "http://127.0.0.1:9/SECRET", "--auto"],
        ["--video", "x", "--mask", "http://u:SECRET@h/a.png"],
    ],
)
def test_the_command_shows_no_secret(args, tmp_path, capfd):
    assert main([*args, "--out", str(tmp_path)]) == 2
    assert "SECRET" not in "".join(capfd.readouterr())


def test_a_list_for_a_batch_shows_no_secret(tmp_path, capfd):
    (tmp_path / "list.csv").write_text("picture,sentence\nhttp://u:SECRET@h/a.png,dog\n")
    args = ["--image", str(tmp_path), "--sentences", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out")]
    assert main(args) == 2
    assert "SECRET" not in "".join(capfd.readouterr())


def test_paths_are_shown_whole():
    for path in ("/data/a@b/clip.mp4", "C:/Users/a@b/clip.mp4", "frames/%05d.png", "a:b/c.png"):
        assert str(VideoError(f"{path}: no such file")) == f"{path}: no such file"


def test_long_messages_are_searched_quickly():
    start = time.process_time()
    for text in ("a.a.-" * 50_000, "a:/" * 50_000, "http://" * 20_000, "x@" * 50_000):
        VideoError(text)
    assert time.process_time() - start < 2


def test_an_address_is_no_output_folder(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["--video", "x", "--point", "1,1", "--out", "s3://u:SECRET@bucket/run"]) == 2
    said = capfd.readouterr().err
    assert "--out" in said and "give a folder" in said and "SECRET" not in said
    assert not list(tmp_path.iterdir())
