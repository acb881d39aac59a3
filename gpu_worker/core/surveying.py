"""The first runs of a version with open dimensions: how its cost grows, so that edges can be chosen. Pure.

    one row            at about equal ratios from the least extents to the greatest, ascending
    a middle batch     at every second of these
    the largest batch  likewise, as far as it is of use

With two open dimensions they are the pairs of fewer extents of each.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpu_worker.core.edges import EDGES_MAX, edges_of, geometric
from gpu_worker.core.figures import Cell, SizedFigures
from gpu_worker.core.measuring import ladder
from gpu_worker.core.surfaces import Floats, Point, work_of
from mesh import wire
from mesh.sizes import Extents

PROBES = {1: 10, 2: 4}  # {open dimensions: extents of each that one row is run with}, at most; a ratio of 2 suffices
OF_USE = 10.0  # objectives; a batch that takes longer is neither measured nor made
LONGEST_S = 2.0  # ... nor one that takes longer than this. But one row is always of use, and what takes no longer
BUDGET_S = 20.0  # of EXEC, for all runs of one version on one device but those of one row: these are needed anyway
BUDGET_ROWS = 8.0  # ... or so many times what one row of the greatest extents takes, if that is more
SURVEY_SHARE = 0.4  # of it, for the survey
SPARE = 1.5  # times as long as is of use; what the survey expects to take longer is not captured: it may err so far
RUNS = ((0.005, 8), (0.02, 6), (0.1, 4), (0.5, 2))  # (expected seconds, runs of what takes less); beyond: 1


def runs_for(expected_s: float) -> int:
    """Returns how often a batch is run: short times scatter more."""
    return next((runs for limit_s, runs in RUNS if expected_s < limit_s), 1)


@dataclass(frozen=True, slots=True)
class Survey:
    """What is asked of one version."""

    dims: tuple[wire.Dim, ...]  # at least one
    batch_max: int
    slo_s: float

    @property
    def greatest(self) -> Extents:
        """The greatest extents of a request."""
        return tuple(dim.most for dim in self.dims)

    def next(self, figures: SizedFigures) -> Point | None:
        """Returns the batch to be run next; None once cells can be chosen, or if one row does not fit."""
        sizes = self._extents()
        for extents in sizes:
            point = (1, extents)
            if point not in figures.exec_s:
                return point if figures.may_fit([point])[0] else None
        middle = min(ladder(self.batch_max), key=lambda size: abs(math.log(size * size / self.batch_max)))
        others = [extents for i, extents in enumerate(reversed(sizes)) if i % 2 == 0][::-1]
        for batch in sorted({middle, self.batch_max} - {1}):
            points = [(batch, extents) for extents in others]
            for point, may, seconds in zip(
                points, figures.may_fit(points), figures.surface.at(points).tolist(), strict=True
            ):
                left_s = self.left_s(figures, SURVEY_SHARE) - seconds * runs_for(seconds)
                if point not in figures.exec_s and may and seconds <= self.useful_s(figures) and left_s > 0:
                    return point
        return None

    def useful_s(self, figures: SizedFigures) -> float:
        """Returns how long a batch may take to be of use. One row of the greatest extents has been run."""
        return max(self._alone_s(figures), min(OF_USE * self.slo_s, LONGEST_S))

    def left_s(self, figures: SizedFigures, share: float = 1.0) -> float:
        """Returns how much of this share of the budget is left."""
        return share * max(BUDGET_S, BUDGET_ROWS * self._alone_s(figures)) - figures.spent_s

    def _alone_s(self, figures: SizedFigures) -> float:
        alone = (1, self.greatest)
        return figures.seconds(alone) if alone in figures.exec_s else 0.0

    def cells(self, figures: SizedFigures, *, any_batch: bool, most: int = 0) -> tuple[Cell, ...]:
        """Returns what is worth executing, by extents, ascending: the products of the edges, each with the ladder.

        `any_batch`: the device pads nothing. Then the least extents are edges, too, as times are read between edges.
        `most`: edges of each dimension; 0: as many as are worth it, up to EDGES_MAX.
        """
        most = most or EDGES_MAX[len(self.dims)]
        edges = edges_of(self.dims, lambda points: self._shares(figures, points), most - 1 if any_batch else most)
        if any_batch:
            edges = tuple(tuple(sorted({dim.least, *of})) for dim, of in zip(self.dims, edges, strict=True))
        return tuple(Cell(extents, ladder(self.batch_max)) for extents in itertools.product(*edges))

    def _shares(self, figures: SizedFigures, extents: Sequence[Extents]) -> Floats:
        """Returns the least time of a row among batches that are done within the objective, of each."""
        sizes = ladder(self.batch_max)
        points = [(size, of) for of in extents for size in sizes]
        seconds = figures.surface.at(points).reshape(len(extents), len(sizes))
        good = (seconds <= self.slo_s) & np.array(figures.may_fit(points)).reshape(seconds.shape)
        good[:, 0] = True
        shares: Floats = np.where(good, seconds / np.array(sizes), np.inf).min(axis=1)
        return shares

    def _extents(self) -> list[Extents]:
        count = PROBES[len(self.dims)]
        each = [
            geometric(dim.least, dim.most, min(count, 2 + math.floor(math.log2(dim.most / dim.least))))
            for dim in self.dims
        ]
        return sorted(itertools.product(*each), key=lambda extents: work_of((1, extents)))


def cells_by_running(
    survey: Survey, run: Callable[[int, Extents], Sequence[float]], *, any_batch: bool, most: int = 0
) -> tuple[Cell, ...]:
    """Returns the cells that follow from running what the survey asks for, at once, with the batches that are of use.

    `run` executes a batch of these rows and extents a few times, and returns how many seconds each took; (): there is
    no memory for it. For devices that need the cells before they can be measured, as they capture each. () if not even
    one row of the greatest extents fits.
    """
    figures = SizedFigures()
    while (point := survey.next(figures)) is not None:
        durations = run(*point)
        for seconds in durations:
            figures.ran(point, seconds)
        if not durations:
            figures.did_not_fit(point)
    if not figures.fitted((1, survey.greatest)):
        return ()
    return tuple(_of_use(survey, figures, cell) for cell in survey.cells(figures, any_batch=any_batch, most=most))


def _of_use(survey: Survey, figures: SizedFigures, cell: Cell) -> Cell:
    """Returns the cell without the batches that are expected to take far longer than is of use."""
    seconds = figures.surface.at([(batch, cell.extents) for batch in cell.batches]).tolist()
    limit_s = SPARE * survey.useful_s(figures)
    return Cell(cell.extents, tuple(b for b, of in zip(cell.batches, seconds, strict=True) if b == 1 or of <= limit_s))
