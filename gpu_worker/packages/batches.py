"""Batches that a model is tried on: rows alone, together, with others, beside rare values, and filled up. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gpu_worker.packages.sizing import LARGE_POSITIONS, PAIR_POSITIONS, Sizing, product
from mesh import wire
from mesh.sizes import Extents, holds, joint

# (rows, generator) -> inputs that a model can run on, each [rows, ...]; of a model with open dimensions also
# (rows, generator, extents) -> such inputs of these extents
Draw = Callable[..., list[torch.Tensor]]

SEED = 20
ROWS = 4  # rows that are run alone
OTHER, PADDING = ROWS, ROWS + 1  # placeholders in a layout: another row, and padding
# Batches of two: a row at either place beside another, two beside each other, one twice, one before padding.
PAIRS = ((OTHER, 0), (1, OTHER), (2, 3), (0, 0), (3, PADDING))
SEVERAL = 5  # rows of the larger batches, beside one of batch_max rows
COMPANIONS = 3  # one row of so many in them, and at least one, is another
LARGE = 1e6  # values of a row beside which the tested row must not change


@dataclass(frozen=True, slots=True)
class TrialBatch:
    """Inputs of some rows, and for each row its index among the rows run alone; None for another row or padding."""

    inputs: tuple[torch.Tensor, ...]
    origins: tuple[int | None, ...]
    own: tuple[Extents, ...] = ()  # extents of each row; (): those of the batch

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.origins)

    @property
    def tried(self) -> tuple[list[int], list[int]]:
        """(indices of the rows run alone that are in it, their places in the batch)."""
        there = [(origin, at) for at, origin in enumerate(self.origins) if origin is not None]
        return [origin for origin, _ in there], [at for _, at in there]


@dataclass(frozen=True, slots=True)
class RareRowTrial:
    """A row of rare values, alone and in front of a row that is run alone."""

    name: str
    alone: TrialBatch | None  # None: the output for the rare row itself is not compared
    pair: TrialBatch


@dataclass(frozen=True, slots=True)
class FilledRowTrial:
    """A row that shows what it is filled up with, whatever that changes: alone, and filled up."""

    name: str
    alone: TrialBatch
    filled: TrialBatch


class BatchMaker:
    """Makes the batches of a trial."""

    def __init__(self, draw: Draw, padding: Sequence[torch.Tensor], sizing: Sizing, generator: torch.Generator) -> None:
        self._draw, self._padding, self._sizing, self._generator = draw, padding, sizing, generator
        self._rows: list[list[torch.Tensor]] = []  # inputs of each row that is run alone, [1, ...]
        # extents of each of these; only the first ROWS of them are in all kinds of batches
        self._own: list[Extents] = []

    def alone(self) -> list[TrialBatch]:
        """Returns the rows alone: four, and of exact models pairs of equal extents, too."""
        sizing = self._sizing
        if not sizing.dims:
            rows = self._draw(ROWS, self._generator)
            self._rows = [[tensor[i : i + 1] for tensor in rows] for i in range(ROWS)]
            self._own = [()] * ROWS
        else:
            self._own = [sizing.usual] * ROWS if sizing.exact else list(sizing.tried)
            if sizing.exact:
                self._own += [extents for extents in (sizing.least, *sizing.tried[1:]) for _ in range(2)]
            if sizing.most not in self._own:
                self._own.append(sizing.most)
            self._rows = [self._draw(1, self._generator, extents) for extents in self._own]
        return [TrialBatch(tuple(row), (i,)) for i, row in enumerate(self._rows)]

    def that_fit(self, rows: int) -> list[int]:
        """Returns the rows run alone of which a batch of so many has not too many positions; at least one."""
        if not self._sizing.dims or self._sizing.exact:
            return list(range(ROWS))
        fitting = [i for i in range(ROWS) if rows * product(joint(self._own[: i + 1])) <= LARGE_POSITIONS]
        return fitting or [0]

    def mixed(self, layout: Sequence[int]) -> TrialBatch:
        """Returns the batch of this layout. Each OTHER becomes a new row, PADDING the row that fills batches up."""
        there = [i for i in layout if i < ROWS]
        tried = self._rows[there[0]]
        extents = joint(self._own[i] for i in there)
        drawn, like = self._others(layout.count(OTHER) + ROWS, there), [tensor[0] for tensor in tried]
        others = iter(_unlike(drawn, like))
        pieces, own = [], []
        for i in layout:
            row = self._rows[i] if i < ROWS else self._filling(extents) if i == PADDING else drawn[next(others)]
            pieces.append(self._sizing.padded(row, extents))
            own.append(self._sizing.of(row))
        inputs = tuple(torch.cat(tensors) for tensors in zip(*pieces, strict=True))
        origins = tuple(i if i < ROWS else None for i in layout)
        return TrialBatch(inputs, origins, tuple(own) if self._sizing.dims else ())

    def _others(self, count: int, there: Sequence[int]) -> list[list[torch.Tensor]]:
        """Returns new rows, of the extents of those that are `there`, in turn."""
        if not self._sizing.dims:
            drawn = self._draw(count, self._generator)
            return [[tensor[i : i + 1] for tensor in drawn] for i in range(count)]
        return [self._draw(1, self._generator, self._own[there[i % len(there)]]) for i in range(count)]

    def _filling(self, extents: Extents) -> list[torch.Tensor]:
        exact = self._sizing.dims and self._sizing.exact
        return self._sizing.fitted(self._padding, extents) if exact else list(self._padding)

    def pairs_of_equal(self) -> list[TrialBatch]:
        """Returns pairs of the rows of equal extents of an exact model; none of other models."""
        found = []
        for i in range(ROWS, len(self._own) - 1, 2) if self._sizing.exact and self._sizing.dims else ():
            if self._own[i] == self._own[i + 1] and 2 * product(self._own[i]) <= PAIR_POSITIONS:
                inputs = tuple(torch.cat(two) for two in zip(self._rows[i], self._rows[i + 1], strict=True))
                found.append(TrialBatch(inputs, (i, i + 1), (self._own[i], self._own[i])))
        return found

    def padded(self) -> list[TrialBatch]:
        """Returns rows alone, filled up to greater extents: a little, much, and to the greatest; none if exact."""
        if not self._sizing.dims or self._sizing.exact:
            return []
        most, middle, top = self._sizing.most, joint(self._own[1:3]), self._own[3]
        more = tuple(min(own + 1, limit) for own, limit in zip(self._own[0], most, strict=True))
        each = [(i, extents) for i in range(ROWS - 1) for extents in (middle, top)]
        goals = dict.fromkeys([(0, more), (0, most), *each])
        found = []
        for i, goal in goals:
            if goal != self._own[i] and holds(goal, self._own[i]):
                row = tuple(self._sizing.padded(self._rows[i], goal))
                found.append(TrialBatch(row, (i,), (self._own[i],)))
        return found


def laid_out(size: int, generator: torch.Generator, *, padded: bool, of: Sequence[int] = range(ROWS)) -> list[int]:
    """Returns row indices in random order, repeated, with other rows between; padding or one of the rows comes last.

    `of`: the rows that may be in it.
    """
    others = max(1, (size - 1) // COMPANIONS)
    order = [of[i] for i in _shuffled(len(of), generator)]
    rows = [order[i % len(of)] for i in range(size - 1 - others)] + [OTHER] * others
    places = _shuffled(len(rows), generator)
    return [rows[place] for place in places] + [PADDING if padded else order[0]]


def _unlike(drawn: Sequence[Sequence[torch.Tensor]], row: Sequence[torch.Tensor]) -> list[int]:
    """Returns the indices of the drawn rows, those that differ from `row` first."""
    alike = [all(torch.equal(t[0], r) for t, r in zip(one, row, strict=True)) for one in drawn]
    return sorted(range(len(alike)), key=lambda i: alike[i])


def rare_rows(alone: Sequence[Sequence[torch.Tensor]], sizing: Sizing) -> list[RareRowTrial]:
    """Returns pairs whose first row may change what is decided for the whole batch, however rarely.

    Floats are NaN, infinite or large: the output for such a row need not make sense, the one beside it must. Integers
    and flags are all the smallest or all the largest that were drawn. `alone`: inputs of the rows that are run alone.
    """
    first, second = alone[0], alone[1]
    rows = [torch.cat([row[i].flatten() for row in alone[:ROWS]]) for i in range(len(first))]  # all values of each
    own = (sizing.of(second), sizing.of(first)) if sizing.dims else ()
    found = []
    if any(tensor.is_floating_point() for tensor in rows):
        for name, value in (("NaN", torch.nan), ("infinity", torch.inf), ("-infinity", -torch.inf)):
            odd = [torch.full_like(t, value) if t.is_floating_point() else t for t in second]
            found.append(RareRowTrial(name, None, _pair(odd, first, own, sizing)))
        large = [t.sign() * LARGE if t.is_floating_point() else t for t in second]
        found.append(RareRowTrial("large values", None, _pair(large, first, own, sizing)))
    if not all(tensor.is_floating_point() for tensor in rows):
        for name, least in (("its smallest values", True), ("its largest values", False)):
            odd = [
                t if t.is_floating_point() else _filled(t, values, least=least)
                for t, values in zip(second, rows, strict=True)
            ]
            # a row that its mask leaves out as a whole has no answer that filling it up could leave alone
            none = least and any(any(spec.dims) and spec.dtype == "bool" for spec in sizing.inputs)
            alone_too = None if none else TrialBatch(tuple(odd), (None,))
            found.append(RareRowTrial(name, alone_too, _pair(odd, first, own, sizing)))
    return found


def telling_rows(alone: Sequence[TrialBatch], filled_up: Sequence[TrialBatch], sizing: Sizing) -> list[FilledRowTrial]:
    """Returns rows that show their filling where random ones hardly do: in what is True of all, and in the outermost.

    Random masks leave something out, and random rows have smaller and greater values than their filling, integers the
    least one that was drawn: filling up changes no maximum, no minimum and no set of them. `filled_up`: rows of
    `alone`, filled up to greater extents.
    """
    if not filled_up:
        return []
    goal = next((batch for batch in filled_up if batch.origins == (1,)), filled_up[0])
    ((origin,), _) = goal.tried
    row, extents = alone[origin].inputs, sizing.of(goal.inputs)
    kinds = (("no flag False", 0), ("smaller values than its filling", -1), ("greater values than its filling", 1))
    found, known = [], [row]
    for name, side in kinds:
        odd = tuple(_on_side(tensor, spec, side) for tensor, spec in zip(row, sizing.inputs, strict=True))
        if not any(all(map(torch.equal, odd, other)) for other in known):
            filled = tuple(sizing.padded(odd, extents))
            found.append(FilledRowTrial(name, TrialBatch(odd, (0,)), TrialBatch(filled, (0,), (sizing.of(row),))))
            known.append(odd)
    return found


def _on_side(tensor: torch.Tensor, spec: wire.TensorSpec, side: int) -> torch.Tensor:
    """Returns the input with all flags True, and all values below (-1) or above (1) its filling, or as they are (0).

    Which integers are valid is not known: all are the least or the greatest of the row, unless that is the filling.
    """
    if not any(spec.dims) or not tensor.numel():
        return tensor
    if tensor.dtype is torch.bool:
        return torch.ones_like(tensor)
    if not side:
        return tensor
    if tensor.is_floating_point():
        return (spec.pad + side * tensor.double().abs()).to(tensor.dtype)
    value = int(tensor.min() if side < 0 else tensor.max())
    return tensor if value == spec.pad else torch.full_like(tensor, value)


def _filled(row: torch.Tensor, drawn: torch.Tensor, *, least: bool) -> torch.Tensor:
    values = drawn.tolist()
    return torch.full_like(row, (min(values) if least else max(values)) if values else 0)


def _pair(
    odd: Sequence[torch.Tensor], row: Sequence[torch.Tensor], own: tuple[Extents, ...], sizing: Sizing
) -> TrialBatch:
    extents = joint(own)
    two = zip(sizing.padded(odd, extents), sizing.padded(row, extents), strict=True)
    return TrialBatch(tuple(torch.cat(each) for each in two), (None, 0), own)


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    return [int(i) for i in torch.randperm(count, generator=generator)]
