"""frontend/gateway/inference.py: OIP requests in, OIP responses out."""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.client.conversation import Prediction
from frontend.gateway.errors import HttpRefusal
from frontend.gateway.inference import IGNORED_SHOWN, NAME_SHOWN, Question, read_question, respond, version_asked
from frontend.gateway.tensors import from_bytes, from_json
from scripts.bench_http import request_body
from tests.frontend.gateway.test_tensors import tensors
from tests.messages import names

Array = npt.NDArray[Any]
SPEC = {
    "name": "m",
    "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 2]}, {"name": "z", "dtype": "int64", "shape": [-1]}],
}
X = np.arange(8, dtype=np.float32).reshape(2, 4)
NAMES = st.text("abcxyz_", min_size=1, max_size=6)


def prediction(**outputs: Array) -> Prediction:
    """An ok answer with these outputs."""
    answer = {
        "status": "ok", "id": 4, "model": "m", "version": "1", "latency_ms": 2.5, "predicted_ms": 2.0,
        "batch_size": 4, "device": "cpu:0", "cached": False, "decision_id": None,
    }  # fmt: skip
    return Prediction(outputs, "m", "1", 2.5, 2.0, 4, "cpu:0", answer)


def request(**changes: Any) -> bytes:
    """The JSON of a valid request with these changes."""
    tensor = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": list(range(8))}
    return msgspec.json.encode({"inputs": [tensor], **changes})


@given(st.dictionaries(NAMES, tensors(), min_size=1, max_size=3), st.booleans(), st.none() | st.text(max_size=8))
def test_a_request_means_the_same_as_json_and_with_raw_bytes(
    inputs: dict[str, Array], binary: bool, request_id: str | None
) -> None:
    parameters = {"slo_ms": 12.5, "cache": False, "weight": 2, "context": "user-17"}
    body, length = request_body(inputs, binary=binary, parameters=parameters, request_id=request_id)
    question = read_question(bytearray(body), length, {})
    assert question.id == request_id
    assert (question.slo_ms, question.options) == (12.5, {"cache": False, "weight": 2.0, "context": "user-17"})
    assert list(question.inputs) == list(inputs)
    for name, tensor in inputs.items():
        found = question.inputs[name]
        assert (found.dtype.name, found.shape) == (tensor.dtype.name, tensor.shape)
        np.testing.assert_array_equal(found, tensor)
    assert question.tensor_bytes == sum(tensor.nbytes for tensor in inputs.values())


@given(st.dictionaries(NAMES, tensors(), min_size=1, max_size=3), st.data())
def test_a_response_carries_each_output_in_the_form_that_was_asked_for(
    outputs: dict[str, Array], data: st.DataObject
) -> None:
    wanted = data.draw(st.lists(st.sampled_from(sorted(outputs)), unique=True, min_size=1))
    binary = {name: data.draw(st.booleans()) for name in wanted}
    told = respond(Question("q", {}, None, {}, tuple(wanted), binary), prediction(**outputs), "m")
    body = memoryview(b"".join(told.parts))
    header = msgspec.json.decode(body[: told.json_bytes])
    behind = body[told.json_bytes :] if told.json_bytes is not None else memoryview(b"")
    assert (told.json_bytes is None) == (not any(binary.values()))
    assert [output["name"] for output in header["outputs"]] == wanted
    for output in header["outputs"]:
        expected = outputs[output["name"]]
        if binary[output["name"]]:
            size = output["parameters"]["binary_data_size"]
            found = from_bytes(behind[:size], expected.dtype.name, output["shape"], "y")
            behind = behind[size:]
        else:
            found = from_json(output["data"], expected.dtype.name, output["shape"], "y")
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)
    assert len(behind) == 0


def test_a_response_says_who_answered_and_how() -> None:
    told = respond(Question("q", {}, None, {}, None), prediction(y=X), "m")
    header = msgspec.json.decode(told.parts[0])
    assert (header["model_name"], header["model_version"], header["id"]) == ("m", "1", "q")
    assert header["parameters"] == {
        "latency_ms": 2.5, "predicted_ms": 2.0, "batch_size": 4, "device": "cpu:0", "cached": False,
    }  # fmt: skip


def test_the_requests_parameter_sets_the_form_and_an_outputs_own_wins() -> None:
    wishes = [{"name": "y"}, {"name": "z", "parameters": {"binary_data": False}}]
    question = read_question(request(parameters={"binary_data_output": True}, outputs=wishes), None, SPEC)
    told = respond(question, prediction(y=X, z=np.array([1, 2])), "m")
    header = msgspec.json.decode(told.parts[0])
    assert [output.get("data") for output in header["outputs"]] == [None, [1, 2]]
    assert told.parts[1] == X.tobytes()


