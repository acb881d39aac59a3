"""frontend/client.py: both clients, against a real socket that answers as it is told to."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from frontend import connection as module
from frontend.client import (
    AsyncClient,
    Client,
    Disconnected,
    Failed,
    Invalid,
    Prediction,
    Rejected,
    RequestError,
    TimedOut,
)
from frontend.conversation import FRAMED_BYTES, converted
from tests.frontend.fakes import DROP, Asked, FakeFrontend, error, infers, models, ok, usual
from tests.loops import on_loop

ROW = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)


class OnALoop:
    """An AsyncClient that is asked like a Client: both have to do the same."""

    def __init__(self, address: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._make(address, options))

    async def _make(self, address: Any, options: dict[str, Any]) -> AsyncClient:
        return AsyncClient(address, **options)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self._runner.run(getattr(self._client, name)(*args, **kwargs))

    def infer_many(self, requests: Any, **options: Any) -> list[Any]:
        async def all_at_once() -> list[Any]:
            calls = [self._client.infer(model, x, **options) for model, x in requests]
            return await asyncio.gather(*calls, return_exceptions=True)

        return self._runner.run(all_at_once())

    def close(self) -> None:
        self._runner.run(self._close())

    async def _close(self) -> None:
        self._client.close()

    def __enter__(self) -> "OnALoop":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.close()


@pytest.fixture(params=[Client, OnALoop], ids=["Client", "AsyncClient"])
def make(request: pytest.FixtureRequest) -> Any:
    """Either client."""
    return request.param


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> float:
    """A request without an answer is given up 60 ms after its deadline."""
    monkeypatch.setattr(module, "GRACE_S", 0.06)
    return 0.06


@pytest.fixture
def serving(make: Any) -> Iterator[Callable[..., tuple[FakeFrontend, Any]]]:
    """Opens a frontend that behaves so, and a client of it; both are closed at the end."""
    opened: list[Any] = []

    def open_(behaviour: Any = usual) -> tuple[FakeFrontend, Any]:
        opened.append(FakeFrontend(behaviour).__enter__())
        opened.append(make(opened[-1].address).__enter__())
        return opened[0], opened[1]

    yield open_
    for thing in reversed(opened):
        thing.__exit__()


Serving = Callable[..., tuple[FakeFrontend, Any]]


# -- requests ---------------------------------------------------------------------------------------------------------


def test_an_answer_is_a_prediction_with_all_that_came(serving: Serving) -> None:
    fields = {"predicted_ms": 1.25, "batch_size": 3, "device": "cpu:0", "cached": False}
    _, client = serving(infers(lambda asked: [ok(asked, **fields)]))
    prediction = client.infer("m", ROW, slo_ms=50)
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
    client.infer("m", ROW, slo_ms=50, version="1", cache=False, context=None)
    client.infer("m", ROW)
    tensor = {"name": "x", "dtype": "float32", "shape": [1, 4], "data": ROW.tobytes()}
    first, second = (asked.message for asked in frontend.infers())
    assert first.pop("id") != second.pop("id")
    assert first == {
        "op": "infer", "model": "m", "inputs": [tensor], "slo_ms": 50, "version": "1", "cache": False,
    }  # fmt: skip
    assert second == {"op": "infer", "model": "m", "inputs": [tensor]}


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (ROW, ROW),
        (ROW[0], ROW),  # one row gets its batch dimension
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
    with pytest.raises(TypeError, match="holds numbers, strings, lists and arrays, no object"):
        client.infer("m", ROW, context=object())


def test_what_a_message_cannot_hold_is_refused_by_its_name(serving: Serving) -> None:
    _, client = serving()
    for ask, field in [
        (lambda: client.infer("m", ROW, weight=2**64), "weight"),
        (lambda: client.feedback("a", label=-(2**63) - 1), "label"),
        (lambda: client.feedback("a", label=1, context="\ud800"), "context"),
    ]:
        with pytest.raises(Invalid, match=f"{field}: a message cannot hold it") as raised:
            ask()
        assert (raised.value.code, raised.value.field) == ("bad_field", field)


def test_an_input_too_large_for_a_frontend_is_refused_and_the_connection_stays(make: Any) -> None:
    def told(asked: Asked) -> Any:
        answer, _ = models(asked)
        return [({**answer, "frame_bytes_max": 1_600_000}, [])] if asked.message["op"] == "models" else usual(asked)

    with FakeFrontend(told) as frontend, make(frontend.address) as client:
        with pytest.raises(Invalid, match="1600016 bytes is more than a frontend takes, 1600000") as raised:
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
    assert [model["name"] for model in client.models()] == ["m", "two"]


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
    first, second, third = client.infer_many([("m", ROW * i) for i in range(3)], slo_ms=1000)
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
        np.testing.assert_array_equal(client.infer("m", ROW, slo_ms=1000)["y"], ROW * 2)
    assert len(sent) == 4


@pytest.mark.parametrize("slo_ms", [float("inf"), float("nan"), 1e300, -1.0, 0.0])
def test_a_budget_that_cannot_be_is_refused_by_the_frontend_and_not_by_accident(
    serving: Serving, slo_ms: float
) -> None:
    _, client = serving(infers(lambda asked: [error(asked, "invalid", "bad_slo")]))
    with pytest.raises(Invalid):
        client.infer("m", ROW, slo_ms=slo_ms)


# -- many at once -----------------------------------------------------------------------------------------------------


def backwards(count: int) -> Any:
    """Answers nothing until `count` requests are there, then all of them, the last one first."""
    held: list[Asked] = []

    def behaviour(asked: Asked) -> Any:
        held.append(asked)
        return [ok(one) for one in reversed(held)] if len(held) == count else []

    return infers(behaviour)


def test_requests_are_in_flight_together_and_outcomes_come_in_the_order_of_the_requests(serving: Serving) -> None:
    _, client = serving(backwards(5))
    outcomes = client.infer_many([("m", ROW * i) for i in range(5)], slo_ms=1000)
    assert [outcome["y"][0, 0] for outcome in outcomes] == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_of_many_requests_one_that_fails_takes_no_other_with_it(serving: Serving) -> None:
    _, client = serving(
        infers(lambda asked: [error(asked, "rejected", "late") if asked.array()[0, 0] == 1.0 else ok(asked)])
    )
    first, second, third = client.infer_many([("m", ROW * i) for i in range(3)])
    assert isinstance(second, Rejected)
    assert (first["y"][0, 0], third["y"][0, 0]) == (0.0, 4.0)


def test_of_many_requests_one_may_be_for_a_model_that_is_not_there(serving: Serving) -> None:
    def behaviour(asked: Asked) -> Any:
        there = asked.message["model"] == "m"
        return [ok(asked) if there else error(asked, "invalid", "unknown_model")]

    _, client = serving(infers(behaviour))
    first, second, third = client.infer_many([("m", ROW), ("nowhere", ROW), ("m", ROW)], slo_ms=1000)
    assert isinstance(second, Invalid)
    assert (first["y"][0, 0], third["y"][0, 0]) == (2.0, 2.0)


def test_several_frontends_share_the_requests(make: Any) -> None:
    with FakeFrontend() as one, FakeFrontend() as other, make([one.address, other.address]) as client:
        for _ in range(20):
            client.infer("m", ROW)
        assert len(one.infers()) > 0
        assert len(other.infers()) > 0
        assert len(one.infers()) + len(other.infers()) == 20


def test_keys_open_a_frontend_that_asks_for_them(make: Any) -> None:
    server, client_ = zmq.curve_keypair(), zmq.curve_keypair()
    with FakeFrontend(secret=server[1]) as frontend, make(frontend.address, keys=(server[0], *client_)) as client:
        np.testing.assert_array_equal(client.infer("m", ROW)["y"], ROW * 2)


# -- broken connections -----------------------------------------------------------------------------------------------


def then(*behaviours: Any) -> Any:
    """For the first infer request the first behaviour, and so on; the last one stays."""
    left = list(behaviours)
    return infers(lambda asked: (left.pop(0) if len(left) > 1 else left[0])(asked))


def drop(asked: Asked) -> Any:
    return DROP


def answer(asked: Asked) -> Any:
    return [ok(asked)]


def silent(asked: Asked) -> Any:
    return []


def test_what_was_not_answered_is_asked_again_with_what_is_left_of_its_budget(serving: Serving) -> None:
    frontend, client = serving(then(drop, answer))
    np.testing.assert_array_equal(client.infer("m", ROW, slo_ms=5000)["y"], ROW * 2)
    first, second = frontend.infers()
    assert first.message["slo_ms"] == 5000
    assert 0 < second.message["slo_ms"] < 5000
    assert {**second.message, "slo_ms": 5000} == first.message


def test_frames_are_sent_again_too(serving: Serving) -> None:
    frontend, client = serving(then(drop, answer))
    x = np.arange(40_000, dtype=np.float32).reshape(-1, 4)
    np.testing.assert_array_equal(client.infer("m", x, slo_ms=5000)["y"], x * 2)
    first, second = frontend.infers()
    assert first.frames == second.frames == [x.tobytes()]


def test_a_request_without_a_budget_is_asked_again_with_what_is_left_of_the_model_s(serving: Serving) -> None:
    frontend, client = serving(then(drop, answer))
    client.infer("m", ROW)
    first, second = frontend.infers()
    assert "slo_ms" not in first.message
    assert 0 < second.message.pop("slo_ms") < 200.0
    assert first.message == second.message


@on_loop
async def test_what_a_frontend_that_died_did_not_answer_is_asked_of_the_other_with_what_is_left() -> None:
    with FakeFrontend() as other:
        with FakeFrontend(infers(silent)) as dies:
            client = AsyncClient([dies.address, other.address])
            while not (dies.asked and other.asked):  # both connections are there
                await client.call("ping")
            futures = [client.submit("m", ROW * i, slo_ms=5000) for i in range(20)]
            await asyncio.to_thread(dies.wait, 10)
        outcomes: list[Any] = await asyncio.gather(*futures)
        assert [outcome["y"][0, 0] for outcome in outcomes] == [2.0 * i for i in range(20)]
        lost = {asked.id for asked in dies.infers()}
        assert len(lost) == 10
        again = [asked.message["slo_ms"] for asked in other.infers() if asked.id in lost]
        assert len(again) == 10
        assert all(0 < slo_ms < 5000 for slo_ms in again)
        later: list[Any] = await asyncio.gather(*(client.submit("m", ROW, slo_ms=5000) for _ in range(20)))
        assert all(outcome["y"][0, 0] == 2.0 for outcome in later)
        client.close()


@on_loop
async def test_requests_that_waited_for_a_frontend_leave_with_what_is_left_of_their_budgets() -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    async with AsyncClient(address) as client:
        futures = [client.submit("m", ROW * i, slo_ms=slo_ms) for i, slo_ms in enumerate((5000, 1e-6, 5000, None))]
        later = FakeFrontend()
        later.address = address
        with later:
            for i in (0, 2, 3):
                outcome: Any = await futures[i]
                assert outcome["y"][0, 0] == 2.0 * i
            first, third, last = [asked.message for asked in later.infers()]
        assert 0 < first["slo_ms"] < 5000
        assert 0 < third["slo_ms"] < 5000
        assert "slo_ms" not in last


def test_other_messages_are_asked_again_as_well(serving: Serving) -> None:
    left = [DROP]
    frontend, client = serving(lambda asked: left.pop() if left else usual(asked))
    assert client.call("ping")["pong"] is True
    assert len(frontend.asked) == 2


def test_all_that_is_in_flight_is_asked_again(serving: Serving) -> None:
    frontend, client = serving(then(silent, silent, drop, answer))
    outcomes = client.infer_many([("m", ROW * i) for i in range(3)], slo_ms=5000)
    assert [outcome["y"][0, 0] for outcome in outcomes] == [0.0, 2.0, 4.0]
    ids = [asked.id for asked in frontend.infers()]
    assert set(ids[3:]) == set(ids[:3])


def test_what_was_answered_is_not_asked_again(serving: Serving) -> None:
    frontend, client = serving(then(answer, drop, answer))
    client.infer("m", ROW)
    client.infer("m", ROW * 3, slo_ms=5000)
    assert [asked.array()[0, 0] for asked in frontend.infers()] == [1.0, 3.0, 3.0]


def test_a_connection_may_break_several_times(serving: Serving) -> None:
    frontend, client = serving(then(drop, drop, drop, answer))
    client.infer("m", ROW, slo_ms=8000)
    budgets = [asked.message["slo_ms"] for asked in frontend.infers()]
    assert len(budgets) == 4
    assert budgets == sorted(budgets, reverse=True)


def test_a_duplicate_id_after_asking_again_is_ignored(serving: Serving) -> None:
    def duplicate_then_ok(asked: Asked) -> Any:
        return [error(asked, "invalid", "duplicate_id"), ok(asked)]

    _, client = serving(then(drop, duplicate_then_ok))
    np.testing.assert_array_equal(client.infer("m", ROW, slo_ms=5000)["y"], ROW * 2)


def test_any_other_refusal_after_asking_again_counts(serving: Serving) -> None:
    _, client = serving(then(drop, lambda asked: [error(asked, "invalid", "unknown_model")]))
    with pytest.raises(Invalid):
        client.infer("m", ROW, slo_ms=5000)


def test_a_duplicate_id_without_asking_again_is_raised(serving: Serving) -> None:
    _, client = serving(infers(lambda asked: [error(asked, "invalid", "duplicate_id")]))
    with pytest.raises(Invalid, match="duplicate_id"):
        client.infer("m", ROW)


def test_an_answer_that_comes_twice_is_taken_once(serving: Serving) -> None:
    _, client = serving(infers(lambda asked: [ok(asked), ok(asked, ROW * 9)]))
    for i in range(3):
        np.testing.assert_array_equal(client.infer("m", ROW * i)["y"], ROW * 2 * i)


def test_answers_to_nobody_are_ignored(serving: Serving) -> None:
    stray = [
        ({"id": None, "status": "invalid"}, []),
        ({"id": 999, "status": "ok"}, []),
        ({"id": "a", "status": "ok"}, []),
    ]
    _, client = serving(infers(lambda asked: [*stray, ok(asked)]))
    np.testing.assert_array_equal(client.infer("m", ROW)["y"], ROW * 2)


# -- no answer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slo_ms", "wait_s"), [(40.0, 0.04), (None, 0.2)])
def test_a_request_without_an_answer_is_given_up_a_grace_after_its_budget(
    serving: Serving, short_grace: float, slo_ms: float | None, wait_s: float
) -> None:
    _, client = serving(infers(silent))
    client.models()
    began = time.monotonic()
    with pytest.raises(TimedOut, match="is a frontend running at this address") as raised:
        client.infer("m", ROW, slo_ms=slo_ms)
    assert wait_s + short_grace <= time.monotonic() - began < wait_s + short_grace + 1.0
    assert raised.value.code == "no_answer"


def test_a_budget_that_was_used_up_meanwhile_is_not_asked_again(serving: Serving, short_grace: float) -> None:
    frontend, client = serving(then(drop, answer))
    client.models()
    with pytest.raises(TimedOut, match="no_answer"):
        client.infer("m", ROW, slo_ms=1e-6)
    assert len(frontend.infers()) == 1


def test_a_late_answer_is_dropped_and_the_next_request_gets_its_own(serving: Serving, short_grace: float) -> None:
    held: list[Asked] = []

    def late(asked: Asked) -> Any:
        held.append(asked)
        return [] if len(held) == 1 else [ok(held[0], ROW * 9), ok(asked)]

    _, client = serving(infers(late))
    with pytest.raises(TimedOut):
        client.infer("m", ROW, slo_ms=1.0)
    np.testing.assert_array_equal(client.infer("m", ROW)["y"], ROW * 2)


def test_a_call_is_given_up_after_its_time(make: Any) -> None:
    with FakeFrontend(silent) as frontend, make(frontend.address) as client:
        began = time.monotonic()
        with pytest.raises(TimedOut):
            client.call("ping", timeout_s=0.05)
        assert 0.05 <= time.monotonic() - began < 0.8


def test_a_frontend_that_is_not_there_is_said_so(make: Any, short_grace: float) -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    with make(address) as client, pytest.raises(TimedOut, match="no_answer"):
        client.call("ping", timeout_s=0.1)


def test_a_client_may_be_made_before_its_frontend_is_there(make: Any) -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    later = FakeFrontend()
    later.address = address
    with make(address) as client, later:
        assert client.call("ping")["pong"] is True


def test_more_than_may_wait_for_a_frontend_are_refused_at_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    monkeypatch.setattr(module, "UNSENT_MAX", 0)
    with make(address) as client:
        for ask in (lambda: client.infer("m", ROW), client.models, lambda: client.call("ping")):
            with pytest.raises(Rejected, match="wait to be sent: no frontend is reached at tcp://") as raised:
                ask()
            assert (raised.value.code, raised.value.retry_after_ms) == ("client_full", 100.0)


@on_loop
async def test_of_many_requests_those_that_may_not_wait_get_it_as_their_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeFrontend() as frontend:
        address = frontend.address
    monkeypatch.setattr(module, "UNSENT_MAX", 3)
    async with AsyncClient(address) as client:
        futures = [client.submit("m", ROW, slo_ms=5000) for _ in range(5)]
        assert [future.done() for future in futures] == [False, False, False, True, True]
        assert all(isinstance(future.result(), Rejected) for future in futures[3:])
        later = FakeFrontend()
        later.address = address
        with later:
            assert all(isinstance(outcome, Prediction) for outcome in await asyncio.gather(*futures[:3]))


@pytest.mark.parametrize("rows", [1, 100_000])
def test_what_is_asked_faster_than_it_is_read_waits_and_is_answered(
    make: Any, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(module, "SENDING_MAX", 2)
    with FakeFrontend() as frontend, make(frontend.address) as client:
        client.models()
        outcomes = client.infer_many([("m", np.repeat(ROW * i, rows, axis=0)) for i in range(40)], slo_ms=60_000)
        assert [outcome["y"][0, 0] for outcome in outcomes] == [2.0 * i for i in range(40)]


# -- closing ----------------------------------------------------------------------------------------------------------


def test_a_client_that_was_closed_can_be_closed_again(make: Any) -> None:
    with FakeFrontend() as frontend, make(frontend.address) as client:
        client.call("ping")
        client.close()
        client.close()


def test_a_client_that_was_closed_says_so(make: Any) -> None:
    with FakeFrontend() as frontend, make(frontend.address) as client:
        client.models()
        client.close()
        for ask in (lambda: client.infer("m", ROW), lambda: client.call("ping")):
            with pytest.raises(Disconnected, match="the client was closed"):
                ask()


@on_loop
async def test_closing_answers_what_is_in_flight() -> None:
    with FakeFrontend(infers(silent)) as frontend:
        client = AsyncClient(frontend.address)
        await client.models()
        futures = [client.submit("m", ROW, slo_ms=5000) for _ in range(3)]
        waiting = asyncio.ensure_future(client.infer("m", ROW))
        await asyncio.to_thread(frontend.wait, 4)
        client.close()
        assert [type(future.result()) for future in futures] == [Disconnected] * 3
        assert futures[0].result().code == "closed"
        with pytest.raises(Disconnected):
            await waiting


@on_loop
async def test_the_context_manager_closes_also_after_an_error() -> None:
    with FakeFrontend() as frontend:
        with pytest.raises(ZeroDivisionError):
            async with AsyncClient(frontend.address) as client:
                raise ZeroDivisionError
        assert client._closed


def test_the_blocking_context_manager_closes_also_after_an_error() -> None:
    with FakeFrontend() as frontend:
        with pytest.raises(ZeroDivisionError), Client(frontend.address) as client:
            raise ZeroDivisionError
        assert client._connection.ways[0].sock.closed


# -- only on a loop ---------------------------------------------------------------------------------------------------


@on_loop
async def test_a_submitted_request_leaves_at_once_and_its_outcome_is_a_value() -> None:
    with FakeFrontend(infers(lambda asked: [error(asked, "rejected", "late")])) as frontend:
        async with AsyncClient(frontend.address) as client:
            await client.models()
            future = client.submit("m", ROW)
            frontend.wait(1)  # without the loop having run
            assert isinstance(await future, Rejected)


@on_loop
async def test_all_who_wait_for_what_is_deployed_ask_once() -> None:
    with FakeFrontend() as frontend:
        async with AsyncClient(frontend.address) as client:
            outcomes = await asyncio.gather(*(client.infer("m", ROW * i) for i in range(20)))
            assert [outcome["y"][0, 0] for outcome in outcomes] == [2.0 * i for i in range(20)]
            assert [asked.message["op"] for asked in frontend.asked].count("models") == 1


@on_loop
async def test_a_cancelled_request_harms_nobody() -> None:
    held: list[Asked] = []

    def hold_the_first(asked: Asked) -> Any:
        held.append(asked)
        return [] if len(held) == 1 else [ok(held[0]), ok(asked)]

    with FakeFrontend(infers(hold_the_first)) as frontend:
        async with AsyncClient(frontend.address) as client:
            first = asyncio.ensure_future(client.infer("m", ROW, slo_ms=5000))
            await asyncio.to_thread(frontend.wait, 1)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            np.testing.assert_array_equal((await client.infer("m", ROW * 3))["y"], ROW * 6)


@on_loop
async def test_one_of_those_who_wait_for_what_is_deployed_may_be_cancelled() -> None:
    with FakeFrontend(lambda asked: [] if asked.message["op"] == "models" else usual(asked)) as frontend:
        async with AsyncClient(frontend.address) as client:
            first, second = (asyncio.ensure_future(client.infer("m", ROW)) for _ in range(2))
            (question,) = await asyncio.to_thread(frontend.wait, 1, "models")
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            frontend.answer(models(question))
            np.testing.assert_array_equal((await second)["y"], ROW * 2)


@on_loop
async def test_a_short_request_is_given_up_in_time_behind_a_long_one(short_grace: float) -> None:
    with FakeFrontend(infers(silent)) as frontend:
        async with AsyncClient(frontend.address) as client:
            await client.models()  # may take ten seconds: the timer is set for then
            began = time.monotonic()
            with pytest.raises(TimedOut):
                await client.infer("m", ROW, slo_ms=5.0)
            assert time.monotonic() - began < 2.0


@on_loop
async def test_hundreds_are_in_flight_at_once() -> None:
    with FakeFrontend() as frontend:
        async with AsyncClient(frontend.address) as client:
            await client.models()
            futures = [client.submit("m", ROW * i) for i in range(500)]
            outcomes: list[Any] = await asyncio.gather(*futures)
            assert [outcome["y"][0, 0] for outcome in outcomes] == [2.0 * i for i in range(500)]
            assert client._connection.flights == {}
