"""The same weights as trainings, wrappers and libraries save them: keys and prefixes; every loader takes them."""

import argparse
import collections
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from export.checkpoints.common import read
from export.checkpoints.names import is_counter
from export.checkpoints.refersam import load_refersam
from export.checkpoints.sam2 import load_sam2
from export.checkpoints.samwise import load_samwise
from helpers.errors import one_line
from helpers.toy_checkpoints import networks
from runtime.errors import UserError

LOADERS = {
    "samwise": load_samwise,
    "sam2": lambda path: load_sam2(path).sam,
    "refersam": lambda path: load_refersam(path, 64),
}


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def spoiled(tensors):
    return {name: value + 1 for name, value in tensors.items()}


def beside():
    """What a training saves beside the weights."""
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=1e-5),
        "best_score": np.float64(0.7),
        "last_loss": np.float32(0.1),
        "output": pathlib.PosixPath("run"),
        "history": collections.Counter(a=1),
        "scaler": {"scale": 2.0},
        "rng": torch.zeros(4, dtype=torch.uint8),
        "pytorch-lightning_version": "2.5.0",
    }


def middle(tensors):
    """A submodule that is compiled, or wrapped by FSDP or DDP, within a network that is not."""
    wrapped = ("_orig_mod", "_fsdp_wrapped_module", "module")
    return {name.replace(".", f".{wrapped[len(name) % 3]}.", 1): value for name, value in tensors.items()}


