"""Converts what people give as an array, of any library, memory order and byte order. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]
KINDS = ("b", "iu", "f")  # numpy's kinds of dtypes; values of a kind can be cast to each later kind
SHOWN = 5  # names listed in a message


def arrays_of(example: object) -> dict[str, Any]:
    """Returns {input: what was given for it}.

    Raises: ValueError with a sentence for people if it is no such mapping.
    """
    if not isinstance(example, Mapping):
        raise ValueError(f"example must be {{input: array}}; got a {type(example).__name__}")
    odd = [name for name in example if not isinstance(name, str)]
    if odd:
        raise ValueError(f"example must have the inputs' names as keys; got {', '.join(map(repr, odd[:SHOWN]))}")
    return dict(example)


def array_of(value: object) -> Array:
    """Returns a copy on the CPU, in C order and native byte order. Raises: ValueError with a sentence for people."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized:
            raise ValueError(f"must be dense, as to_dense() or dequantize() make it; it is {value.layout}")
        value = value.detach().float() if value.dtype is torch.bfloat16 else value.detach()
    try:
        found = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
    except Exception as error:  # numpy, torch and the given object may raise anything
        kind = type(error).__name__
        raise ValueError(f"is no array of numbers ({kind}): all rows must have one shape") from None
    if not any(found.dtype.kind in kind for kind in KINDS):
        what = "of text, objects or other things" if found.dtype.kind in "OUSV" else f"of {found.dtype}"
        raise ValueError(f"must have numbers that can travel; it is {what}")
    wide = found.dtype.kind == "f" and found.dtype.itemsize > np.dtype(np.float64).itemsize
    return np.array(found, np.float64 if wide else found.dtype.newbyteorder("="), order="C")


def cast(array: Array, dtype: str) -> Array:
    """Returns the same values in that dtype; some are finite.

    Raises: ValueError with a sentence for people if they do not fit.
    """
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
