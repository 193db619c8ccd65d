"""Configurations that are measured on a device: the one that ships first, and none that cannot run there."""

import pytest

from runtime.kernels import candidates, plan

COMPILED = [
    # shared memory of compiled kernels, in KB (Triton 3.6, ptxas)
    (plan.FLASH[80], 80, 104),
    (plan.FLASH[86], 86, 52),
    (plan.FLASH[89], 89, 52),
    (plan.FLASH[90], 90, 224),
    (plan.FlashConfig(128, 64, 8, 3), 90, 184),
    (plan.FLASH[120], 120, 52),
    (plan.FlashConfig(64, 64, 4, 2), 89, 72),
    (plan.FlashConfig(64, 32, 4, 4), 89, 92),
    (plan.FlashConfig(128, 64, 8, 2), 89, 104),
]


@pytest.mark.parametrize("config, capability, kilobytes", COMPILED)
def test_estimate_of_shared_memory_is_what_the_compiler_takes(config, capability, kilobytes):
    assert candidates.flash_shared(config, capability) == kilobytes << 10


@pytest.mark.parametrize("capability", [*plan.FLASH, 87, 100])
def test_candidates_begin_with_what_ships_and_can_run(capability):
    found = candidates.flash_candidates(capability)
    assert found[0] == plan.FLASH.get(capability, plan.FLASH[80]) and len(set(found)) == len(found)
    limit = plan.SHARED_LIMIT.get(capability, 99 << 10)
    assert all(candidates.flash_shared(c, capability) <= limit for c in found[1:])
    assert capability >= 90 or not any(c.tma for c in found), "tensor descriptors need Hopper or later"
    windows = candidates.window_candidates(capability)
    assert windows[0] == plan.WINDOW.get(capability, plan.WINDOW[80]) and len(set(windows)) == len(windows)


def test_hopper_measures_every_candidate_and_small_cards_those_of_64_queries():
    assert set(candidates.flash_candidates(90)) == set(candidates.FLASH_CANDIDATES)
    assert {c.block_m for c in candidates.flash_candidates(89)} == {64} and len(candidates.flash_candidates(89)) == 3
