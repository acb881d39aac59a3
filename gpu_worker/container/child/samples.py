"""Runs the function on the operator's own sample: what it takes and gives, and whether each row stands by itself."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from .calling import Caller, Yielded
from .declaring import DTYPES, VARIABLE, Spec
from .faults import CannotServe, WrongOutput, describe
from .results import as_array
from .splitting import split
from .strings import as_strings

ROW_TOLERANCE = 1e-4  # relative to the row's largest value: a row alone may be summed in another order than in a batch
HALF_TOLERANCE = 1e-2  # for float16
LONGER = 3  # elements by which a sample is filled up, to see whether its answers depend on that
Arrays = list[Any]  # one array for each input


class Sample:
    """The operator's inputs, one array for each: `[rows, ...]`, read-only. `specs`: of the inputs, now complete."""

    def __init__(self, path: str, specs: list[Spec] | None, dims: Mapping[str, list[int]], most: int) -> None:
        """`dims`: {open dimension: its least and greatest extent}, `most` for others. Raises: CannotServe."""
        arrays = _read(path)
        self.path = path
        if specs is None:
            specs = [{"name": name or "x", "dtype": None, "shape": None} for name in arrays]
        if len(arrays) != len(specs):
            raise CannotServe(f"--sample {path} holds {len(arrays)} arrays; the function takes {len(specs)}")
        self.arrays: Arrays = []
        self.specs: list[Spec] = []
        for spec in specs:
            array = arrays.get(spec["name"], arrays.get(""))
            if array is None:
                raise CannotServe(f"--sample {path} holds no array {spec['name']!r}, but {', '.join(arrays)}")
            self._add(spec, array)
        self.rows = len(self.arrays[0])
        if any(len(array) != self.rows for array in self.arrays) or not self.rows:
            raise CannotServe(f"--sample {path} holds arrays of {', '.join(str(len(a)) for a in self.arrays)} rows: "
                              "each has one row or more, all as many")  # fmt: skip
        self.dims, self.extents = self._extents(dims, most)

    def row(self, row: int) -> Arrays:
        """Returns one row of each input."""
        return [array[row : row + 1] for array in self.arrays]

    def longer(self, extents: list[int]) -> Arrays:
        """Returns the inputs, filled up to these extents as a batch's are."""
        import numpy as np

        found = []
        for spec, array in zip(self.specs, self.arrays):
            grown = [(0, 0)]
            for extent, has in zip(spec["shape"][1:], array.shape[1:]):
                grown.append((0, extents[self.dims.index(extent)] - has if extent in self.dims else 0))
            pad = spec.get("pad", 0) if array.dtype.kind != "O" else "" if spec["dtype"] == "string" else b""
            padded = np.full([has + more for has, (_, more) in zip(array.shape, grown)], pad, array.dtype)
            padded[tuple(slice(has) for has in array.shape)] = array
            found.append(_read_only(padded))
        return found

    def _add(self, spec: Spec, array: Any) -> None:
        import numpy as np

        name = spec["name"]
        if array.ndim == 0:
            raise CannotServe(f"--sample {self.path}: {name} is one number; the first dimension is the batch")
        if spec["dtype"] is None:
            kind = array.dtype.kind
            dtype = {"U": "string", "O": "string", "S": "bytes"}.get(kind, array.dtype.name)
            spec = {**spec, "dtype": dtype, "shape": [-1, *array.shape[1:]]}
        wanted = spec["shape"]
        if len(array.shape) != len(wanted) or any(
            type(extent) is int and extent != has for extent, has in zip(wanted[1:], array.shape[1:])
        ):
            raise CannotServe(f"--sample {self.path}: {name} has shape {list(array.shape)}; declared is {wanted}")
        if spec["dtype"] in VARIABLE:
            array = _elements(array, spec["dtype"], f"--sample {self.path}: {name}")
        elif spec["dtype"] in DTYPES and array.dtype.kind in "fiub":
            array = np.ascontiguousarray(array.astype(spec["dtype"]))
        else:
            raise CannotServe(f"--sample {self.path}: {name} is {array.dtype}; declared is {spec['dtype']}")
        self.specs.append(spec)
        self.arrays.append(_read_only(array))

    def _extents(self, dims: Mapping[str, list[int]], most: int) -> tuple[list[str], list[int]]:
        """The names of the open dimensions, and the sample's extents in them."""
        known: dict[str, tuple[int, str]] = {}
        for spec, array in zip(self.specs, self.arrays):
            for extent, has in zip(spec["shape"][1:], array.shape[1:]):
                if not isinstance(extent, str):
                    continue
                first, whose = known.setdefault(extent, (has, spec["name"]))
                lo, hi = dims.get(extent, [1, most])
                if first != has:
                    raise CannotServe(
                        f"--sample {self.path}: {extent} is {first} in {whose} and {has} in {spec['name']}"
                    )
                if not lo <= has <= hi:
                    raise CannotServe(f"--sample {self.path}: {extent} is {has} in {spec['name']}; it is {lo} to {hi}")
        return list(known), [has for has, _ in known.values()]


