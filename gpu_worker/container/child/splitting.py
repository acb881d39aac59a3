"""Splits what the function returned into what each request of the batch gets: cut to its own size, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .calling import Yielded
from .declaring import VARIABLE, Spec
from .faults import WrongOutput
from .open_batches import Part, row_shape
from .results import by_name, check_dtype, value_of


def split(result: Any, specs: list[Spec], dims: list[str], parts: list[Part], extents: list[int]) -> list[list[Any]]:
    """Returns for each part one array for each output; of strings, with bytes as elements. Raises: WrongOutput.

    `extents`: of the batch, up to which the inputs were filled up.
    """
    rows = sum(count for count, _ in parts)
    named = by_name(result, _expected(result, specs), rows)
    values = {spec["name"]: value_of(spec["name"], named[spec["name"]], spec, rows) for spec in specs
              if spec["name"] in named}  # fmt: skip
    columns: dict[str, list[Any]] = {}
    for spec in specs:
        if spec.get("owner") or spec.get("count"):
            share = _owned if spec.get("owner") else _counted
            columns.update(share(spec, values, parts, _Sizes(spec, dims, parts, extents)))
    for spec in specs:
        if spec["name"] not in columns:
            columns[spec["name"]] = _cut(spec, values[spec["name"]], dims, parts, extents)
    by_spec = [[check_dtype(spec, piece) for piece in columns[spec["name"]]] for spec in specs]
    return [list(pieces) for pieces in zip(*by_spec)]


def _expected(result: Any, specs: list[Spec]) -> list[str]:
    """Names of the outputs that the function has to give: owners and counts follow from lists of one array per row."""
    names = [spec["name"] for spec in specs]
    derived = {spec.get("owner") or spec.get("count") for spec in specs} - {None, ""}
    given = result[0] if isinstance(result, list) and result else result
    if isinstance(given, Mapping):
        return [name for name in names if name not in derived or name in given]
    row = given if isinstance(result, Yielded) else result
    if isinstance(row, tuple) and len(row) == len(names):
        return names
    return [name for name in names if name not in derived] or names


def _cut(spec: Spec, value: Any, dims: list[str], parts: list[Part], extents: list[int]) -> list[Any]:
    """The rows of each part, cut to its extents."""
    import numpy as np

    name, rows = spec["name"], sum(count for count, _ in parts)
    joint = row_shape(spec, dims, extents)
    if not isinstance(value, list):
        # rows that are not filled up may all have come to one size
        sizes = [extents, *([parts[0][1]] if all(own == parts[0][1] for _, own in parts) else [])]
        _check(name, value, [row_shape(spec, dims, size) for size in sizes], rows)
    pieces, row = [], 0
    for count, own_extents in parts:
        own = row_shape(spec, dims, own_extents)
        mine = value[row : row + count]
        if isinstance(mine, list):
            if len({array.shape for array in mine}) > 1:
                raise WrongOutput(
                    f"output {name!r} has rows of shapes {', '.join(str(list(array.shape)) for array in mine[:4])} for "
                    "one request: its rows must have one shape"
                )
            mine = np.stack(mine)
            _check(name, mine, [own, joint], count)
        pieces.append(mine[(slice(None), *(slice(extent if extent >= 0 else None) for extent in own))])
        row += count
    return pieces


class _Sizes:
    """The shapes of an output's elements: in the batch, and in each part, to which they are cut."""

    def __init__(self, spec: Spec, dims: list[str], parts: list[Part], extents: list[int]) -> None:
        self.name, self.dtype = spec["name"], spec["dtype"]
        at = 0 if spec.get("owner") else 1
        self.joint = row_shape(spec, dims, extents)[at:]
        self.own = [row_shape(spec, dims, own)[at:] for _, own in parts]

    def cut(self, elements: Any, part: int) -> Any:
        """Returns the elements of one of the part's rows, cut to its extents. Raises: WrongOutput."""
        import numpy as np

        own = self.own[part]
        if not len(elements):  # of none, the shape and the dtype may be any
            shape = [max(extent, 0) for extent in own]
            return np.zeros((0, *shape), object if self.dtype in VARIABLE else self.dtype)
        if not _is(elements.shape[1:], own):
            _check_elements(self.name, elements, self.joint)
        return elements[(slice(None), *(slice(extent if extent >= 0 else None) for extent in own))]


