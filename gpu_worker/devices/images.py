"""Weight images outside the arena: in host memory up to a budget, beyond it on disk. Equal images in memory are shared.

Images are identified by their content. A file's inode and times may be another file's a moment later; its digest is
not.

A model whose image is in host memory is loaded by one copy. Beyond the budget nothing of an image stays in memory, not
even in the kernel's page cache. So its LOAD always takes the disk's time, and is estimated by that.
"""

import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Protocol

import numpy as np

from gpu_worker.devices.arena import Bytes
from gpu_worker.packages.contents import digest_of, digests_of, identity
from gpu_worker.packages.package import Identity, Package
from gpu_worker.packages.reading.files import CutShort, fill, open_plain
from gpu_worker.packages.reading.tensors import BadHeader
from gpu_worker.packages.stored import places
from mesh.errors import PackageError

HOST, DISK = "host", "disk"
TICK_S = 0.02  # file times may be as coarse as this. Source: the kernel's tick, 4 or 10 ms
READS_MAX = 3  # of a file that others touch while it is read; making hard links to it does so
Key = tuple[str, str, str]  # (digest of the weights, architecture, ref if the image is not shared)


class WeightsChanged(OSError):
    """The file is not, or no longer, what was prepared: no LOAD can read the version from it."""


class Image(Protocol):
    """One model's weights, laid out for its architecture."""

    place: str  # HOST or DISK
    size: int  # bytes

    def copy_into(self, target: Bytes) -> None:
        """The weights are at the start of `target`. Releases the GIL while it copies. Raises: OSError."""


class HostImage:
    """An image in host memory."""

    place = HOST

    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.size = len(data)

    @classmethod
    def allocate(cls, size: int) -> "HostImage":
        """Returns an image of zeros. Raises: MemoryError."""
        return cls(np.zeros(size, np.uint8))

    def copy_into(self, target: Bytes) -> None:
        """The weights are at the start of `target`."""
        target[: self.size] = self.data


