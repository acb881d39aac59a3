"""Opens files of packages: plain files alone, and no more of them than a bound.

A link could lead to a file that the package's author may not read; a pipe would keep its reader waiting for ever.
"""

import errno
import os
import stat
from io import FileIO
from pathlib import Path

from mesh.codes import PackageCode

READS_MAX = 1 << 30  # bytes of one read(); the kernel gives no more than 2 GiB at once


class Faults(list[str]):
    """What is wrong with a package, one sentence each; `code` is the worst of their kinds."""

    code = PackageCode.BAD_PACKAGE

    def unsafe(self, fault: str) -> None:
        """Appends a fault of the kind that could harm whoever reads the package."""
        self.append(fault)
        self.code = PackageCode.UNSAFE_PACKAGE

    def unread(self, name: str, error: OSError) -> None:
        """Appends that the file of this name cannot be read."""
        told = f"{name}: {error.strerror}"
        if isinstance(error, NotPlain):
            self.unsafe(told)
        else:
            self.append(told)


class NotPlain(OSError):
    """The file is a link, a pipe, a device or a socket, or longer than any such file may be."""


class CutShort(OSError):
    """The file ends before what is read of it."""


def open_plain(file: Path) -> FileIO:
    """Returns the file, opened for reading. It is a plain file, not a link to one; nothing waits.

    Raises: NotPlain, other OSError.
    """
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            why = f"is a link, and a package holds the files themselves ({os.strerror(errno.ELOOP)})"
            raise NotPlain(errno.ELOOP, why, str(file)) from None
        if error.errno == errno.ENXIO:  # a socket
            raise NotPlain(errno.ENXIO, NOT_PLAIN, str(file)) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotPlain(errno.EINVAL, NOT_PLAIN, str(file))
    return FileIO(fd, "r")


def read_plain(file: Path, bytes_max: int) -> bytes:
    """Returns what the file holds. Raises: NotPlain, also if that is more than `bytes_max`; other OSError."""
    with open_plain(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > bytes_max:
            raise NotPlain(errno.EFBIG, f"has {size} bytes; at most {bytes_max} are read", str(file))
        return read_exactly(opened, 0, size)


def read_exactly(opened: FileIO, start: int, size: int) -> bytes:
    """Returns `size` bytes from `start` on. Raises: CutShort if there are fewer; OSError."""
    found = bytearray(size)
    fill(opened.fileno(), memoryview(found), start)
    return bytes(found)


def fill(fd: int, target: memoryview, start: int) -> None:
    """`target` holds the file's bytes from `start` on. Raises: CutShort if there are fewer; OSError."""
    while target:
        count = os.preadv(fd, [target[:READS_MAX]], start)
        if count == 0:
            raise CutShort(errno.EIO, "is cut short")
        target, start = target[count:], start + count


NOT_PLAIN = "is no plain file (a pipe, a device, a socket or a folder), and is not read"