def test_a_body_without_json_is_the_rows_of_the_only_input() -> None:
    question = read_question(X.tobytes(), 0, SPEC)
    np.testing.assert_array_equal(question.inputs["x"], X)
    assert question.binary_default
    with pytest.raises(HttpRefusal, match=r"\bx\b.*16.*17"):
        read_question(bytes(17), 0, SPEC)
    with pytest.raises(HttpRefusal, match=r"\b2\b"):
        read_question(bytes(16), 0, {"inputs": SPEC["inputs"] * 2})  # type: ignore[operator]


@pytest.mark.parametrize(
    ("parameters", "header_ms", "expected_ms"),
    [
        ({}, None, None),
        ({}, 20.0, 20.0),
        ({"slo_ms": 50}, None, 50.0),
        ({"slo_ms": 50}, 20.0, 50.0),  # the body's value takes precedence over the header's
        ({"timeout": 30_000}, None, 30.0),  # microseconds, as in Triton's clients
        ({"timeout": 30_000, "slo_ms": 50}, None, 50.0),
    ],
)
def test_the_budget_is_the_parameters_or_else_the_headers(
    parameters: dict[str, Any], header_ms: float | None, expected_ms: float | None
) -> None:
    assert read_question(request(parameters=parameters), None, SPEC, header_ms).slo_ms == expected_ms


DEEP = b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": '
BINARY = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}


@pytest.mark.parametrize(
    ("body", "field", "code", "named"),
    [
        (b"", None, "malformed", ()),
        (b"{", None, "malformed", ()),
        (b"\xff\xfe", None, "malformed", ()),
        (b"[]", None, "bad_field", ("a map", "a list")),
        (b"{}", "inputs", "bad_field", ()),
        (DEEP + b"[" * 100_000, None, "malformed", ()),
        (DEEP + b"[" * 100 + b"]" * 100 + b"}]}", "inputs[0].data", "bad_data", ("[1, 4]",)),
        (request(inputs=[{"name": "x"}]), "inputs[0].shape", "bad_field", ()),
        (request(id=7), "id", "bad_field", ("a string", "an integer")),
        (request(parameters={"slo_ms": "5"}), "parameters.slo_ms", "bad_field", ("a number", "'5'")),
        (request(parameters={"slo_ms": True}), "parameters.slo_ms", "bad_field", ("a number", "True")),
        (request(parameters={"cache": 1}), "parameters.cache", "bad_field", ("true", "false")),
        (request(parameters={"context": "x" * 257}), "parameters.context", "bad_context", ("256",)),
        (request(outputs=[{"name": "q"}]), "outputs[0].name", "bad_outputs", ("'q'", "y, z")),
        (
            request(outputs=[{"name": "y", "parameters": {"classification": 3}}]),
            "outputs[0].parameters.classification",
            "bad_field",
            ("classification",),
        ),
        (
            request(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]),
            "outputs[0].parameters.binary_data",
            "bad_field",
            ("true", "false"),
        ),
        (request(inputs=[BINARY]), "inputs[0].parameters.binary_data_size", "bad_data", ("16", " 0 ")),
        (request(inputs=[{**BINARY, "data": [1]}]), "inputs[0].data", "bad_data", ("binary_data_size",)),
        (
            request(inputs=[{**BINARY, "parameters": {"binary_data_size": -1}}]),
            "inputs[0].parameters.binary_data_size",
            "bad_data",
            ("binary_data_size",),
        ),
        (request(inputs=[{**BINARY, "parameters": {}}]), "inputs[0].data", "bad_data", ("data",)),
        (
            request(inputs=[{**BINARY, "parameters": {"shared_memory_region": "a"}}]),
            "inputs[0].parameters.shared_memory_region",
            "bad_field",
            ("shared_memory_region",),
        ),
        (request(inputs=[{**BINARY, "datatype": "INT32"}]), "inputs[0].datatype", "bad_dtype", ("x", "FP32", "INT32")),
        (request(inputs=[{**BINARY, "shape": [-1]}]), "inputs[0].shape", "bad_shape", ("shape",)),
        (
            request(inputs=[{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}] * 2),
            "inputs[1].name",
            "bad_inputs",
            ("'x'",),
        ),
        (request(inputs=[BINARY] * 257), "inputs", "bad_inputs", ("256",)),
    ],
)
def test_a_request_that_is_not_as_it_should_be_is_refused_with_the_field(
    body: bytes, field: str | None, code: str, named: tuple[str, ...]
) -> None:
    with pytest.raises(HttpRefusal) as caught:
        read_question(body, None, SPEC)
    assert (caught.value.status, caught.value.field, caught.value.code) == (400, field, code)
    assert names(caught.value.message, *named)


def test_bytes_that_nobody_named_are_refused() -> None:
    body = request() + bytes(5)
    with pytest.raises(HttpRefusal, match=r"\b5\b.*binary_data_size.*\b0\b"):
        read_question(body, len(body) - 5, SPEC)


