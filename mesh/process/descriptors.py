"""How many files and connections this process may have open, and what is said when there are no more."""

import contextlib
import resource

UNLIMITED = 1 << 30  # in place of no limit
ADVICE = "raise it: `ulimit -n`, or LimitNOFILE= of systemd"


def limit() -> int:
    """The most descriptors that this process can have open (the soft limit)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _count(soft)


def limit_max() -> int:
    """What it may raise its limit to by itself (the hard limit)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _count(hard)


def raise_limit() -> int:
    """The limit is as high as this process may set it. Returns it.

    A service has a descriptor for each client; the usual soft limit of 1024 is there for programs that use select().
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a system that allows less than it says: the soft limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return limit()


def _count(value: int) -> int:
    return UNLIMITED if value == resource.RLIM_INFINITY else value
