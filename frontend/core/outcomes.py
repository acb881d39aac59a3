"""How the requests of one frontend ended, as their clients saw it: counted here, where it is decided, and once. Pure.

Every request for an answer is counted under the model or the application that it named, or under neither if no such
thing is deployed. What applications ask of models is no client's request, and is counted apart.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import nlargest
from typing import Any

from frontend.core import protocol
from frontend.core.open_calls import Call
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode, RequestOutcome
from mesh.histograms import SECONDS, Histogram
from mesh.tallies import NamedTallies

BUSIEST_MAX = 100  # deployed models without a label that are told of
OK, CANCELLED = str(AnswerStatus.OK), str(RequestOutcome.CANCELLED)
OUTCOMES = (*map(str, AnswerStatus), CANCELLED)  # of a client's request: the status of its answer, or cancelled


def outcome_of(status: str, code: str) -> str:
    """The outcome of a request that was answered so; a status of a newer mesh counts as failed."""
    if code == ErrorCode.CANCELLED:
        return CANCELLED
    return status if status in OUTCOMES else str(AnswerStatus.FAILED)


class OutcomeTally:
    """Requests that have ended, since the frontend started."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = dict.fromkeys(OUTCOMES, 0)  # {outcome: requests}
        self.in_time = 0  # of the ok ones: by the deadline
        self.cold = 0  # of the ok ones: the model was on no device when it arrived
        self.cached = 0  # of the ok ones: answered from the prediction cache
        self.latency_s = Histogram(SECONDS)  # of the ok ones, from receipt to answer

    def merge(self, other: "OutcomeTally") -> None:
        """The other's requests are counted here, too."""
        for outcome, count in other.counts.items():
            self.counts[outcome] += count
        self.in_time += other.in_time
        self.cold += other.cold
        self.cached += other.cached
        self.latency_s.merge(other.latency_s)

    def served(self, latency_s: float, in_time: bool, cached: bool, cold: bool) -> None:
        """A request ended ok, so long after its receipt."""
        self.counts[OK] += 1
        self.in_time += in_time
        self.cached += cached
        self.cold += cold
        self.latency_s.add(latency_s)

    @property
    def asked(self) -> bool:
        """Whether anything is counted."""
        return any(self.counts.values())

    def told(self, *, latencies: bool = True) -> dict[str, Any]:
        """For `status`. `offered`: all but the cancelled ones; `late`: ok after the deadline."""
        told: dict[str, Any] = {
            "offered": sum(self.counts.values()) - self.counts[CANCELLED],
            **self.counts,
            "in_time": self.in_time,
            "late": self.counts[OK] - self.in_time,
            "cold": self.cold,
            "cached": self.cached,
        }
        if latencies:
            told["latency_s"] = {"counts": self.latency_s.counts, "sum": self.latency_s.sum}
        return told


