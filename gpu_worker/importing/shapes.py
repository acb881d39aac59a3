"""Outputs as they are promised: found by running a model on two numbers of rows. Pure."""

import torch

from broker import wire
from broker.errors import PackageError
from broker.tensors import DTYPES
from gpu_worker.trials import INDEPENDENT


def counts(batch_max: int) -> tuple[int, int]:
    """Two numbers of rows that a model takes; different ones, if it can."""
    return (2, 3) if batch_max > 2 else (1, batch_max)


def output_spec(place: str, name: str, few: torch.Tensor, more: torch.Tensor, rows: tuple[int, int]) -> wire.TensorSpec:
    """Dtype and shape of an output that `few` and `more` are of, for so many rows.

    Raises: PackageError, code rows_changed, rows_mixed or bad_outputs.
    """
    told = f"{list(few.shape)} for {rows[0]} rows, {list(more.shape)} for {rows[1]}"
    if not few.ndim or not more.ndim or (len(few), len(more)) != rows:
        raise PackageError(place, [rows_changed(f"output {name}", told)], "rows_changed")
    if few.shape[1:] != more.shape[1:]:
        why = f"output {name} is {told}: the shape of a row must not depend on the others. {INDEPENDENT}"
        raise PackageError(place, [why], "rows_mixed")
    dtype = str(few.dtype).removeprefix("torch.")
    if dtype not in DTYPES or not all(few.shape[1:]):
        why = (
            f"output {name} is {dtype} {list(few.shape)}, which cannot travel: it needs values, of {', '.join(DTYPES)}"
        )
        raise PackageError(place, [why], "bad_outputs")
    return wire.TensorSpec(name=name, dtype=dtype, shape=(-1, *few.shape[1:]))


def rows_changed(output: str, rows: str) -> str:
    """The sentence for an output that has not one row for each of the input."""
    return (
        f"{output} has another number of rows than the input ({rows}): there must be one row out for each row in, "
        "first dimension, whatever the values are. Keep the batch apart, and mark what does not count by a value"
    )
