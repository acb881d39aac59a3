"""Rows of batches: inputs laid out and filled up with rows that a model is known to run on, outputs kept."""

from collections.abc import Sequence, Set

import numpy as np
import torch

from gpu_worker.devices.arena import Bytes
from gpu_worker.packages import examples
from gpu_worker.packages.batches import Draw
from gpu_worker.packages.comparing import Run
from gpu_worker.packages.package import Package
from gpu_worker.packages.reading.tensors import Stored, read_tensors
from gpu_worker.packages.sizing import sizing_of
from gpu_worker.packages.stored import EXAMPLE_BYTES_MAX
from mesh import wire
from mesh.errors import PackageError
from mesh.tensors import byte_count
from mesh.wire import Buffer

JOINED_BYTES_MAX = 64 * 1024  # of one input: so much is joined and copied at once, more tensor by tensor


def padding_rows(package: Package) -> tuple[Bytes, ...]:
    """Returns the bytes of one row of each input: of the package's example, or zeros. Raises: PackageError."""
    rows = example_rows(package)
    if rows is None:
        return tuple(np.zeros(byte_count(spec.dtype, spec.shape[1:]), np.uint8) for spec in package.spec.inputs)
    return tuple(tensor[:1].contiguous().view(-1).view(torch.uint8).numpy().copy() for tensor in rows)


def pad(target: Bytes, row: Bytes) -> None:
    """Every row of `target` is this row: leftovers of others may be invalid indices."""
    if len(target):
        target.reshape(-1, len(row))[:] = row


def example_rows(package: Package) -> list[torch.Tensor] | None:
    """Returns the package's example rows, `[rows, ...]` for each input; None without an example.

    Raises: PackageError.
    """
    file = package.example_file
    if file is None:
        return None
    try:
        stored = read_tensors(file, EXAMPLE_BYTES_MAX)
        return [_tensor(*stored[spec.name], spec) for spec in package.spec.inputs]
    except (OSError, ValueError, KeyError) as error:  # a file that changed since the package was read
        raise PackageError(package.ref, [f"{file.name}: {error}"]) from error


def _tensor(stored: Stored, data: bytearray, spec: wire.TensorSpec) -> torch.Tensor:
    return torch.frombuffer(data, dtype=getattr(torch, spec.dtype)).view(stored.shape)


def inputs_for(package: Package, run: Run, place: torch.device) -> Draw:
    """Returns how inputs to check the model with are drawn. Raises: PackageError.

    Without an example, random inputs are searched for, but not on a GPU: there an index out of range ends all use of
    the device.
    """
    rows, sizing = example_rows(package), sizing_of(package.spec)
    if rows is not None:
        return examples.KeptRows(tuple(rows), sizing).draw
    if place.type == "cpu":
        drawn, _ = examples.find(package.spec.inputs, run, package.spec.batch_max, sizing)
        if drawn is not None:
            return drawn.draw
    return examples.harmless(package.spec.inputs, sizing).draw


def fill(
    slot: Bytes,
    action: wire.Infer,
    parts: Sequence[Sequence[Buffer]],
    row_bytes: Sequence[int],
    padding: Sequence[Bytes],
) -> str:
    """The slot holds the inputs of all parts, one input after the other, each with room for the whole batch.

    Rows that no part has are filled with `padding`, one row of each input. Returns the fault, or "".
    """
    count = len(row_bytes)
    for tensors in parts:
        if len(tensors) != count:
            return f"{len(tensors)} inputs came, the model takes {count}"
    target = slot.data  # to copy into it costs a third of what assigning to the array does
    base = 0
    for i, size in enumerate(row_bytes):
        pieces = [tensors[i] for tensors in parts]
        at = base
        for part, piece in zip(action.parts, pieces, strict=True):
            wanted = size * part.rows
            if len(piece) != wanted:
                return f"input {i} has {len(piece)} bytes; {part.rows} rows take {wanted}"
            at += wanted
        end = base + size * action.batch
        if at - base <= JOINED_BYTES_MAX:
            target[base:at] = b"".join(pieces)
        else:
            put = base
            for piece in pieces:
                target[put : put + len(piece)] = piece
                put += len(piece)
        if at < end:
            pad(slot[at:end], padding[i])
        base = end
    return ""


def owned(output: torch.Tensor, lent: Set[int]) -> torch.Tensor:
    """Returns the output, contiguous, in memory of its own: it outlives inputs and weights with storages in `lent`."""
    whole = output.contiguous()
    return whole.clone() if whole.untyped_storage().data_ptr() in lent else whole
