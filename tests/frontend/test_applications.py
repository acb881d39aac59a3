"""Applications at a real frontend beside a real broker: what they answer, and what is refused."""

import asyncio
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from frontend.client.client import Failed, Invalid, Rejected, RequestError, TimedOut
from mesh import wire
from tests.frontend.client.fakes import ROW
from tests.frontend.ensembles import DEFAULT, MODELS, ensemble, outcome
from tests.loops import on_loop

BAD = [
    # (what is wrong, the field that is named, the value or the limit that is named with it)
    ({"name": "no spaces"}, "app.name", "no spaces"),
    ({"name": ""}, "app.name", ""),
    ({"models": []}, "app.models", "64"),
    ({"models": ["m", "m"]}, "app.models", "m"),
    ({"models": ["m", "none"]}, "app.models", "none"),
    ({"models": ["m", "odd"]}, "app.models", "odd"),
    ({"policy": "best"}, "app.policy", "best"),
    ({"policy": "os:system"}, "app.policy", "os:system"),
    ({"policy": "exp3", "policy_args": {"speed": 1}}, "app.policy_args.speed", "speed"),
    ({"policy_args": {"loss_max": -1}}, "app.policy_args.loss_max", "-1"),
    ({"confidence_min": 1.1}, "app.confidence_min", "1.1"),
    ({"confidence_min": float("nan")}, "app.confidence_min", "nan"),
    ({"slo_ms": 0}, "app.slo_ms", "0"),
    ({"slo_ms": "fast"}, "app.slo_ms", ""),
    ({"slow_ms": 1}, "app.slow_ms", "slow_ms"),
    ({"default": {"z": np.zeros((1, 4), np.float32)}}, "app.default", "y"),
    ({"default": {"y": np.zeros((2, 4), np.float32)}}, "app.default", "[1, 4]"),
    ({"default": {"y": np.zeros((1, 4), np.float64)}}, "app.default", "float32"),
    ({"default": [{"name": "y", "dtype": "float32", "shape": [1, 4], "data": b"123"}]}, "app.default", "16"),
    ({"default": [{"name": "y", "dtype": "float32", "shape": [1, 4], "data": "A" * 22}]}, "app.default[0].data", ""),
    ({"policy_args": {7: 1}}, "app.policy_args", ""),
]


@on_loop
async def test_all_members_are_asked_and_their_majority_is_answered_with_its_confidence(tmp_path: Path) -> None:
    async with ensemble(tmp_path) as at:
        future = at.client.submit(app="app", x=ROW)
        asked = await at.asked(3)
        for model, label in zip(MODELS, (1, 2, 1), strict=True):
            at.say(asked[model], label)
        answer = await outcome(future)
        assert answer.output.argmax() == 1
        assert answer.confidence == pytest.approx(2 / 3)
        assert answer.answer["disagreement"] == pytest.approx(1 / 3)
        assert answer.models_used == ("m", "a", "b")
        assert not answer.default_used
        (app,) = await at.client.apps()
        assert app["counts"] == {
            "asked": 1, "answered": 1, "defaults": {}, "refused": 0, "partial": 0, "disagreed": 1, "feedback": 0,
            "cancelled": 0,
        }  # fmt: skip
        assert sum(app["weights"].values()) == pytest.approx(1.0)


@on_loop
async def test_nobody_in_time_or_nobody_sure_gives_the_default_with_the_reason(tmp_path: Path) -> None:
    async with ensemble(tmp_path, default=DEFAULT, confidence_min=0.9) as at:
        late = await outcome(at.client.submit(app="app", x=np.repeat(ROW, 2, axis=0), slo_ms=200))
        assert late.default_used
        assert late.output.tolist() == [[0.25] * 4] * 2
        assert late.answer["error"]["code"] == "deadline"
        assert late.models_used == ()
        told = await at.client.feedback(str(late.decision_id), label=[1, 2])
        assert (told["applied"], told["reason"]) == (False, "nothing_to_learn")
        future = at.client.submit(app="app", x=ROW)
        asked = await at.asked(6)
        for model, label in zip(MODELS, (1, 2, 1), strict=True):
            at.say(asked[model], label)
        unsure = await outcome(future)
        assert unsure.default_used
        assert unsure.answer["error"]["code"] == "low_confidence"
        assert unsure.confidence == pytest.approx(2 / 3)
        counts = (await at.client.apps())[0]["counts"]
        assert counts["defaults"] == {"deadline": 1, "low_confidence": 1}


