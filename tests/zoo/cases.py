"""A case: how a module is made, what it takes, and either what is promised of it or why it is refused.

The expectations in this folder are written by hand, from what is right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Row = tuple[str, tuple[int, ...]]  # (dtype, shape of one row)
Span = tuple[float, float]  # values are drawn from [low, high)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One module or file, and its expected outcome."""

    name: str
    make: Callable[..., Any]  # () -> module; or (file) -> None, which writes the ONNX file
    inputs: Mapping[str, Row]
    outputs: Mapping[str, Row] = field(default_factory=dict)  # of an accepted case
    code: str = ""  # of a refused case
    draw: Mapping[str, Span] = field(default_factory=dict)  # {input: valid values}, where not all values are valid
    options: Mapping[str, Any] = field(default_factory=dict)  # of write_package
    exact: torch.dtype = torch.float32  # dtype of the least exact computation
    file: bool = False  # whether it is an ONNX file
    by_name: bool = False  # the reference is called with the inputs by name
    by_place: tuple[str, ...] = ()  # inputs that are passed by position, before the others
    where: tuple[str, ...] = ()  # path of each output in the module's result, where the outputs have other names
    norms: int | None = None  # batch normalisations that remain in the graph; None: not checked


def taken(
    name: str,
    make: Callable[..., Any],
    inputs: Mapping[str, Row],
    promised: Mapping[str, Row] | tuple[int, ...],
    /,
    *,
    draw: Mapping[str, Span] | None = None,
    exact: torch.dtype = torch.float32,
    norms: int | None = None,
    by_name: bool = False,
    by_place: tuple[str, ...] = (),
    where: tuple[str, ...] = (),
    **options: Any,
) -> Case:
    """Returns a case that answers as the module does.

    `promised`: outputs, or a row's shape of the one float32 output.
    """
    outputs = {"output": ("float32", promised)} if isinstance(promised, tuple) else promised
    return Case(
        name=name, make=make, inputs=inputs, outputs=outputs, draw=draw or {}, options=options, exact=exact,
        norms=norms, by_name=by_name, by_place=by_place, where=where,
    )  # fmt: skip


def refused(name: str, make: Callable[..., Any], inputs: Mapping[str, Row], code: str, **options: Any) -> Case:
    """Returns a case that is not written."""
    return Case(name=name, make=make, inputs=inputs, code=code, options=options)


class NotTheSwitch(Exception):
    """A method with the name of torch's mode switch was called as if it were that switch."""


class Of(nn.Module):
    """A module whose forward is a function of its parts and inputs. Tensors among the parts are buffers."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self, *inputs)


def x(*shape: int, dtype: str = "float32") -> dict[str, Row]:
    """Returns one input named x."""
    return {"x": (dtype, shape)}


def ids(*shape: int, dtype: str = "int64") -> dict[str, Row]:
    """Returns one input of integers, named ids."""
    return {"ids": (dtype, shape)}


def norm(kind: type[nn.Module], features: int, **options: Any) -> nn.Module:
    """Returns a batch normalisation that has seen data: none of its values is 0 or 1."""
    made: Any = kind(features, **options)
    if made.running_mean is not None:
        made.running_mean.normal_()
        made.running_var.uniform_(0.5, 2.0)
    if made.affine:
        nn.init.uniform_(made.weight, 0.5, 1.5)
        nn.init.normal_(made.bias)
    whole: nn.Module = made
    return whole
