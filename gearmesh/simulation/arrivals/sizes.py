"""Sizes of requests: laws from which the extents in the open dimensions of a model are drawn. Pure.

A law is drawn for each open dimension by itself, unless it names the dimensions, or a file gives the extents of both.
What a law draws beyond its least and greatest extent is taken to be these.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from mesh import wire

Sizes: TypeAlias = npt.NDArray[np.int32]  # [requests, dimensions]


class SizeLaw(Protocol):
    """How the extents of requests are distributed."""

    def draw(self, count: int, dims: Sequence[wire.Dim], rng: np.random.Generator) -> Sizes:
        """The extents of so many requests of a model with these open dimensions [count, dimensions]."""
        ...

    def fault(self, dims: Sequence[wire.Dim]) -> str:
        """Why requests of a model with these open dimensions cannot have such sizes; empty if they can."""
        ...


def _ranges(dims: Sequence[wire.Dim], least: int | None, most: int | None) -> list[tuple[int, int]]:
    """The least and greatest extent in each dimension: the law's, or else the dimension's."""
    return [(dim.least if least is None else least, dim.most if most is None else most) for dim in dims]


def _range_fault(dims: Sequence[wire.Dim], least: int | None, most: int | None) -> str:
    for dim, (low, high) in zip(dims, _ranges(dims, least, most), strict=True):
        if not dim.least <= low <= high <= dim.most:
            return f"least {low} and most {high} must lie in the range of {dim.name}, {dim.least} to {dim.most}"
    return ""


@dataclass(frozen=True, slots=True)
class LogNormalSizes:
    """The logarithm is normal."""

    median: float
    sigma: float  # standard deviation of the natural logarithm
    least: int | None = None
    most: int | None = None

    def draw(self, count: int, dims: Sequence[wire.Dim], rng: np.random.Generator) -> Sizes:
        """Rounded to whole numbers."""
        found = np.rint(self.median * np.exp(self.sigma * rng.standard_normal((count, len(dims)))))
        low, high = zip(*_ranges(dims, self.least, self.most), strict=True)
        return np.asarray(np.clip(found, low, high).astype(np.int32))

    def fault(self, dims: Sequence[wire.Dim]) -> str:
        """Least and greatest extent must lie in each dimension's range."""
        return _range_fault(dims, self.least, self.most)


@dataclass(frozen=True, slots=True)
class UniformSizes:
    """Each whole number in the range is as likely as any other."""

    least: int | None = None
    most: int | None = None

    def draw(self, count: int, dims: Sequence[wire.Dim], rng: np.random.Generator) -> Sizes:
        """Whole numbers, both ends included."""
        columns = [rng.integers(low, high + 1, count) for low, high in _ranges(dims, self.least, self.most)]
        return np.stack(columns, axis=1).astype(np.int32)

    def fault(self, dims: Sequence[wire.Dim]) -> str:
        """Least and greatest extent must lie in each dimension's range."""
        return _range_fault(dims, self.least, self.most)


@dataclass(frozen=True, slots=True, eq=False)
class ListedSizes:
    """Some sizes, each with its probability: given one by one, or those of recorded requests."""

    values: Sizes  # [values, 1], drawn for each dimension; or [values, dimensions]
    shares: npt.NDArray[np.float64] | None = None  # [values], their sum is 1; None: all are as likely

    def draw(self, count: int, dims: Sequence[wire.Dim], rng: np.random.Generator) -> Sizes:
        """Drawn with replacement."""
        columns = self.values.shape[1]
        if columns == len(dims):
            return np.asarray(self.values[rng.choice(len(self.values), count, p=self.shares)])
        drawn = [self.values[rng.choice(len(self.values), count, p=self.shares), 0] for _ in dims]
        return np.stack(drawn, axis=1)

    def fault(self, dims: Sequence[wire.Dim]) -> str:
        """All values must lie in each dimension's range."""
        if self.values.shape[1] not in (1, len(dims)):
            return (
                f"it gives {self.values.shape[1]} extents for each request; the model has {len(dims)} open dimensions"
            )
        for column, dim in enumerate(dims):
            values = self.values[:, column % self.values.shape[1]]
            if values.min() < dim.least or values.max() > dim.most:
                wanted = f"must lie in the range of {dim.name}, {dim.least} to {dim.most}"
                return f"extents {wanted}; they reach from {values.min()} to {values.max()}"
        return ""


@dataclass(frozen=True, slots=True)
class MixedSizes:
    """Each request follows one of several laws."""

    laws: tuple[SizeLaw, ...]
    shares: tuple[float, ...]  # their sum is 1

    def draw(self, count: int, dims: Sequence[wire.Dim], rng: np.random.Generator) -> Sizes:
        """Which law is drawn for each request."""
        which = rng.choice(len(self.laws), count, p=self.shares)
        found = np.empty((count, len(dims)), np.int32)
        for index, law in enumerate(self.laws):
            chosen = which == index
            found[chosen] = law.draw(int(chosen.sum()), dims, rng)
        return found

    def fault(self, dims: Sequence[wire.Dim]) -> str:
        """The first fault of its laws."""
        return next(filter(None, (law.fault(dims) for law in self.laws)), "")


@dataclass(frozen=True, slots=True)
class NamedSizes:
    """A law for each dimension, by its name."""

    laws: dict[str, SizeLaw] = field(default_factory=dict)

    def draw(self, count: int, dims: Sequence[wire.Dim], rng: np.random.Generator) -> Sizes:
        """Independent of each other."""
        return np.concatenate([self.laws[dim.name].draw(count, [dim], rng) for dim in dims], axis=1)

    def fault(self, dims: Sequence[wire.Dim]) -> str:
        """There must be a law for each dimension."""
        for dim in dims:
            if dim.name not in self.laws:
                return f"there is no law for {dim.name}; there are: {', '.join(self.laws)}"
            fault = self.laws[dim.name].fault([dim])
            if fault:
                return f"{dim.name}: {fault}"
        return ""
