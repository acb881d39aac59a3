"""Finds the dtypes and shapes of outputs by running a model on two numbers of rows. Pure."""

from collections.abc import Sequence

import torch

from gpu_worker.packages.trials import INDEPENDENT, counted, named
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.tensors import DTYPES


def counts(batch_max: int) -> tuple[int, int]:
    """Returns two numbers of rows that a model takes; they differ if batch_max allows it."""
    return (2, 3) if batch_max > 2 else (1, batch_max)


def output_spec(place: str, name: str, few: torch.Tensor, more: torch.Tensor, rows: tuple[int, int]) -> wire.TensorSpec:
    """Returns dtype and shape of an output. `few` and `more` are its values for `rows` numbers of rows.

    Raises: PackageError, code rows_changed, rows_mixed or bad_outputs.
    """
    _check_alike(place, name, few, more, rows)
    dtype = _dtype(few)
    if dtype not in DTYPES or not all(few.shape[1:]):
        what = "no values" if dtype in DTYPES else dtype
        why = f"{named(name)} has {what}, which cannot travel: return at least one value of {', '.join(DTYPES)}"
        raise PackageError(place, [why], PackageCode.BAD_OUTPUTS)
    return wire.TensorSpec(name=name, dtype=dtype, shape=(-1, *few.shape[1:]))


def check_batch(
    place: str,
    names: Sequence[str],
    known: tuple[Sequence[torch.Tensor], int],
    found: tuple[Sequence[torch.Tensor], int],
) -> None:
    """The outputs `found` fit those `known`; each is (outputs as the module returned them, number of rows).

    Raises: PackageError, code rows_changed, rows_mixed or bad_outputs.
    """
    (ones, few), (others, more) = known, found
    if len(ones) != len(others):
        told = f"{len(ones)} outputs for {counted(few)} and {len(others)} for {counted(more)}"
        why = f"forward returns {told}: how many must depend neither on the rows nor on their values"
        raise PackageError(place, [why], PackageCode.BAD_OUTPUTS)
    for name, one, other in zip(names, ones, others, strict=True):
        if one.ndim or other.ndim:  # otherwise it is one number for the whole batch
            _check_alike(place, name, one, other, (few, more))


def _check_alike(place: str, name: str, few: torch.Tensor, more: torch.Tensor, rows: tuple[int, int]) -> None:
    """Both have one dtype, one shape of a row, and one row for each row of the input. Raises: PackageError."""
    told = f"{list(few.shape)} for {counted(rows[0])}, {list(more.shape)} for {counted(rows[1])}"
    if not few.ndim or not more.ndim or (len(few), len(more)) != rows:
        raise PackageError(place, [rows_changed(named(name), told)], PackageCode.ROWS_CHANGED)
    if few.shape[1:] != more.shape[1:]:
        why = f"{named(name)} is {told}: the shape of a row must not depend on the others. {INDEPENDENT}"
        raise PackageError(place, [why], PackageCode.ROWS_MIXED)
    if few.dtype != more.dtype:
        told = f"{_dtype(few)} for {counted(rows[0])} and {_dtype(more)} for {counted(rows[1])}"
        why = f"{named(name)} is {told}: it must always be of one dtype"
        raise PackageError(place, [why], PackageCode.BAD_OUTPUTS)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def rows_changed(output: str, told: str) -> str:
    """Returns the message for an output that does not have one row for each row of the input."""
    return (
        f"{output} has not one row for each row of the input ({told}). Return one for each, as the first dimension, "
        "whatever the values are: move the batch there if it is another dimension, and mark rows that do not count "
        "in place of leaving them out"
    )
