"""Questions to applications: events in, orders out."""

import numpy as np
import pytest

from frontend.core import protocol
from frontend.core.applications.messages import (
    Ask,
    ClientGone,
    Failure,
    ModelAnswered,
    ModelFailed,
    Order,
    Park,
    PolicyRaised,
    QuestionCancelled,
    ReadState,
    Refuse,
    SendAnswer,
    StateRead,
    Withdraw,
)
from frontend.core.protocol import ClientAnswer, Error
from selection.base import fresh
from tests.frontend.core.applications.cores import ASKER, DEFAULT, MODELS, Core, X, asks, entry, scores, table

OWN = "tests.selection.own_policy:"
BUSY = Failure("rejected", "overload", "no", 120.0, 500.0)


def answer_in(orders: list[Order]) -> ClientAnswer:
    """The answer, which is the last order."""
    assert isinstance(orders[-1], SendAnswer)
    return orders[-1].answer


def test_all_models_are_asked_at_once_and_the_last_one_to_answer_makes_the_answer() -> None:
    at = Core(slo_ms=60.0)
    orders = at.infer(7, now=100.0, weight=2.0)
    assert orders == [
        ReadState(("app", "")),
        *(Ask(i, model, 1, [X], 100.0, 100.06, 2.0, True, ASKER) for i, model in enumerate(MODELS, 1)),
    ]
    assert at.core.holds("client", 7)
    assert at.handle(ModelAnswered(1, [scores(1)]), 100.01) == []
    assert at.handle(ModelAnswered(2, [scores(2)], cached=True), 100.02) == []
    (sent,) = at.handle(ModelAnswered(3, [scores(1)]), 100.03)
    assert isinstance(sent, SendAnswer)
    assert (sent.client, sent.framed, sent.received_s) == ("client", False, 100.0)
    ((spec, array),) = sent.outputs
    assert (spec.name, array.argmax()) == ("y", 1)
    assert sent.answer == ClientAnswer(
        id=7, status="ok", app="app", cached=False, default_used=False, confidence=pytest.approx(2 / 3),  # type: ignore[arg-type]
        margin=sent.answer.margin, disagreement=pytest.approx(1 / 3), models_used=MODELS,  # type: ignore[arg-type]
        decision_id=sent.answer.decision_id,
    )  # fmt: skip
    assert not at.core.holds("client", 7)
    assert len(at.core) == 0


def test_an_answer_is_cached_only_if_every_part_of_it_is() -> None:
    at = Core()
    for first, cached in ((False, False), (True, True)):
        numbers = [order.number for order in at.infer() if isinstance(order, Ask)]
        orders: list[Order] = []
        for number, known in zip(numbers, (first, True, True), strict=True):
            orders = at.handle(ModelAnswered(number, [scores(1)], cached=known))
        assert answer_in(orders).cached is cached


def test_what_is_there_when_the_time_is_up_is_answered_and_the_missing_lower_the_confidence() -> None:
    at = Core(slo_ms=60.0)
    asked = at.infer(now=1.0)
    assert at.say(asked, 1.01, b=2) == []
    assert at.core.wake_at() == pytest.approx(1.058)
    due_s = at.core.wake_at() or 0.0
    assert at.wake(due_s - 1e-6) == []
    answer = answer_in(at.wake(due_s))
    assert (answer.status, answer.models_used) == ("ok", ["b"])
    assert answer.confidence == pytest.approx(1 / 3)
    assert at.core.report()["apps"]["app"]["partial"] == 1
    assert at.core.wake_at() is None
    assert at.say(asked, 1.1, a=1, c=1) == []  # too late


@pytest.mark.parametrize(("slo_ms", "margin_s"), [(20.0, 0.001), (40.0, 0.002), (60.0, 0.002)])
def test_the_margin_for_combining_is_a_share_of_the_budget_and_bounded(slo_ms: float, margin_s: float) -> None:
    at = Core()
    at.infer(slo_ms=slo_ms)
    assert at.core.wake_at() == pytest.approx(slo_ms / 1e3 - margin_s)


