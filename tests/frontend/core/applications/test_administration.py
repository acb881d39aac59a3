"""Applications made, changed, deleted and listed: events in, orders out."""

from typing import Any

import pytest

from frontend.core.applications.messages import (
    BrokerUnreachable,
    CallBroker,
    Drop,
    NotServed,
    Order,
    ReadState,
    Refuse,
    StateRead,
    Tell,
)
from frontend.core.protocol import AppsRequest, CreateApp, DeleteApp, InferRequest, RequestRefused, UpdateApp
from mesh import wire
from selection.base import Arm, State, fresh
from tests.frontend.core.applications.cores import MODELS, Core, asks, definition, entry, table
from tests.messages import names

OTHER = definition(name="other")
OWN = "tests.selection.own_policy:Second"


def refusal(orders: list[Order]) -> tuple[str, str, str | None, int | str | None]:
    """(code, status, field, id) of the refusal, which is the only order."""
    (refused,) = orders
    assert isinstance(refused, Refuse)
    assert refused.client == "client"
    return refused.invalid.code, refused.invalid.status, refused.invalid.field, refused.invalid.id


def listed(orders: list[Order]) -> list[dict[str, Any]]:
    """The applications that the answer to `apps` lists."""
    (tell,) = orders
    assert isinstance(tell, Tell)
    assert (tell.message["status"], tell.message["frame_bytes_max"]) == ("ok", 1 << 20)
    apps: list[dict[str, Any]] = tell.message["apps"]
    return apps


def test_the_broker_is_called_and_the_client_told_once_it_has_agreed() -> None:
    at = Core()
    call = at.ask(CreateApp(id=1, app=OTHER))
    assert call == [CallBroker(wire.PutApp(call=1, definition=OTHER, create=True))]
    told = Tell("client", {"id": 1, "status": "ok", "message": "it is", "revision": 3})
    assert at.handle(wire.CallReply(call=1, ok=True, message="it is", revision=3)) == [Drop("other"), told]
    call = at.ask(UpdateApp(id=2, app=OTHER))
    assert call == [CallBroker(wire.PutApp(call=2, definition=OTHER, create=False))]
    assert len(at.handle(wire.CallReply(call=2, ok=True, message="it is", revision=4))) == 1
    call = at.ask(DeleteApp(id=3, app="other"))
    assert call == [CallBroker(wire.DropApp(call=3, name="other"))]
    assert at.handle(wire.CallReply(call=3, ok=True, message="it was"))[0] == Drop("other")
    assert at.handle(wire.CallReply(call=3, ok=True, message="it was")) == []


@pytest.mark.parametrize(
    ("told", "code"),
    [("app_exists", "app_exists"), ("unknown_app", "unknown_app"), ("", "bad_app"), ("a_newer_brokers", "bad_app")],
)
def test_what_the_broker_refuses_has_the_brokers_code_whatever_its_sentence(told: str, code: str) -> None:
    at = Core()
    at.ask(CreateApp(id=1, app=OTHER))
    reply = wire.CallReply(call=1, ok=False, message="there is no application; it exists already", field="f", code=told)
    assert refusal(at.handle(reply)) == (code, "invalid", "f", 1)


@pytest.mark.parametrize(
    ("request_", "forgotten"),
    [
        (CreateApp(id=1, app=OTHER), [Drop("other")]),
        (UpdateApp(id=1, app=OTHER), []),
        (DeleteApp(id=1, app="app"), [Drop("app")]),
    ],
)
def test_what_the_broker_could_not_save_is_in_effect_and_the_client_told_so(
    request_: Any, forgotten: list[Order]
) -> None:
    at = Core()
    at.ask(request_)
    *orders, last = at.handle(wire.CallReply(call=1, ok=False, message="in effect, no room on disk", code="not_saved"))
    assert orders == forgotten
    assert refusal([last]) == ("not_saved", "failed", None, 1)


def test_a_broker_that_is_gone_or_silent_is_told() -> None:
    at = Core()
    at.ask(CreateApp(id=1, app=OTHER), 1.0)
    assert refusal(at.handle(BrokerUnreachable(1), 1.0)) == ("no_broker", "rejected", None, 1)
    at.ask(DeleteApp(id=2, app="app"), 1.0)
    at.ask(DeleteApp(id=3, app="app"), 1.5)
    assert at.core.wake_at() == 6.0
    assert at.wake(5.999) == []
    assert refusal(at.wake(6.0)) == ("no_broker", "timed_out", None, 2)
    assert at.core.wake_at() == 6.5
    assert at.handle(wire.CallReply(call=2, ok=True, message="at last")) == []


