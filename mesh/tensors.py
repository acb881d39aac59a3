"""Tensors as they travel: the dtype's name, the shape, and raw bytes (C order, little endian), never copied here."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[np.generic]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        "float32", "float64", "float16", "bool",
        "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
    )
}  # fmt: skip


VARIABLE = ("string", "bytes")  # dtypes whose elements have lengths of their own: mesh.strings has their layout


def byte_count(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of this dtype, none of VARIABLE, and shape (which holds no -1).

    Exact for any size, as Python integers do not overflow.
    """
    count = DTYPES[dtype].itemsize
    for extent in shape:
        count *= extent
    return count


def view(
    data: bytes | memoryview, dtype: str, shape: Sequence[int]
) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    """The tensor in `data`, read-only and not copied. Raises: ValueError if the bytes do not fit the shape."""
    array = np.frombuffer(data, DTYPES[dtype]).reshape(tuple(shape))
    array.flags.writeable = False
    return array


def raw(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> memoryview:
    """The bytes of `array`; copied only if it is not contiguous or not little endian."""
    contiguous = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return memoryview(contiguous.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
