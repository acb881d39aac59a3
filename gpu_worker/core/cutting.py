"""Cuts the outputs of a batch into what each of its requests gets, where the rows of an output differ in size. Pure.

    an output that bears an open dimension       is cut to the request's own extent in it
    an output whose elements have owners         is split by the row that each element belongs to
    an output of which each row counts its own   is cut to the greatest count among the request's rows
    strings and bytes                            are split where the bytes of a request's rows end

A batch whose outputs cannot be told apart is refused as a whole: nobody gets a row of a stranger.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mesh import wire
from mesh.codes import ActionCode
from mesh.errors import GearmeshError
from mesh.sizes import Extents, row_shape
from mesh.strings import pack, row_ends, unpack
from mesh.tensors import DTYPES, VARIABLE, Array, raw

Shape = tuple[int, ...]


class Indivisible(GearmeshError):
    """The outputs of a batch are not those that its model promises, or cannot be told apart; `str()` says why."""

    def __init__(self, why: str, code: ActionCode = ActionCode.BAD_OUTPUTS) -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True, slots=True)
class Portion:
    """What one request gets: its outputs, in the order of the spec."""

    tensors: tuple[memoryview, ...]
    shapes: tuple[Shape, ...]  # rows first


@dataclass(frozen=True, slots=True)
class Cut:
    """What each part of a batch gets, in the parts' order."""

    portions: tuple[Portion, ...]
    held_bytes: int  # that stay in memory as long as one of the portions does


def varies(spec: wire.ModelSpec) -> bool:
    """Returns whether rows of the model's tensors may differ in size: what `cut_outputs` is for."""
    tensors = (*spec.inputs, *spec.outputs)
    return bool(spec.dims) or any(
        tensor.dtype in VARIABLE or tensor.owner or tensor.count or -1 in tensor.shape[1:] for tensor in tensors
    )


def promised(spec: wire.ModelSpec, batch: int, extents: Extents) -> tuple[Shape, ...]:
    """Returns the shape of each output for so many rows; -1 stands for an extent that the model chooses."""
    owners = _owners(spec)
    return tuple(
        (-1 if _owner(tensor, owners) else batch, *row_shape(tensor, spec.dims, extents)) for tensor in spec.outputs
    )


def check_shapes(spec: wire.ModelSpec, batch: int, extents: Extents, shapes: Sequence[Shape]) -> None:
    """The outputs have the promised shapes. Raises: Indivisible, which names each that has not."""
    if len(shapes) != len(spec.outputs):
        raise Indivisible(f"the model gives {len(shapes)} outputs, {len(spec.outputs)} are promised")
    faults, code = [], ActionCode.BAD_OUTPUTS
    for tensor, wanted, found in zip(spec.outputs, promised(spec, batch, extents), shapes, strict=True):
        if len(wanted) == len(found) and all(w in (-1, f) for w, f in zip(wanted, found, strict=True)):
            continue
        faults.append(f"output {tensor.name}: the model gives {list(found)}, promised is {list(wanted)}")
        if wanted[0] != -1 and found[:1] != wanted[:1]:
            code = ActionCode.ROWS_CHANGED
    if faults:
        raise Indivisible("; ".join(faults), code)


def cut_outputs(
    spec: wire.ModelSpec,
    action: wire.Infer,
    outputs: Sequence[memoryview],
    shapes: Sequence[Shape],
    *,
    computed: Extents | None = None,
    lent: bool = False,
) -> Cut:
    """Returns what each part of the batch gets of its outputs, which hold `action.batch` rows.

    Copies only what does not lie in one piece; all, if the outputs are `lent`. `computed`: extents of the outputs, if
    they are not those of the action. Raises: Indivisible.
    """
    check_shapes(spec, action.batch, action.extents if computed is None else computed, shapes)
    splitters = _splitters(spec, action.batch, outputs, shapes)
    portions, row, copied, kept = [], 0, 0, False
    known: dict[Extents, list[Shape]] = {}  # {extents: shape of a row of each output}
    for part in action.parts:
        wanted = known.get(part.extents)
        if wanted is None:
            wanted = known[part.extents] = [row_shape(tensor, spec.dims, part.extents) for tensor in spec.outputs]
        pieces = [splitter.piece(row, part.rows, shape) for splitter, shape in zip(splitters, wanted, strict=True)]
        row += part.rows
        if lent:
            pieces = [piece if piece.copied else _copied(piece) for piece in pieces]
        copied += sum(len(piece.data) for piece in pieces if piece.copied)
        kept = kept or not all(piece.copied for piece in pieces)
        portions.append(Portion(tuple(piece.data for piece in pieces), tuple(piece.shape for piece in pieces)))
    return Cut(tuple(portions), copied + (sum(map(len, outputs)) if kept else 0))


