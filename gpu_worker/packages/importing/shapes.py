"""Finds the dtypes and shapes of outputs by running a model on two numbers of rows, and at several extents. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch

from gpu_worker.packages.apart import detection_faults, free, of_extents
from gpu_worker.packages.batches import SEED, Draw
from gpu_worker.packages.sizing import Sizing
from gpu_worker.packages.trials import INDEPENDENT, counted, named
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError
from mesh.sizes import Extents
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


@dataclass(frozen=True, slots=True)
class Probed:
    """Outputs that a model gave for some rows."""

    rows: int
    extents: Extents  # of the rows
    outputs: Sequence[torch.Tensor]


def probes(draw: Draw, sizing: Sizing, batch_max: int) -> Iterator[list[torch.Tensor]]:
    """Yields inputs for two numbers of rows of usual extents, and for one row of each of the extents that are tried."""
    generator = torch.Generator().manual_seed(SEED)
    for rows in counts(batch_max):
        yield draw(rows, generator)
    for extents in dict.fromkeys((*sizing.tried, sizing.most)) if sizing.dims else ():
        yield draw(1, generator, extents)


def output_specs(
    place: str, names: Sequence[str], sizing: Sizing, tellers: Mapping[str, str], seen: Sequence[Probed]
) -> list[wire.TensorSpec]:
    """Returns dtype and shape of each output, and what of it belongs to a row. `tellers`: {output: what tells rows}.

    Raises: PackageError, code rows_changed, bad_argument or bad_outputs.
    """
    specs = [_first_spec(place, name, i, seen) for i, name in enumerate(names)]
    specs = detecting(place, specs, tellers, seen)
    loose = free(specs)
    found = [open_spec(place, spec, sizing, seen, i, loose=spec.name in loose) for i, spec in enumerate(specs)]
    if any(spec.count and spec.shape[1] < 0 for spec in found):
        why = "what is counted needs room for as many elements in each row: its second dimension must be fixed"
        raise PackageError(place, [why], PackageCode.BAD_OUTPUTS)
    return found


def _first_spec(place: str, name: str, at: int, seen: Sequence[Probed]) -> wire.TensorSpec:
    """Returns a spec of the output's dtype, without its shape. Raises: PackageError, code bad_outputs."""
    dtypes = sorted({_dtype(one.outputs[at]) for one in seen})
    if len(dtypes) > 1:
        why = f"{named(name)} is now {dtypes[0]} and now {dtypes[1]}: it must always be of one dtype"
        raise PackageError(place, [why], PackageCode.BAD_OUTPUTS)
    if dtypes[0] not in DTYPES:
        why = f"{named(name)} has {dtypes[0]}, which cannot travel: return one of {', '.join(DTYPES)}"
        raise PackageError(place, [why], PackageCode.BAD_OUTPUTS)
    return wire.TensorSpec(name=name, dtype=dtypes[0], shape=(-1,))


def open_spec(
    place: str, spec: wire.TensorSpec, sizing: Sizing, seen: Sequence[Probed], at: int, *, loose: bool
) -> wire.TensorSpec:
    """Returns the spec of an output with the open dimensions that it bears: found by running, never guessed.

    `at`: its place among the outputs. `loose`: its first dimension is its own. Raises: PackageError, code rows_changed
    or bad_outputs.
    """
    told = [f"{list(one.outputs[at].shape)} for {counted(one.rows)}{of_extents(sizing, one.extents)}" for one in seen]
    ranks = {one.outputs[at].ndim for one in seen}
    if len(ranks) > 1 or (not loose and any(one.outputs[at].shape[:1] != (one.rows,) for one in seen)):
        raise PackageError(place, [rows_changed(named(spec.name), "; ".join(told[:2]))], PackageCode.ROWS_CHANGED)
    dims, shape, faults = list[str](), list[int](), list[str]()
    for i in range(1, ranks.pop()):
        found = [int(one.outputs[at].shape[i]) for one in seen]
        name = next(
            (
                dim.name
                for d, dim in enumerate(sizing.dims)
                if all(extent == one.extents[d] for extent, one in zip(found, seen, strict=True))
            ),
            "",
        )
        alike = len(set(found)) == 1
        if not min(found):
            faults.append(f"{named(spec.name)} is {told[found.index(0)]}: return at least one value")
        dims.append("" if alike else name)
        shape.append(found[0] if alike else -1)
        if not alike and not name and not sizing.exact:
            few = next(k for k, extent in enumerate(found) if extent != found[0])
            faults.append(
                f"{named(spec.name)} is {told[0]}, {told[few]}: dimension {i} is neither fixed nor "
                f"{' nor '.join(dim.name for dim in sizing.dims) or 'that of an input'}, so nobody knows what of it "
                "belongs to a row that is filled up. Give it an extent of the inputs, or give exact=True with dims, "
                "and nothing is filled up"
            )
    if faults:
        raise PackageError(place, faults, PackageCode.BAD_OUTPUTS)
    return msgspec.structs.replace(spec, shape=(-1, *shape), dims=tuple(dims) if any(dims) else ())


def detecting(
    place: str, specs: Sequence[wire.TensorSpec], rows: Mapping[str, str], seen: Sequence[Probed]
) -> list[wire.TensorSpec]:
    """Returns the specs, each with the output that tells its elements apart. `rows`: {output: that output}.

    Raises: PackageError, code bad_argument.
    """
    at = {spec.name: i for i, spec in enumerate(specs)}
    unknown = [name for pair in rows.items() for name in pair if name not in at]
    if unknown:
        why = f"rows names {', '.join(dict.fromkeys(unknown))}; the outputs are {', '.join(at)}"
        raise PackageError(place, [why], PackageCode.BAD_ARGUMENT)
    found, faults = list(specs), list[str]()
    for name, by in rows.items():
        both = [(one, one.outputs[at[name]], one.outputs[at[by]]) for one in seen]
        counts_them = all(
            len(teller.shape) == 1 and len(teller) == one.rows and output.ndim > 1 and len(output) == one.rows
            for one, output, teller in both
        )
        i = at[name]
        found[i] = msgspec.structs.replace(found[i], **{"count" if counts_them else "owner": by})
        if name == by or by in rows:
            faults.append(f"rows: {by} tells the rows of others, and nothing tells its own: leave it out")
    if not faults:
        for one in seen:
            faults += detection_faults(found, one.outputs, one.rows)
    if faults:
        raise PackageError(place, list(dict.fromkeys(faults))[:5], PackageCode.BAD_OUTPUTS)
    return found


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