def try_sample(
    function: Any, sample: Sample, outputs: list[Spec] | None, *, report: bool, alone: bool, most: list[int]
) -> list[Spec]:
    """Runs the function once on the sample. Returns the specs of the outputs, which it shows if they are not known.

    `alone`: each row must give the same by itself, and, up to the extents `most`, filled up. Raises: WrongOutput, and
    whatever the function raises.
    """
    caller = Caller(function, sample.specs)
    begin = time.monotonic()
    result = caller(sample.arrays, sample.rows)
    took = time.monotonic() - begin
    if outputs is None or any(spec["dtype"] is None for spec in outputs):
        outputs = shown(result, sample, [spec["name"] for spec in outputs] if outputs else None)
    parts = [(1, sample.extents)] * sample.rows
    together = split(result, outputs, sample.dims, parts, sample.extents)
    if alone:
        for row in range(sample.rows if sample.rows > 1 else 0):
            _check_row(caller, sample, row, outputs, together[row])
        _check_longer(caller, sample, outputs, together, most)
    if report:
        sys.stdout.write(f"ran on {sample.path}: {sample.rows} rows in {took * 1e3:.2f} ms\n")
    return outputs


def shown(result: Any, sample: Sample, names: list[str] | None) -> list[Spec]:
    """Returns the specs of the outputs that this result has. Raises: WrongOutput."""
    if isinstance(result, Yielded):
        result = _put_together(result, sample.rows)
    if names and not isinstance(result, Mapping):
        result = dict(zip(names, result)) if len(names) > 1 else {names[0]: result}
    if isinstance(result, list) and result and all(isinstance(row, Mapping) for row in result):
        result = {name: [row[name] for row in result] for name in result[0]}
    found = []
    for name, value in (result if isinstance(result, Mapping) else {"y": result}).items():
        array = as_array(name, value)
        if array.ndim == 0 or len(array) != sample.rows:
            raise WrongOutput(
                f"output {name!r} has shape {list(array.shape)} for {sample.rows} rows: batch comes first"
            )
        texts = array.dtype.kind == "U" or (array.dtype.kind == "O" and isinstance(array.flat[0], str))
        dtype = "string" if texts else "bytes" if array.dtype.kind == "S" else array.dtype.name
        if dtype not in DTYPES and dtype not in VARIABLE:
            raise WrongOutput(f"output {name!r} is {array.dtype}; a tensor is one of {', '.join((*DTYPES, *VARIABLE))}")
        found.append({"name": name, "dtype": dtype, "shape": [-1, *array.shape[1:]]})
    return found


def _check_row(caller: Caller, sample: Sample, row: int, outputs: list[Spec], together: Arrays) -> None:
    """A row of the sample gives by itself what it gives among the others. Raises: WrongOutput."""
    try:
        result = caller(sample.row(row), 1)
        (alone,) = split(result, outputs, sample.dims, [(1, sample.extents)], sample.extents)
    except Exception as raised:
        raise WrongOutput(f"{sample.path}: row {row} by itself: {describe(raised)}") from raised
    for spec, among, by_itself in zip(outputs, together, alone):
        if not same_row(among, by_itself):
            raise WrongOutput(
                f"{sample.path}: row {row} gives another {spec['name']!r} by itself than among the others. Rows must "
                "be independent of each other: requests of many clients are computed together, and answers are reused. "
                "Compute each row by itself, or give --batch-max 1; --no-cache where equal inputs need not have equal "
                "outputs"
            )


