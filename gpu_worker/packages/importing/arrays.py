"""What people give as an array, as one: of any library, memory order and byte order. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]
KINDS = ("b", "iu", "f")  # of dtypes, as numpy has them: a value of each is one of those after it, too
SHOWN = 5  # names that are listed


def arrays_of(example: object) -> dict[str, Any]:
    """{input: what was given for it}. Raises: ValueError, in words for people, where it is nothing of that kind."""
    if not isinstance(example, Mapping):
        raise ValueError(f"example must be {{input: array}}; got a {type(example).__name__}")
    odd = [name for name in example if not isinstance(name, str)]
    if odd:
        raise ValueError(f"example must have the inputs' names as keys; got {', '.join(map(repr, odd[:SHOWN]))}")
    return dict(example)


def array_of(value: object) -> Array:
    """A copy on the processor, in C order and of the machine's byte order. Raises: ValueError, in words for people."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized:
            raise ValueError(f"must be dense, as to_dense() or dequantize() make it; it is {value.layout}")
        value = value.detach().float() if value.dtype is torch.bfloat16 else value.detach()
    try:
        found = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
    except Exception as error:  # numpy, torch, and whatever it is that was given
        kind = type(error).__name__
        raise ValueError(f"is no array of numbers ({kind}): all rows must have one shape") from None
    if not any(found.dtype.kind in kind for kind in KINDS):
        what = "of text, objects or other things" if found.dtype.kind in "OUSV" else f"of {found.dtype}"
        raise ValueError(f"must have numbers that can travel; it is {what}")
    wide = found.dtype.kind == "f" and found.dtype.itemsize > np.dtype(np.float64).itemsize
    return np.array(found, np.float64 if wide else found.dtype.newbyteorder("="), order="C")


def cast(array: Array, dtype: str) -> Array:
    """The same values in that dtype, some of them finite. Raises: ValueError, in words for people: they do not fit."""
    rank, most = (next(i for i, kind in enumerate(KINDS) if np.dtype(d).kind in kind) for d in (array.dtype, dtype))
    if rank > most:
        raise ValueError(f"must be {dtype}; it is {array.dtype}")
    if np.dtype(dtype).kind in "iu" and array.size:
        limits, low, high = np.iinfo(dtype), int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise ValueError(f"must be {dtype}, {limits.min} to {limits.max}; its values are {low} to {high}")
    if np.isnan(array).any() or (array.size and not np.isfinite(array).any()):
        raise ValueError("must have finite numbers, and no NaN: else nothing can be seen of the model")
    with np.errstate(over="ignore"):
        found = array.astype(dtype)
    if not np.array_equal(np.isinf(found), np.isinf(array)):
        largest = np.abs(array[np.isfinite(array)]).max()
        raise ValueError(f"must be {dtype}; its values are as large as {largest:.2g}, which is too large")
    return found
