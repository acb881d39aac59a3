"""Feedback: events in, orders out."""

from typing import Any

import numpy as np
import pytest

from frontend.core.applications.decisions import Decision, DecisionTable, NotApplied, Predicted, encoded
from frontend.core.applications.messages import (
    Claim,
    DecisionClaimed,
    FeedbackStored,
    HeldFeedbackLost,
    Learn,
    Order,
    Refuse,
    StoreOutcome,
    Tell,
)
from frontend.core.protocol import FeedbackRequest
from selection.base import Observation, fresh
from tests.frontend.core.applications.cores import MODELS, Core, entry, table
from tests.messages import names

CERTAIN = dict.fromkeys(MODELS, 1.0)


def give(at: Core, decision_id: str, now: float = 0.0, **fields: Any) -> list[Order]:
    return at.ask(FeedbackRequest(id=9, decision_id=decision_id, **fields), now)


def told(orders: list[Order]) -> tuple[bool, str]:
    """(applied, reason) of the answer, which is the only order."""
    (tell,) = orders
    assert isinstance(tell, Tell)
    assert (tell.client, tell.message["id"], tell.message["status"]) == ("client", 9, "ok")
    assert tell.message["applied"] or tell.message["message"]
    return tell.message["applied"], tell.message.get("reason", "")


def decision(name: str, **fields: Any) -> Decision:
    """Another frontend's, or of another time: all models said class 1."""
    said = dict.fromkeys(MODELS, Predicted.of(np.array([1])))
    return Decision(**{"id": name, "app": "app", "context": "", "created": 1, "kind": "scores", "predictions": said,
                       "shadows": [], "chances": CERTAIN, **fields})  # fmt: skip


def learned(orders: list[Order]) -> Learn:
    (learn,) = orders
    assert isinstance(learn, Learn)
    return learn


def test_an_id_says_whether_this_frontend_gave_it_and_nobody_can_make_one_up() -> None:
    table = DecisionTable("01234567", 2, 60.0, b"secret")
    ids = [table.next_id() for _ in range(3)]
    for name in ids:
        table.keep(decision(name), 0.0)
    table.check()
    assert isinstance(table.find(ids[2], 60.0), Decision)
    other = DecisionTable("76543210", 2, 60.0, b"another").next_id()
    for name, now, code, elsewhere in [
        (ids[0], 1.0, "late", False),  # two more were made after it
        (ids[2], 60.1, "late", False),
        (DecisionTable("01234567", 2, 60.0, b"another").next_id(), 1.0, "unknown", False),
        (ids[2].rpartition("-")[0], 1.0, "unknown", False),
        ("01234567-ff-" + ids[2].rpartition("-")[2], 1.0, "unknown", False),
        ("", 1.0, "unknown", False),
        (other, 1.0, "unknown", True),
    ]:
        found = table.find(name, now)
        assert isinstance(found, NotApplied)
        assert (found.code, found.elsewhere) == (code, elsewhere), name


def test_feedback_is_learned_by_every_model_that_answered_and_then_told() -> None:
    at = Core("exp4", slo_ms=60.0)
    name = at.decide(1, "u", a=1, b=2)
    learn = learned(give(at, name, label=1, context="u"))
    observation = Observation({"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0})
    assert learn == Learn(1, ("app", "u"), learn.policy, tuple(MODELS), observation)
    assert told(give(at, name, label=1)) == (False, "duplicate")
    assert told(at.handle(FeedbackStored(learn.number, StoreOutcome.DONE, fresh(MODELS)))) == (True, "")
    assert at.core.report()["apps"]["app"]["feedback"] == 1
    assert told(give(at, name, label=1)) == (False, "duplicate")


def test_feedback_is_taken_of_the_last_decisions_and_for_a_while() -> None:
    at = Core(decisions_max=2)
    first, second, third = (at.decide(i, now=float(i), a=1, b=1, c=1) for i in range(3))
    assert told(give(at, first, 3.0, label=1)) == (False, "late")
    assert told(give(at, "nonsense", 3.0, label=1)) == (False, "unknown")
    learned(give(at, second, 61.0, label=1))
    assert told(give(at, third, 62.001, label=1)) == (False, "late")


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({}, "bad_feedback", "label"),
        ({"label": 1, "loss": 0.5}, "bad_feedback", "label"),
        ({"label": 4}, "bad_feedback", "label"),
        ({"loss": 1.5}, "bad_feedback", "loss"),
        ({"label": 1, "context": "another"}, "bad_context", "context"),
        ({"label": 1, "context": "x" * 257}, "bad_context", "context"),
    ],
)
def test_feedback_that_cannot_be_understood_is_refused_and_can_be_given_again(
    fields: dict[str, Any], code: str, field: str
) -> None:
    at = Core()
    name = at.decide(a=1, b=1, c=1)
    (refused,) = give(at, name, **fields)
    assert isinstance(refused, Refuse)
    assert (refused.invalid.code, refused.invalid.field, refused.invalid.id) == (code, field, 9)
    learned(give(at, name, loss=0.5))


