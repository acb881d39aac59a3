"""The author's own rows of inputs, and those that are stored with a package: checked, and shown to be of use."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gpu_worker.packages.batches import Draw
from gpu_worker.packages.comparing import Run, finite_share
from gpu_worker.packages.examples import SEED, KeptRows
from gpu_worker.packages.importing.arrays import array_of, arrays_of, cast
from gpu_worker.packages.sizing import NOTHING_OPEN, Sizing
from gpu_worker.packages.trials import Trial, check
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError

KEPT_ROWS = 4  # rows of the example that is stored with a package
KEPT_BYTES = 1 << 20  # if KEPT_ROWS rows take more than this, two rows are stored


def given(
    place: str,
    specs: Sequence[wire.TensorSpec],
    example: Mapping[str, Any],
    batch_max: int,
    sizing: Sizing = NOTHING_OPEN,
) -> KeptRows:
    """Returns the author's rows: {input: array or tensor `[rows, ...]`}, or {"": array} if there is one input.

    Raises: PackageError, code bad_example.
    """
    names, faults, rows = [spec.name for spec in specs], list[str](), []
    try:
        found = arrays_of(example)
    except ValueError as error:
        raise PackageError(place, [str(error)], PackageCode.BAD_EXAMPLE) from None
    if list(found) == [""] and len(names) == 1:
        found = {names[0]: found[""]}
    if found.keys() != set(names):
        faults.append(f"example must have rows for {', '.join(names)}; it has {', '.join(found) or 'none'}")
    for spec in specs if not faults else ():
        try:
            rows.append(_rows(spec, found[spec.name]))
        except ValueError as error:
            faults.append(f"example {spec.name} {error}")
    if not faults and len({len(tensor) for tensor in rows}) != 1:
        faults.append(f"example must have as many rows of each input; it has {[len(tensor) for tensor in rows]}")
    if not faults and not len(rows[0]):
        faults.append("example has no rows")
    if not faults:
        faults += extent_faults(sizing, {spec.name: tuple(t.shape) for spec, t in zip(specs, rows, strict=True)})
    if faults:
        raise PackageError(place, faults, PackageCode.BAD_EXAMPLE)
    kept = KeptRows(tuple(rows), sizing)
    if batch_max > 1 and not varied(kept):
        why = "example must have two rows that differ: of equal ones it cannot be seen that they are independent"
        raise PackageError(place, [why], PackageCode.BAD_EXAMPLE)
    return kept


def _rows(spec: wire.TensorSpec, value: object) -> torch.Tensor:
    """Returns the given rows in the input's dtype. Raises: ValueError with a sentence for people."""
    array = array_of(value)
    dims = spec.dims or ("",) * len(spec.shape[1:])
    if array.ndim != len(spec.shape) or any(
        not dim and extent != found for dim, extent, found in zip(dims, spec.shape[1:], array.shape[1:], strict=True)
    ):
        row = [dim or extent for dim, extent in zip(dims, spec.shape[1:], strict=True)]
        wanted = f"[rows, {_listed(row)}]" if row else "[rows]"
        raise ValueError(f"must be {spec.dtype} {wanted}; it is {array.dtype} {list(array.shape)}")
    return torch.from_numpy(cast(array, spec.dtype))


def extent_faults(sizing: Sizing, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Returns what is wrong with the extents of an example. `shapes`: of each input, `[rows, ...]`."""
    faults = []
    for i, dim in enumerate(sizing.dims):
        found = {
            spec.name: shapes[spec.name][at]
            for spec in sizing.inputs
            for at, name in enumerate(spec.dims, 1)
            if name == dim.name
        }
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{extent} in {name}" for name, extent in found.items())
            faults.append(f"example: {dim.name} must be the same in all inputs; it is {listed}")
        elif not sizing.least[i] <= next(iter(found.values())) <= sizing.most[i]:
            extent = next(iter(found.values()))
            faults.append(f"example: {dim.name} must be {dim.least} to {dim.most}; it is {extent}")
    return faults


def _listed(shape: Sequence[int | str]) -> str:
    return ", ".join(map(str, shape))


def varied(kept: KeptRows) -> bool:
    """Returns whether the rows differ. Equal rows cannot show whether they depend on each other."""
    return any(bool((tensor != tensor[:1]).any()) for tensor in kept.rows)


def check_shows(place: str, outputs: Sequence[torch.Tensor]) -> None:
    """The outputs for the given rows hold a finite number, so that a difference could show.

    Raises: PackageError, code bad_example.
    """
    if not finite_share(outputs):
        why = "no output is a finite number for the rows of example: give rows that the model gives numbers for"
        raise PackageError(place, [why], PackageCode.BAD_EXAMPLE)


def check_kept(
    place: str,
    specs: Sequence[wire.TensorSpec],
    run: Run,
    rows: Sequence[torch.Tensor],
    batch_max: int,
    close: float,
    sizing: Sizing = NOTHING_OPEN,
) -> None:
    """The stored rows pass the checks that a worker will run with them. `specs`: the outputs. Raises: PackageError."""
    kept = KeptRows(tuple(rows), sizing)
    check(place, specs, run, Trial(kept.draw, batch_max, kept.filling(), sizing=sizing), close)


def to_keep(draw: Draw, specs: Sequence[wire.TensorSpec]) -> list[torch.Tensor]:
    """Returns the rows to store with a package, one tensor `[rows, ...]` for each input."""
    one = draw(1, torch.Generator().manual_seed(SEED))
    row_bytes = sum(tensor.numel() * tensor.element_size() for tensor in one)
    count = KEPT_ROWS if KEPT_ROWS * row_bytes <= KEPT_BYTES else 2
    return draw(count, torch.Generator().manual_seed(SEED))
