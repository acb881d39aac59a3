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
ROWS = 3  # that are tried alone
SIZES = (2, 5)  # of batches that they are tried in, beside the largest
SAME_INTEGERS = 0.999  # share of integers that must be equal: rounding may tip a few of thousands

# {dtype of the least exact step: largest difference, relative to the largest value of the row}. Some 1000 times
# float32's resolution: sums in another order are a hundred times closer. Source: tests/zoo
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TOLERANCE_GPU = 1e-2  # of float32 there: convolutions may be in TF32, with the resolution of float16
SMALL = 0.01  # a row whose values are smaller than this share of other rows' is compared as if they were not

INDEPENDENT = (
    "Rows are batched with those of other clients, so each must be computed by itself: replace what works across the "
    "batch dimension (dim 0), or serve it with batch_max=1"
)


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


class Trial:
    """Batches to run a model on: each of some rows alone, then these among each other, in sizes up to the largest."""

    def __init__(self, draw: Draw, batch_max: int, padding: Sequence[torch.Tensor], seed: int = SEED) -> None:
        """`padding`: of each input one row [1, ...]."""
        generator = torch.Generator().manual_seed(seed)
        rows = draw(ROWS, generator)
        self.alone = [Batch(tuple(tensor[i : i + 1] for tensor in rows), (i,)) for i in range(ROWS)]
        self.mixed = [
            _mixed(rows, padding, size, generator) for size in sorted({*SIZES, batch_max}) if 2 <= size <= batch_max
        ]

    @property
    def batches(self) -> list[Batch]:
        """All of them."""
        return [*self.alone, *self.mixed]

    def run(self, run: Run) -> list[list[torch.Tensor]]:
        """The outputs of each batch. What the model does to its inputs is not seen by the next one."""
        return [list(run([tensor.clone() for tensor in batch.inputs])) for batch in self.batches]


def _mixed(
    rows: Sequence[torch.Tensor], padding: Sequence[torch.Tensor], size: int, generator: torch.Generator
) -> Batch:
    """The rows in another order, again and again, and at the end padding, if there is room for a row and for that."""
    padded = 1 if size > 2 else 0
    order = [int(i) for i in torch.randperm(len(rows[0]), generator=generator)]
    origins = [order[i % len(order)] for i in range(size - padded)]
    inputs = (
        torch.cat([tensor[torch.tensor(origins)], *[pad] * padded]) for tensor, pad in zip(rows, padding, strict=True)
    )
    return Batch(tuple(inputs), (*origins, *[None] * padded))


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
        f"{rows} rows, promised is {spec.dtype} {list(spec.shape)}"
        for spec, output in zip(specs, outputs, strict=True)
        if tuple(output.shape) != (rows, *spec.shape[1:]) or str(output.dtype) != f"torch.{spec.dtype}"
    ]


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
    check_rows(place, names, trial, results, close)
    return results


def check_repeated(
    place: str, names: Sequence[str], run: Run, trial: Trial, results: Sequence[Sequence[torch.Tensor]], close: float
) -> None:
    """Equal inputs give equal outputs. Raises: PackageError, code random."""
    i = min(len(trial.batches) - 1, ROWS + 1)  # some rows: of few values, two draws may be the same
    again = run([tensor.clone() for tensor in trial.batches[i].inputs])
    for name, one, other in zip(names, results[i], again, strict=True):
        if not same(one, other, close):
            raise PackageError(
                place,
                [
                    f"output {name} differs from run to run on equal inputs. An answer must depend on its request "
                    "alone: give what is drawn at random, or counted, as an input"
                ],
                "random",
            )


def check_rows(
    place: str, names: Sequence[str], trial: Trial, results: Sequence[Sequence[torch.Tensor]], close: float
) -> None:
    """Each row gives among others what it gives alone. Raises: PackageError, code rows_mixed."""
    alone, mixed = results[: len(trial.alone)], results[len(trial.alone) :]
    for i, name in enumerate(names):
        expected = torch.cat([outputs[i] for outputs in alone])
        for batch, outputs in zip(trial.mixed, mixed, strict=True):
            origins = [origin for origin in batch.origins if origin is not None]
            found = outputs[i][[n for n, origin in enumerate(batch.origins) if origin is not None]]
            if not same(expected[origins], found, close):
                off = difference(expected[origins], found)
                raise PackageError(
                    place,
                    [
                        f"output {name} of a row depends on the other rows of its batch: alone it differs from itself "
                        f"among {batch.rows} by {off:.2g} of its largest value. {INDEPENDENT}"
                    ],
                    "rows_mixed",
                )


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
    """The largest difference, relative to the largest value of its row; infinite where one is no number, or none.

    Of integers: the share that differs. [rows, ...] both.
    """
    if not expected.is_floating_point():
        return float((expected != found).double().mean()) if expected.numel() else 0.0
    one, other = (tensor.detach().double().reshape(len(tensor), -1) for tensor in (expected, found))
    finite = one.isfinite()
    equal = torch.where(finite, torch.ones_like(finite), (one == other) | (one.isnan() & other.isnan()))
    if not bool(equal.all()) or not bool((other.isfinite() == finite).all()):
        return float("inf")
    size = torch.where(finite, one.abs(), 0.0)
    largest = size.amax(1, keepdim=True) if one.shape[1] else size.new_zeros(len(one), 1)
    scale = torch.maximum(largest, SMALL * largest.median())
    off = torch.where(finite, (one - other).abs(), 0.0)
    return float(torch.where(off > 0, off / scale.clamp(min=torch.finfo(torch.float64).tiny), 0.0).max())


def finite_share(outputs: Sequence[torch.Tensor]) -> float:
    """How much of what is compared can show anything: the share of finite numbers."""
    counts = [(int(t.isfinite().sum()) if t.is_floating_point() else t.numel(), t.numel()) for t in outputs]
    total = sum(count for _, count in counts)
    return sum(finite for finite, _ in counts) / total if total else 1.0
