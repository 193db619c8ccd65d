"""Checkpoints of the official training, with optimiser, schedule and arguments beside the weights."""

import argparse
import dataclasses

import pytest

from export.checkpoints.samwise import load_samwise

torch = pytest.importorskip("torch")

from export.models.samwise import Samwise
from export.networks.samwise import settings
from helpers.toy_networks import toy_samwise_config


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Samwise(toy_samwise_config())


def saved(tmp_path, network, **more):
    data = {"model": network.state_dict(), "config": dataclasses.asdict(network.config)}
    torch.save(data | more, tmp_path / "x.pth")
    return tmp_path / "x.pth"


def test_optimiser_and_schedule(tmp_path, network):
    """The schedule's state holds a Counter, which is not plain data."""
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight])
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60000])
    weight.sum().backward()
    optimizer.step()
    path = saved(
        tmp_path,
        network,
        optimizer=optimizer.state_dict(),
        lr_scheduler=schedule.state_dict(),
        epoch=3,
        args=argparse.Namespace(lr=1e-5, use_cme_head=True),
    )
    assert load_samwise(path).config == network.config


def test_operation_counters_are_ignored(tmp_path, network):
    tensors = {**network.state_dict(), "total_ops": torch.zeros(1), "sam.total_params": torch.zeros(1)}
    torch.save({"model": tensors, "config": dataclasses.asdict(network.config)}, tmp_path / "x.pth")
    assert load_samwise(tmp_path / "x.pth").config == network.config


def test_untrained_conditional_memory_is_omitted(tmp_path, network):
    """The official code always builds it, and uses it only when told to."""
    bare = dataclasses.replace(network.config, conditional_hidden=0)
    path = saved(tmp_path, network, config=dataclasses.asdict(bare), args=argparse.Namespace(use_cme_head=False))
    assert settings(load_samwise(path))["samwise"]["conditional_memory"] is None