def hollow(spec: wire.ModelSpec, batch: int, extents: Extents) -> tuple[list[memoryview], list[Shape]]:
    """Returns outputs of zeros, empty strings and nothing found, with the promised shapes; 1 where a model chooses."""
    owners = _owners(spec)
    shapes = [
        tuple(
            (0 if i == 0 and _owner(tensor, owners) else 1) if extent == -1 else extent
            for i, extent in enumerate(shape)
        )
        for tensor, shape in zip(spec.outputs, promised(spec, batch, extents), strict=True)
    ]
    outputs = []
    for tensor, shape in zip(spec.outputs, shapes, strict=True):
        width = 4 if tensor.dtype in VARIABLE else DTYPES[tensor.dtype].itemsize  # of a string: that it has no bytes
        outputs.append(memoryview(bytes(math.prod(shape) * width)))
    return outputs, shapes


# -- splitting one output ---------------------------------------------------------------------------------------------


class _Piece:
    """What one request gets of one output."""

    __slots__ = ("copied", "data", "shape")

    def __init__(self, data: memoryview, shape: Shape, copied: bool) -> None:
        self.data = data
        self.shape = shape
        self.copied = copied  # the bytes are not those of the batch's output


class _Rows:
    """An output with one row for each row of the batch, cut to the extents of the request."""

    def __init__(self, tensor: wire.TensorSpec, array: Array, data: memoryview) -> None:
        self.tensor, self.array, self.data = tensor, array, data
        self.shape = array.shape[1:]
        dims = tensor.dims or ("",) * len(self.shape)
        # whether an extent is the model's own
        self.own = any(extent == -1 and not dim for extent, dim in zip(tensor.shape[1:], dims, strict=True))
        self.width = array.itemsize * math.prod(self.shape)

    def piece(self, row: int, rows: int, wanted: Shape) -> _Piece:
        """Returns what a request with these rows gets, each of the shape `wanted` (-1: as it is)."""
        if self.own:
            wanted = tuple(extent if own == -1 else own for own, extent in zip(wanted, self.shape, strict=True))
        if self.tensor.dtype not in VARIABLE:  # what lies in one piece is found without numpy, in a third of the time
            at = row * self.width
            if wanted == self.shape:
                return _Piece(self.data[at : at + rows * self.width], (rows, *wanted), False)
            if rows == 1 and wanted[1:] == self.shape[1:]:
                size = self.array.itemsize * math.prod(wanted)
                return _Piece(self.data[at : at + size], (1, *wanted), False)
        return _packed(self.tensor, self.array[(slice(row, row + rows), *_within(wanted))])


class _Counted:
    """An output of which each row has as many elements as it counts; what lies beyond them becomes zeros."""

    def __init__(self, tensor: wire.TensorSpec, array: Array, counts: Array) -> None:
        if counts.size and not 0 <= int(counts.min()) <= int(counts.max()) <= array.shape[1]:
            raise Indivisible(
                f"output {tensor.count}: counts from {counts.min()} to {counts.max()}; a row of {tensor.name} has from "
                f"0 to {array.shape[1]} elements"
            )
        self.tensor, self.array, self.counts = tensor, array, counts

    def piece(self, row: int, rows: int, wanted: Shape) -> _Piece:
        """Returns what a request with these rows gets: the greatest count among them says how many elements."""
        counts = self.counts[row : row + rows]
        most = int(counts.max(initial=0))
        if wanted[0] != -1 and most > wanted[0]:
            raise Indivisible(
                f"output {self.tensor.count}: a row has {most} elements, and its request has room for {wanted[0]}"
            )
        found = self.array[(slice(row, row + rows), slice(most), *_within(wanted[1:]))]
        if int(counts.min(initial=most)) == most:
            return _packed(self.tensor, found)
        found = found.copy()
        found[np.arange(most) >= counts[:, None]] = b"" if self.tensor.dtype in VARIABLE else 0
        return _packed(self.tensor, found, copied=True)


