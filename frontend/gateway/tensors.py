"""Tensors as HTTP carries them: OIP datatypes, data as JSON lists or as raw bytes behind the JSON. Pure.

BYTES stands for `string` and `bytes` both: an array of the dtype `object`. In JSON its elements are strings, whose
UTF-8 is the element; in raw bytes each is its length, 4 bytes little endian, and its bytes.

Source: Open Inference Protocol v2 (kserve/open-inference-protocol), "Tensor Data"; the binary tensor data extension of
the same protocol (Triton's extension_binary_data).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from frontend.core.elements import ELEMENTS_MAX, STRING, ElementFault, check_packed
from frontend.gateway.errors import HttpRefusal
from mesh.codes import ErrorCode
from mesh.strings import LENGTH, pack, unpack
from mesh.tensors import DTYPES, VARIABLE, byte_count, raw, view

Array = npt.NDArray[Any]

DATATYPES = {  # {datatype of the OIP: numpy dtype}
    "BOOL": "bool",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
BYTES = "BYTES"
NAMES = {ours: datatype for datatype, ours in DATATYPES.items()} | dict.fromkeys(VARIABLE, BYTES)
DIMENSIONS_MAX = 32


def dtype_of(datatype: str, field: str, due: str | None = None) -> str:
    """Our dtype of the OIP datatype; `due`: of the model's input, if it is known. Raises: HttpRefusal."""
    if datatype in DATATYPES:
        return DATATYPES[datatype]
    if datatype == BYTES:
        return due if due in VARIABLE else STRING
    text = f"{field}: datatype {datatype[:32]!r} is not one that is served; datatypes are"
    raise HttpRefusal(f"{text} {', '.join((*DATATYPES, BYTES))}", ErrorCode.BAD_DTYPE, field)


def datatype_of(array: Array) -> str:
    """The OIP datatype of an array."""
    return BYTES if array.dtype.kind == "O" else NAMES[array.dtype.name]


def size_of(array: Array) -> int:
    """Bytes of the array as it travels raw."""
    if array.dtype.kind != "O":
        return array.nbytes
    return sum(LENGTH.size + len(element.encode() if isinstance(element, str) else element) for element in array.flat)


def check_shape(shape: Sequence[int], field: str) -> None:
    """Checks that the shape is one of an actual tensor. Raises: HttpRefusal."""
    if not 1 <= len(shape) <= DIMENSIONS_MAX or any(extent < 0 for extent in shape):
        text = f"{field}: shape is 1 to {DIMENSIONS_MAX} numbers from 0 on, rows first; got {list(shape[:8])}"
        raise HttpRefusal(text, ErrorCode.BAD_SHAPE, field)


def from_bytes(data: memoryview, dtype: str, shape: Sequence[int], field: str) -> Array:
    """The tensor in `data`, not copied if it is one of numbers. Raises: HttpRefusal."""
    if dtype in VARIABLE:
        count = _count(shape, field)
        try:
            check_packed(data, count, dtype)
        except ElementFault as fault:
            at = "" if fault.place is None else f"element {fault.place} "
            raise HttpRefusal(f"{field}: {at}{fault.text}", ErrorCode.BAD_DATA, field) from None
        return _objects(unpack(data, count), dtype, shape)
    wanted = byte_count(dtype, shape)
    if len(data) != wanted:
        text = f"{field}: shape {list(shape)} of {NAMES[dtype]} is {wanted} bytes; got {len(data)}"
        raise HttpRefusal(text, ErrorCode.BAD_DATA, field)
    return view(data, dtype, shape)


def from_json(data: Any, dtype: str, shape: Sequence[int], field: str) -> Array:
    """The tensor of JSON numbers, or strings, nested as the shape or flat in row-major order. Raises: HttpRefusal."""
    if dtype in VARIABLE:
        return _strings(data, dtype, shape, field)
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


def _strings(data: Any, dtype: str, shape: Sequence[int], field: str) -> Array:
    """The array of JSON strings."""
    count = _count(shape, field)
    if not isinstance(data, list):
        raise HttpRefusal(f"{field}: data is a list of strings; got {type(data).__name__}", ErrorCode.BAD_DATA, field)
    flat: list[Any] = data
    for extent in shape[1:]:
        if not flat or not all(isinstance(item, list) for item in flat):
            break
        if any(len(item) != extent for item in flat) or len(flat) * extent > count:
            text = f"{field}: data is nested unevenly; give {count} strings in one list, or nested as {list(shape)}"
            raise HttpRefusal(text, ErrorCode.BAD_DATA, field)
        flat = [element for item in flat for element in item]
    if len(flat) != count:
        text = f"{field}: shape {list(shape)} is {count} strings in one list, or nested so; got {len(flat)}"
        raise HttpRefusal(text, ErrorCode.BAD_DATA, field)
    wrong = next((place for place, element in enumerate(flat) if not isinstance(element, str)), None)
    if wrong is not None:
        text = f"{field}: BYTES are JSON strings; element {wrong} is {type(flat[wrong]).__name__}"
        raise HttpRefusal(text, ErrorCode.BAD_DATA, field)
    return _objects(flat, dtype, shape)


def _count(shape: Sequence[int], field: str) -> int:
    """How many strings the shape holds, if a request may have so many."""
    count = math.prod(shape)
    if count > ELEMENTS_MAX:
        text = f"{field}: a request has at most {ELEMENTS_MAX} strings; got {count}: send them in several"
        raise HttpRefusal(text, ErrorCode.BAD_DATA, field)
    return count


def _objects(elements: Sequence[str | bytes], dtype: str, shape: Sequence[int]) -> Array:
    """The array, of `str` for `string` and of `bytes` for `bytes`: by that the client knows what it is."""
    array = np.empty(len(elements), object)
    if dtype == STRING:
        array[:] = [element if isinstance(element, str) else element.decode() for element in elements]
    else:
        array[:] = [element.encode() if isinstance(element, str) else element for element in elements]
    return array.reshape(tuple(shape))


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
    """Flat, row-major; NaN and infinities, which JSON cannot express, become null.

    Raises: UnicodeDecodeError for bytes that are not UTF-8: JSON has strings alone.
    """
    flat = array.reshape(-1)
    if flat.dtype.kind == "O":
        return [element if isinstance(element, str) else element.decode() for element in flat]
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        return [value if math.isfinite(value) else None for value in flat.tolist()]
    values: list[Any] = flat.tolist()
    return values


def to_bytes(array: Array) -> bytes | memoryview:
    """Raw bytes, row-major, not copied if they are contiguous numbers."""
    if array.dtype.kind != "O":
        return raw(array)
    return pack(element.encode() if isinstance(element, str) else element for element in array.flat)
