"""What must become of a module: how it is made, what it takes, and what is promised of it or why it is refused.

The expectations in this folder are written by hand, from what is right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Row = tuple[str, tuple[int, ...]]  # (dtype, shape of one row)
Span = tuple[float, float]  # values are drawn from low up to, not including, high


@dataclass(frozen=True, kw_only=True)
class Case:
    """One module, or file, and its fate."""

    name: str
    make: Callable[..., Any]  # () -> module; (file) -> None, the ONNX file is there
    inputs: Mapping[str, Row]
    outputs: Mapping[str, Row] = field(default_factory=dict)  # of what is taken
    code: str = ""  # of what is refused
    draw: Mapping[str, Span] = field(default_factory=dict)  # valid values, where not any will do
    options: Mapping[str, Any] = field(default_factory=dict)  # of write_package
    exact: torch.dtype = torch.float32  # of the least exact step
    file: bool = False  # of ONNX
    by_name: bool = False  # the reference is called with the inputs by name
    by_place: tuple[str, ...] = ()  # but for these, which come first
    where: tuple[str, ...] = ()  # of each output in what the module returns, where the names are others
    norms: int | None = None  # batch normalisations that are left in the graph; None: nobody looks


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
    """It answers as the module does. `promised`: its outputs, or the shape of a row of the one float32 output."""
    outputs = {"output": ("float32", promised)} if isinstance(promised, tuple) else promised
    return Case(
        name=name, make=make, inputs=inputs, outputs=outputs, draw=draw or {}, options=options, exact=exact,
        norms=norms, by_name=by_name, by_place=by_place, where=where,
    )  # fmt: skip


def refused(name: str, make: Callable[..., Any], inputs: Mapping[str, Row], code: str, **options: Any) -> Case:
    """It is not written."""
    return Case(name=name, make=make, inputs=inputs, code=code, options=options)


class NotTheSwitch(Exception):
    """A method that has the name of torch's switch was called as if it were that."""


class Of(nn.Module):
    """What a function makes of this module's parts and its inputs. Tensors among the parts are buffers."""

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
    """One input of that name."""
    return {"x": (dtype, shape)}


def ids(*shape: int, dtype: str = "int64") -> dict[str, Row]:
    """One input of integers."""
    return {"ids": (dtype, shape)}


def norm(kind: type[nn.Module], features: int, **options: Any) -> nn.Module:
    """A batch normalisation that has seen data: nothing of it is 0 or 1."""
    made: Any = kind(features, **options)
    if made.running_mean is not None:
        made.running_mean.normal_()
        made.running_var.uniform_(0.5, 2.0)
    if made.affine:
        nn.init.uniform_(made.weight, 0.5, 1.5)
        nn.init.normal_(made.bias)
    whole: nn.Module = made
    return whole
