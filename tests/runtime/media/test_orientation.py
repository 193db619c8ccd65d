"""Display matrices: all eight orientations as FFmpeg shows them, whatever scale they have."""

import gc
import multiprocessing
from types import SimpleNamespace

import av
import numpy as np
import pytest

from helpers import media
from runtime.media.conversion import orientation
from runtime.media.video_reader import open_video

# matrix: what FFmpeg shows of a picture
ORIENTATIONS = {
    (1, 0, 0, 1): lambda p: p,
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (-1, 0, 0, -1): lambda p: p[::-1, ::-1],
    (0, 1, 1, 0): lambda p: p.swapaxes(0, 1),
    (0, 1, -1, 0): lambda p: p.swapaxes(0, 1)[:, ::-1],
    (0, -1, 1, 0): lambda p: p.swapaxes(0, 1)[::-1],
    (0, -1, -1, 0): lambda p: p.swapaxes(0, 1)[::-1, ::-1],
}


def corners(count=2):
    """Frames that differ in every corner."""
    frames = np.full((count, 48, 64, 3), 90, np.uint8)
    frames[:, :16, :16], frames[:, :16, 48:], frames[:, 32:, :16] = (250, 20, 20), (20, 250, 20), (20, 20, 250)
    return frames


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = media.write(tmp_path_factory.mktemp("plain") / "a.mp4", corners())
    return path, np.stack(list(open_video(path)))


def with_matrix(plain, tmp_path, matrix):
    path = tmp_path / "a.mp4"
    path.write_bytes(plain[0].read_bytes())
    return media.set_matrix(path, *matrix)


@pytest.mark.parametrize("scale", [1, 0.5, 3])
@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_matrices_are_applied_whole(plain, tmp_path, matrix, scale):
    with open_video(with_matrix(plain, tmp_path, [scale * v for v in matrix])) as video:
        got = np.stack(list(video))
        assert video.sample_aspect_ratio == 1
    assert video.size == got.shape[1:3]
    for shown, stored in zip(got, plain[1], strict=True):
        assert (shown == ORIENTATIONS[matrix](stored)).all()


@pytest.mark.parametrize(
    "matrix, same",
    [
        ((0, 0, 0, 0), (1, 0, 0, 1)),
        ((2, 0, 0, 1), (1, 0, 0, 1)),
        ((-1, 0, 0, 4), (-1, 0, 0, 1)),
        ((0, 2, -1, 0), (0, 1, -1, 0)),
        ((0.996, 0.087, -0.087, 0.996), (1, 0, 0, 1)),  # a phone held 5 degrees askew
        ((0.087, 0.996, -0.996, 0.087), (0, 1, -1, 0)),
        ((1, 0, 0.2, 1), (1, 0, 0, 1)),
    ],
)
def test_scale_shear_and_odd_angles_are_ignored(plain, tmp_path, matrix, same):
    got = next(open_video(with_matrix(plain, tmp_path, matrix)))
    assert (got == ORIENTATIONS[same](plain[1][0])).all()


def test_the_shape_of_pixels_turns_with_the_picture(plain, tmp_path):
    """FFmpeg takes it from the scale of the matrix, for the picture as it is stored."""
    for matrix, ratio in (((2, 0, 0, 1), 2), ((0, 2, -1, 0), 2), ((0, 1, -2, 0), 0.5)):
        assert open_video(with_matrix(plain, tmp_path, matrix)).sample_aspect_ratio == ratio


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_side_data_without_a_name_leave_the_rotation(turns):
    class SideData:
        @property
        def side_data(self):
            raise ValueError("31 is not a valid Type")

    frame = SimpleNamespace(rotation=(90 * turns + 180) % 360 - 180, reformat=lambda **_: SideData())
    transpose, mirror, flip = orientation(frame)
    picture = np.arange(6).reshape(2, 3)
    turned = (picture.swapaxes(0, 1) if transpose else picture)[:: -1 if flip else 1, :: -1 if mirror else 1]
    assert (turned == np.rot90(picture, turns)).all()


def count_frames(path, queue):
    gc.collect()
    gc.disable()
    list(open_video(path))
    queue.put(len([frame for frame in gc.get_objects() if isinstance(frame, av.VideoFrame) and frame.width > 2]))


def test_frames_are_freed_without_the_garbage_collector(plain, tmp_path):
    """In a process of its own: in this one, other tests may leave threads with frames."""
    path, context = with_matrix(plain, tmp_path, (0, 1, -1, 0)), multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=count_frames, args=(path, queue))
    process.start()
    assert queue.get() == 0
    process.join()
