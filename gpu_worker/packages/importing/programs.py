"""Modules as programs: exported with the batch left open, as functions of their weights."""

import copy
import inspect
import json
import traceback
from collections.abc import Mapping, Sequence
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

from gpu_worker.devices.executables import dtypes_of
from gpu_worker.packages.examples import said
from gpu_worker.packages.importing.folding import lean, without_dead_code
from gpu_worker.packages.importing.plain import tensors_in
from gpu_worker.packages.importing.quiet import authors_line, followed, guards, unheard
from gpu_worker.packages.importing.signature import Binding, tensors_of
from mesh.codes import PackageCode
from mesh.errors import PackageError

KEPT_META = ("val", "tensor_meta")  # of nodes: the author's source, and where it lies, is nobody's business


class NotExported(PackageError):
    """torch.export cannot follow forward. `where`: at which line of the author's, as in " (file.py:12)", or ""."""

    def __init__(self, place: str, why: str, code: PackageCode, where: str) -> None:
        super().__init__(place, [why], code)
        self.where = where


@dataclass(frozen=True, slots=True)
class Program:
    """(weights..., inputs...) -> outputs."""

    exported: torch.export.ExportedProgram
    weights: dict[str, torch.Tensor]  # in the order the graph takes them

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs."""
        with torch.no_grad():
            return list(self.exported.graph_module.forward(*self.weights.values(), *inputs))

    def leaner(self, place: str, example: Sequence[torch.Tensor], batch_max: int) -> "Program | None":
        """The same with less to do and to load; None if there is nothing to leave out. Raises: PackageError."""
        graph = copy.deepcopy(self.exported.graph_module)
        before = len(graph.graph.nodes)
        weights = lean(graph, self.weights)
        if len(graph.graph.nodes) == before and not self.exported.constants:  # which are weights, and in it once more
            return None
        return Program(_export(place, _Graph(graph), weights, example, batch_max), weights)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Of everything that is computed."""
        return dtypes_of(self.exported.graph_module.forward)

    def save(self, file: Path) -> None:
        """The graph is in the file, without the weights, and without a word of where it came from."""
        self.exported._example_inputs = None  # the weights once more: tens of megabytes that nobody reads
        for module in self.exported.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta = {key: value for key, value in node.meta.items() if key in KEPT_META}
        order = {"weights": list(self.weights)}
        torch.export.save(self.exported, file, extra_files={"gearmesh.json": json.dumps(order)})


class _Lifted(nn.Module):
    """A module as a function of its weights: (weights..., inputs...) -> outputs, all flat."""

    def __init__(self, module: nn.Module, names: Sequence[str], binding: Binding) -> None:
        super().__init__()
        self.__dict__["_held"] = (module, tuple(names), binding)  # out of nn.Module's sight: nothing to lift twice

    def forward(self, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        module, names, binding = self.__dict__["_held"]
        weights, inputs = dict(zip(names, flat, strict=False)), flat[len(names) :]
        with unheard():
            for other in inputs[1:]:  # torch learns it at the end only, from the dimension that they share
                torch._check(other.shape[0] == inputs[0].shape[0])  # type: ignore[no-untyped-call]
        args, kwargs = binding.arguments(inputs)
        with _AsWritten():
            found = functional_call(module, weights, args, kwargs, tie_weights=False)
        return tuple(tensors_of(found, inputs[0].shape[0]))


class _AsWritten(TorchFunctionMode):
    """Gradients stay as they are: parts that switch them would be graphs in the graph, which torch may not load. Parts
    of a batch that is put together of several, each as long as the batch, are taken as slices: torch would count them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        if func in PARTING:
            found = _slices(PARTING[func](*args, **(kwargs or {})))
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class _Parting:
    """A tensor in parts along a dimension: so many, or each of a length."""

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
    """Its parts; None where the length is a number, or is not known to be a multiple: that is for torch to do."""
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
    """A graph, to be exported again."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__()
        self.__dict__["_graph"] = graph

    def forward(self, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.__dict__["_graph"](*flat))


def export(place: str, module: nn.Module, binding: Binding, example: Sequence[torch.Tensor], batch_max: int) -> Program:
    """The module, any number of rows up to `batch_max` left open. `example`: inputs of two rows that it runs on, or of
    one where it takes no more.

    Tensors that it makes of constants as it runs are weights of the program, too.
    Raises: NotExported, code batch_fixed, data_dependent or not_exportable.
    """
    weights = {name: tensor.detach().contiguous().clone() for name, tensor in tensors_in(module).items()}
    exported = _export(place, _Lifted(module, list(weights), binding), weights, example, batch_max)
    constants = {
        str(taken.target): exported.constants[str(taken.target)].detach().contiguous()
        for taken in exported.graph_signature.input_specs
        if taken.kind is InputKind.CONSTANT_TENSOR
    }
    return Program(exported, constants | weights)


def read(module: nn.Module, binding: Binding, example: Sequence[torch.Tensor], batch_max: int) -> nn.Module | None:
    """A module that can be exported where this one cannot: what forward's Python does is read, and not run.

    int(x.shape[0]) is no constant then, and numpy is followed. It takes longer, and fails for more modules: None.
    """
    args, kwargs = binding.arguments([tensor.clone() for tensor in example])
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor in (*args, *kwargs.values()) if batch_max > 1 else ():
        shapes[tensor] = {0: torch.export.Dim("batch", min=1, max=batch_max)}
    try:
        with torch.no_grad():
            made = unlifted(torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=True))
    except Exception:  # torch raises its own; what is told is why the module could not be run
        return None
    without_dead_code(made)
    return made


def unlifted(exported: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """The program as a module that checks nothing of its inputs."""
    guarded = "check_guards" in inspect.signature(exported.module).parameters
    made: Any = exported.module(check_guards=False) if guarded else exported.module()
    assert isinstance(made, torch.fx.GraphModule)
    return made


def _export(
    place: str, module: nn.Module, weights: Mapping[str, torch.Tensor], example: Sequence[torch.Tensor], batch_max: int
) -> torch.export.ExportedProgram:
    open_batch = {0: torch.export.Dim("batch", min=1, max=batch_max)} if batch_max > 1 else None
    shapes = (*(None for _ in weights), *(open_batch for _ in example))
    arguments = (*weights.values(), *(tensor.clone() for tensor in example))
    with torch.no_grad(), guards() as seen, followed():
        try:
            return torch.export.export(module, arguments, dynamic_shapes=(shapes,))
        except Exception as error:  # torch.export raises its own, and whatever the author's code does
            raise _told(place, error, seen.line) from None  # torch's own words, and its stack, help nobody here


def _told(place: str, error: Exception, guarded: str) -> NotExported:
    """The error in our words. `guarded`: where something was taken for granted of the batch."""
    where = authors_line(traceback.extract_tb(error.__traceback__))
    if isinstance(error, ConstraintViolationError) or _is_user_error(error, UserErrorType.CONSTRAINT_VIOLATION):
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
    else:
        code = PackageCode.NOT_EXPORTABLE
        why = (
            f"torch.export cannot follow forward{where}: {said(error)}. Use operations of torch on tensors alone "
            "there, and none behind its back (set_(), .data), or serve the function as a container"
        )
    return NotExported(place, why, code, where)


def _is_user_error(error: Exception, kind: UserErrorType) -> bool:
    return isinstance(error, UserError) and error.error_type is kind
