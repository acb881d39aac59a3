"""Checks what must hold of every served model, by running it. No clock, no files, no threads.

    its outputs have the promised names, dtypes and shapes: one row out for each row in
    equal inputs give equal outputs
    a row gives the same alone and in a batch, at any place, with padding behind it: rows are independent
    a row gives the same at its own extents and filled up to greater ones, unless only equal extents share a batch

A batch holds rows of several clients: without the last one an answer would depend on other clients' requests.
"""

from collections.abc import Callable, Sequence

import torch

from gpu_worker.packages.apart import Apart, detection_faults, free, of_extents, shape_differs
from gpu_worker.packages.batches import (
    PAIRS,
    SEED,
    SEVERAL,
    BatchMaker,
    Draw,
    TrialBatch,
    laid_out,
    rare_rows,
    telling_rows,
)
from gpu_worker.packages.comparing import Rounding, Run, amount, same
from gpu_worker.packages.sizing import NOTHING_OPEN, Sizing, told
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.sizes import Extents

LONE = "output"  # name of the only output of a model that names none

INDEPENDENT = (
    "A batch has rows of several clients, so compute each by itself, with nothing that works across dimension 0, or "
    "give batch_max=1"
)
UNPADDED = (
    "Rows of other extents are filled up to share a batch: take a mask, a bool input that is True at real elements, "
    "and compute nothing from what it leaves out (of a mask of integers give rows that are one: example); or say with "
    "pad={input: value} what leaves the answer alone; or give exact=True, and only rows of equal extents share a "
    "batch; or serve the function as a container"
)
DRAWN = "An answer must depend on its request alone: leave out what is drawn at random, or take it as an input"


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
        self._make = BatchMaker(draw, padding, sizing, generator)
        self.alone, layouts = self._make.alone(), [list(pair) for pair in PAIRS] if batch_max > 1 else []
        if batch_max > 2:
            several = min(SEVERAL, batch_max)
            layouts += [laid_out(several, generator, padded=True), laid_out(several, generator, padded=False)]
        self._quick = len(layouts)
        if batch_max > SEVERAL:
            of = self._make.that_fit(batch_max)
            layouts.append(laid_out(batch_max, generator, padded=False, of=of))
        self.mixed = [self._make.mixed(layout) for layout in layouts]
        if batch_max > 1:
            self.mixed += self._make.pairs_of_equal()
        # each a row alone, filled up to greater extents
        self.padded = self._make.padded()
        self.beside = rare_rows([batch.inputs for batch in self.alone], sizing) if batch_max > 1 else []
        self.telling = telling_rows(self.alone, self.padded, sizing)

    @property
    def batches(self) -> list[TrialBatch]:
        """All batches that must run; those with rare values (`beside`, `telling`) may fail."""
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
                raise _padding_matters(place, spec, trial.sizing, batch, "", amount(expected, found, close))


def check_telling(
    place: str,
    specs: Sequence[wire.TensorSpec],
    run: Run,
    trial: Trial,
    results: Sequence[Sequence[torch.Tensor]],
    close: float,
) -> None:
    """A row gives the same filled up where its filling is not like it: where no flag is False, or all values are less.

    Not for a GPU, where a row that the model does not accept may end all use of the device. Raises: PackageError, code
    padding_matters.
    """
    apart = trial.apart(specs, results)
    for one in trial.telling:
        try:
            own = apart.lone(one.alone.inputs, list(run([tensor.clone() for tensor in one.alone.inputs])))
            outputs = apart.rows(list(run([tensor.clone() for tensor in one.filled.inputs])), one.filled.own)
        except Exception:  # the model need not accept such rows
            continue
        rounding = Rounding(_lone(run, apart), [one.alone.inputs], [own])
        for i, (spec, expected, found) in enumerate(zip(specs, own, outputs, strict=True)):
            if not same(expected, found, close) and not rounding.explains(i, [0], found):
                how = f" with {one.name}"
                raise _padding_matters(place, spec, trial.sizing, one.filled, how, amount(expected, found, close))


def _padding_matters(
    place: str, spec: wire.TensorSpec, sizing: Sizing, batch: TrialBatch, how: str, off: str
) -> PackageError:
    own, filled = told(sizing.dims, batch.own[0]), told(sizing.dims, sizing.of(batch.inputs))
    why = f"{named(spec.name)} of a row of {own}{how} is another one where the row is filled up to {filled}, {off}"
    return PackageError(place, [f"{why}. {UNPADDED}"], PackageCode.PADDING_MATTERS)


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
    apart, lone = trial.apart(specs, results), trial.of_rows(specs, results)[0]
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
