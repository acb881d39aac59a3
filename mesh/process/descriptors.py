"""How many files and connections this process may have open, and what is said when there are no more."""

import contextlib
import resource
import time
from typing import Any

UNLIMITED = 1 << 30  # in place of no limit
KEPT = 64  # for what is no client: links to the mesh, files, threads' wake-ups
CLIENTS_MIN = 16  # taken whatever the limit is
TOLD_S = 5.0  # between two lines that say so
ADVICE = "raise it: `ulimit -n`, or LimitNOFILE= of systemd"


def limit() -> int:
    """The most descriptors that this process can have open (the soft limit)."""
    return _count(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def limit_max() -> int:
    """What it may raise its limit to by itself (the hard limit)."""
    return _count(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def raise_limit() -> None:
    """The limit is as high as this process may set it.

    A service has a descriptor for each client. The usual soft limit of 1024 is there for programs that use select().
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # a system that allows less than it says: the soft limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def clients_max(most: int) -> int:
    """How many clients may be connected under this limit."""
    return max(CLIENTS_MIN, most - KEPT)


def _count(value: int) -> int:
    return UNLIMITED if value == resource.RLIM_INFINITY else value


class Shortage:
    """Counts the clients that found no descriptor left, and says so in the log, once in TOLD_S."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._told_s = float("-inf")
        self.clients_max = clients_max(limit())
        self.refused = 0  # connections that were closed as soon as they came

    def tell(self, why: str, clients: int) -> None:
        """It is logged, with what to do about it."""
        now = time.monotonic()
        if now - self._told_s >= TOLD_S:
            self._told_s = now
            self._log.error(
                "descriptors_exhausted", why=why, limit=limit(), clients=clients, refused=self.refused, advice=ADVICE
            )
