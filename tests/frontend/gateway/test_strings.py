"""BYTES over HTTP, in JSON and raw, and inputs of any length."""

from typing import Any

import msgspec
import numpy as np
import pytest

from frontend.client.conversation import Prediction
from frontend.core.elements import ELEMENTS_MAX
from frontend.gateway.descriptions import model_metadata
from frontend.gateway.errors import HttpRefusal
from frontend.gateway.inference import Question, read_question, respond, rows_asked
from mesh.strings import pack, unpack
from tests.messages import names

TEXTS = ["", "grüße", "a\0"]
PACKED = pack(text.encode() for text in TEXTS)
SPEC: dict[str, Any] = {
    "name": "m",
    "inputs": [{"name": "text", "dtype": "string", "shape": [-1]}],
    "outputs": [{"name": "label", "dtype": "bytes", "shape": [-1]}],
}
IDS: dict[str, Any] = {
    "name": "m",
    "inputs": [{"name": "ids", "dtype": "int64", "shape": [-1, -1], "dim_names": ["batch", "seq"]}],
    "outputs": [{"name": "boxes", "dtype": "float32", "shape": [-1, 4], "owner": "owner"}],
    "dims": {"seq": [1, 512]},
}


def request(
    data: Any = ..., shape: Any = (3,), datatype: str = "BYTES", name: str = "text", **parameters: Any
) -> bytes:
    tensor: dict[str, Any] = {"name": name, "shape": list(shape), "datatype": datatype}
    if data is not ...:
        tensor["data"] = data
    if parameters:
        tensor["parameters"] = parameters
    return msgspec.json.encode({"inputs": [tensor]})


def refused(body: bytes, length: int | None = None, spec: Any = SPEC) -> HttpRefusal:
    with pytest.raises(HttpRefusal) as caught:
        read_question(body, length, spec)
    return caught.value


def prediction(**outputs: Any) -> Prediction:
    return Prediction(outputs, "m", "1", 1.0, 1.0, 1, "cpu:0", {"status": "ok"})


@pytest.mark.parametrize(
    ("shape", "data"), [((3,), TEXTS), ((3, 1), TEXTS), ((3, 1), [[text] for text in TEXTS]), ((1, 3), [TEXTS])]
)
def test_strings_in_json_are_flat_or_nested(shape: Any, data: Any) -> None:
    found = read_question(request(data, shape), None, SPEC).inputs["text"]
    assert found.shape == shape
    assert found.reshape(-1).tolist() == TEXTS


def test_strings_behind_the_json_have_their_lengths() -> None:
    header = request(binary_data_size=len(PACKED))
    question = read_question(header + PACKED, len(header), SPEC)
    assert question.inputs["text"].tolist() == TEXTS
    assert question.tensor_bytes == len(PACKED)


def test_what_the_model_takes_decides_between_strings_and_bytes() -> None:
    """The client that passes them on may know nothing of the model."""
    spec = {**SPEC, "inputs": [{"name": "text", "dtype": "bytes", "shape": [-1]}]}
    header = request(binary_data_size=len(PACKED))
    for body, length in ((request(TEXTS), None), (header + PACKED, len(header))):
        assert read_question(body, length, spec).inputs["text"].tolist() == [text.encode() for text in TEXTS]


def test_a_body_without_json_is_one_string() -> None:
    question = read_question("grüße".encode(), 0, SPEC)
    assert question.inputs["text"].tolist() == ["grüße"]
    assert question.binary_default
    several = {**SPEC, "inputs": [{"name": "text", "dtype": "string", "shape": [-1, 2]}]}
    assert refused(b"a", 0, several).field == "inputs[0].shape"


