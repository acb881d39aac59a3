"""Memory that the processes of one machine share: one writes tensors into slots, others read them there.

A process has one segment: a file in memory without a name (`memfd_create`), which nobody can shrink. Others open it as
/proc/PID/fd/FD, which the system allows to the same user, in the same process namespace; whoever cannot, reads nothing,
and has to be sent the bytes. It ends with the last process that has it open, so nothing is left by any that is killed.
A name tells which process and descriptor it was, and a secret that the segment begins with, so that another file there
is not taken for it.

What is in a slot is told by its generation, a number that is never used again; 0: nothing. It stands in the segment's
header, and changes before the slot is used anew. A reader copies the bytes out, and then asks whether the slot still
holds that generation (`SegmentReader.holds`): if so, no byte has changed meanwhile. Nothing waits for a reader.

For this the generation and the bytes must become visible in the order in which they were written, and must be read in
that order. x86 keeps it. For others `_fence` takes and gives a lock twice, which orders what is before and what is
behind (acquire and release in turn, by C11's rules and those of ARMv8).

Pages are reserved (`fallocate`) before a slot is used for the first time. Where there is no memory this is told as an
error; otherwise writing there would end the process (SIGBUS).

Source: the generation is a sequence lock; Lameter, "Effective Synchronization on Linux/NUMA Systems", 2005, and Boehm,
"Can Seqlocks Get Along with Programming Language Memory Models?", MSPC 2012.
"""

import fcntl
import mmap
import os
import secrets
import stat
import struct
import threading
import time
from collections.abc import Sequence
from typing import Final

from mesh.slabs import GRANULE_BYTES, SLAB_BYTES, SLAB_GRANULES, Slabs
from mesh.wire import Buffer, Slot

SLOT_BYTES_MAX: Final = SLAB_BYTES
MEMFD_NAME: Final = "gearmesh-tensors"
TOKEN_BYTES: Final = 16
HEADER: Final = struct.Struct("=16sQQ")  # the secret; where slots begin; granules
CELLS_AT: Final = 64  # for each granule the generation of the slot that begins there, and its bytes
CELL_BYTES: Final = 16
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
NOT_EXECUTABLE: Final = 0x8  # MFD_NOEXEC_SEAL, of Linux 6.3 on
RETRY_S: Final = 1.0  # a segment that could not be opened, or memory that could not be had, is not asked for so long
MAPPED_MAX: Final = 256  # segments of others that are kept open
FAILURES_MAX: Final = 1024

_lock = threading.Lock()


def _fence() -> None:
    """What is read and written before this call is so before all that is read and written after it."""
    with _lock:
        pass
    with _lock:
        pass


