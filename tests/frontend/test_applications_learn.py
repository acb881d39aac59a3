"""Applications at a real frontend beside a real broker: what they learn from feedback."""

from pathlib import Path
from typing import Any

import pytest

from frontend.client.client import Failed, Invalid
from tests.frontend.client.fakes import ROW
from tests.frontend.ensembles import MODELS, ensemble, outcome
from tests.loops import on_loop


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
        await at.in_flight(0)
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
