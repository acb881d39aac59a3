"""What happened between two views of a mesh. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from frontend.admin.observer import View
from mesh.facts import DeviceState


@dataclass(slots=True)
class Change:
    """What happened between two views, over all controllers. With one view: since the controllers started."""

    seconds: float
    in_time: int = 0
    late: int = 0
    cancelled: int = 0
    cold: int = 0
    submitted: int = 0
    batches: int = 0
    batched_rows: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # {code: requests}
    failed_actions: dict[str, int] = field(default_factory=dict)  # {code: actions}

    @property
    def ended(self) -> int:
        """Requests that were answered or refused."""
        return self.in_time + self.late + sum(self.refused.values())

    @property
    def attainment(self) -> float | None:
        """Share of those that were answered in time."""
        return self.in_time / self.ended if self.ended else None

    def per_s(self, count: float) -> float:
        """The count as a rate per second."""
        return count / self.seconds if self.seconds > 0 else 0.0


def change(before: View | None, after: View) -> Change:
    """The difference of two views. A controller that is missing in the first one counts from its start."""
    old = before.snapshots if before is not None else {}
    seconds = after.at_s - before.at_s if before is not None else _uptime_s(after)
    made = Change(seconds)
    for name, now in after.snapshots.items():
        then = old.get(name)
        for count in ("in_time", "late", "cancelled", "cold", "submitted", "batches", "batched_rows"):
            setattr(made, count, getattr(made, count) + getattr(now, count) - (getattr(then, count) if then else 0))
        _add(made.refused, now.refused, then.refused if then else {})
        _add(made.failed_actions, now.failed_actions, then.failed_actions if then else {})
    return made


def _uptime_s(view: View) -> float:
    return max((snapshot.uptime_s for snapshot in view.snapshots.values()), default=0.0)


def _add(totals: dict[str, int], now: Mapping[str, int], then: Mapping[str, int]) -> None:
    for code, count in now.items():
        grown = count - then.get(code, 0)
        if grown:
            totals[code] = totals.get(code, 0) + grown


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """A device now and `seconds` ago; None: since it joined."""

    now: DeviceState
    then: DeviceState | None
    seconds: float

    def per_s(self, count: str) -> float:
        """The growth of a count of the device, per second."""
        grown = getattr(self.now, count) - (getattr(self.then, count) if self.then else 0)
        return float(grown) / self.seconds

    @property
    def exec_share(self) -> float:
        """Share of the time in which EXEC was busy."""
        return self.per_s("exec_busy_s")