def test_more_feedback_than_the_store_takes_is_refused() -> None:
    at = Core()
    name = at.decide(a=1, b=1, c=1)
    at.store_is(full=True)
    (refused,) = give(at, name, label=1)
    assert isinstance(refused, Refuse)
    assert (refused.invalid.code, refused.invalid.status) == ("busy", "rejected")
    at.store_is()
    learned(give(at, name, label=1))


def test_held_feedback_is_answered_once_and_counted_when_it_is_applied() -> None:
    at = Core()
    name = at.decide(a=1, b=1, c=1)
    number = learned(give(at, name, label=1)).number
    assert told(at.handle(FeedbackStored(number, StoreOutcome.HELD))) == (False, "store_down")
    assert told(give(at, name, label=1)) == (False, "duplicate")
    assert at.handle(FeedbackStored(number, StoreOutcome.HELD)) == []  # the store was back only for a moment
    assert at.handle(FeedbackStored(number, StoreOutcome.DONE, fresh(MODELS))) == []
    assert at.core.report()["apps"]["app"]["feedback"] == 1


def test_held_feedback_that_cannot_be_applied_in_the_end_is_a_fact_for_the_log() -> None:
    at = Core()
    name = at.decide(a=1, b=1, c=1)
    number = learned(give(at, name, label=1)).number
    at.handle(FeedbackStored(number, StoreOutcome.HELD))
    lost = at.handle(FeedbackStored(number, StoreOutcome.REFUSED, why="the policy raised"))
    assert lost == [HeldFeedbackLost(name, "not_learned", "the policy raised")]
    learned(give(at, name, label=1))


def test_feedback_that_a_policy_refuses_is_told_and_can_be_given_again() -> None:
    at = Core()
    name = at.decide(a=1, b=1, c=1)
    number = learned(give(at, name, label=1)).number
    assert told(at.handle(FeedbackStored(number, StoreOutcome.REFUSED, why="KeyError"))) == (False, "not_learned")
    learned(give(at, name, label=1))


def test_what_teaches_nothing_is_told_with_the_reason() -> None:
    at = Core()
    name = at.decide()
    assert told(give(at, name, label=1)) == (False, "nothing_to_learn")
    numeric, shadows, gone = (at.decisions.next_id() for _ in range(3))
    at.decisions.keep(decision(numeric, kind="numeric"), 0.0)
    at.decisions.keep(decision(shadows, shadows=MODELS), 0.0)
    at.decisions.keep(decision(gone, created=7), 0.0)
    orders = give(at, numeric, label=1)
    assert told(orders) == (False, "nothing_to_learn")
    assert names(orders[0].message["message"], "numeric", "scores")  # type: ignore[union-attr]
    assert told(give(at, shadows, loss=0.5)) == (False, "nothing_to_learn")
    assert told(give(at, gone, label=1)) == (False, "unknown_app")
    learned(give(at, shadows, label=1))


