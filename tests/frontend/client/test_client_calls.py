"""frontend/client/client.py: what both clients send, and how they read answers and errors."""

from typing import Any

import msgpack
import numpy as np
import pytest

from frontend.client.client import Failed, Invalid, Prediction, Rejected, RequestError, TimedOut
from frontend.client.conversation import converted
from frontend.client.forms import FRAMED_BYTES
from tests.frontend.client.fakes import ROW, Asked, FakeFrontend, Serving, error, infers, models, ok, usual

# -- requests ---------------------------------------------------------------------------------------------------------


def test_an_answer_is_a_prediction_with_all_that_came(serving: Serving) -> None:
    fields = {"predicted_ms": 1.25, "batch_size": 3, "device": "cpu:0", "cached": False}
    _, client = serving(infers(lambda asked: [ok(asked, **fields)]))
    prediction = client.infer("m", ROW, slo_ms=50_000)
    assert isinstance(prediction, Prediction)
    assert (prediction.model, prediction.version, prediction.latency_ms) == ("m", "1", 1.5)
    assert (prediction.predicted_ms, prediction.batch_size, prediction.device) == (1.25, 3, "cpu:0")
    assert prediction.answer["cached"] is False
    assert "outputs" not in prediction.answer
    assert prediction["y"].dtype == np.float32
    np.testing.assert_array_equal(prediction["y"], ROW * 2)
    np.testing.assert_array_equal(prediction.output, ROW * 2)
    with pytest.raises(KeyError):
        prediction["z"]


def test_a_request_says_what_was_asked_for_and_nothing_else(serving: Serving) -> None:
    frontend, client = serving()
    client.infer("m", ROW, slo_ms=50_000, version="1", cache=False, context=None)
    client.infer("m", ROW)
    tensor = {"name": "x", "dtype": "float32", "shape": [1, 4], "data": ROW.tobytes()}
    first, second = (asked.message for asked in frontend.infers())
    assert first.pop("id") != second.pop("id")
    assert first == {
        "op": "infer", "model": "m", "inputs": [tensor], "slo_ms": 50_000, "version": "1", "cache": False,
    }  # fmt: skip
    assert second == {"op": "infer", "model": "m", "inputs": [tensor]}


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (ROW, ROW),
        (ROW[0], ROW),  # a single row gets a batch dimension
        ([1, 2, 3, 4], ROW),
        ([[1.0, 2.0, 3.0, 4.0]], ROW),
        (np.array([1, 2, 3, 4], np.uint8), ROW),
        (ROW.astype(np.float64), ROW),
        (ROW.astype(">f4"), ROW),
        (ROW.astype(np.float16), ROW),
        (np.array([True, False, True, False]), np.array([[1, 0, 1, 0]], np.float32)),
        ({"x": ROW[0]}, ROW),
        (np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(12, dtype=np.float32).reshape(3, 4)),
        (np.arange(8, dtype=np.float32).reshape(4, 2).T, np.arange(8, dtype=np.float32).reshape(4, 2).T),
        (np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)),
    ],
)
def test_an_input_is_given_the_dtype_and_the_batch_that_the_model_takes(
    serving: Serving, x: Any, expected: Any
) -> None:
    frontend, client = serving()
    client.infer("m", x)
    (asked,) = frontend.infers()
    assert asked.message["inputs"][0]["dtype"] == "float32"
    np.testing.assert_array_equal(asked.array(), expected, strict=True)


def test_several_inputs_are_given_by_name(serving: Serving) -> None:
    frontend, client = serving(infers(lambda asked: [ok(asked, np.zeros(1, np.float32))]))
    client.infer("two", {"b": np.ones((3, 2, 2), np.uint8), "a": np.array([1, 2, 3], np.int32)})
    (asked,) = frontend.infers()
    assert [tensor["name"] for tensor in asked.message["inputs"]] == ["b", "a"]
    np.testing.assert_array_equal(asked.array(0), np.ones((3, 2, 2), np.uint8), strict=True)
    np.testing.assert_array_equal(asked.array(1), np.array([1, 2, 3], np.int64), strict=True)


def test_what_cannot_be_converted_safely_is_left_to_the_frontend_to_refuse(serving: Serving) -> None:
    frontend, client = serving(infers(lambda asked: [error(asked, "invalid", "bad_dtype")]))
    with pytest.raises(Invalid):
        client.infer("two", {"a": np.array([1.5]), "b": np.ones((1, 2, 2), np.float32), "c": np.zeros(1, np.int8)})
    (asked,) = frontend.infers()
    assert [tensor["dtype"] for tensor in asked.message["inputs"]] == ["float64", "float32", "int8"]


