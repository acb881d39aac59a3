"""What a run brings: the results of a phase, and its progress while it lasts."""

from collections.abc import Callable
from dataclasses import dataclass, field

from gearmesh.load.generating.jobs import Progress
from gearmesh.load.plan import LoadPhase
from gearmesh.load.reporting.records import Records


@dataclass(slots=True, eq=False)
class PhaseRun:
    """The results of one phase."""

    phase: LoadPhase
    records: Records
    codes: list[str]
    scheduled: int  # requests of open loops
    generator_cpu_s: list[float]  # of each generator process
    stray: int
    broken: int  # connections to the mesh that were lost
    full: bool  # a generator could record no more requests, and its clients stopped
    watched: dict[str, object]  # result of MachineWatch.stop()


@dataclass(slots=True)
class Seen:
    """The latest progress of all generators, summed."""

    parts: dict[int, Progress] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        """Requests sent."""
        return sum(part.sent for part in self.parts.values())

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        return sum(part.in_flight for part in self.parts.values())

    @property
    def late_ms(self) -> float:
        """Delay of the last request sent, of the generator where it is greatest."""
        return max((part.late_ms for part in self.parts.values()), default=0.0)

    @property
    def outcomes(self) -> list[int]:
        """Counts by outcome."""
        return [sum(counts) for counts in zip(*(part.outcomes for part in self.parts.values()), strict=True)]


OnProgress = Callable[[LoadPhase, float, Seen], None]  # phase, seconds since it began, counts
