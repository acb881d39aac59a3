"""Files that are written as a whole or not at all, and what a person is told when a disk takes nothing."""

import contextlib
import errno
import itertools
import os
import tempfile
from pathlib import Path

from mesh.errors import NotWritten

# what a person does about it, by the reason that the system gives
ADVICE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or raise the quota",
    errno.EFBIG: "raise the limit (ulimit -f)",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.EIO: "the disk fails: see dmesg",
}
# of the disk, not of what it was asked: they may pass, or be mended, without any other setting
DISK_FAULTS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO))
PROBE_BYTES = 1 << 16  # a few blocks: what a small file needs
_numbers = itertools.count(1)


def not_written(file: Path, error: OSError, setting: str = "GEARMESH_DATA_DIR") -> NotWritten:
    """The error that says which file could not be written, why, and what to do; `setting`: names the folder."""
    why = os.strerror(error.errno) if error.errno is not None else str(error)
    mend = ADVICE.get(error.errno or 0, "see what is there")
    return NotWritten(file, why, f"{mend}, or set {setting} to another folder", error.errno)


def disk_fault(folder: Path) -> OSError | None:
    """Why the folder takes no file, or no bytes in one; None: it takes both."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            left = PROBE_BYTES
            while left:  # a disk that is nearly full takes a part, and says nothing
                left -= probe.write(bytes(left))
    except OSError as error:
        return error
    return None


def write_whole(file: Path, content: bytes, *, flushed: bool = False, setting: str = "GEARMESH_DATA_DIR") -> None:
    """The file holds this content; its folder is made if it is not there. Raises: NotWritten.

    If that fails, the file is as it was, and nothing is left beside it. `flushed`: it outlives a crash of the machine.
    """
    temporary = file.with_name(f"{file.name}.{os.getpid()}-{next(_numbers)}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(temporary, content, flushed=flushed)
            os.replace(temporary, file)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise not_written(file, error, setting) from error


def _write(file: Path, content: bytes, *, flushed: bool) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(handle, left) :]
        if flushed:
            os.fsync(handle)
    finally:
        os.close(handle)