def _owned(spec: Spec, values: dict[str, Any], parts: list[Part], sizes: _Sizes) -> dict[str, list[Any]]:
    """The elements of each part, and the rows that own them, counted from the part's first."""
    import numpy as np

    name, owner, rows = spec["name"], spec["owner"], sum(count for count, _ in parts)
    value = values[name]
    lengths = _lengths(value, rows, len(spec["shape"]) + 1)
    if lengths is not None:
        owners = np.repeat(np.arange(rows), lengths)
        if owner in values and not np.array_equal(values[owner], owners):
            raise WrongOutput(f"outputs {name!r} and {owner!r} differ in how many elements each row has")
        values[owner] = owners
    if owner not in values:
        raise WrongOutput(f"output {name!r} must be a list of one array for each row, or {owner!r} be given, too")
    owners = np.asarray(values[owner])
    if owners.shape == (0,):
        owners = np.zeros(0, np.int64)  # of an empty list, numpy makes floats
    there = value.shape[:1] if lengths is None else (sum(lengths),)
    if owners.shape != there or owners.dtype.kind not in "iu":
        raise WrongOutput(f"output {owner!r} must be one integer for each of the {there[0]} elements of {name!r}")
    if len(owners) and not (owners.min() >= 0 and owners.max() < rows):
        raise WrongOutput(f"output {owner!r} names rows from {owners.min()} to {owners.max()}; there are {rows}")
    pieces: dict[str, list[Any]] = {name: [], owner: []}
    row = 0
    for part, (count, _) in enumerate(parts):
        mine = (owners >= row) & (owners < row + count)
        if lengths is None:
            pieces[name].append(sizes.cut(value[mine], part))
        else:
            pieces[name].append(np.concatenate([sizes.cut(one, part) for one in value[row : row + count]]))
        pieces[owner].append(owners[mine] - row)
        row += count
    return pieces


def _counted(spec: Spec, values: dict[str, Any], parts: list[Part], sizes: _Sizes) -> dict[str, list[Any]]:
    """The elements of each part's rows, as far as its longest row goes, and how many each row has."""
    import numpy as np

    name, count_name, rows = spec["name"], spec["count"], sum(count for count, _ in parts)
    value, most = values[name], spec["shape"][1]
    lengths = None if count_name in values else _lengths(value, rows, len(spec["shape"]))
    counts = np.asarray(values.get(count_name, lengths))
    if counts.shape != (rows,) or counts.dtype.kind not in "iu":
        raise WrongOutput(
            f"output {name!r} must be a list of one array for each row, or {count_name!r} be given, too: one integer "
            "for each row"
        )
    there = [len(row) for row in value]
    if len(there) != rows or any(not 0 <= n <= min(has, most) for n, has in zip(counts.tolist(), there)):
        raise WrongOutput(
            f"output {count_name!r} has {counts.tolist()[:8]}: each is how many elements of {name!r} a row has, "
            f"0 to {most}"
        )
    values[count_name] = counts
    pieces: dict[str, list[Any]] = {name: [], count_name: []}
    row = 0
    for part, (count, _) in enumerate(parts):
        mine = counts[row : row + count]
        ours = [sizes.cut(one[:n], part) for one, n in zip(value[row : row + count], mine.tolist())]
        found = [one for one in ours if len(one)] or ours[:1]
        piece = np.zeros((count, int(mine.max(initial=0)), *found[0].shape[1:]), np.result_type(*found))
        if piece.dtype.kind == "O":
            piece[...] = "" if spec["dtype"] == "string" else b""
        for target, one in zip(piece, ours):
            if len(one):
                _check_elements(name, one, piece.shape[2:])
                target[: len(one)] = one
        pieces[name].append(piece)
        pieces[count_name].append(mine)
        row += count
    return pieces


def _lengths(value: Any, rows: int, ndim: int) -> Any:
    """How many elements each row has, if there is one array for each, together of so many dimensions; else None."""
    if isinstance(value, list):
        return [len(row) for row in value]
    if value.ndim > 1 and value.shape[:2] == (rows, 0):
        return [0] * rows  # of rows without any, numpy does not know how many dimensions an element has
    return [value.shape[1]] * rows if value.ndim == ndim and len(value) == rows else None


def _check(name: str, array: Any, wanted: list[Any], rows: int) -> None:
    """The array has so many rows, of one of these shapes. Raises: WrongOutput."""
    if array.ndim and len(array) == rows and any(_is(array.shape[1:], extents) for extents in wanted):
        return
    shapes = [[rows, *extents] for extents in wanted]
    due = " or ".join(str(shape) for i, shape in enumerate(shapes) if shape not in shapes[:i])
    raise WrongOutput(
        f"output {name!r} has shape {list(array.shape)} for {rows} rows; it must be {due}: one row for each row of the "
        "input, in the same order"
    )


def _check_elements(name: str, array: Any, wanted: Any) -> None:
    """Each element of the array has this shape. Raises: WrongOutput."""
    if not array.ndim or not _is(array.shape[1:], wanted):
        raise WrongOutput(
            f"output {name!r} has shape {list(array.shape)}; each of its elements must have {list(wanted)}"
        )


def _is(shape: Any, wanted: Any) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, has) for has, want in zip(shape, wanted))
