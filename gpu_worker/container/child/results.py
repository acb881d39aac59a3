"""Makes the promised outputs of whatever the function returned: arrays, dicts, tuples, lists of rows, strings."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from .calling import Yielded, drained
from .declaring import VARIABLE, Spec
from .faults import WrongOutput
from .strings import as_strings, encoded


def is_array(value: Any) -> bool:
    """Returns whether the value is a plain array, which needs no more looking at."""
    numpy = sys.modules["numpy"]
    return type(value) is numpy.ndarray and value.ndim > 0


def take(result: Any, specs: list[Spec], rows: int) -> list[Any]:
    """Returns one array per output, with the promised shape and a dtype that can be cast. Raises: WrongOutput."""
    if len(specs) == 1 and is_array(result):
        named = {specs[0]["name"]: result}
    else:
        named = by_name(result, [spec["name"] for spec in specs], rows)
    taken = []
    for spec in specs:
        array = value_of(spec["name"], named[spec["name"]], spec, rows)
        if isinstance(array, list):
            array = as_array(spec["name"], array)
        check_rows(spec["name"], array, (rows, *spec["shape"][1:]), rows)
        taken.append(check_dtype(spec, array))
    return taken


def by_name(result: Any, names: list[str], rows: int) -> dict[str, Any]:
    """Returns {output: what the function gave for it}. Raises: WrongOutput if there are others, or fewer."""
    if not isinstance(result, dict):
        result = _as_dict(result, names, rows)
    missing = [name for name in names if name not in result]
    extra = [str(name) for name in result if name not in names]
    if missing or extra:
        raise WrongOutput(
            f"the function returned outputs {', '.join(map(str, result)) or 'none'}; promised are {', '.join(names)}"
        )
    named: dict[str, Any] = result
    return named


def value_of(name: str, value: Any, spec: Spec, rows: int) -> Any:
    """Returns the output as an array, or as a list of one array for each row. Raises: WrongOutput.

    What numpy makes no array of, as the rows differ in size, is a list.
    """
    if is_array(value):
        return value
    value = drained(value, rows)
    ndim, strings = len(spec["shape"]), spec["dtype"] in VARIABLE
    if spec.get("owner") and isinstance(value, (list, tuple, Yielded)):
        ndim += 1  # a list has the elements of one row in each item
    if isinstance(value, Yielded):
        value = _joined(name, value, ndim, strings)
    if isinstance(value, (list, tuple)) and ndim > 1 and len(value) == rows and _differ(value, strings):
        return [as_array(name, row, strings) for row in value]
    array = as_array(name, value, strings)
    alone = isinstance(value, tuple) and len(value) == 1 and array.ndim == ndim + 1
    return array[0] if alone else array


def check_rows(name: str, array: Any, shape: Any, rows: int) -> None:
    """The array has this shape. Raises: WrongOutput."""
    if array.shape != shape:
        raise WrongOutput(
            f"output {name!r} has shape {list(array.shape)} for {rows} rows; it must be {list(shape)}: "
            "one row for each row of the input, in the same order"
        )


def check_dtype(spec: Spec, array: Any) -> Any:
    """Returns the array; of strings, with their bytes as elements. Raises: WrongOutput if it cannot be cast."""
    import numpy as np

    if spec["dtype"] in VARIABLE:
        return encoded(spec["name"], array, spec["dtype"])
    if array.size and not np.can_cast(array.dtype, spec["dtype"], "same_kind"):
        raise WrongOutput(f"output {spec['name']!r} is {array.dtype}; promised is {spec['dtype']}")
    return array


def as_array(name: str, value: Any, strings: bool = False) -> Any:
    """Returns the value as an array. Raises: WrongOutput if it is none, or holds what an array cannot."""
    import numpy as np

    if is_array(value):
        return value
    if hasattr(value, "__await__"):
        if hasattr(value, "close"):
            value.close()
        raise WrongOutput(f"output {name!r} is a {type(value).__name__}: the function has to await it")
    value = _detached(value)
    if strings and isinstance(value, (list, tuple)):
        array = _array_of_strings(value)
    else:
        array = np.asarray(value)
    if array.dtype == object and array.ndim == 0:
        kind = type(value).__name__
        raise WrongOutput(f"output {name!r} is a {kind}; it must be an array, or what numpy makes one of")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise WrongOutput(f"output {name!r} has masked values; return .filled(...), so that clients know them as such")
    return array


def fill(target: Any, name: str, array: Any) -> None:
    """The promised tensor holds the array's values. Raises: WrongOutput if a number does not fit its dtype."""
    target[...] = array
    narrower = target.dtype.kind in "iu" and array.dtype.itemsize > target.dtype.itemsize
    if narrower and not (target == array).all():
        raise WrongOutput(
            f"output {name!r} has numbers that {target.dtype} cannot hold; the function's are {array.dtype}"
        )


