"""Executables of one architecture: its operations, captured once for each size of the ladder.

The captured operations read weights from the execution buffer and inputs from `static`, and write outputs to `static`.
These places are fixed and shared by all models of the architecture; models differ in what the execution buffer holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gpu_worker.core.layouts import TensorPlace
from gpu_worker.devices.cuda.driver import Driver, Work
from gpu_worker.devices.cuda.plans import BatchLayout, ladder, lay_out
from gpu_worker.devices.execution.executables import Forward, check_by_running, load_forward, view
from gpu_worker.devices.execution.rows import padding_rows
from gpu_worker.packages.package import Package
from gpu_worker.packages.stored import ONNX
from gpu_worker.packages.trials import Promise, keeps, promise
from mesh.errors import PackageError

WARM_UPS = 3  # runs of each size before its capture, in which libraries choose and load their kernels


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class GraphExecutable:
    """One architecture, up to one batch size."""

    sizes: tuple[int, ...]
    layouts: dict[int, BatchLayout]  # {size: places in `static`, and in slots}
    static: torch.Tensor  # uint8, on the device: inputs, then outputs
    replays: dict[int, Work]  # {size: issues its operations}
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

    `image`: uint8, on the host. `execution_buffer`: as bytes. `sizes`: to capture, ascending up to the largest batch;
    none: the ladder. Runs on the thread that prepares, and writes to nothing that serving uses: the warm-up has its own
    weights and outputs.

    Raises: PackageError; MemoryFull; RuntimeError if an operation cannot be captured.
    """
    if package.graph is not None and package.graph.suffix == ONNX:
        raise PackageError(package.ref, [f"{package.graph.name}: ONNX packages run on the cpu device only"])
    forward = load_forward(package, driver.place)
    sizes = tuple(sizes) or ladder(package.spec.batch_max)
    layouts = {size: lay_out(package.spec, size) for size in sizes}
    static = driver.allocate(max(layout.end for layout in layouts.values()))
    weights = try_out(driver, package, forward, image)
    captured = weights_of(execution_buffer, package)
    promised = promise(package.spec.outputs)
    padding = [torch.from_numpy(row) for row in padding_rows(package)]
    replays, graph_bytes = {}, 0
    warm = driver.allocate(len(static))
    for size in reversed(sizes):  # the largest first: the memory that it leaves in the pool suffices for the others
        layout = layouts[size]
        driver.warm_up(lambda layout=layout: _pad(warm, layout, padding))  # type: ignore[misc]
        for _ in range(WARM_UPS):
            driver.warm_up(lambda layout=layout: _operate(forward, weights, warm, layout, promised))  # type: ignore[misc]
        if size == sizes[-1]:
            driver.trim()  # frees what choosing kernels took; other sizes are captured into what this one leaves
        before, _ = driver.memory()
        replays[size] = driver.capture(
            lambda layout=layout: _operate(forward, captured, static, layout, promised)  # type: ignore[misc]
        )
        graph_bytes += max(0, before - driver.memory()[0])
    return GraphExecutable(sizes, layouts, static, replays, graph_bytes, forward)


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
    """All inputs are rows that the model can run on: what another size left there may be invalid indices."""
    buffer.zero_()
    for place, row in zip(layout.inputs, padding, strict=True):
        buffer[place.at : place.at + place.size].view(place.rows, -1).copy_(row)


def _operate(
    forward: Forward, weights: Sequence[torch.Tensor], flat: torch.Tensor, layout: BatchLayout, promised: Promise
) -> None:
    inputs = [tensor_at(flat, place) for place in layout.inputs]
    outputs = forward(*weights, *inputs)
    rows = layout.inputs[0].rows
    if not keeps(promised, outputs, rows):  # copying would broadcast a smaller output without an error
        raise RuntimeError(f"outputs of {rows} rows are {[list(output.shape) for output in outputs]}")
    for place, output in zip(layout.outputs, outputs, strict=True):
        tensor_at(flat, place).copy_(output)
