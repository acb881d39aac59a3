"""Tensors of the dtypes `string` and `bytes` as they travel: elements in C order, each its length and its bytes. Pure.

The length has 4 bytes, little endian; a string is UTF-8. The Open Inference Protocol calls this layout BYTES.
"""

from collections.abc import Iterable
from struct import Struct

LENGTH = Struct("<I")


def pack(elements: Iterable[bytes]) -> bytes:
    """Returns the elements as they travel. Raises: OverflowError for one of 4 GiB or more."""
    parts: list[bytes] = []
    for element in elements:
        if len(element) >> 32:
            raise OverflowError(f"an element has {len(element)} bytes; at most {(1 << 32) - 1} can travel")
        parts.append(LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def unpack(data: bytes | memoryview, count: int) -> list[bytes]:
    """Returns the `count` elements. Raises: ValueError if the bytes are those of more, fewer, or of none at all."""
    view = memoryview(data)
    elements: list[bytes] = []
    at, end = 0, len(view)
    for _ in range(count):
        if end - at < LENGTH.size:
            raise ValueError(f"{count} elements are due, and the bytes end after {len(elements)}")
        (size,) = LENGTH.unpack_from(view, at)
        at += LENGTH.size
        if end - at < size:
            raise ValueError(f"element {len(elements)} says that it has {size} bytes, and {end - at} are left")
        elements.append(bytes(view[at : at + size]))
        at += size
    if at != end:
        raise ValueError(f"{end - at} bytes are left behind the {count} elements that are due")
    return elements


def row_ends(data: bytes | memoryview, rows: int, per_row: int) -> list[int]:
    """Returns where each row ends in the bytes. Raises: ValueError as `unpack` does."""
    view = memoryview(data)
    ends: list[int] = []
    at, end = 0, len(view)
    for _ in range(rows):
        for _ in range(per_row):
            if end - at < LENGTH.size:
                raise ValueError(f"{rows} rows of {per_row} elements are due, and the bytes end in row {len(ends)}")
            at += LENGTH.size + LENGTH.unpack_from(view, at)[0]
        ends.append(at)
    if at != end:
        raise ValueError(f"{rows} rows of {per_row} elements take {at} bytes; there are {end}")
    return ends
