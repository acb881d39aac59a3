"""What the device remembers of versions and of what is on its way."""

from collections import deque
from dataclasses import dataclass, field

import torch

from gpu_worker.core.jobs import Done, Job
from gpu_worker.devices.arena import Bytes
from gpu_worker.devices.cuda.driver import Driver, Event, Pinned
from gpu_worker.devices.cuda.graphs import Executable
from gpu_worker.devices.cuda.memory import Slot
from gpu_worker.devices.cuda.plans import Layout
from gpu_worker.devices.images import HostImage, Image
from gpu_worker.packages.package import Package

FIGURES_MAX = 100_000


class PinnedImage(HostImage):
    """Weights in pinned host memory."""

    def __init__(self, pinned: Pinned) -> None:
        super().__init__(pinned.tensor.numpy())
        self.pinned = pinned


@dataclass(slots=True, eq=False)
class Version:
    """One prepared version of a model."""

    package: Package
    number: int  # of its preparation
    image: Image  # shared by versions whose weights are the same file
    executable: Executable
    padding: tuple[Bytes, ...]  # one row of each input


@dataclass(slots=True, eq=False)
class Loading:
    """One LOAD on its way."""

    job: Job
    version: Version
    row: tuple[torch.Tensor, torch.Tensor] | None = None  # (on the device, pinned) list of its pages
    read_s: float | None = None  # when its first piece was given to be read, if it comes from disk
    begin: Event | None = None  # before its first copy
    error: Exception | None = None  # of the first piece that failed


@dataclass(slots=True, eq=False)
class Held:
    """What one INFER holds from its INPUT until it has ended."""

    slot: Slot
    version: Version
    size: int  # of the ladder
    layout: Layout
    output: tuple[Event, Event] | None = None  # around its OUTPUT, once that is issued


@dataclass(slots=True)
class Figures:
    """What a device tells of itself."""

    late_s: deque[float] = field(default_factory=lambda: deque(maxlen=FIGURES_MAX))  # of each EXEC: issue after due
    gathers: int = 0  # EXECs whose model the window did not hold
    graphs: int = 0
    graph_bytes: int = 0
    kept_warm: int = 0


def done_of(
    driver: Driver, begin: Event, end: Event, end_s: float, error: Exception | None
) -> tuple[Done, Exception | None]:
    """How what lies between two events went, and what failed; `error`: what waiting for the second one said."""
    if error is None:
        try:
            duration_s = driver.seconds(begin, end)
        except RuntimeError as fault:  # something else has failed since, and with it the whole device
            error = fault
        else:
            return Done(end_s - duration_s, end_s, duration_s), None
    return Done(end_s, end_s, 0.0, "device_error", said(error)), error


def said(error: Exception) -> str:
    """What failed; without the advice for debugging that torch puts below what CUDA says."""
    return str(error).partition("\n")[0] or type(error).__name__
