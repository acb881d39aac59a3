"""Applications at a real frontend beside a real broker; controller and worker say what a test tells them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from frontend.client.client import Failed, Invalid, Prediction, Rejected, RequestError, TimedOut
from mesh import wire
from tests.frontend.client.fakes import ROW
from tests.frontend.service_mesh import QUICK, SPEC, Mesh
from tests.loops import on_loop
from tests.mesh.net.brokers import package
from tests.mesh.net.processes import processes

MODELS = ["m", "a", "b"]
DEFAULT = {"y": np.full((1, 4), 0.25, np.float32)}


def scores(*classes: int) -> bytes:
    """One row for each class that is said."""
    return bytes((np.eye(4, dtype=np.float32)[list(classes)] * 9).tobytes())


class Ensemble(Mesh):
    """As Mesh, with three models of one kind, and `odd`, which gives something else."""

    def __init__(self, made: Any, folder: Path, **settings: Any) -> None:
        for name in ("a", "b", "odd"):
            package(folder / "repository", name, "1")
        super().__init__(made, folder, data_dir=folder / "state", **settings)

    async def begin(self) -> None:
        await super().begin()
        odd = wire.TensorSpec(name="y", dtype="float32", shape=(-1, 5))
        for name in ("a", "b"):
            self.controller.report(f"{name}:1")
        spec = wire.ModelSpec(inputs=SPEC.inputs, outputs=(odd,), batch_max=8, slo_ms=60_000.0)
        self.controller.caller.link.send(wire.PrepareReport(ref="odd:1", ok=True, spec=spec))
        await self.until(lambda: len(self.frontend._targets.bound) == 4)

    def ready(self) -> bool:
        """The first model can be asked."""
        return "m" in self.frontend._targets.bound

    async def asked(self, number: int) -> dict[str, wire.Submit]:
        """{model: what it was last asked}, once so many were asked in all."""
        return {submit.ref.split(":")[0]: submit for submit in await self.controller.wait(wire.Submit, number)}

    def say(self, submit: wire.Submit, *classes: int, data: bytes | None = None) -> None:
        """The worker answers that these are the classes."""
        inline = (memoryview(data if data is not None else scores(*classes)),)
        self.outputs(
            wire.Answer(
                request=submit.request, attempt=submit.attempt, rows=submit.rows, predicted_s=0.1, inline=inline
            )
        )


@contextlib.asynccontextmanager
async def ensemble(folder: Path, policy: str = "majority", **app: Any) -> AsyncIterator[Ensemble]:
    settings = app.pop("settings", {})
    async with processes(**{**QUICK, **settings}) as made:
        begun = Ensemble(made, folder, **settings)
        try:
            await begun.begin()
            if policy:
                await begun.client.create_app("app", app.pop("models", MODELS), policy, **{"slo_ms": 60_000, **app})
            yield begun
        finally:
            begun.close()


async def outcome(future: "asyncio.Future[Any]") -> Prediction:
    found = await future
    assert isinstance(found, Prediction), found
    return found


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
        }  # fmt: skip
        assert sum(app["weights"].values()) == pytest.approx(1.0)


@on_loop
async def test_what_is_there_when_the_budget_ends_is_answered_and_the_missing_lower_the_confidence(
    tmp_path: Path,
) -> None:
    async with ensemble(tmp_path) as at:
        future = at.client.submit(app="app", x=ROW)
        asked = await at.asked(3)
        deadline_s = at.frontend._applications.wake_at()
        assert deadline_s is not None
        at.say(asked["a"], 2)
        await at.until(lambda: len(at.frontend._requests) == 2)
        at.frontend._ring(deadline_s - 1e-6)
        await at.client.call("ping")
        assert not future.done()
        at.frontend._ring(deadline_s)
        answer = await outcome(future)
        assert answer.output.argmax() == 2
        assert answer.models_used == ("a",)
        assert answer.confidence == pytest.approx(1 / 3)
        assert (await at.client.apps())[0]["counts"]["partial"] == 1
        told = await at.client.feedback(str(answer.decision_id), label=2)
        assert told["applied"]
        learned = (await at.client.apps())[0]["learned"]
        assert {model: each["feedback"] for model, each in learned.items()} == {"m": 0, "a": 1, "b": 0}


@on_loop
async def test_nobody_in_time_or_nobody_sure_gives_the_default_with_the_reason(tmp_path: Path) -> None:
    async with ensemble(tmp_path, default=DEFAULT, confidence_min=0.9) as at:
        late = await outcome(at.client.submit(app="app", x=np.repeat(ROW, 2, axis=0), slo_ms=50))
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
        late = await at.client.submit(app="app", x=ROW, slo_ms=40)
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
async def test_a_shadow_is_asked_and_learned_about_but_never_waited_for(tmp_path: Path) -> None:
    async with ensemble(tmp_path, "majority", policy_args={"shadow": ["b"]}) as at:
        future = at.client.submit(app="app", x=ROW)
        asked = await at.asked(3)
        at.say(asked["m"], 1)
        at.say(asked["a"], 1)
        answer = await outcome(future)
        assert answer.models_used == ("m", "a")
        at.say(asked["b"], 3)
        await at.until(lambda: len(at.frontend._requests) == 0)
        assert (await at.client.feedback(str(answer.decision_id), label=1))["applied"]
        (app,) = await at.client.apps()
        assert app["learned"]["b"] == {"feedback": 1, "mean_loss": 1.0}
        assert app["weights"]["b"] == 0.0


@on_loop
async def test_feedback_is_taken_once_and_late_or_unknown_ones_are_told(tmp_path: Path) -> None:
    async with ensemble(tmp_path, "exp4", settings={"decisions_max": 2}) as at:
        answers = []
        for i in range(3):
            future = at.client.submit(app="app", x=ROW, context="user-1")
            asked = await at.asked(3 * (i + 1))
            for model, label in zip(MODELS, (1, 2, 1), strict=True):
                at.say(asked[model], label)
            answers.append(await outcome(future))
        first, second, third = (str(answer.decision_id) for answer in answers)
        assert len({first, second, third}) == 3

        async def told(decision: str, **fields: Any) -> tuple[bool, str]:
            answer = await at.client.feedback(decision, **fields)
            return answer["applied"], answer.get("reason", "")

        assert await told(first, label=1) == (False, "late")
        assert await told("nonsense", label=1) == (False, "unknown")
        assert await told("01234567-1", label=1) == (False, "unknown")
        guessed = "".join("1" if digit == "0" else "0" for digit in second.rpartition("-")[2])
        assert await told(f"{second.rpartition('-')[0]}-{guessed}", label=1) == (False, "unknown")
        for fields, field in [
            ({"label": 4}, "label"), ({"label": "sheep"}, "label"), ({"label": 1.5}, "label"), ({"loss": 1.5}, "loss"),
            ({"loss": -1}, "loss"), ({}, "label"), ({"label": 1, "loss": 0.5}, "label"),
            ({"label": 1, "context": "user-2"}, "context"), ({"label": 1, "context": "x" * 10_000_000}, "context"),
        ]:  # fmt: skip
            with pytest.raises(Invalid) as refused:
                await at.client.feedback(second, **fields)  # type: ignore[arg-type]
            assert refused.value.field == field
            assert len(refused.value.message) < 300
        assert await told(second, label="dog", context="user-1") == (True, "")
        assert await told(second, label=1) == (False, "duplicate")
        assert await told(third, loss=0.5) == (True, "")
        (mine,) = await at.client.apps("user-1")
        assert mine["rounds"] == 2
        assert mine["learned"]["a"] == {"feedback": 2, "mean_loss": 0.75}
        assert mine["weights"]["m"] > mine["weights"]["a"]
        (others,) = await at.client.apps()
        assert others["rounds"] == 0


@on_loop
async def test_a_changed_application_keeps_what_was_learned_of_the_models_that_stay(tmp_path: Path) -> None:
    async with ensemble(tmp_path, "exp4", policy_args={"eta": 2.0}, models=["m", "a"]) as at:
        future = at.client.submit(app="app", x=ROW)
        asked = await at.asked(2)
        at.say(asked["m"], 1)
        at.say(asked["a"], 2)
        await at.client.feedback(str((await outcome(future)).decision_id), label=1)
        before = (await at.client.apps())[0]["weights"]
        assert before["m"] > 0.8
        await at.client.update_app("app", ["m", "a", "b"], "exp4")
        (app,) = await at.client.apps()
        assert app["weights"]["m"] / app["weights"]["a"] == pytest.approx(before["m"] / before["a"])
        assert app["weights"]["a"] < app["weights"]["b"] < app["weights"]["m"]
        await at.client.delete_app("app")
        assert await at.client.apps() == []
        with pytest.raises(Invalid) as gone:
            await at.client.infer(app="app", x=ROW)
        assert gone.value.code == "unknown_app"
        await at.client.create_app("app", ["m", "a"], "exp4")
        assert (await at.client.apps())[0]["weights"] == {"m": pytest.approx(0.5), "a": pytest.approx(0.5)}


@on_loop
async def test_feedback_credits_the_application_that_decided_and_of_its_models_those_that_it_still_has(
    tmp_path: Path,
) -> None:
    async with ensemble(tmp_path, "exp4", models=["m", "a"]) as at:
        decisions = []
        for asked in (2, 4, 6):
            future = at.client.submit(app="app", x=ROW, cache=False)
            for submit in (await at.asked(asked)).values():
                at.say(submit, 1)
            decisions.append(str((await outcome(future)).decision_id))
        await at.client.update_app("app", ["b", "a"], "exp4")
        assert (await at.client.feedback(decisions[0], label=1))["applied"]
        learned = (await at.client.apps())[0]["learned"]
        assert {model: each["feedback"] for model, each in learned.items()} == {"b": 0, "a": 1}
        await at.client.update_app("app", ["b"], "exp4")
        told = await at.client.feedback(decisions[1], label=1)
        assert (told["applied"], told["reason"]) == (False, "nothing_to_learn")
        assert "m, a" in told["message"]
        await at.client.delete_app("app")
        told = await at.client.feedback(decisions[2], label=1)
        assert (told["applied"], told["reason"]) == (False, "unknown_app")
        await at.client.create_app("app", ["m", "a"], "exp4")
        told = await at.client.feedback(decisions[2], label=1)
        assert (told["applied"], told["reason"]) == (False, "unknown_app")
        assert (await at.client.apps())[0]["rounds"] == 0


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
async def test_what_a_policy_of_ones_own_does_wrong_is_told_and_spoils_nothing(tmp_path: Path) -> None:
    own = "tests.selection.own_policy:"
    async with ensemble(tmp_path, own + "Twice", settings={"selection_allow": (own,)}) as at:
        with pytest.raises(Failed, match="a, a"):
            await at.client.infer(app="app", x=ROW)
        await at.client.update_app("app", MODELS, own + "Shapeless")
        future = at.client.submit(app="app", x=ROW)
        at.say((await at.asked(1))["a"], 1)
        failed = await future
        assert isinstance(failed, Failed)
        assert all(named in str(failed) for named in ("y", "[1, 2]", "[1, 4]"))
        await at.client.update_app("app", MODELS, own + "Forgetful")
        future = at.client.submit(app="app", x=ROW)
        at.say((await at.asked(2))["a"], 1)
        told = await at.client.feedback(str((await outcome(future)).decision_id), label=1)
        assert (told["applied"], told["reason"]) == (False, "not_learned")
        assert "NoneType" in told["message"]
        (app,) = await at.client.apps()
        assert all(named in app["learning"] for named in ("RuntimeError", "shares", "no shares"))
        assert app["rounds"] == 0
        await at.client.update_app("app", MODELS, "exp4")
        (app,) = await at.client.apps()
        assert (app["learning"], sum(app["weights"].values())) == ("on", pytest.approx(1.0))


@on_loop
async def test_an_application_that_cannot_be_in_effect_here_says_why_wherever_it_is_asked_for(tmp_path: Path) -> None:
    own = "tests.selection.own_policy:Second"
    async with ensemble(tmp_path, own, settings={"selection_allow": ("tests.",)}) as at:
        await at.client.apps()
        settings = at.frontend.settings.model_copy(update={"selection_allow": ()})
        at.frontend._applications._settings = settings  # as at a frontend that was started with other settings
        at.frontend._applications.apps.clear()
        await at.client.create_app("another", MODELS)
        with pytest.raises(Failed, match=r"'app'.*own_policy:Second"):
            await at.client.infer(app="app", x=ROW)
        another, app = await at.client.apps()
        assert (another["name"], another["learning"]) == ("another", "on")
        assert (app["name"], app["models"], app["policy"], app["weights"]) == ("app", MODELS, own, {})
        assert own in app["learning"]
        await at.client.update_app("app", MODELS, "exp4")
        assert [each["learning"] for each in await at.client.apps()] == ["on", "on"]


@on_loop
async def test_a_store_that_is_down_pauses_learning_and_nothing_else(tmp_path: Path) -> None:
    settings = {"state_url": "redis://127.0.0.1:1/0"}
    async with ensemble(tmp_path, "exp4", settings=settings) as at:
        future = at.client.submit(app="app", x=ROW)
        for submit in (await at.asked(3)).values():
            at.say(submit, 1)
        answer = await outcome(future)
        assert answer.output.argmax() == 1
        told = await at.client.feedback(str(answer.decision_id), label=1)
        assert (told["applied"], told["reason"]) == (False, "store_down")
        assert told["message"]
        again = await at.client.feedback(str(answer.decision_id), label=1)
        assert (again["applied"], again["reason"]) == (False, "duplicate")
        status = await at.client.call("status")
        assert status["applications"]["learning"] != "on"
        assert status["applications"]["feedback_held"] == 1
        assert (await at.client.apps())[0]["learning"] != "on"


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
        await at.until(lambda: len(at.frontend._requests) == 2)
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
