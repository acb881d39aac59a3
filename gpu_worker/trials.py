"""What must hold of every model that is served, tried by running it. No clock, no files, no threads.

    its outputs have the promised names, dtypes and shapes: one row out for each row in
    equal inputs give equal outputs
    a row alone gives the same as among others, in any place, with padding behind it: rows are independent

A batch is made of strangers' rows, so without the last one an answer would depend on who else asks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from broker import wire
from broker.errors import PackageError

Run = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]  # inputs -> outputs, rows first
Draw = Callable[[int, torch.Generator], list[torch.Tensor]]  # so many rows of inputs that a model can run on

SEED = 20
ROWS = 4  # that are tried alone
SIZES = (2, 2, 5, 5)  # of batches that they are tried in, beside the largest
COMPANIONS = 3  # one of so many rows in a batch, at least one, is of none of those
ROUNDING = 10.0  # times what a last bit makes: rounding was seen to make 2 times that. Source: tests/zoo, scripts/zoo
CHANGES = 2  # of last bits that are tried
SAME_INTEGERS = 0.999  # share of integers that must be equal: rounding may tip a few of thousands

# {dtype of the least exact step: largest difference, relative to the largest value of the row}. Some 1000 times
# float32's resolution: sums in another order are a hundred times closer. Source: tests/zoo
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TOLERANCE_GPU = 1e-2  # of float32 there: convolutions may be in TF32, with the resolution of float16
SMALL = 0.01  # a row whose values are smaller than this share of other rows' is compared as if they were not

LONE = "output"  # name of the output of a model that has one, and no name for it

INDEPENDENT = (
    "A batch has rows of several clients, so compute each by itself, with nothing that works across dimension 0, or "
    "give batch_max=1"
)
DRAWN = "An answer must depend on its request alone: leave out what is drawn at random, or take it as an input"


def tolerance(dtypes: Iterable[torch.dtype], place: torch.device) -> float:
    """The largest relative difference of equal results, where numbers of these dtypes are computed with."""
    found = max((TOLERANCE[dtype] for dtype in dtypes if dtype in TOLERANCE), default=0.0)
    return max(found, TOLERANCE_GPU) if place.type == "cuda" and found >= TOLERANCE[torch.float32] else found


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of some rows, and which of the rows that are tried alone each of them is; None: padding."""

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


class Trial:
    """Batches to run a model on: each of some rows alone, then these among each other and others, in several sizes.

    Each batch has other companions, so that what is decided for a whole batch is not decided alike in all of them.
    """

    def __init__(self, draw: Draw, batch_max: int, padding: Sequence[torch.Tensor], seed: int = SEED) -> None:
        """`padding`: of each input one row [1, ...]."""
        generator = torch.Generator().manual_seed(seed)
        rows = draw(ROWS, generator)
        self.alone = [Batch(tuple(tensor[i : i + 1] for tensor in rows), (i,)) for i in range(ROWS)]
        sizes = [size for size in SIZES if size < batch_max] + [batch_max] * (batch_max > 1)
        self.mixed = [_mixed(draw, rows, padding, size, generator) for size in sizes]
        self.beside_nan = _beside_nan(rows, batch_max)

    @property
    def batches(self) -> list[Batch]:
        """All of them."""
        return [*self.alone, *self.mixed]

    def run(self, run: Run) -> list[list[torch.Tensor]]:
        """The outputs of each batch. What the model does to its inputs is not seen by the next one."""
        return [list(run([tensor.clone() for tensor in batch.inputs])) for batch in self.batches]


