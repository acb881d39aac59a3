"""Executables of one architecture: its operations, captured once for each batch: rows, and extents if any are open.

The captured operations read weights from the execution buffer and inputs from `static`, and write outputs to `static`.
These places are fixed and shared by all models of the architecture; models differ in what the execution buffer holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gpu_worker.core.figures import Cell
from gpu_worker.core.fixed import FixedBatch, FixedBatches, fixed_batches
from gpu_worker.devices.cuda.driver import Driver, MemoryFull, Work
from gpu_worker.devices.cuda.operations import filler, operate
from gpu_worker.devices.cuda.plans import SLOT_BYTES_MAX, BatchLayout, lay_out
from gpu_worker.devices.cuda.surveys import survey_cells
from gpu_worker.devices.execution.executables import Forward, check_by_running, load_forward, view
from gpu_worker.packages.package import Package
from gpu_worker.packages.stored import ONNX
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


def build(
    driver: Driver,
    package: Package,
    image: torch.Tensor,
    execution_buffer: torch.Tensor,
    sizes: Sequence[int] = (),
    cells: Sequence[Cell] = (),
) -> GraphExecutable:
    """The architecture of `package`, warmed up with the weights of `image` and captured on the execution buffer.

    `image`: uint8, on the host. `execution_buffer`: as bytes. `sizes`: rows to capture, ascending up to the largest
    batch, of a version without open dimensions; none: those of `fixed_batches`. `cells`: to capture of a version
    with open dimensions; none: those that a survey finds. Of them, batches of several rows that the device has no
    memory for are left out. Runs on the thread that prepares, and writes to nothing that serving uses: survey and
    warm-up have their own weights and outputs.

    Raises: PackageError; MemoryFull; RuntimeError if an operation cannot be captured.
    """
    if package.graph is not None and package.graph.suffix == ONNX:
        raise PackageError(package.ref, [f"{package.graph.name}: ONNX packages run on the cpu device only"])
    forward = load_forward(package, driver.place)
    weights = try_out(driver, package, forward, image)
    if package.spec.dims and not cells:
        cells = survey_cells(driver, package, forward, weights)
    batches = FixedBatches((((), tuple(sizes)),)) if sizes else fixed_batches(package.spec, cells)
    layouts = {fixed: lay_out(package.spec, *fixed) for fixed in batches.all}
    if package.spec.dims:
        for fixed, layout in layouts.items():
            batches = batches.without(fixed) if layout.end > SLOT_BYTES_MAX else batches
    static = driver.allocate(max(layouts[fixed].end for fixed in batches.all))
    captured = weights_of(execution_buffer, package)
    fill_up = filler(package)
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
                driver.warm_up(lambda layout=layout: operate(forward, weights, warm, layout))  # type: ignore[misc]
            if not replays:
                driver.trim()  # frees what choosing kernels took; other batches are captured into what this one leaves
            before, _ = driver.memory()
            replays[fixed] = driver.capture(
                lambda layout=layout: operate(forward, captured, static, layout)  # type: ignore[misc]
            )
        except MemoryFull:
            if not package.spec.dims or fixed[0] == 1:
                raise
            batches = batches.without(fixed)
            continue
        graph_bytes += max(0, before - driver.memory()[0])
    kept = {fixed: layouts[fixed] for fixed in batches.all}
    return GraphExecutable(batches, kept, static, {fixed: replays[fixed] for fixed in kept}, graph_bytes, forward)


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
