"""A weight arena in host memory. On the CPU, gathering a model's pages is a mapping, not a copy.

The arena is one anonymous file (memfd) that is mapped once. A model's pages, wherever they are, are mapped a second
time in their order, so its tensors are contiguous without being moved.
"""

import ctypes
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_POPULATE = 0x8000
_PROT_NONE = 0
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

Bytes = npt.NDArray[np.uint8]


class Mapping:
    """A range of address space; unmapped when the last view of it is gone."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size

    def view(self) -> Bytes:
        """Returns all of it as bytes, uint8 `[size]`. The view keeps the mapping alive."""
        kind: Any = type("_Bytes", (ctypes.c_ubyte * self.size,), {})
        buffer = kind.from_address(self.address)
        buffer.mapping = self
        return np.frombuffer(buffer, np.uint8)

    def __del__(self) -> None:
        _libc.munmap(self.address, self.size)


class Arena:
    """`count` pages of `page_bytes` each, all allocated and touched. Raises: OSError, MemoryError."""

    def __init__(self, count: int, page_bytes: int) -> None:
        assert page_bytes % mmap.PAGESIZE == 0
        self.count, self.page_bytes = count, page_bytes
        self._fd = os.memfd_create("gearmesh-arena", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, count * page_bytes)
        os.posix_fallocate(self._fd, 0, count * page_bytes)
        size = count * page_bytes
        base = _map(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_POPULATE, self._fd, 0)
        self._view = Mapping(base, size).view()

    def copy_in(self, image: Bytes, pages: Sequence[int]) -> None:
        """The image is in the pages, in their order. Releases the GIL while it copies."""
        for i, page in enumerate(pages):
            piece = image[i * self.page_bytes : (i + 1) * self.page_bytes]
            start = page * self.page_bytes
            self._view[start : start + len(piece)] = piece

    def map_pages(self, pages: Sequence[int]) -> Bytes:
        """Returns the pages mapped one after the other, uint8.

        Callers must not write; mapped as long as the view lives.
        """
        size = len(pages) * self.page_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        mapping = Mapping(_map(None, size, _PROT_NONE, flags, -1, 0), size)
        at = mapping.address
        for first, length in _runs(pages):
            span = length * self.page_bytes
            flags = mmap.MAP_SHARED | _MAP_FIXED | _MAP_POPULATE
            _map(at, span, mmap.PROT_READ | mmap.PROT_WRITE, flags, self._fd, first * self.page_bytes)
            at += span
        return mapping.view()

    def close(self) -> None:
        """No more mappings can be made; the memory is freed with the last view."""
        os.close(self._fd)


class MappingCache:
    """A cache of recent mappings of pages: the next model of the same size mostly gets the same pages.

    Source of the gain: scripts/bench_worker.py; a mapping of 100 MB takes 3 ms to make and 14 ms to fill. Any thread
    may use it.
    """

    def __init__(self, arena: Arena, bytes_max: int) -> None:
        self._arena, self._bytes_max = arena, bytes_max
        # {pages: their mapping}, least recently used first
        self._made: OrderedDict[tuple[int, ...], Bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, pages: tuple[int, ...]) -> Bytes:
        """Returns the pages mapped one after the other, as Arena.map_pages does."""
        with self._lock:
            mapping = self._made.get(pages)
            if mapping is not None:
                self._made.move_to_end(pages)
                return mapping
        mapping = self._arena.map_pages(pages)
        with self._lock:
            if pages not in self._made:
                self._made[pages] = mapping
                self._bytes += len(mapping)
            while self._bytes > self._bytes_max:
                _, oldest = self._made.popitem(last=False)
                self._bytes -= len(oldest)
        return mapping

    def clear(self) -> None:
        """The cache is empty."""
        with self._lock:
            self._made.clear()
            self._bytes = 0


def _runs(pages: Sequence[int]) -> list[tuple[int, int]]:
    """Returns (first, length) of each run of consecutive pages: one mapping each."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and runs[-1][0] + runs[-1][1] == page:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((page, 1))
    return runs


def _map(address: int | None, size: int, protection: int, flags: int, fd: int, offset: int) -> int:
    result = _libc.mmap(address, size, protection, flags, fd, offset)
    if result == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {size} bytes: {os.strerror(code)}")
    return int(result)