def test_a_policy_that_learns_waits_for_the_state_of_its_context_but_not_for_long() -> None:
    at = Core("exp4", slo_ms=10_000.0)
    assert at.infer(1, now=0.0, context="u") == [ReadState(("app", "u"))]
    assert at.infer(2, now=0.005, context="u") == []
    assert at.core.wake_at() == pytest.approx(0.02)
    assert asks(at.read(fresh(MODELS), "u", 0.01)) == MODELS * 2
    assert asks(at.infer(3, now=0.02, context="u")) == MODELS
    assert at.infer(4, now=1.0) == [ReadState(("app", ""))]
    assert at.wake(1.0199) == []
    assert asks(at.wake(1.02)) == MODELS
    assert at.read(None, "", 1.03) == []


def test_a_short_budget_waits_half_of_itself_for_the_state() -> None:
    at = Core("exp4")
    at.infer(slo_ms=10.0)
    assert at.core.wake_at() == pytest.approx(0.005)


def test_a_state_that_was_read_serves_for_a_quarter_of_a_second_and_is_then_read_beside_the_serving() -> None:
    at = Core("exp4")
    at.infer(1)
    at.read(None, now=0.01)
    assert asks(at.infer(2, now=0.25)) == MODELS
    assert at.infer(3, now=0.2599)[0] != ReadState(("app", ""))
    orders = at.infer(4, now=0.26)
    assert orders[0] == ReadState(("app", ""))
    assert asks(orders) == MODELS


def test_a_store_that_is_down_or_overloaded_delays_nothing() -> None:
    at = Core("exp4")
    at.store_is("no disk")
    orders = at.infer(1)
    assert orders[0] == ReadState(("app", ""))
    assert asks(orders) == MODELS
    assert at.core.report()["learning"] == "paused: no disk"
    at.store_is(full=True)
    assert asks(at.infer(2, context="other")) == MODELS
    assert at.core.report()["learning"] == "on"


def test_a_read_that_fails_lets_the_question_go_on() -> None:
    at = Core("exp4")
    at.infer()
    assert asks(at.handle(StateRead(("app", ""), None, None, "no disk"), 0.001)) == MODELS


def test_without_any_answer_the_default_is_answered_with_the_reason_for_every_row() -> None:
    at = Core(default=DEFAULT, slo_ms=60.0)
    rows = protocol.RequestTensor("x", "float32", [2, 2], memoryview(X * 2))
    at.ask(protocol.InferRequest(id=1, inputs=[rows], app="app"))
    (sent,) = at.wake(0.06)
    assert isinstance(sent, SendAnswer)
    assert sent.outputs[0][1].tolist() == [[0.25] * 4] * 2
    answer = sent.answer
    assert (answer.status, answer.default_used, answer.models_used, answer.cached) == ("ok", True, [], False)
    assert answer.error is not None
    assert answer.error.code == "deadline"
    assert at.core.report()["apps"]["app"]["defaults"] == {"deadline": 1}


def test_without_a_default_the_reason_is_the_answer() -> None:
    at = Core(slo_ms=60.0)
    at.infer(1)
    late = answer_in(at.wake(0.06))
    assert late.error is not None
    assert (late.status, late.error.code) == ("timed_out", "deadline")
    orders: list[Order] = []
    for order in at.infer(2, now=1.0):
        if isinstance(order, Ask):
            orders = at.handle(ModelFailed(order.number, BUSY), 1.0)
    rejected = answer_in(orders)
    assert (rejected.status, rejected.predicted_ms) == ("rejected", 120.0)
    assert rejected.error == Error("overload", "no", None, 500.0)
    assert at.core.report()["apps"]["app"]["refused"] == 2