@pytest.mark.parametrize(
    ("x", "wanted", "sent"),
    [
        ([1, 127, -128], "int8", "int8"),
        ([1, 128], "int8", "int64"),
        ([0, 255], "uint8", "uint8"),
        ([0, -1], "uint8", "int64"),
        ([-1], "uint64", "int64"),
        (np.array([2**63], np.uint64), "int64", "uint64"),
        (np.array([2**63 - 1], np.uint64), "int64", "int64"),
        ([True, False], "int8", "int8"),
        ([0, 1], "bool", "int64"),
        ([1.0, 2.0], "int32", "float64"),
        ([1.5, float("inf"), float("nan")], "float16", "float16"),
        ([70_000.0], "float16", "float64"),
        ([70_000], "float16", "int64"),
        ([1e39], "float32", "float64"),
        ([1j], "float32", "complex128"),
        (["a"], "float32", "str32"),
        (np.zeros(0, np.int64), "uint8", "uint8"),
    ],
)
def test_numbers_are_converted_only_where_they_stay_what_they_are(x: Any, wanted: str, sent: str) -> None:
    array = np.asarray(x)
    found = converted(array, np.dtype(wanted))
    assert found.dtype.name == sent
    if sent == wanted and array.dtype.kind in "biu":
        assert found.tolist() == array.tolist()


def test_numbers_of_numpy_s_may_be_given_wherever_a_number_may(serving: Serving) -> None:
    frontend, client = serving()
    client.infer("m", ROW, slo_ms=np.float32(250), weight=np.float64(0.5), cache=np.bool_(False))
    (asked,) = frontend.infers()
    assert {key: asked.message[key] for key in ("slo_ms", "weight", "cache")} == {
        "slo_ms": 250.0, "weight": 0.5, "cache": False,
    }  # fmt: skip
    client.create_app("a", "m", "exp4", policy_args={"eta": np.float32(0.5)}, confidence_min=np.float32(0.25))
    (created,) = frontend.wait(1, "create_app")
    assert created.message["app"] == {
        "name": "a", "models": ["m"], "policy": "exp4", "policy_args": {"eta": 0.5}, "confidence_min": 0.25,
    }  # fmt: skip
    with pytest.raises(TypeError, match="object"):
        client.infer("m", ROW, context=object())


def test_what_a_message_cannot_hold_is_refused_by_its_name(serving: Serving) -> None:
    _, client = serving()
    for ask, field in [
        (lambda: client.infer("m", ROW, weight=2**64), "weight"),
        (lambda: client.feedback("a", label=-(2**63) - 1), "label"),
        (lambda: client.feedback("a", label=1, context="\ud800"), "context"),
    ]:
        with pytest.raises(Invalid, match=field) as raised:
            ask()
        assert (raised.value.code, raised.value.field) == ("bad_field", field)


def test_an_input_too_large_for_a_frontend_is_refused_and_the_connection_stays(make: Any) -> None:
    def told(asked: Asked) -> Any:
        answer, _ = models(asked)
        return [({**answer, "frame_bytes_max": 1_600_000}, [])] if asked.message["op"] == "models" else usual(asked)

    with FakeFrontend(told) as frontend, make(frontend.address) as client:
        with pytest.raises(Invalid, match=r"1600016.*1600000") as raised:
            client.infer("m", np.zeros((100_001, 4), np.float32))
        assert (raised.value.code, raised.value.field) == ("too_large", "inputs")
        assert client.infer("m", np.zeros((100_000, 4), np.float32))["y"].shape == (100_000, 4)
        assert len(frontend.infers()) == 1