class Outcomes:
    """All of one frontend."""

    def __init__(self) -> None:
        self._models: NamedTallies[OutcomeTally] = NamedTallies(OutcomeTally)
        self._applications: NamedTallies[OutcomeTally] = NamedTallies(OutcomeTally)
        self._asks: NamedTallies[OutcomeTally] = NamedTallies(OutcomeTally)  # by model
        self._by_ref: dict[str, Sequence[OutcomeTally]] = {}  # {version: its}, since the last table
        self._brief: dict[str, OutcomeTally] = {}  # {deployed model without a label: its own part}
        self._unknown = OutcomeTally()  # nothing that is deployed was named
        self._unlogged: Counter[str] = Counter()  # {outcome: requests and asks of models in nobody's log}

    def table_changed(self, table: wire.Table) -> None:
        """What is deployed by this table has tallies of its own."""
        self._models.deploy(model.name for model in table.models)
        self._asks.deploy(model.name for model in table.models)
        self._applications.deploy(app.name for app in table.apps)
        self._by_ref.clear()
        self._brief = {name: tally for name, tally in self._brief.items() if self._models.deployed(name)}

    # -- endings ------------------------------------------------------------------------------------------------------

    def served(self, call: Call, now: float, *, cached: bool, cold: bool) -> bool:
        """The call ended with outputs. Returns whether that was by its deadline."""
        in_time = now <= call.deadline_s
        for tally in self._of(call):
            tally.served(now - call.received_s, in_time, cached, cold)
        if not call.parts or call.parts[0].attempt < 0:  # call.submitted, quicker
            self._unlogged[OK] += 1
        return in_time

    def ended(self, call: Call, status: str, code: str) -> None:
        """The call ended without outputs."""
        outcome = outcome_of(status, code)
        for tally in self._of(call):
            tally.counts[outcome] += 1
        if not call.submitted:
            self._unlogged[outcome] += 1

    def abandoned(self, call: Call) -> None:
        """The call ended because its client has gone: nobody is answered."""
        self.ended(call, CANCELLED, ErrorCode.CANCELLED)

    def refused(
        self, request: protocol.InferRequest | protocol.Brief | None, status: str, code: str = "", count: int = 1
    ) -> None:
        """Requests ended before they became calls. None: they could not be read."""
        outcome = outcome_of(status, code)
        tallies: Sequence[OutcomeTally] = (self._unknown,)
        if request is not None and request.app is None and self._models.deployed(request.model or ""):
            tallies = self._of_model(request.model or "")
        if request is not None and request.app is not None and self._applications.deployed(request.app):
            tallies = (self._applications.of(request.app),)
        else:
            self._unlogged[outcome] += count
        for tally in tallies:
            tally.counts[outcome] += count

    def application(self, answer: protocol.ClientAnswer, received_s: float, deadline_s: float, now: float) -> None:
        """An application gave this answer."""
        tally = self._applications.of(answer.app or "")
        if answer.status != OK:
            tally.counts[outcome_of(answer.status, answer.error.code if answer.error is not None else "")] += 1
            return
        tally.served(now - received_s, now <= deadline_s, bool(answer.cached), cold=False)

    def _of(self, call: Call) -> Sequence[OutcomeTally]:
        """The tallies in which the call's end is counted."""
        if call.ask is not None:
            return (self._asks.of(call.ref.rpartition(":")[0]),)
        found = self._by_ref.get(call.ref)
        return found if found is not None else self._of_ref(call.ref)

    def _of_ref(self, ref: str) -> Sequence[OutcomeTally]:
        """Looks them up, and keeps them for the next call of a deployed model."""
        name = ref.rpartition(":")[0]
        found = self._of_model(name)
        if self._models.deployed(name):
            self._by_ref[ref] = found
        return found

    def _of_model(self, name: str) -> Sequence[OutcomeTally]:
        tally = self._models.of(name)
        if tally is not self._models.rest or not self._models.deployed(name):
            return (tally,)
        brief = self._brief.get(name)
        if brief is None:
            brief = self._brief[name] = OutcomeTally()
        return (tally, brief)

    # -- for operators ------------------------------------------------------------------------------------------------

    def told(self) -> Mapping[str, Any]:
        """For `status`. Models and applications that were never asked are not in it."""
        total = self._models.total()
        total.merge(self._applications.total())
        total.merge(self._unknown)
        return {
            "bounds_s": SECONDS,
            "total": total.told(),
            "models": _labelled(self._models),
            "other_models": self._models.rest.told(),
            "busiest": self._busiest(),
            "applications": _labelled(self._applications),
            "other_applications": self._applications.rest.told(),
            "unknown": self._unknown.told(latencies=False),
            "asks": _labelled(self._asks),
            "other_asks": self._asks.rest.told(),
            "unlogged": dict(self._unlogged),
        }

    def _busiest(self) -> dict[str, Any]:
        """Deployed models without a label, those with most requests; they are counted in `other_models`, too."""
        found = nlargest(BUSIEST_MAX, self._brief, key=lambda name: sum(self._brief[name].counts.values()))
        return {name: self._brief[name].told(latencies=False) for name in found}


def _labelled(tallies: NamedTallies[OutcomeTally]) -> dict[str, Any]:
    return {name: tally.told() for name, tally in tallies.labels.items() if tally.asked}
