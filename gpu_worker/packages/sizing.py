"""Open dimensions of a model: inputs at given extents, filled up to greater ones, and which extents are tried. Pure.

All rows of a request have the same extents, one for each open dimension. Rows of other extents are filled up to those
of their batch, each input with its own value (`TensorSpec.pad`), unless the model is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul

import torch
from msgspec import structs

from mesh import wire
from mesh.sizes import Extents, most_of, row_shape

USUAL = 8  # extent at which inputs are looked for; each further dimension has STEP more, so that they can be told apart
STEP = 3
PAIR_POSITIONS = 1 << 16  # rows times extents of the larger of the small batches that are tried
LARGE_POSITIONS = 1 << 15  # of batches of more rows
STEPS = 30  # of a bisection of the way from the least to the greatest extents


@dataclass(frozen=True, slots=True)
class Sizing:
    """The inputs of a model and their open dimensions."""

    inputs: tuple[wire.TensorSpec, ...] = ()
    dims: tuple[wire.Dim, ...] = ()
    exact: bool = False  # nothing is filled up: only rows of equal extents share a batch

    @property
    def least(self) -> Extents:
        """The least extents."""
        return tuple(dim.least for dim in self.dims)

    @property
    def most(self) -> Extents:
        """The greatest extents."""
        return tuple(dim.most for dim in self.dims)

    @property
    def usual(self) -> Extents:
        """Small extents that differ from each other where their ranges allow it."""
        return tuple(min(dim.most, max(dim.least, USUAL + STEP * i)) for i, dim in enumerate(self.dims))

    def top(self, positions: int) -> Extents:
        """Returns the greatest extents on the way to `most` whose product is at most `positions`, or the least."""
        low, high = 0.0, 1.0
        if product(self.most) <= positions:
            return self.most
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if product(self.at(middle, self.most)) <= positions else (low, middle)
        return self.at(low, self.most)

    def at(self, share: float, top: Extents) -> Extents:
        """Returns the extents at this share of the way from the least to `top`, by ratio."""
        return tuple(
            min(most, max(least, round(least * (most / least) ** share)))
            for least, most in zip(self.least, top, strict=True)
        )

    @property
    def tried(self) -> tuple[Extents, ...]:
        """The extents of four rows: the least, two between of which neither holds the other, and the greatest."""
        top = self.top(PAIR_POSITIONS // 2)
        one, other = self.at(1 / 3, top), self.at(2 / 3, top)
        return self.least, (*one[:1], *other[1:]), (*other[:1], *one[1:]), top

    def raised(self, least: int) -> "Sizing | None":
        """Returns the same with no least extent below this one; None if that changes nothing, or leaves no range."""
        dims = tuple(structs.replace(dim, least=max(dim.least, least)) for dim in self.dims)
        there = dims != self.dims and all(dim.least <= usual for dim, usual in zip(dims, self.usual, strict=True))
        return Sizing(self.inputs, dims, self.exact) if there else None

    def of(self, inputs: Sequence[torch.Tensor]) -> Extents:
        """Returns the extents of these inputs, `[rows, ...]` each."""
        found = {
            name: int(extent)
            for spec, tensor in zip(self.inputs, inputs, strict=True)
            for name, extent in zip(spec.dims, tensor.shape[1:], strict=bool(spec.dims))
            if name
        } if self.dims else {}  # fmt: skip
        return tuple(found[dim.name] for dim in self.dims)

    def padded(self, inputs: Sequence[torch.Tensor], extents: Extents) -> list[torch.Tensor]:
        """Returns the inputs filled up to these extents, which hold theirs."""
        return [self._padded(spec, tensor, extents) for spec, tensor in zip(self.inputs, inputs, strict=True)] if (
            self.dims
        ) else list(inputs)  # fmt: skip

    def _padded(self, spec: wire.TensorSpec, tensor: torch.Tensor, extents: Extents) -> torch.Tensor:
        shape = (len(tensor), *row_shape(spec, self.dims, extents))
        if tuple(tensor.shape) == shape:
            return tensor
        value = bool(spec.pad) if tensor.dtype is torch.bool else spec.pad
        whole = torch.full(shape, value if tensor.is_floating_point() or value is False else int(value))
        whole = whole.to(tensor.dtype)
        whole[tuple(slice(extent) for extent in tensor.shape)] = tensor
        return whole

    def zeros(self, rows: int, extents: Extents) -> list[torch.Tensor]:
        """Returns so many rows of zeros of each input, of these extents."""
        return [
            torch.zeros((rows, *row_shape(spec, self.dims, extents)), dtype=getattr(torch, spec.dtype))
            for spec in self.inputs
        ]

    def fitted(self, inputs: Sequence[torch.Tensor], extents: Extents) -> list[torch.Tensor]:
        """Returns the inputs cut to these extents, or repeated up to them.

        Integers of an input without open dimensions may be lengths: if none is above the extents that the inputs have,
        none is above the new ones.
        """
        own = self.of(inputs)
        if own == extents:
            return list(inputs)
        return [self._fitted(spec, tensor, own, extents) for spec, tensor in zip(self.inputs, inputs, strict=True)]

    def _fitted(self, spec: wire.TensorSpec, tensor: torch.Tensor, own: Extents, extents: Extents) -> torch.Tensor:
        if not any(spec.dims):
            lengths = not tensor.is_floating_point() and tensor.dtype is not torch.bool and tensor.numel()
            if lengths and int(tensor.max()) <= max(own):
                return tensor.clamp(max=min(extents))
            return tensor
        shape = row_shape(spec, self.dims, extents)
        for i, (extent, there) in enumerate(zip(shape, tensor.shape[1:], strict=True), 1):
            if extent != there:
                tensor = tensor.index_select(i, torch.arange(extent) % there)
        return tensor


NOTHING_OPEN = Sizing()


def sizing_of(spec: wire.ModelSpec) -> Sizing:
    """Returns the open dimensions of a model; NOTHING_OPEN if it has none."""
    return Sizing(spec.inputs, spec.dims, spec.exact) if spec.dims else NOTHING_OPEN


def product(extents: Extents) -> int:
    """Returns the number of positions that these extents span."""
    return reduce(mul, extents, 1)


def told(dims: Sequence[wire.Dim], extents: Extents) -> str:
    """Returns the extents in words, as "seq=8, w=3"."""
    return ", ".join(f"{dim.name}={extent}" for dim, extent in zip(dims, extents, strict=True))


def greatest_row(spec: wire.ModelSpec, tensor: wire.TensorSpec) -> tuple[int, ...]:
    """Returns the shape of the largest row of a tensor."""
    return row_shape(tensor, spec.dims, most_of(spec))
