"""How clients' requests ended, over all frontends: the numbers that status, top, the page and programs show. Pure.

offered     all requests that have ended but those that their own clients cancelled: these were neither kept nor broken
attainment  those answered ok by their deadlines / offered
goodput     the former, per second
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

Told = Mapping[str, Any]  # a tally as a frontend tells it, or its whole status
UNTOLD: Told = {"total": {}, "models": {}, "busiest": {}, "other_models": {}, "applications": {}}  # by older frontends


@dataclass(slots=True)
class OutcomeCounts:
    """Requests that have ended, by outcome."""

    offered: int = 0
    ok: int = 0
    rejected: int = 0
    timed_out: int = 0
    failed: int = 0
    invalid: int = 0
    cancelled: int = 0
    in_time: int = 0  # of the ok ones
    late: int = 0  # of the ok ones
    cached: int = 0  # of the ok ones

    @property
    def attainment(self) -> float | None:
        """Share of the offered ones that were answered in time; None if there were none."""
        return self.in_time / self.offered if self.offered else None

    @property
    def refused(self) -> int:
        """Those that were told at once, or later, that they get no answer; time-outs are apart."""
        return self.rejected + self.failed + self.invalid

    def add(self, now: Told, then: Told | None = None) -> None:
        """What a tally has grown by since an earlier one is added; all of it, if there is none."""
        for one in fields(self):
            name = one.name
            setattr(self, name, getattr(self, name) + now.get(name, 0) - (then.get(name, 0) if then else 0))

    def told(self) -> dict[str, Any]:
        """As a map, with the attainment."""
        return {**{one.name: getattr(self, one.name) for one in fields(self)}, "attainment": self.attainment}


def total(now: Mapping[str, Told], then: Mapping[str, Told] | None = None) -> OutcomeCounts:
    """All requests, or those that ended between two looks. `now`, `then`: {frontend: its status}.

    A frontend that is missing in one of the looks counts from its start, or not at all.
    """
    return _sum(now, then, lambda outcomes: outcomes["total"])


def of_model(name: str, now: Mapping[str, Told], then: Mapping[str, Told] | None = None) -> OutcomeCounts | None:
    """The same of one model; None if no frontend tells it apart from others that were asked."""
    told = [_outcomes(status) for status in now.values()]
    if not any(_model(outcomes, name) for outcomes in told):
        if any(any(outcomes["other_models"].get(count) for count in ("offered", "cancelled")) for outcomes in told):
            return None
        return OutcomeCounts()
    return _sum(now, then, lambda outcomes: _model(outcomes, name) or {})


def describe(frontends: Mapping[str, Told]) -> dict[str, Any]:
    """For programs: everything, each model and each application, over all frontends."""
    models, applications = (
        {name: _named(frontends, kind, name) for name in _names(frontends, kind)} for kind in ("models", "applications")
    )
    return {"total": total(frontends).told(), "models": models, "applications": applications}


def _sum(now: Mapping[str, Told], then: Mapping[str, Told] | None, pick: Any) -> OutcomeCounts:
    found = OutcomeCounts()
    for frontend, status in now.items():
        was = (then or {}).get(frontend)
        found.add(pick(_outcomes(status)), pick(_outcomes(was)) if was is not None else None)
    return found


def _outcomes(status: Told) -> Told:
    told: Told = status.get("outcomes", UNTOLD)
    return told


def _model(outcomes: Told, name: str) -> Told | None:
    found: Told | None = outcomes["models"].get(name) or outcomes["busiest"].get(name)
    return found


def _names(frontends: Mapping[str, Told], kind: str) -> Iterable[str]:
    return sorted({name for status in frontends.values() for name in _outcomes(status)[kind]})


def _named(frontends: Mapping[str, Told], kind: str, name: str) -> dict[str, Any]:
    return _sum(frontends, None, lambda outcomes: outcomes[kind].get(name, {})).told()