def _mixed(
    draw: Draw,
    rows: Sequence[torch.Tensor],
    padding: Sequence[torch.Tensor],
    size: int,
    generator: torch.Generator,
) -> Batch:
    """The rows in another order, again and again, others between them, and at the end padding, if there is room."""
    padded = 1 if size > 2 else 0
    others = max(1, (size - padded) // COMPANIONS)
    order = _shuffled(len(rows[0]), generator)
    chosen = [order[i % len(order)] for i in range(size - padded - others)]
    there = torch.tensor(chosen + [len(rows[0]) + i for i in range(others)])
    places = torch.tensor(_shuffled(len(there), generator))
    drawn = draw(others + ROWS, generator)
    picked = torch.tensor(_shuffled(others + ROWS, generator)[:others])
    inputs = (
        torch.cat([torch.cat([tensor, other[picked]])[there[places]], *[pad] * padded])
        for tensor, other, pad in zip(rows, drawn, padding, strict=True)
    )
    origins: list[int | None] = [int(i) if i < len(rows[0]) else None for i in there[places]]
    return Batch(tuple(inputs), (*origins, *[None] * padded))


def _beside_nan(rows: Sequence[torch.Tensor], batch_max: int) -> Batch | None:
    """A row beside one whose floats are no numbers; None where there are no floats, or no second row."""
    if batch_max < 2 or not any(tensor.is_floating_point() for tensor in rows):
        return None
    nan = [torch.full_like(t[1:2], torch.nan) if t.is_floating_point() else t[1:2] for t in rows]
    return Batch(tuple(torch.cat([other, tensor[:1]]) for other, tensor in zip(nan, rows, strict=True)), (None, 0))


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


def code_of(outputs: Sequence[torch.Tensor], rows: int) -> str:
    """The code of outputs that misfit: what is wrong with them most."""
    return "rows_changed" if any(tensor.ndim < 1 or len(tensor) != rows for tensor in outputs) else "bad_outputs"


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
    at = repeated(trial)
    again = run([tensor.clone() for tensor in trial.batches[at].inputs])
    for name, one, other in zip(names, results[at], again, strict=True):
        if not same(one, other, close):
            raise PackageError(place, [f"{named(name)} differs from run to run on equal inputs. {DRAWN}"], "random")


def repeated(trial: Trial) -> int:
    """Which of its batches is run twice: one of several rows, that is no large one."""
    return min(len(trial.alone) + len(SIZES), len(trial.batches)) - 1


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
    rounding = Rounding(run, trial, alone)
    for batch, outputs in zip(trial.mixed, mixed, strict=True):
        origins, kept = batch.tried
        for i, name in enumerate(names):
            expected, found = torch.cat([output[i] for output in alone])[origins], outputs[i][kept]
            if not same(expected, found, close) and not rounding.explains(i, batch, outputs[i]):
                off = amount(difference(expected, found), close)
                told = f"{named(name)} of a row depends on the other rows of its batch{where()}"
                why = f"{told}: alone it is another one than in a batch of {batch.rows}, {off}. {INDEPENDENT}"
                raise PackageError(place, [why], "rows_mixed")


def check_beside_nan(
    place: str,
    names: Sequence[str],
    run: Run,
    trial: Trial,
    results: Sequence[Sequence[torch.Tensor]],
    close: float,
    where: Callable[[], str] = str,
) -> None:
    """A row is the same beside one that is no number: whatever is computed of both, however little, would be none.

    Not for a GPU, where such a row may end all use of it. Raises: PackageError, code rows_mixed.
    """
    if trial.beside_nan is None:
        return
    try:
        outputs = run([tensor.clone() for tensor in trial.beside_nan.inputs])
    except Exception:  # it need not take such rows
        return
    rounding = Rounding(run, trial, results[: len(trial.alone)])
    for i, (name, alone, found) in enumerate(zip(names, results[0], outputs, strict=True)):
        if len(found) != 2 or not (same(alone, found[1:], close) or rounding.explains(i, trial.beside_nan, found)):
            told = f"{named(name)} of a row depends on the other rows of its batch{where()}"
            why = f"{told}: beside a row of NaN it is another one. {INDEPENDENT}"
            raise PackageError(place, [why], "rows_mixed")


class Rounding:
    """How much of a difference is nothing but rounding: as much as a change of the inputs' last bits makes.

    A deep network may make some per cent of a last bit, and in a batch sums are in another order than alone.
    """

    def __init__(self, run: Run, trial: Trial, alone: Sequence[Sequence[torch.Tensor]]) -> None:
        self._run, self._trial, self._alone = run, trial, alone
        self._noise: list[torch.Tensor] = []  # of each output, by row; measured once it is asked for

    def explains(self, output: int, batch: Batch, found: torch.Tensor) -> bool:
        """Whether what was found for the batch may be the same, as far as its rows are those that are tried alone."""
        expected = self._expected(output)
        if len(found) != batch.rows or expected.shape[1:] != found.shape[1:] or expected.dtype != found.dtype:
            return False
        origins, kept = batch.tried
        if not self._noise:
            self._measure()
        allowed = (ROUNDING * self._noise[output]).clamp(max=1.0)[origins]
        return bool((differences(expected[origins], found[kept]) <= allowed).all())

    def _expected(self, output: int) -> torch.Tensor:
        return torch.cat([outputs[output] for outputs in self._alone])

    def _measure(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        noise = [torch.zeros(len(self._alone), dtype=torch.float64) for _ in self._alone[0]]
        for _ in range(CHANGES):
            changed = [
                self._run([last_bits(tensor, generator) for tensor in batch.inputs]) for batch in self._trial.alone
            ]
            for i, worst in enumerate(noise):
                found = torch.cat([outputs[i] for outputs in changed])
                expected = self._expected(i)
                if found.shape == expected.shape:
                    noise[i] = torch.maximum(worst, differences(expected, found))
        self._noise = noise


def last_bits(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Its floats a last bit larger or smaller."""
    if not tensor.is_floating_point():
        return tensor.clone()
    signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
    return tensor * (1 + signs * torch.finfo(tensor.dtype).eps).to(tensor.dtype)


def named(output: str) -> str:
    """The output, for a sentence: the only one has no name of its own."""
    return "the output" if output == LONE else f"output {output}"


def amount(off: float, close: float) -> str:
    """A `difference`, for people."""
    return f"by {off:.2g} of its largest value (allowed: {close:g})" if off < 1 else "by more than its largest value"


def same(expected: torch.Tensor, found: torch.Tensor, close: float) -> bool:
    """Equal but for what other orders of summing make of it. [rows, ...] both."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not expected.numel():
        return True
    if not expected.is_floating_point():
        return float((expected == found).double().mean()) >= SAME_INTEGERS
    return difference(expected, found) <= close


def difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """The largest of `differences`; of integers, the share of all."""
    if not expected.is_floating_point():
        return float((expected != found).double().mean()) if expected.numel() else 0.0
    return float(differences(expected, found).max()) if len(expected) else 0.0


def differences(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Of each row the largest difference, relative to its largest value; infinite where one of the two is no number.

    Of integers: the share that differs. [rows, ...] both.
    """
    one, other = (tensor.detach().double().reshape(len(tensor), -1) for tensor in (expected, found))
    if not one.shape[1]:
        return one.new_zeros(len(one))
    if not expected.is_floating_point():
        return (expected != found).reshape(len(expected), -1).double().mean(1)
    finite = one.isfinite()
    alike = torch.where(finite, other.isfinite(), (one == other) | (one.isnan() & other.isnan())).all(1)
    largest = torch.where(finite, one.abs(), 0.0).amax(1)
    scale = torch.maximum(largest, SMALL * largest.median()).clamp(min=torch.finfo(torch.float64).tiny)
    off = torch.where(finite, (one - other).abs(), 0.0).amax(1)
    return torch.where(alike, torch.where(off > 0, off / scale, 0.0), torch.inf)


def finite_share(outputs: Sequence[torch.Tensor]) -> float:
    """How much of what is compared can show anything: the share of finite numbers."""
    counts = [(int(t.isfinite().sum()) if t.is_floating_point() else t.numel(), t.numel()) for t in outputs]
    total = sum(count for _, count in counts)
    return sum(finite for finite, _ in counts) / total if total else 1.0
