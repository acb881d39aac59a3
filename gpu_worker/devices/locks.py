"""Ensures one process per device, by a lock that is released when the process ends, however it ends.

The lock is a file below the data folder. Where that takes no files, because its disk is full or read-only, it is one in
the machine's memory (`LENT`), named after the data folder; whoever has locked either has the device.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import structlog

from gpu_worker.devices.base import DeviceError
from mesh.process.files import not_written

LENT = (Path("/dev/shm"), Path("/tmp"))  # folders that take files where the data folder does not, the first one first
log = structlog.get_logger("worker")


class DeviceLock:
    """A lock held from construction until `release` or the end of the process. Raises: DeviceError."""

    def __init__(self, folder: Path, device: str, lent: Sequence[Path] = LENT) -> None:
        """`lent`: where the lock's file is if `folder` takes none."""
        name = f"{device.replace(':', '-')}.lock"
        self._held: list[int] = []  # locked descriptors
        try:
            self._take_all(folder / name, [_lent_folder(place, folder) / name for place in lent], device)
        except BaseException:
            self.release()
            raise

    def _take_all(self, file: Path, lent: Sequence[Path], device: str) -> None:
        for other in lent:  # of a process that came while the data folder took none
            with contextlib.suppress(OSError):
                _check_own(other.parent)
                self._take(_opened(other), device)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._take(_opened(file, os.O_CREAT), device)
            return
        except OSError as error:
            fault = not_written(file, error)
        for other in lent:
            with contextlib.suppress(OSError):
                other.parent.mkdir(mode=0o700, exist_ok=True)
                _check_own(other.parent)
                self._take(_opened(other, os.O_CREAT), device)
                log.warning("lock_elsewhere", device=device, error=str(fault), file=str(other))
                return
        advice = "no lock: start no other worker for this device"
        log.error("not_locked", device=device, error=str(fault), advice=advice)

    def _take(self, descriptor: int, device: str) -> None:
        """The file is locked, and holds our process id if there is room for it. Raises: DeviceError."""
        self._held.append(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise DeviceError(
                f"device {device} is driven by another worker already (pid {holder}); one process per device: choose "
                "another with GEARMESH_DEVICE, or stop that one"
            ) from error
        with contextlib.suppress(OSError):  # it is for people only
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())

    def release(self) -> None:
        """Another process can drive the device."""
        while self._held:
            os.close(self._held.pop())


def _opened(file: Path, make: int = 0) -> int:
    """Returns a descriptor of the file; `make`: O_CREAT if it is made where it is not there. Raises: OSError."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(file, flags | os.O_RDWR | make, 0o644)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return os.open(file, flags | os.O_RDONLY)  # that is enough to lock it


def _lent_folder(place: Path, folder: Path) -> Path:
    """Returns the folder there that belongs to this user and to this folder of locks."""
    name = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    return place / f"gearmesh-locks-{os.getuid()}-{name}"


def _check_own(folder: Path) -> None:
    """The folder is there and is ours: others may write beside it, and must not hold our locks. Raises: OSError."""
    found = folder.lstat()
    if found.st_uid != os.getuid() or stat.S_ISLNK(found.st_mode):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(folder))


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
