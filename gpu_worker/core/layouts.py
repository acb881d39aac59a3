"""Where the tensors of one batch lie in a buffer, one after the other. Pure. Sizes are bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

from mesh import wire
from mesh.sizes import Extents, row_shape
from mesh.tensors import byte_count

ALIGNMENT = 256  # bytes. Source: what CUDA guarantees of its own allocations; more than any CPU asks for


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor inside a buffer."""

    at: int
    row_bytes: int
    rows: int
    dtype: str
    shape: tuple[int, ...]  # including the rows

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.row_bytes * self.rows


def places(
    tensors: Sequence[wire.TensorSpec], dims: Sequence[wire.Dim], rows: int, extents: Extents, at: int = 0
) -> tuple[tuple[TensorPlace, ...], int]:
    """Returns the place of each tensor with so many rows of these extents, from `at` on, and where the last ends."""
    found = []
    for spec in tensors:
        shape = row_shape(spec, dims, extents)
        place = TensorPlace(at, byte_count(spec.dtype, shape), rows, spec.dtype, (rows, *shape))
        found.append(place)
        at += -(-place.size // ALIGNMENT) * ALIGNMENT
    return tuple(found), at
