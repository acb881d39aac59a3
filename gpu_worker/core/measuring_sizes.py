"""How long a version with open dimensions takes on this kind of device: which runs are needed, what they gave. Pure.

    survey     how the cost grows, from which the edges follow (`surveying.py`)
    limits     the largest batch of each cell that fits in memory and is of use is run: nothing larger is ever made
    filling    batches of the cells of which least is known, until the others tell of each well, or time is over;
               and, once more, those that took longer than larger ones

Runs ascend, and none is planned whose memory, as what was measured foretells, may not be there (`figures.py`).
"""

import statistics
from dataclasses import dataclass, field

from gpu_worker.core.figures import Cell, SizedFigures, covers
from gpu_worker.core.gridding import disordered, measured_times, reach, unsure
from gpu_worker.core.measuring import Plan
from gpu_worker.core.surfaces import Point, work_of
from gpu_worker.core.surveying import Survey, runs_for
from mesh import wire
from mesh.sizes import Extents

AT_ONCE = 8  # batches of one plan, once the limits are known
NEAR = 1.5  # a limit is near enough to what may be possible, and no larger batch is tried, within this ratio
STEP = 4.0  # ... and goes that far, in elements, beyond all that was run before
DOUBTS_MAX = 2  # of the memory of one batch: each has it run again, after another one
MIB = 1 << 20


@dataclass(slots=True)
class SizedMeasurement:
    """One version with open dimensions that is being measured."""

    survey: Survey
    figures: SizedFigures
    cells: tuple[Cell, ...] = ()  # that may be executed, ascending; (): the survey chooses
    load_s: list[float] = field(default_factory=list)  # oldest first
    _left: dict[Point, int] = field(default_factory=dict)  # runs of the last plan that are not done
    _doubts: dict[Point, int] = field(default_factory=dict)  # {batch: how often its memory was doubted}
    _complete: bool = False  # nothing more is to be run

    def ran(self, batch: int, duration_s: float, extents: Extents = (), memory_bytes: int = 0) -> None:
        """A measuring run has ended well."""
        point = (batch, extents)
        self.figures.ran(point, duration_s, memory_bytes)
        left = self._left.pop(point, 0) - 1
        if left > 0:
            self._left[point] = left

    def did_not_fit(self, batch: int, extents: Extents = ()) -> None:
        """A measuring run ended for want of memory; larger ones of the plan are not run, either."""
        self.figures.did_not_fit((batch, extents))
        self._left = {point: runs for point, runs in self._left.items() if not covers(point, (batch, extents))}

    def loaded(self, duration_s: float) -> None:
        """A LOAD has ended."""
        self.load_s.append(duration_s)

    @property
    def due(self) -> bool:
        """Whether all runs of the last plan are done."""
        return bool(self.load_s) and not self._left

    def next_plan(self) -> Plan:
        """Returns the runs to be done next; empty once the profile is complete, or the version cannot be served."""
        self._left = self._doubted() or {point: self._runs(point) for point in self._next()}
        self._complete = not self._left
        return tuple((point[0], runs, point[1]) for point, runs in self._left.items())

    @property
    def fault(self) -> str:
        """Why the version cannot be served: not even one row of the greatest extents fits in memory."""
        alone = (1, self.survey.greatest)
        if not self._complete or self.figures.fitted(alone):
            return ""
        fits = max((point[1] for point in self.figures.exec_s if self.figures.fitted(point)), default=(), key=_size)
        names = [dim.name for dim in self.survey.dims]
        wanted = " and ".join(f"{name} = {dim.most}" for name, dim in zip(names, self.survey.dims, strict=True))
        room = f"the {self.figures.memory_bytes / MIB:.0f} MiB" if self.figures.memory_bytes else "the memory"
        least = " and ".join(f"{name} = {extent}" for name, extent in zip(names, fits, strict=False))
        advice = f"one of {least} does: write it with smaller greatest extents" if fits else "nor does a smaller one"
        return f"one row of {wanted} does not fit in {room} that a batch may take on this device; {advice}"

    def profile(self, engine: str, load_from: str = "host") -> wire.Profile | None:
        """Returns the profile: each cell with durations up to the largest batch that fits and is of use."""
        if not self._complete or not self.load_s or self.fault:
            return None
        sizes = measured_times(self.figures, reach(self.figures, self.cells))
        return wire.Profile(
            exec_s=dict(sizes[-1].exec_s),
            load_s=statistics.median(self.load_s),
            engine=engine,
            load_from=load_from,
            sizes=sizes,
        )

    # -- rules --------------------------------------------------------------------------------------------------------

    def _doubted(self) -> dict[Point, int]:
        """Returns what tells whether a batch takes as much memory as was seen: a run of it, after one of another."""
        doubtful = self.figures.doubtful
        if doubtful is None or self._doubts.get(doubtful, 0) >= DOUBTS_MAX:
            return {}
        self._doubts[doubtful] = self._doubts.get(doubtful, 0) + 1
        return {min((ran for ran in self.figures.exec_s if ran != doubtful), key=work_of): 1, doubtful: 1}

    def _next(self) -> list[Point]:
        figures, survey = self.figures, self.survey
        if not self.cells:
            point = survey.next(figures)
            if point is not None:
                return [point]
            if not figures.fitted((1, survey.greatest)):
                return []
            self.cells = survey.cells(figures, any_batch=True)
        if not figures.exec_s:
            first, last = self.cells[0], self.cells[-1]
            return list(dict.fromkeys(((first.batches[0], first.extents), (last.batches[0], last.extents))))
        limit = self._limit()
        if limit is not None:
            return [limit]
        points = unsure(figures, reach(figures, self.cells), AT_ONCE) or disordered(figures, AT_ONCE)
        left_s, chosen = survey.left_s(figures), []
        for point, seconds in zip(points, figures.surface.at(points).tolist(), strict=True):
            left_s -= seconds * self._runs(point)
            if left_s > 0:
                chosen.append(point)
        return sorted(chosen, key=work_of)

    def _limit(self) -> Point | None:
        """Returns a batch as large as its cell may have, which was not shown to fit, nor one nearly as large.

        None: there is none. It is the largest that is not far beyond all that was run: it shows most of the others.
        """
        figures, wanted = self.figures, []
        points = [(batch, cell.extents) for cell in self.cells for batch in cell.batches]
        useful_s, left_s = self.survey.useful_s(figures), self.survey.left_s(figures)
        seconds = dict(zip(points, figures.surface.at(points).tolist(), strict=True))
        may = dict(zip(points, figures.may_fit(points), strict=True))
        for cell in self.cells:
            shown = max((b for b in cell.batches if figures.fitted((b, cell.extents))), default=0)
            possible = [
                (b, cell.extents)
                for b in cell.batches
                if may[b, cell.extents] and seconds[b, cell.extents] <= useful_s and seconds[b, cell.extents] < left_s
            ]
            larger = [point for point in possible if point[0] > NEAR * shown]
            if larger:  # once something did not fit, by halves: each that does not either may cost the device much
                wanted.append(larger[len(larger) // 2 if figures.unfit else -1])
        wanted.sort(key=work_of)
        step = STEP * max(map(work_of, figures.exec_s))
        return max((p for p in wanted if work_of(p) <= step), key=work_of, default=wanted[0] if wanted else None)

    def _runs(self, point: Point) -> int:
        return runs_for(float(self.figures.surface.at([point])[0])) if self.figures.exec_s else 2


def _size(extents: Extents) -> int:
    return work_of((1, extents))