def _check_longer(caller: Caller, sample: Sample, outputs: list[Spec], together: list[Arrays], most: list[int]) -> None:
    """The sample gives the same where its inputs are filled up, beside longer ones. Raises: WrongOutput."""
    longer = [min(extent + LONGER, limit) for extent, limit in zip(sample.extents, most)]
    if longer == sample.extents:
        return
    way = (
        "Declare a bool input, which tells the elements that are there (it is filled up with False), and use it; name "
        "the value that changes nothing with --pad; or give --exact, so that only requests of one size are computed "
        "together"
    )
    try:
        result = caller(sample.longer(longer), sample.rows)
        filled = split(result, outputs, sample.dims, [(1, sample.extents)] * sample.rows, longer)
    except Exception as raised:
        raise WrongOutput(
            f"{sample.path}, filled up to {_sizes(sample, longer)}: {describe(raised)}. {way}"
        ) from raised
    for one, other in zip(together, filled):
        for spec, as_is, beside in zip(outputs, one, other):
            if not same_row(as_is, beside):
                raise WrongOutput(
                    f"{sample.path} gives another {spec['name']!r} where it is filled up to {_sizes(sample, longer)}, "
                    f"as it is beside longer ones. {way}"
                )


def _sizes(sample: Sample, extents: list[int]) -> str:
    return ", ".join(f"{name} {extent}" for name, extent in zip(sample.dims, extents))


def same_row(one: Any, other: Any) -> bool:
    """Returns whether both rows are equal; floats may differ as another order of summation makes them.

    The difference is relative to the row's largest value.
    """
    import numpy as np

    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool((one == other).all())
    tolerance = ROW_TOLERANCE if one.dtype.itemsize > 2 else HALF_TOLERANCE
    one, other = one.astype("float64"), other.astype("float64")
    finite = np.isfinite(one) & np.isfinite(other)
    if not (finite | (one == other) | (np.isnan(one) & np.isnan(other))).all():
        return False
    largest = max(np.abs(one[finite]).max(initial=0.0), np.abs(other[finite]).max(initial=0.0))
    return bool((np.abs(one[finite] - other[finite]) <= tolerance * largest).all())


def _read(path: str) -> dict[str, Any]:
    """{name: array}; "" where the file has one without a name. Raises: CannotServe, OSError."""
    import numpy as np

    if path.endswith(".json"):
        try:
            with open(path, encoding="utf-8") as opened:
                found = json.load(opened)
            named = found if isinstance(found, dict) else {"": found}
            return {name: np.asarray(value) for name, value in named.items()}
        except ValueError as error:
            raise CannotServe(f"--sample {path}: a list, or lists by the inputs' names, are due: {error}") from None
    try:
        opened_file = np.load(path, allow_pickle=False)
        if hasattr(opened_file, "files"):
            return {name: opened_file[name] for name in opened_file.files}
        return {"": opened_file}
    except ValueError as error:
        raise CannotServe(
            f"--sample {path} cannot be read: {error}; save strings as an array of them (array.astype(str)), or write "
            "a .json"
        ) from None


def _elements(array: Any, dtype: str, whose: str) -> Any:
    """The array with str or bytes as elements. Raises: CannotServe."""
    elements = array.ravel().tolist()
    if dtype == "bytes":
        elements = [element.encode() if isinstance(element, str) else element for element in elements]
    kind = str if dtype == "string" else bytes
    wrong = next((element for element in elements if not isinstance(element, kind)), None)
    if wrong is not None:
        raise CannotServe(f"{whose} has a {type(wrong).__name__} among its elements; declared is {dtype}")
    return as_strings(elements, array.shape)


def _put_together(result: Yielded, rows: int) -> Any:
    """What a generator yielded, as if the function had returned it at once: rows if there are as many, else groups."""
    import numpy as np

    if len(result) == rows:
        return list(result)
    if result and isinstance(result[0], Mapping):
        return {name: np.concatenate([as_array(name, item[name]) for item in result]) for name in result[0]}
    return np.concatenate([as_array("y", item) for item in result]) if result else []


def _read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array