@on_loop
async def test_without_a_default_the_reason_is_the_answer(tmp_path: Path) -> None:
    async with ensemble(tmp_path, confidence_min=1.0) as at:
        late = await at.client.submit(app="app", x=ROW, slo_ms=200)
        assert isinstance(late, TimedOut)
        future = at.client.submit(app="app", x=ROW)
        for submit in (await at.asked(6)).values():
            refused = wire.Refused(
                request=submit.request, attempt=0, status="rejected", code="overload", message="no", retry_after_s=0.5
            )
            at.controller.send(refused)
        rejected = await future
        assert isinstance(rejected, Rejected)
        assert (rejected.code, rejected.retry_after_ms) == ("overload", 500.0)
        future = at.client.submit(app="app", x=ROW)
        asked = await at.asked(9)
        for model, label in zip(MODELS, (1, 2, 1), strict=True):
            at.say(asked[model], label)
        unsure = await future
        assert isinstance(unsure, Failed)
        assert unsure.code == "low_confidence"


@on_loop
async def test_numbers_that_are_not_finite_are_no_answer(tmp_path: Path) -> None:
    async with ensemble(tmp_path) as at:
        future = at.client.submit(app="app", x=ROW)
        asked = await at.asked(3)
        at.say(asked["m"], data=np.full(4, np.nan, np.float32).tobytes())
        at.say(asked["a"], 3)
        at.say(asked["b"], 3)
        answer = await outcome(future)
        assert answer.models_used == ("a", "b")
        assert answer.confidence == pytest.approx(2 / 3)


@on_loop
async def test_a_wrong_definition_is_refused_with_its_key_and_changes_nothing(tmp_path: Path) -> None:
    async with ensemble(tmp_path, "") as at:
        for fields, field, named in BAD:
            definition: dict[str, Any] = {"name": "app", "models": ["m", "a"], **fields}
            with pytest.raises(Invalid) as refused:
                await at.client.create_app(**definition)
            assert refused.value.field == field, fields
            assert named in refused.value.message, refused.value.message
            assert refused.value.message
        assert await at.client.apps() == []
        for call in (at.client.update_app("app", ["m"]), at.client.delete_app("app")):
            with pytest.raises(Invalid) as refused:
                await call
            assert refused.value.code == "unknown_app"
        await at.client.create_app("app", ["m"])
        with pytest.raises(Invalid) as twice:
            await at.client.create_app("app", ["a"])
        assert (twice.value.code, twice.value.field) == ("app_exists", "app.name")
        for fields in ({"context": "x" * 10_000_000}, {"context": "a\nb"}, {"version": "1"}, {"slo_ms": -1}):
            with pytest.raises(Invalid) as refused:
                await at.client.infer(app="app", x=ROW, **fields)
            assert refused.value.field == next(iter(fields))
        with pytest.raises(Invalid) as refused:
            await at.client.infer(app="app", x=np.zeros((1, 5), np.float32))
        assert (refused.value.code, refused.value.field) == ("bad_shape", "inputs[0].shape")


@on_loop
async def test_a_policy_that_raises_fails_that_request_and_no_other(tmp_path: Path) -> None:
    settings = {"selection_allow": ("tests.selection.own_policy:",)}
    async with ensemble(tmp_path, "tests.selection.own_policy:Crashes", settings=settings) as at:
        with pytest.raises(Failed, match=r"RuntimeError.*out of ideas"):
            await at.client.infer(app="app", x=ROW)
        await at.client.update_app("app", MODELS, "tests.selection.own_policy:Second", policy_args={"place": 2})
        future = at.client.submit(app="app", x=ROW)
        at.say((await at.asked(1))["b"], 1)
        assert (await outcome(future)).models_used == ("b",)


