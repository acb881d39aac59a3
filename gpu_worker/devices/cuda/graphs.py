"""Executables of one architecture: its operations, captured once for each batch: rows, and extents if any are open.

The captured operations read weights from the execution buffer and inputs from `static`, and write outputs to `static`.
These places are fixed and shared by all models of the architecture; models differ in what the execution buffer holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from gpu_worker.core.cutting import varies
from gpu_worker.core.fixed import FixedBatch, FixedBatches, fixed_batches
from gpu_worker.core.layouts import TensorPlace
from gpu_worker.devices.cuda.driver import Driver, MemoryFull, Work
from gpu_worker.devices.cuda.plans import SLOT_BYTES_MAX, BatchLayout, lay_out
from gpu_worker.devices.execution.executables import Forward, check_by_running, load_forward, view
from gpu_worker.devices.execution.open_rows import OpenInputs
from gpu_worker.devices.execution.rows import padding_rows
from gpu_worker.packages.package import Package
from gpu_worker.packages.stored import ONNX
from gpu_worker.packages.trials import Promise, keeps
from mesh.errors import PackageError

WARM_UPS = 3  # runs of each batch before its capture, in which libraries choose and load their kernels


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class GraphExecutable:
    """One architecture, up to one batch size."""

    batches: FixedBatches
    layouts: dict[FixedBatch, BatchLayout]  # places in `static`, and in slots
    static: torch.Tensor  # uint8, on the device: inputs, then outputs
    replays: dict[FixedBatch, Work]  # {batch: issues its operations}
    graph_bytes: int  # bytes that the captures took
    forward: Forward  # the same operations, not captured: other versions are checked with them


def weights_of(flat: torch.Tensor, package: Package) -> list[torch.Tensor]:
    """Views of an image or of the execution buffer (uint8), in the order in which the architecture takes them."""
    return [view(flat, weight) for weight in package.layout]


def tensor_at(flat: torch.Tensor, place: TensorPlace) -> torch.Tensor:
    """Returns a view of one tensor of a buffer (uint8)."""
    return flat[place.at : place.at + place.size].view(getattr(torch, place.dtype)).view(place.shape)


def build(
    driver: Driver, package: Package, image: torch.Tensor, execution_buffer: torch.Tensor, sizes: Sequence[int] = ()
) -> GraphExecutable:
    """The architecture of `package`, warmed up with the weights of `image` and captured on the execution buffer.

    `image`: uint8, on the host. `execution_buffer`: as bytes. `sizes`: rows to capture, ascending up to the largest
    batch, of a version without open dimensions; none: those of `fixed_batches`. With open dimensions, batches of
    several rows that the device has no memory for are left out. Runs on the thread that prepares, and writes to nothing
    that serving uses: the warm-up has its own weights and outputs.

    Raises: PackageError; MemoryFull; RuntimeError if an operation cannot be captured.
    """
    if package.graph is not None and package.graph.suffix == ONNX:
        raise PackageError(package.ref, [f"{package.graph.name}: ONNX packages run on the cpu device only"])
    forward = load_forward(package, driver.place)
    batches = FixedBatches((((), tuple(sizes)),)) if sizes else fixed_batches(package.spec)
    layouts = {fixed: lay_out(package.spec, *fixed) for fixed in batches.all}
    if package.spec.dims:
        for fixed, layout in layouts.items():
            batches = batches.without(fixed) if layout.end > SLOT_BYTES_MAX else batches
    static = driver.allocate(max(layouts[fixed].end for fixed in batches.all))
    weights = try_out(driver, package, forward, image)
    captured = weights_of(execution_buffer, package)
    fill_up = _filler(package)
    replays: dict[FixedBatch, Work] = {}
    graph_bytes = 0
    warm = driver.allocate(len(static))
    # the largest first: the memory that it leaves in the pool suffices for the others
    for fixed in sorted(batches.all, key=lambda fixed: (layouts[fixed].end, fixed), reverse=True):
        if fixed not in batches.all:
            continue
        layout = layouts[fixed]
        try:
            driver.warm_up(lambda layout=layout: fill_up(warm, layout))  # type: ignore[misc]
            for _ in range(WARM_UPS):
                driver.warm_up(lambda layout=layout: _operate(forward, weights, warm, layout))  # type: ignore[misc]
            if not replays:
                driver.trim()  # frees what choosing kernels took; other batches are captured into what this one leaves
            before, _ = driver.memory()
            replays[fixed] = driver.capture(
                lambda layout=layout: _operate(forward, captured, static, layout)  # type: ignore[misc]
            )
        except MemoryFull:
            if not package.spec.dims or fixed[0] == 1:
                raise
            batches = batches.without(fixed)
            continue
        graph_bytes += max(0, before - driver.memory()[0])
    kept = {fixed: layouts[fixed] for fixed in batches.all}
    return GraphExecutable(batches, kept, static, {fixed: replays[fixed] for fixed in kept}, graph_bytes, forward)


def _filler(package: Package) -> Callable[[torch.Tensor, BatchLayout], None]:
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


def try_out(driver: Driver, package: Package, forward: Forward, image: torch.Tensor) -> list[torch.Tensor]:
    """The version passes all checks with the weights of `image` (on the host). Returns these weights, on the device.

    Runs on the thread that prepares. Raises: PackageError, MemoryFull.
    """
    scratch = driver.allocate(package.image_bytes)
    driver.warm_up(lambda: _copy(scratch, image))
    weights = weights_of(scratch, package)
    driver.warm_up(lambda: check_by_running(package, forward, weights, driver.place))
    return weights


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)


def _pad(buffer: torch.Tensor, layout: BatchLayout, padding: Sequence[torch.Tensor]) -> None:
    buffer.zero_()
    for place, row in zip(layout.inputs, padding, strict=True):
        buffer[place.at : place.at + place.size].view(place.rows, -1).copy_(row)


def _operate(forward: Forward, weights: Sequence[torch.Tensor], flat: torch.Tensor, layout: BatchLayout) -> None:
    inputs = [tensor_at(flat, place) for place in layout.inputs]
    outputs = forward(*weights, *inputs)
    rows = layout.inputs[0].rows
    if not keeps(_promise(layout), outputs, rows):  # copying would broadcast a smaller output without an error
        raise RuntimeError(f"outputs of {rows} rows are {[list(output.shape) for output in outputs]}")
    for place, output in zip(layout.outputs, outputs, strict=True):
        tensor_at(flat, place).copy_(output)


def _promise(layout: BatchLayout) -> Promise:
    return tuple((getattr(torch, place.dtype), place.shape[1:]) for place in layout.outputs)
