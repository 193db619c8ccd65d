"""Decomposition of a program of torch.export node by node.

`ExportedProgram.run_decompositions` traces the whole program again, which takes most of the time of an export and
changes only the few operators of `REWRITES` in our networks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from itertools import takewhile
from typing import Any
from unittest.mock import patch

import torch
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten


@contextmanager
def decomposed_in_place() -> Iterator[None]:
    """Let programs that `torch.export.export` returns inside the block be decomposed node by node."""
    export = torch.export.export

    def export_program(*args: Any, **options: Any) -> ExportedProgram:
        program = export(*args, **options)
        decompose_in_place(program)
        return program

    with patch.object(torch.export, "export", export_program):
        yield


def decompose_in_place(program: ExportedProgram) -> None:
    """Replace the method `run_decompositions` of a program, which the exporter calls.

    The new one changes the program itself. A program with other operators that torch would replace is traced again.
    """
    trace_again = program.run_decompositions

    def run_decompositions(decomp_table: dict[Any, Any] | None = None, **options: Any) -> ExportedProgram:
        graph = program.graph_module.graph
        if not is_simple(graph.nodes, decomp_table or {}):
            return trace_again(decomp_table, **options)
        for node in list(graph.nodes):
            if rewrite := REWRITES.get(node.target):
                rewrite(node)
        graph.eliminate_dead_code()
        program.graph_module.recompile()
        return program

    program.run_decompositions = run_decompositions  # type: ignore[method-assign]


def is_simple(nodes: Iterable[Node], table: Collection[Any]) -> bool:
    """Return whether torch would replace no other operators than `REWRITES`; `table`: those that it is told to."""
    return all(node.op in ("placeholder", "output") or _is_call_to_keep_or_rewrite(node, table) for node in nodes)


def _is_call_to_keep_or_rewrite(node: Node, table: Collection[Any]) -> bool:
    if node.target not in REWRITES:
        return node.op == "call_function" and not _is_replaced(node.target, table)
    sizes = (s for s in getattr(node.meta["val"], "shape", ()) if isinstance(s, torch.SymInt))
    return all(_is_sum_of_products(size.node.expr) for size in sizes)


def _is_replaced(target: Any, table: Collection[Any]) -> bool:
    """Return whether torch would replace an operator: one of the table, one that writes to an argument, a composite
    one that may return it."""
    if not isinstance(target, torch._ops.OpOverload):
        return isinstance(target, torch._ops.HigherOrderOperator)
    composite = target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    returns_argument = any(value.alias_info is not None for value in target._schema.returns)
    return target in table or target._schema.is_mutable or (composite and returns_argument)


def _insert(node: Node, target: Callable[..., Any], args: tuple[Any, ...], value: Any, **options: Any) -> Node:
    """Insert a call before `node`; `value` is its result on fake tensors."""
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, args, options)
    new.meta = {**node.meta, "val": value}
    return new


def _replace(node: Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    node.target, node.args, node.kwargs = target, args, kwargs


def _pass(node: Node, x: Node) -> None:
    """Pass on the argument; an output keeps its own name."""
    node.replace_all_uses_with(x, delete_user_cb=lambda user: user.op != "output")
    _replace(node, aten.alias.default, x)


def _reshape(node: Node) -> None:
    """`view` of a copy: ONNX has no layouts of memory, and the exporter drops the copy."""
    x = node.args[0]
    assert isinstance(x, Node)
    shape = _shape(node)
    if shape == _shape(x):
        _pass(node, x)
        return
    symbolic = sum(not isinstance(size, int) for size in shape)
    sizes = [s if isinstance(s, int) else -1 if symbolic == 1 else _size(node, s) for s in shape]
    copy = _insert(node, aten.clone.default, (x,), x.meta["val"], memory_format=torch.contiguous_format)
    _replace(node, aten._unsafe_view.default, copy, sizes)


def _shape(node: Node) -> list[Any]:
    """Return the sizes of a tensor: numbers, or expressions."""
    return [size if isinstance(size, int) else size.node.expr for size in node.meta["val"].shape]


def _size(node: Node, expression: Any) -> Any:
    """Compute an expression that `_is_sum_of_products`."""
    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol:
        return _size_of_input(node, expression)
    call = operator.add if expression.is_Add else operator.mul
    # in torch's order: 6 + n, n * 64
    ordered = sorted(expression.args, key=lambda part: part.is_Integer, reverse=expression.is_Add)
    parts = [_size(node, part) for part in ordered]
    return reduce(lambda x, y: _insert(node, call, (x, y), call(*map(_value, (x, y)))), parts)


def _value(size: Any) -> Any:
    return size.meta["val"] if isinstance(size, Node) else size


def _is_sum_of_products(expression: Any) -> bool:
    return (
        expression.is_Symbol
        or expression.is_Integer
        or ((expression.is_Add or expression.is_Mul) and all(map(_is_sum_of_products, expression.args)))
    )


def _size_of_input(node: Node, symbol: Any) -> Node:
    """Return the size of an input, as the graph already reads it before `node` or read here."""
    for other in takewhile(lambda other: other is not node, node.graph.nodes):
        if other.target is aten.sym_size.int and other.meta["val"].node.expr == symbol:
            return other
    for source in node.graph.find_nodes(op="placeholder"):
        for axis, size in enumerate(getattr(source.meta["val"], "shape", ())):
            if isinstance(size, torch.SymInt) and size.node.expr == symbol:
                return _insert(node, aten.sym_size.int, (source, axis), size)
    raise ValueError(f"{node.name}: no input has a dimension {symbol}")


def _contiguous(node: Node) -> None:
    _replace(node, aten.clone.default, node.args[0], memory_format=torch.contiguous_format)


def _chunk(node: Node) -> None:
    x, chunks, dim = (*node.args, 0)[:3]
    assert isinstance(x, Node) and isinstance(chunks, int) and isinstance(dim, int)
    if isinstance(size := x.meta["val"].shape[dim], int):
        _replace(node, aten.split.Tensor, x, -(-size // chunks), dim)


def _to(node: Node) -> None:
    x, value = node.args[0], node.meta["val"]
    assert isinstance(x, Node)
    if x.meta["val"].dtype == value.dtype:
        _pass(node, x)
    else:
        _replace(node, aten._to_copy.default, x, dtype=value.dtype)


def _transpose(node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    _replace(node, aten.permute.default, x, list(reversed(range(x.meta["val"].ndim))))


def _subtract_reversed(node: Node) -> None:
    x, other, *alpha = node.args
    _replace(node, aten.sub.Tensor, other, x, **({"alpha": alpha[0]} if alpha else {}))


def _bitwise_or(node: Node) -> None:
    _replace(node, aten.bitwise_or.Tensor, *node.args)


def _bitwise_and(node: Node) -> None:
    _replace(node, aten.bitwise_and.Tensor, *node.args)


def _conv_transpose(node: Node) -> None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    defaults = {argument.name: argument.default_value for argument in node.target._schema.arguments}  # type: ignore[union-attr]
    given = {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    window = (given[name] for name in ("stride", "padding", "dilation"))
    tensors = (given[name] for name in ("input", "weight", "bias"))
    _replace(node, aten.convolution.default, *tensors, *window, True, given["output_padding"], given["groups"])


REWRITES: dict[Any, Callable[[Node], None]] = {
    aten.reshape.default: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.unflatten.int: _reshape,
    aten.view_as.default: _reshape,
    aten.contiguous.default: _contiguous,
    aten.chunk.default: _chunk,
    aten.to.dtype: _to,
    aten.to.dtype_layout: _to,
    aten.numpy_T.default: _transpose,
    aten.rsub.Scalar: _subtract_reversed,
    aten.__or__.Tensor: _bitwise_or,
    aten.__and__.Tensor: _bitwise_and,
    aten.conv_transpose2d.input: _conv_transpose,
}
"""Operator -> function that replaces a node of it as torch's decomposition does."""