@on_loop
async def test_a_prediction_is_evaluated_once_and_then_remembered(tmp_path: Path) -> None:
    async with ensemble(tmp_path, "", settings={"cache_mb": 1}) as at:
        twins = [at.client.submit("m", ROW) for _ in range(3)]
        (submit,) = (await at.asked(1)).values()
        at.say(submit, 2)
        answers = [await outcome(twin) for twin in twins]
        assert [answer.output.argmax() for answer in answers] == [2, 2, 2]
        again = await at.client.infer("m", ROW)
        assert again.cached
        assert again.answer.get("predicted_ms") is None
        other = at.client.submit("m", ROW, cache=False)
        at.say((await at.asked(2))["m"], 3)
        assert (await outcome(other)).output.argmax() == 3
        cache = (await at.client.call("status"))["cache"]
        assert (cache["hits"], cache["misses"], cache["coalesced"], cache["entries"]) == (1, 1, 2, 1)
        await at.client.create_app("app", MODELS, "majority", slo_ms=60_000)
        future = at.client.submit(app="app", x=ROW)
        asked = await at.asked(4)
        assert set(asked) == {"m", "a", "b"}  # m only as before: the cache knows what it says
        at.say(asked["a"], 2)
        at.say(asked["b"], 2)
        first = await outcome(future)
        assert not first.cached
        second = await at.client.infer(app="app", x=ROW)
        assert second.cached
        assert second.decision_id not in (None, first.decision_id)


@on_loop
async def test_a_twin_takes_over_when_the_first_is_refused(tmp_path: Path) -> None:
    async with ensemble(tmp_path, "", settings={"cache_mb": 1}) as at:
        hasty = at.client.submit("m", ROW, slo_ms=20_000)
        (submit,) = (await at.asked(1)).values()
        patient = at.client.submit("m", ROW, slo_ms=60_000)
        await at.in_flight(2)
        at.controller.send(
            wire.Refused(request=submit.request, attempt=0, status="rejected", code="deadline", message="too short")
        )
        assert isinstance(await hasty, Rejected)
        submits = await at.controller.wait(wire.Submit, 2)
        at.say(submits[1], 1)
        assert (await outcome(patient)).output.argmax() == 1


@on_loop
async def test_an_answer_to_an_application_comes_in_the_form_of_the_request(tmp_path: Path) -> None:
    async with ensemble(tmp_path, "single") as at:
        with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
            sock.connect(at.address)
            tensor = {"name": "x", "dtype": "float32", "shape": [1, 4]}
            header = {"op": "infer", "id": "é", "app": "app", "inputs": [tensor]}
            sock.send_multipart([msgpack.packb(header), ROW.tobytes()])
            sock.send_multipart([msgpack.packb(header), ROW.tobytes()])
            at.say((await at.asked(1))["m"], 1)
            answers = {}
            for _ in range(2):
                parts = await asyncio.to_thread(sock.recv_multipart)
                answer = msgpack.unpackb(parts[0])
                answers[answer["status"]] = (answer, parts[1:])
            assert answers["invalid"][0]["error"]["code"] == "duplicate_id"
            answer, frames = answers["ok"]
            assert "data" not in answer["outputs"][0]
            assert np.frombuffer(frames[0], np.float32).argmax() == 1


@on_loop
async def test_a_stopped_frontend_answers_what_is_open(tmp_path: Path) -> None:
    async with ensemble(tmp_path) as at:
        future = at.client.submit(app="app", x=ROW)
        await at.asked(3)
        at.frontend.stop()
        stopped = await future
        assert isinstance(stopped, RequestError)
        assert stopped.code == "stopping"
