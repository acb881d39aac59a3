"""What a device can do. A new kind is one file here and one line in `open_device`, or a package of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.errors import GearmeshError

if TYPE_CHECKING:
    from mesh.process.settings import Settings  # a device can be driven where what reads settings is not installed

GROUP = "gearmesh.devices"  # entry points of packages that bring devices of their own
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


def open_device(settings: Settings) -> Device:
    """The device that the settings name. Raises: DeviceError, SettingsError."""
    name = settings.device
    if name == "auto" and (gpus := _gpus_free(settings)) is not None:
        return gpus
    if name == "cuda" or name.startswith("cuda:"):
        return _open_cuda(settings, name)
    if name in ("auto", "cpu"):
        from gpu_worker.devices.cpu import CpuDevice

        return CpuDevice.claim(settings) if name == "auto" else CpuDevice(settings)
    if name.startswith("emulated:"):
        from gpu_worker.devices.emulated import EmulatedDevice

        return EmulatedDevice(settings, Path(name.removeprefix("emulated:")))
    return _open_other(settings, name)


def _open_other(settings: Settings, name: str) -> Device:
    """A device that an installed package brings: an entry point of the group, called with the settings."""
    others = {found.name: found for found in entry_points(group=GROUP)}
    found = others.get(name.partition(":")[0])
    if found is None:
        brought = "".join(f", {other}" for other in sorted(others))
        raise DeviceError(
            f"GEARMESH_DEVICE={name!r}: allowed are auto, cpu, cuda, cuda:N and emulated:PROFILE.json{brought}"
        )
    try:
        make = found.load()
    except Exception as error:  # whatever importing another's package raises
        raise DeviceError(f"GEARMESH_DEVICE={name!r}: {found.value}: {type(error).__name__}: {error}") from error
    device: Device = make(settings)
    return device


def _open_cuda(settings: Settings, name: str) -> Device:
    from gpu_worker.devices.cuda import nvidia
    from gpu_worker.devices.cuda.opening import open_cuda

    index = name.partition(":")[2]
    if name != "cuda" and not index.isdecimal():
        raise DeviceError(f"GEARMESH_DEVICE={name!r}: cuda:N needs the number of a GPU, cuda:0")
    return open_cuda(settings, [int(index)] if index else range(max(1, nvidia.device_count())))


def _gpus_free(settings: Settings) -> Device | None:
    """A GPU, if there is one that no worker drives."""
    from gpu_worker.devices.cuda import nvidia
    from gpu_worker.devices.locks import driven

    free = [i for i in range(nvidia.device_count()) if not driven(settings.data_dir / "locks", f"cuda:{i}")]
    return _open_cuda(settings, f"cuda:{free[0]}") if free else None
