"""What can be seen of a graph without running it. Pure.

Rows that come and go with the values, random numbers, decisions for all rows at once.
"""

import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from gpu_worker.packages.importing.quiet import authors_place
from gpu_worker.packages.importing.shapes import rows_changed
from gpu_worker.packages.judging.decisions import deciding, is_open, operation_of
from gpu_worker.packages.trials import DRAWN, INDEPENDENT, named
from mesh.codes import PackageCode
from mesh.errors import PackageError

SWITCHES = ("train", "training", "dropout_p", "dropout", "p")  # arguments of what may be random: none of it, if off
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default  # the one that torch does not mark
FRAME = re.compile(r'File "(.+)", line (\d+)')


def check(place: str, graph: GraphModule, outputs: Sequence[str], inputs: int, batch_max: int) -> None:
    """Nothing shows that a row would not get its own answer. `inputs`: so many of the placeholders, the last ones.

    Raises: PackageError, code rows_changed, rows_mixed or random.
    """
    places = graph.graph.find_nodes(op="placeholder")
    _check_rows(place, graph, outputs, places[-inputs:])
    check_draws(place, graph)
    node = deciding(graph, places[-inputs:]) if batch_max > 1 else None
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
    """Its operation, and where the author wrote it if that is known: 'max, at file.py:12'."""
    found = FRAME.findall(node.meta.get("stack_trace") or "")
    line = authors_place(traceback.StackSummary.from_list([(file, int(line), "", "") for file, line in found]))
    return f"{operation_of(node)}, at {line}" if line else operation_of(node)


def _check_rows(place: str, graph: GraphModule, outputs: Sequence[str], inputs: Sequence[Node]) -> None:
    """Every output has the batch as its first dimension, and rows of one shape, whatever the values are."""
    batch = {_expression(node.meta["val"].shape[0]) for node in inputs}  # torch may call it otherwise for each input
    (output,) = graph.graph.find_nodes(op="output")
    for name, node in zip(outputs, output.args[0], strict=True):
        rows, *rest = node.meta["val"].shape
        if _expression(rows) not in batch:
            told = f"as many as the values make it ({place_of(node)})"
            raise PackageError(place, [rows_changed(named(name), told)], PackageCode.ROWS_CHANGED)
        if any(is_open(extent) for extent in rest):
            told = f"the shape of a row of {named(name)} depends on the rows or their values ({place_of(node)})"
            raise PackageError(place, [f"{told}. {INDEPENDENT}"], PackageCode.ROWS_MIXED)


def _expression(rows: Any) -> Any:
    return rows.node.expr if isinstance(rows, torch.SymInt) else rows


def _that_matter(graph: GraphModule) -> Iterator[Node]:
    """Nodes that outputs depend on, those of graphs within the graph included."""
    for module in graph.modules():
        if isinstance(module, GraphModule):
            yield from _above(module.graph.find_nodes(op="output"))


def _above(nodes: Iterable[Node]) -> set[Node]:
    """The nodes and all that they are made of."""
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _is_random(node: Node) -> bool:
    """Whether it draws random numbers, as it is called."""
    operation: Any = node.target
    if not isinstance(operation, torch._ops.OpOverload):
        return False
    marked = torch.Tag.nondeterministic_seeded in operation.tags or "dropout" in operation_of(node)
    if not marked and operation is not ATTENTION:
        return False
    given = {argument.name: value for argument, value in zip(operation._schema.arguments, node.args, strict=False)}
    values = {argument.name: argument.default_value for argument in operation._schema.arguments} | given | node.kwargs
    return all(values[switch] for switch in SWITCHES if values.get(switch) is not None)
