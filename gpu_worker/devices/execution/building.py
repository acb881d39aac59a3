"""Builds a torch graph from what a package stores of it: known operations on plain arguments, and nothing else.

Nothing in the package becomes code but the names of operations that `reading.operations` lists: names of values are
only looked up, symbolic extents are never parsed, texts are passed to operations as texts.
"""

import keyword
import math
import operator
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from gpu_worker.packages.reading import serialized
from gpu_worker.packages.reading.graphs import UnsafeProgram
from gpu_worker.packages.reading.operations import HIGHER, LEFT_OVER, NUMBERS, REACHING, WITH_GRAPHS, aten

VALUE = "val"  # key of a node's notes, as torch has it: what the node computes
DTYPES = {  # as torch.export.save numbers them
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128, 12: torch.bool, 13: torch.bfloat16,
    28: torch.uint16, 34: torch.uint32, 35: torch.uint64,
}  # fmt: skip
MEMORY_FORMATS = {
    1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format,
}  # fmt: skip
STRIDED = 7  # the only layout of tensors that is read
DEVICES = ("cpu", "cuda")
PLAIN = re.compile(r"(?:Optional\[|List\[)*(?:Tensor|int|float|bool|number|complex|str|Device|Generator)\]*")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESULTS = frozenset({"as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"})  # kinds of results with a name
LISTS = frozenset({"as_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"})


class Declared(NamedTuple):
    """What a value is, as the package says."""

    dtype: torch.dtype
    shape: tuple[int | None, ...]  # None: an open extent

    def __str__(self) -> str:
        extents = ", ".join(
            str(extent) if extent is not None else "open" if i else "batch" for i, extent in enumerate(self.shape)
        )
        return f"{self.dtype} [{extents}]"


class UnreadableGraph(ValueError):
    """The graph is damaged, or holds what cannot be read."""


def build(program: serialized.StoredProgram) -> GraphModule:
    """Returns the program's graph as a module: its inputs in their order -> its outputs.

    The notes of each node that has a tensor say so: {"val": Declared}. The program has passed `graphs.check_program`.

    Raises: UnreadableGraph, UnsafeProgram.
    """
    try:
        return _Builder().built(program.graph_module.graph)
    except (UnreadableGraph, UnsafeProgram):
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise UnreadableGraph(f"the graph in it cannot be built: {type(error).__name__}: {error}") from None


