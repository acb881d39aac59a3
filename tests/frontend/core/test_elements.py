"""Strings and byte strings of clients: taken as lists and packed, and refused one by one."""

import time
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.core import protocol
from frontend.core.checks import Checked, InputRules
from frontend.core.elements import (
    ELEMENTS_MAX,
    LISTED_BYTES_MAX,
    TEXT_BYTES_MAX,
    ElementFault,
    check_packed,
    listed,
)
from frontend.core.protocol import RequestRefused
from mesh.strings import pack
from tests.frontend.core.client_messages import infer, spec_of
from tests.messages import names

TEXTS = ["", "a", "grüße", "日本語"]
PACKED = pack(text.encode() for text in TEXTS)
BLOBS = [b"", b"\x00\xff", b"\xc3", b"x" * 300]
STRINGS = spec_of(("text", "string", (-1,)))
BYTES = spec_of(("text", "bytes", (-1,)))
ROWS_MAX = 1 << 20


def texts(data: Any, dtype: str = "string", shape: Any = None) -> dict[str, Any]:
    shape = [len(data)] if shape is None else shape
    tensor = {"name": "text", "dtype": dtype, "shape": shape}
    return infer(inputs=[tensor if data is ... else {**tensor, "data": data}])


def checked(request: Any, frames: Any = (), spec: Any = STRINGS) -> Checked:
    body = request if isinstance(request, bytes) else msgpack.packb(request)
    return InputRules(spec, ROWS_MAX).check(protocol.decode(body), frames)  # type: ignore[arg-type]


def misfit(request: Any, frames: Any = (), spec: Any = STRINGS) -> RequestRefused:
    with pytest.raises(RequestRefused) as raised:
        checked(request, frames, spec)
    return raised.value


def test_a_list_of_strings_is_packed() -> None:
    assert checked(texts(TEXTS)) == Checked(4, [PACKED])
    assert checked(texts(TEXTS, shape=[4])) == checked(texts(..., shape=[4]), [PACKED])


def test_strings_may_come_as_bin_and_bytes_as_strings() -> None:
    mixed = [TEXTS[0], TEXTS[1].encode(), TEXTS[2], TEXTS[3].encode()]
    assert checked(texts(mixed)) == Checked(4, [PACKED])
    assert checked(texts(mixed, "bytes"), spec=BYTES) == Checked(4, [PACKED])
    assert checked(texts(BLOBS, "bytes"), spec=BYTES) == Checked(4, [pack(BLOBS)])


def test_a_tensor_of_several_strings_a_row_is_a_flat_list() -> None:
    spec = spec_of(("text", "string", (-1, 2)))
    assert checked(texts(TEXTS, shape=[2, 2]), spec=spec) == Checked(2, [PACKED])


def test_packed_elements_in_a_frame_stay_where_they_are() -> None:
    frame = memoryview(PACKED)
    assert checked(texts(..., shape=[4]), [frame]).tensors[0] is frame
    assert listed(frame, 4, "string") == TEXTS
    assert listed(pack(BLOBS), 4, "bytes") == BLOBS


@pytest.mark.parametrize(
    ("data", "shape", "field"),
    [
        (["a", 1], [2], "[1]"),
        (["a", None], [2], "[1]"),
        ([["a"], "b"], [2], "[0]"),
        ([{"a": 1}], [1], "[0]"),
        (["a", b"\xc3\x28"], [2], "[1]"),
        (["a"], [2], ""),
        (["a", "b"], [1], ""),
        ([], [1], ""),
        (b"\x01\0\0\0a", [1], ""),
        (None, [1], ""),
    ],
)
def test_a_list_that_is_not_one_of_strings_is_refused_by_element(data: Any, shape: Any, field: str) -> None:
    invalid = misfit(texts(data, shape=shape))
    assert (invalid.code, invalid.field, invalid.id) == ("bad_data", f"inputs[0].data{field}", 7)
    assert "text" in invalid.message
    assert len(invalid.message) < 300


def test_a_string_that_is_not_utf_8_is_refused_by_element_and_the_message_is_read() -> None:
    body = msgpack.packb(texts(["good", "XX", "fine"]))
    invalid = misfit(body.replace(b"XX", b"\xc3\x28"))
    assert (invalid.code, invalid.field, invalid.id) == ("bad_data", "inputs[0].data[1]", 7)
    assert names(invalid.message, "text", "UTF-8")


@pytest.mark.parametrize(
    "frame",
    [b"", b"\x01", PACKED[:-1], PACKED + b"\0", pack([b"a"] * 3), pack([b"a"] * 5), b"\xff\xff\xff\xff" + PACKED],
)
def test_a_frame_that_does_not_hold_the_elements_is_refused(frame: bytes) -> None:
    invalid = misfit(texts(..., shape=[4]), [frame])
    assert (invalid.code, invalid.field, invalid.id) == ("bad_data", "inputs[0].data", 7)


