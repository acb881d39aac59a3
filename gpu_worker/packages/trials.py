"""Checks what must hold of every served model, by running it. No clock, no files, no threads.

    its outputs have the promised names, dtypes and shapes: one row out for each row in
    equal inputs give equal outputs
    a row gives the same alone and in a batch, at any place, with padding behind it: rows are independent
    a row gives the same at its own extents and filled up to greater ones, unless only equal extents share a batch

A batch holds rows of several clients: without the last one an answer would depend on other clients' requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gpu_worker.packages.apart import Apart, detection_faults, free, of_extents, shape_differs
from gpu_worker.packages.comparing import Rounding, Run, amount, same
from gpu_worker.packages.sizing import LARGE_POSITIONS, NOTHING_OPEN, PAIR_POSITIONS, Sizing, product, told
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
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

LONE = "output"  # name of the only output of a model that names none

INDEPENDENT = (
    "A batch has rows of several clients, so compute each by itself, with nothing that works across dimension 0, or "
    "give batch_max=1"
)
UNPADDED = (
    "Rows of other extents are filled up to share a batch: take a mask, a bool input that is True at real elements, "
    "and compute nothing from what it leaves out; or say with pad={input: value} what leaves the answer alone; or give "
    "exact=True, and only rows of equal extents share a batch; or serve the function as a container"
)
DRAWN = "An answer must depend on its request alone: leave out what is drawn at random, or take it as an input"


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


class Trial:
    """Batches to run a model on: some rows alone, then the same rows with each other and with others, in several sizes.

    Companions differ from batch to batch, so a decision for the whole batch does not go the same way in all of them.
    Rows of a model with open dimensions have extents from the least to the greatest, as far as batches stay small: the
    greatest may be tried with one row alone.
    """

    def __init__(
        self,
        draw: Draw,
        batch_max: int,
        padding: Sequence[torch.Tensor],
        seed: int = SEED,
        sizing: Sizing = NOTHING_OPEN,
    ) -> None:
        """`padding`: one row `[1, ...]` of each input; with open dimensions, of the least extents."""
        generator = torch.Generator().manual_seed(seed)
        self.sizing = sizing
        self._make = _Maker(draw, padding, sizing, generator)
        self.alone, layouts = self._make.alone(), [list(pair) for pair in PAIRS] if batch_max > 1 else []
        if batch_max > 2:
            several = min(SEVERAL, batch_max)
            layouts += [_layout(several, generator, padded=True), _layout(several, generator, padded=False)]
        self._quick = len(layouts)
        if batch_max > SEVERAL:
            of = self._make.that_fit(batch_max)
            layouts.append(_layout(batch_max, generator, padded=False, of=of))
        self.mixed = [self._make.mixed(layout) for layout in layouts]
        if batch_max > 1:
            self.mixed += self._make.pairs_of_equal()
        # each a row alone, filled up to greater extents
        self.padded = self._make.padded()
        self.beside = _beside([batch.inputs for batch in self.alone], sizing) if batch_max > 1 else []

    @property
    def batches(self) -> list[TrialBatch]:
        """All batches that must run; those with rare values (`beside`) may fail."""
        return [*self.alone, *self.mixed, *self.padded]

    @property
    def repeated(self) -> int:
        """The index of the batch that is run twice: one of several rows, but not the largest."""
        return len(self.alone) + self._quick - 1

    def run(self, run: Run) -> list[list[torch.Tensor]]:
        """Returns the outputs of each batch. Each batch runs on copies, so changes to inputs do not reach the next."""
        return [list(run([tensor.clone() for tensor in batch.inputs])) for batch in self.batches]

    def apart(self, specs: Sequence[wire.TensorSpec], results: Sequence[Sequence[torch.Tensor]]) -> Apart:
        """Returns what takes outputs apart by row. `results`: outputs of the trial's batches."""
        return Apart(specs, self.sizing, results[: len(self.alone)])

    def of_rows(
        self, specs: Sequence[wire.TensorSpec], results: Sequence[Sequence[torch.Tensor]]
    ) -> list[list[torch.Tensor]]:
        """Returns the outputs of each batch, each `[rows, ...]` and of one shape of a row in all batches."""
        apart = self.apart(specs, results)
        return [
            apart.rows(outputs, self.extents_in(batch)) for batch, outputs in zip(self.batches, results, strict=True)
        ]

    def extents_in(self, batch: TrialBatch) -> tuple[Extents, ...]:
        """Returns the extents of each row of the batch."""
        return batch.own or (self.sizing.of(batch.inputs),) * batch.rows