class _Builder:
    """Builds one graph; the graphs within it are built by others."""

    def __init__(self) -> None:
        self._graph = Graph()
        self._parts = nn.Module()  # graphs within this one
        self._nodes: dict[str, Node] = {}  # {name in the package: node}

    def built(self, graph: serialized.StoredGraph) -> GraphModule:
        """Returns the graph as a module. Raises: UnreadableGraph, among others."""
        for i, given in enumerate(graph.inputs):
            kind, value = given.only()
            node = self._graph.placeholder(f"arg_{i}")
            if kind in ("as_tensor", "as_sym_int"):
                self._know(_name_of(kind, value), node)
        for call in graph.nodes:
            self._call(call)
        outputs = tuple(self._argument(given) for given in graph.outputs)
        if graph.is_single_tensor_return and len(outputs) != 1:
            raise UnreadableGraph(f"the graph in it returns one tensor, and lists {len(outputs)}")
        self._graph.output(outputs[0] if graph.is_single_tensor_return else outputs)
        for name, tensor in graph.tensor_values.items():
            if name in self._nodes:
                self._nodes[name].meta[VALUE] = declared(tensor)
        return GraphModule(self._parts, self._graph)

    # -- operations ---------------------------------------------------------------------------------------------------

    def _call(self, call: serialized.StoredCall) -> None:
        target = call.target
        if target in NUMBERS:
            node = self._made(call, number_operation(target), tuple(self._argument(given.arg) for given in call.inputs))
        elif target in WITH_GRAPHS:
            args = tuple(self._argument(given.arg) for given in call.inputs)
            node = self._made(call, getattr(torch.ops.higher_order, target.removeprefix(HIGHER)), args)
        else:
            node = self._aten(call)
        self._results(call, node)

    def _aten(self, call: serialized.StoredCall) -> Node:
        found = aten(call.target)
        operation = overload(*found) if found is not None else None
        if found is None or operation is None:
            raise UnreadableGraph(f"the graph in it calls {call.target!r}, which torch {torch.__version__} has not")
        args, kwargs = self._placed(call, operation)
        if found in REACHING:
            args = (self._graph.call_function(torch.ops.aten.clone.default, args[:1]), *args[1:])
        if found in LEFT_OVER:
            operation = overload(*LEFT_OVER[found])
            if found[0] == "empty":
                kwargs.pop("memory_format", None)
        return self._made(call, operation, args, kwargs)

    def _placed(self, call: serialized.StoredCall, operation: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments by position and by name, as the operation takes them."""
        given = {argument.name: argument for argument in call.inputs}
        taken = operation._schema.arguments
        if len(given) != len(call.inputs) or not given.keys() <= {argument.name for argument in taken}:
            raise UnreadableGraph(f"the graph in it calls {call.target} with {', '.join(given)}")
        args, kwargs = list[Any](), dict[str, Any]()
        for argument in taken:
            if argument.name not in given:
                continue
            value, kind = self._argument(given[argument.name].arg), given[argument.name].kind
            by_place = not argument.has_default_value() and not argument.kwarg_only
            if kind == serialized.POSITIONAL or (kind is None and by_place) or keyword.iskeyword(argument.name):
                args.append(value)
            else:
                kwargs[argument.name] = value
        return tuple(args), kwargs

    def _made(
        self, call: serialized.StoredCall, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> Node:
        name = call.name or next((_name_of(*result.only()) for result in call.outputs), "")
        return self._graph.create_node("call_function", operation, args, kwargs or {}, _as_name(name))

    def _results(self, call: serialized.StoredCall, node: Node) -> None:
        """The names of the operation's results are known."""
        results = [result.only() for result in call.outputs]
        if not results:
            return
        kind, value = results[0]
        in_a_tuple = call.target in WITH_GRAPHS and not call.is_hop_single_tensor_return
        if len(results) == 1 and kind in RESULTS and not in_a_tuple:
            self._know(_name_of(kind, value), node)
        elif len(results) == 1 and kind == "as_tensors":
            self._parted(node, [("as_tensor", one) for one in value])
        elif len(results) > 1 or kind != "as_none":
            self._parted(node, results)

    def _parted(self, node: Node, results: Sequence[tuple[str, Any]]) -> None:
        """Each of several results has a node of its own."""
        for i, (kind, value) in enumerate(results):
            if kind in RESULTS:
                name = _name_of(kind, value)
                part = self._graph.create_node("call_function", operator.getitem, (node, i), {}, _as_name(name))
                self._know(name, part)
            elif kind in LISTS:
                part = self._graph.call_function(operator.getitem, (node, i))
                single = kind.removesuffix("s")
                self._parted(part, [(single, one) for one in value])
            elif kind != "as_none":
                raise UnreadableGraph(f"the graph in it has a result of kind {kind}")

    def _know(self, name: str, node: Node) -> None:
        if not name or name in self._nodes:
            raise UnreadableGraph(f"the graph in it computes {name!r} twice, or gives it no name")
        self._nodes[name] = node

    def _node(self, name: str) -> Node:
        if name not in self._nodes:
            raise UnreadableGraph(f"the graph in it uses {name!r}, which is not computed before")
        return self._nodes[name]

    # -- arguments ----------------------------------------------------------------------------------------------------

    def _argument(self, given: serialized.StoredArgument) -> Any:
        """Returns the argument: a node, a number, a text, a dtype, ..., or a list of such."""
        kind, value = given.only()
        match kind:
            case "as_none":
                return None
            case "as_tensor":
                return self._node(value.name)
            case "as_tensors":
                return [self._node(one.name) for one in value]
            case "as_optional_tensor":
                return self._optional(value)
            case "as_optional_tensors":
                return [self._optional(one) for one in value]
            case "as_sym_int" | "as_sym_bool" | "as_sym_float":
                return self._scalar(value)
            case "as_sym_ints" | "as_sym_bools" | "as_sym_floats":
                return [self._scalar(one) for one in value]
            case "as_graph":
                return self._part(value.graph)
            case _:
                return constant(kind, value)

    def _optional(self, value: serialized.StoredOptional) -> Node | None:
        return None if value.as_tensor is msgspec.UNSET else self._node(value.as_tensor.name)

    def _scalar(self, value: serialized.StoredNumber) -> Node | int | float | bool:
        if value.as_name is not msgspec.UNSET:
            return self._node(value.as_name)
        if value.as_float is not msgspec.UNSET:
            return number(value.as_float)
        found = value.as_int if value.as_int is not msgspec.UNSET else value.as_bool
        if found is msgspec.UNSET:
            raise UnreadableGraph("the graph in it has a number that is none")
        return found

    def _part(self, graph: serialized.StoredGraph) -> Node:
        name = f"part_{len(list(self._parts.children()))}"
        self._parts.register_module(name, _Builder().built(graph))
        return self._graph.create_node("get_attr", name)


def declared_of(node: Node) -> Declared | None:
    """Returns what a node of a built graph computes; None if the package does not say so."""
    found = node.meta.get(VALUE)
    return found if isinstance(found, Declared) else None


def declared(tensor: serialized.StoredTensor) -> Declared:
    """Returns what the package says of a tensor. Raises: KeyError for a dtype that is not known."""
    return Declared(
        DTYPES[tensor.dtype],
        tuple(None if extent.as_int is msgspec.UNSET else extent.as_int for extent in tensor.sizes),
    )


def constant(kind: str, value: Any) -> Any:
    """Returns an argument that does not depend on others. Raises: UnreadableGraph; KeyError for what is not known."""
    match kind:
        case "as_int" | "as_ints" | "as_bool" | "as_bools" | "as_string" | "as_strings":
            return value
        case "as_float":
            return number(value)
        case "as_floats":
            return [number(one) for one in value]
        case "as_complex":
            return complex(number(value.real), number(value.imag))
        case "as_scalar_type":
            return DTYPES[value]
        case "as_memory_format":
            return MEMORY_FORMATS[value]
        case "as_layout" if value == STRIDED:
            return torch.strided
        case "as_device" if value.type in DEVICES:
            return torch.device(value.type) if value.index is None else torch.device(value.type, value.index)
    raise UnreadableGraph(f"the graph in it has an argument that is not known: {kind} {value!r}"[:200])


def number(value: float | str) -> float:
    """Returns the number; JSON has texts for three of them. Raises: UnreadableGraph."""
    if not isinstance(value, str):
        return float(value)
    if value not in ("NaN", "Infinity", "-Infinity"):
        raise UnreadableGraph(f"the graph in it has {value[:40]!r} in place of a number")
    return float(value)


@lru_cache(maxsize=4096)
def overload(name: str, of: str) -> Any:
    """Returns the operation of aten, if it computes plain values of plain values alone; None for every other."""
    found = getattr(getattr(torch.ops.aten, name, None), of, None)
    if not isinstance(found, torch._ops.OpOverload):
        return None
    schema = found._schema
    values = (*schema.arguments, *schema.returns)
    return found if all(PLAIN.fullmatch(str(value.type)) for value in values) else None


@lru_cache(maxsize=256)
def number_operation(target: str) -> Any:
    """Returns an operation on numbers that `NUMBERS` lists. Raises: AttributeError if this torch lacks it."""
    module, _, name = target.partition(".")
    return getattr({"_operator": operator, "math": math, "torch": torch}[module], name)


def _name_of(kind: str, value: Any) -> str:
    """Returns the name of a result or an input; "" if it has none."""
    if kind == "as_tensor":
        return str(value.name)
    name = value.as_name if isinstance(value, serialized.StoredNumber) else msgspec.UNSET
    return "" if name is msgspec.UNSET else str(name)


def _as_name(name: str) -> str | None:
    """Returns the name for a node, if it is one in Python; torch changes those that Python has itself."""
    return name if NAME.fullmatch(name) else None
