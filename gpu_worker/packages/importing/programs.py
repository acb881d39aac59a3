"""Exports modules as programs: functions of their weights, with the batch dimension left open."""

import contextlib
import copy
import inspect
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import UserError, UserErrorType
from torch.export.graph_signature import InputKind
from torch.func import functional_call
from torch.fx.experimental.symbolic_shapes import (
    ConstraintViolationError,
    GuardOnDataDependentSymNode,
    statically_known_true,
)
from torch.overrides import TorchFunctionMode

from gpu_worker.devices.execution.executables import dtypes_of
from gpu_worker.packages.examples import message_of
from gpu_worker.packages.importing.folding import simplify, without_dead_code
from gpu_worker.packages.importing.plain import tensors_in
from gpu_worker.packages.importing.quiet import authors_line, compiler_enabled, guards, ignoring_guards
from gpu_worker.packages.importing.recurrent import whole_layers
from gpu_worker.packages.importing.signature import Binding, tensors_of
from gpu_worker.packages.sizing import NOTHING_OPEN, Sizing
from mesh.codes import PackageCode
from mesh.errors import PackageError

LEASTS = (2, 3, 4, 6, 8)  # least extents that are tried where a smaller one does not go
KEPT_META = ("val", "tensor_meta")  # of nodes; the rest holds the author's source and paths, which are not published


class NotExported(PackageError):
    """torch.export cannot follow `forward`. `where`: the author's line, as in " (file.py:12)"; empty if unknown."""

    def __init__(self, place: str, why: str, code: PackageCode, where: str) -> None:
        super().__init__(place, [why], code)
        self.where = where


@dataclass(frozen=True, slots=True)
class Program:
    """An exported graph: (weights..., inputs...) -> outputs."""

    exported: torch.export.ExportedProgram
    weights: dict[str, torch.Tensor]  # in the order in which the graph takes them

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the outputs."""
        with torch.no_grad():
            return list(self.exported.graph_module.forward(*self.weights.values(), *inputs))

    def simplified(
        self, place: str, example: Sequence[torch.Tensor], batch_max: int, sizing: Sizing
    ) -> "Program | None":
        """Returns the same program with less to compute and to load; None if nothing can be left out.

        Raises: PackageError.
        """
        graph = copy.deepcopy(self.exported.graph_module)
        before = len(graph.graph.nodes)
        weights = simplify(graph, self.weights)
        # constants are weights, and stored in the graph a second time
        if len(graph.graph.nodes) == before and not self.exported.constants:
            return None
        return Program(_export(place, _Graph(graph), weights, example, batch_max, sizing), weights)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The dtypes of all computed values."""
        return dtypes_of(self.exported.graph_module.forward)

    def save(self, file: Path) -> None:
        """The graph is in the file, without the weights and without any trace of the author's source."""
        self.exported._example_inputs = None  # they hold the weights again: tens of megabytes that nobody reads
        for module in self.exported.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta = {key: value for key, value in node.meta.items() if key in KEPT_META}
        order = {"weights": list(self.weights)}
        torch.export.save(self.exported, file, extra_files={"gearmesh.json": json.dumps(order)})