def test_a_length_of_the_json_beyond_the_body_is_refused() -> None:
    with pytest.raises(HttpRefusal, match="999"):
        read_question(request(), 999, SPEC)


@given(st.binary(max_size=64), st.none() | st.integers(0, 80))
def test_whatever_comes_is_a_question_or_refused(body: bytes, length: int | None) -> None:
    try:
        question = read_question(body, length, SPEC)
    except HttpRefusal:
        return
    assert question.inputs["x"].shape[1:] == (4,)


def test_an_output_that_the_answer_lacks_is_refused() -> None:
    with pytest.raises(HttpRefusal, match=r"'q'.*\by\b"):
        respond(Question(None, {}, None, {}, ("q",)), prediction(y=X), "m")


TENSOR = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": list(range(8))}
KSERVE = {"id": None, "model_name": "m", "inputs": [{**TENSOR, "parameters": None}], "parameters": None}
TRITON = {  # as tritonclient.http writes infer(..., priority=1, sequence_id=7, sequence_start=True, timeout=...)
    "id": "1", "inputs": [{**TENSOR, "parameters": {"binary_data": False}}],
    "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    "parameters": {
        "sequence_id": 7, "sequence_start": True, "sequence_end": False, "priority": 1, "timeout": 30_000,
        "my_own": {"anything": [1, 2]},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "ignored"),
    [
        (KSERVE, []),
        (TRITON, ["inputs[0].parameters.binary_data", "sequence_id", "sequence_start", "sequence_end", "priority",
                  "my_own"]),
        ({"inputs": [TENSOR], "model_version": "", "raw_input_contents": []}, ["raw_input_contents"]),
        ({"inputs": [{**TENSOR, "contents": 1}], "outputs": [{"name": "y", "datatype": "FP32"}]},
         ["inputs[0].contents", "outputs[0].datatype"]),
    ],
)  # fmt: skip
def test_what_clients_of_the_protocol_send_beside_is_ignored_and_named(body: Any, ignored: list[str]) -> None:
    question = read_question(msgspec.json.encode(body), None, SPEC)
    np.testing.assert_array_equal(question.inputs["x"], X)
    assert question.version is None
    told = respond(question, prediction(y=X, z=np.array([1, 2])), "m")
    header = msgspec.json.decode(told.parts[0])
    assert header["parameters"].get("ignored", []) == ignored


def test_what_is_named_as_ignored_is_bounded() -> None:
    many = {f"{'k' * 10_000}{i}": i for i in range(1000)}
    for changes in ({"parameters": many}, many, {"inputs": [{**TENSOR, **many}]}):
        ignored = read_question(request(**changes), None, SPEC).ignored
        assert 0 < len(ignored) <= IGNORED_SHOWN
        assert all(len(name) <= NAME_SHOWN + len("inputs[0].") for name in ignored)


@pytest.mark.parametrize("name", ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"])
@pytest.mark.parametrize("place", ["inputs", "outputs"])
def test_data_in_shared_memory_would_be_missing_and_is_refused(place: str, name: str) -> None:
    tensors = {"inputs": [{**BINARY, "parameters": {name: 1}}], "outputs": [{"name": "y", "parameters": {name: 1}}]}
    with pytest.raises(HttpRefusal, match="shared memory is not served") as caught:
        read_question(request(**{place: tensors[place]}), None, SPEC)
    assert caught.value.field == f"{place}[0].parameters.{name}"


@pytest.mark.parametrize(
    ("changes", "path_version", "version"),
    [
        ({}, None, None),
        ({}, "1", "1"),
        ({"model_name": "m", "model_version": "1"}, None, "1"),
        ({"model_version": "1"}, "1", "1"),
        ({"model_version": ""}, "1", "1"),
        ({"model_name": ""}, None, None),
    ],
)
def test_the_body_may_repeat_what_the_path_says(changes: Any, path_version: str | None, version: str | None) -> None:
    assert version_asked(read_question(request(**changes), None, SPEC), "m", path_version) == version


@pytest.mark.parametrize(
    ("changes", "field"), [({"model_name": "n" * 9999}, "model_name"), ({"model_version": "2" * 9999}, "model_version")]
)
def test_the_body_may_not_contradict_the_path(changes: Any, field: str) -> None:
    with pytest.raises(HttpRefusal, match=field) as caught:
        version_asked(read_question(request(**changes), None, SPEC), "m", "1")
    assert (caught.value.field, caught.value.status) == (field, 400)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("json_bytes", [None, 0])
def test_an_empty_body_is_told_to_be_empty(json_bytes: int | None) -> None:
    with pytest.raises(HttpRefusal, match="the body is empty"):
        read_question(b"", json_bytes, SPEC)
