"""Requests and the cache together: one evaluation for identical calls, and no call's end affects another's."""

import pytest

from frontend.core.cache import PredictionCache
from frontend.core.evaluations import Evaluations
from frontend.core.requests import Call, RequestTable
from tests.frontend.core.test_requests import call_of

INPUT = [b"in"]


class Twins:
    """Calls with the same input, entered one after the other at one instant with these budgets."""

    def __init__(self, *budgets_s: float) -> None:
        self.table = RequestTable(100, bytes_max=1 << 20)
        self.cache: PredictionCache[Call] = PredictionCache(1 << 20)
        self.both = Evaluations(self.table, self.cache)
        self.calls = [call_of(number, budget_s=budget_s) for number, budget_s in enumerate(budgets_s)]
        self.entered = [self.both.enter(call, INPUT, cached=True) for call in self.calls]

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
        self.table.check()
        self.cache.check()


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


def test_when_a_leader_s_time_is_up_those_with_more_are_evaluated_and_answered() -> None:
    at = Twins(1.0, 1.0, 4.0, 4.0)
    expired = at.table.expire(at.calls[0].deadline_s)
    assert [call.id for call in expired] == [0, 1]
    submitted = [part for call in expired for part in at.both.ended(call)]
    assert [part.call.id for part in submitted] == [2]
    completed = at.table.outputs(submitted[0].number, [b"out"], 1, 0.1, "gpu:0")
    assert completed is not None
    assert [call.id for call in at.both.succeeded(completed, [b"out"], True)] == [3]
    assert len(at.table) == 0
    again = at.both.enter(call_of(9), INPUT, cached=True)
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
    assert len(at.both.enter(past, INPUT, cached=False).parts) == 1
    assert list(at.both.ended(past)) == []
    assert at.evaluated() == [0, 5]
