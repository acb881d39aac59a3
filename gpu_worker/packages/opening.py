"""Checks what is said of a model's open dimensions, in arguments or in model.toml. Pure."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mesh.tensors import DTYPES
from mesh.wire.ranges import EXTENT_MAX, OPEN_MAX

DIM_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}", re.ASCII)
WHOLE_MAX = 1 << 53  # larger integers are not exact as they travel
FITS = {"float16": 65504.0, "float32": float(np.finfo(np.float32).max)}


def dims_faults(dims: object) -> list[str]:
    """Returns what is wrong with {name: (least, most)}."""
    if not isinstance(dims, Mapping):
        return [f'dims must be {{name: (least, most)}}, as {{"seq": (1, 512)}}; got {dims!r}']
    faults = []
    if len(dims) > OPEN_MAX:
        faults.append(
            f"dims has {', '.join(map(str, dims))}; a model may have {OPEN_MAX} open dimensions: fix the others"
        )
    for name, span in dims.items():
        if not isinstance(name, str) or not DIM_NAME.fullmatch(name):
            faults.append(f"dims: a name has letters, digits and _, 32 at most, and no digit first; got {name!r}")
            continue
        if not isinstance(span, tuple | list) or len(span) != 2 or not all(map(_is_whole, span)):
            faults.append(f"dims {name} must be (least, most), two whole numbers, as (1, 512); got {span!r}")
            continue
        least, most = span
        if not 1 <= least <= most <= EXTENT_MAX:
            faults.append(f"dims {name}: 1 <= least <= most <= {EXTENT_MAX} must hold; got {least} and {most}")
        elif least == most:
            faults.append(f"dims {name} has one extent alone, {least}: give this number in the shapes in its place")
    return faults


def known_dims(dims: object) -> dict[str, tuple[int, int]]:
    """Returns the dimensions whose range is sound."""
    if not isinstance(dims, Mapping):
        return {}
    return {name: (span[0], span[1]) for name, span in dims.items() if not dims_faults({name: span})}


def unused_faults(dims: object, shapes: Iterable[Sequence[object]]) -> list[str]:
    """Returns one sentence for each dimension that no input has. `shapes`: of a row of each input."""
    used = {extent for shape in shapes for extent in shape if isinstance(extent, str)}
    names = [name for name in dims if isinstance(name, str)] if isinstance(dims, Mapping) else []
    return [
        f"dims {name} is in the shape of no input: write it there, or leave it out"
        for name in names
        if name not in used
    ]


def pad_fault(pad: object, dtype: str, is_open: bool) -> str:
    """Returns why an input of this dtype cannot be filled up with this value; empty if it can."""
    if isinstance(pad, bool) or not isinstance(pad, int | float) or not math.isfinite(pad):
        return f"pad must be a finite number; got {pad!r}"
    if dtype == "bool":
        return "pad: a bool is filled up with False, so that a mask is True at real elements; leave it out"
    if not is_open:
        return "pad: it has no open dimension that could be filled up; leave it out"
    if dtype not in DTYPES or np.dtype(dtype).kind == "f":
        most = FITS.get(dtype, math.inf)
        return "" if abs(pad) <= min(most, 1e18) else f"pad must be within +-{min(most, 1e18):g}; got {pad!r}"
    limits = np.iinfo(dtype)
    low, high = max(int(limits.min), -WHOLE_MAX), min(int(limits.max), WHOLE_MAX)
    if pad != int(pad) or not low <= pad <= high:
        return f"pad must be a whole number from {low} to {high}, as {dtype} has it; got {pad!r}"
    return ""


def sizes(shape: Sequence[int | str], dims: Mapping[str, tuple[int, int]], most: bool) -> tuple[int, ...]:
    """Returns the shape with the least or the greatest extents."""
    return tuple(dims[extent][most] if isinstance(extent, str) else extent for extent in shape)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