def test_feedback_credits_those_models_that_the_application_still_has() -> None:
    at = Core()
    first, second, third = (at.decide(i, a=1, b=1, c=1) for i in range(3))
    definition = {"name": "app", "models": ["a"], "policy": "exp4"}
    at.handle(table(entry(definition, revision=2)))
    learn = learned(give(at, first, label=1))
    assert (learn.models, learn.observation.losses) == (("a",), {"a": 0.0})
    at.handle(table(entry({**definition, "models": ["b"]}, revision=3)))
    at.handle(FeedbackStored(learn.number, StoreOutcome.DONE, fresh(["a"])))
    assert learned(give(at, second, label=2)).observation.losses == {"b": 1.0}
    at.handle(table())
    assert told(give(at, third, label=1)) == (False, "unknown_app")


# -- decisions that several frontends know of -------------------------------------------------------------------------


def test_a_parked_decision_is_claimed_and_then_learned() -> None:
    at = Core(frontends=2)
    name = at.decide(a=1, b=1, c=1)
    assert give(at, name, label=1) == [Claim(1, name, hold=True)]
    assert told(give(at, name, label=1)) == (False, "duplicate")
    learned(at.handle(DecisionClaimed(1, StoreOutcome.DONE, b"parked")))


def test_a_parked_decision_that_never_reached_the_store_is_this_frontends_own() -> None:
    at = Core(frontends=2)
    name = at.decide(a=1, b=1, c=1)
    give(at, name, label=1)
    learned(at.handle(DecisionClaimed(1, StoreOutcome.DONE, None)))


def test_feedback_that_another_frontend_took_before_is_a_duplicate() -> None:
    at = Core(frontends=2)
    name = at.decide(a=1, b=1, c=1)
    give(at, name, label=1)
    assert told(at.handle(DecisionClaimed(1, StoreOutcome.DONE, b""))) == (False, "duplicate")
    assert told(give(at, name, label=1)) == (False, "duplicate")


def test_a_claim_is_held_while_the_store_is_down() -> None:
    at = Core(frontends=2)
    name = at.decide(a=1, b=1, c=1)
    give(at, name, label=1)
    assert told(at.handle(DecisionClaimed(1, StoreOutcome.HELD))) == (False, "store_down")
    assert told(give(at, name, label=1)) == (False, "duplicate")
    learn = learned(at.handle(DecisionClaimed(1, StoreOutcome.DONE, b"parked")))
    assert at.handle(FeedbackStored(learn.number, StoreOutcome.DONE, fresh(MODELS))) == []


def test_another_frontends_decision_is_adopted_and_corrected_feedback_is_taken() -> None:
    at = Core()
    name = DecisionTable("76543210", 10, 60.0, b"another").next_id()
    assert give(at, name, label=1) == [Claim(1, name, hold=False)]
    known = encoded(decision(name, parked=True, taken="held back"))
    learn = learned(at.handle(DecisionClaimed(1, StoreOutcome.DONE, known), 5.0))
    at.handle(FeedbackStored(learn.number, StoreOutcome.REFUSED, why="no"))
    learned(give(at, name, 65.0, label=1))  # its age counts from here


def test_wrong_feedback_for_another_frontends_decision_is_refused_once_that_is_known() -> None:
    at = Core()
    name = DecisionTable("76543210", 10, 60.0, b"another").next_id()
    give(at, name, label=99)
    (refused,) = at.handle(DecisionClaimed(1, StoreOutcome.DONE, encoded(decision(name))))
    assert isinstance(refused, Refuse)
    assert (refused.invalid.code, refused.invalid.id) == ("bad_feedback", 9)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (DecisionClaimed(1, StoreOutcome.DONE, None), "unknown"),
        (DecisionClaimed(1, StoreOutcome.DONE, b"\xc1"), "unknown"),
        (DecisionClaimed(1, StoreOutcome.REFUSED, why="no disk"), "store_down"),
    ],
)
def test_a_decision_that_nobody_can_read_is_told(event: DecisionClaimed, reason: str) -> None:
    at = Core()
    give(at, DecisionTable("76543210", 10, 60.0, b"another").next_id(), label=1)
    assert told(at.handle(event)) == (False, reason)
