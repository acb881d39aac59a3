"""When one lane comes free, from what was sent to it and what came back. Pure.

Source of the constants: docs/design/policy.md, "Forecast".
"""

import math
from dataclasses import dataclass, field

OVERDUE_SHARE = 0.1  # an action past its expected end is expected to take another tenth of what it took so far
OVERDUE_S_MIN = 50e-6


class Pending:
    """An action that was sent and has not ended."""

    __slots__ = ("expected_s", "not_before_s", "opens_s")

    def __init__(self, not_before_s: float, expected_s: float, opens_s: float) -> None:
        self.not_before_s = not_before_s  # it can start no earlier: it has to be delivered first
        self.expected_s = expected_s  # duration
        self.opens_s = opens_s  # until then its inputs are fetched, and what is sent meanwhile goes before; 0: none are


@dataclass(slots=True)
class LaneForecast:
    """The actions of one lane, which run one at a time in the order in which they were sent.

    One whose inputs have to be fetched first is passed by those that are sent before its window opens.
    """

    free_s: float = 0.0  # end of the last action that has ended
    pending: dict[int, Pending] = field(default_factory=dict)  # {action: ...}, in order of sending
    fetched: int = 0  # of these, how many had, or have, inputs to fetch
    _asked_s: float = math.nan  # the last `now` for which `free_at` was asked, if nothing has changed since
    _answer_s: float = 0.0

    def add(self, action: int, expected_s: float, not_before_s: float, now: float, opens_s: float = 0.0) -> float:
        """An action is sent, whose inputs are fetched until `opens_s`; 0: it has none. Returns when it should end."""
        start_s = max(self._free_at(now, opens_s or now), not_before_s)
        self.pending[action] = Pending(not_before_s, expected_s, opens_s)
        self._asked_s = math.nan
        if opens_s:
            self.fetched += 1
        return start_s + expected_s

    def ended(self, action: int, end_s: float) -> None:
        """The action ended at `end_s`; one that was refused ended when its report came."""
        pending = self.pending.pop(action, None)
        if pending is not None:
            self._asked_s = math.nan
            self.free_s = max(self.free_s, end_s)
            if pending.opens_s:
                self.fetched -= 1

    def free_at(self, now: float) -> float:
        """When what is sent now can start: everything sent so far that it does not pass is expected to have ended.

        Not before `now`.
        """
        if now != self._asked_s:
            self._asked_s, self._answer_s = now, self._free_at(now, now)
        return self._answer_s

    def _free_at(self, now: float, opens_s: float) -> float:
        """The same for an action whose inputs are there at `opens_s`."""
        at, first = self.free_s, True
        for pending in self.pending.values():
            if pending.opens_s > opens_s:
                continue
            begin_s = max(at, pending.not_before_s)
            at = begin_s + pending.expected_s
            if first:
                first = False
                if at < now:
                    at = now + max(OVERDUE_S_MIN, OVERDUE_SHARE * (now - begin_s))
        return at if at > now else now

    def ready(self, now: float) -> int:
        """Actions that were sent and have not ended, without those whose inputs are still being fetched."""
        if not self.fetched:
            return len(self.pending)
        return sum(pending.opens_s <= now for pending in self.pending.values())

    def end_of(self, action: int, now: float) -> float:
        """When this action is expected to end. Raises: KeyError."""
        at = self.free_s
        for number, pending in self.pending.items():
            begin_s = max(at, pending.not_before_s)
            at = begin_s + pending.expected_s
            if at < now:
                at = now + max(OVERDUE_S_MIN, OVERDUE_SHARE * (now - begin_s))
            if number == action:
                return at
        raise KeyError(action)

    def __len__(self) -> int:
        return len(self.pending)
