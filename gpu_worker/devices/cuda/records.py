"""What the device remembers of versions and of what is on its way."""

from collections import deque
from dataclasses import dataclass, field

import torch

from gpu_worker.devices.cuda.driver import Event, Pinned
from gpu_worker.devices.cuda.graphs import Executable
from gpu_worker.devices.cuda.memory import Slot
from gpu_worker.devices.cuda.plans import Layout
from gpu_worker.lanes import Job
from gpu_worker.packages import Package

FIGURES_MAX = 100_000


@dataclass(slots=True, eq=False, weakref_slot=True)
class PinnedImage:
    """Weights in pinned host memory; shared by versions whose weights are the same file."""

    pinned: Pinned


@dataclass(slots=True, eq=False)
class Version:
    """One prepared version of a model."""

    package: Package
    number: int  # of its preparation
    image: PinnedImage
    executable: Executable


@dataclass(slots=True, eq=False)
class Loading:
    """One LOAD on its way."""

    job: Job
    version: Version
    row: tuple[torch.Tensor, torch.Tensor] | None = None  # (on the device, pinned) list of its pages
    begin: Event | None = None  # before its first piece
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