class _Lifted(nn.Module):
    """A module as a function of its weights: (weights..., inputs...) -> outputs, all flat."""

    def __init__(self, module: nn.Module, names: Sequence[str], binding: Binding, sizing: Sizing) -> None:
        super().__init__()
        # hidden from nn.Module, so that the weights are not lifted twice
        self.__dict__["_held"] = (module, tuple(names), binding, sizing)

    def forward(self, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        module, names, binding, sizing = self.__dict__["_held"]
        weights, inputs = dict(zip(names, flat, strict=False)), flat[len(names) :]
        with ignoring_guards():
            for other in inputs[1:]:  # otherwise torch learns only at the end that the inputs share this dimension
                torch._check(other.shape[0] == inputs[0].shape[0])  # type: ignore[no-untyped-call]
            for first, *more in _places(sizing).values():
                for place in more:
                    torch._check(_extent(inputs, place) == _extent(inputs, first))  # type: ignore[no-untyped-call]
        args, kwargs = binding.arguments(inputs)
        with _AsWritten():
            found = functional_call(module, weights, args, kwargs, tie_weights=False)
        return tuple(tensors_of(found, inputs[0].shape[0]))


def _places(sizing: Sizing) -> dict[str, list[tuple[int, int]]]:
    """Returns {open dimension: (input, dimension of it) wherever it is}."""
    found: dict[str, list[tuple[int, int]]] = {dim.name: [] for dim in sizing.dims}
    for i, spec in enumerate(sizing.inputs):
        for at, name in enumerate(spec.dims, 1):
            if name:
                found[name].append((i, at))
    return found


def _extent(inputs: Sequence[torch.Tensor], place: tuple[int, int]) -> Any:
    return inputs[place[0]].shape[place[1]]


class _AsWritten(TorchFunctionMode):
    """Ignores switches of the gradient mode, and takes the parts of concatenated batches as slices.

    A part with its own gradient mode would be a graph within the graph, which torch may fail to load. For parts that
    are each as long as the batch, torch itself would make a constant of their number.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        if func in PACKING:
            raise _Packed
        if func in PARTING:
            found = _slices(PARTING[func](*args, **(kwargs or {})))
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))


class _Packed(Exception):
    """`forward` packs sequences: the length of what that gives depends on the values of tensors."""


PACKING = {torch._C._VariableFunctions._pack_padded_sequence}


@dataclass(frozen=True, slots=True)
class _Parting:
    """A tensor split along a dimension: into a count of parts, or into parts of a length."""

    whole: torch.Tensor
    dim: int
    count: int | None = None
    length: Any = None


def _chunked(input: torch.Tensor, chunks: Any, dim: int = 0) -> _Parting:
    return _Parting(input, dim, count=chunks)


def _split(tensor: torch.Tensor, split_size_or_sections: Any, dim: int = 0) -> _Parting:
    return _Parting(tensor, dim, length=split_size_or_sections)


def _split_by_method(tensor: torch.Tensor, split_size: Any, dim: int = 0) -> _Parting:
    return _Parting(tensor, dim, length=split_size)


PARTING: dict[Any, Any] = {
    torch.chunk: _chunked, torch.Tensor.chunk: _chunked, torch.split: _split, torch.Tensor.split: _split_by_method,
}  # fmt: skip


def _slices(parting: _Parting) -> tuple[torch.Tensor, ...] | None:
    """Returns the parts.

    None where the length is a number, or is not known to divide the whole: torch does that itself.
    """
    extent = parting.whole.shape[parting.dim] if isinstance(parting.dim, int) else None
    if not isinstance(extent, torch.SymInt):
        return None
    if isinstance(parting.count, int) and statically_known_true(extent % parting.count == 0):
        count, length = parting.count, extent // parting.count
    elif isinstance(parting.length, torch.SymInt) and (extent.node.expr / parting.length.node.expr).is_Integer:
        count, length = int(extent.node.expr / parting.length.node.expr), parting.length
    else:
        return None
    return tuple(parting.whole.narrow(parting.dim, i * length, length) for i in range(count))


class _Graph(nn.Module):
    """A graph that is exported again."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__()
        self.__dict__["_graph"] = graph

    def forward(self, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.__dict__["_graph"](*flat))


def export(
    place: str,
    module: nn.Module,
    binding: Binding,
    example: Sequence[torch.Tensor],
    batch_max: int,
    sizing: Sizing = NOTHING_OPEN,
) -> Program:
    """Returns the module as a program with the batch left open: any number of rows up to `batch_max`.

    The open dimensions are left open, too. `example`: inputs of two rows that the module runs on, or of one row if it
    takes no more. Tensors that the module makes of constants while it runs are weights of the program too.

    Raises: NotExported, code batch_fixed, extents_fixed, data_dependent or not_exportable.
    """
    weights = {name: tensor.detach().contiguous().clone() for name, tensor in tensors_in(module).items()}
    exported = _export(place, _Lifted(module, list(weights), binding, sizing), weights, example, batch_max, sizing)
    constants = {
        str(taken.target): exported.constants[str(taken.target)].detach().contiguous()
        for taken in exported.graph_signature.input_specs
        if taken.kind is InputKind.CONSTANT_TENSOR
    }
    return Program(exported, constants | weights)


def read(
    module: nn.Module, binding: Binding, example: Sequence[torch.Tensor], batch_max: int, sizing: Sizing
) -> nn.Module | None:
    """Returns a module that can be exported where this one cannot, by reading forward's code instead of running it.

    int(x.shape[0]) is then no constant, and numpy calls are followed. It takes longer and fails for more modules; None
    if it fails.
    """
    given = [tensor.clone() for tensor in example]
    args, kwargs = binding.arguments(given)
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor, opened in zip(given, _opened(len(given), batch_max, sizing), strict=True):
        if opened:
            shapes[tensor] = opened
    try:
        with torch.no_grad(), whole_layers() if sizing.dims else contextlib.nullcontext():
            made = unlifted(torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=True))
    # torch raises its own errors; the error reported is why the module could not be exported by running it
    except Exception:
        return None
    without_dead_code(made)
    return made


