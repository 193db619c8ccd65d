"""`kernels/preprocess.py` in Triton's interpreter, and its reference, against Pillow: equal to the last bit."""

import os

from runtime.imaging.gpu import frame_taps
from runtime.imaging.preprocess import RESAMPLE, Normalization, preprocess

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from runtime.kernels import launch, plan, reference

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIDE = 20
SIZES = [
    ((9, 15), (12, 20)),
    ((13, 7), (20, 11)),
    ((31, 6), (11, 5)),
    ((20, 20), (20, 20)),
    ((1, 3), (7, 20)),
    ((24, 5), (8, 2)),
]
"""Source and target of enlarging and shrinking: three source pixels per pixel, as from 3840 to 1024, are the most."""


@pytest.mark.parametrize("source, target", SIZES)
@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_reference_equals_pillow(source, target, filter):
    frame = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    identity = np.arange(256, dtype=np.float32)[None].repeat(3, axis=0)
    result = reference.preprocess(frame, target, SIDE, identity, filter)
    # two calls: Pillow 13 may run the row pass first when it is given both
    wide = Image.fromarray(frame).resize((target[1], source[0]), RESAMPLE[filter])
    expected = np.asarray(wide.resize(target[::-1], RESAMPLE[filter]))
    np.testing.assert_array_equal(result[:, : target[0], : target[1]].transpose(1, 2, 0), expected)


@pytest.mark.parametrize("source, target", SIZES)
@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "half", "uint8"])
def test_kernel_equals_the_cpu_path(source, target, filter):
    """`bilinear`: SAMWISE and ReferSAM, `bicubic`: SAM 2, `half` and `uint8`: SAM 3."""
    frame = np.random.default_rng(1).integers(0, 256, (*source, 3), dtype=np.uint8)
    rows, columns = ([torch.tensor(a) for a in frame_taps(filter, *n)] for n in zip(source, target, strict=True))
    table = torch.tensor(Normalization.of(MEAN, STD, filter == "half").table_cv)
    for dtype in (torch.float32, torch.float16):
        out = torch.full((3, SIDE, SIDE), float("nan"), dtype=dtype)
        taps = (rows[1].shape[1], columns[1].shape[1])
        launch.run(plan.preprocess(torch.tensor(frame), rows, columns, table, out, source, target, SIDE, taps))
        expected = preprocess(frame, target, SIDE, MEAN, STD, resample=filter)
        np.testing.assert_array_equal(out.numpy(), expected.astype(out.numpy().dtype))


@pytest.mark.parametrize("source, target", SIZES)
def test_kernel_without_rounding_equals_the_cpu_path(source, target):
    """Images of SAM 2. Pillow 13 may run the rows first: other roundings to float32 between the passes."""
    frame = np.random.default_rng(2).integers(0, 256, (*source, 3), dtype=np.uint8)
    taps = [frame_taps("float", *n) for n in zip(source, target, strict=True)]
    unit, norm = np.arange(256, dtype=np.float32) / np.float32(255), np.array([MEAN, STD], np.float32)
    expected = preprocess(frame, target, SIDE, MEAN, STD, resample="float")
    np.testing.assert_allclose(reference.preprocess_float(frame, *taps, SIDE, unit, norm), expected, 0, 1e-6)
    out = torch.full((3, SIDE, SIDE), float("nan"))
    arrays = [torch.tensor(frame), *([torch.tensor(a) for a in axis] for axis in taps)]
    numbers = (source, target, SIDE, tuple(weight.shape[1] for _, weight in taps))
    launch.run(plan.preprocess_float(*arrays, torch.tensor(unit), torch.tensor(norm), out, *numbers))
    np.testing.assert_allclose(out.numpy(), expected, 0, 1e-6)
