"""Inputs of a version whose rows differ in size: laid out as one batch, and filled up to the batch's extents."""

from collections.abc import Sequence

import numpy as np
import torch

from gpu_worker.core.layouts import TensorPlace, places
from gpu_worker.devices.arena import Bytes
from gpu_worker.devices.execution.rows import example_rows
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.sizes import Extents, holds, most_of, row_shape
from mesh.tensors import DTYPES, Array, byte_count
from mesh.wire import Buffer

# of an input of a batch that is filled up as a whole before its parts are laid in: quicker than each part's own edges
AT_ONCE_BYTES = 1 << 18
KNOWN_MAX = 4096  # extents whose rows are remembered
BUFFER_BYTES = 1 << 20  # of a buffer for inputs at first, where the largest batch takes more


class OpenInputs:
    """The inputs of one version. `rows`: one row of each input that the model can run on; None: zeros will do."""

    def __init__(self, spec: wire.ModelSpec, rows: Sequence[Array] | None) -> None:
        self.spec = spec
        self._rows = rows
        self._known: dict[Extents, tuple[tuple[tuple[int, ...], int], ...]] = {}  # what `_rows_of` has returned

    @classmethod
    def of(cls, package: Package) -> "OpenInputs":
        """Returns those of a package, with the first row of its example. Raises: PackageError."""
        rows = example_rows(package)
        return cls(package.spec, None if rows is None else [tensor[0].numpy().copy() for tensor in rows])

    @property
    def buffer_bytes(self) -> int:
        """Bytes of a buffer that holds most batches; it grows with those that take more."""
        return min(BUFFER_BYTES, self.places(self.spec.batch_max, most_of(self.spec))[1])

    def places(self, rows: int, extents: Extents) -> tuple[tuple[TensorPlace, ...], int]:
        """Returns the place of each input of a batch, and the bytes that all take."""
        return places(self.spec.inputs, self.spec.dims, rows, extents)

    def fill(
        self,
        target: Bytes,
        layout: Sequence[TensorPlace],
        extents: Extents,
        parts: Sequence[wire.Part],
        given: Sequence[Sequence[Buffer]],
    ) -> str:
        """The inputs of all parts lie in `target`, each filled up to the extents of `layout` with its tensor's `pad`.

        Rows that no part has repeat the first row of the batch, which the model can run on as well as its client's;
        without any part, the example's row, cut or repeated. Returns the fault, or "".
        """
        for n, (part, inputs) in enumerate(zip(parts, given, strict=True)):
            fault = self._fault(part, inputs, extents)
            if fault:
                return f"part {n} (request {part.request}){fault}"
        taken = [self._rows_of(part.extents) for part in parts]
        for i, (place, tensor) in enumerate(zip(layout, self.spec.inputs, strict=True)):
            whole, value, dtype, row = view(target, place), pad_of(tensor), DTYPES[tensor.dtype], 0
            at_once = place.size <= AT_ONCE_BYTES
            if at_once:
                whole.fill(value)
            for part, inputs, rows in zip(parts, given, taken, strict=True):
                shape, _ = rows[i]
                piece = np.frombuffer(inputs[i], dtype).reshape(part.rows, *shape)
                block = whole[row : row + part.rows]
                if shape == place.shape[1:]:
                    block[...] = piece
                elif at_once:
                    block[(slice(None), *map(slice, shape))] = piece
                else:
                    place_in(block, piece, value)
                row += part.rows
            if row < place.rows:
                whole[row:] = whole[0] if row else self._row(i, place.shape[1:])
        return ""

    def _fault(self, part: wire.Part, given: Sequence[Buffer], extents: Extents) -> str:
        """Why the part's inputs cannot be used; empty if they can."""
        spec = self.spec
        if len(given) != len(spec.inputs):
            return f": {len(given)} inputs came, the model takes {len(spec.inputs)}"
        if not holds(extents, part.extents) or len(extents) != len(spec.dims):
            return f" has extents {list(part.extents)}, and the batch is computed with {list(extents)}"
        for tensor, data, (_, size) in zip(spec.inputs, given, self._rows_of(part.extents), strict=True):
            if len(data) != part.rows * size:
                return (
                    f": input {tensor.name} has {len(data)} bytes; {part.rows} rows of extents {list(part.extents)} "
                    f"take {part.rows * size}"
                )
        return ""

    def _rows_of(self, extents: Extents) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Returns (shape, bytes) of a row of each input."""
        found = self._known.get(extents)
        if found is None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            shapes = [row_shape(tensor, self.spec.dims, extents) for tensor in self.spec.inputs]
            found = self._known[extents] = tuple(
                (shape, byte_count(tensor.dtype, shape)) for tensor, shape in zip(self.spec.inputs, shapes, strict=True)
            )
        return found

    def _row(self, i: int, shape: tuple[int, ...]) -> Array:
        """Returns a row of input `i` of this shape: the example's, cut where it is longer and repeated where not."""
        if self._rows is None:
            return np.zeros(shape, DTYPES[self.spec.inputs[i].dtype])
        row = self._rows[i]
        for axis, extent in enumerate(shape):
            if row.shape[axis] != extent:
                row = np.take(row, np.arange(extent) % row.shape[axis], axis)
        return row


def view(target: Bytes, place: TensorPlace) -> Array:
    """Returns the tensor at this place of a buffer."""
    return target[place.at : place.at + place.size].view(DTYPES[place.dtype]).reshape(place.shape)


def tensors(target: Bytes, layout: Sequence[TensorPlace]) -> list[torch.Tensor]:
    """Returns the tensors of a buffer, not copied."""
    return [torch.from_numpy(view(target, place)) for place in layout]


def pad_of(tensor: wire.TensorSpec) -> float | bool:
    """Returns the value with which the input is filled up."""
    return False if tensor.dtype == "bool" else tensor.pad


def place_in(block: Array, piece: Array, value: float | bool) -> None:
    """The block begins with the piece in each dimension; all its other elements have the value."""
    inner = tuple(slice(extent) for extent in piece.shape)
    block[inner] = piece
    for axis, (extent, whole) in enumerate(zip(piece.shape, block.shape, strict=True)):
        if extent < whole:
            block[(*inner[:axis], slice(extent, None))] = value
