"""Examines an ONNX graph without running it: random numbers, and what depends on the values of all rows.

It also makes the graph repeat, for each row, numbers that hold for a batch.

A name is tainted if it depends on the values of an input, and shaky if its shape does. What a tensor's shape is made of
(Shape, Size) depends on no value, unless the shape itself does.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpu_worker.packages.importing.shapes import rows_changed
from gpu_worker.packages.trials import DRAWN, INDEPENDENT, named
from mesh.codes import PackageCode
from mesh.errors import PackageError

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
OF_SHAPES = {"Shape", "Size"}
SHAPED_BY_VALUES = {"NonZero", "Compress", "Unique", "NonMaxSuppression", "StringSplit"}
# {operation: operands that determine the output's shape}
SHAPES = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Slice": (1, 2, 3, 4),
    "Pad": (1,), "Resize": (2, 3), "TopK": (1,), "OneHot": (1,), "Upsample": (1,), "Squeeze": (1,), "Unsqueeze": (1,),
    "Split": (1,), "CenterCropPad": (1,),
}  # fmt: skip
# operations whose output has the shape of their first operand
KEEPS_THE_FIRST = {"ScatterND", "ScatterElements", "Scatter", "TensorScatter"}
SUBGRAPHS = {"If", "Loop", "Scan"}
Constant = Callable[[str], Any]  # name -> array of an initializer or Constant node, or None


@dataclass(slots=True)
class _Seen:
    """What is known of the names in a graph and in the graphs around it."""

    tainted: set[str] = field(default_factory=set)
    shaky: set[str] = field(default_factory=set)
    decides: str = ""  # the first operation that decides for all rows by their values

    def inner(self) -> "_Seen":
        """Returns a copy for a graph within this one."""
        return _Seen(set(self.tainted), set(self.shaky))


def check(place: str, model: Any, inputs: set[str], batch_max: int, sure: set[str], constant: Constant) -> None:
    """The graph shows no way for a row not to get its own answer. `sure`: outputs known to have the batch first.

    Raises: PackageError, code random, rows_mixed or rows_changed.
    """
    drawn = next((node for graph in graphs(model.graph) for node in graph.node if _is_random(node, constant)), None)
    if drawn is not None:
        raise PackageError(
            place, [f"the graph draws random numbers ({_described(drawn)}). {DRAWN}"], PackageCode.RANDOM
        )
    seen = _Seen(set(inputs))
    _visit(model.graph, seen)
    if seen.decides and batch_max > 1:
        why = f"{seen.decides} decides for all rows of a batch at once, by their values. {INDEPENDENT}"
        raise PackageError(place, [why], PackageCode.ROWS_MIXED)
    for output in model.graph.output:
        if output.name in seen.shaky and output.name not in sure:
            raise PackageError(
                place, [rows_changed(named(output.name), "as many as the values make it")], PackageCode.ROWS_CHANGED
            )


def graphs(graph: Any) -> Iterator[Any]:
    """Yields the graph and those within it."""
    yield graph
    for node in graph.node:
        for inner in _graphs(node):
            yield from graphs(inner)


def repeat(onnx: Any, model: Any, outputs: Sequence[str], of: str) -> None:
    """Outputs that are one number are repeated for each row of the input `of`. They have new names then."""
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {v.name for v in graph.input}
    for value in graph.output:
        if value.name not in outputs:
            continue
        names = (f"{value.name}_for_each_{i}" for i in itertools.count())
        new = next(name for name in names if not any(other.startswith(name) for other in taken))
        rows, first = f"{new}_rows", f"{new}_first"
        graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), first))
        graph.node.append(onnx.helper.make_node("Shape", [of], [f"{new}_shape"]))
        graph.node.append(onnx.helper.make_node("Gather", [f"{new}_shape", first], [rows]))
        graph.node.append(onnx.helper.make_node("Expand", [value.name, rows], [new]))
        value.CopyFrom(onnx.helper.make_tensor_value_info(new, value.type.tensor_type.elem_type, [None]))


def _graphs(node: Any) -> list[Any]:
    return [graph for attribute in node.attribute for graph in ([attribute.g] if attribute.HasField("g") else [])]


def _described(node: Any) -> str:
    return f"{node.op_type} {node.name}".strip()


def _is_random(node: Any, constant: Constant) -> bool:
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        ratio, training = constant(node.input[1]), constant(node.input[2])
        return not (training is not None and not training) and not (ratio is not None and not ratio)
    return node.op_type in RANDOM


def _visit(graph: Any, seen: _Seen) -> None:
    """`seen` holds what is known of the graph's names."""
    for node in graph.node:
        if node.op_type == "Loop":
            _loop(node, seen)
        elif node.op_type == "Scan":
            _scan(node, seen)
        else:
            for inner in _graphs(node):
                _inner(node, inner, seen)
        if node.op_type == "If" and node.input[0] in seen.tainted:
            seen.decides = seen.decides or _described(node)
        _mark(node, seen)


