"""A process that has been started ahead, has imported what it will need, and waits for the order to begin.

Whoever starts it opens a StandbyLink and gives the process its `environment` and `descriptors`. The process takes its
end with `take_standby`, says that it is ready, and waits. It ends when the link ends without an order: nobody will ever
give one. A process that was started in no such way has no such end, and begins at once. Needs the standard library
alone.
"""

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable, MutableMapping

STANDBY_FD = "GEARMESH_STANDBY_FD"  # variable with the number of the process's descriptor
READY, ORDER = b"\1", b"\2"
NICENESS = 10  # more, of the thread that imports: those that serve go first, and it still gets on beside busy ones


class StandbyLink:
    """The starter's end, which does not block."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.ours.setblocking(False)
        self._theirs: socket.socket | None = theirs
        self.environment = {STANDBY_FD: str(theirs.fileno())}  # tells the process the number of its descriptor
        self.descriptors = (theirs.fileno(),)  # which the process has to inherit, under the same numbers

    def handed_over(self) -> None:
        """The process has been started: only it holds its end from now on."""
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None

    def order(self) -> bool:
        """The process is told to begin. Returns False if it is gone."""
        try:
            return self.ours.send(ORDER) == len(ORDER)
        except OSError:
            return False

    def close(self) -> None:
        """The process ends if it has no order yet. Closing again is harmless."""
        self.handed_over()
        self.ours.close()


class Standby:
    """The end of the process that was started ahead."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def wait(self, preload: Callable[[], None] | None) -> None:
        """Runs `preload` on a thread of low priority, says that the process is ready, and returns with the order.

        Threads that `preload` starts keep the low priority. Without an order, the process ends here. What `preload`
        raises is nobody's concern yet: what cannot be imported fails again, and says so, when the process begins.
        """
        if preload is not None:
            importing = threading.Thread(target=_preload, args=(preload,), name="preload")
            importing.start()
            importing.join()
        with self._link:
            try:
                self._link.sendall(READY)
                ordered = self._link.recv(1) == ORDER
            except OSError:
                ordered = False
        if not ordered:
            os._exit(0)  # nothing was begun that would have to be ended


def _preload(preload: Callable[[], None]) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not Linux, where each thread has its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    with contextlib.suppress(Exception, SystemExit):
        preload()


def take_standby(environment: MutableMapping[str, str]) -> Standby | None:
    """The end that `environment` names; None: the process is to begin at once.

    The variable is gone from it, and child processes do not inherit the socket. A variable that names no socket was
    inherited by mistake, and is ignored.
    """
    named = environment.pop(STANDBY_FD, "")
    try:
        descriptor = int(named)
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        os.set_inheritable(descriptor, False)
        return Standby(socket.socket(fileno=descriptor))
    except (ValueError, OverflowError, OSError):
        return None
