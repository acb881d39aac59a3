"""What is captured of one batch: the operations of an architecture, between places of one buffer."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from gpu_worker.core.cutting import varies
from gpu_worker.core.layouts import TensorPlace
from gpu_worker.devices.cuda.plans import BatchLayout
from gpu_worker.devices.execution.executables import Forward
from gpu_worker.devices.execution.open_rows import OpenInputs
from gpu_worker.devices.execution.rows import padding_rows
from gpu_worker.packages.package import Package
from gpu_worker.packages.trials import Promise, keeps


def tensor_at(flat: torch.Tensor, place: TensorPlace) -> torch.Tensor:
    """Returns a view of one tensor of a buffer (uint8)."""
    return flat[place.at : place.at + place.size].view(getattr(torch, place.dtype)).view(place.shape)


def filler(package: Package) -> Callable[[torch.Tensor, BatchLayout], None]:
    """Returns what fills all inputs of a buffer with rows that the model can run on.

    What another batch left there may be invalid indices.
    """
    if varies(package.spec):
        inputs = OpenInputs.of(package)

        def fill_up(buffer: torch.Tensor, layout: BatchLayout) -> None:
            here = np.zeros(layout.inputs_end, np.uint8)
            inputs.fill(here, layout.inputs, layout.extents, (), ())
            buffer.zero_()
            buffer[: layout.inputs_end].copy_(torch.from_numpy(here))

        return fill_up
    return partial(_pad, padding=[torch.from_numpy(row) for row in padding_rows(package)])


def _pad(buffer: torch.Tensor, layout: BatchLayout, padding: Sequence[torch.Tensor]) -> None:
    buffer.zero_()
    for place, row in zip(layout.inputs, padding, strict=True):
        buffer[place.at : place.at + place.size].view(place.rows, -1).copy_(row)


def operate(forward: Forward, weights: Sequence[torch.Tensor], flat: torch.Tensor, layout: BatchLayout) -> None:
    inputs = [tensor_at(flat, place) for place in layout.inputs]
    outputs = forward(*weights, *inputs)
    rows = layout.inputs[0].rows
    if not keeps(_promise(layout), outputs, rows):  # copying would broadcast a smaller output without an error
        raise RuntimeError(f"outputs of {rows} rows are {[list(output.shape) for output in outputs]}")
    for place, output in zip(layout.outputs, outputs, strict=True):
        tensor_at(flat, place).copy_(output)


def _promise(layout: BatchLayout) -> Promise:
    return tuple((getattr(torch, place.dtype), place.shape[1:]) for place in layout.outputs)
