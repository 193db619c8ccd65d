"""Weights of a module that are read back from its graph."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from export import graph_weights, onnx
from export.stage import stage, tensor
from runtime.errors import BundleError


class Layers(nn.Module):
    """Weights that a graph has as they are, transposed, flattened and one below the other, and a table of sizes."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(4, 6, 1), nn.Linear(6, 5, bias=False)
        self.token, self.tokens = nn.Parameter(torch.randn(1, 5)), nn.Parameter(torch.randn(2, 5))
        self.register_buffer("table", torch.linspace(0, 1, 5), persistent=False)

    def forward(self, x):
        weight = self.conv.weight.flatten(1).mT
        mixed = (x @ weight + self.conv.bias) @ self.linear.weight.mT
        rows = torch.cat((self.token, self.tokens))
        return (((mixed + self.table)[:, None] * rows).sum(2),)


def layers():
    inputs, outputs = (tensor("x", "rows", 4),), (tensor("y", "rows", 3),)
    draw = lambda sizes, generator: {"x": torch.randn(sizes["rows"], 4, generator=generator)}  # noqa: E731
    return stage("layers", inputs, outputs, Layers(), draw, {"rows": (1, 9)}, {"rows": 7})


def test_weights_are_read_back(tmp_path):
    written, read = layers(), layers()
    onnx.save({"default": onnx.trace(written)}, tmp_path, "layers")
    graph_weights.load_weights(read, tmp_path / "layers.onnx")
    inputs = written.sample()
    torch.testing.assert_close(read.run(inputs), written.run(inputs))


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
def test_a_constant_from_no_tensor_is_an_error_unless_it_is_the_same(shape):
    target, old = layers(), torch.rand(shape) + 3
    state = target.module.state_dict()
    graph_weights._assign(target, state, "val_1", old, old.half().float())
    with pytest.raises(BundleError, match=r"stage layers: the constant val_1 .* comes from no tensor"):
        graph_weights._assign(target, state, "val_1", old, old + 1)


def test_a_row_that_is_repeated_is_read_back():
    target, new = layers(), torch.rand(1, 5)
    state = target.module.state_dict()
    name, row = next((name, value) for name, value in state.items() if value.shape == (1, 5))
    graph_weights._assign(target, state, "expand", row.expand(1, 2, 5).clone(), new.expand(1, 2, 5))
    assert torch.equal(target.module.state_dict()[name], new)