KEYS = "model state_dict model_state_dict net ema ema_model network weights params module teacher model.state 0".split()
PREFIXES = (
    *"module. model. _orig_mod. _forward_module. net. ema_model. module.module. sam2_model. module._orig_mod.".split(),
    *"_orig_mod.module. model.model. _forward_module.module.model._orig_mod.".split(),
)
WRAPPINGS = {
    "plain": lambda s: s,
    "plain beside an epoch": lambda s: {**s, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
    **{f"key {key}": lambda s, key=key: {key: s, **beside()} for key in KEYS},
    **{f"prefix {prefix}": lambda s, prefix=prefix: {"model": prefixed(prefix, s)} for prefix in PREFIXES},
    "lightning": lambda s: {"state_dict": prefixed("model.", s), **beside()},
    "lightning compiled": lambda s: {"state_dict": prefixed("model._orig_mod.", s), **beside()},
    "lightning with a loss": lambda s: {"state_dict": prefixed("net.", s) | {"criterion.weight": torch.zeros(2)}},
    "lightning with an average": lambda s: {
        "state_dict": prefixed("ema_model.module.", spoiled(s)) | prefixed("model.", s)
    },
    "nested keys": lambda s: {"checkpoint": {"model": {"state_dict": s}}, "epoch": 3},
    "prefix in nested keys": lambda s: {"state": {"ema": prefixed("module.", s)}},
    "average by torch": lambda s: {"model_ema": prefixed("module.", s) | {"n_averaged": torch.tensor(5)}},
    "average alone": lambda s: prefixed("module.", s) | {"n_averaged": torch.tensor(5)},
    "average by ema_pytorch": lambda s: {
        "ema": prefixed("online_model.", s) | prefixed("ema_model.", spoiled(s)) | {"step": torch.tensor([7])}
    },
    "weights after their average": lambda s: {"ema": spoiled(s), "model": s},
    "compiled parts": lambda s: {"model": middle(s)},
    "config of the training": lambda s: {"model": s, "config": {"lr": 1e-5, "data": {"size": 3}}, "args": ["--lr"]},
    "ordered": lambda s: collections.OrderedDict(prefixed("module.", s)),
    "parameters": lambda s: {"model": {k: torch.nn.Parameter(v, requires_grad=False) for k, v in s.items()}},
    "operation counters": lambda s: {"model": {**s, "total_ops": torch.zeros(1), "a.total_params": torch.zeros(1)}},
}


@pytest.fixture(params=LOADERS)
def network(request):
    """Name, tensors and config of a toy network."""
    return request.param, *networks()[request.param]


def same(found, tensors):
    return all(torch.equal(found[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_tensors_are_found(tmp_path, network, wrapping):
    name, tensors, _ = network
    torch.save(WRAPPINGS[wrapping](tensors), tmp_path / "x.pt")
    found = read(tmp_path / "x.pt", name)
    assert same(found.tensors, tensors) and found.config is None
    assert all(is_counter(extra) for extra in found.tensors.keys() - tensors.keys())


@pytest.mark.parametrize("wrapping", ["lightning compiled", "compiled parts"])
def test_loaders_take_them(tmp_path, network, wrapping):
    name, tensors, config = network
    torch.save({**WRAPPINGS[wrapping](tensors), **({"config": config} if config else {})}, tmp_path / "x.pt")
    assert same(LOADERS[name](tmp_path / "x.pt").state_dict(), tensors)


def test_config_lies_beside_nested_weights(tmp_path, network):
    name, tensors, config = network
    torch.save({"run": {"model": tensors, "config": config, "args": {"lr": 1e-5}}, "args": None}, tmp_path / "x.pt")
    found = read(tmp_path / "x.pt", name)
    assert found.config == config and found.arguments == {"lr": 1e-5}


def logged(tmp_path, caplog, data, network="sam2"):
    torch.save(data, tmp_path / "x.pt")
    read(tmp_path / "x.pt", network)
    return caplog.messages


def test_what_is_left_out_is_logged(tmp_path, caplog, network):
    name, tensors, _ = network
    several = {"model": tensors, "ema": spoiled(tensors), "optimizer": {"a": torch.zeros(1)}}
    (message,) = logged(tmp_path, caplog, several, name)
    assert "under 'model'" in message and "under 'ema'" in message
    caplog.clear()
    lightning = {"state_dict": prefixed("net.", tensors) | {"criterion.weight": torch.zeros(2)}}
    (message,) = logged(tmp_path, caplog, lightning, name)
    assert "under 'state_dict.net'" in message and message.endswith("left out: criterion.weight")
    caplog.clear()
    assert not logged(tmp_path, caplog, {"model": tensors, "epoch": 3}, name)
    assert not logged(tmp_path, caplog, prefixed("module.", tensors) | {"n_averaged": torch.tensor(5)}, name)


@pytest.mark.parametrize("wanted", LOADERS)
@pytest.mark.parametrize("wrap", [lambda s: {"model": s}, WRAPPINGS["lightning compiled"]], ids=["plain", "wrapped"])
def test_checkpoints_of_another_network_name_it(tmp_path, network, wanted, wrap):
    name, tensors, _ = network
    if name != wanted:
        torch.save(wrap(tensors), tmp_path / "x.pt")
        with pytest.raises(UserError, match=f"python -m export {name}`"):
            read(tmp_path / "x.pt", wanted)


@pytest.mark.parametrize(
    "data, words",
    [
        ({"generator": {"a.weight": torch.zeros(1), "b": torch.zeros(1)}, "epoch": 3}, ["'generator'", "a.weight, b"]),
        ({"a": {"b": {"c.weight": torch.zeros(1)}}}, ["'a.b'", "c.weight"]),
        ({"weights": [torch.zeros(1)], "epoch": 3}, ["'weights'", "'epoch'"]),
        ({"model": {"module.image_encoder.a": torch.zeros(1), "image_encoder.a": torch.ones(1)}}, ["twice"]),
    ],
)
def test_other_contents_are_named(tmp_path, data, words):
    torch.save(data, tmp_path / "x.pt")
    with pytest.raises(UserError) as caught:
        read(tmp_path / "x.pt", "sam2")
    message = one_line(caught)
    assert all(word in message for word in words), message


def test_a_mapping_that_contains_itself(tmp_path):
    data = {"a": {}}
    data["a"] |= {str(i): data for i in range(50)}
    torch.save(data, tmp_path / "x.pt")
    with pytest.raises(UserError, match="no named tensors"):
        read(tmp_path / "x.pt", "sam2")


# -- several copies -------------------------------------------------------------------------------------------------

SECONDARY = (
    *"EMA modelEma model_EMA ModelEMA ema0.9999 ema-0.99 emaModel ema_state_dict SWAModel avgModel".split(),
    *"momentum momentum_encoder ref_model reference_model target_network teacherModel mean_teacher".split(),
    *"polyak shadowParams slow_weights old_model initial_model pretrained optimizer optim.state grads theta".split(),
)


@pytest.mark.parametrize("other", SECONDARY)
def test_weights_after_copies_of_other_names(tmp_path, other):
    """Averages, earlier weights and states of the optimizer, as keys, as prefixes, and beside plain names."""
    tensors, _ = networks()["sam2"]
    copy = spoiled(tensors)
    files = [{other: copy, "model": tensors}, prefixed(other + ".", copy) | prefixed("model.", tensors)]
    if other != "theta":  # a name that tells nothing
        files.append(prefixed(other + ".", copy) | tensors)
    for data in files:
        torch.save(data, tmp_path / "x.pt")
        found = read(tmp_path / "x.pt", "sam2").tensors
        assert same(found, tensors) and len(found) == len(tensors)


def test_state_of_an_optimizer_by_name_before_the_weights(tmp_path, network):
    """As FSDP saves it."""
    name, tensors, _ = network
    moments = {f"{n}.{kind}": v for n, v in spoiled(tensors).items() for kind in ("exp_avg", "exp_avg_sq")}
    for data in (
        prefixed("optim.state.", moments) | prefixed("model.", tensors),
        {"optimizer": {"state": moments}, "model": tensors},
        {"exp_avg": spoiled(tensors), "params": tensors},
    ):
        torch.save(data, tmp_path / "x.pt")
        assert same(read(tmp_path / "x.pt", name).tensors, tensors)


@pytest.mark.parametrize("first, second", [("alpha", "beta"), ("0", "1"), ("model", "net"), ("best", "last")])
def test_copies_that_nothing_tells_apart_are_refused(tmp_path, first, second):
    tensors, _ = networks()["sam2"]
    for wrap in (lambda key, s: {key: s}, lambda key, s: prefixed(f"{key}.", s)):
        torch.save(wrap(first, spoiled(tensors)) | wrap(second, tensors), tmp_path / "x.pt")
        with pytest.raises(UserError, match=f"several SAM 2 networks, under '{first}' and '{second}'") as caught:
            read(tmp_path / "x.pt", "sam2")
        one_line(caught)
        torch.save(wrap(first, dict(tensors)) | wrap(second, tensors), tmp_path / "x.pt")
        assert same(read(tmp_path / "x.pt", "sam2").tensors, tensors)
