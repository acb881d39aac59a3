"""A process tells whoever started it that it serves: one byte through a pipe that it inherits.

The starter opens a ReadyPipe, gives the process its `environment` and `descriptors`, and is called back. The process
takes its end with `take_ready_signal` and writes once it serves. A process that nobody waits for has no such end.
"""

import asyncio
import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, MutableMapping
from typing import Self

from mesh.process.configuration import READY_FD

STANDARD_MAX = 2  # standard input, output and error are never a ready pipe


class ReadyPipe:
    """The starter's end. `ready` is called on the loop, once, when the process says that it serves.

    A process that ends without a word, or closes its end, is not ready: `ready` is not called.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        self._loop, self._ready = loop, ready
        self._ours = self._theirs = -1  # descriptors; -1: closed

    def open(self) -> Self:
        """The pipe is there, for a process that is about to be started."""
        self._ours, self._theirs = os.pipe()
        self._loop.add_reader(self._ours, self._readable)
        return self

    @property
    def environment(self) -> dict[str, str]:
        """The variable that tells the process the number of its descriptor."""
        return {READY_FD: str(self._theirs)}

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that the process has to inherit, under the same numbers."""
        return (self._theirs,)

    def handed_over(self) -> None:
        """The process has been started: only it holds its end from now on."""
        os.close(self._theirs)
        self._theirs = -1

    def _readable(self) -> None:
        said = os.read(self._ours, 1)
        self._close_ours()
        if said:
            self._ready()

    def _close_ours(self) -> None:
        if self._ours >= 0:
            self._loop.remove_reader(self._ours)
            os.close(self._ours)
            self._ours = -1

    def close(self) -> None:
        """The process is not waited for any more. Closing again is harmless."""
        self._close_ours()
        if self._theirs >= 0:
            self.handed_over()


class ReadySignal:
    """The end of the process that was started. `descriptor`: its end of the pipe; None: nobody waits."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def give(self) -> None:
        """Whoever started the process knows that it serves. Only the first call does anything."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with contextlib.suppress(OSError):  # whoever waited does not any more
            os.write(descriptor, b"\1")
        os.close(descriptor)


def take_ready_signal(environment: MutableMapping[str, str]) -> ReadySignal:
    """The signal that `environment` names. The variable is gone from it, and child processes do not inherit the pipe.

    A variable that names no pipe that this process can write to, or a standard stream, is ignored: it was inherited by
    mistake.
    """
    named = environment.pop(READY_FD, "")
    try:
        descriptor = int(named)
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        can_write = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
        if not (is_pipe and can_write) or descriptor <= STANDARD_MAX:
            return ReadySignal(None)
        os.set_inheritable(descriptor, False)
    except (ValueError, OverflowError, OSError):
        return ReadySignal(None)
    return ReadySignal(descriptor)