class SegmentWriter:
    """The segment of this process. It is made when something is put for the first time."""

    __slots__ = (
        "_backed",
        "_bytes",
        "_cells",
        "_closed",
        "_data",
        "_file",
        "_generation",
        "_memory",
        "_retry_s",
        "_slabs",
        "name",
    )

    def __init__(self, bytes_max: int) -> None:
        """`bytes_max`: of all slots together. Slots have up to SLOT_BYTES_MAX."""
        self.name = ""  # the segment's, as in `Slot.segment`; empty: it is not made yet
        self._slabs = Slabs(bytes_max // SLAB_BYTES)
        self._backed = [0] * (bytes_max // SLAB_BYTES)  # of each slab: bytes from its beginning that have pages
        cells = CELLS_AT + self._slabs.granules * CELL_BYTES
        self._data = -(-cells // GRANULE_BYTES) * GRANULE_BYTES  # where slots begin
        self._file = -1
        self._memory: mmap.mmap | None = None
        self._bytes = memoryview(b"")
        self._cells = memoryview(b"")
        self._generation = 0
        self._retry_s = 0.0
        self._closed = False

    @property
    def bytes_used(self) -> int:
        """Of all slots that hold something, as wide as they are."""
        return self._slabs.granules_used * GRANULE_BYTES

    @property
    def bytes_max(self) -> int:
        """Of all slots together."""
        return self._slabs.granules * GRANULE_BYTES

    def put(self, tensors: Sequence[Buffer]) -> Slot | None:
        """Copies the tensors into one slot, one after the other. They are one-dimensional, of bytes.

        None: they are larger than a slot can be, or there is no room, or memory cannot be shared here.
        """
        size = 0
        for tensor in tensors:
            size += len(tensor)
        if self._memory is None and not self._make():
            return None
        granule = self._slabs.take(size)
        if granule < 0:
            return None
        if not self._back(granule):
            self._slabs.give(granule)
            return None
        _fence()  # whoever still reads what was here finds that it was given back
        at = start = self._data + granule * GRANULE_BYTES
        for tensor in tensors:
            end = at + len(tensor)
            self._bytes[at:end] = tensor
            at = end
        self._generation += 1
        self._cells[2 * granule + 1] = size
        _fence()
        self._cells[2 * granule] = self._generation
        return Slot(segment=self.name, offset=start, generation=self._generation)

    def free(self, slot: Slot) -> None:
        """The slot holds nothing any more. Harmless if it does not hold that generation, or is another segment's."""
        granule = self._granule(slot)
        if granule >= 0:
            self._cells[2 * granule] = 0
            self._slabs.give(granule)

    def view(self, slot: Slot, sizes: Sequence[int]) -> list[memoryview] | None:
        """The tensors in the slot, not copied: they are right until it is freed, and not to be sent by ZeroMQ later.

        None: it does not hold them.
        """
        granule = self._granule(slot)
        if granule < 0 or sum(sizes) > self._cells[2 * granule + 1]:
            return None
        return _cut(self._bytes.toreadonly(), slot.offset, sizes)

    def copy_of(self, slot: Slot, sizes: Sequence[int]) -> list[bytes] | None:
        """The tensors in the slot, copied, so that they may be sent; None: it does not hold them."""
        views = self.view(slot, sizes)
        return None if views is None else [bytes(view) for view in views]

    def trim(self) -> None:
        """Memory that was not used since the last call is given back, but for one slab. To be called now and then."""
        if self._memory is None:
            return
        for slab in self._slabs.trim():
            if self._backed[slab]:
                self._memory.madvise(mmap.MADV_REMOVE, self._data + slab * SLAB_BYTES, SLAB_BYTES)
                self._backed[slab] = 0

    def close(self) -> None:
        """Nothing can be put any more, and slots can be read by those only who have opened the segment before."""
        self._closed = True
        self._bytes = self._cells = memoryview(b"")
        self._slabs = Slabs(0)
        self._memory = None  # unmapped when nobody looks at it any more
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _granule(self, slot: Slot) -> int:
        """Where this slot of ours begins; -1: it does not hold that generation."""
        if slot.segment != self.name or self._closed or not self.name:
            return -1
        granule, beside = divmod(slot.offset - self._data, GRANULE_BYTES)
        if beside or not self._slabs.is_taken(granule) or self._cells[2 * granule] != slot.generation:
            return -1
        return granule

    def _make(self) -> bool:
        """Makes the segment. False: it is not possible, here or now."""
        if self._closed or not self._backed or time.monotonic() < self._retry_s:
            return False
        file = -1
        size = self._data + len(self._backed) * SLAB_BYTES
        secret = secrets.token_bytes(TOKEN_BYTES)
        try:
            file = _memfd()
            os.ftruncate(file, size)
            os.posix_fallocate(file, 0, self._data)
            os.fchmod(file, 0o400)  # who opens it again can read only
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
            memory = mmap.mmap(file, size)
        except (
            OSError,
            ValueError,
            OverflowError,
            AttributeError,
        ):  # no such files, no more of them, or no memory
            if file >= 0:
                os.close(file)
            self._retry_s = time.monotonic() + RETRY_S
            return False
        memory.madvise(mmap.MADV_DONTFORK)
        self._file, self._memory = file, memory
        self._bytes = memoryview(memory)
        self._cells = self._bytes[CELLS_AT : CELLS_AT + self._slabs.granules * CELL_BYTES].cast("Q")
        HEADER.pack_into(memory, 0, secret, self._data, self._slabs.granules)
        self.name = f"{os.getpid()}.{file}.{secret.hex()}"
        return True

    def _back(self, granule: int) -> bool:
        """The slot that begins there has pages. False: there is no memory for them."""
        slab, within = divmod(granule, SLAB_GRANULES)
        end = (within + self._slabs.width(granule)) * GRANULE_BYTES
        backed = self._backed[slab]
        if end <= backed:
            return True
        if time.monotonic() < self._retry_s:
            return False
        try:
            os.posix_fallocate(self._file, self._data + slab * SLAB_BYTES + backed, end - backed)
        except OSError:
            self._retry_s = time.monotonic() + RETRY_S
            return False
        self._backed[slab] = end
        return True


def _memfd() -> int:
    """A new file in memory. Raises: OSError."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(MEMFD_NAME, flags | NOT_EXECUTABLE)
    except OSError:  # older than Linux 6.3
        return os.memfd_create(MEMFD_NAME, flags)


class MappedSegment:
    """A segment of another process, or of this one, as it is read."""

    __slots__ = ("bytes", "cells", "data", "file_id", "granules", "path")

    def __init__(self, path: str, file_id: tuple[int, int], memory: mmap.mmap, data: int, granules: int) -> None:
        self.path = path
        self.file_id = file_id  # (device, inode)
        self.data = data
        self.granules = granules
        self.bytes = memoryview(memory)  # not writable
        self.cells = self.bytes[CELLS_AT : CELLS_AT + granules * CELL_BYTES].cast("Q")


class SegmentReader:
    """Reads what processes of this machine have put into their segments."""

    __slots__ = ("_failed", "_mapped")

    def __init__(self) -> None:
        self._mapped: dict[str, MappedSegment] = {}  # {name: segment}, longest open first
        self._failed: dict[str, float] = {}  # {name of a segment that could not be opened: when to try again}

    def read(self, slot: Slot, sizes: Sequence[int]) -> list[memoryview] | None:
        """The tensors of these sizes in the slot, not copied and not writable: right if it `holds` them afterwards.

        None: the segment cannot be opened here, or the slot does not hold that generation, or less than that.
        """
        segment = self._segment(slot.segment)
        if segment is None:
            return None
        granule = _held(segment, slot)
        if granule < 0:
            return None
        size: int = segment.cells[2 * granule + 1]
        if sum(sizes) > size or slot.offset + size > len(segment.bytes):
            return None
        _fence()
        return _cut(segment.bytes, slot.offset, sizes)

    def holds(self, slot: Slot) -> bool:
        """Whether the slot still holds that generation: what was copied out of it before this call is right then."""
        _fence()
        segment = self._segment(slot.segment)
        return segment is not None and _held(segment, slot) >= 0

    def can_open(self, segment: str) -> bool:
        """Whether this segment can be read here."""
        return self._segment(segment) is not None

    def sweep(self) -> None:
        """Segments whose processes have ended are forgotten, so that their memory is free. To be called often."""
        for name, segment in list(self._mapped.items()):
            try:
                found = os.stat(segment.path)
                gone = (found.st_dev, found.st_ino) != segment.file_id
            except OSError:
                gone = True
            if gone:
                del self._mapped[name]  # unmapped when nobody looks at it any more

    def close(self) -> None:
        """All segments are forgotten."""
        self._mapped.clear()
        self._failed.clear()

    def _segment(self, name: str) -> MappedSegment | None:
        segment = self._mapped.get(name)
        if segment is not None:
            return segment
        now = time.monotonic()
        if now < self._failed.get(name, now):
            return None
        self.sweep()
        segment = _open(name)
        if segment is None:
            if len(self._failed) >= FAILURES_MAX:
                self._failed.clear()
            self._failed[name] = now + RETRY_S
            return None
        self._failed.pop(name, None)
        if len(self._mapped) >= MAPPED_MAX:
            del self._mapped[next(iter(self._mapped))]
        self._mapped[name] = segment
        return segment


def _held(segment: MappedSegment, slot: Slot) -> int:
    """The granule at which the slot begins; -1: it does not hold that generation, or cannot be."""
    granule, beside = divmod(slot.offset - segment.data, GRANULE_BYTES)
    if beside or not 0 <= granule < segment.granules or slot.generation <= 0:
        return -1
    return granule if segment.cells[2 * granule] == slot.generation else -1


def _cut(memory: memoryview, at: int, sizes: Sequence[int]) -> list[memoryview]:
    """The tensors that lie one after the other from `at` on."""
    tensors = []
    for size in sizes:
        tensors.append(memory[at : at + size])
        at += size
    return tensors


def _open(name: str) -> MappedSegment | None:
    """Opens the segment of this name; None: there is none, or it may not be read."""
    texts = name.split(".")
    if len(texts) != 3 or not all(text.isascii() and text.isdecimal() and len(text) < 11 for text in texts[:2]):
        return None
    path = f"/proc/{texts[0]}/fd/{texts[1]}"
    seen = file = -1
    try:
        seen = os.open(path, os.O_PATH | os.O_CLOEXEC)  # whatever it is, nothing happens by that
        again = f"/proc/self/fd/{seen}"
        if not os.readlink(again).startswith(f"/memfd:{MEMFD_NAME} "):
            return None
        file = os.open(again, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return _map(path, file, texts[2])
    except (OSError, ValueError, OverflowError, AttributeError):  # another user's, gone, no memory, or not Linux
        return None
    finally:
        for each in (seen, file):
            if each >= 0:
                os.close(each)


def _map(path: str, file: int, secret: str) -> MappedSegment | None:
    """The segment in this file; None: it is not that one, or could be shrunk. Raises: OSError, ValueError."""
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or not fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        return None
    if found.st_size < HEADER.size:
        return None
    memory = mmap.mmap(file, found.st_size, prot=mmap.PROT_READ)
    memory.madvise(mmap.MADV_DONTFORK)
    token, data, granules = HEADER.unpack_from(memory)
    fits = CELLS_AT + granules * CELL_BYTES <= data <= found.st_size
    if token.hex() != secret or not fits:
        return None
    return MappedSegment(path, (found.st_dev, found.st_ino), memory, data, granules)
