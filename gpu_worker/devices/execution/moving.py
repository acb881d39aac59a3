"""Adapts an exported graph to another device: its views are valid only for the strides of the export device.

A graph exported on the CPU lacks copies that change nothing there (`contiguous()` of a contiguous tensor). Kernels of
another device lay out their results differently, and a view of those may be impossible.
"""

import operator
from collections.abc import Iterator

import torch
from torch.fx import Graph, GraphModule, Node

ATEN = torch.ops.aten
VIEWS = (ATEN.view.default, ATEN._unsafe_view.default)
# may return their argument itself, without declaring it
SAME = (operator.getitem, ATEN.dropout.default, ATEN.type_as.default)


def move(module: GraphModule, place: torch.device) -> None:
    """Whatever the graph, and graphs inside, make on a device by its name, they make on this one."""
    for part in module.modules():
        if not isinstance(part, GraphModule):
            continue
        for node in part.graph.nodes:
            if isinstance(node.kwargs.get("device"), torch.device):
                node.kwargs = {**node.kwargs, "device": place}
            if any(isinstance(argument, torch.device) for argument in node.args):  # as of `to`, by its place
                node.args = tuple(place if isinstance(argument, torch.device) else argument for argument in node.args)
        part.recompile()


def reshape_views(module: GraphModule) -> int:
    """Each view of the graph, and of graphs inside, copies where strides allow no view, and stays a view elsewhere.

    Returns how many were changed. A view whose memory a later operation writes to is left as it is: the write would go
    to a copy unnoticed. Where such a view is impossible, it raises instead.
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
    """Returns the nodes whose memory a later operation of this graph writes to, through any alias."""
    found: set[Node] = set()
    shares: dict[Node, set[Node]] = {}  # {node: all nodes so far that may share its memory}; they share one set object
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
    """Yields (argument, whether it is written to) for arguments whose memory the node may share."""
    if node.target in SAME and isinstance(node.args[0], Node):
        yield node.args[0], False
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for i, declared in enumerate(node.target._schema.arguments):
        given = node.args[i] if i < len(node.args) else node.kwargs.get(declared.name)
        for argument in given if isinstance(given, (list, tuple)) else (given,):
            if declared.alias_info is not None and isinstance(argument, Node):
                yield argument, declared.alias_info.is_write
