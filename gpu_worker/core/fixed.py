"""Which batches a device of fixed shapes prepares itself for: rows and extents, of models with open dimensions. Pure.

Such a device captures each batch once, when the version is prepared, and pads what comes to the next one. Rows follow
from the spec, extents from a survey then, or from a profile that was kept: what is measured later is of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_worker.core.figures import Cell
from gpu_worker.core.measuring import ladder
from mesh import wire
from mesh.sizes import Extents, holds

# {open dimensions: edges of each, at most}. Source: length study, section 7: eight lose 2 to 3.4 points of goodput
EDGES = {1: 8, 2: 3}
FixedBatch = tuple[int, Extents]  # (rows, extents)


@dataclass(frozen=True, slots=True)
class FixedBatches:
    """Rows and extents of the batches that can be executed."""

    by_extents: tuple[tuple[Extents, tuple[int, ...]], ...]  # (extents, rows, ascending), ascending

    def holding(self, rows: int, extents: Extents) -> FixedBatch | None:
        """Returns the least one that holds a batch; None if it has too many rows for the extents that hold its own."""
        for outer, sizes in self.by_extents:
            if holds(outer, extents):
                size = next((size for size in sizes if size >= rows), 0) if rows > 0 else 0
                return (size, outer) if size else None
        return None

    @property
    def all(self) -> tuple[FixedBatch, ...]:
        """All batches."""
        return tuple((rows, extents) for extents, sizes in self.by_extents for rows in sizes)

    def without(self, unfit: FixedBatch) -> "FixedBatches":
        """Returns the batches that are less than this one in rows or in an extent."""
        rows, extents = unfit
        return FixedBatches(
            tuple(
                (outer, tuple(size for size in sizes if size < rows or not holds(outer, extents)))
                for outer, sizes in self.by_extents
            )
        )


def fixed_rows(spec: wire.ModelSpec) -> tuple[int, ...]:
    """Returns the rows of the batches of a model, ascending: those that are measured.

    With open dimensions these are powers of two and the largest batch: each has a graph for each of many extents.
    """
    if not spec.dims:
        return ladder(spec.batch_max)
    return tuple(sorted({1 << i for i in range(spec.batch_max.bit_length())} | {spec.batch_max}))


def fixed_batches(spec: wire.ModelSpec, cells: Sequence[Cell] = ()) -> FixedBatches:
    """Returns the batches of a model. With open dimensions: of the extents of these cells, ascending.

    Each has the rows of `fixed_rows` up to the largest of its cell, and no more than what is less in extents.
    """
    rows = fixed_rows(spec)
    if not spec.dims:
        return FixedBatches((((), rows),))
    found = FixedBatches(tuple((cell.extents, rows) for cell in cells))
    for cell in cells:
        for size in rows:
            if size > max(cell.batches):
                found = found.without((size, cell.extents))
    return found


def kept_cells(spec: wire.ModelSpec, profile: wire.Profile) -> tuple[Cell, ...]:
    """Returns the cells that an earlier profile of the version has times of; () if no device would make as many."""
    cells = tuple(Cell(times.extents, tuple(sorted(times.exec_s))) for times in profile.sizes)
    edges = [set(of) for of in zip(*(cell.extents for cell in cells), strict=True)]
    return cells if all(len(of) <= EDGES[len(spec.dims)] for of in edges) else ()
