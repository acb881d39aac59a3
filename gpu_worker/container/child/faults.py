"""What may be wrong with user code, and whether it may be otherwise another time."""

from __future__ import annotations

import errno
import socket

PASSING = frozenset((
    errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE,
    errno.EBUSY, errno.EINTR, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH,
))  # fmt: skip


class CannotServe(Exception):
    """The operator has to name or declare something else; `str()` is a sentence that says what."""


class WrongOutput(Exception):
    """The function returned something other than promised; `str()` says what is expected."""


class WrongInput(Exception):
    """The inputs of a batch cannot be read."""


class SourceChanged(Exception):
    """The source changed during the import, so the imported code may differ from the source as it is now."""


def may_pass(error: BaseException) -> bool:
    """Returns whether the same code may be imported another time: memory, descriptors, a disk or a network were out."""
    reason = getattr(error, "reason", None)  # urllib's error holds the system's
    if isinstance(reason, OSError):
        return may_pass(reason)
    kinds = (MemoryError, ConnectionError, TimeoutError, SourceChanged)
    if isinstance(error, kinds) or type(error).__name__ == "OutOfMemoryError":  # the latter: torch's
        return True
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return isinstance(error, OSError) and error.errno in PASSING


def describe(raised: BaseException) -> str:
    """Returns type and message of the exception, even if the message cannot be made."""
    try:
        text = str(raised)
    except Exception:
        text = "(its message cannot be made)"
    return f"{type(raised).__name__}: {text}"[:1000]