def test_an_answer_that_is_not_sure_enough_gives_way_to_the_default() -> None:
    at = Core(default=DEFAULT, confidence_min=0.9)
    answer = answer_in(at.say(at.infer(), a=1, b=2, c=1))
    assert answer.error is not None
    assert (answer.default_used, answer.error.code, answer.models_used) == (True, "low_confidence", MODELS)
    assert answer.confidence == pytest.approx(2 / 3)
    counts = at.core.report()["apps"]["app"]
    assert (counts["defaults"], counts["disagreed"], counts["answered"]) == ({"low_confidence": 1}, 1, 0)


def test_numbers_that_are_not_finite_are_no_answer() -> None:
    at = Core()
    asked = at.infer()
    numbers = {order.model: order.number for order in asked if isinstance(order, Ask)}
    assert at.handle(ModelAnswered(numbers["a"], [np.full(4, np.nan, np.float32).tobytes()])) == []
    assert answer_in(at.say(asked, b=3, c=3)).models_used == ["b", "c"]


def test_a_shadow_is_asked_first_and_never_waited_for() -> None:
    at = Core(policy_args={"shadow": ["c"]})
    asked = at.infer()
    assert asks(asked) == ["c", "a", "b"]
    answer = answer_in(at.say(asked, a=1, b=1))
    assert answer.models_used == ["a", "b"]
    found = at.decisions.find(str(answer.decision_id), 0.0)
    assert at.say(asked, c=3) == []
    assert list(found.predictions) == ["a", "b", "c"]  # type: ignore[union-attr]


def test_models_that_cannot_be_asked_are_left_out_and_if_all_cannot_that_is_the_answer() -> None:
    at = Core()
    at.handle(table(at.entry, odd=("b",), unprepared=("c",)))
    asked = at.infer(1)
    assert asks(asked) == ["a"]
    answer = answer_in(at.say(asked, a=1))
    assert (answer.models_used, answer.confidence) == (["a"], pytest.approx(1 / 3))
    single = Core("single", policy_args={"model": "c"})
    single.handle(table(single.entry, unprepared=("c",)))
    refused = answer_in(single.infer())
    assert refused.error is not None
    assert (refused.status, refused.error.code, refused.error.retry_after_ms) == ("rejected", "not_ready", 1000.0)


def test_a_policy_that_raises_or_gives_what_cannot_be_used_fails_that_request() -> None:
    at = Core(OWN + "Crashes", allow=(OWN,))
    assert at.infer(1) == [ReadState(("app", ""))]
    raised, sent = at.read()
    assert isinstance(raised, PolicyRaised)
    assert (raised.app, "out of ideas" in raised.why) == ("app", True)
    answer = answer_in([sent])
    assert answer.error is not None
    assert (answer.status, answer.error.code, answer.error.message) == ("failed", "policy_error", raised.why)
    at = Core(OWN + "Shapeless", allow=(OWN,))
    raised, sent = at.say(at.infer(1) + at.read(), b=1)
    assert isinstance(raised, PolicyRaised)
    assert answer_in([sent]).error == Error("policy_error", raised.why)


def test_a_decision_is_parked_where_other_frontends_may_get_its_feedback_while_the_store_takes_it() -> None:
    at = Core(frontends=2)
    parked, sent = at.say(at.infer(), a=1, b=1, c=1)
    assert isinstance(parked, Park)
    assert parked.decision == answer_in([sent]).decision_id
    at.store_is(full=True)
    assert len(at.say(at.infer(2), a=1, b=1, c=1)) == 1


