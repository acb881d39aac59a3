"""frontend/gateway/tensors.py: OIP datatypes, JSON lists and raw bytes."""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from frontend.gateway.errors import HttpRefusal
from frontend.gateway.tensors import DATATYPES, NAMES, check_shape, dtype_of, from_bytes, from_json, to_json
from mesh.tensors import DTYPES, raw
from tests.messages import names

Array = npt.NDArray[Any]
SHAPES = array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn) -> Array:
    """A finite tensor of any dtype that is served."""
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(SHAPES)
    if np.dtype(dtype).kind == "f":
        width = np.dtype(dtype).itemsize * 8
        return draw(arrays(dtype, shape, elements=st.floats(width=width, allow_nan=False, allow_infinity=False)))
    return draw(arrays(dtype, shape))


def test_every_dtype_of_the_mesh_has_its_datatype() -> None:
    assert set(DATATYPES.values()) == set(DTYPES)
    assert {DATATYPES[NAMES[dtype]] for dtype in DTYPES} == set(DTYPES)


@given(tensors())
def test_json_brings_every_number_back_flat_or_nested(tensor: Array) -> None:
    for told in (to_json(tensor), tensor.tolist() if tensor.size else []):
        data = msgspec.json.decode(msgspec.json.encode(told))
        found = from_json(data, tensor.dtype.name, tensor.shape, "inputs[0].data")
        assert (found.dtype.name, found.shape) == (tensor.dtype.name, tensor.shape)
        np.testing.assert_array_equal(found, tensor)


def test_whole_numbers_on_both_sides_of_2_to_63_are_not_rounded() -> None:
    for data in ([0, 2**63 + 1, 2**64 - 1], [[0], [2**63 + 1], [2**64 - 1]]):
        found = from_json(data, "uint64", (3, 1), "inputs[0].data")
        assert found.tolist() == [[0], [2**63 + 1], [2**64 - 1]]


@given(tensors())
def test_raw_bytes_bring_every_number_back_uncopied(tensor: Array) -> None:
    data = bytearray(raw(tensor))
    found = from_bytes(memoryview(data), tensor.dtype.name, tensor.shape, "inputs[0]")
    assert (found.dtype.name, found.shape) == (tensor.dtype.name, tensor.shape)
    np.testing.assert_array_equal(found, tensor)
    if tensor.size:
        assert np.shares_memory(found, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    ("data", "dtype", "shape", "named"),
    [
        # what the message names: the datatype, its bounds, the number that does not fit
        ([1.5], "int64", (1,), ("INT64", "1.5")),
        ([1, 2.0, 2.5], "int8", (3,), ("INT8", "2.5")),
        ([128], "int8", (1,), ("INT8", "-128", "127")),
        ([-1], "uint16", (1,), ("UINT16", "0", "65535")),
        ([2**64], "uint64", (1,), ("UINT64",)),
        ([-1, 2**63], "uint64", (2,), ("UINT64", "-1")),
        ([2**63], "int64", (1,), ("INT64",)),
        ([2], "bool", (1,), ("BOOL", "0", "1")),
        ([True], "float32", (1,), ("FP32",)),
        ([True], "int32", (1,), ("INT32",)),
        (["a"], "float32", (1,), ("FP32",)),
        ([None], "float32", (1,), ("FP32",)),
        ([70000.0], "float16", (1,), ("FP16",)),
        ([1e39], "float32", (1,), ("FP32",)),
        ([1, 2, 3], "float32", (1, 4), ("4", "3")),
        ([[1, 2], [3, 4]], "float32", (1, 4), ("[2, 2]",)),
        ([[1, 2], [3]], "float32", (1, 3), ()),
        ("1,2", "float32", (2,), ("str",)),
        ({}, "float32", (2,), ("dict",)),
    ],
)
def test_data_that_is_not_the_tensor_is_refused_with_what_would_be_right(
    data: Any, dtype: str, shape: tuple[int, ...], named: tuple[str, ...]
) -> None:
    with pytest.raises(HttpRefusal) as caught:
        from_json(data, dtype, shape, "inputs[2].data")
    assert (caught.value.code, caught.value.field) == ("bad_data", "inputs[2].data")
    assert names(caught.value.message, "inputs[2].data", *named)


@pytest.mark.parametrize(
    ("data", "dtype"), [([0, 1], "bool"), ([255], "uint8"), ([2**64 - 1], "uint64"), ([0, 2**63, 2**64 - 1], "uint64")]
)
def test_the_ends_of_a_range_are_in_it(data: list[int], dtype: str) -> None:
    assert from_json(data, dtype, (len(data),), "x").tolist() == data


@pytest.mark.parametrize("size", [0, 15, 17])
def test_bytes_that_do_not_fill_the_shape_are_refused(size: int) -> None:
    with pytest.raises(HttpRefusal, match=rf"\[2, 2\].*FP32.*16.*{size}"):
        from_bytes(memoryview(bytes(size)), "float32", (2, 2), "inputs[0]")


def test_an_extent_beyond_all_memory_is_only_a_wrong_size() -> None:
    with pytest.raises(HttpRefusal, match=r"\b4\b"):
        from_bytes(memoryview(bytes(4)), "float32", (2**62, 2**62), "inputs[0]")


def test_bytes_are_what_the_model_takes_or_strings() -> None:
    assert [dtype_of("BYTES", "inputs[0].datatype", due) for due in (None, "float32", "string", "bytes")] == [
        "string", "string", "string", "bytes",
    ]  # fmt: skip
    assert dtype_of("FP32", "inputs[0].datatype", "string") == "float32"


def test_unknown_datatypes_are_refused_with_those_that_are_served() -> None:
    with pytest.raises(HttpRefusal, match=r"'STRING'.*FP32.*BYTES"):
        dtype_of("STRING", "inputs[0].datatype")
    with pytest.raises(HttpRefusal, match=r"'float32'.*FP32"):
        dtype_of("float32", "inputs[0].datatype")


@pytest.mark.parametrize("shape", [[], [-1, 4], [1] * 33])
def test_a_shape_is_that_of_a_tensor(shape: list[int]) -> None:
    with pytest.raises(HttpRefusal) as caught:
        check_shape(shape, "inputs[0].shape")
    assert caught.value.field == "inputs[0].shape"


def test_what_json_has_no_number_for_becomes_null() -> None:
    assert to_json(np.array([1.5, np.nan, np.inf, -np.inf], np.float32)) == [1.5, None, None, None]
