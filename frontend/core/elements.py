"""Tensors of the dtypes `string` and `bytes` in the client protocol: lists in messages, packed in frames. Pure.

Inside the mesh they are always packed, one buffer for each tensor: mesh/strings.py has the layout. What comes of
clients or models is looked at element by element while everybody else waits, so there are limits: with these, 16,384
short strings took 3 ms, 9 ms where they were not ASCII, and 8 MiB of text 4 ms (AMD EPYC with 8 processes on 2 cores).
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from mesh.strings import LENGTH, pack, row_ends, unpack
from mesh.tensors import VARIABLE

ELEMENTS_MAX = 1 << 14  # strings and byte strings in all tensors of one request, or of one answer
TEXT_BYTES_MAX = 8 << 20  # of all `string` tensors of one request, or of one answer
LISTED_BYTES_MAX = 4 << 20  # of the lists in one message; what is larger travels as frames
STRING, BYTES = VARIABLE
LIST_HEAD = b"\xdd"  # of a msgpack array, before its length in 4 bytes, big endian
LIST_HEAD_BYTES = 5
STRING_HEADS: Final = {0xD9: 2, 0xDA: 3, 0xDB: 5}  # {first byte of a msgpack str: where its text begins}
CONTINUES = frozenset(bytes([byte]) for byte in range(0x80, 0xC0))  # bytes of UTF-8 that begin no character

_strings = msgspec.msgpack.Decoder(list[str])
_bins = msgspec.msgpack.Decoder(list[bytes])
_bin = msgspec.msgpack.Decoder(bytes)


class ElementFault(ValueError):
    """What is wrong with the elements. `place`: of the first that is wrong; None: it is none of them."""

    def __init__(self, text: str, place: int | None = None) -> None:
        super().__init__(text)
        self.text, self.place = text, place


def packed_list(items: Sequence[msgspec.Raw], dtype: str) -> bytes:
    """Returns the elements of a list in a message, packed. Either dtype takes str and bin. Raises: ElementFault."""
    try:
        return pack(map(str.encode, _strings.decode(_list_of(items))))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass  # not all are strings
    elements = [_element(item, place) for place, item in enumerate(items)]
    if dtype == STRING:
        for place, element in enumerate(elements):
            _check_text(memoryview(element), place)
    return pack(elements)


def _list_of(items: Sequence[msgspec.Raw]) -> bytes:
    """The items as one list in msgpack."""
    inside: bytes = b"".join(items)
    return b"".join((LIST_HEAD, len(items).to_bytes(4, "big"), inside))


def _element(item: msgspec.Raw, place: int) -> bytes:
    """Returns the bytes of one item of a list. Raises: ElementFault."""
    try:
        return _bin.decode(item)
    except msgspec.ValidationError:
        pass  # it is no bin
    view = memoryview(item)
    begin = 1 if view[0] & 0xE0 == 0xA0 else STRING_HEADS.get(view[0], 0)
    if not begin:
        raise ElementFault("is neither a string nor bytes", place)
    _check_text(view[begin:], place)
    return bytes(view[begin:])


def check_packed(data: bytes | memoryview, count: int, dtype: str) -> None:
    """Returns if these are `count` elements, and text where the dtype is `string`. Raises: ElementFault."""
    try:
        ends = row_ends(data, count, 1)
    except ValueError as error:
        raise ElementFault(str(error)) from None
    if dtype != STRING:
        return
    whole = bytes(data)
    if whole.isascii():  # lengths below 128, too: so most that have many elements are done
        return
    begins = [LENGTH.size + end for end in (0, *ends[:-1])]
    elements = [whole[begin:end] for begin, end in zip(begins, ends, strict=True)]
    if _is_text(b"".join(elements)) and not any(element[:1] in CONTINUES for element in elements if element):
        return
    for place, element in enumerate(elements):
        _check_text(memoryview(element), place)


def _is_text(joined: bytes) -> bool:
    try:
        str(joined, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _check_text(element: memoryview, place: int) -> None:
    try:
        str(element, "utf-8")
    except UnicodeDecodeError as error:
        raise ElementFault(f"is not UTF-8: {error.reason}", place) from None


def listed(data: bytes | memoryview, count: int, dtype: str) -> list[str] | list[bytes]:
    """Returns the elements as an answer in one frame has them; they have passed `check_packed`."""
    elements = unpack(data, count)
    return [element.decode() for element in elements] if dtype == STRING else elements


def list_length(value: msgspec.Raw) -> int:
    """Returns how many items the msgpack list in `value` has; 0 if it is no list."""
    view = memoryview(value)
    head = view[0] if len(view) else 0
    if head & 0xF0 == 0x90:
        return head & 0x0F
    width = {0xDC: 2, 0xDD: 4}.get(head, 0)
    return int.from_bytes(view[1 : 1 + width], "big")


def bytes_of(items: Sequence[msgspec.Raw]) -> int:
    """Returns how many bytes of their message these items take."""
    return len(_list_of(items)) - LIST_HEAD_BYTES
