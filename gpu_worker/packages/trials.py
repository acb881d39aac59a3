"""Checks what must hold of every served model, by running it. No clock, no files, no threads.

    its outputs have the promised names, dtypes and shapes: one row out for each row in
    equal inputs give equal outputs
    a row gives the same alone and in a batch, at any place, with padding behind it: rows are independent

A batch holds rows of several clients: without the last one an answer would depend on other clients' requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gpu_worker.packages.comparing import Rounding, Run, amount, same
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError

# (rows, generator) -> inputs that a model can run on, each [rows, ...]
Draw = Callable[[int, torch.Generator], list[torch.Tensor]]

SEED = 20
ROWS = 4  # rows that are run alone
OTHER, PADDING = ROWS, ROWS + 1  # placeholders in a layout: another row, and padding
# Batches of two: a row at either place beside another, two beside each other, one twice, one before padding.
PAIRS = ((OTHER, 0), (1, OTHER), (2, 3), (0, 0), (3, PADDING))
SEVERAL = 5  # rows of the larger batches, beside one of batch_max rows
COMPANIONS = 3  # one row of so many in them, and at least one, is another
LARGE = 1e6  # values of a row beside which the tested row must not change

LONE = "output"  # name of the only output of a model that names none

INDEPENDENT = (
    "A batch has rows of several clients, so compute each by itself, with nothing that works across dimension 0, or "
    "give batch_max=1"
)
DRAWN = "An answer must depend on its request alone: leave out what is drawn at random, or take it as an input"


@dataclass(frozen=True, slots=True)
class TrialBatch:
    """Inputs of some rows, and for each row its index among the rows run alone; None for another row or padding."""

    inputs: tuple[torch.Tensor, ...]
    origins: tuple[int | None, ...]

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


class Trial:
    """Batches to run a model on: some rows alone, then the same rows with each other and with others, in several sizes.

    Companions differ from batch to batch, so a decision for the whole batch does not go the same way in all of them.
    """

    def __init__(self, draw: Draw, batch_max: int, padding: Sequence[torch.Tensor], seed: int = SEED) -> None:
        """`padding`: one row `[1, ...]` of each input."""
        generator = torch.Generator().manual_seed(seed)
        rows = draw(ROWS, generator)
        self.alone = [TrialBatch(tuple(tensor[i : i + 1] for tensor in rows), (i,)) for i in range(ROWS)]
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
    def batches(self) -> list[TrialBatch]:
        """All batches that must run; those with rare values (`beside`) may fail."""
        return [*self.alone, *self.mixed]

    @property
    def repeated(self) -> int:
        """The index of the batch that is run twice: one of several rows, but not the largest."""
        return len(self.alone) + self._quick - 1

    def run(self, run: Run) -> list[list[torch.Tensor]]:
        """Returns the outputs of each batch. Each batch runs on copies, so changes to inputs do not reach the next."""
        return [list(run([tensor.clone() for tensor in batch.inputs])) for batch in self.batches]


def _layout(size: int, generator: torch.Generator, *, padded: bool) -> list[int]:
    """Returns row indices in random order, repeated, with other rows between; padding or one of the rows comes last."""
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
) -> TrialBatch:
    """Returns the batch of this layout. Each OTHER becomes a new row."""
    drawn = draw(layout.count(OTHER) + ROWS, generator)
    tried = next(i for i in layout if i < ROWS)
    others = iter(_unlike(drawn, [tensor[tried] for tensor in rows]))
    made = []
    for i in layout:
        source, at = (rows, i) if i < ROWS else (padding, 0) if i == PADDING else (drawn, next(others))
        made.append([tensor[at : at + 1] for tensor in source])
    inputs = tuple(torch.cat(pieces) for pieces in zip(*made, strict=True))
    return TrialBatch(inputs, tuple(i if i < ROWS else None for i in layout))


def _unlike(drawn: Sequence[torch.Tensor], row: Sequence[torch.Tensor]) -> list[int]:
    """Returns the indices of the drawn rows, those that differ from `row` first."""
    alike = [all(torch.equal(t[i], r) for t, r in zip(drawn, row, strict=True)) for i in range(len(drawn[0]))]
    return sorted(range(len(alike)), key=lambda i: alike[i])


def _beside(rows: Sequence[torch.Tensor]) -> list[RareRowTrial]:
    """Returns pairs whose first row may change what is decided for the whole batch, however rarely.

    Floats are NaN, infinite or large: the output for such a row need not make sense, the one beside it must. Integers
    and flags are all the smallest or all the largest that were drawn.
    """
    first = [tensor[:1] for tensor in rows]
    found = []
    if any(tensor.is_floating_point() for tensor in rows):
        for name, value in (("NaN", torch.nan), ("infinity", torch.inf), ("-infinity", -torch.inf)):
            odd = [torch.full_like(t[1:2], value) if t.is_floating_point() else t[1:2] for t in rows]
            found.append(RareRowTrial(name, None, _pair(odd, first)))
        large = [t[1:2].sign() * LARGE if t.is_floating_point() else t[1:2] for t in rows]
        found.append(RareRowTrial("large values", None, _pair(large, first)))
    if not all(tensor.is_floating_point() for tensor in rows):
        for name, least in (("its smallest values", True), ("its largest values", False)):
            odd = [t[1:2] if t.is_floating_point() else _filled(t, least=least) for t in rows]
            found.append(RareRowTrial(name, TrialBatch(tuple(odd), (None,)), _pair(odd, first)))
    return found


def _filled(rows: torch.Tensor, *, least: bool) -> torch.Tensor:
    values = rows.flatten().tolist()
    return torch.full_like(rows[1:2], (min(values) if least else max(values)) if values else 0)


def _pair(odd: Sequence[torch.Tensor], row: Sequence[torch.Tensor]) -> TrialBatch:
    return TrialBatch(tuple(torch.cat(two) for two in zip(odd, row, strict=True)), (None, 0))


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    return [int(i) for i in torch.randperm(count, generator=generator)]


Promise = tuple[tuple[torch.dtype, tuple[int, ...]], ...]  # (dtype, shape of one row) of each output


def promise(specs: Sequence[wire.TensorSpec]) -> Promise:
    """Returns the dtypes and shapes that outputs must have."""
    return tuple((getattr(torch, spec.dtype), tuple(spec.shape[1:])) for spec in specs)


def keeps(promised: Promise, outputs: Sequence[torch.Tensor], rows: int) -> bool:
    """Returns whether the outputs for `rows` rows are as promised. Quick, because every served batch is checked."""
    return len(outputs) == len(promised) and all(
        output.dtype is dtype and output.shape == (rows, *shape)
        for output, (dtype, shape) in zip(outputs, promised, strict=True)
    )


def output_faults(specs: Sequence[wire.TensorSpec], outputs: Sequence[torch.Tensor], rows: int) -> list[str]:
    """Returns one sentence for each output that is not as promised."""
    if len(outputs) != len(specs):
        return [f"the model gives {len(outputs)} outputs, {len(specs)} are promised"]
    return [
        f"output {spec.name}: the model gives {str(output.dtype).removeprefix('torch.')} {list(output.shape)} for "
        f"{counted(rows)}, promised is {spec.dtype} {list(spec.shape)}"
        for spec, output in zip(specs, outputs, strict=True)
        if tuple(output.shape) != (rows, *spec.shape[1:]) or str(output.dtype) != f"torch.{spec.dtype}"
    ]


def counted(rows: int) -> str:
    """Returns the number of rows in words."""
    return "1 row" if rows == 1 else f"{rows} rows"


def code_of(outputs: Sequence[torch.Tensor], rows: int) -> PackageCode:
    """The code of outputs that are not as promised: what is wrong with them most."""
    changed = any(tensor.ndim < 1 or len(tensor) != rows for tensor in outputs)
    return PackageCode.ROWS_CHANGED if changed else PackageCode.BAD_OUTPUTS


def check(
    place: str, specs: Sequence[wire.TensorSpec], run: Run, trial: Trial, close: float
) -> list[list[torch.Tensor]]:
    """The outputs fit, are repeatable, and rows are independent. Returns the outputs of the trial's batches.

    Raises: PackageError, code bad_outputs, rows_changed, random or rows_mixed; whatever `run` raises.
    """
    results = []
    for batch in trial.batches:
        outputs = list(run([tensor.clone() for tensor in batch.inputs]))
        faults = output_faults(specs, outputs, batch.rows)
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
    """Returns the effect of rounding on the rows that are run alone. `results`: outputs of the trial's batches."""
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
    """Each row gives in a batch what it gives alone. `where`: names the line that mixes rows; called only on failure.

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
    """A row gives the same beside a row of rare values.

    NaN shows any computation across rows, however small its effect.

    Not for a GPU, where such a row may end all use of the device. Raises: PackageError, code rows_mixed.
    """
    rounding = rounding_of(run, trial, results)
    for odd in trial.beside:
        try:
            own = None if odd.alone is None else list(run([tensor.clone() for tensor in odd.alone.inputs]))
            outputs = run([tensor.clone() for tensor in odd.pair.inputs])
        except Exception:  # the model need not accept such rows
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
    """Returns the output's name in a sentence; a single output has no name of its own."""
    return "the output" if output == LONE else f"output {output}"
