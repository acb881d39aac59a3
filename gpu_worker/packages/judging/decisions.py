"""Finds decisions for all rows of a batch at once, in a graph and the graphs within it, without running it. Pure.

A value is tainted if it depends on the contents of the inputs. Weights, constants and extents taint nothing: a decision
by weights alone is the same for every batch, and a decision by the number of rows shows when batches of several sizes
are tried. An extent that depends on the contents of inputs is tainted. onnx_graphs has the same rule for ONNX.
"""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

COND, WHILE = torch.ops.higher_order.cond, torch.ops.higher_order.while_loop
OF_SHAPES = {
    "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "zeros_like", "ones_like", "full_like", "empty_like",
    "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided",
}  # operations that look at no value of their first operand  # fmt: skip


def deciding(graph: GraphModule, inputs: Sequence[Node]) -> Node | None:
    """Returns the first operation that decides for all rows by the contents of the inputs; None if there is none."""
    return _Flow(graph, [node in inputs for node in graph.graph.find_nodes(op="placeholder")]).decides


class _Flow:
    """Which values are tainted in one graph, and which operation in it or within it decides by a tainted one."""

    def __init__(self, graph: GraphModule, tainted: Sequence[bool]) -> None:
        """`tainted`: for each placeholder of the graph."""
        places = graph.graph.find_nodes(op="placeholder")
        self._graph = graph
        self._nodes = {node for node, is_tainted in zip(places, tainted, strict=True) if is_tainted}
        self._parts: dict[Node, list[bool]] = {}  # of operations with graphs within: for each of their results
        self.decides: Node | None = None
        known: Any = None
        # repeated until nothing changes, because a tensor that is
        while known != (known := (len(self._nodes), sum(map(sum, self._parts.values())))):
            for node in graph.graph.nodes:  # written to comes before the operation that writes to it
                if node.op == "call_function":
                    self._visit(node)

    @property
    def outputs(self) -> list[bool]:
        """For each output, whether it is tainted."""
        (output,) = self._graph.graph.find_nodes(op="output")
        return [self._tainted(value) for value in _leaves(output.args[0])]

    def _visit(self, node: Node) -> None:
        if node.target is COND:
            decided, *branches, operands = node.args
            given = [self._tainted(value) for value in _leaves(operands)]
            found = [self._inner(branch, given) for branch in branches]
            self._decided(node, decided)
            self._parts[node] = [self._tainted(decided) or any(each) for each in zip(*found, strict=True)]
        elif node.target is WHILE:
            self._loop(node)
        elif (part := self._part(node)) is not None:
            self._mark(node, part)
        else:
            inner = [self._module(value) for value in node.all_input_nodes if value.op == "get_attr"]
            is_tainted = self._tainted_call(node)
            for graph in inner if is_tainted else ():
                if graph is not None:
                    self._within(graph, [True] * len(graph.graph.find_nodes(op="placeholder")))
            self._mark(node, is_tainted)

    def _part(self, node: Node) -> bool | None:
        """Returns whether a result of an operation with inner graphs is tainted; None if the node is no such result."""
        whole: Any = node.args[0] if node.target is operator.getitem else None
        index: Any = node.args[1] if whole in self._parts else None
        return None if index is None else self._parts[whole][index]

    def _loop(self, node: Node) -> None:
        """Marks what a loop carries from round to round: once tainted, it stays tainted."""
        goes_on, body, carried, others = node.args
        given, fixed = ([self._tainted(value) for value in _leaves(group)] for group in (carried, others))
        known = None
        while known != given:
            known = given
            given = [one or other for one, other in zip(given, self._inner(body, given + fixed), strict=True)]
        if any(self._inner(goes_on, given + fixed)):
            self.decides = self.decides or node
            given = [True] * len(given)
        self._parts[node] = given

    def _decided(self, node: Node, by: Any) -> None:
        if self._tainted(by):
            self.decides = self.decides or node

    def _inner(self, name: Any, tainted: Sequence[bool]) -> list[bool]:
        """Returns, for each output of the inner graph, whether it is tainted if these of its inputs are."""
        graph = self._module(name)
        assert graph is not None
        return self._within(graph, tainted)

    def _within(self, graph: GraphModule, tainted: Sequence[bool]) -> list[bool]:
        flow = _Flow(graph, tainted)
        self.decides = self.decides or flow.decides
        return flow.outputs

    def _module(self, node: Node) -> GraphModule | None:
        found: Any = self._graph
        for name in str(node.target).split("."):
            found = getattr(found, name)
        return found if isinstance(found, GraphModule) else None

    def _tainted_call(self, node: Node) -> bool:
        if operation_of(node) in OF_SHAPES:
            by_shape = self._tainted(node.args[0]) and bool(free_unbacked_symbols(node.meta.get("val")))
            return by_shape or any(map(self._tainted, _leaves((node.args[1:], node.kwargs))))
        return any(map(self._tainted, node.all_input_nodes))

    def _mark(self, node: Node, is_tainted: bool) -> None:
        if is_tainted:
            self._nodes.add(node)
            for written in _written(node):
                self._nodes.update(_seen_through(written))

    def _tainted(self, value: Any) -> bool:
        return isinstance(value, Node) and (value in self._nodes or any(self._parts.get(value, ())))


def _leaves(values: Any) -> list[Any]:
    return pytree.tree_leaves(values)


def operation_of(node: Node) -> str:
    """Returns the torch name of the operation that the node calls, or, for a part of a result, that made the result."""
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        return operation_of(node.args[0])
    return str(node.target).removeprefix("aten.").partition(".")[0]


def is_open(extent: Any) -> bool:
    """Returns whether the extent differs from batch to batch.

    torch may write a fixed number as a computed expression.
    """
    return isinstance(extent, torch.SymInt) and not extent.node.expr.is_number


def _operands(node: Node) -> Iterator[tuple[torch._C.Argument, list[Node]]]:
    """Yields the schema of each argument of the operation, and the nodes passed for it."""
    if isinstance(node.target, torch._ops.OpOverload):
        for i, argument in enumerate(node.target._schema.arguments):
            value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
            yield argument, [leaf for leaf in _leaves(value) if isinstance(leaf, Node)]


def _written(node: Node) -> list[Node]:
    """Returns the nodes that the operation writes to."""
    return [
        operand
        for argument, operands in _operands(node)
        if argument.alias_info is not None and argument.alias_info.is_write
        for operand in operands
    ]


def _seen_through(node: Node) -> set[Node]:
    """Returns the node and all nodes whose memory it may share."""
    found: set[Node] = set()
    waiting = [node]
    while waiting:
        view = waiting.pop()
        if view not in found:
            found.add(view)
            viewed = [operands for argument, operands in _operands(view) if argument.alias_info is not None]
            waiting.extend(viewed[0] if viewed else view.all_input_nodes if view.target is operator.getitem else ())
    return found
