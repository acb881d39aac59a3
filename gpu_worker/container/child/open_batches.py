"""Batches whose requests have sizes of their own: read from a slot, filled up, cut, and written there again.

A slot begins with what the parent says of the batch, in JSON:

    {"parts": [[rows, [extent, ...]], ...], "extents": [extent, ...],
     "inputs": [[at, [bytes of each part, ...]], ...], "outputs_at": at}

These offsets are from where that text ends, rounded up to ALIGNMENT. The inputs lie there as they were sent, one part
behind the other. Outputs lie likewise, and behind them is said, in JSON again, where in the slot and of which shape
they are: [[[at, bytes, [extent, ...]] for each output] for each part].
"""

from __future__ import annotations

import json
import math
from typing import Any

from .declaring import VARIABLE, Spec
from .faults import WrongInput, WrongOutput
from .results import fill
from .strings import as_strings, packed, read_strings

ALIGNMENT = 64  # bytes
Part = tuple[int, list[int]]  # rows, extents


class OpenBatch:
    """One batch in its slot, a view of memory. `specs`: of the inputs; `dims`: names of the open dimensions."""

    def __init__(self, slot: memoryview, described: int, specs: list[Spec], dims: list[str]) -> None:
        about = json.loads(bytes(slot[:described]))
        self.slot = slot
        self.specs, self.dims = specs, dims
        self.parts: list[Part] = [(rows, extents) for rows, extents in about["parts"]]
        self.extents: list[int] = about["extents"]
        self.rows = sum(rows for rows, _ in self.parts)
        base = aligned(described)
        self._placed = [(base + at, sizes) for at, sizes in about["inputs"]]
        self._outputs_at = base + about["outputs_at"]

    def inputs(self) -> list[Any]:
        """Returns one read-only array for each input, filled up to the batch's extents. Raises: WrongInput."""
        return [self._input(spec, at, sizes) for spec, (at, sizes) in zip(self.specs, self._placed)]

    def write(self, specs: list[Spec], pieces: list[list[Any]]) -> tuple[int, int]:
        """The outputs are in the slot. Returns where they are described there, and in how many bytes.

        `pieces`: for each part, one array for each output; of strings, with bytes as elements. Raises: WrongOutput.
        """
        import numpy as np

        at, described = self._outputs_at, []
        for part in pieces:
            placed = []
            for spec, piece in zip(specs, part):
                data = packed(piece) if spec["dtype"] in VARIABLE else None
                size = len(data) if data is not None else piece.size * np.dtype(spec["dtype"]).itemsize
                self._check_room(at + size, spec["name"])
                if data is not None:
                    self.slot[at : at + size] = data
                elif size:
                    fill(np.ndarray(piece.shape, spec["dtype"], self.slot, at), spec["name"], piece)
                placed.append((at, size, piece.shape))
                at = aligned(at + size)
            described.append(placed)
        text = json.dumps(described).encode()
        self._check_room(at + len(text), specs[0]["name"])
        self.slot[at : at + len(text)] = text
        return at, len(text)

    def _check_room(self, end: int, name: str) -> None:
        if end > len(self.slot):
            raise WrongOutput(
                f"the outputs of {self.rows} rows, up to {name!r}, take more than the {len(self.slot) >> 20} MiB that "
                "a batch has room for"
            )

    def _input(self, spec: Spec, at: int, sizes: list[int]) -> Any:
        import numpy as np

        shape = row_shape(spec, self.dims, self.extents)
        same = all(extents == self.extents for _, extents in self.parts) or shape == spec["shape"][1:]
        if same and spec["dtype"] not in VARIABLE:
            array = np.ndarray((self.rows, *shape), spec["dtype"], self.slot, at)
        elif spec["dtype"] in VARIABLE:
            array = np.full((self.rows, *shape), "" if spec["dtype"] == "string" else b"", object)
        else:
            array = np.full((self.rows, *shape), spec.get("pad", 0), spec["dtype"])
        if not same or spec["dtype"] in VARIABLE:
            row = 0
            for (rows, extents), size in zip(self.parts, sizes):
                own = (rows, *row_shape(spec, self.dims, extents))
                array[(slice(row, row + rows), *map(slice, own[1:]))] = self._piece(spec, at, size, own)
                row, at = row + rows, at + size
        array.flags.writeable = False
        return array

    def _piece(self, spec: Spec, at: int, size: int, shape: tuple[int, ...]) -> Any:
        """What one part sent, as an array of this shape."""
        import numpy as np

        if spec["dtype"] not in VARIABLE:
            return np.ndarray(shape, spec["dtype"], self.slot, at)
        try:
            found = read_strings(self.slot[at : at + size], math.prod(shape), spec["dtype"] == "string")
        except WrongInput as error:
            raise WrongInput(f"input {spec['name']!r}: {error}") from None
        return as_strings(found, shape)


def row_shape(spec: Spec, dims: list[str], extents: list[int]) -> list[int]:
    """Returns the shape of one row with these extents; -1 where an extent is an output's own."""
    known: dict[Any, int] = dict(zip(dims, extents))
    return [known.get(extent, extent) for extent in spec["shape"][1:]]


def aligned(at: int) -> int:
    """Returns the next offset at which a tensor may begin."""
    return -(-at // ALIGNMENT) * ALIGNMENT
