"""What must hold of every model that is served, tried by running it. No clock, no files, no threads.

    its outputs have the promised names, dtypes and shapes: one row out for each row in
    equal inputs give equal outputs
    a row alone gives the same as among others, in any place, with padding behind it: rows are independent

A batch is made of strangers' rows, so without the last one an answer would depend on who else asks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gpu_worker.packages.comparing import Rounding, Run, amount, same
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError

Draw = Callable[[int, torch.Generator], list[torch.Tensor]]  # so many rows of inputs that a model can run on

SEED = 20
ROWS = 4  # that are tried alone
OTHER, PADDING = ROWS, ROWS + 1  # rows of a batch that are none of those
# Of batches of two: in both places, beside another, beside each other, twice the same, and before padding.
PAIRS = ((OTHER, 0), (1, OTHER), (2, 3), (0, 0), (3, PADDING))
SEVERAL = 5  # rows of larger batches, beside the largest
COMPANIONS = 3  # one of so many rows in them, at least one, is another
LARGE = 1e6  # values of a row beside which another must stay what it is

LONE = "output"  # name of the output of a model that has one, and no name for it

INDEPENDENT = (
    "A batch has rows of several clients, so compute each by itself, with nothing that works across dimension 0, or "
    "give batch_max=1"
)
DRAWN = "An answer must depend on its request alone: leave out what is drawn at random, or take it as an input"


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of some rows, and which of the rows that are tried alone each of them is; None: another, or padding."""

    inputs: tuple[torch.Tensor, ...]
    origins: tuple[int | None, ...]

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.origins)

    @property
    def tried(self) -> tuple[list[int], list[int]]:
        """(which of the rows that are tried alone are in it, and where)."""
        there = [(origin, at) for at, origin in enumerate(self.origins) if origin is not None]
        return [origin for origin, _ in there], [at for _, at in there]


@dataclass(frozen=True, slots=True)
class Beside:
    """A row of values that models see rarely, alone and before one that is tried alone."""

    name: str
    alone: Batch | None  # None: what it gives itself is not compared
    pair: Batch


class Trial:
    """Batches to run a model on: each of some rows alone, then these among each other and others, in several sizes.

    Each batch has other companions, so that what is decided for a whole batch is not decided alike in all of them.
    """

    def __init__(self, draw: Draw, batch_max: int, padding: Sequence[torch.Tensor], seed: int = SEED) -> None:
        """`padding`: of each input one row [1, ...]."""
        generator = torch.Generator().manual_seed(seed)
        rows = draw(ROWS, generator)
        self.alone = [Batch(tuple(tensor[i : i + 1] for tensor in rows), (i,)) for i in range(ROWS)]
        layouts = [list(pair) for pair in PAIRS] if batch_max > 1 else []
        if batch_max > 2:
            several = min(SEVERAL, batch_max)
            layouts += [_layout(several, generator, padded=True), _layout(several, generator, padded=False)]
        self._quick = len(layouts)
        if batch_max > SEVERAL:
            layouts.append(_layout(batch_max, generator, padded=False))
        self.mixed = [_batch(draw, rows, padding, layout, generator) for layout in layouts]
        self.beside = _beside(rows) if batch_max > 1 else []

    @property
    def batches(self) -> list[Batch]:
        """All that must run: what is beside rare values need not."""
        return [*self.alone, *self.mixed]

    @property
    def repeated(self) -> int:
        """Which of the batches is run twice: one of several rows, that is no large one."""
        return len(self.alone) + self._quick - 1

    def run(self, run: Run) -> list[list[torch.Tensor]]:
        """The outputs of each batch. What the model does to its inputs is not seen by the next one."""
        return [list(run([tensor.clone() for tensor in batch.inputs])) for batch in self.batches]