def _as_dict(result: Any, names: list[str], rows: int) -> dict[str, Any]:
    """{output: what the function gave for it}, of what is no dict."""
    if isinstance(result, Mapping):
        return dict(result)
    if isinstance(result, Yielded) and result and isinstance(result[0], Mapping):
        return _gathered(result, names, Yielded)
    if _rows_of_dicts(result, rows):
        return _gathered(result, names, list)
    if isinstance(result, Yielded) and len(names) > 1:
        return _columns(result, names)
    return _positional(result, names)


def _positional(result: Any, names: list[str]) -> dict[str, Any]:
    """The one output, or a tuple or list of one for each, in the order in which they are promised."""
    if result is None:
        raise WrongOutput(f"the function returned None; promised are {', '.join(names)}")
    if len(names) == 1:
        return {names[0]: result}
    if isinstance(result, (tuple, list)) and len(result) == len(names):
        return dict(zip(names, result))
    if hasattr(result, "keys") and hasattr(result, "__getitem__"):  # as a data frame: each column is an output
        return {name: result[name] for name in result.keys()}  # noqa: SIM118
    some = f" of {len(result)}" if isinstance(result, (tuple, list)) else ""
    raise WrongOutput(
        f"the function returned a {type(result).__name__}{some}; with {len(names)} outputs it must return a dict of "
        f"arrays, or a tuple of {len(names)}: {', '.join(names)}"
    )


def _rows_of_dicts(result: Any, rows: int) -> bool:
    return isinstance(result, list) and len(result) == rows > 0 and all(isinstance(row, Mapping) for row in result)


def _gathered(items: Any, names: list[str], kind: Any) -> dict[str, Any]:
    """{output: its values}, of a dict for each row or group of rows."""
    for i, item in enumerate(items):
        if not isinstance(item, Mapping) or set(item) != set(names):
            has = ", ".join(map(str, item)) if isinstance(item, Mapping) else f"a {type(item).__name__}"
            raise WrongOutput(f"item {i} of the result has {has or 'nothing'}; promised are {', '.join(names)}")
    return {name: kind(item[name] for item in items) for name in names}


def _columns(items: Yielded, names: list[str]) -> dict[str, Any]:
    """{output: its values}, of a tuple for each row or group of rows."""
    for i, item in enumerate(items):
        if not isinstance(item, (tuple, list)) or len(item) != len(names):
            raise WrongOutput(
                f"item {i} that the function yielded is a {type(item).__name__}; with {len(names)} outputs it must be "
                f"a dict, or a tuple of {len(names)}: {', '.join(names)}"
            )
    return {name: Yielded(item[i] for item in items) for i, name in enumerate(names)}


def _joined(name: str, items: Yielded, ndim: int, strings: bool) -> list[Any]:
    """One value for each row, of items that are rows, or groups of rows with the batch first."""
    rows: list[Any] = []
    for item in items:
        if isinstance(item, (str, bytes)):
            rows.append(item)
            continue
        array = as_array(name, item, strings)
        if array.ndim == ndim - 1:
            rows.append(array)
        elif array.ndim == ndim:
            rows.extend(array)
        else:
            raise WrongOutput(
                f"the function yielded output {name!r} with shape {list(array.shape)}: an item is a row, with "
                f"{ndim - 1} dimensions, or rows with the batch first"
            )
    return rows


def _differ(value: Any, strings: bool) -> bool:
    """Whether the rows of the list have shapes of their own."""
    import numpy as np

    if strings:
        return len({_nested_shape(row) for row in value}) > 1
    shapes = {getattr(row, "shape", None) for row in value}
    if len(shapes) == 1 and None not in shapes:
        return False
    try:
        return len({np.shape(_detached(row)) for row in value}) > 1
    except ValueError:  # a row that is ragged itself
        return False


def _nested_shape(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return (len(value), *(_nested_shape(value[0]) if value else ()))
    return tuple(getattr(value, "shape", ()))


def _array_of_strings(value: Any) -> Any:
    """An array of objects: numpy would make each element as wide as the widest."""
    shape, elements = _nested_shape(value), list(value)
    for _ in shape[1:]:
        elements = [element for row in elements for element in row]
    count = 1
    for extent in shape:
        count *= extent
    return as_strings(elements, shape) if len(elements) == count else as_strings(list(value), (len(value),))


def _detached(value: Any) -> Any:
    """A torch tensor as numpy takes it: without a gradient, on the CPU, of a dtype that numpy has."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    return value
