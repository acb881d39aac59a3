"""What the device remembers of versions and of work in flight."""

from collections import deque
from dataclasses import dataclass, field

import torch

from gpu_worker.core.fixed import FixedBatch
from gpu_worker.core.jobs import Done, Job
from gpu_worker.devices.arena import Bytes
from gpu_worker.devices.cuda.driver import Driver, Event, Pinned
from gpu_worker.devices.cuda.graphs import GraphExecutable
from gpu_worker.devices.cuda.memory import InferSlot
from gpu_worker.devices.cuda.plans import BatchLayout
from gpu_worker.devices.execution.open_rows import OpenInputs
from gpu_worker.devices.images import HostImage, Image
from gpu_worker.packages.package import Package
from mesh.codes import ActionCode

FIGURES_MAX = 100_000


class PinnedImage(HostImage):
    """Weights in pinned host memory."""

    def __init__(self, pinned: Pinned) -> None:
        super().__init__(pinned.tensor.numpy())
        self.pinned = pinned


@dataclass(slots=True, eq=False)
class CudaVersion:
    """One prepared version of a model."""

    package: Package
    number: int  # of its preparation
    image: Image  # shared by versions with equal weights
    executable: GraphExecutable
    padding: tuple[Bytes, ...]  # one row of each input; () if it is `open`
    open: OpenInputs | None = None  # of a version whose rows may differ in size


@dataclass(slots=True, eq=False)
class Loading:
    """One LOAD in progress."""

    job: Job
    version: CudaVersion
    row: tuple[torch.Tensor, torch.Tensor] | None = None  # (on the device, pinned) row of the page table
    read_s: float | None = None  # when the read of its first piece was ordered, if it comes from disk
    begin: Event | None = None  # before its first copy
    error: Exception | None = None  # of the first piece that failed


@dataclass(slots=True, eq=False)
class InferResources:
    """What one INFER holds from its INPUT until it has ended."""

    slot: InferSlot
    version: CudaVersion
    fixed: FixedBatch  # that is executed: the least that holds the batch
    layout: BatchLayout
    output: tuple[Event, Event] | None = None  # around its OUTPUT, once that is issued


@dataclass(slots=True)
class Figures:
    """Figures that a device reports of itself."""

    # of each EXEC: time from due to issued, in seconds
    late_s: deque[float] = field(default_factory=lambda: deque(maxlen=FIGURES_MAX))
    gathers: int = 0  # EXECs whose model was not in the execution buffer
    graphs: int = 0
    graph_bytes: int = 0
    kept_warm: int = 0


def done_of(
    driver: Driver, begin: Event, end: Event, end_s: float, error: Exception | None
) -> tuple[Done, Exception | None]:
    """Returns the outcome of the work between two events, and its error; `error`: what waiting for `end` raised."""
    if error is None:
        try:
            duration_s = driver.seconds(begin, end)
        except RuntimeError as fault:  # something else has failed since, and with it the whole device
            error = fault
        else:
            return Done(end_s - duration_s, end_s, duration_s), None
    return Done(end_s, end_s, 0.0, ActionCode.DEVICE_ERROR, message_of(error)), error


def message_of(error: Exception) -> str:
    """Returns what failed, without the debugging advice that torch appends to CUDA's message."""
    return str(error).partition("\n")[0] or type(error).__name__
