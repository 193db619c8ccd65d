"""Tests of `runtime.device.scratch`."""

import weakref

import numpy as np
import pytest

from helpers.fake_cuda import FakeDriver
from runtime.bundle.manifest import TensorSpec
from runtime.device.base import Cpu
from runtime.device.cuda import Cuda
from runtime.device.scratch import ALIGNMENT, GrowableBuffers, ReadbackBuffer


@pytest.mark.parametrize("captures", [0, 1])
def test_growable_buffer_keeps_memory_that_a_captured_graph_may_use(captures):
    device = Cuda(FakeDriver())
    buffers = GrowableBuffers(device)
    small = buffers.reserve("scratch", 100)
    assert buffers.reserve("scratch", 50) is small
    device.captures = captures
    allocation = weakref.ref(small.owner)
    assert buffers.reserve("scratch", 200) is not small
    del small
    assert (allocation() is not None) == bool(captures)


def test_growable_buffers_share_memory_by_name():
    buffers = GrowableBuffers(Cpu())
    first, second = buffers.take("a", (4, 8), "float32"), buffers.take("a", (2, 8), "float16")
    assert np.shares_memory(first, second) and second.shape == (2, 8) and second.dtype == np.float16
    assert not np.shares_memory(buffers.take("b", (1,), "float32"), first)
    assert not np.shares_memory(buffers.take("a", (5, 8), "float32"), first), "a larger array needs another block"


def test_fake_driver_forgets_freed_memory():
    """An address that was device memory and is pinned memory now counts as pinned."""
    driver = FakeDriver()
    target, owner = driver.allocate(64)
    for _ in range(20):
        freed = driver.allocate(1 << 20)
        del freed
        source = driver.pinned(1 << 20)
        driver.copy(target, source[0], 64)
        del source
    assert driver.calls["upload"] == 20 and driver.calls["copy"] == 0
    del owner


SPECS = [
    TensorSpec("low_res_logits", "float32", ("objects", 3, 3)),
    TensorSpec("score", "float32", ("objects",)),
    TensorSpec("switched", "bool", ("objects",)),
]


def test_readback_is_one_copy_of_the_fields_that_are_read():
    driver = FakeDriver()
    device = Cuda(driver)
    results = ReadbackBuffer(device, SPECS, 2, optional=("low_res_logits",))
    for value, name in enumerate(results.arrays):
        array = results.arrays[name]
        device.copy(device.constant(np.full(array.shape, value, array.dtype)), array)
    sizes = []
    copy = driver.copy
    driver.copy = lambda to, source, size: (sizes.append(size), copy(to, source, size))
    required = results.read(("score", "switched"))
    assert {name: a.tolist() for name, a in required.items()} == {"score": [0.0, 0.0], "switched": [True, True]}
    assert sizes == [2 * ALIGNMENT]
    everything = results.read()
    assert everything["low_res_logits"].shape == (2, 3, 3) and (everything["low_res_logits"] == 2).all()
    assert sizes[1:] == [3 * ALIGNMENT]
