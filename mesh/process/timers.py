"""One alarm on the event loop, accurate to about 0.1 ms.

Event loops round timers to whole milliseconds, and a whole action here may take one; the kernel's timerfd does not
round. Where there is no timerfd (not Linux), the loop's own timer is used.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_NANO = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


def _libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.timerfd_create  # noqa: B018 - raises where there is no timerfd
    except (OSError, AttributeError):
        return None
    return libc


LIBC = _libc()  # None where there is no timerfd


class Alarm:
    """Calls `ring(now)` once, at or after the instant it was last set to. `now` is never before that instant."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[float], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._at: float | None = None
        self._fd = -1
        self._handle: asyncio.TimerHandle | None = None
        self._spec = _Itimerspec()
        if LIBC is not None:
            self._fd = LIBC.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            loop.add_reader(self._fd, self._readable)

    def set(self, at: float | None) -> None:
        """Rings at `at` (seconds of time.monotonic()); replaces the earlier setting. None: never."""
        if at == self._at:
            return
        self._at = at
        if self._fd >= 0:
            self._settime(0.0 if at is None else max(at, 1e-9))
            return
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if at is not None:
            self._handle = self._loop.call_later(max(0.0, at - time.monotonic()), self._due)

    def by(self, at: float | None) -> None:
        """Rings at `at` at the latest; an earlier setting stays, so it may ring sooner. Cheaper than `set`."""
        if at is not None and (self._at is None or at < self._at):
            self.set(at)

    def close(self) -> None:
        """Never rings again."""
        self.set(None)
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _settime(self, at: float) -> None:
        assert LIBC is not None
        seconds, nanos = divmod(int(at * _NANO), _NANO)
        self._spec.it_value.tv_sec, self._spec.it_value.tv_nsec = seconds, nanos
        if LIBC.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _readable(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set again between the expiry and this call
        self._due()

    def _due(self) -> None:
        if self._fd < 0 and self._at is not None and self._at > time.monotonic():
            self._handle = self._loop.call_later(max(0.001, self._at - time.monotonic()), self._due)
            return
        at, self._at = self._at, None
        if at is not None:
            self._ring(max(at, time.monotonic()))
