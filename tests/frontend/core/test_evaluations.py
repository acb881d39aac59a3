"""Requests and the cache together: one evaluation for identical calls, and no call's end affects another's."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from frontend.core.cache import PredictionCache
from frontend.core.evaluations import Evaluations, GivenUp
from frontend.core.open_calls import Call, CallPart
from frontend.core.requests import RequestTable
from tests.frontend.core.test_requests import call_of

INPUT = [b"in"]
PICK = st.integers(0, 10_000)
CLIENTS = st.sampled_from(["ann", "ben", "cat"])
CONTROLLERS = st.sampled_from("ab")
ROWS = st.sampled_from([1, 1, 4, 9])
MOSTLY = st.sampled_from([True, True, True, False])


class Twins:
    """Calls with the same input, entered one after the other at one instant with these budgets."""

    def __init__(self, *budgets_s: float) -> None:
        self.table = RequestTable(200_000, bytes_max=1 << 20)
        self.cache: PredictionCache[Call] = PredictionCache(1 << 20)
        self.both = Evaluations(self.table, self.cache)
        self.calls = [call_of(number, budget_s=budget_s) for number, budget_s in enumerate(budgets_s)]
        self.entered = [self.both.enter(call, INPUT) for call in self.calls]

    def evaluated(self) -> list[int]:
        """Ids of the calls that are being evaluated."""
        return [int(part.call.id) for part in self.table.unsubmitted()]

    def refuse(self, call: Call) -> list[int]:
        """Refuses the call. Returns the ids of the calls that are submitted in its place."""
        part = call.parts[0]
        self.table.submitted(part, "controller-1")
        assert self.table.refused(part.number, part.attempt) is call
        return [int(other.call.id) for other in self.both.ended(call)]

    def check(self) -> None:
        self.both.check()


def test_a_twin_with_less_time_is_evaluated_itself() -> None:
    at = Twins(5.0, 1.0, 2.0, 7.0)
    assert at.evaluated() == [0, 1]
    at.check()


def test_when_a_leader_is_refused_the_most_urgent_of_those_that_waited_takes_its_place() -> None:
    at = Twins(1.0, 9.0, 2.0, 3.0)
    assert at.evaluated() == [0]
    assert at.refuse(at.calls[0]) == [2]
    assert at.evaluated() == [2]
    at.check()
    assert at.refuse(at.calls[2]) == [3]
    assert at.refuse(at.calls[3]) == [1]
    assert at.refuse(at.calls[1]) == []
    assert len(at.table) == 0
    at.check()


def test_when_a_leader_failed_by_itself_all_that_waited_for_it_have_failed_too() -> None:
    """Their inputs are the same: to try each of them would repeat the failure as often."""
    at = Twins(1.0, 9.0, 2.0, 3.0, 0.5)
    part = at.calls[0].parts[0]
    at.table.submitted(part, "controller-1")
    assert at.table.refused(part.number, part.attempt) is at.calls[0]
    assert [call.id for call in at.both.failed(at.calls[0])] == [1, 2, 3]
    at.check()
    assert at.evaluated() == [4]
    assert list(at.both.ended(at.calls[0])) == []
    later = at.both.enter(call_of(9), INPUT)
    assert later.outputs is None, "a failure is not remembered"


def test_when_a_leader_s_time_is_up_those_with_more_are_evaluated_and_answered() -> None:
    at = Twins(1.0, 1.0, 4.0, 4.0)
    (part,) = at.calls[0].parts
    at.table.submitted(part, "controller-1")
    expired = at.both.expire(at.calls[0].deadline_s)
    assert [(given_up.call.id, given_up.reached, list(given_up.needless)) for given_up in expired] == [
        (0, True, []),
        (1, True, []),
    ]
    assert at.table.unsubmitted() == []
    completed = at.table.outputs(part.number, [b"out"], 1, 0.1, "gpu:0")
    assert completed is not None
    assert [call.id for call in at.both.succeeded(completed, [b"out"], True)] == [3]
    assert len(at.table) == 0
    again = at.both.enter(call_of(9), INPUT)
    assert again.outputs == (b"out",)
    at.check()


@pytest.mark.parametrize("remember", [True, False])
def test_what_came_of_a_version_that_was_replaced_is_answered_and_not_remembered(remember: bool) -> None:
    at = Twins(1.0, 1.0)
    at.cache.keep_only([] if not remember else [at.calls[0].spec.edition(at.calls[0].ref)])
    completed = at.table.outputs(at.calls[0].parts[0].number, [b"out"], 1, 0.1, "gpu:0")
    assert completed is not None
    assert [call.id for call in at.both.succeeded(completed, [b"out"], remember)] == [1]
    assert len(at.cache) == remember
    at.check()


def test_a_call_past_the_cache_neither_waits_nor_is_waited_for() -> None:
    at = Twins(1.0)
    past = call_of(5)
    assert len(at.table.open(past, INPUT)) == 1
    assert list(at.both.ended(past)) == []
    assert at.evaluated() == [0, 5]


# -- calls that are given up ------------------------------------------------------------------------------------------


def ids(given_up: Iterable[GivenUp | None]) -> list[Any]:
    return [each.call.id for each in given_up if each is not None]


def test_what_one_of_a_joined_pair_still_wants_goes_on_where_it_is() -> None:
    at = Twins(1.0, 1.0, 2.0)
    (part,) = at.calls[0].parts
    at.table.submitted(part, "controller-1")
    given_up = at.both.cancel("ann", 0)
    at.check()
    assert given_up is not None
    assert (given_up.call.answered, list(given_up.needless), given_up.reached) == (True, [], True)
    assert (at.table.unsubmitted(), part.controller, part.attempt) == ([], "controller-1", 0)
    assert (part.call, at.calls[1].parts) == (at.calls[1], [part])
    assert at.table.bytes_held == len(INPUT[0])
    assert list(at.both.cancel("ann", 2).needless) == []  # type: ignore[union-attr]
    last = at.both.cancel("ann", 1)
    assert last is not None
    assert list(last.needless) == [part]
    at.check()
    assert (len(at.table), at.table.bytes_held, at.both.cancel("ann", 1)) == (0, 0, None)


def test_a_refusal_of_what_was_asked_for_another_call_does_not_refuse_those_who_have_it_now() -> None:
    """The other call's budget was refused: what took its place is asked for again, with its own."""
    at = Twins(1.0, 5.0, 9.0)
    (part,) = at.calls[0].parts
    at.table.submitted(part, "controller-1")
    at.both.cancel("ann", 0)
    assert at.table.refused_before(part.number, part.attempt - 1) is None
    assert at.table.refused_before(part.number, part.attempt) is part
    assert at.table.unsubmitted() == [part]
    at.check()
    at.table.submitted(part, "controller-1")
    assert at.table.refused_before(part.number, part.attempt) is None
    assert at.table.refused(part.number, part.attempt) is at.calls[1]
    assert [other.call.id for other in at.both.ended(at.calls[1])] == [2]
    at.check()


