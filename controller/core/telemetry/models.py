"""What became of models' requests and actions: counts of each version, and what metrics tell of each label. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mesh.facts import LabelRecord
from mesh.histograms import RATIO, SECONDS, SLACK_S, Histogram
from mesh.tallies import OTHER, NamedTallies
from mesh.wire import split_ref

BOUNDS = {  # {field of a LabelRecord: bounds of its distribution}
    "queue_s": SECONDS,
    "exec_s": SECONDS,
    "slack_s": SLACK_S,
    "latency_error": RATIO,
    "exec_error": RATIO,
    "load_error": RATIO,
}


def _seconds() -> Histogram:
    return Histogram(SECONDS)


def _ratio() -> Histogram:
    return Histogram(RATIO)


@dataclass(slots=True)
class LabelTotals:
    """All versions of one model, or all models without a label, since the controller started: as in LabelRecord."""

    in_time: int = 0
    late: int = 0
    timed_out: int = 0
    refused: int = 0
    cold: int = 0
    queue_s: Histogram = field(default_factory=_seconds)
    exec_s: Histogram = field(default_factory=_seconds)
    slack_s: Histogram = field(default_factory=lambda: Histogram(SLACK_S))
    latency_error: Histogram = field(default_factory=_ratio)
    exec_error: Histogram = field(default_factory=_ratio)
    load_error: Histogram = field(default_factory=_ratio)
    elements: int = 0
    elements_computed: int = 0

    def merge(self, other: "LabelTotals") -> None:
        """What the other counted is counted here, too."""
        self.in_time += other.in_time
        self.late += other.late
        self.timed_out += other.timed_out
        self.refused += other.refused
        self.cold += other.cold
        self.elements += other.elements
        self.elements_computed += other.elements_computed
        for name in BOUNDS:
            getattr(self, name).merge(getattr(other, name))

    def settle(self) -> None:
        """What was noted of each request is counted."""
        self.queue_s.settle()
        self.slack_s.settle()
        self.latency_error.settle()

    @property
    def counted(self) -> bool:
        """Whether anything is."""
        return bool(self.in_time or self.late or self.timed_out or self.refused or any(self.load_error.counts))

    def record(self) -> LabelRecord:
        """What is told of it."""
        return LabelRecord(
            in_time=self.in_time,
            late=self.late,
            timed_out=self.timed_out,
            refused=self.refused,
            cold=self.cold,
            queue_s=self.queue_s.told(),
            exec_s=self.exec_s.told(),
            slack_s=self.slack_s.told(),
            latency_error=self.latency_error.told(),
            exec_error=self.exec_error.told(),
            load_error=self.load_error.told(),
            elements=self.elements,
            elements_computed=self.elements_computed,
        )


@dataclass(slots=True)
class ModelTotals:
    """One version's requests, since it was deployed."""

    label: LabelTotals  # where they are counted, too
    in_time: int = 0
    late: int = 0
    timed_out: int = 0
    refused: int = 0
    cold: int = 0

    def gave_up(self) -> None:
        """A request was given up by its frontend at its deadline."""
        self.timed_out += 1
        self.label.timed_out += 1

    def refuse(self) -> None:
        """A request was rejected, or failed."""
        self.refused += 1
        self.label.refused += 1

    def found_cold(self) -> None:
        """A request that ended had found its model on no device."""
        self.cold += 1
        self.label.cold += 1


@dataclass(slots=True)
class ModelTable:
    """The totals of all versions, and of all labels."""

    labels: NamedTallies[LabelTotals] = field(default_factory=lambda: NamedTallies(LabelTotals))
    totals: dict[str, ModelTotals] = field(default_factory=dict)  # {version, deployed and asked: its own}; only read
    _deployed: set[str] = field(default_factory=set)

    def deploy(self, refs: Sequence[str]) -> None:
        """These versions are deployed. The totals of others are forgotten, but for what their labels have of them."""
        self._deployed = set(refs)
        self.totals = {ref: totals for ref, totals in self.totals.items() if ref in self._deployed}
        self.labels.deploy(split_ref(ref)[0] for ref in refs)

    def of(self, ref: str) -> ModelTotals:
        """The totals in which this version counts; of one that is not deployed they last no longer than the call."""
        totals = self.totals.get(ref)
        if totals is None:
            totals = ModelTotals(self.labels.of(split_ref(ref)[0]))
            if ref in self._deployed:
                self.totals[ref] = totals
        return totals

    def records(self) -> dict[str, LabelRecord]:
        """{model with a label: what is told of it}; of those of which there is anything, and OTHER for the rest."""
        found = {name: totals.record() for name, totals in self.labels.labels.items() if totals.counted}
        return {**found, OTHER: self.labels.rest.record()} if self.labels.rest.counted else found