def _layout(size: int, generator: torch.Generator, *, padded: bool) -> list[int]:
    """The rows in another order, again and again, others between them; in the last place padding, or one of them."""
    others = max(1, (size - 1) // COMPANIONS)
    order = _shuffled(ROWS, generator)
    rows = [order[i % ROWS] for i in range(size - 1 - others)] + [OTHER] * others
    places = _shuffled(len(rows), generator)
    return [rows[place] for place in places] + [PADDING if padded else order[0]]


def _batch(
    draw: Draw,
    rows: Sequence[torch.Tensor],
    padding: Sequence[torch.Tensor],
    layout: Sequence[int],
    generator: torch.Generator,
) -> Batch:
    """Every OTHER is one more row."""
    drawn = draw(layout.count(OTHER) + ROWS, generator)
    tried = next(i for i in layout if i < ROWS)
    others = iter(_unlike(drawn, [tensor[tried] for tensor in rows]))
    made = []
    for i in layout:
        source, at = (rows, i) if i < ROWS else (padding, 0) if i == PADDING else (drawn, next(others))
        made.append([tensor[at : at + 1] for tensor in source])
    inputs = tuple(torch.cat(pieces) for pieces in zip(*made, strict=True))
    return Batch(inputs, tuple(i if i < ROWS else None for i in layout))


def _unlike(drawn: Sequence[torch.Tensor], row: Sequence[torch.Tensor]) -> list[int]:
    """Which of the rows drawn are companions, those that are not this one first."""
    alike = [all(torch.equal(t[i], r) for t, r in zip(drawn, row, strict=True)) for i in range(len(drawn[0]))]
    return sorted(range(len(alike)), key=lambda i: alike[i])


def _beside(rows: Sequence[torch.Tensor]) -> list[Beside]:
    """Rows that decide what is decided for a whole batch, however rarely.

    Floats that are no numbers, or large: a row of them need not make sense, the row beside it must. Integers and flags
    that are all the smallest, or all the largest, that were drawn.
    """
    first = [tensor[:1] for tensor in rows]
    found = []
    if any(tensor.is_floating_point() for tensor in rows):
        for name, value in (("NaN", torch.nan), ("infinity", torch.inf), ("-infinity", -torch.inf)):
            odd = [torch.full_like(t[1:2], value) if t.is_floating_point() else t[1:2] for t in rows]
            found.append(Beside(name, None, _pair(odd, first)))
        large = [t[1:2].sign() * LARGE if t.is_floating_point() else t[1:2] for t in rows]
        found.append(Beside("large values", None, _pair(large, first)))
    if not all(tensor.is_floating_point() for tensor in rows):
        for name, least in (("its smallest values", True), ("its largest values", False)):
            odd = [t[1:2] if t.is_floating_point() else _filled(t, least=least) for t in rows]
            found.append(Beside(name, Batch(tuple(odd), (None,)), _pair(odd, first)))
    return found


def _filled(rows: torch.Tensor, *, least: bool) -> torch.Tensor:
    values = rows.flatten().tolist()
    return torch.full_like(rows[1:2], (min(values) if least else max(values)) if values else 0)


def _pair(odd: Sequence[torch.Tensor], row: Sequence[torch.Tensor]) -> Batch:
    return Batch(tuple(torch.cat(two) for two in zip(odd, row, strict=True)), (None, 0))


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    return [int(i) for i in torch.randperm(count, generator=generator)]


Promise = tuple[tuple[torch.dtype, tuple[int, ...]], ...]  # (dtype, shape of one row) of each output


def promise(specs: Sequence[wire.TensorSpec]) -> Promise:
    """What outputs are held to."""
    return tuple((getattr(torch, spec.dtype), tuple(spec.shape[1:])) for spec in specs)


def keeps(promised: Promise, outputs: Sequence[torch.Tensor], rows: int) -> bool:
    """Whether the outputs of so many rows are what was promised. Quick: it is asked of every batch that is served."""
    return len(outputs) == len(promised) and all(
        output.dtype is dtype and output.shape == (rows, *shape)
        for output, (dtype, shape) in zip(outputs, promised, strict=True)
    )


def misfits(specs: Sequence[wire.TensorSpec], outputs: Sequence[torch.Tensor], rows: int) -> list[str]:
    """In what the outputs of so many rows are not what was promised."""
    if len(outputs) != len(specs):
        return [f"the model gives {len(outputs)} outputs, {len(specs)} are promised"]
    return [
        f"output {spec.name}: the model gives {str(output.dtype).removeprefix('torch.')} {list(output.shape)} for "
        f"{counted(rows)}, promised is {spec.dtype} {list(spec.shape)}"
        for spec, output in zip(specs, outputs, strict=True)
        if tuple(output.shape) != (rows, *spec.shape[1:]) or str(output.dtype) != f"torch.{spec.dtype}"
    ]


def counted(rows: int) -> str:
    """So many rows, in words."""
    return "1 row" if rows == 1 else f"{rows} rows"


def code_of(outputs: Sequence[torch.Tensor], rows: int) -> PackageCode:
    """The code of outputs that misfit: what is wrong with them most."""
    changed = any(tensor.ndim < 1 or len(tensor) != rows for tensor in outputs)
    return PackageCode.ROWS_CHANGED if changed else PackageCode.BAD_OUTPUTS


def check(
    place: str, specs: Sequence[wire.TensorSpec], run: Run, trial: Trial, close: float
) -> list[list[torch.Tensor]]:
    """All of the above holds. Returns the outputs of the trial's batches.

    Raises: PackageError, code bad_outputs, random or rows_mixed; whatever `run` raises.
    """
    results = []
    for batch in trial.batches:
        outputs = list(run([tensor.clone() for tensor in batch.inputs]))
        faults = misfits(specs, outputs, batch.rows)
        if faults:
            raise PackageError(place, faults, code_of(outputs, batch.rows))
        results.append(outputs)
    names = [spec.name for spec in specs]
    check_repeated(place, names, run, trial, results, close)
    check_rows(place, names, run, trial, results, close)
    return results


def check_repeated(
    place: str, names: Sequence[str], run: Run, trial: Trial, results: Sequence[Sequence[torch.Tensor]], close: float
) -> None:
    """Equal inputs give equal outputs. Raises: PackageError, code random."""
    again = run([tensor.clone() for tensor in trial.batches[trial.repeated].inputs])
    for name, one, other in zip(names, results[trial.repeated], again, strict=True):
        if not same(one, other, close):
            raise PackageError(
                place, [f"{named(name)} differs from run to run on equal inputs. {DRAWN}"], PackageCode.RANDOM
            )


def rounding_of(run: Run, trial: Trial, results: Sequence[Sequence[torch.Tensor]]) -> Rounding:
    """What rounding makes of the rows that are tried alone. `results`: of the trial's batches."""
    return Rounding(run, [batch.inputs for batch in trial.alone], results[: len(trial.alone)])


def check_rows(
    place: str,
    names: Sequence[str],
    run: Run,
    trial: Trial,
    results: Sequence[Sequence[torch.Tensor]],
    close: float,
    where: Callable[[], str] = str,
) -> None:
    """Each row gives among others what it gives alone. `where`: says at which line it does not, if it does not.

    Raises: PackageError, code rows_mixed.
    """
    alone, mixed = results[: len(trial.alone)], results[len(trial.alone) :]
    rounding = rounding_of(run, trial, results)
    for batch, outputs in zip(trial.mixed, mixed, strict=True):
        origins, kept = batch.tried
        for i, name in enumerate(names):
            expected, found = torch.cat([output[i] for output in alone])[origins], outputs[i][kept]
            if not same(expected, found, close) and not rounding.explains(i, origins, found):
                how = f"alone it is another one than in a batch of {batch.rows}, {amount(expected, found, close)}"
                raise PackageError(place, [_mixed(name, where(), how)], PackageCode.ROWS_MIXED)


def check_beside(
    place: str,
    names: Sequence[str],
    run: Run,
    trial: Trial,
    results: Sequence[Sequence[torch.Tensor]],
    close: float,
    where: Callable[[], str] = str,
) -> None:
    """A row is the same beside one of rare values: NaN shows what is computed of both, however little it changes.

    Not for a GPU, where such a row may end all use of it. Raises: PackageError, code rows_mixed.
    """
    rounding = rounding_of(run, trial, results)
    for odd in trial.beside:
        try:
            own = None if odd.alone is None else list(run([tensor.clone() for tensor in odd.alone.inputs]))
            outputs = run([tensor.clone() for tensor in odd.pair.inputs])
        except Exception:  # it need not take such rows
            continue
        of_odd = None if own is None or odd.alone is None else Rounding(run, [odd.alone.inputs], [own])
        for i, (name, alone, found) in enumerate(zip(names, results[0], outputs, strict=True)):
            fine = len(found) == 2 and (same(alone, found[1:], close) or rounding.explains(i, [0], found[1:]))
            if fine and own is not None and of_odd is not None:
                fine = same(own[i], found[:1], close) or of_odd.explains(i, [0], found[:1])
            if not fine:
                how = f"beside a row of {odd.name} it is another one"
                raise PackageError(place, [_mixed(name, where(), how)], PackageCode.ROWS_MIXED)


def _mixed(output: str, where: str, how: str) -> str:
    return f"{named(output)} of a row depends on the other rows of its batch{where}: {how}. {INDEPENDENT}"


def named(output: str) -> str:
    """The output, for a sentence: the only one has no name of its own."""
    return "the output" if output == LONE else f"output {output}"
