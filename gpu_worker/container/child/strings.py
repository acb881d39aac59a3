"""Strings and bytes as they lie in shared memory: elements in C order, each its length in 4 bytes and its bytes."""

from __future__ import annotations

from struct import Struct
from typing import Any

from .faults import WrongInput, WrongOutput

LENGTH = Struct("<I")


def read_strings(data: Any, count: int, text: bool) -> list[Any]:
    """Returns the elements, str or bytes. Raises: WrongInput if there are more or fewer, or one is no UTF-8."""
    found: list[Any] = []
    at, end = 0, len(data)
    for _ in range(count):
        if end - at < 4:
            raise WrongInput(f"{count} elements are due, and the bytes end after {len(found)}")
        (size,) = LENGTH.unpack_from(data, at)
        at += 4
        if end - at < size:
            raise WrongInput(f"element {len(found)} says that it has {size} bytes, and {end - at} are left")
        element = bytes(data[at : at + size])
        at += size
        if text:
            try:
                found.append(element.decode())
            except UnicodeDecodeError:
                raise WrongInput(f"element {len(found)} is no UTF-8") from None
        else:
            found.append(element)
    if at != end:
        raise WrongInput(f"{end - at} bytes are left behind the {count} elements that are due")
    return found


def encoded(name: str, array: Any, dtype: str) -> Any:
    """Returns the array with its elements as bytes, as the dtype promises them. Raises: WrongOutput."""
    import numpy as np

    text = dtype == "string"
    elements: list[bytes] = []
    for element in array.ravel().tolist():
        if text and isinstance(element, str):
            elements.append(_utf8(name, element))
        elif not text and isinstance(element, (bytes, bytearray, memoryview)):
            elements.append(bytes(element))
        else:
            due = "strings (str)" if text else "bytes"
            raise WrongOutput(f"output {name!r} has a {type(element).__name__} among its elements; promised are {due}")
    found = np.empty(len(elements), object)
    found[:] = elements
    return found.reshape(array.shape)


def packed(array: Any) -> bytes:
    """Returns the elements, bytes, as they lie in shared memory. Raises: WrongOutput for one of 4 GiB."""
    pieces: list[bytes] = []
    for element in array.ravel().tolist():
        if len(element) >> 32:
            raise WrongOutput(f"an element has {len(element)} bytes; at most {(1 << 32) - 1} can travel")
        pieces += (LENGTH.pack(len(element)), element)
    return b"".join(pieces)


def as_strings(elements: list[Any], shape: tuple[int, ...]) -> Any:
    """Returns an array of these objects with this shape."""
    import numpy as np

    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def _utf8(name: str, element: str) -> bytes:
    try:
        return element.encode()
    except UnicodeEncodeError as error:
        raise WrongOutput(
            f"output {name!r} has a string that is no text, {element[error.start : error.end][:8]!a} at "
            f"{error.start}: promise bytes for what is none"
        ) from None
