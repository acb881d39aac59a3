"""An exported graph on another device than the one it was exported on: its views hold for the strides of there only.

A graph that was exported on the processor lacks copies that change nothing there (`contiguous()` of what is contiguous
already). Kernels of another device lay their results out otherwise, and refuse to view those.
"""

import operator
from collections.abc import Iterator

import torch
from torch.fx import Graph, GraphModule, Node

ATEN = torch.ops.aten
VIEWS = (ATEN.view.default, ATEN._unsafe_view.default)
SAME = (operator.getitem, ATEN.dropout.default, ATEN.type_as.default)  # may give back what they take, and do not say so


def reshape_views(module: GraphModule) -> int:
    """Each view of the graph, and of those inside it, is a copy where strides allow no view; elsewhere, a view as ever.

    Returns how many were changed. Those whose memory something behind them writes to are left: the write would reach a
    copy, and nobody would notice; as they are, they are refused where they cannot be had.
    """
    changed = 0
    for part in module.modules():  # parts under no_grad or autocast are modules of their own
        if not isinstance(part, GraphModule):
            continue
        kept = _written_later(part.graph)
        for node in part.graph.nodes:
            if node.target in VIEWS and node not in kept:
                node.target = ATEN.reshape.default
                changed += 1
        part.recompile()
    return changed


def _written_later(graph: Graph) -> set[Node]:
    """Nodes whose memory something behind them in this graph writes to, through whatever name."""
    found: set[Node] = set()
    shares: dict[Node, set[Node]] = {}  # {node: all nodes so far that may share its memory}; these have the same set
    for node in graph.nodes:
        shares[node] = {node}
        for argument, writes in _aliases(node):
            if writes:
                found |= shares[argument]
            shares[argument] |= shares[node]
            for other in shares[argument]:
                shares[other] = shares[argument]
    return found


def _aliases(node: Node) -> Iterator[tuple[Node, bool]]:
    """(argument, it is written to) of those whose memory the node may share."""
    if node.target in SAME and isinstance(node.args[0], Node):
        yield node.args[0], False
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for i, declared in enumerate(node.target._schema.arguments):
        given = node.args[i] if i < len(node.args) else node.kwargs.get(declared.name)
        for argument in given if isinstance(given, (list, tuple)) else (given,):
            if declared.alias_info is not None and isinstance(argument, Node):
                yield argument, declared.alias_info.is_write