class _Maker:
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


def _layout(size: int, generator: torch.Generator, *, padded: bool, of: Sequence[int] = range(ROWS)) -> list[int]:
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


def _beside(alone: Sequence[Sequence[torch.Tensor]], sizing: Sizing) -> list[RareRowTrial]:
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


def output_faults(
    specs: Sequence[wire.TensorSpec],
    outputs: Sequence[torch.Tensor],
    rows: int,
    sizing: Sizing = NOTHING_OPEN,
    extents: Extents = (),
) -> list[str]:
    """Returns one sentence for each output that is not as promised. `extents`: of the batch."""
    if len(outputs) != len(specs):
        return [f"the model gives {len(outputs)} outputs, {len(specs)} are promised"]
    loose = free(specs)
    faults = [
        f"output {spec.name}: the model gives {str(output.dtype).removeprefix('torch.')} {list(output.shape)} for "
        f"{counted(rows)}{of_extents(sizing, extents)}, promised is {spec.dtype} {promised(spec)}"
        for spec, output in zip(specs, outputs, strict=True)
        if shape_differs(spec, sizing, output, None if spec.name in loose else rows, extents)
    ]
    return faults or detection_faults(specs, outputs, rows)


def promised(spec: wire.TensorSpec) -> list[int | str]:
    """Returns the shape that was promised, as model.toml has it."""
    dims = spec.dims or ("",) * len(spec.shape[1:])
    return [*spec.shape[:1], *(name or extent for name, extent in zip(dims, spec.shape[1:], strict=True))]


def counted(rows: int) -> str:
    """Returns the number of rows in words."""
    return "1 row" if rows == 1 else f"{rows} rows"


def code_of(outputs: Sequence[torch.Tensor], rows: int, specs: Sequence[wire.TensorSpec] = ()) -> PackageCode:
    """The code of outputs that are not as promised: what is wrong with them most."""
    loose = {i for i, spec in enumerate(specs) if spec.name in free(specs)}
    changed = any(t.ndim < 1 or len(t) != rows for i, t in enumerate(outputs) if i not in loose)
    return PackageCode.ROWS_CHANGED if changed else PackageCode.BAD_OUTPUTS


def check(
    place: str, specs: Sequence[wire.TensorSpec], run: Run, trial: Trial, close: float
) -> list[list[torch.Tensor]]:
    """The outputs fit, are repeatable, and rows are independent of each other and of what they are filled up with.

    Returns the outputs of the trial's batches. Raises: PackageError, code bad_outputs, rows_changed, random,
    padding_matters or rows_mixed; whatever `run` raises.
    """
    results = []
    for batch in trial.batches:
        outputs = list(run([tensor.clone() for tensor in batch.inputs]))
        faults = output_faults(specs, outputs, batch.rows, trial.sizing, trial.sizing.of(batch.inputs))
        if faults:
            raise PackageError(place, faults, code_of(outputs, batch.rows, specs))
        results.append(outputs)
    check_repeated(place, specs, run, trial, results, close)
    check_padding(place, specs, run, trial, results, close)
    check_rows(place, specs, run, trial, results, close)
    return results


def check_repeated(
    place: str,
    specs: Sequence[wire.TensorSpec],
    run: Run,
    trial: Trial,
    results: Sequence[Sequence[torch.Tensor]],
    close: float,
) -> None:
    """Equal inputs give equal outputs. Raises: PackageError, code random."""
    again = run([tensor.clone() for tensor in trial.batches[trial.repeated].inputs])
    for spec, one, other in zip(specs, results[trial.repeated], again, strict=True):
        if not same(one, other, close):
            raise PackageError(
                place, [f"{named(spec.name)} differs from run to run on equal inputs. {DRAWN}"], PackageCode.RANDOM
            )


def rounding_of(
    specs: Sequence[wire.TensorSpec], run: Run, trial: Trial, results: Sequence[Sequence[torch.Tensor]]
) -> Rounding:
    """Returns the effect of rounding on the rows that are run alone. `results`: outputs of the trial's batches."""
    apart = trial.apart(specs, results)
    alone = trial.of_rows(specs, results)[: len(trial.alone)]
    return Rounding(_lone(run, apart), [batch.inputs for batch in trial.alone], alone)


