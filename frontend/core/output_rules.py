"""Outputs whose shapes a request, or the model, decides: checked against the spec, and joined where a call was split.

Such are outputs with open dimensions, of strings, and of what is found in a row. What a worker says of shapes is never
trusted: wrong rows are refused before they reach a client. Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from frontend.core.elements import ELEMENTS_MAX, STRING, TEXT_BYTES_MAX, ElementFault, check_packed
from mesh import wire
from mesh.sizes import Extents, row_shape
from mesh.strings import pack, unpack
from mesh.tensors import VARIABLE, Array, byte_count, raw, view

Buffer = bytes | memoryview
Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]  # of the outputs, in the order of the spec, with the rows; (): as the spec says


class OutputFault(ValueError):
    """Why outputs are not those of the model; `str()` is a sentence's end: "boxes has ..."."""


@dataclass(frozen=True, slots=True)
class OutputPart:
    """The outputs of some of a call's rows."""

    rows: int
    outputs: Sequence[Buffer]
    shapes: Shapes


def rules_of(spec: wire.ModelSpec) -> "OutputRules | None":
    """Returns the rules for the model's outputs; None if their shapes are those of the spec, as with most models."""
    open_shapes = spec.exact or any(any(tensor.dims) or tensor.owner or tensor.count for tensor in spec.outputs)
    return OutputRules(spec) if open_shapes or any(t.dtype in VARIABLE for t in spec.outputs) else None


