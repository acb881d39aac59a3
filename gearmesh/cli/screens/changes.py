"""What happened between two views of a mesh. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from frontend.admin import counts
from frontend.admin.counts import OutcomeCounts
from frontend.admin.observer import View
from mesh.facts import DeviceState, Snapshot


@dataclass(slots=True)
class Change:
    """What happened between two views. With one view: since the members started.

    Of `requests` the frontends tell, as their clients saw them; of the rest, the controllers.
    """

    seconds: float
    requests: OutcomeCounts
    cold: int = 0
    apart: int = 0  # requests that were executed again apart, or alone, after others' failures
    quarantines: int = 0  # times that a client, or an input, was refused for a while
    failed_s: float = 0.0  # device time of what failed meanwhile
    for_nobody: int = 0  # requests that were computed though nobody waited for them any more
    batches: int = 0
    batched_rows: int = 0
    elements: int = 0  # rows x extents of what was executed, of models with open dimensions
    elements_computed: int = 0  # the same with all padding
    refused: dict[str, int] = field(default_factory=dict)  # {code: requests}, by controllers and frontends
    failed_actions: dict[str, int] = field(default_factory=dict)  # {code: actions}

    def per_s(self, count: float) -> float:
        """The count as a rate per second."""
        return count / self.seconds if self.seconds > 0 else 0.0


def change(before: View | None, after: View) -> Change:
    """The difference of two views. A member that is missing in the first one counts from its start."""
    frontends = before.frontends if before is not None else {}
    seconds = after.at_s - before.at_s if before is not None else _uptime_s(after)
    made = Change(seconds, counts.total(after.frontends, frontends))
    old = before.snapshots if before is not None else {}
    for name, now in after.snapshots.items():
        then = old.get(name)
        for count in ("cold", "batches", "batched_rows", "elements", "elements_computed"):
            setattr(made, count, getattr(made, count) + getattr(now, count) - (getattr(then, count) if then else 0))
        made.apart += _apart(now) - (_apart(then) if then is not None else 0)
        made.quarantines += now.quarantines - (then.quarantines if then is not None else 0)
        made.failed_s += now.failed_s - (then.failed_s if then is not None else 0.0)
        made.for_nobody += _for_nobody(now) - (_for_nobody(then) if then is not None else 0)
        _add(made.refused, now.refused, then.refused if then else {})
        _add(made.failed_actions, now.failed_actions, then.failed_actions if then else {})
    for name, status in after.frontends.items():
        _add(made.refused, status.get("refused", {}), frontends.get(name, {}).get("refused", {}))
    return made


def _apart(snapshot: Snapshot) -> int:
    return snapshot.tried_apart + snapshot.tried_alone


def _for_nobody(snapshot: Snapshot) -> int:
    count: int = getattr(snapshot, "computed_for_nobody", 0)  # controllers that do not count it have no such field
    return count


def _uptime_s(view: View) -> float:
    controllers = [snapshot.uptime_s for snapshot in view.snapshots.values()]
    return max([*controllers, *(status["uptime_s"] for status in view.frontends.values())], default=0.0)


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
