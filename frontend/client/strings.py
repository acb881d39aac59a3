"""Strings and byte strings: numpy arrays of them, and how they travel. No sockets, no time.

Arrays of `str` or of `bytes` elements are taken in any of numpy's forms, dtypes `U`, `S` and `object`. What comes back
has the dtype `object`, with elements `str` for `string` and `bytes` for `bytes`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .codes import by_file

if TYPE_CHECKING or __package__ == "frontend.client":
    from mesh.strings import pack, unpack
else:
    _layout = by_file("strings")
    pack, unpack = _layout.pack, _layout.unpack

Array = npt.NDArray[Any]

STRING, BYTES = "string", "bytes"
VARIABLE = (STRING, BYTES)
FIXED_KINDS = "US"  # numpy's arrays of strings that all take as much room


def dtype_of(array: Array) -> str | None:
    """The dtype of the protocol for such an array: `bytes` if the first element is; None: it holds something else."""
    if array.dtype.kind in FIXED_KINDS:
        return STRING if array.dtype.kind == "U" else BYTES
    if array.dtype.kind != "O":
        return None
    first = next(iter(array.flat), "")
    return STRING if isinstance(first, str) else BYTES if isinstance(first, bytes) else None


def elements_of(array: Array, dtype: str) -> list[Any]:
    """The elements in C order as a list in a message has them; what is neither str nor bytes stays as it is."""
    elements = array.reshape(-1).tolist()
    if dtype == BYTES:
        return [element.encode() if isinstance(element, str) else element for element in elements]
    return elements


def packed(elements: Sequence[Any]) -> bytes:
    """The elements as a frame has them. Raises: TypeError for what is neither str nor bytes."""
    return pack([element.encode() if isinstance(element, str) else _bytes(element) for element in elements])


def _bytes(element: Any) -> bytes:
    if not isinstance(element, bytes | bytearray | memoryview):
        raise TypeError(f"an array of strings holds str or bytes; got {type(element).__name__}")
    return bytes(element)


def size_of(elements: Sequence[Any]) -> int:
    """About how many bytes they take in a message."""
    return sum(4 + len(element) for element in elements if isinstance(element, str | bytes))


def array_of(data: Any, dtype: str, shape: Sequence[int]) -> Array:
    """The array in a list of a message, or in the bytes of a frame."""
    elements = data if isinstance(data, list) else unpack(data, int(np.prod(shape, dtype=np.int64)))
    if dtype == STRING:
        elements = [element if isinstance(element, str) else element.decode() for element in elements]
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(tuple(shape))
