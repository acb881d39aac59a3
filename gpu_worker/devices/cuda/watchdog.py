"""Decides when a device is given up because a thread has waited for it too long. Pure: takes observations and `now`.

A GPU that hangs reports nothing: whoever waits for it waits forever inside the driver. So another thread observes the
waiting ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

PREPARE = "prepare"  # the thread that prepares versions


@dataclass(frozen=True, slots=True)
class HangLimits:
    """How long a device may take.

    Limits are generous: giving up a device that would recover ends everything served there.
    """

    least_s: float = 10.0  # for any issued work, or for issuing it
    times: float = 20.0  # times the expected duration, if that is more
    preparing_s: float = 60.0  # in place of `least_s` while a version is prepared: pinning and checks delay others
    prepare_s: float = 600.0  # to prepare a version: choosing kernels and capturing every size takes tens of seconds
    prepare_bytes_per_s: float = 10e6  # added to `prepare_s` at this rate for the weights, which come from a disk
    look_s: float = 1.0  # between two observations


@dataclass(frozen=True, slots=True)
class ObservedWork:
    """One thread at work, as it was observed."""

    thread: str
    turn: int  # number of its work: the same turn is the same work
    what: str
    expected_s: float = 0.0  # for PREPARE: added to the limit, for the size of its weights


@dataclass(slots=True)
class Watchdog:
    """Observes the threads of one device, again and again.

    Only observed time counts: a process that was stopped, or a machine that slept, is not a hanging device.
    """

    limits: HangLimits = field(default_factory=HangLimits)
    _seen_s: float = 0.0  # observed time so far
    _looked_s: float | None = None  # `now` of the last observation
    # {thread at work: (turn, observed time when first seen)}
    _since: dict[str, tuple[int, float]] = field(default_factory=dict)

    def look(self, works: Sequence[ObservedWork], *, ended: Sequence[str] = (), now: float) -> str:
        """Returns why the device is given up; "" if it is not. `ended`: threads that should run and do not."""
        if self._looked_s is not None:
            self._seen_s += min(now - self._looked_s, 2 * self.limits.look_s)
        self._looked_s = now
        preparing = any(work.thread == PREPARE for work in works)
        before, self._since = self._since, {}
        for work in works:
            turn, since_s = before.get(work.thread, (work.turn, self._seen_s))
            self._since[work.thread] = work.turn, since_s if turn == work.turn else self._seen_s
        for work in works:
            waited_s, limit_s = self._seen_s - self._since[work.thread][1], self.limit_s(work, preparing)
            if waited_s > limit_s:
                return f"{work.what} has not ended after {waited_s:.0f} s, which is beyond its limit of {limit_s:.0f} s"
        return f"thread {ended[0]} of the device has ended" if ended else ""

    def limit_s(self, work: ObservedWork, preparing: bool) -> float:
        """Returns how long this may take, in seconds."""
        limits = self.limits
        if work.thread == PREPARE:
            return limits.prepare_s + work.expected_s
        least_s = limits.preparing_s if preparing else limits.least_s
        return max(least_s, limits.times * work.expected_s)
