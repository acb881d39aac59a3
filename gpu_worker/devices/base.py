"""What a device can do. A new kind is one file in this folder and one line in `opening.py`, or a package of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gpu_worker.core.figures import Cell
from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.errors import GearmeshError

Finished = Callable[[Phase, Job, Done], None]
Lost = Callable[[str], None]


class DeviceError(GearmeshError):
    """The device cannot be opened; `str()` says what failed and why."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What decides how long a version takes, and what fits, besides the kind of device and the architecture."""

    engine: str = "eager"  # how EXEC runs
    load_from: str = "host"  # where LOAD reads the weights: "host" memory or "disk"
    cells: tuple[Cell, ...] = ()  # with open dimensions: all batches that can be executed, ascending; (): any
    memory_bytes: int = 0  # that a batch may take; 0: there is no limit, or the device says itself what does not fit


class Device(Protocol):
    """One device: memory for weights in pages, and lanes that execute phases in the order in which they are given.

    `prepare` is called on its own thread. Everything else is called on the event loop's thread, and must not block it
    for longer than the shortest action takes. Only `prepare` allocates, pins, compiles or captures.
    """

    info: wire.DeviceInfo
    depth: dict[Phase, int]  # {phase: how many can be given in advance}
    ahead_s: float  # how long before its start time an EXEC may be given; the device waits for the start time itself
    measured: bool  # profiles are measured by running; False: `prepare` knows them, and reads no weights to compare

    def attach(self, finished: Finished, lost: Lost) -> None:
        """`finished` is called on the loop's thread for every phase that `begin` did not end itself.

        `lost` is called there once, with the reason, if the device can do nothing more for this process; phases that
        were begun are still reported by `finished`.
        """

    def prepare(self, package: Package) -> wire.Profile | None:
        """The version can be loaded and executed. Returns its profile if it is known. Raises: PackageError."""

    def forget(self, ref: str) -> None:
        """Everything that `prepare` made is freed as soon as nothing uses it."""

    def traits(self, ref: str) -> Traits:
        """Returns how a prepared version is executed and loaded. Its figures hold for these traits alone."""

    def begin(self, phase: Phase, job: Job) -> Done | None:
        """Starts a phase. Returns its outcome if it is over already; None: `finished` will be called."""

    def release(self, job: Job) -> None:
        """The job has ended. What it held for inputs and outputs is free."""

    def unloaded(self, ref: str) -> None:
        """The pages of `ref` belong to it no longer: views of them are dropped."""

    def close(self) -> None:
        """Another process can use the device."""
