"""Weight images outside the arena: in host memory up to a budget, beyond it on disk; versions that are one file share.

A model whose image is in host memory is loaded by one copy. Beyond the budget nothing of an image stays in memory, not
even in the system's page cache, so that its LOAD takes what the disk takes, every time, and is estimated by that.
"""

import json
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from broker.errors import PackageError
from gpu_worker.devices.arena import Bytes
from gpu_worker.packages import Package

HOST, DISK = "host", "disk"
Key = tuple[int, int, int, int, str]  # device, inode, size, time of change, architecture


class Image(Protocol):
    """One model's weights, laid out for its architecture."""

    place: str  # HOST or DISK
    size: int  # bytes

    def copy_into(self, window: Bytes) -> None:
        """The weights are at the start of `window`. Releases the GIL while it copies. Raises: OSError."""


class HostImage:
    """An image in host memory."""

    place = HOST

    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.size = len(data)

    @classmethod
    def allocate(cls, size: int) -> "HostImage":
        """Zeros. Raises: MemoryError."""
        return cls(np.zeros(size, np.uint8))

    def copy_into(self, window: Bytes) -> None:
        """See Image."""
        window[: self.size] = self.data


class DiskImage:
    """An image that is read from `weights.safetensors` at every LOAD.

    Read, not mapped: a mapped file that is cut short ends the process that looks at it.
    """

    place = DISK

    def __init__(self, package: Package) -> None:
        self.size = package.image_bytes
        self._file = package.weights_file
        self._key = file_key(package)
        self._tensors = _tensors(package)  # (offset in the image, offset in the file, bytes), in the image's order
        self._offsets = [offset for offset, _, _ in self._tensors]

    def copy_into(self, window: Bytes) -> None:
        """See Image."""
        self.read(window[: self.size], 0)

    def read(self, target: Bytes, at: int) -> None:
        """What the image has from `at` on is in `target`; what is between tensors there is left as it was.

        Releases the GIL while it reads. Raises: OSError.
        """
        end = at + len(target)
        fd = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _identity(os.fstat(fd)) != self._key[:4]:
                raise OSError(f"{self._file} is not the file that was prepared: deploy what is new as another version")
            if at == 0:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
            for start, offset, size in sorted(self._between(at, end)):
                _read(fd, target[offset - at : offset - at + size], start)
            if end == self.size:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)

    def _between(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(offset in the file, offset in the image, bytes) of what tensors have there."""
        for i in range(max(0, bisect_right(self._offsets, at) - 1), len(self._tensors)):
            offset, start, size = self._tensors[i]
            if offset >= end:
                return
            first, last = max(offset, at), min(offset + size, end)
            if first < last:
                yield start + first - offset, first, last - first


@dataclass(slots=True)
class Images:
    """All images of one device. Any thread may use it; no one waits while another reads an image."""

    budget_bytes: int  # of host memory
    read: Callable[[Package, Bytes], None]  # fills an image from the package; raises PackageError
    allocate: Callable[[int], HostImage] = HostImage.allocate  # raises MemoryError
    used_bytes: int = 0
    _kept: dict[Key, Image] = field(default_factory=dict)
    _users: dict[Key, set[str]] = field(default_factory=dict)  # {key: refs}, never empty
    _keys: dict[str, Key] = field(default_factory=dict)  # {ref: key}
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, package: Package) -> Image:
        """The package's image, read now unless another version has the same file. Raises: PackageError."""
        key = file_key(package)
        self.drop(package.ref)
        image = self._kept.get(key) or self._make(package)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = image
                self.used_bytes += image.size if image.place == HOST else 0
            self._users.setdefault(key, set()).add(package.ref)
            self._keys[package.ref] = key
        return image

    def drop(self, ref: str) -> None:
        """The version does not need its image any more."""
        with self._lock:
            key = self._keys.pop(ref, None)
            if key is None:
                return
            self._users[key].discard(ref)
            if not self._users[key]:
                del self._users[key]
                image = self._kept.pop(key)
                self.used_bytes -= image.size if image.place == HOST else 0

    def _make(self, package: Package) -> Image:
        if self.used_bytes + package.image_bytes > self.budget_bytes:
            return DiskImage(package)
        try:
            image = self.allocate(package.image_bytes)
        except MemoryError as error:
            why = f": {error}" if str(error) else ""
            raise PackageError(
                package.ref,
                [f"no memory for its weights ({package.image_bytes >> 20} MiB{why}): lower GEARMESH_HOST_MEMORY_MB"],
            ) from error
        self.read(package, image.data)
        return image

    def check(self) -> None:
        """Every invariant holds."""
        assert self._kept.keys() == self._users.keys() == set(self._keys.values())
        assert self.used_bytes == sum(image.size for image in self._kept.values() if image.place == HOST)
        assert self.used_bytes <= self.budget_bytes


def host_budget(setting_mb: int) -> int:
    """Bytes of host memory for images: as set, or half of what is available now."""
    return setting_mb << 20 if setting_mb else available_bytes() // 2


def available_bytes() -> int:
    """Memory that processes can still get, as the system estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def file_key(package: Package) -> Key:
    """Equal for versions that are the same file (links to it, for one) of the same architecture."""
    try:
        return (*_identity(package.weights_file.stat()), package.architecture)
    except OSError as error:
        raise PackageError(package.ref, [f"weights.safetensors: {error.strerror}"]) from error


def _identity(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _tensors(package: Package) -> list[tuple[int, int, int]]:
    """Where each tensor is in the file. Source: the safetensors format, an 8-byte length, a JSON header, the data."""
    with package.weights_file.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    starts = {weight.name: 8 + length + header[weight.name]["data_offsets"][0] for weight in package.layout}
    return sorted((weight.offset, starts[weight.name], weight.size) for weight in package.layout if weight.size)


def _read(fd: int, target: Bytes, start: int) -> None:
    rest = memoryview(target)  # type: ignore[arg-type]
    while rest:
        count = os.preadv(fd, [rest], start)
        if count == 0:
            raise OSError("weights.safetensors was cut short after it was prepared")
        rest, start = rest[count:], start + count
