"""`kernels/postprocess.py` in Triton's interpreter, and its reference, against the CPU path of `runtime.imaging`."""

import os

from runtime.imaging.masks import boxes_and_areas
from runtime.imaging.upsample import MaskUpsampler

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from runtime.kernels import launch, plan, reference


@pytest.mark.parametrize(
    "low_side, image, crop, source",
    [
        (16, 64, (36, 64), (45, 80)),
        (16, 64, (64, 33), (31, 17)),
        (64, 256, (144, 256), (13, 21)),
        (16, 64, (60, 60), (1, 1)),
        (32, 128, (128, 70), (129, 71)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_the_cpu_path(low_side, image, crop, source, dtype):
    low = np.random.default_rng(0).standard_normal((3, low_side, low_side)).astype(np.float32)
    low[1] = -1  # an empty mask
    low = torch.tensor(low).to(dtype)
    upsampler = MaskUpsampler(low_side, image, crop, source)
    rows = [torch.tensor(a) for a in reference.mask_taps(upsampler.rows)]
    columns = [torch.tensor(a) for a in reference.mask_taps(upsampler.columns)]
    packed = torch.zeros((3, -(-source[0] * source[1] // 8)), dtype=torch.uint8)
    stats = torch.zeros((3, 5), dtype=torch.int32)
    launch.run(plan.postprocess(low, rows, columns, packed, stats, 3, low_side, source))
    expected_packed, expected_stats = reference.postprocess(low.float().numpy(), upsampler.rows, upsampler.columns)
    np.testing.assert_array_equal(packed.numpy(), expected_packed)
    np.testing.assert_array_equal(plan.boxes(stats.numpy(), source), expected_stats)
    masks = upsampler.masks(low.float().numpy())
    boxes, areas = boxes_and_areas(masks)
    np.testing.assert_array_equal(np.packbits(masks.reshape(len(masks), -1), axis=1), expected_packed)
    np.testing.assert_array_equal(np.column_stack([areas, boxes]), expected_stats)


def test_taps_refuse_a_wide_matrix():
    with pytest.raises(ValueError, match="spans"):
        reference.mask_taps(np.full((3, 9), 1 / 9))
