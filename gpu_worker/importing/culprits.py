"""Where in the author's code rows first get to depend on each other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from gpu_worker.comparing import same
from gpu_worker.importing.graphs import place_of
from gpu_worker.trials import Batch, Trial


def where_mixed(graph: GraphModule, weights: Sequence[torch.Tensor], trial: Trial, close: float) -> str:
    """The operation and its line, as in ' (seen first after max, at file.py:12)'; nothing where it cannot be told.

    Seen only of values that have the batch as their first dimension: what is made of them otherwise comes before.
    """
    for batch in (*trial.mixed, *(odd.pair for odd in trial.beside)):
        at, origin = next((at, origin) for at, origin in enumerate(batch.origins) if origin is not None)
        alone = _values(graph, weights, trial.alone[origin])
        among = _values(graph, weights, batch)
        for node, one in alone.items():
            other = among.get(node)
            if other is None or one.shape[1:] != other.shape[1:] or len(one) != 1 or len(other) != batch.rows:
                continue
            if not same(one, other[at : at + 1], close):
                return place_of(node).replace("(", "(seen first after ", 1)
    return ""


class _Keeping(Interpreter):
    """Keeps every value."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[Node, torch.Tensor] = {}

    def run_node(self, node: Node) -> Any:
        """See Interpreter."""
        value = super().run_node(node)
        if node.op == "call_function" and isinstance(value, torch.Tensor) and value.ndim:
            self.values[node] = value.detach().clone()
        return value


def _values(graph: GraphModule, weights: Sequence[torch.Tensor], batch: Batch) -> dict[Node, torch.Tensor]:
    runner = _Keeping(graph)
    with torch.no_grad():
        runner.run(*weights, *(tensor.clone() for tensor in batch.inputs))
    return runner.values
