"""A disk that takes nothing below a folder: calls of the system fail there as they do on a full or read-only one."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CALLS = ("mkdir", "open", "write", "replace")  # what may fail
FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def refuse(monkeypatch: pytest.MonkeyPatch, folder: Path, call: str, number: int) -> None:
    """This call of the system fails from now on with this error below the folder; opening to read does not."""
    usual: Callable[..., Any] = getattr(os, call)

    def refused(what: Any, *more: Any, **named: Any) -> Any:
        path = Path(os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fsdecode(what))
        reads = call == "open" and not more[0] & WRITES
        known = call == "mkdir" and path.exists()
        if path.is_relative_to(folder) and not reads and not known:
            raise OSError(number, os.strerror(number), None if isinstance(what, int) else str(what))
        return usual(what, *more, **named)

    monkeypatch.setattr(os, call, refused)


def contents(folder: Path) -> dict[str, bytes]:
    """{path: bytes} of all files below the folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