def test_a_body_without_json_does_not_say_its_length() -> None:
    refusal = refused(bytes(16), 0, IDS)
    assert (refusal.code, refusal.field) == ("bad_shape", "inputs[0].shape")
    assert "ids" in str(refusal)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ("text", (1,)),
        (["a", 1, "b"], (3,)),
        (["a", None, "b"], (3,)),
        (["a", "b"], (3,)),
        ([["a", "b"], ["c"]], (2, 2)),
        ([["a"], "b"], (2, 1)),
        ([[["a"]]], (1, 1)),
        ([], (1,)),
        ({"a": 1}, (1,)),
    ],
)
def test_what_is_no_list_of_strings_is_refused_by_field(data: Any, shape: Any) -> None:
    refusal = refused(request(data, shape))
    assert (refusal.code, refusal.field) == ("bad_data", "inputs[0].data")


@pytest.mark.parametrize("behind", [b"", PACKED[:-1], PACKED + b"x", b"\xff\xff\xff\xff", pack([b"a", b"\xff", b"b"])])
def test_raw_bytes_that_are_not_the_strings_are_refused(behind: bytes) -> None:
    header = request(binary_data_size=len(behind))
    assert refused(header + behind, len(header)).code == "bad_data"


def test_a_string_where_numbers_are_due_and_the_reverse_are_refused() -> None:
    for body, spec, due in (
        (request(["a"], (1, 1), name="ids"), IDS, "INT64"),
        (request([1.0], (1,), "FP32"), SPEC, "BYTES"),
    ):
        refusal = refused(body, spec=spec)
        assert (refusal.code, refusal.field) == ("bad_dtype", "inputs[0].datatype")
        assert due in str(refusal)


def test_a_million_strings_are_refused_with_the_limit() -> None:
    million = 1_000_000
    for body, length in (
        (request([""] * million, (million,)), None),
        (request(shape=(million,), binary_data_size=0), len(request(shape=(million,), binary_data_size=0))),
    ):
        refusal = refused(body, length)
        assert (refusal.code, refusal.field) in (("bad_data", "inputs[0].data"), ("bad_data", "inputs[0]"))
        assert names(str(refusal), ELEMENTS_MAX, million)


def test_strings_come_back_in_json_or_raw() -> None:
    label = np.array(["cat", "hündin"], object)
    told = respond(Question(None, {}, None, {}, None), prediction(label=label), "m")
    (output,) = msgspec.json.decode(told.parts[0])["outputs"]
    assert output == {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["cat", "hündin"]}
    told = respond(Question(None, {}, None, {}, None, binary_default=True), prediction(label=label), "m")
    (output,) = msgspec.json.decode(told.parts[0])["outputs"]
    assert output["parameters"] == {"binary_data_size": len(told.parts[1])}
    assert [element.decode() for element in unpack(told.parts[1], 2)] == ["cat", "hündin"]


def test_bytes_that_are_no_text_come_back_raw_alone() -> None:
    blob = np.array([b"ok", b"\xff"], object)
    with pytest.raises(HttpRefusal, match=r"blob.*UTF-8.*binary_data"):
        respond(Question(None, {}, None, {}, None), prediction(blob=blob), "m")
    told = respond(Question(None, {}, None, {}, None, {"blob": True}), prediction(blob=blob), "m")
    assert unpack(told.parts[1], 2) == [b"ok", b"\xff"]
    assert respond(Question(None, {}, None, {}, None), prediction(blob=blob[:1]), "m").json_bytes is None


def test_metadata_tells_open_extents_and_their_names() -> None:
    told = model_metadata({**IDS, "versions": ["1"]})
    assert told["inputs"] == [
        {"name": "ids", "datatype": "INT64", "shape": [-1, -1], "parameters": {"dim_names": ["batch", "seq"]}}
    ]
    assert told["outputs"][0]["parameters"] == {"owner": "owner"}
    assert told["parameters"]["dims"] == {"seq": [1, 512]}
    told = model_metadata({**SPEC, "versions": ["1"]})
    assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]


def test_rows_are_those_of_the_inputs() -> None:
    for shape, rows in (((3, 2), 3), ((2,), 1)):
        body = request([1, 2, 3, 4, 5, 6][: int(np.prod(shape))], shape, "INT64", name="ids")
        assert rows_asked(read_question(body, None, IDS), IDS) == rows
