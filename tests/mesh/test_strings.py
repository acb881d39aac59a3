"""Strings and bytes as they travel."""

import pytest

from mesh.strings import pack, row_ends, unpack

ELEMENTS = [b"", b"a", "grüße".encode(), b"\x00\xff" * 300]


def test_elements_come_back() -> None:
    assert unpack(pack(ELEMENTS), 4) == ELEMENTS
    assert unpack(memoryview(pack(ELEMENTS)), 4) == ELEMENTS
    assert unpack(b"", 0) == []


def test_rows_end_where_their_last_element_does() -> None:
    data = pack(ELEMENTS)
    ends = row_ends(data, 2, 2)
    assert unpack(data[: ends[0]], 2) == ELEMENTS[:2]
    assert unpack(data[ends[0] : ends[1]], 2) == ELEMENTS[2:]


@pytest.mark.parametrize(
    ("data", "count"),
    [(b"", 1), (b"\x01\0\0", 1), (b"\x05\0\0\0ab", 1), (pack([b"a"]) + b"x", 1), (pack([b"a", b"b"]), 1)],
)
def test_other_bytes_are_refused(data: bytes, count: int) -> None:
    with pytest.raises(ValueError, match=r"element|bytes"):
        unpack(data, count)
    with pytest.raises(ValueError, match=r"element|bytes"):
        row_ends(data, count, 1)
