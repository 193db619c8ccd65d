"""`kernels/postprocess.py` in Triton's interpreter, and its reference, against the CPU path of `runtime.imaging`."""

import os
from types import SimpleNamespace

from runtime.imaging.gpu import DeviceMasks
from runtime.imaging.masks import boxes_and_areas
from runtime.imaging.upsample import CornerAlignedUpsampler, MaskUpsampler, SeparableUpsampler, bilinear_matrix

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


class Interpreter:
    """Device and kernels of `runtime.imaging.gpu` on tensors of torch."""

    stream = 0

    def constant(self, host):
        tensor = torch.tensor(host)
        tensor.ptr = tensor.data_ptr()
        return tensor

    def copy(self, source, to):
        to.copy_(source)

    def bind(self, launches):
        return SimpleNamespace(run=lambda stream: launch.run(launches))


@pytest.mark.parametrize("source", [(45, 80), (80, 45), (31, 17), (1, 1), (1, 50), (16, 16), (7, 6)])
@pytest.mark.parametrize("rule", ["sam2", "sam3", "refersam"])
def test_rules_of_the_other_networks_equal_the_cpu_path(rule, source):
    """All pixels, also where a logit is 0: foreground in ReferSAM, whose kernel finds the background."""
    low = np.random.default_rng(1).standard_normal((2, 16, 16)).astype(np.float32)
    low[0, :8], low[1, 4] = 0, -0.0
    upsampler = {
        "sam2": lambda: MaskUpsampler(16, 16, (16, 16), source),
        "sam3": lambda: SeparableUpsampler(*(bilinear_matrix(16, side) for side in source)),
        "refersam": lambda: CornerAlignedUpsampler(16, source),
    }[rule]()
    device = Interpreter()
    masks = DeviceMasks(device, device, upsampler)
    stats, packed = (device.constant(np.zeros(t.shape, t.dtype)) for t in masks.fields(2))
    masks.enqueue(device.constant(low), packed, stats)
    expected = upsampler.masks(low)
    assert rule != "refersam" or expected[0].any() or source == (1, 1)
    np.testing.assert_array_equal(masks.masks(packed.numpy()), expected)
