"""What of a batch's outputs belongs to each row: cut to the row's extents, and told apart where a model detects things.

Rows of several batches can be compared once each has one shape: what a row lacks of it is zero. Pure.
"""

from collections.abc import Sequence

import torch

from gpu_worker.packages.sizing import Sizing, told
from mesh import wire
from mesh.sizes import Extents, row_shape

COUNTED = torch.int64


def detection_faults(specs: Sequence[wire.TensorSpec], outputs: Sequence[torch.Tensor], rows: int) -> list[str]:
    """Returns one sentence for each output whose elements cannot be told apart by row."""
    found = {spec.name: output for spec, output in zip(specs, outputs, strict=True)}
    faults = dict[str, None]()
    for spec in specs:
        if spec.owner:
            faults |= dict.fromkeys(_owner_faults(spec, found[spec.name], found.get(spec.owner), rows))
        if spec.count:
            faults |= dict.fromkeys(_count_faults(spec, found[spec.name], found.get(spec.count), rows))
    return list(faults)


def _owner_faults(spec: wire.TensorSpec, output: torch.Tensor, owner: torch.Tensor | None, rows: int) -> list[str]:
    if owner is None or owner.dtype is not COUNTED or owner.ndim != 1:
        return [f"output {spec.owner} must be int64 [n]: for each element of {spec.name}, the row that it belongs to"]
    if not output.ndim or len(output) != len(owner):
        return [f"output {spec.name} is {list(output.shape)}, and {spec.owner} names the rows of {len(owner)} elements"]
    if len(owner) and (int(owner.min()) < 0 or int(owner.max()) >= rows):
        return [
            f"output {spec.owner} has {int(owner.min())} to {int(owner.max())} where the batch has {rows} rows: it "
            f"numbers the rows of the batch from 0 to {rows - 1}"
        ]
    return []


def _count_faults(spec: wire.TensorSpec, output: torch.Tensor, count: torch.Tensor | None, rows: int) -> list[str]:
    if count is None or count.dtype is not COUNTED or tuple(count.shape) != (rows,):
        return [f"output {spec.count} must be int64 [batch]: how many elements of {spec.name} each row has"]
    if output.ndim < 2 or len(output) != rows:
        return [f"output {spec.name} is {list(output.shape)}; it must be [batch, most, ...] to be counted"]
    if int(count.min()) < 0 or int(count.max()) > output.shape[1]:
        return [
            f"output {spec.count} has {int(count.min())} to {int(count.max())}, and {spec.name} has room for "
            f"{output.shape[1]} elements in a row"
        ]
    return []


def shape_differs(
    spec: wire.TensorSpec, sizing: Sizing, output: torch.Tensor, rows: int | None, extents: Extents
) -> bool:
    """Returns whether the output has another dtype or shape than promised for so many rows of these extents.

    `rows`: None where its first dimension is its own.
    """
    if str(output.dtype) != f"torch.{spec.dtype}":
        return True
    shape = row_shape(spec, sizing.dims, extents)
    fits = output.ndim == len(shape) + 1 and all(
        own in (-1, found) for own, found in zip(shape, output.shape[1:], strict=True)
    )
    return not fits or (rows is not None and len(output) != rows)


def free(specs: Sequence[wire.TensorSpec]) -> set[str]:
    """Returns the outputs whose first dimension is their own: those that have an owner, and the owners."""
    return {name for spec in specs if spec.owner for name in (spec.name, spec.owner)}


class Apart:
    """Takes outputs of batches apart, each row to the same shape: the largest that the rows alone have."""

    def __init__(
        self, specs: Sequence[wire.TensorSpec], sizing: Sizing, alone: Sequence[Sequence[torch.Tensor]]
    ) -> None:
        """`alone`: outputs of each of some rows alone, by output."""
        self._specs, self._sizing = specs, sizing
        self._owners = {spec.owner for spec in specs if spec.owner}
        first = [0 if spec.owner else 1 for spec in specs]
        self._plain = [
            not sizing.dims and not spec.owner and not spec.count and spec.name not in self._owners for spec in specs
        ]
        self._shapes = [
            tuple(max(extents) for extents in zip(*(outputs[i].shape[at:] for outputs in alone), strict=True))
            for i, at in enumerate(first)
        ]  # of a row of each output

    def rows(self, outputs: Sequence[torch.Tensor], extents: Sequence[Extents]) -> list[torch.Tensor]:
        """Returns each output as `[rows, ...]`, of one shape in all batches. `extents`: of each row."""
        if all(self._plain):
            return list(outputs)
        named = {spec.name: output for spec, output in zip(self._specs, outputs, strict=True)}
        return [self._apart(i, named, extents) for i in range(len(outputs))]

    def _apart(self, i: int, named: dict[str, torch.Tensor], extents: Sequence[Extents]) -> torch.Tensor:
        spec, output = self._specs[i], named[self._specs[i].name]
        if self._plain[i]:
            return output
        if spec.name in self._owners:  # how many elements each row has
            return torch.bincount(output, minlength=len(extents))
        whole = output.new_zeros((len(extents), *self._shapes[i]))
        for row, own in enumerate(extents):
            if spec.owner:
                found = output[named[spec.owner] == row]
            else:
                cut = row_shape(spec, self._sizing.dims, own)
                found = output[row][tuple(slice(None if extent < 0 else extent) for extent in cut)]
                found = found[: int(named[spec.count][row])] if spec.count else found
            kept = tuple(slice(min(n, there)) for n, there in zip(self._shapes[i], found.shape, strict=True))
            whole[row][kept] = found[kept]
        return whole

    def lone(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the outputs of rows that all have the extents of the batch."""
        return self.rows(outputs, [self._sizing.of(inputs)] * len(inputs[0]))


def of_extents(sizing: Sizing, extents: Extents) -> str:
    """Returns the end of a clause that names the extents; empty for a model without open dimensions."""
    return f" of {told(sizing.dims, extents)}" if sizing.dims else ""