def _lone(run: Run, apart: Apart) -> Run:
    return lambda inputs: apart.lone(inputs, run(inputs))


def check_padding(
    place: str,
    specs: Sequence[wire.TensorSpec],
    run: Run,
    trial: Trial,
    results: Sequence[Sequence[torch.Tensor]],
    close: float,
) -> None:
    """Each row gives at its own extents what it gives alone, filled up. Raises: PackageError, code padding_matters."""
    if not trial.padded:
        return
    rows, rounding = trial.of_rows(specs, results), rounding_of(specs, run, trial, results)
    for batch, outputs in zip(trial.padded, rows[-len(trial.padded) :], strict=True):
        ((origin,), _) = batch.tried
        for i, spec in enumerate(specs):
            expected, found = rows[origin][i], outputs[i]
            if not same(expected, found, close) and not rounding.explains(i, [origin], found):
                dims, own, filled = trial.sizing.dims, batch.own[0], trial.sizing.of(batch.inputs)
                why = (
                    f"{named(spec.name)} of a row of {told(dims, own)} is another one where the row is filled up to "
                    f"{told(dims, filled)}, {amount(expected, found, close)}. {UNPADDED}"
                )
                raise PackageError(place, [why], PackageCode.PADDING_MATTERS)


def check_rows(
    place: str,
    specs: Sequence[wire.TensorSpec],
    run: Run,
    trial: Trial,
    results: Sequence[Sequence[torch.Tensor]],
    close: float,
    where: Callable[[], str] = str,
) -> None:
    """Each row gives in a batch what it gives alone. `where`: names the line that mixes rows; called only on failure.

    Raises: PackageError, code rows_mixed.
    """
    rows, first = trial.of_rows(specs, results), len(trial.alone)
    alone, mixed = rows[:first], rows[first : first + len(trial.mixed)]
    rounding = rounding_of(specs, run, trial, results)
    for batch, outputs in zip(trial.mixed, mixed, strict=True):
        origins, kept = batch.tried
        for i, spec in enumerate(specs):
            expected, found = torch.cat([output[i] for output in alone])[origins], outputs[i][kept]
            if not same(expected, found, close) and not rounding.explains(i, origins, found):
                how = f"alone it is another one than in a batch of {batch.rows}, {amount(expected, found, close)}"
                raise PackageError(place, [_mixed(spec.name, where(), how)], PackageCode.ROWS_MIXED)


def check_beside(
    place: str,
    specs: Sequence[wire.TensorSpec],
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
    apart, lone = trial.apart(specs, results), trial.of_rows(specs, results[: len(results)])[0]
    rounding = rounding_of(specs, run, trial, results)
    for odd in trial.beside:
        try:
            own = None if odd.alone is None else list(run([tensor.clone() for tensor in odd.alone.inputs]))
            outputs = run([tensor.clone() for tensor in odd.pair.inputs])
        except Exception:  # the model need not accept such rows
            continue
        fits = not output_faults(specs, outputs, 2, trial.sizing, trial.sizing.of(odd.pair.inputs))
        if fits:
            outputs = apart.rows(outputs, trial.extents_in(odd.pair))
        of_odd = None
        if own is not None and odd.alone is not None:
            own = apart.lone(odd.alone.inputs, own)
            of_odd = Rounding(_lone(run, apart), [odd.alone.inputs], [own])
        for i, (spec, alone, found) in enumerate(zip(specs, lone, outputs, strict=True)):
            fine = fits and (same(alone, found[1:], close) or rounding.explains(i, [0], found[1:]))
            if fine and own is not None and of_odd is not None:
                fine = same(own[i], found[:1], close) or of_odd.explains(i, [0], found[:1])
            if not fine:
                how = f"beside a row of {odd.name} it is another one"
                raise PackageError(place, [_mixed(spec.name, where(), how)], PackageCode.ROWS_MIXED)


def _mixed(output: str, where: str, how: str) -> str:
    return f"{named(output)} of a row depends on the other rows of its batch{where}: {how}. {INDEPENDENT}"


def named(output: str) -> str:
    """Returns the output's name in a sentence; a single output has no name of its own."""
    return "the output" if output == LONE else f"output {output}"
