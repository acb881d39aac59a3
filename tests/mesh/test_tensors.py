"""mesh/tensors.py: from arrays to bytes and back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mesh.tensors import DTYPES, byte_count, raw, view

SIZES = {
    "float32": 4, "float64": 8, "float16": 2, "bool": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1,
}  # fmt: skip


def test_the_dtypes_are_these_and_their_sizes_are_known() -> None:
    assert {name: byte_count(name, ()) for name in DTYPES} == SIZES
    assert all(dtype.name == name for name, dtype in DTYPES.items())


@pytest.mark.parametrize(
    ("shape", "count"),
    [((), 4), ((0, 5), 0), ((1,), 4), ((3, 4), 48), ((2**31, 2**31, 2**31), 4 * 2**93)],
)
def test_the_byte_count_is_exact_for_any_size(shape: tuple[int, ...], count: int) -> None:
    assert byte_count("float32", shape) == count


@given(
    array=npst.arrays(
        dtype=st.sampled_from([np.dtype(name).newbyteorder(order) for name in SIZES for order in "<>"]),
        shape=npst.array_shapes(min_dims=1, min_side=0, max_side=4),
    )
)
def test_an_array_of_either_byte_order_makes_the_round_trip(array: Any) -> None:
    data = raw(array)
    assert data.nbytes == byte_count(array.dtype.name, array.shape)
    again = view(data, array.dtype.name, array.shape)
    assert again.dtype == DTYPES[array.dtype.name]
    np.testing.assert_array_equal(again, array)


def test_the_bytes_are_in_c_order_and_little_endian() -> None:
    array = np.array([[1, 2, 3], [4, 5, 6]], np.int16)
    assert raw(array).tobytes() == b"\x01\0\x02\0\x03\0\x04\0\x05\0\x06\0"
    assert raw(array.T).tobytes() == b"\x01\0\x04\0\x02\0\x05\0\x03\0\x06\0"
    assert raw(array.astype(">i2")).tobytes() == raw(array).tobytes()


def test_a_contiguous_array_is_not_copied_on_the_way_out() -> None:
    array = np.zeros((4, 4), np.float32)
    assert np.shares_memory(np.frombuffer(raw(array), np.uint8), array)
    assert not np.shares_memory(np.frombuffer(raw(array[:, ::2]), np.uint8), array)


@pytest.mark.parametrize("make", [bytes, memoryview, lambda data: memoryview(bytearray(data))])
def test_a_view_is_read_only_and_not_copied(make: Any) -> None:
    data = make(bytes(8))  # the last one is writable, like the buffer of a ZeroMQ frame
    array = view(data, "float32", (1, 2))
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))
    assert not array.flags.writeable


@pytest.mark.parametrize("size", [0, 3, 4, 7, 9, 12])
def test_bytes_that_do_not_fit_the_shape_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        view(bytes(size), "float32", (1, 2))


def test_an_empty_tensor_has_no_bytes() -> None:
    assert view(b"", "float32", (0, 3)).shape == (0, 3)
    assert raw(np.zeros((0, 3), np.float32)).nbytes == 0


def test_a_scalar_has_one_element() -> None:
    assert raw(np.float32(1.0)).tobytes() == b"\0\0\x80\x3f"  # type: ignore[arg-type]
    assert view(b"\0\0\x80\x3f", "float32", ()).item() == 1.0


def test_a_bool_is_one_byte() -> None:
    assert raw(np.array([True, False])).tobytes() == b"\1\0"
    assert view(b"\1\0", "bool", (2,)).tolist() == [True, False]


def test_an_unknown_dtype_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        byte_count("complex64", (1,))
