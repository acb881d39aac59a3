"""How long a version takes on this kind of device: which runs are still needed, and what they gave. Pure."""

import statistics
from dataclasses import dataclass, field
from typing import Protocol

from mesh import wire
from mesh.sizes import Extents

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # batch sizes
FIRST_RUNS = 4  # of each size; the first of them warms caches and is not counted
MORE_RUNS = 16  # on top, of sizes that are over quickly: short times scatter more
MORE_BELOW_S = 0.02
Plan = tuple[tuple[int, int, Extents], ...]  # (batch, runs, extents) to be done, in this order


def ladder(batch_max: int) -> tuple[int, ...]:
    """Returns the batch sizes worth measuring, ascending: LADDER up to the maximum, and the maximum."""
    return (*(size for size in LADDER if size < batch_max), batch_max)


class AnyMeasurement(Protocol):
    """A version that is being measured."""

    def ran(self, batch: int, duration_s: float, extents: Extents = (), memory_bytes: int = 0) -> None:
        """A measuring run has ended well. `memory_bytes`: what it took; 0: that was not seen."""

    def did_not_fit(self, batch: int, extents: Extents = ()) -> None:
        """A measuring run ended because there was not enough memory."""

    def loaded(self, duration_s: float) -> None:
        """A LOAD has ended."""

    def next_plan(self) -> Plan:
        """Returns what the controller is to have run next; `due` is true once that is done."""

    @property
    def due(self) -> bool:
        """Whether all runs of the last plan are done."""

    def profile(self, engine: str, load_from: str = "host") -> wire.Profile | None:
        """Returns the profile; None while runs are missing, or if the version cannot be served."""

    @property
    def fault(self) -> str:
        """Why the version cannot be served; empty if it can, or that is not known yet."""


@dataclass(slots=True)
class Measurement:
    """One version without open dimensions: first every size a few times, then the quick sizes some more."""

    batch_max: int
    exec_s: dict[int, list[float]] = field(default_factory=dict)  # {batch: durations, oldest first}
    load_s: list[float] = field(default_factory=list)  # oldest first
    _asked: int = 0  # runs that all plans together have asked for

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes to measure, ascending: the ladder up to the maximum, and the maximum."""
        return ladder(self.batch_max)

    def ran(self, batch: int, duration_s: float, extents: Extents = (), memory_bytes: int = 0) -> None:
        """A measuring run of this size has ended."""
        self.exec_s.setdefault(batch, []).append(duration_s)

    def did_not_fit(self, batch: int, extents: Extents = ()) -> None:
        """Nothing changes: the controller tries the run again, and gives the version up after a few."""

    def loaded(self, duration_s: float) -> None:
        """A LOAD has ended."""
        self.load_s.append(duration_s)

    def next_plan(self) -> Plan:
        """Returns `plan()`, which the controller is told now; `due` is true once these runs are done."""
        plan = self.plan()
        self._asked = sum(map(len, self.exec_s.values())) + sum(runs for _, runs, _ in plan)
        return plan

    @property
    def due(self) -> bool:
        """Whether all runs of the last plan are done."""
        return bool(self.load_s) and sum(map(len, self.exec_s.values())) >= self._asked

    @property
    def fault(self) -> str:
        """Empty: PREPARE has run the largest batch."""
        return ""

    def plan(self) -> Plan:
        """The runs that are still needed, smallest batch first; empty once the profile is complete."""
        plan: list[tuple[int, int, Extents]] = []
        for size in self.sizes:
            runs = self.exec_s.get(size, [])
            wanted = FIRST_RUNS
            if len(runs) >= FIRST_RUNS and statistics.median(runs[1:]) < MORE_BELOW_S:
                wanted += MORE_RUNS
            if len(runs) < wanted:
                plan.append((size, wanted - len(runs), ()))
        return tuple(plan)

    def profile(self, engine: str, load_from: str = "host") -> wire.Profile | None:
        """The profile: medians in seconds. None while runs are missing."""
        if self.plan() or not self.load_s:
            return None
        return wire.Profile(
            exec_s={size: statistics.median(self.exec_s[size][1:]) for size in self.sizes},
            load_s=statistics.median(self.load_s),
            engine=engine,
            load_from=load_from,
        )
