"""Rows of inputs that a model can run on: the author's own, or random ones whose kind is found by trying.

Random floats are normal; the scale differs from row to row. Nobody knows which integers are valid (an index below a
table's size, a length above zero), so ranges are tried, widest first; each draw includes both ends of the range.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gpu_worker.packages.batches import Draw
from gpu_worker.packages.comparing import Run, finite_share
from gpu_worker.packages.sizing import LARGE_POSITIONS, NOTHING_OPEN, Sizing, told
from mesh import wire
from mesh.errors import PackageError
from mesh.sizes import Extents, row_shape

TRIED_ROWS = 4
MASKED = 0.75  # share of True in a random mask
SCALES = (1.0, 0.1, 10.0, 0.5)  # of the rows of random floats, in turn
ENOUGH = 0.25  # share of finite outputs at which no narrower values are tried
WIDTHS = (30_000, 1000, 100, 10, 5, 3, 2)  # of integer ranges that start at zero: token ids, classes, flags, ...
SEED = 40


@dataclass(frozen=True, slots=True)
class ValueKind:
    """How values of one input are drawn: normal | unit | ones | mask | coin | yes | no | range."""

    name: str
    low: int = 0
    high: int = 0  # end of a range, exclusive
    dim: int | None = None  # open dimension whose extent is added to `high`

    @property
    def varies(self) -> bool:
        """Whether the drawn values can differ from each other."""
        if self.name == "range":
            return self.dim is not None or self.high - self.low > 1
        return self.name in ("normal", "unit", "coin", "mask")

    def draw(
        self, dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator, extents: Extents = ()
    ) -> torch.Tensor:
        """Returns values of this shape, `[rows, ...]`, for a model whose open dimensions have these extents."""
        if self.name == "normal":
            scales = torch.tensor([SCALES[i % len(SCALES)] for i in range(shape[0])])
            drawn = torch.randn(shape, generator=generator) * scales.view(-1, *[1] * (len(shape) - 1))
            return drawn.to(dtype)
        if self.name == "unit":
            return torch.rand(shape, generator=generator).to(dtype)
        if self.name == "coin":
            return torch.rand(shape, generator=generator) < 0.5
        if self.name == "mask":  # of each row, the first element is there
            mask = torch.rand(shape, generator=generator) < MASKED
            mask.view(len(mask), -1)[:, :1] = True
            return mask
        if self.name == "range":
            high = self.high + (0 if self.dim is None else extents[self.dim])
            values = torch.randint(self.low, max(high, self.low + 1), shape, generator=generator).flatten()
            if len(values):  # include both ends: what works for them works for everything between
                values[0], values[-1] = max(high - 1, self.low), self.low
            return values.view(shape).to(dtype)
        return torch.full(shape, self.name != "no").to(dtype)


def kinds(spec: wire.TensorSpec, extents: Sequence[int], sizing: Sizing = NOTHING_OPEN) -> list[ValueKind]:
    """Returns the kinds to try for an input, the widest first.

    `extents`: the fixed extents of all inputs; a valid length is at most one of them. Integers of an input without an
    open dimension are taken for lengths in one first, of a model that has any.
    """
    dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return [ValueKind("normal"), ValueKind("unit"), ValueKind("ones")]
    if dtype is torch.bool:
        return [
            *([ValueKind("mask")] if any(spec.dims) else []), ValueKind("coin"), ValueKind("yes"), ValueKind("no"),
        ]  # fmt: skip
    most = torch.iinfo(dtype).max + 1
    lengths = [ValueKind("range", low, low, dim) for dim in range(len(sizing.dims)) for low in (1, 0)]
    ranges = {(0, min(width, most)) for width in (*WIDTHS, *extents, min(most, 256))}
    ranges |= {(1, min(extent + 1, most)) for extent in (*extents, 1) if extent < most} | {(0, 1)}
    known = [ValueKind("range", low, high) for low, high in sorted(ranges, key=lambda r: (r[1], r[0]), reverse=True)]
    if not any(spec.dims):
        return lengths + known
    at = next((i for i, kind in enumerate(known) if kind.high <= min(sizing.usual, default=0)), len(known))
    return known[:at] + lengths + known[at:]


def _begun(drawn: torch.Tensor, spec: wire.TensorSpec, kind: ValueKind) -> torch.Tensor:
    """Returns drawn integers of which no row begins with what fills it up: as a mask, it would hide the whole row."""
    if kind.name == "range" and kind.high - 1 > spec.pad >= kind.low and any(spec.dims) and drawn.numel():
        first = drawn.view(len(drawn), -1)[:, :1]
        first[first == int(spec.pad)] = kind.high - 1
    return drawn


@dataclass(frozen=True, slots=True)
class Drawn:
    """Draws random rows, each input of its kind."""

    specs: tuple[wire.TensorSpec, ...]
    kinds: tuple[ValueKind, ...]
    sizing: Sizing = NOTHING_OPEN

    def draw(self, rows: int, generator: torch.Generator, extents: Extents = ()) -> list[torch.Tensor]:
        """Returns one tensor `[rows, ...]` for each input, of these extents or else of usual ones."""
        dims, extents = self.sizing.dims, extents or self.sizing.usual
        return [
            _begun(
                kind.draw(getattr(torch, spec.dtype), (rows, *row_shape(spec, dims, extents)), generator, extents),
                spec,
                kind,
            )
            for spec, kind in zip(self.specs, self.kinds, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Draws from rows that are known to be valid, in random order; of other extents, cut or repeated to them."""

    rows: tuple[torch.Tensor, ...]  # one tensor for each input
    sizing: Sizing = NOTHING_OPEN

    def draw(self, rows: int, generator: torch.Generator, extents: Extents = ()) -> list[torch.Tensor]:
        """Returns one tensor `[rows, ...]` for each input. Each kept row is used once before any is used again.

        Without `extents`, the rows have their own.
        """
        there = len(self.rows[0])
        order = [i for _ in range(-(-rows // there)) for i in torch.randperm(there, generator=generator).tolist()]
        chosen = [tensor[torch.tensor(order[:rows])] for tensor in self.rows]
        return self.sizing.fitted(chosen, extents) if extents else chosen

    def filling(self) -> list[torch.Tensor]:
        """Returns the row `[1, ...]` that fills batches up: the first one, of the least extents."""
        first = [tensor[:1] for tensor in self.rows]
        return self.sizing.fitted(first, self.sizing.least) if self.sizing.dims else first


def filling(draw: Draw, sizing: Sizing, seed: int) -> list[torch.Tensor]:
    """Returns a row `[1, ...]` to fill batches up with in a trial: a drawn one, of the least extents."""
    generator = torch.Generator().manual_seed(seed)
    return draw(1, generator, sizing.least) if sizing.dims else draw(1, generator)


def find(
    specs: Sequence[wire.TensorSpec], run: Run, batch_max: int, sizing: Sizing = NOTHING_OPEN
) -> tuple[Drawn | None, Exception | None]:
    """Returns (random inputs that `run` accepts, None), or (None, why it rejects the simplest ones).

    Raises: PackageError that `run` raises, because the inputs are not the cause then.
    """
    search = _Search(tuple(specs), run, min(batch_max, TRIED_ROWS), sizing)
    return search.find(), search.why


def harmless(specs: Sequence[wire.TensorSpec], sizing: Sizing = NOTHING_OPEN) -> Drawn:
    """Returns random floats; integers are zero, which is a valid index of any table."""
    chosen = [kinds(spec, ()) for spec in specs]
    kept = tuple(found[0] if found[0].name in ("normal", "mask") else found[-1] for found in chosen)
    return Drawn(tuple(specs), kept, sizing)


class _Search:
    """Tries kinds of inputs, one combination after the other."""

    def __init__(self, specs: tuple[wire.TensorSpec, ...], run: Run, rows: int, sizing: Sizing) -> None:
        extents = sorted({extent for spec in specs for extent in spec.shape[1:] if extent > 0})
        self._specs, self._run, self._rows, self._sizing = specs, run, rows, sizing
        self._kinds = [kinds(spec, extents, sizing) for spec in specs]
        self._floats = [kind[0].name == "normal" for kind in self._kinds]
        self._shares: dict[tuple[ValueKind, ...], float | None] = {}
        self.why: Exception | None = None

    def find(self) -> Drawn | None:
        """Returns kinds that work together: integers as wide as possible, floats whose outputs are finite."""
        chosen = next((choice for choice in self._together() if self._tried(choice) is not None), None)
        if chosen is None:
            return None
        for i in range(len(chosen)):
            if not self._floats[i]:
                chosen = self._widest(chosen, i)
        for i in range(len(chosen)):
            chosen = self._most_finite(chosen, i)
        if not self._tried(chosen):
            self.why = ValueError("no output is a finite number")  # such rows could show no difference
            return None
        self.why = None
        return Drawn(self._specs, chosen, self._sizing)

    def _together(self) -> Iterator[tuple[ValueKind, ...]]:
        """Yields combinations in which all floats are at one level and all other inputs at one level, widest first."""
        levels = max((len(k) for k, is_float in zip(self._kinds, self._floats, strict=True) if not is_float), default=1)
        for float_level, level in itertools.product(range(3 if any(self._floats) else 1), range(levels)):
            yield tuple(
                found[min(float_level if is_float else level, len(found) - 1)]
                for found, is_float in zip(self._kinds, self._floats, strict=True)
            )

    def _widest(self, chosen: tuple[ValueKind, ...], i: int) -> tuple[ValueKind, ...]:
        for kind in self._kinds[i]:
            if kind == chosen[i]:
                break
            wider = (*chosen[:i], kind, *chosen[i + 1 :])
            if self._tried(wider) is not None:
                return wider
        return chosen

    def _most_finite(self, chosen: tuple[ValueKind, ...], i: int) -> tuple[ValueKind, ...]:
        """Returns the choice with another kind for this input, if few outputs are finite and that kind makes more
        finite.
        """
        best, share = chosen, self._tried(chosen) or 0.0
        for kind in self._kinds[i] if share < ENOUGH else ():
            if chosen[i].varies and not kind.varies:
                continue  # equal rows show no difference
            other = (*chosen[:i], kind, *chosen[i + 1 :])
            found = self._tried(other)
            if found is not None and found > share:
                best, share = other, found
        return best

    def _tried(self, chosen: tuple[ValueKind, ...]) -> float | None:
        """Returns the share of finite outputs; None if the model cannot run on these inputs."""
        if chosen not in self._shares:
            self._shares[chosen] = self._try(chosen)
        return self._shares[chosen]

    def _run_at(self, rows: Sequence[torch.Tensor], extents: Extents) -> Sequence[torch.Tensor]:
        """Returns the outputs. Raises: ExtentsFailed, of a model with open dimensions."""
        try:
            return self._run(rows)
        except PackageError:
            raise
        except Exception as error:
            if not extents:
                raise
            raise ExtentsFailed(error, told(self._sizing.dims, extents)).with_traceback(error.__traceback__) from None

    def _try(self, chosen: tuple[ValueKind, ...]) -> float | None:
        sizing, generator = self._sizing, torch.Generator().manual_seed(SEED)
        source = Drawn(self._specs, chosen, sizing)
        drawn = source.draw(TRIED_ROWS, generator)
        try:
            batches = [*zip(*(torch.split(tensor, self._rows) for tensor in drawn), strict=True)]
            share = min(finite_share(self._run_at(batch, sizing.usual)) for batch in batches)
            for extents in dict.fromkeys((sizing.least, sizing.top(LARGE_POSITIONS))) if sizing.dims else ():
                self._run_at(source.draw(1, generator, extents), extents)
            return share
        except PackageError:
            raise
        except Exception as error:  # the author's code may raise anything
            self.why = error
            return None


class ExtentsFailed(Exception):
    """A model fails on inputs of some extents; `error` is what it raised, `told` the extents."""

    def __init__(self, error: Exception, told: str) -> None:
        super().__init__(str(error))
        self.error, self.told = error, told


def message_of(error: BaseException) -> str:
    """Returns the type and the first line of a foreign error. The rest of it is for those who wrote what raised it."""
    if isinstance(error, ExtentsFailed):
        return f"{message_of(error.error)}, with {error.told}"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:200].rstrip('.')}" if line else type(error).__name__


def not_run(why: str) -> str:
    """Returns the message for a model that fails on random inputs."""
    return (
        f"the model fails on random inputs: {why}. Are names, dtypes, shapes and dims right? If only some values "
        "are valid, give such rows: example={input: array}, two rows or more"
    )
