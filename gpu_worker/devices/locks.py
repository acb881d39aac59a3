"""Ensures one process per device, by a lock that is released when the process ends, however it ends."""

import fcntl
import os
from pathlib import Path

from gpu_worker.devices.base import DeviceError


class DeviceLock:
    """A lock held from construction until `release` or the end of the process. Raises: DeviceError."""

    def __init__(self, folder: Path, device: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{device.replace(':', '-')}.lock"
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise DeviceError(
                f"device {device} is driven by another worker already (pid {holder}); one process per device: choose "
                "another with GEARMESH_DEVICE, or stop that one"
            ) from error
        os.ftruncate(self._fd, 0)
        os.write(self._fd, str(os.getpid()).encode())

    def release(self) -> None:
        """Another process can drive the device."""
        os.close(self._fd)


def claim_first(folder: Path, devices: list[str]) -> tuple[str, DeviceLock]:
    """Returns the first of the devices that no worker drives, and its lock. Raises: DeviceError if there is none."""
    for device in devices:
        try:
            return device, DeviceLock(folder, device)
        except DeviceError:
            continue
    raise DeviceError(f"every device here is driven already: {', '.join(devices)}; start fewer workers")


def driven(folder: Path, device: str) -> bool:
    """Returns whether a worker drives the device now."""
    try:
        DeviceLock(folder, device).release()
    except DeviceError:
        return True
    return False