class DiskImage:
    """An image that is read from `weights.safetensors` at every LOAD.

    It is read, not mapped: accessing a mapped file that was cut short ends the process.
    """

    place = DISK

    def __init__(self, package: Package) -> None:
        self.size = package.image_bytes
        self._file = package.weights_file
        digests = digests_of(package)
        self._digest = digests.weights  # of the prepared file
        # (the file's identity when it last had that digest, whether any later write would change it): one pair, as
        # several threads read pieces, and each may have seen the file anew
        self._seen = (digests.weights_as, _is_settled(digests.weights_as))
        self._tensors = _tensors(package)  # (offset in the image, offset in the file, bytes), in the image's order
        self._offsets = [offset for offset, _, _ in self._tensors]

    def copy_into(self, target: Bytes) -> None:
        """The weights are at the start of `target`. Raises: WeightsChanged, OSError."""
        self.read(target[: self.size], 0)

    def read(self, target: Bytes, at: int) -> None:
        """`target` holds the image's bytes from offset `at` on; gaps between tensors are left as they were.

        Releases the GIL while it reads. Raises: WeightsChanged, OSError.
        """
        try:
            opened = open_plain(self._file)
        except FileNotFoundError as error:
            raise WeightsChanged(f"{self._file} is not there any more") from error
        with opened:
            for _ in range(READS_MAX):
                found, settled = self._check(opened)
                self._copy(opened.fileno(), target, at)
                unchanged = identity(os.fstat(opened.fileno())) == found
                if unchanged and (settled or digest_of(opened) == self._digest):
                    return
        raise OSError(f"{self._file} is touched whenever it is read")

    def _check(self, opened: FileIO) -> tuple[Identity, bool]:
        """The file is what was prepared: it is untouched, or its digest is the same.

        Returns its identity, and whether any later write would change that. Raises: WeightsChanged.
        """
        found = identity(os.fstat(opened.fileno()))
        seen = self._seen
        if seen == (found, True):
            return seen
        settled = _is_settled(found)
        if digest_of(opened) != self._digest:
            raise WeightsChanged(f"{self._file} is not what was prepared")
        self._seen = found, settled  # the check at the end of the read shows later writes
        return found, settled

    def _copy(self, fd: int, target: Bytes, at: int) -> None:
        end = at + len(target)
        if at == 0:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        for start, offset, size in sorted(self._between(at, end)):
            _read(fd, target[offset - at : offset - at + size], start)
        if end == self.size:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _between(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yields (offset in the file, offset in the image, bytes) of the pieces of tensors between `at` and `end`."""
        for i in range(max(0, bisect_right(self._offsets, at) - 1), len(self._tensors)):
            offset, start, size = self._tensors[i]
            if offset >= end:
                return
            first, last = max(offset, at), min(offset + size, end)
            if first < last:
                yield start + first - offset, first, last - first


@dataclass(slots=True)
class Images:
    """All images of one device. Any thread may use it; none waits while another reads an image."""

    budget_bytes: int  # of host memory
    read: Callable[[Package, Bytes], None]  # fills an image from the package; raises PackageError
    allocate: Callable[[int], HostImage] = HostImage.allocate  # raises MemoryError
    used_bytes: int = 0
    _kept: dict[Key, Image] = field(default_factory=dict)
    _users: dict[Key, set[str]] = field(default_factory=dict)  # {key: refs}, never empty
    _keys: dict[str, Key] = field(default_factory=dict)  # {ref: key}
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, package: Package) -> Image:
        """Returns the package's image, read now unless another version has the same one in memory.

        Raises: PackageError.
        """
        shared = (digests_of(package).weights, package.architecture, "")
        self.drop(package.ref)
        image = self._kept.get(shared) or self._make(package)
        # images on disk are not shared: one version's file may go while another's stays
        key = shared if image.place == HOST else (*shared[:2], package.ref)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = image
                self.used_bytes += image.size if image.place == HOST else 0
            self._users.setdefault(key, set()).add(package.ref)
            self._keys[package.ref] = key
        return image

    def drop(self, ref: str) -> None:
        """The version no longer needs its image."""
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
            return _on_disk(package)
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
        """Asserts every invariant."""
        assert self._kept.keys() == self._users.keys() == set(self._keys.values())
        assert self.used_bytes == sum(image.size for image in self._kept.values() if image.place == HOST)
        assert self.used_bytes <= self.budget_bytes


def host_budget(setting_mb: int) -> int:
    """Returns the bytes of host memory for images: the setting, or half of what is available now."""
    return setting_mb << 20 if setting_mb else available_bytes() // 2


def batch_budget(setting_mb: int) -> int:
    """Returns the bytes of host memory that a batch may take: the setting, or a quarter of what is available now."""
    return setting_mb << 20 if setting_mb else available_bytes() // 4


def available_bytes() -> int:
    """Returns the bytes of memory that processes can still get, as the kernel estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _is_settled(found: Identity) -> bool:
    """Returns whether a write to the file from now on would get another time than earlier ones."""
    return time.time() - found[-1] / 1e9 > TICK_S


def _on_disk(package: Package) -> DiskImage:
    try:
        return DiskImage(package)
    except OSError as error:
        raise PackageError(package.ref, [f"weights.safetensors: {error.strerror or error}"]) from error


def _tensors(package: Package) -> list[tuple[int, int, int]]:
    """Returns (offset in the image, offset in the file, bytes) of each tensor. Raises: WeightsChanged, OSError."""
    try:
        with open_plain(package.weights_file) as opened:
            return places(opened, package.layout)
    except BadHeader as error:
        raise WeightsChanged(f"{package.weights_file.name} changed while it was prepared: {error}") from None


def _read(fd: int, target: Bytes, start: int) -> None:
    try:
        fill(fd, memoryview(target), start)  # type: ignore[arg-type]
    except CutShort as error:
        raise WeightsChanged("weights.safetensors was cut short after it was prepared") from error
