"""The committed table of registers and spilled bytes against `kernels/plan.py`, and the layout of parameters.

`tests/runtime/device/test_cubin.py` compares what it compiles with the table.
"""

import json
from dataclasses import replace

import pytest

from benchmarks import kernel_resources
from export import cubin_resources
from export import kernels as aot
from runtime.device.cubin import Entry
from runtime.errors import InternalError
from runtime.kernels import plan

TABLE = json.loads(kernel_resources.TABLE.read_text())["triton"]


@pytest.mark.parametrize("version", sorted(TABLE))
@pytest.mark.parametrize("target", aot.TARGETS)
def test_no_kernel_that_ships_spills_registers(version, target):
    """Renew the table with `python -m benchmarks.kernel_resources` where a kernel or its block sizes change."""
    table = TABLE[version][f"sm_{target}"]
    assert table.keys() == aot.distinct(kernel_resources.published_launches(target)).keys()
    for name, (registers, spilled, shared) in table.items():
        assert registers <= 255 and spilled == 0 and shared <= plan.SHARED_LIMIT[target], name


def test_table_is_of_the_oldest_triton_that_the_tests_accept_and_of_a_later_one():
    assert min(TABLE) == "3.6.0" and len(TABLE) > 1


ENTRY = Entry("toy", 80, {}, "toy.cubin", "toy", ("*fp16", "i32", "fp32", "i32"), 2, 128, 0)
LAYOUT = (0, 8), (8, 4), (12, 4), (16, 4), (24, 8), (32, 8)


def test_layout_is_that_of_c():
    cubin_resources.require_layout(ENTRY, cubin_resources.Resources(1, 0, 128, LAYOUT))


@pytest.mark.parametrize(
    "entry, resources",
    [
        (replace(ENTRY, signature=("*fp16", "*i32", "fp32", "i32")), {}),
        (replace(ENTRY, signature=("*fp16", "i32", "fp32")), {}),
        (replace(ENTRY, extra_pointers=1), {}),
        (replace(ENTRY, threads=256), {}),
        (ENTRY, {"threads": 64}),
        (ENTRY, {"parameters": (*LAYOUT[:-1], (40, 8))}),
        (ENTRY, {"parameters": ((0, 8), (8, 8), *LAYOUT[2:])}),
    ],
)
def test_another_layout_is_refused(entry, resources):
    found = {"registers": 1, "spilled": 0, "threads": 128, "parameters": LAYOUT, **resources}
    with pytest.raises(InternalError, match="toy for sm_80 takes parameters at"):
        cubin_resources.require_layout(entry, cubin_resources.Resources(**found))