def test_parts_of_a_split_call_are_handed_over_with_the_outputs_that_are_there() -> None:
    table, cache = RequestTable(100, bytes_max=1 << 20), PredictionCache[Call](1 << 20)
    both = Evaluations(table, cache)
    calls = [call_of(number, rows=9) for number in range(2)]
    for call in calls:
        both.enter(call, [bytes(18)])
    first, second, third = calls[0].parts
    table.outputs(second.number, [b"b"], 4, 0.1, "gpu:0")
    both.cancel("ann", 0)
    both.check()
    table.outputs(first.number, [b"a"], 4, 0.1, "gpu:0")
    completed = table.outputs(third.number, [b"c"], 4, 0.1, "gpu:0")
    assert completed is not None
    assert (completed.call, completed.joined()[0]) == (calls[1], [b"abc"])
    assert both.succeeded(completed, completed.joined()[0], True) == []
    assert table.bytes_held == 0
    both.check()


def test_a_connection_that_is_gone_hands_over_what_others_wait_for_and_takes_the_rest_along() -> None:
    table, cache = RequestTable(100, bytes_max=1 << 20), PredictionCache[Call](1 << 20)
    both = Evaluations(table, cache)
    shared = [call_of(number, client=client) for number, client in enumerate(("ann", "ann", "ben", "ann", "ben"))]
    for call in shared:
        both.enter(call, [b"same"])
    alone = call_of(9, client="ann")
    both.enter(alone, [b"other"])
    gone = both.client_gone("ann")
    both.check()
    assert sorted(ids(gone)) == [0, 1, 3, 9]
    assert [part.call for each in gone for part in each.needless] == [alone]
    assert [(part.call.client, part.call.id) for part in table.unsubmitted()] == [("ben", 2)]
    assert both.client_gone("ann") == both.client_gone("nobody") == []
    assert len(table) == 2


@pytest.mark.parametrize("submitted", [True, False])
def test_whether_a_controller_had_the_call_is_known_of_those_that_only_waited_for_it_too(submitted: bool) -> None:
    at = Twins(1.0, 1.0)
    if submitted:
        at.table.submitted(at.calls[0].parts[0], "controller-1")
    assert [given_up.reached for given_up in at.both.expire(at.calls[0].deadline_s)] == [submitted] * 2
    at.check()


def test_thousands_that_wait_for_one_evaluation_leave_one_after_the_other_in_no_time() -> None:
    """Each hands over to the next: looking through all of them every time would take half an hour."""
    at = Twins(*(1.0 + number for number in range(100_000)))
    for number in range(99_999):
        at.both.cancel("ann", number)
    at.check()
    assert at.evaluated() == [99_999]


