"""Opens the device that the settings name. Each kind is imported only when it is asked for."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_worker.devices.base import Device, DeviceError

if TYPE_CHECKING:
    from mesh.process.settings import Settings  # a device can be driven without the packages that read settings

GROUP = "gearmesh.devices"  # entry points of packages that bring their own devices


def open_device(settings: Settings) -> Device:
    """Returns the device that the settings name. Raises: DeviceError, SettingsError."""
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
    """Returns a device from an installed package: an entry point of GROUP, called with the settings."""
    others = {found.name: found for found in entry_points(group=GROUP)}
    found = others.get(name.partition(":")[0])
    if found is None:
        brought = "".join(f", {other}" for other in sorted(others))
        raise DeviceError(
            f"GEARMESH_DEVICE={name!r}: allowed are auto, cpu, cuda, cuda:N and emulated:PROFILE.json{brought}"
        )
    try:
        make = found.load()
    except Exception as error:  # importing another's package may raise anything
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
    """Returns a GPU that no worker drives; None if there is none."""
    from gpu_worker.devices.cuda import nvidia
    from gpu_worker.devices.locks import driven

    free = [i for i in range(nvidia.device_count()) if not driven(settings.data_dir / "locks", f"cuda:{i}")]
    return _open_cuda(settings, f"cuda:{free[0]}") if free else None