class _Owned:
    """An output whose elements each belong to a row, as another output tells; it may be that output itself."""

    def __init__(self, tensor: wire.TensorSpec, array: Array, owners: Array, batch: int) -> None:
        name = tensor.owner or tensor.name
        if len(array) != len(owners):
            raise Indivisible(f"output {tensor.name} has {len(array)} elements, and {name} tells of {len(owners)}")
        if owners.size and not 0 <= int(owners.min()) <= int(owners.max()) < batch:
            raise Indivisible(
                f"output {name}: elements of rows {owners.min()} to {owners.max()}; the batch has rows 0 to {batch - 1}"
            )
        self.tensor, self.array, self.owners = tensor, array, owners
        self.ascending = bool((owners[1:] >= owners[:-1]).all())

    def piece(self, row: int, rows: int, wanted: Shape) -> _Piece:
        """Returns the elements of these rows, in their order; owners count from the request's first row."""
        if self.ascending:
            first, end = np.searchsorted(self.owners, (row, row + rows))
            found = self.array[first:end]
        else:
            found = self.array[(self.owners >= row) & (self.owners < row + rows)]
        if self.array is self.owners:
            return _packed(self.tensor, found - row, copied=True)
        return _packed(self.tensor, found[(slice(None), *_within(wanted))], copied=not self.ascending)


class _Elements:
    """Strings or bytes, as many in each row of the batch, of which nothing is cut."""

    def __init__(self, tensor: wire.TensorSpec, data: memoryview, shape: Shape) -> None:
        self.data, self.shape = data, shape
        self.ends = [0, *row_ends(data, shape[0], math.prod(shape[1:]))]

    def piece(self, row: int, rows: int, wanted: Shape) -> _Piece:
        """Returns the elements of these rows."""
        return _Piece(self.data[self.ends[row] : self.ends[row + rows]], (rows, *self.shape[1:]), False)


_Splitter = _Rows | _Counted | _Owned | _Elements


def _splitters(
    spec: wire.ModelSpec, batch: int, outputs: Sequence[memoryview], shapes: Sequence[Shape]
) -> list[_Splitter]:
    """Returns what splits each output. Raises: Indivisible."""
    owners = _owners(spec)
    arrays: dict[str, Array] = {}  # {output: its elements}, of those of which more than the bytes of rows is known
    plain: dict[str, _Splitter] = {}
    for tensor, data, shape in zip(spec.outputs, outputs, shapes, strict=True):
        try:
            if tensor.dtype in VARIABLE and not (_owner(tensor, owners) or tensor.count or any(tensor.dims)):
                plain[tensor.name] = _Elements(tensor, data, shape)
            else:
                arrays[tensor.name] = _array(tensor, data, shape)
        except ValueError as error:
            raise Indivisible(f"output {tensor.name}: {error}") from error
    found: list[_Splitter] = []
    for tensor, data in zip(spec.outputs, outputs, strict=True):
        owner = _owner(tensor, owners)
        if tensor.name in plain:
            found.append(plain[tensor.name])
        elif owner:
            found.append(_Owned(tensor, arrays[tensor.name], arrays[owner], batch))
        elif tensor.count:
            found.append(_Counted(tensor, arrays[tensor.name], arrays[tensor.count]))
        else:
            found.append(_Rows(tensor, arrays[tensor.name], data))
    return found


def _owners(spec: wire.ModelSpec) -> frozenset[str]:
    """Returns the names of the outputs that tell the row of each element."""
    return frozenset(tensor.owner for tensor in spec.outputs if tensor.owner)


def _owner(tensor: wire.TensorSpec, owners: frozenset[str]) -> str:
    """Returns the name of the output that tells the row of each of the tensor's elements; empty: each row has one."""
    return tensor.owner or (tensor.name if tensor.name in owners else "")


def _within(wanted: Shape) -> tuple[slice, ...]:
    return tuple(slice(None if extent == -1 else extent) for extent in wanted)


def _array(tensor: wire.TensorSpec, data: memoryview, shape: Shape) -> Array:
    """Returns the output's elements; strings as bytes. Raises: ValueError if the bytes are not those of the shape."""
    if tensor.dtype not in VARIABLE:
        return np.frombuffer(data, DTYPES[tensor.dtype]).reshape(shape)
    elements = np.empty(math.prod(shape), object)
    elements[:] = unpack(data, len(elements))
    return elements.reshape(shape)


def _copied(piece: _Piece) -> _Piece:
    return _Piece(memoryview(bytes(piece.data)), piece.shape, True)


def _packed(tensor: wire.TensorSpec, array: Array, *, copied: bool = False) -> _Piece:
    if tensor.dtype in VARIABLE:
        return _Piece(memoryview(pack(array.reshape(-1).tolist())), array.shape, True)
    return _Piece(raw(array), array.shape, copied or not array.flags.c_contiguous)
