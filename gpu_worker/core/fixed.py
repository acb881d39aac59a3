"""Which batches a device of fixed shapes prepares itself for: rows and extents, of models with open dimensions. Pure.

Such a device captures each batch once, when the version is prepared, and pads what comes to the next one. So they
follow from the spec alone: what is measured later is of these.
"""

from dataclasses import dataclass
from itertools import product

from gpu_worker.core.measuring import LADDER
from mesh import wire
from mesh.sizes import Extents, holds

# {open dimensions: edges of each}. Source: the length study, section 7: eight edges lose 2 to 3.4 points of goodput
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


def fixed_batches(spec: wire.ModelSpec) -> FixedBatches:
    """Returns the batches of a model: of powers of two rows and its largest batch, with geometric edges.

    Without open dimensions: of the rows that are measured.
    """
    if not spec.dims:
        return FixedBatches((((), (*(size for size in LADDER if size < spec.batch_max), spec.batch_max)),))
    sizes = tuple(sorted({1 << i for i in range(spec.batch_max.bit_length())} | {spec.batch_max}))
    edges = [geometric_edges(dim, EDGES[len(spec.dims)]) for dim in spec.dims]
    return FixedBatches(tuple((extents, sizes) for extents in product(*edges)))


def geometric_edges(dim: wire.Dim, count: int) -> tuple[int, ...]:
    """Returns at most `count` extents, ascending at about equal ratios, of which the last is the greatest."""
    ratio = dim.most / dim.least
    return tuple(sorted({round(dim.least * ratio ** ((i + 1) / count)) for i in range(count)}))
