"""What a device can do. A new kind is one file in this folder and one line in `opening.py`, or a package of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gpu_worker.core.lanes import Done, Job, Phase
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.errors import GearmeshError

Finished = Callable[[Phase, Job, Done], None]
Lost = Callable[[str], None]


class DeviceError(GearmeshError):
    """The device cannot be opened; `str()` says what and why."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What, beside the kind of device and the architecture, decides how long a version takes."""

    engine: str = "eager"  # how EXEC runs
    load_from: str = "host"  # where LOAD finds the weights: "host" memory or "disk"


class Device(Protocol):
    """One device: memory for weights in pages, and lanes that execute what they are told in the order they are told.

    `prepare` is called on a thread of its own; everything else on the event loop's thread, and must not block it for
    longer than the shortest action takes. Only `prepare` allocates, pins, compiles or captures.
    """

    info: wire.DeviceInfo
    depth: dict[Phase, int]  # phases it can be given ahead, per lane
    ahead_s: float  # EXECs can be given so long before their time: the device keeps it itself
    measured: bool  # profiles are measured by running; False: `prepare` knows them, and reads no weights to compare

    def attach(self, finished: Finished, lost: Lost) -> None:
        """`finished` will be called on the loop's thread for every phase that `begin` did not end itself.

        `lost` is called there once, with the reason, if the device can do nothing more for this process; phases that
        were begun are told by `finished` all the same.
        """

    def prepare(self, package: Package) -> wire.Profile | None:
        """The version can be loaded and executed. Returns its profile where it is known. Raises: PackageError."""

    def forget(self, ref: str) -> None:
        """All that `prepare` made is freed, as soon as nothing uses it."""

    def traits(self, ref: str) -> Traits:
        """How a prepared version is executed and loaded: its figures hold for that alone."""

    def begin(self, phase: Phase, job: Job) -> Done | None:
        """Starts a phase. Returns how it went if it is over already; None: `finished` will be called."""

    def release(self, job: Job) -> None:
        """The job has ended, one way or another: what it held for inputs and outputs is free."""

    def unloaded(self, ref: str) -> None:
        """The pages of `ref` are not its own any more: views of them are dropped."""

    def close(self) -> None:
        """The device is free for another process."""