def test_text_in_a_frame_is_utf_8_in_each_element() -> None:
    halves = pack([b"gr", "ü".encode()[:1], "ü".encode()[1:], b"e"])
    invalid = misfit(texts(..., shape=[4]), [halves])
    assert (invalid.code, invalid.field) == ("bad_data", "inputs[0].data[1]")
    assert checked(texts(..., "bytes", shape=[4]), [halves], BYTES).rows == 4
    with pytest.raises(ElementFault):
        check_packed(halves, 4, "string")


@given(st.lists(st.text(max_size=5).map(str.encode) | st.binary(max_size=3), max_size=6))
def test_packed_text_is_taken_exactly_if_each_element_is_text(elements: list[bytes]) -> None:
    def is_text(element: bytes) -> bool:
        try:
            element.decode()
        except UnicodeDecodeError:
            return False
        return True

    wrong = next((place for place, element in enumerate(elements) if not is_text(element)), None)
    try:
        check_packed(memoryview(pack(elements)), len(elements), "string")
        found = None
    except ElementFault as fault:
        found = fault.place
    assert found == wrong


@pytest.mark.parametrize(
    ("request_", "spec", "code", "field"),
    [
        (texts(["a"], "string"), spec_of(("text", "float32", (-1,))), "bad_dtype", "dtype"),
        (texts(bytes(4), "float32", [1]), STRINGS, "bad_dtype", "dtype"),
        (texts(["a"], "str"), STRINGS, "bad_dtype", "dtype"),
        (texts(["a"], "float32"), spec_of(("text", "float32", (-1,))), "bad_data", "data"),
    ],
)
def test_a_string_where_a_tensor_is_due_and_the_reverse_are_refused(
    request_: Any, spec: Any, code: str, field: str
) -> None:
    invalid = misfit(request_, spec=spec)
    assert (invalid.code, invalid.field) == (code, f"inputs[0].{field}")


@pytest.mark.parametrize("framed", [False, True])
def test_a_million_strings_are_refused_before_anybody_looks_at_them(framed: bool) -> None:
    million = 1_000_000
    body = msgpack.packb(texts(..., shape=[million]) if framed else texts([""] * million))
    frames = [bytes(4 * million)] if framed else []
    began_s = time.perf_counter()
    invalid = misfit(body, frames)
    took_s = time.perf_counter() - began_s
    assert (invalid.code, invalid.field, invalid.id) == ("bad_data", "inputs[0].data", 7)
    assert names(invalid.message, ELEMENTS_MAX, million)
    assert took_s < 0.5  # 10 ms where nothing else runs; to decode and pack them takes 300


def test_elements_are_counted_over_all_inputs() -> None:
    spec = spec_of(("a", "string", (-1,)), ("b", "bytes", (-1,)))
    half = ELEMENTS_MAX // 2
    inputs = [
        {"name": name, "dtype": dtype, "shape": [half + 1], "data": ["x"] * (half + 1)}
        for name, dtype in (("a", "string"), ("b", "bytes"))
    ]
    assert misfit(infer(inputs=inputs), spec=spec).field == "inputs[1].data"
    for tensor in inputs:
        tensor.update(shape=[half], data=["x"] * half)
    assert checked(infer(inputs=inputs), spec=spec).rows == half


@pytest.mark.parametrize("framed", [False, True])
def test_strings_of_ten_megabytes_are_refused_with_the_limit(framed: bool) -> None:
    text = "x" * 10_000_000
    body = texts(..., shape=[1]) if framed else texts([text])
    invalid = misfit(body, [pack([text.encode()])] if framed else [])
    assert (invalid.code, invalid.field) == ("bad_data", "inputs[0].data")
    assert names(invalid.message, TEXT_BYTES_MAX if framed else LISTED_BYTES_MAX)


def test_byte_strings_of_ten_megabytes_travel_as_frames_and_not_in_lists() -> None:
    blob = bytes(10_000_000)
    assert checked(texts(..., "bytes", [1]), [pack([blob])], BYTES).rows == 1
    invalid = misfit(texts([blob], "bytes"), spec=BYTES)
    assert (invalid.code, invalid.field) == ("bad_data", "inputs[0].data")
    assert names(invalid.message, LISTED_BYTES_MAX, "frames")


def test_the_data_that_a_request_holds_is_counted_whatever_its_form() -> None:
    request = protocol.decode(msgpack.packb(texts(TEXTS)))
    assert isinstance(request, protocol.InferRequest)
    assert request.inputs[0].data_bytes == sum(len(msgpack.packb(text)) for text in TEXTS)