def test_so_many_calls_may_be_open_and_no_more() -> None:
    at = Core()
    for i in range(1000):
        assert len(at.ask(DeleteApp(id=i, app="app"))) == 1
    assert refusal(at.ask(DeleteApp(id=1000, app="app"))) == ("busy", "rejected", None, 1000)


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        (CreateApp(id=1, app=definition()), "app_exists", "app.name"),
        (CreateApp(id=1, app={**OTHER, "models": ["a", "none"]}), "unknown_model", "app.models"),
        (CreateApp(id=1, app={**OTHER, "policy": "best"}), "bad_policy", "app.policy"),
        (UpdateApp(id=1, app={**OTHER, "slo_ms": 0.0}), "bad_app", "app.slo_ms"),
        (UpdateApp(id=1, app={**OTHER, "slo_ms": 60_001.0}), "bad_app", "app.slo_ms"),
        (DeleteApp(id=1, app="no spaces"), "unknown_app", "app"),
        (AppsRequest(id=1, context="a\nb"), "bad_context", "context"),
    ],
)
def test_what_cannot_be_is_refused_before_the_broker_hears_of_it(request_: Any, code: str, field: str) -> None:
    assert refusal(Core().ask(request_)) == (code, "invalid", field, 1)


def test_models_have_to_fit_and_to_be_prepared_when_an_application_is_made() -> None:
    at = Core()
    at.handle(table(at.entry, odd=("b",)))
    assert refusal(at.ask(CreateApp(id=1, app=OTHER)))[0] == "models_differ"
    at.handle(table(at.entry, unprepared=("b",)))
    assert refusal(at.ask(CreateApp(id=1, app=OTHER)))[:2] == ("not_ready", "rejected")


def test_a_listing_reads_each_state_anew_and_is_told_after_the_last() -> None:
    at = Core("exp4")
    at.handle(table(entry(OTHER), at.entry))
    assert at.ask(AppsRequest(id=4, context="u")) == [ReadState(("app", "u"), 1), ReadState(("other", "u"), 1)]
    assert at.handle(StateRead(("other", "u"), 1, None, "no disk")) == []
    seen = State({model: Arm(log_weight=-1.0, seen=2, lost=1.0) for model in MODELS}, 2)
    app, other = listed(at.handle(StateRead(("app", "u"), 1, seen)))
    assert (app["name"], app["rounds"], app["context"], app["learning"]) == ("app", 2, "u", "on")
    assert app["learned"]["a"] == {"feedback": 2, "mean_loss": 0.5}
    assert sum(app["weights"].values()) == pytest.approx(1.0)
    assert (other["name"], other["rounds"], other["learning"]) == ("other", 0, "paused: no disk")


def test_without_applications_the_listing_is_told_at_once() -> None:
    at = Core()
    at.handle(table())
    assert listed(at.ask(AppsRequest(id=4))) == []


def test_an_application_that_cannot_be_in_effect_here_says_why_wherever_it_is_asked_for() -> None:
    at = Core()
    own = entry(definition(OWN, name="own"))
    (fact,) = at.handle(table(at.entry, own))
    assert isinstance(fact, NotServed)
    assert (fact.app, names(fact.why, OWN)) == ("own", True)
    assert at.handle(table(at.entry, own)) == []  # told once
    (refused,) = at.ask(InferRequest(id=1, inputs=[], app="own"))
    assert isinstance(refused, Refuse)
    assert (refused.invalid.code, refused.invalid.status) == ("not_served", "failed")
    assert names(refused.invalid.message, "'own'", OWN)
    assert at.ask(AppsRequest(id=2)) == [ReadState(("app", ""), 1)]
    app, unserved = listed(at.handle(StateRead(("app", ""), 1, None)))
    assert (app["learning"], unserved["models"], unserved["policy"]) == ("on", MODELS, OWN)
    assert (unserved["weights"], names(unserved["learning"], OWN)) == ({}, True)
    assert app.keys() == unserved.keys()
    assert at.handle(table(at.entry, entry(definition("exp4", name="own"), revision=2))) == []
    assert len(at.ask(AppsRequest(id=3))) == 2


def test_a_policy_that_cannot_tell_its_shares_is_listed_without_weights() -> None:
    at = Core("tests.selection.own_policy:Forgetful", allow=("tests.",))
    at.ask(AppsRequest(id=2))
    (app,) = listed(at.handle(StateRead(("app", ""), 1, None)))
    assert app["weights"] == dict.fromkeys(MODELS, 0.0)
    assert names(app["learning"], "RuntimeError", "no shares")


def test_a_changed_application_keeps_its_counts_and_one_made_again_forgets_what_it_learned() -> None:
    at = Core("exp4")
    at.infer()
    at.read(fresh(MODELS))
    changed = definition("exp4", slo_ms=50.0)
    at.handle(table(entry(changed, revision=2)))
    assert asks(at.infer(2)) == MODELS
    assert at.core.report()["apps"]["app"]["asked"] == 2
    at.handle(table(entry(changed, revision=3, created=3)))
    assert at.infer(3) == [ReadState(("app", ""))]
    assert at.core.report()["apps"]["app"]["asked"] == 1
    at.handle(table())
    assert at.core.report()["apps"] == {}


def test_an_error_has_the_id_of_its_request() -> None:
    (refused,) = Core().ask(CreateApp(id="é", app={"name": ""}))
    assert isinstance(refused, Refuse)
    assert isinstance(refused.invalid, RequestRefused)
    assert refused.invalid.id == "é"
