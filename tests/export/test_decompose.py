"""Decomposition without a second trace: the graphs of torch's, which stays in use where an operator is unknown."""

from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn

from export import decompose, onnx

# Of x (images,8,6,6) and index (picks,): every operator that is replaced, with sizes that are numbers, an input's,
# products and sums.
REWRITTEN = {
    "reshape": lambda x, index: x.transpose(1, 2).reshape(x.shape[0], -1),
    "flatten": lambda x, index: x.flatten(1, 2) * 2,
    "product of sizes": lambda x, index: x.permute(2, 0, 1, 3)[:, :, index % 8].flatten(1, 2),
    "size and product": lambda x, index: x[:, index % 8].flatten(2).unflatten(2, (6, 6)),
    "sum of sizes": lambda x, index: torch.cat((x[:, index % 8], x), 1).flatten(2),
    "unflatten": lambda x, index: x.unflatten(1, (2, 4)).transpose(1, 2),
    "view_as": lambda x, index: (x * 2).view_as(x) + 1,
    "contiguous": lambda x, index: x.transpose(1, 3).contiguous() + 1,
    "chunk": lambda x, index: torch.cat(x.chunk(3, 1)[::-1], 1),
    "to": lambda x, index: x.to(torch.float64).sum(1).to(torch.float32).to(torch.float32),
    "T": lambda x, index: x @ x[0, 0].T[:, :3],
    "or": lambda x, index: ((x > 0) | (x < -1)).float(),
    "and": lambda x, index: ((x > 0) & (x < 1)).float(),
    "number minus tensor": lambda x, index: (1 - x) * (3 - index[:1]),
    "number minus multiple": lambda x, index: torch.rsub(x, 2, alpha=3),
    "transposed convolution": lambda x, index: torch.conv_transpose2d(x, x[0, :, None, :2, :2], stride=2, padding=1),
}
UNKNOWN = {
    "composite": lambda x, index: x.mT + 1,
    "part of the argument": lambda x, index: x.narrow(1, 2, 3) * 2,
    "order of axes": lambda x, index: x.movedim(1, 2) * 2,
    "written argument": lambda x, index: (x * 2).relu_(),
}


class Calls(nn.Module):
    def __init__(self, calls):
        super().__init__()
        self.calls = tuple(calls)

    def forward(self, x, index):
        return tuple(call(x, index) for call in self.calls)


def inputs(sizes=(3, 5)):
    return torch.randn(sizes[0], 8, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(sizes[1])


def exported(calls):
    images, picks = (torch.export.Dim(name, min=1, max=16) for name in ("images", "picks"))
    with torch.no_grad(), decompose.decomposed_in_place():
        return torch.export.export(Calls(calls), inputs(), dynamic_shapes=({0: images}, {0: picks}), strict=False)


def graph(program, traced_again):
    """Graph of ONNX, and its nodes."""
    if traced_again:
        del program.run_decompositions
    made = torch.onnx.export(program, dynamo=True, opset_version=onnx.OPSET, verbose=False).model_proto
    return made, Counter(node.op_type for node in made.graph.node)


def test_graphs_are_those_of_a_second_trace():
    ort = pytest.importorskip("onnxruntime")
    program = exported(REWRITTEN.values())
    assert {node.target for node in program.graph.nodes} >= decompose.REWRITES.keys() - {torch.ops.aten.to.dtype_layout}
    (made, nodes), (_, expected) = (graph(exported(REWRITTEN.values()), again) for again in (False, True))
    assert nodes - expected <= Counter(Shape=1) and not expected - nodes, "sizes may be read from other inputs"
    session = ort.InferenceSession(made.SerializeToString())
    for sizes in ((3, 5), (1, 1), (2, 7)):
        given = inputs(sizes)
        got = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), given, strict=True)})
        for name, have, call in zip(REWRITTEN, got, REWRITTEN.values(), strict=True):
            np.testing.assert_allclose(have, call(*given), rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", UNKNOWN)
def test_programs_with_other_operators_are_traced_again(name):
    program = exported([UNKNOWN[name]])
    done = program.run_decompositions()
    assert done is not program
    torch.testing.assert_close(done.module()(*inputs()), Calls([UNKNOWN[name]])(*inputs()))
