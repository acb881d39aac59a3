"""The inputs of a request with more rows than a batch may have, by parts. Pure."""

import math
from collections.abc import Iterator, Sequence

from mesh import wire
from mesh.sizes import Extents, row_shape
from mesh.strings import row_ends
from mesh.tensors import VARIABLE


def split(
    spec: wire.ModelSpec, rows: int, extents: Extents, tensors: Sequence[bytes | memoryview], most: int
) -> Iterator[tuple[int, list[memoryview]]]:
    """Yields (rows, tensors) of each part, which has at most so many rows; nothing is copied.

    Strings must have passed their check: the bytes hold as many elements as there are due.
    """
    strings = {place: tensor for place, tensor in enumerate(spec.inputs) if tensor.dtype in VARIABLE}
    views = [memoryview(tensor) for tensor in tensors]
    ends: list[Sequence[int]] = []
    for place, view in enumerate(views):
        if place in strings:
            per_row = math.prod(row_shape(strings[place], spec.dims, extents))
            ends.append([0, *row_ends(view, rows, per_row)])
        else:
            width = len(view) // rows
            ends.append(range(0, (rows + 1) * width, width) if width else [0] * (rows + 1))
    for start in range(0, rows, most):
        count = min(most, rows - start)
        yield count, [view[end[start] : end[start + count]] for view, end in zip(views, ends, strict=True)]
