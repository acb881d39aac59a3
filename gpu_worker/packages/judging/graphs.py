"""Examines a graph without running it. Pure.

It finds numbers of rows that depend on values, random numbers, and decisions for all rows at once.
"""

import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from gpu_worker.packages.apart import free
from gpu_worker.packages.importing.quiet import authors_place
from gpu_worker.packages.importing.shapes import rows_changed
from gpu_worker.packages.judging.decisions import deciding, is_open, operation_of
from gpu_worker.packages.sizing import Sizing
from gpu_worker.packages.trials import DRAWN, INDEPENDENT, named
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError

# arguments of operations that may be random; if one is off, nothing is random
SWITCHES = ("train", "training", "dropout_p", "dropout", "p")
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default  # may be random, but torch does not tag it so
FRAME = re.compile(r'File "(.+)", line (\d+)')


def check(place: str, graph: GraphModule, outputs: Sequence[wire.TensorSpec], sizing: Sizing, batch_max: int) -> None:
    """The graph shows no way for a row not to get its own answer. Its last placeholders are the inputs.

    Raises: PackageError, code rows_changed, rows_mixed or random.
    """
    inputs = graph.graph.find_nodes(op="placeholder")[-len(sizing.inputs) :]
    _check_rows(place, graph, outputs, inputs, sizing)
    check_draws(place, graph)
    node = deciding(graph, inputs) if batch_max > 1 else None
    if node is not None:
        told = f"forward decides for all rows of a batch at once, by what they are ({place_of(node)}). {INDEPENDENT}"
        raise PackageError(place, [told], PackageCode.ROWS_MIXED)


def check_draws(place: str, graph: GraphModule) -> None:
    """Nothing is drawn at random. Raises: PackageError, code random."""
    for node in _that_matter(graph):
        if _is_random(node):
            told = f"forward draws random numbers ({place_of(node)}). {DRAWN}"
            raise PackageError(place, [told], PackageCode.RANDOM)


def place_of(node: Node) -> str:
    """Returns the operation, and the author's line if it is known: 'max, at file.py:12'."""
    found = FRAME.findall(node.meta.get("stack_trace") or "")
    line = authors_place(traceback.StackSummary.from_list([(file, int(line), "", "") for file, line in found]))
    return f"{operation_of(node)}, at {line}" if line else operation_of(node)


def _check_rows(
    place: str, graph: GraphModule, outputs: Sequence[wire.TensorSpec], inputs: Sequence[Node], sizing: Sizing
) -> None:
    """Every output has the batch as its first dimension, and its rows have one shape, whatever the values are.

    It follows from the extents of the inputs alone; where the output bears an open dimension, it is that one. Outputs
    whose first dimension is their own are left out. Raises: PackageError, code rows_changed or rows_mixed.
    """
    # torch may use a different symbol for each input
    batch = {_expression(node.meta["val"].shape[0]) for node in inputs}
    opened: dict[str, set[Any]] = {}  # {open dimension: expressions of its extent}
    for spec, node in zip(sizing.inputs, inputs, strict=True):
        for dim, extent in zip(spec.dims, node.meta["val"].shape[1:], strict=bool(spec.dims)):
            opened.setdefault(dim, set()).add(_expression(extent))
    known = {symbol for dim in sizing.dims for one in opened[dim.name] for symbol in one.free_symbols}
    (output,) = graph.graph.find_nodes(op="output")
    loose = free(outputs)
    for spec, node in zip(outputs, output.args[0], strict=True):
        rows, *rest = node.meta["val"].shape
        if _expression(rows) not in batch and spec.name not in loose:
            told = f"as many as the values make it ({place_of(node)})"
            raise PackageError(place, [rows_changed(named(spec.name), told)], PackageCode.ROWS_CHANGED)
        for dim, extent in zip(spec.dims or ("",) * len(rest), rest, strict=True):
            as_named = _expression(extent) in opened.get(dim, ()) if dim else not is_open(extent)
            if not as_named and not (sizing.exact and not dim and _expression(extent).free_symbols <= known):
                told = (
                    f"the shape of a row of {named(spec.name)} depends on the rows or their values ({place_of(node)})"
                )
                raise PackageError(place, [f"{told}. {INDEPENDENT}"], PackageCode.ROWS_MIXED)


def _expression(rows: Any) -> Any:
    return rows.node.expr if isinstance(rows, torch.SymInt) else rows


def _that_matter(graph: GraphModule) -> Iterator[Node]:
    """Yields the nodes that outputs depend on, including those of graphs within the graph."""
    for module in graph.modules():
        if isinstance(module, GraphModule):
            yield from _above(module.graph.find_nodes(op="output"))


def _above(nodes: Iterable[Node]) -> set[Node]:
    """Returns the nodes and everything that they are computed from."""
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _is_random(node: Node) -> bool:
    """Returns whether this call draws random numbers."""
    operation: Any = node.target
    if not isinstance(operation, torch._ops.OpOverload):
        return False
    marked = torch.Tag.nondeterministic_seeded in operation.tags or "dropout" in operation_of(node)
    if not marked and operation is not ATTENTION:
        return False
    given = {argument.name: value for argument, value in zip(operation._schema.arguments, node.args, strict=False)}
    values = {argument.name: argument.default_value for argument in operation._schema.arguments} | given | node.kwargs
    return all(values[switch] for switch in SWITCHES if values.get(switch) is not None)
