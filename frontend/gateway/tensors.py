"""Tensors as HTTP carries them: OIP datatypes, data as JSON lists or as raw bytes behind the JSON. Pure.

Source: Open Inference Protocol v2 (kserve/open-inference-protocol), "Tensor Data"; the binary tensor data extension of
the same protocol (Triton's extension_binary_data).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from frontend.gateway.errors import HttpRefusal
from mesh.codes import ErrorCode
from mesh.tensors import DTYPES, byte_count, view

Array = npt.NDArray[Any]

DATATYPES = {  # {datatype of the OIP: numpy dtype}
    "BOOL": "bool",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
NAMES = {ours: datatype for datatype, ours in DATATYPES.items()}
DIMENSIONS_MAX = 32


def dtype_of(datatype: str, field: str) -> str:
    """The numpy dtype of the OIP datatype. Raises: HttpRefusal."""
    if datatype in DATATYPES:
        return DATATYPES[datatype]
    why = "strings are not served; send numbers" if datatype == "BYTES" else "it is not one that is served"
    raise HttpRefusal(
        f"{field}: datatype {datatype[:32]!r}: {why}; datatypes are {', '.join(DATATYPES)}", ErrorCode.BAD_DTYPE, field
    )


def check_shape(shape: Sequence[int], field: str) -> None:
    """Checks that the shape is one of an actual tensor. Raises: HttpRefusal."""
    if not 1 <= len(shape) <= DIMENSIONS_MAX or any(extent < 0 for extent in shape):
        text = f"{field}: shape is 1 to {DIMENSIONS_MAX} numbers from 0 on, rows first; got {list(shape[:8])}"
        raise HttpRefusal(text, ErrorCode.BAD_SHAPE, field)


def from_bytes(data: memoryview, dtype: str, shape: Sequence[int], field: str) -> Array:
    """The tensor in `data`, not copied. Raises: HttpRefusal."""
    wanted = byte_count(dtype, shape)
    if len(data) != wanted:
        text = f"{field}: shape {list(shape)} of {NAMES[dtype]} is {wanted} bytes; got {len(data)}"
        raise HttpRefusal(text, ErrorCode.BAD_DATA, field)
    return view(data, dtype, shape)


def from_json(data: Any, dtype: str, shape: Sequence[int], field: str) -> Array:
    """The tensor of JSON numbers, nested as the shape or flat in row-major order. Raises: HttpRefusal."""
    count = math.prod(shape)
    if not isinstance(data, list):
        raise HttpRefusal(f"{field}: data is a list of numbers; got {type(data).__name__}", ErrorCode.BAD_DATA, field)
    try:
        found = np.asarray(data)
    except (ValueError, OverflowError):
        text = f"{field}: data is nested unevenly; give {count} numbers in one list, or nested as {list(shape)}"
        raise HttpRefusal(text, ErrorCode.BAD_DATA, field) from None
    if found.size != count or (found.ndim != 1 and found.shape != tuple(shape)):
        got = f"{found.size} in one list" if found.ndim == 1 else f"nested as {list(found.shape)}"
        text = f"{field}: shape {list(shape)} is {count} numbers in one list, or nested so; got {got}"
        raise HttpRefusal(text, ErrorCode.BAD_DATA, field)
    if found.dtype.kind == "f" and DTYPES[dtype].kind == "u":
        found = _whole(data, found)
    return _cast(found, dtype, field).reshape(tuple(shape))


def _whole(data: list[Any], found: Array) -> Array:
    """The integers kept as integers: numpy makes floats of a list in which some exceed int64."""
    exact = np.asarray(data, dtype=object)
    if all(type(number) is int and 0 <= number < 2**64 for number in exact.flat):
        return exact.astype(np.uint64)
    return found


def _cast(found: Array, dtype: str, field: str) -> Array:
    """The numbers in this dtype, none changed except by rounding of floats. Raises: HttpRefusal."""
    wanted = DTYPES[dtype]
    if found.size == 0:
        return np.empty(0, wanted)
    if found.dtype.kind not in "biuf" or (found.dtype.kind == "b" and wanted.kind != "b"):
        raise HttpRefusal(f"{field}: data holds something that is no {NAMES[dtype]}", ErrorCode.BAD_DATA, field)
    if wanted.kind == "f":
        with np.errstate(over="ignore"):
            cast = found.astype(wanted)
        if not np.isfinite(cast).all():
            raise HttpRefusal(f"{field}: data holds a number too large for {NAMES[dtype]}", ErrorCode.BAD_DATA, field)
        return cast
    if found.dtype.kind == "f":
        text = f"{field}: {NAMES[dtype]} takes whole numbers in its range; data holds {_odd(found)}"
        raise HttpRefusal(text, ErrorCode.BAD_DATA, field)
    least, most = _range(wanted)
    if int(found.min()) < least or int(found.max()) > most:
        raise HttpRefusal(
            f"{field}: {NAMES[dtype]} lies in {least} to {most}; data goes beyond", ErrorCode.BAD_DATA, field
        )
    return found.astype(wanted)


def _range(wanted: np.dtype[np.generic]) -> tuple[int, int]:
    """(lowest, highest) number of an integer dtype."""
    if wanted.kind == "b":
        return 0, 1
    bits = 8 * wanted.itemsize
    return (0, 2**bits - 1) if wanted.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _odd(found: Array) -> float:
    """The first number that is not an integer."""
    flat = found.reshape(-1)
    return float(flat[np.argmax(flat != np.floor(flat))])


def to_json(array: Array) -> list[Any]:
    """Flat, row-major; NaN and infinities, which JSON cannot express, become null."""
    flat = array.reshape(-1)
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        return [value if math.isfinite(value) else None for value in flat.tolist()]
    values: list[Any] = flat.tolist()
    return values