def unlifted(exported: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """Returns the program as a module that does not check its inputs."""
    guarded = "check_guards" in inspect.signature(exported.module).parameters
    made: Any = exported.module(check_guards=False) if guarded else exported.module()
    assert isinstance(made, torch.fx.GraphModule)
    return made


def _opened(inputs: int, batch_max: int, sizing: Sizing) -> list[dict[int, Any]]:
    """Returns {dimension: its name and range} of each input: the batch, and the open dimensions."""
    batch = {0: torch.export.Dim("batch", min=1, max=batch_max)} if batch_max > 1 else {}
    found: list[dict[int, Any]] = [dict(batch) for _ in range(inputs)]
    places = _places(sizing)
    for dim in sizing.dims:
        opened = torch.export.Dim(f"open_{dim.name}", min=dim.least, max=dim.most)
        for i, at in places[dim.name]:
            found[i][at] = opened
    return found


def _export(
    place: str,
    module: nn.Module,
    weights: Mapping[str, torch.Tensor],
    example: Sequence[torch.Tensor],
    batch_max: int,
    sizing: Sizing,
) -> torch.export.ExportedProgram:
    def attempt(of: Sizing) -> torch.export.ExportedProgram:
        opened = _opened(len(example), batch_max, of)
        shapes = (*(None for _ in weights), *(found or None for found in opened))
        arguments = (*weights.values(), *(tensor.clone() for tensor in example))
        with whole_layers() if of.dims else contextlib.nullcontext():
            return torch.export.export(module, arguments, dynamic_shapes=(shapes,))

    with torch.no_grad(), guards() as seen, compiler_enabled():
        try:
            return attempt(sizing)
        except Exception as error:  # torch.export and the author's code may raise anything
            if sizing.dims and _is_fixed(error) and _goes(attempt, NOTHING_OPEN):
                goes = (raised for least in LEASTS if (raised := sizing.raised(least)) and _goes(attempt, raised))
                raise _fixed_extents(place, error, seen.line, sizing, next(goes, None)) from None
            raise _not_exported(place, error, seen.line) from None  # torch's own words and stack help nobody here


def _goes(attempt: Callable[[Sizing], Any], sizing: Sizing) -> bool:
    """Returns whether the module can be exported with these dimensions left open."""
    try:
        attempt(sizing)
    except Exception:  # the error that is told is the first one
        return False
    return True


def _is_fixed(error: Exception) -> bool:
    return isinstance(error, ConstraintViolationError) or _is_user_error(error, UserErrorType.CONSTRAINT_VIOLATION)


def _fixed_extents(place: str, error: Exception, guarded: str, sizing: Sizing, goes: Sizing | None) -> NotExported:
    """Returns the error for a module that holds for some extents only. `guarded`: as in `_not_exported`.

    `goes`: the same dimensions with greater least extents, for which it can be exported.
    """
    where = authors_line(traceback.extract_tb(error.__traceback__)) or guarded
    named = " or ".join(dim.name for dim in sizing.dims)
    why = f"forward works for some extents of {named} only{where}"
    if goes is not None:
        wanted = ", ".join(f'"{dim.name}": ({dim.least}, {dim.most})' for dim in goes.dims)
        why += f": torch.export takes an extent of 1 there for another case. It can be served with dims={{{wanted}}}"
    else:
        why += (
            ": it makes a constant of one there, divides it without a rest, or decides by it. Use x.shape[1] as it is, "
            "or -1, where shapes are computed, or serve the function as a container"
        )
    return NotExported(place, why, PackageCode.EXTENTS_FIXED, where)


def _not_exported(place: str, error: Exception, guarded: str) -> NotExported:
    """Returns the error in this package's words.

    `guarded`: the line that made torch assume something about the batch.
    """
    where = authors_line(traceback.extract_tb(error.__traceback__))
    if _is_fixed(error):
        code, where = PackageCode.BATCH_FIXED, where or guarded
        why = (
            f"forward works for some numbers of rows only{where}: it makes a constant of the batch "
            "dimension there, or decides by it. Use x.shape[0] as it is, or -1, where shapes are computed, no len(), "
            "int(), number or loop over rows, or give batch_max=1"
        )
    elif isinstance(error, GuardOnDataDependentSymNode) or _is_user_error(error, UserErrorType.DYNAMIC_CONTROL_FLOW):
        code = PackageCode.DATA_DEPENDENT
        why = (
            f"forward decides by the values of a tensor{where}, which a graph cannot do: use torch.where in place of "
            "if, while, int() and float(), or serve the function as a container"
        )
    elif isinstance(error, _Packed):
        code = PackageCode.NOT_EXPORTABLE
        why = (
            f"forward packs sequences{where}, which no graph can hold. Give the layer the sequences as they are, "
            "filled up at their end, and take of its steps the one at lengths - 1 (gather), or mask them; a layer that "
            "runs backwards, too, needs a container"
        )
    else:
        code = PackageCode.NOT_EXPORTABLE
        why = (
            f"torch.export cannot follow forward{where}: {message_of(error)}. Use operations of torch on tensors alone "
            "there, and none behind its back (set_(), .data), or serve the function as a container"
        )
    return NotExported(place, why, code, where)


def _is_user_error(error: Exception, kind: UserErrorType) -> bool:
    return isinstance(error, UserError) and error.error_type is kind
