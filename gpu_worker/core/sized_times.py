"""Durations of EXEC by rows and extents: a formula over padded elements, or tables between which lines are drawn. Pure.

A batch of b rows that are padded to s elements each (the product of its extents) takes, by the formula,

    max(least, intercept + element x max(0, b s - free) + square x b s^2)   ms,

which is what a transformer costs: a start, work per element, attention per pair of elements, and a floor while the
device is not filled. Neither form ever falls as rows' extents grow: a table is raised to its running maximum first.
Source: the formula's parts as fitted in study Q (docs/design/README.md, "Studies").
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import product

from mesh import wire
from mesh.sizes import Extents
from mesh.wire.ranges import OPEN_MAX

FORMULA = {"intercept", "element"}  # keys that every formula has
FORMULA_MORE = {"square", "least", "free"}  # 0 if not given
CELLS_MAX = 4096  # of a table, and of what a device reports
EDGE_SHARE = 32  # the least of some geometric edges is the greatest extent divided by this, as in study Q
EXACT_EDGES = (48, 12)  # reported by a device that pads nothing, by number of open dimensions


def formula_ms(given: Mapping[str, float], batch: int, extents: Extents) -> float:
    """Milliseconds of so many rows of these extents."""
    row = math.prod(extents)
    filled = max(0.0, batch * row - given.get("free", 0.0))
    cost = given["intercept"] + given["element"] * filled + given.get("square", 0.0) * batch * row * row
    return max(given.get("least", 0.0), cost)


def interpolate(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value at `at` on the line through the two points around it.

    Beyond the last point, the line through the last two goes on; if it falls, the last value holds, as a large batch
    would take no time otherwise. `points`: (place, value), sorted, at least one.
    """
    places = [place for place, _ in points]
    if len(points) == 1:
        return points[0][1] * (at / points[0][0] if at > points[0][0] else 1.0)
    where = min(max(bisect_left(places, at), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[where - 1], points[where]
    if at <= x0:
        return y0
    if at > x1:
        return y1 + max(0.0, y1 - y0) * (at - x1) / (x1 - x0)
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def between(cells: Mapping[Extents, float], extents: Extents) -> float:
    """The value at these extents, on lines between the cells of a whole grid, raised to their running maximum.

    `cells`: {edges: value}, the whole product of the edges of one or two dimensions. Beyond the last edge, where
    nothing is executed, its value holds.
    """
    edges = grid_of(cells)
    at = [min(extent, own[-1]) for extent, own in zip(extents, edges, strict=True)]
    raised: dict[Extents, float] = {}
    for place in product(*edges):
        before = [raised[other] for other in _before(place, edges)]
        raised[place] = max((cells[place], *before))
    if len(edges) == 1:
        return interpolate([(edge, raised[edge,]) for edge in edges[0]], at[0])
    lines = [(first, interpolate([(edge, raised[first, edge]) for edge in edges[1]], at[1])) for first in edges[0]]
    return interpolate(lines, at[0])


def grid_of(cells: Mapping[Extents, object] | Sequence[Extents]) -> list[list[int]]:
    """The edges of each dimension, ascending."""
    return [sorted(set(edges)) for edges in zip(*cells, strict=True)]


def _before(place: Extents, edges: Sequence[Sequence[int]]) -> list[Extents]:
    """The neighbours of a place with one extent that is one edge less; the place itself's own value is not needed."""
    found = []
    for dimension, edge in enumerate(place):
        index = edges[dimension].index(edge)
        if index:
            found.append((*place[:dimension], edges[dimension][index - 1], *place[dimension + 1 :]))
    return found


def tables_fault(cells: Sequence[Extents]) -> str:
    """What is wrong with the extents of a table's cells; empty if nothing."""
    if len(cells) > CELLS_MAX or len(set(cells)) < len(cells):
        return f"give each extents once, at most {CELLS_MAX} of them"
    if not all(1 <= len(cell) <= OPEN_MAX and len(cell) == len(cells[0]) and min(cell) >= 1 for cell in cells):
        return "extents are one or two whole numbers from 1 on, as many in each"
    if len(cells) != math.prod(map(len, grid_of(cells))):
        return "give each pair of the edges of both dimensions"
    return ""


def geometric_edges(dim: wire.Dim, count: int, *, whole: bool = False) -> list[int]:
    """At most `count` edges in geometric progression, the last one the greatest extent.

    The first is the greatest extent divided by EDGE_SHARE, or with `whole` the least extent.
    """
    least = dim.least if whole else max(dim.least, dim.most // EDGE_SHARE)
    if count == 1 or least == dim.most:
        return [dim.most]
    ratio = (dim.most / least) ** (1 / (count - 1))
    return sorted({*(min(dim.most, round(least * ratio**k)) for k in range(count)), dim.most})


def exact_edges(dims: Sequence[wire.Dim]) -> list[list[int]]:
    """Edges that are so close that lines between them are good: for devices that pad nothing."""
    return [geometric_edges(dim, EXACT_EDGES[len(dims) - 1], whole=True) for dim in dims]


def rounded(edges: Sequence[Sequence[int]], extents: Extents) -> Extents:
    """The least extents on the edges that hold these. Raises: IndexError, if an extent is above its last edge."""
    return tuple(own[bisect_left(own, extent)] for own, extent in zip(edges, extents, strict=True))
