"""Cells of batches by extents: how long each takes, from some that were measured. Pure."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from gpu_worker.core.figures import Cell, SizedFigures
from gpu_worker.core.surfaces import Point
from mesh import wire
from mesh.sizes import holds

GRAIN = 0.5  # octaves: nothing so near to what was measured is measured, too
FAR = 2.0  # octaves: nothing that is farther from all that was measured goes unmeasured, if there is time
CLOSE = 0.05  # log units that the three nearest points err by at most where others tell of them: that is good enough
NEIGHBOURS = 3
ORDERLY = 1.1  # times what a larger batch took: more is not believed at once
RUNS_MAX = 24  # of such a batch: three times what is planned at once
CELLS_MAX = 64  # of one version


def reach(figures: SizedFigures, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Returns the cells with the batches that have been shown to fit in memory; those with none are left out."""
    shown = (Cell(cell.extents, tuple(b for b in cell.batches if figures.fitted((b, cell.extents)))) for cell in cells)
    return tuple(cell for cell in shown if cell.batches)


def unsure(figures: SizedFigures, cells: Sequence[Cell], most: int) -> list[Point]:
    """Returns at most so many batches of the cells of which least is known, the least known first; none: all are.

    A batch is known if the measured ones around it tell of each other well.
    """
    surface = figures.surface
    points = [(b, cell.extents) for cell in cells for b in cell.batches if (b, cell.extents) not in figures.exec_s]
    if not points:
        return []
    apart = surface.distances(points)
    errors = surface.errors()[surface.nearest(points, NEIGHBOURS)].mean(axis=1)
    places = np.log2(np.array([[float(batch), *extents] for batch, extents in points]))
    chosen: list[Point] = []
    while len(chosen) < most:
        wanted = np.where((apart > GRAIN) & ((errors > CLOSE) | (apart > FAR)), apart, 0.0)
        at = int(wanted.argmax())
        if not wanted[at]:
            break
        chosen.append(points[at])
        apart = np.minimum(apart, np.sqrt(((places - places[at]) ** 2).sum(axis=1)))
    return chosen


def disordered(figures: SizedFigures, most: int) -> list[Point]:
    """Returns at most so many batches that took longer than larger ones, and were run less than RUNS_MAX times.

    Either they do, or something disturbed them: the median of more runs will tell.
    """
    points = list(figures.exec_s)
    seconds = np.array([figures.seconds(point) for point in points])
    sizes = np.array([[batch, *extents] for batch, extents in points])
    within = (sizes[:, None, :] <= sizes[None, :, :]).all(axis=2)  # [inner, outer]
    excess = seconds / np.where(within, seconds[None, :], np.inf).min(axis=1)
    found = [
        (-over, point)
        for over, point in zip(excess.tolist(), points, strict=True)
        if over > ORDERLY and len(figures.exec_s[point]) < RUNS_MAX
    ]
    return [point for _, point in sorted(found)[:most]]


def times_of(
    cells: Sequence[Cell], seconds: Callable[[Sequence[Point]], Sequence[float]]
) -> tuple[wire.SizeTimes, ...]:
    """Returns the durations of all batches of the cells, which ascend; they fall neither in rows nor in extents."""
    points = [(batch, cell.extents) for cell in cells for batch in cell.batches]
    found: dict[Point, float] = dict(zip(points, seconds(points), strict=True))
    times: list[wire.SizeTimes] = []
    for cell in cells:
        below = [other.exec_s for other in times if holds(cell.extents, other.extents)]
        least, own = 0.0, {}
        for batch in cell.batches:
            least = max(least, found[batch, cell.extents], *(other.get(batch, 0.0) for other in below))
            own[batch] = least
        times.append(wire.SizeTimes(extents=cell.extents, exec_s=own))
    return tuple(times)


def measured_times(figures: SizedFigures, cells: Sequence[Cell]) -> tuple[wire.SizeTimes, ...]:
    """Returns the durations of the cells, measured or read between what was measured."""

    def seconds(points: Sequence[Point]) -> list[float]:
        between = figures.surface.at(points).tolist()
        return [figures.seconds(p) if p in figures.exec_s else s for p, s in zip(points, between, strict=True)]

    return times_of(cells, seconds)


def are_possible(
    sizes: Sequence[wire.SizeTimes], dims: Sequence[wire.Dim], rows: Sequence[int], cells: Sequence[Cell] = ()
) -> bool:
    """Returns whether a measurement can have given these durations; a package may have brought them.

    `cells`: all batches that the device can execute; (): of any of these rows, with any extents.
    """
    places = [cell.extents for cell in sizes]
    if not places or len(places) > CELLS_MAX or any(len(place) != len(dims) for place in places):
        return False
    edges = [sorted(set(of)) for of in zip(*places, strict=True)]
    within = all(of[0] >= dim.least and of[-1] == dim.most for of, dim in zip(edges, dims, strict=True))
    if not within or places != list(itertools.product(*edges)):
        return False
    known = {cell.extents: cell.batches for cell in cells} or dict.fromkeys(places, tuple(rows))
    if known.keys() != set(places) or not all(_is_start(cell, known[cell.extents]) for cell in sizes):
        return False
    return all(_is_no_dearer(inner, outer) for outer in sizes for inner in sizes if holds(outer.extents, inner.extents))


def _is_start(cell: wire.SizeTimes, batches: Sequence[int]) -> bool:
    """Whether the cell has the first of these batches, with durations that are positive and do not fall."""
    seconds = [cell.exec_s[batch] for batch in sorted(cell.exec_s)]
    ascending = all(one <= other for one, other in itertools.pairwise(seconds))
    return ascending and seconds[0] > 0 and tuple(sorted(cell.exec_s)) == tuple(batches[: len(seconds)])


def _is_no_dearer(inner: wire.SizeTimes, outer: wire.SizeTimes) -> bool:
    """Whether whatever is done with the greater extents is done with the lesser ones, in no more time."""
    return all(inner.exec_s.get(batch, math.inf) <= seconds for batch, seconds in outer.exec_s.items())