class OutputRules:
    """The rules for the outputs of one model."""

    def __init__(self, spec: wire.ModelSpec) -> None:
        self.spec = spec
        places = {tensor.name: place for place, tensor in enumerate(spec.outputs)}
        self._missing = [
            name for tensor in spec.outputs for name in (tensor.owner, tensor.count) if name and name not in places
        ]
        self._owners = {  # {place of an output whose first dimension is its own: place of the one that tells its rows}
            place: places.get(tensor.owner, place) for place, tensor in enumerate(spec.outputs) if tensor.owner
        }
        self._owners |= {owner: owner for owner in self._owners.values()}
        self._counts = {  # {place of an output with as many elements in each row: place of the one that counts them}
            place: places.get(tensor.count, place) for place, tensor in enumerate(spec.outputs) if tensor.count
        }

    # -- outputs of one part ------------------------------------------------------------------------------------------

    def checked(self, rows: int, extents: Extents, told: Shapes, outputs: Sequence[Buffer]) -> Shapes:
        """Returns the shapes of the outputs, which are the model's. `told`: by the worker. Raises: OutputFault."""
        specs = self.spec.outputs
        if self._missing:
            raise OutputFault(f"there is no output {self._missing[0]}, which tells of another one")
        if len(outputs) != len(specs):
            raise OutputFault(f"there are {len(outputs)} of {len(specs)}")
        if told and len(told) != len(specs):
            raise OutputFault(f"there are shapes of {len(told)}; it has {len(specs)}")
        expected = [(rows, *row_shape(tensor, self.spec.dims, extents)) for tensor in specs]
        shapes = told or tuple(expected)
        for place, tensor in enumerate(specs):
            self._check_shape(place, shapes[place], expected[place], outputs[place], tensor)
        self._check_elements(shapes, outputs)
        for place, owner in self._owners.items():
            if shapes[place][0] != shapes[owner][0]:
                raise OutputFault(f"{specs[place].name} and {specs[owner].name} have different numbers of elements")
        for owner in set(self._owners.values()):
            _check_range(self._numbers(owner, outputs, shapes, 1), rows - 1, specs[owner].name)
        for place, count in self._counts.items():
            _check_range(self._numbers(count, outputs, shapes, 1), shapes[place][1], specs[count].name)
        return shapes

    def _check_shape(self, place: int, shape: Shape, expected: Shape, data: Buffer, tensor: wire.TensorSpec) -> None:
        """Returns if the shape is one of this output, and the bytes are those of the shape."""
        fits = len(shape) == len(expected)
        for at, (extent, wanted) in enumerate(zip(shape, expected, strict=False)):
            if at == 0 and place in self._owners:
                continue
            if at == 1 and place in self._counts:
                fits = fits and (wanted == -1 or extent <= wanted)
            elif wanted != -1:
                fits = fits and extent == wanted
        if not fits or any(extent < 0 for extent in shape):
            raise OutputFault(f"{tensor.name} has shape {list(shape)[:8]}, and is due as {list(expected)}")
        if tensor.dtype not in VARIABLE and len(data) != byte_count(tensor.dtype, shape):
            raise OutputFault(f"{tensor.name} has {len(data)} bytes, which are none of shape {list(shape)[:8]}")

    def _check_elements(self, shapes: Shapes, outputs: Sequence[Buffer]) -> None:
        """Returns if strings are within the limits, and strings."""
        count = size = 0
        for tensor, shape, data in zip(self.spec.outputs, shapes, outputs, strict=True):
            if tensor.dtype not in VARIABLE:
                continue
            own = math.prod(shape)
            count += own
            size += len(data) if tensor.dtype == STRING else 0
            if count > ELEMENTS_MAX or size > TEXT_BYTES_MAX:
                most = f"{ELEMENTS_MAX} strings, and {TEXT_BYTES_MAX} bytes of text"
                raise OutputFault(f"{tensor.name}: an answer has at most {most}")
            try:
                check_packed(data, own, tensor.dtype)
            except ElementFault as fault:
                at = "" if fault.place is None else f"element {fault.place} "
                raise OutputFault(f"{tensor.name}: {at}{fault.text}") from None

    def _numbers(self, place: int, outputs: Sequence[Buffer], shapes: Shapes, dimensions: int) -> Array:
        """The int64 output of these many dimensions that tells of others. Raises: OutputFault, if it is another one."""
        tensor = self.spec.outputs[place]
        if tensor.dtype != "int64" or len(shapes[place]) != dimensions:
            raise OutputFault(f"{tensor.name} tells of other outputs, and is no int64 [n]")
        return view(outputs[place], tensor.dtype, shapes[place])

    # -- outputs of several parts -------------------------------------------------------------------------------------

    def joined(self, parts: Sequence[OutputPart]) -> tuple[list[Buffer], Shapes]:
        """Returns the outputs of the whole call, and their shapes. Raises: OutputFault, if they do not go together."""
        if len(parts) == 1:
            return list(parts[0].outputs), parts[0].shapes
        outputs: list[Buffer] = []
        shapes: list[Shape] = []
        for place in range(len(self.spec.outputs)):
            data, shape = self._join(place, parts)
            outputs.append(data)
            shapes.append(shape)
        if sum(math.prod(s) for t, s in zip(self.spec.outputs, shapes, strict=True) if t.dtype in VARIABLE) > (
            ELEMENTS_MAX
        ):
            raise OutputFault(f"an answer has at most {ELEMENTS_MAX} strings")
        return outputs, tuple(shapes)

    def _join(self, place: int, parts: Sequence[OutputPart]) -> tuple[Buffer, Shape]:
        """One output of all parts, and its shape."""
        tensor = self.spec.outputs[place]
        first = sum(part.shapes[place][0] for part in parts)
        rest = [part.shapes[place][1:] for part in parts]
        if place in self._counts:
            return self._join_counted(place, parts)
        if any(shape != rest[0] for shape in rest):
            raise OutputFault(f"{tensor.name} has other extents in some of its rows: {sorted(set(rest))[:4]}")
        if place in self._owners.values():
            return self._join_owners(place, parts), (first,)
        return b"".join(part.outputs[place] for part in parts), (first, *rest[0])

    def _join_owners(self, place: int, parts: Sequence[OutputPart]) -> Buffer:
        """The rows that elements belong to, counted over all parts."""
        owners, before = [], 0
        for part in parts:
            owners.append(self._numbers(place, part.outputs, part.shapes, 1) + before)
            before += part.rows
        return raw(np.concatenate(owners).astype("<i8"))

    def _join_counted(self, place: int, parts: Sequence[OutputPart]) -> tuple[Buffer, Shape]:
        """All rows, each with room for the greatest number of elements that there is; the room left is zero, or b""."""
        tensor = self.spec.outputs[place]
        arrays = [_array(part.outputs[place], tensor.dtype, part.shapes[place]) for part in parts]
        if any(array.shape[2:] != arrays[0].shape[2:] for array in arrays):
            raise OutputFault(f"{tensor.name} has other extents in some of its rows")
        shape = (sum(map(len, arrays)), max(array.shape[1] for array in arrays), *arrays[0].shape[2:])
        strings = tensor.dtype in VARIABLE
        whole: Array = np.full(shape, b"", object) if strings else np.zeros(shape, arrays[0].dtype)
        at = 0
        for array in arrays:
            whole[at : at + len(array), : array.shape[1]] = array
            at += len(array)
        return pack(whole.flat) if strings else raw(whole), shape


def _array(data: Buffer, dtype: str, shape: Shape) -> Array:
    """The output; of strings, an array of bytes objects."""
    if dtype not in VARIABLE:
        return view(data, dtype, shape)
    array = np.empty(math.prod(shape), object)
    array[:] = unpack(data, len(array))
    return array.reshape(shape)


def _check_range(numbers: Array, most: int, name: str) -> None:
    """Returns if all numbers lie in 0 to `most`."""
    if numbers.size and not (int(numbers.min()) >= 0 and int(numbers.max()) <= most):
        raise OutputFault(f"{name} goes from {numbers.min()} to {numbers.max()}, and must lie in 0 to {most}")
