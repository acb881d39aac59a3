"""Strings, byte strings and arrays of any length in the Python clients: as they are asked, and as they are answered."""

from typing import Any

import numpy as np
import pytest

from frontend.client.conversation import Conversation, Invalid, Prediction, RequestTarget
from frontend.client.strings import array_of
from mesh.strings import pack, unpack

TEXTS = ["", "grüße", "a\0"]
TARGET = RequestTarget("m")


def talk(dtype: str = "string", shape: Any = (-1,)) -> Conversation:
    """A conversation that knows the model m, of one input."""
    made = Conversation()
    inputs = [{"name": "text", "dtype": dtype, "shape": list(shape)}]
    made.learn({"models": [{"name": "m", "inputs": inputs, "outputs": []}]})
    return made


def asked(x: Any, dtype: str = "string", shape: Any = (-1,)) -> dict[str, Any]:
    """The input of a small request."""
    message, frames = talk(dtype, shape).infer(1, TARGET, x, {})
    assert not frames
    (tensor,) = message["inputs"]
    return dict(tensor)


@pytest.mark.parametrize("x", [TEXTS, np.array(TEXTS, object), {"text": TEXTS}, tuple(TEXTS)])
def test_strings_are_a_list_in_a_small_message(x: Any) -> None:
    assert asked(x) == {
        "name": "text", "dtype": "string", "shape": [3], "data": TEXTS,
    }  # fmt: skip


def test_arrays_of_numpys_own_strings_are_taken() -> None:
    assert asked(np.array(["a", "bc"]))["data"] == ["a", "bc"]
    assert asked(np.array([b"a", b"bc"]), "bytes") == {
        "name": "text", "dtype": "bytes", "shape": [2], "data": [b"a", b"bc"],
    }  # fmt: skip


def test_one_string_is_one_row() -> None:
    assert asked("hello") == {"name": "text", "dtype": "string", "shape": [1], "data": ["hello"]}
    assert asked(b"\0\0", "bytes") == {"name": "text", "dtype": "bytes", "shape": [1], "data": [b"\0\0"]}
    assert asked(["a", "b"], shape=(-1, 2))["shape"] == [1, 2]


def test_byte_strings_keep_zeros_at_their_ends() -> None:
    assert asked([b"a\0\0", b""], "bytes")["data"] == [b"a\0\0", b""]


def test_what_the_model_takes_decides_between_strings_and_bytes() -> None:
    assert asked(["a", "ü"], "bytes")["data"] == [b"a", "ü".encode()]
    assert asked([b"a"], "string")["dtype"] == "string"


def test_a_string_where_numbers_are_due_is_sent_as_what_it_is() -> None:
    assert asked(["a"], "float32")["dtype"] == "string"
    assert asked(np.ones(2), "string")["dtype"] == "float64"


def test_large_strings_travel_packed_as_frames() -> None:
    texts = ["x" * 50_000, "ü" * 50_000]
    message, frames = talk().infer(1, TARGET, texts, {})
    assert "data" not in message["inputs"][0]
    assert [element.decode() for element in unpack(frames[0], 2)] == texts


@pytest.mark.parametrize("framed", [False, True])
def test_strings_come_back_as_arrays_of_objects(framed: bool) -> None:
    outputs: list[dict[str, Any]] = [
        {"name": "label", "dtype": "string", "shape": [2, 1]},
        {"name": "blob", "dtype": "bytes", "shape": [2]},
        {"name": "states", "dtype": "float32", "shape": [2, 0, 4]},
    ]
    data: list[Any] = [["cat", "hündin"], [b"\xff\0", b""], b""]
    frames = [pack([b"cat", "hündin".encode()]), pack(data[1]), b""]
    if not framed:
        for tensor, inside in zip(outputs, data, strict=True):
            tensor["data"] = inside
    answer = Conversation().understand({"status": "ok", "outputs": outputs}, frames if framed else ())
    assert isinstance(answer, Prediction)
    assert answer["label"].dtype == object
    assert answer["label"].tolist() == [["cat"], ["hündin"]]
    assert answer["blob"].tolist() == [b"\xff\0", b""]
    assert answer["states"].shape == (2, 0, 4)


def test_arrays_of_equal_strings_are_not_taken_for_their_characters() -> None:
    assert array_of(["ab", "cd"], "string", [2]).tolist() == ["ab", "cd"]
    assert array_of(b"", "bytes", [0, 3]).shape == (0, 3)


@pytest.mark.parametrize("seq", [1, 7, 300])
def test_inputs_of_any_length_are_asked_with_their_own_shapes(seq: int) -> None:
    made = Conversation()
    inputs = [
        {"name": "ids", "dtype": "int64", "shape": [-1, -1]},
        {"name": "mask", "dtype": "bool", "shape": [-1, -1]},
    ]
    made.learn({"models": [{"name": "m", "inputs": inputs, "outputs": []}]})
    one = {"ids": np.arange(seq, dtype=np.int32), "mask": np.ones(seq, bool)}  # one row
    message, _ = made.infer(1, TARGET, one, {})
    assert [(t["name"], t["dtype"], t["shape"]) for t in message["inputs"]] == [
        ("ids", "int64", [1, seq]),
        ("mask", "bool", [1, seq]),
    ]


def test_rows_of_unequal_lengths_are_told_so_before_they_are_sent() -> None:
    with pytest.raises(Invalid, match=r"(?s)ids is no array.*unequal lengths.*mask.*infer_many") as raised:
        Conversation().infer(1, TARGET, {"ids": [[1, 2], [1, 2, 3]]}, {})
    assert (raised.value.code, raised.value.field) == ("bad_data", "inputs")