class AnyOrder(RuleBasedStateMachine):
    """Cancels, closed connections, outputs, refusals, deadlines and lost controllers, over calls that share inputs.

    `held` is what controllers believe to be wanted: after every event it is exactly what somebody waits for.
    """

    @initialize()
    def begin(self) -> None:
        self.table = RequestTable(10_000, bytes_max=1 << 20)
        self.cache: PredictionCache[Call] = PredictionCache(1 << 20)
        self.both = Evaluations(self.table, self.cache)
        self.now = 100.0
        self.calls: list[Call] = []
        self.answers: dict[int, str] = {}
        self.held: dict[int, tuple[str, int]] = {}  # {part: (controller, attempt)}

    @rule(client=CLIENTS, rows=ROWS, row=st.integers(0, 1), budget_s=st.sampled_from([0.5, 1.0, 3.0]), cached=MOSTLY)
    def ask(self, client: str, rows: int, row: int, budget_s: float, cached: bool) -> None:
        call = call_of(len(self.calls), client=client, rows=rows, now=self.now, budget_s=budget_s)
        self.calls.append(call)
        tensors = [bytes([row]) * 2 * rows]
        if not cached:
            for part in self.table.open(call, tensors):
                self._submit(part)
            return
        entered = self.both.enter(call, tensors)
        if entered.outputs is not None:
            self._end(call, "ok")
        for part in entered.parts:
            self._submit(part)

    @rule(pick=PICK)
    def outputs(self, pick: int) -> None:
        for number in self._pick(pick):
            del self.held[number]
            completed = self.table.outputs(number, [b"%d" % number], 4, 0.01, "gpu:0")
            if completed is not None:
                for call in [completed.call, *self.both.succeeded(completed, completed.joined()[0], pick % 2 == 0)]:
                    self._end(call, "ok")

    @rule(pick=PICK)
    def malformed(self, pick: int) -> None:
        for number in self._pick(pick):
            call = self.table.end_if_malformed(number, [])
            assert call is not None
            self._refused(call, "malformed")

    @rule(pick=PICK, behind=st.integers(0, 1))
    def refuse(self, pick: int, behind: int) -> None:
        for number in self._pick(pick):
            attempt = self.held[number][1] - behind
            if not behind:
                del self.held[number]
            again = self.table.refused_before(number, attempt)
            if again is not None:
                self._submit(again)
                continue
            call = self.table.refused(number, attempt)
            assert (call is None) is bool(behind)
            if call is not None:
                self._refused(call, "refused")

    @rule(pick=PICK)
    def fail_alone(self, pick: int) -> None:
        for number in self._pick(pick):
            call = self.table.refused(number, self.held[number][1])
            assert call is not None
            for waited in self.both.failed(call):
                self._end(waited, "failed, too")
            self._refused(call, "failed")

    @rule(controller=CONTROLLERS)
    def lose(self, controller: str) -> None:
        self.held = {number: at for number, at in self.held.items() if at[0] != controller}
        for part in self.table.controller_lost(controller):
            self._submit(part)

    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        if self.calls:
            call = self.calls[pick % len(self.calls)]
            was_open = not call.answered
            given_up = self.both.cancel(call.client, call.id)
            assert (given_up is not None) is was_open
            self._given_up([given_up] if given_up is not None else [], "cancelled")

    @rule(client=CLIENTS)
    def gone(self, client: str) -> None:
        self._given_up(self.both.client_gone(client), "gone")
        assert not any(call.client == client and not call.answered for call in self.calls)

    @rule(by_s=st.sampled_from([0.0, 0.25, 0.5, 2.0]))
    def wait(self, by_s: float) -> None:
        self.now += by_s
        self._given_up(self.both.expire(self.now), "late")

    @rule()
    def stop(self) -> None:
        for call in self.both.close_all():
            assert list(self.both.ended(call)) == []
            self._end(call, "stopped")
        self.held.clear()

    def _pick(self, pick: int) -> list[int]:
        numbers = list(self.held)
        return [numbers[pick % len(numbers)]] if numbers else []

    def _submit(self, part: CallPart) -> None:
        controller = "ab"[part.number % 2]
        self.held[part.number] = (controller, self.table.submitted(part, controller))

    def _refused(self, call: Call, how: str) -> None:
        for part in call.parts:
            self.held.pop(part.number, None)
        self._end(call, how)
        for part in self.both.ended(call):
            self._submit(part)

    def _given_up(self, given_up: Iterable[GivenUp], how: str) -> None:
        for each in given_up:
            self._end(each.call, how)
            for part in each.needless:
                self.held.pop(part.number, None)

    def _end(self, call: Call, how: str) -> None:
        assert call.answered
        assert call.id not in self.answers
        self.answers[int(call.id)] = how

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "both"):
            return
        self.both.check()
        assert self.answers.keys() == {call.id for call in self.calls if call.answered}
        wanted = {p.number for call in self.calls if not call.answered for p in call.parts if p.outputs is None}
        assert self.held.keys() == wanted
        assert not any(call.flight for call in self.calls if call.answered)


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)
TestAnyOrder = AnyOrder.TestCase
