"""Extents of requests in a model's open dimensions, and the shapes and bytes that follow from them. Pure.

A request has one extent for each open dimension of its model, in the order of `ModelSpec.dims`; all its rows have the
same. A batch is computed with the greatest extents among its requests, or with more.
"""

from collections.abc import Iterable, Sequence

from mesh import wire
from mesh.tensors import byte_count

Extents = tuple[int, ...]  # (): the model has no open dimension


def joint(sizes: Iterable[Extents]) -> Extents:
    """Returns the least extents that hold all of these: the greatest in each dimension."""
    return tuple(map(max, zip(*sizes, strict=True)))


def holds(outer: Extents, inner: Extents) -> bool:
    """Returns whether inputs of the extents `inner` can be padded to `outer`."""
    return len(outer) == len(inner) and all(own >= other for own, other in zip(outer, inner, strict=True))


def most_of(spec: wire.ModelSpec) -> Extents:
    """Returns the greatest extents that a request may have."""
    return tuple(dim.most for dim in spec.dims)


def row_shape(tensor: wire.TensorSpec, dims: Sequence[wire.Dim], extents: Extents) -> tuple[int, ...]:
    """Returns the shape of one row of the tensor, without the batch; -1 where an output's extent is its own."""
    if not tensor.dims:
        return tensor.shape[1:]
    known = {dim.name: extent for dim, extent in zip(dims, extents, strict=True)}
    return tuple(known.get(name, extent) for name, extent in zip(tensor.dims, tensor.shape[1:], strict=True))


def row_bytes(tensors: Sequence[wire.TensorSpec], dims: Sequence[wire.Dim], extents: Extents) -> tuple[int, ...]:
    """Returns the bytes of one row of each tensor with these extents; the tensors have neither strings nor bytes."""
    return tuple(byte_count(tensor.dtype, row_shape(tensor, dims, extents)) for tensor in tensors)