def test_equal_seeds_draw_equal_models() -> None:
    def drawn(seed: int) -> list[str]:
        at = Core("exp3", seed=seed)
        first = at.infer(0) + at.read()
        return asks(first) + [model for i in range(1, 20) for model in asks(at.infer(i))]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_core_that_stops_answers_what_is_open() -> None:
    at = Core("exp4")
    at.infer(1)  # waits for its state
    asked = at.infer(2) + at.read()
    orders = at.core.stop(0.5)
    assert [answer_in([order]).id for order in orders] == [1, 2]
    assert [answer_in([order]).status for order in orders] == ["failed", "failed"]
    assert [error.code for order in orders if (error := answer_in([order]).error)] == ["stopping", "stopping"]
    assert len(at.core) == 0
    assert at.say(asked, a=1) == []


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"context": "x" * 257}, "bad_context", "context"),
        ({"context": "a\nb"}, "bad_context", "context"),
        ({"version": "1"}, "bad_target", "version"),
        ({"slo_ms": -1.0}, "bad_slo", "slo_ms"),
        ({"slo_ms": 60_001.0}, "bad_slo", "slo_ms"),
        ({"weight": 0.0}, "bad_weight", "weight"),
        ({"model": "a"}, "bad_target", "model"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(fields: dict[str, object], code: str, field: str) -> None:
    at = Core()
    (refused,) = at.infer(5, **fields)
    assert isinstance(refused, Refuse)
    assert (refused.invalid.code, refused.invalid.field, refused.invalid.id) == (code, field, 5)
    assert len(at.core) == 0


def test_an_application_that_is_not_there_or_not_prepared_is_named_by_its_code() -> None:
    at = Core()
    at.handle(table(entry({"name": "other", "models": ["a"]})))
    (refused,) = at.infer()
    assert isinstance(refused, Refuse)
    assert (refused.invalid.code, refused.invalid.status) == ("unknown_app", "invalid")
    at.handle(table(at.entry, unprepared=tuple(MODELS)))
    (refused,) = at.infer()
    assert isinstance(refused, Refuse)
    assert (refused.invalid.code, refused.invalid.status) == ("not_ready", "rejected")


# -- clients that wait no longer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [False, True])
def test_a_question_that_its_client_ends_is_answered_and_its_models_are_not_needed_any_more(gone: bool) -> None:
    at = Core()
    at.infer(1, now=100.0)
    at.infer(2, now=100.0)
    at.read(None, "", 100.0)
    at.handle(ModelAnswered(1, [scores(1)]), 100.01)
    orders = at.handle(ClientGone("client") if gone else QuestionCancelled("client", 1), 100.02)
    told = [order for order in orders if isinstance(order, SendAnswer)]
    withdrawn = [order.number for order in orders if isinstance(order, Withdraw)]
    assert [(sent.answer.id, sent.gone) for sent in told] == [(1, gone), (2, gone)][: 1 + gone]
    assert withdrawn == [2, 3, 4, 5, 6][: 5 if gone else 2]
    assert all(sent.answer.error == Error("cancelled", "cancelled by its client") for sent in told)
    assert all((sent.answer.status, sent.answer.decision_id) == ("failed", None) for sent in told)
    assert len(at.core) == 1 - gone
    assert at.core.report()["apps"]["app"]["cancelled"] == len(told)
    assert at.wake(200.0) == [] or not gone
    assert at.handle(QuestionCancelled("client", 1), 200.0) == at.handle(ClientGone("client"), 200.0) == []


def test_a_question_that_waits_for_its_state_can_be_ended_too() -> None:
    at = Core("exp4")
    assert asks(at.infer(1, now=100.0)) == []
    (sent,) = at.handle(QuestionCancelled("client", 1), 100.001)
    assert isinstance(sent, SendAnswer)
    assert at.read(None, "", 100.002) == []
    assert at.wake(200.0) == []


def test_what_shadows_say_of_a_question_that_was_ended_is_not_needed_either() -> None:
    at = Core("single", policy_args={"model": "a", "shadow": ["b"]})
    numbers = [order.number for order in at.infer(1) if isinstance(order, Ask)]
    orders = at.handle(QuestionCancelled("client", 1))
    assert sorted(order.number for order in orders if isinstance(order, Withdraw)) == sorted(numbers)