def _mark(node: Any, seen: _Seen) -> None:
    """`seen` holds what follows for the node's outputs from its inputs."""
    shapes = SHAPES.get(node.op_type, ())
    counting = node.input[:1] if node.op_type in KEEPS_THE_FIRST else node.input
    by_values = node.op_type in SHAPED_BY_VALUES and _any(node.input, seen.tainted)
    by_operand = _any([name for i, name in enumerate(node.input) if i in shapes], seen.tainted)
    if node.op_type in OF_SHAPES:
        seen.tainted.update(node.output if _any(node.input, seen.shaky) else ())
        return
    if by_values or by_operand or _any(counting, seen.shaky):
        seen.shaky.update(node.output)
    if _any(node.input, seen.tainted):
        seen.tainted.update(node.output)


def _inner(node: Any, graph: Any, seen: _Seen) -> None:
    """Marks a branch of If, or the body of SequenceMap.

    Names outside are visible within; its outputs become the node's.
    """
    within = seen.inner()
    for given, name in zip(node.input, (value.name for value in graph.input), strict=False):
        _follow(given, name, seen, within)
    _visit(graph, within)
    seen.decides = seen.decides or within.decides
    for value, name in zip(graph.output, node.output, strict=False):
        _follow(value.name, name, within, seen)


def _loop(node: Any, seen: _Seen) -> None:
    (body,) = _graphs(node)
    rounds, goes_on, *carried = [*node.input, "", ""][: max(2, len(node.input))]
    _, _, *places = [value.name for value in body.input]
    condition, *results = [value.name for value in body.output]
    within = _rounds(body, list(zip(carried, places, strict=False)), list(zip(results, places, strict=False)), seen)
    if rounds in seen.tainted or goes_on in seen.tainted or condition in within.tainted:
        seen.decides = seen.decides or _described(node)
    seen.decides = seen.decides or within.decides
    for result, name in zip(results, node.output, strict=False):
        _follow(result, name, within, seen)


def _scan(node: Any, seen: _Seen) -> None:
    (body,) = _graphs(node)
    places, results = ([value.name for value in values] for values in (body.input, body.output))
    given = node.input[len(node.input) - len(places) :]  # in old files, lengths come before them
    scanned = next(attribute.i for attribute in node.attribute if attribute.name == "num_scan_inputs")
    carried = list(zip(results, places, strict=False))[: len(places) - scanned]
    within = _rounds(body, list(zip(given, places, strict=True)), carried, seen)
    seen.decides = seen.decides or within.decides
    for result, name in zip(results, node.output, strict=False):
        _follow(result, name, within, seen)


def _rounds(body: Any, given: Sequence[tuple[str, str]], carried: Sequence[tuple[str, str]], seen: _Seen) -> _Seen:
    """Returns what is known in a body that runs in rounds: what it carries on stays tainted once it is.

    `given`: (name outside, name within); `carried`: (its result, its name in the next round).
    """
    within = seen.inner()
    for name, place in given:
        _follow(name, place, seen, within)
    for _ in range(len(carried) + 1):  # each round may taint one more
        _visit(body, within)
        for result, place in carried:
            _follow(result, place, within, within)
    return within


def _follow(name: str, other: str, known: _Seen, seen: _Seen) -> None:
    """`seen` knows of `other` what `known` knows of `name`."""
    if name in known.tainted:
        seen.tainted.add(other)
    if name in known.shaky:
        seen.shaky.add(other)


def _any(names: Any, known: set[str]) -> bool:
    return any(name in known for name in names)
