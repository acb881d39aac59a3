"""Finds the line of the author's code at which rows first depend on each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from gpu_worker.packages.batches import TrialBatch
from gpu_worker.packages.comparing import same
from gpu_worker.packages.judging.decisions import OF_SHAPES, operation_of
from gpu_worker.packages.judging.graphs import place_of
from gpu_worker.packages.trials import Trial


def where_mixed(graph: GraphModule, weights: Sequence[torch.Tensor], trial: Trial, close: float) -> str:
    """Returns the operation and its line, as in ' (seen first after max, at file.py:12)'; empty if none can be named.

    Only values with the batch as first dimension are compared; so the operation named may come after the true one.
    Values that depend on the number of rows alone, such as positions in the batch, are named only if nothing else can
    be.
    """
    alone = [_values(graph, weights, batch) for batch in trial.alone]
    inputs = graph.graph.find_nodes(op="placeholder")[len(weights) :]
    for batch in (*trial.mixed, *(odd.pair for odd in trial.beside)):
        try:
            among = _values(graph, weights, batch)
        except Exception:  # the model need not accept a row of rare values
            continue
        alike = {node: found for node in among if (found := _alike(node, alone, among, batch, close)) is not None}
        node = _first(graph, inputs, alike)
        if node is not None:
            return f" (seen first after {place_of(node)})"
    return ""


def _first(graph: GraphModule, inputs: Sequence[Node], alike: Mapping[Node, bool]) -> Node | None:
    """Returns the first operation whose rows differ and none of whose operands differs by its place alone."""
    # values computed from the contents of inputs; values computed from positions in the batch
    depending, placed = set(inputs), set[Node]()
    likely: Node | None = None
    node: Node
    for node in (node for node in graph.graph.nodes if node.op == "call_function"):
        depends = operation_of(node) not in OF_SHAPES and any(operand in depending for operand in node.all_input_nodes)
        by_place = any(operand in placed for operand in node.all_input_nodes)
        if depends:
            depending.add(node)
        if alike.get(node):
            continue
        if by_place or (node in alike and not depends):
            placed.add(node)
        elif node in alike:
            return node
        if depends and node in alike:
            likely = likely or node
    return likely


def _alike(
    node: Node,
    alone: Sequence[Mapping[Node, torch.Tensor]],
    among: Mapping[Node, torch.Tensor],
    batch: TrialBatch,
    close: float,
) -> bool | None:
    """Returns whether each row in the batch is the same as alone; None if the value has no rows to compare."""
    origins, kept = batch.tried
    found, ones = among[node], [values[node] for values in alone if node in values]
    if len(found) != batch.rows or len(ones) != len(alone) or any(one.shape != (1, *found.shape[1:]) for one in ones):
        return None
    return same(torch.cat(ones)[origins], found[kept], close)


class _Keeping(Interpreter):
    """An interpreter that keeps the value of every operation."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[Node, torch.Tensor] = {}

    def run_node(self, node: Node) -> Any:
        """Runs the node and keeps a copy of its value."""
        value = super().run_node(node)
        if node.op == "call_function" and isinstance(value, torch.Tensor) and value.ndim:
            self.values[node] = value.detach().clone()
        return value


def _values(graph: GraphModule, weights: Sequence[torch.Tensor], batch: TrialBatch) -> dict[Node, torch.Tensor]:
    runner = _Keeping(graph)
    with torch.no_grad():
        runner.run(*weights, *(tensor.clone() for tensor in batch.inputs))
    return runner.values
