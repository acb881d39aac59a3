"""Makes a worker's timing steadier, as far as the machine allows: interpreter, timers, cores, priority."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Sequence

from mesh.errors import SettingsError

# a busy thread gives up the interpreter this often. Source: the default of 5 ms delays others by 5 ms
SWITCH_INTERVAL_S = 1e-4
TIMER_SLACK_NS = 1000  # how late the kernel may wake this process to save power; the default is 50 us
_PR_SET_TIMERSLACK = 29
REAL_TIME_PRIORITY = 10  # of 1 to 99: above all ordinary processes, below the kernel's own threads


def apply(cores: Sequence[int], real_time: bool) -> dict[str, str]:
    """The calling thread and the threads that it starts keep time as well as they can.

    Returns {setting: what took effect}.

    Real-time priority applies to the calling thread alone; others take it with `inherit_priority`. Raises:
    SettingsError for cores that this process may not use.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return {
        "switch_interval": f"{SWITCH_INTERVAL_S * 1e6:.0f} us",
        "timer_slack": set_timer_slack(),
        "cores": _set_affinity(cores),
        "real_time": _set_priority() if real_time else "off",
    }


def freeze() -> None:
    """The garbage collector never scans the objects that exist now again, so its pauses stay short."""
    gc.collect()
    gc.freeze()


def usable_cores() -> list[int]:
    """Returns the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def may_be_real_time() -> bool:
    """Returns whether a thread here would be given real-time priority; the priority is unchanged afterwards."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    if _set_priority() != "on":
        return False
    # without the flag an unprivileged process may not lower it again
    os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, parameters)
    return True


def inherit_priority() -> Callable[[], None]:
    """Returns a function for a new thread to call, which gives it the current thread's priority.

    Threads do not inherit it.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)

    def take() -> None:
        if policy & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO:
            os.sched_setscheduler(0, policy, parameters)

    return take


def set_timer_slack() -> str:
    """The calling thread and those that it starts are woken on time. Returns the timer slack in words."""
    result = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0)
    return f"{TIMER_SLACK_NS} ns" if result == 0 else f"as it was ({os.strerror(ctypes.get_errno())})"


def _set_affinity(cores: Sequence[int]) -> str:
    usable = usable_cores()
    if not cores:
        return f"any of {len(usable)}"
    wrong = sorted(set(cores) - set(usable))
    if wrong:
        raise SettingsError([f"cores={','.join(map(str, cores))}: this process may use {usable}, not {wrong}"])
    os.sched_setaffinity(0, cores)
    return ",".join(map(str, cores))


def _set_priority() -> str:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(REAL_TIME_PRIORITY))
    except OSError as error:
        return f"not allowed ({error.strerror})"
    return "on"
