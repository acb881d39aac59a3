"""Modules as programs: exported with the batch left open, as functions of their weights."""

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
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode

from broker.errors import PackageError
from gpu_worker.devices.executables import dtypes_of
from gpu_worker.examples import said
from gpu_worker.importing.plain import tensors_in
from gpu_worker.importing.shapes import rows_changed
from gpu_worker.importing.signature import Binding, tensors_of

TORCH, HERE = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])
KEPT_META = ("val", "tensor_meta")  # of nodes: the author's source, and where it lies, is nobody's business


@dataclass(frozen=True, slots=True)
class Program:
    """(weights..., inputs...) -> outputs."""

    exported: torch.export.ExportedProgram
    weights: dict[str, torch.Tensor]  # in the order the graph takes them

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs."""
        with torch.no_grad():
            return list(self.exported.graph_module.forward(*self.weights.values(), *inputs))

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Of everything that is computed."""
        return dtypes_of(self.exported.graph_module.forward)

    def save(self, file: Path) -> None:
        """The graph is in the file, without the weights."""
        self.exported._example_inputs = None  # the weights once more: tens of megabytes that nobody reads
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
        args, kwargs = binding.arguments(inputs)
        return tuple(tensors_of(functional_call(module, weights, args, kwargs, tie_weights=False), inputs[0].shape[0]))


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
    Raises: PackageError, code batch_fixed, data_dependent, rows_changed or not_exportable.
    """
    weights = {name: tensor.detach().contiguous().clone() for name, tensor in tensors_in(module).items()}
    exported = _export(place, _Lifted(module, list(weights), binding), weights, example, batch_max)
    constants = {
        str(taken.target): exported.constants[str(taken.target)].detach().contiguous()
        for taken in exported.graph_signature.input_specs
        if taken.kind is InputKind.CONSTANT_TENSOR
    }
    _check_rows(place, exported)
    return Program(exported, constants | weights)


def export_graph(
    place: str,
    graph: torch.fx.GraphModule,
    weights: Mapping[str, torch.Tensor],
    example: Sequence[torch.Tensor],
    batch_max: int,
) -> Program:
    """A graph that takes weights and inputs, likewise."""
    exported = _export(place, _Graph(graph), weights, example, batch_max)
    for module in exported.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta = {key: value for key, value in node.meta.items() if key in KEPT_META}
    return Program(exported, dict(weights))


def _export(
    place: str, module: nn.Module, weights: Mapping[str, torch.Tensor], example: Sequence[torch.Tensor], batch_max: int
) -> torch.export.ExportedProgram:
    open_batch = {0: torch.export.Dim("batch", min=1, max=batch_max)} if batch_max > 1 else None
    shapes = (*(None for _ in weights), *(open_batch for _ in example))
    arguments = (*weights.values(), *(tensor.clone() for tensor in example))
    try:
        with torch.no_grad():
            return torch.export.export(module, arguments, dynamic_shapes=(shapes,))
    except Exception as error:  # torch.export raises its own, and whatever the author's code does
        raise _told(place, error) from None  # torch's own words, and its stack, help nobody here


def _told(place: str, error: Exception) -> PackageError:
    """The error in our words."""
    where = _where(error)
    if isinstance(error, ConstraintViolationError) or _is_user_error(error, UserErrorType.CONSTRAINT_VIOLATION):
        code = "batch_fixed"
        why = (
            f"forward works for some numbers of rows only{where}: it makes a constant of the batch dimension, or "
            "decides by it. Compute shapes with x.shape[0] as it is (no int(), no fixed numbers), or give batch_max=1"
        )
    elif isinstance(error, GuardOnDataDependentSymNode) or _is_user_error(error, UserErrorType.DYNAMIC_CONTROL_FLOW):
        code = "data_dependent"
        why = (
            f"forward decides by the values of a tensor{where}, which a graph cannot do: use torch.where or "
            "torch.cond in place of if and float(), or serve the function as a container"
        )
    else:
        code = "not_exportable"
        why = (
            f"torch.export cannot follow forward{where}: {said(error)}. Use operations of torch on tensors alone "
            "there, or serve the function as a container"
        )
    return PackageError(place, [why], code)


def _is_user_error(error: Exception, kind: UserErrorType) -> bool:
    return isinstance(error, UserError) and error.error_type is kind


def _where(error: BaseException) -> str:
    """The last line of the author's code that ran."""
    frames = traceback.extract_tb(error.__traceback__)
    others = [frame for frame in frames if not frame.filename.startswith((TORCH, HERE, "<"))]
    return f" ({Path(others[-1].filename).name}:{others[-1].lineno})" if others else ""


def _check_rows(place: str, exported: torch.export.ExportedProgram) -> None:
    """Every output has the batch as its first dimension, whatever the values are. Raises: PackageError."""
    graph = exported.graph
    batch: Any = graph.find_nodes(op="placeholder")[-1].meta["val"].shape[0]
    (output,) = graph.find_nodes(op="output")
    for i, node in enumerate(output.args[0]):
        rows: Any = node.meta["val"].shape[0]
        if _expression(rows) != _expression(batch):
            raise PackageError(place, [rows_changed(f"output {i}", f"{rows} for {batch}")], "rows_changed")


def _expression(rows: Any) -> Any:
    return rows.node.expr if isinstance(rows, torch.SymInt) else rows
