"""When a device is given up: a thread has waited for it for too long. Pure: takes what threads are seen at, and `now`.

A GPU that hangs says nothing: whoever waits for it waits for ever, inside the driver. So somebody else looks at them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

PREPARE = "prepare"  # the thread that prepares versions


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a device may take. Generous: giving up one that would have gone on ends all that is served there."""

    least_s: float = 10.0  # for anything that was issued, or to issue it
    times: float = 20.0  # as long as was expected, if that is more
    preparing_s: float = 60.0  # in place of `least_s` while a version is prepared: pinning and trials hold others up
    prepare_s: float = 600.0  # for a version: choosing kernels and capturing every size takes tens of seconds
    prepare_bytes_per_s: float = 10e6  # and so much longer for its weights, which come from a disk
    look_s: float = 1.0  # between two looks


@dataclass(frozen=True, slots=True)
class Wait:
    """One thread at work, as it was seen."""

    thread: str
    turn: int  # its works, counted: the same turn is the same work
    what: str
    expected_s: float = 0.0  # of PREPARE: more than others, for the size of its weights


@dataclass(slots=True)
class Watchdog:
    """Looks at the threads of one device, again and again.

    Time counts as far as it is looked on: a process that was stopped, or a machine that slept, is no device that hangs.
    """

    patience: Patience = field(default_factory=Patience)
    _seen_s: float = 0.0  # time that was looked on so far
    _looked_s: float | None = None  # `now` of the last look
    _since: dict[str, tuple[int, float]] = field(default_factory=dict)  # {thread at work: (turn, when first seen)}

    def look(self, waits: Sequence[Wait], *, ended: Sequence[str] = (), now: float) -> str:
        """Why the device is given up; "" as long as it is not. `ended`: threads that should run, and do not."""
        if self._looked_s is not None:
            self._seen_s += min(now - self._looked_s, 2 * self.patience.look_s)
        self._looked_s = now
        preparing = any(wait.thread == PREPARE for wait in waits)
        before, self._since = self._since, {}
        for wait in waits:
            turn, since_s = before.get(wait.thread, (wait.turn, self._seen_s))
            self._since[wait.thread] = wait.turn, since_s if turn == wait.turn else self._seen_s
        for wait in waits:
            waited_s, limit_s = self._seen_s - self._since[wait.thread][1], self.limit_s(wait, preparing)
            if waited_s > limit_s:
                return f"{wait.what} has not ended after {waited_s:.0f} s, which is beyond its limit of {limit_s:.0f} s"
        return f"thread {ended[0]} of the device has ended" if ended else ""

    def limit_s(self, wait: Wait, preparing: bool) -> float:
        """How long this may take."""
        patience = self.patience
        if wait.thread == PREPARE:
            return patience.prepare_s + wait.expected_s
        least_s = patience.preparing_s if preparing else patience.least_s
        return max(least_s, patience.times * wait.expected_s)
