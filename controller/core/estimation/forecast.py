"""When one lane comes free, from what was sent to it and what came back. Pure.

Source of the constants: docs/design/policy.md, "Forecast".
"""

from dataclasses import dataclass, field

OVERDUE_SHARE = 0.1  # an action past its expected end is expected to take another tenth of what it took so far
OVERDUE_S_MIN = 50e-6


@dataclass(slots=True)
class Pending:
    """An action that was sent and has not ended."""

    not_before_s: float  # it can start no earlier: it has to be delivered first
    expected_s: float  # duration


@dataclass(slots=True)
class LaneForecast:
    """The actions of one lane, which run one at a time in the order in which they were sent."""

    free_s: float = 0.0  # end of the last action that has ended
    pending: dict[int, Pending] = field(default_factory=dict)  # {action: ...}, in order of sending

    def add(self, action: int, expected_s: float, not_before_s: float, now: float) -> float:
        """An action is sent. Returns when it is expected to end."""
        start_s = max(self.free_at(now), not_before_s)
        self.pending[action] = Pending(not_before_s, expected_s)
        return start_s + expected_s

    def ended(self, action: int, end_s: float) -> None:
        """The action ended at `end_s`; one that was refused ended when its report came."""
        if self.pending.pop(action, None) is not None:
            self.free_s = max(self.free_s, end_s)

    def free_at(self, now: float) -> float:
        """When everything sent so far is expected to have ended; not before `now`."""
        at = self.free_s
        for i, pending in enumerate(self.pending.values()):
            begin_s = max(at, pending.not_before_s)
            at = begin_s + pending.expected_s
            if i == 0 and at < now:
                at = now + max(OVERDUE_S_MIN, OVERDUE_SHARE * (now - begin_s))
        return at if at > now else now

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