@pytest.mark.parametrize("rows", [1, FRAMED_BYTES // 16, FRAMED_BYTES // 16 + 1])
def test_tensors_of_more_than_64_kib_travel_as_frames(serving: Serving, rows: int) -> None:
    frontend, client = serving()
    x = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
    np.testing.assert_array_equal(client.infer("m", x)["y"], x * 2, strict=True)
    (asked,) = frontend.infers()
    framed = x.nbytes > FRAMED_BYTES
    assert len(asked.frames) == (1 if framed else 0)
    assert ("data" in asked.message["inputs"][0]) is not framed


def test_all_tensors_of_a_request_are_framed_if_together_they_are_large(serving: Serving) -> None:
    frontend, client = serving(infers(lambda asked: [ok(asked, np.zeros(1, np.float32))]))
    client.infer("two", {"a": np.zeros(8000, np.int64), "b": np.zeros((8000, 2, 2), np.uint8)})
    (asked,) = frontend.infers()
    assert [len(frame) for frame in asked.frames] == [64_000, 32_000]


def test_answers_may_have_several_outputs_in_the_header_or_in_frames(serving: Serving) -> None:
    def two_outputs(asked: Asked) -> Any:
        header, _ = ok(asked)
        arrays = {"p": np.array([[0.5]], np.float64), "q": np.array([7, 8], np.int8)}
        header["outputs"] = [
            {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
            | ({} if asked.frames else {"data": array.tobytes()})
            for name, array in arrays.items()
        ]
        return [(header, [array.tobytes() for array in arrays.values()] if asked.frames else [])]

    _, client = serving(infers(two_outputs))
    for rows in (1, FRAMED_BYTES):
        prediction = client.infer("m", np.zeros((rows, 4), np.float32))
        assert {name: array.tolist() for name, array in prediction.outputs.items()} == {"p": [[0.5]], "q": [7, 8]}
        assert [array.dtype.name for array in prediction.outputs.values()] == ["float64", "int8"]


# -- other messages ---------------------------------------------------------------------------------------------------


def test_models_are_told_as_they_came(serving: Serving) -> None:
    _, client = serving()
    assert [model["name"] for model in client.models()] == ["m", "hasty", "two"]


def test_any_other_message_is_answered_as_it_came(serving: Serving) -> None:
    frontend, client = serving()
    answer = client.call("ping", extra=5)
    assert (answer["status"], answer["pong"]) == ("ok", True)
    assert {**frontend.asked[0].message, "id": 0} == {"op": "ping", "id": 0, "extra": 5}


def test_what_is_deployed_is_asked_once_and_again_for_a_model_that_was_not_there(serving: Serving) -> None:
    frontend, client = serving(infers(lambda asked: [ok(asked, np.zeros(1, np.float32))]))
    for model in ("m", "two", "m", "new", "m", "new"):
        client.infer(model, ROW)
    assert [asked.message["op"] for asked in frontend.asked].count("models") == 3
    assert frontend.infers()[-1].message["inputs"][0]["name"] == "x"


# -- errors -----------------------------------------------------------------------------------------------------------


ERRORS = [("rejected", Rejected), ("timed_out", TimedOut), ("failed", Failed), ("invalid", Invalid)]


@pytest.mark.parametrize(("status", "kind"), ERRORS)
def test_an_answer_other_than_ok_is_raised_by_its_kind(serving: Serving, status: str, kind: type[RequestError]) -> None:
    told = {"code": "why", "message": "because", "field": "slo_ms", "retry_after_ms": 12.5}
    _, client = serving(infers(lambda asked: [error(asked, status, "", error=told, predicted_ms=3.5, latency_ms=0.5)]))
    with pytest.raises(kind) as raised:
        client.infer("m", ROW)
    answer = raised.value
    assert type(answer) is kind
    assert (answer.status, answer.code, answer.message, answer.field) == (status, "why", "because", "slo_ms")
    assert (answer.retry_after_ms, answer.predicted_ms, answer.latency_ms) == (12.5, 3.5, 0.5)
    assert str(answer) == f"{status} (why): because"


def test_fields_that_an_error_does_not_have_are_none(serving: Serving) -> None:
    _, client = serving(lambda asked: [({"id": asked.id, "status": "failed"}, [])])
    with pytest.raises(Failed) as raised:
        client.call("status")
    answer = raised.value
    assert (answer.code, answer.message, answer.field) == ("unknown", "", None)
    assert (answer.retry_after_ms, answer.predicted_ms, answer.latency_ms) == (None, None, None)


def test_the_client_goes_on_after_an_error(serving: Serving) -> None:
    outcomes = iter(["bad", "good"])
    _, client = serving(
        infers(lambda asked: [error(asked, "invalid", "bad_slo") if next(outcomes) == "bad" else ok(asked)])
    )
    with pytest.raises(Invalid):
        client.infer("m", ROW, slo_ms=-1)
    np.testing.assert_array_equal(client.infer("m", ROW)["y"], ROW * 2)


BAD_TENSORS = {
    "too few bytes": {"name": "y", "dtype": "float32", "shape": [1, 4], "data": bytes(12)},
    "unknown dtype": {"name": "y", "dtype": "float7", "shape": [1, 4], "data": bytes(16)},
    "no data": {"name": "y", "dtype": "float32", "shape": [1, 4]},
    "no name": {"dtype": "float32", "shape": [1, 4], "data": bytes(16)},
}


@pytest.mark.parametrize("tensor", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_an_answer_that_cannot_be_understood_fails_its_own_request_and_no_other(serving: Serving, tensor: Any) -> None:
    def behaviour(asked: Asked) -> Any:
        return [ok(asked, outputs=[tensor]) if asked.array()[0, 0] == 1.0 else ok(asked)]

    _, client = serving(infers(behaviour))
    first, second, third = client.infer_many([("m", ROW * i) for i in range(3)], slo_ms=60_000)
    assert isinstance(second, Failed)
    assert (first["y"][0, 0], third["y"][0, 0]) == (0.0, 4.0)


def test_an_answer_that_is_not_msgpack_or_no_map_is_ignored(serving: Serving) -> None:
    sent = []

    def behaviour(asked: Asked) -> Any:
        sent.append(asked)
        return [ok(asked)]

    frontend, client = serving(infers(behaviour))
    client.models()
    for stray in (b"", b"\xc1", msgpack.packb([1]), msgpack.packb(5)):
        frontend.say(stray)
        np.testing.assert_array_equal(client.infer("m", ROW, slo_ms=60_000)["y"], ROW * 2)
    assert len(sent) == 4


@pytest.mark.parametrize("slo_ms", [float("inf"), float("nan"), 1e300, -1.0, 0.0])
def test_a_budget_that_cannot_be_is_refused_by_the_frontend_and_not_by_accident(
    serving: Serving, slo_ms: float
) -> None:
    _, client = serving(infers(lambda asked: [error(asked, "invalid", "bad_slo")]))
    with pytest.raises(Invalid):
        client.infer("m", ROW, slo_ms=slo_ms)
