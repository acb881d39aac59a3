"""One model's waiting requests: their order, and the figures kept beside them."""

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controller.core.devices.paged import PagedDevice
from controller.core.queues import COMPACT_AT, ModelQueue, Request
from controller.core.residency import Residency
from mesh import wire
from tests.controller.core.controller_builders import request

INFO = wire.DeviceInfo(name="test", kind="test", pages=1, page_bytes=1, any_batch=True)
SLOT = wire.Slot(segment="1.2.ab", offset=0, generation=1)


def queue_of(*requests: Request) -> ModelQueue:
    queue = ModelQueue()
    for one in requests:
        queue.push(one)
        queue.check()
    return queue


def numbers(requests: list[Request]) -> list[int]:
    return [one.number for one in requests]


def test_requests_come_out_in_order_of_deadline() -> None:
    queue = queue_of(request(1, deadline_s=3.0), request(2, deadline_s=1.0), request(3, deadline_s=2.0))
    assert queue.first().number == 2
    assert numbers(queue.take(3)) == [2, 3, 1]
    queue.check()
    assert len(queue) == 0


def test_equal_deadlines_come_out_in_order_of_arrival() -> None:
    queue = queue_of(
        request(1, deadline_s=2.0), request(2, deadline_s=1.0), request(3, deadline_s=2.0), request(4, deadline_s=1.0)
    )
    assert numbers(queue.take(4)) == [2, 4, 1, 3]


def test_a_request_that_comes_back_goes_ahead_of_later_deadlines_though_others_were_taken() -> None:
    queue = queue_of(*(request(n, deadline_s=float(n)) for n in range(1, 6)))
    (back, _) = queue.take(2)
    queue.push(back)
    queue.check()
    assert numbers(queue.take(4)) == [1, 3, 4, 5]


def test_the_first_of_an_empty_queue_is_an_error() -> None:
    queue = queue_of(request(1))
    queue.take(1)
    with pytest.raises(IndexError):
        queue.first()


def test_before_counts_deadlines_that_are_earlier_and_not_those_that_are_equal() -> None:
    queue = queue_of(*(request(n, deadline_s=float(n)) for n in (1, 2, 2, 3)))
    assert [queue.before(at) for at in (0.999, 1.0, 1.001, 1.999, 2.0, 2.001, 3.0, 3.001)] == [0, 0, 1, 1, 1, 3, 3, 4]
    queue.take(1)
    assert [queue.before(at) for at in (1.0, 2.0, 2.001)] == [0, 0, 2]


def test_a_request_is_removed_from_among_equal_deadlines_by_identity() -> None:
    twins = [request(7, deadline_s=1.0), request(7, deadline_s=1.0), request(7, deadline_s=1.0)]
    queue = queue_of(*twins)
    assert queue.remove(twins[1]) is True
    queue.check()
    assert queue.remove(twins[1]) is False
    queue.check()
    first, second = queue.take(2)
    assert first is twins[0]
    assert second is twins[2]


def test_a_request_that_was_taken_cannot_be_removed() -> None:
    queue = queue_of(request(1, deadline_s=1.0), request(2, deadline_s=1.0))
    (taken,) = queue.take(1)
    assert queue.remove(taken) is False
    assert numbers(queue.take(1)) == [2]


def test_rows_and_weights_are_counted_after_the_skipped_heads() -> None:
    queue = queue_of(
        request(1, deadline_s=1.0, rows=3, weight=2.0),
        request(2, deadline_s=2.0, rows=1),
        request(3, deadline_s=3.0, rows=4, weight=0.5),
    )
    assert [queue.rows_of(count) for count in range(4)] == [0, 3, 4, 8]
    assert [queue.rows_of(count, skip=1) for count in range(3)] == [0, 1, 5]
    assert [queue.weight_of(count) for count in range(4)] == [0.0, 2.0, 3.0, 3.5]
    assert [queue.weight_of(count, skip=2) for count in range(2)] == [0.0, 0.5]


def test_count_for_keeps_requests_whole_and_does_not_jump_over_one_that_does_not_fit() -> None:
    queue = queue_of(
        request(1, deadline_s=1.0, rows=2), request(2, deadline_s=2.0, rows=4), request(3, deadline_s=3.0, rows=1)
    )
    assert [queue.count_for(rows) for rows in (1, 2, 3, 5, 6, 7, 9)] == [0, 1, 1, 1, 2, 3, 3]
    assert [queue.count_for(rows, skip=1) for rows in (3, 4, 5)] == [0, 1, 2]


def test_count_for_of_single_rows_is_bound_by_what_waits() -> None:
    queue = queue_of(*(request(n, deadline_s=float(n)) for n in range(4)))
    assert [queue.count_for(rows) for rows in (0, 3, 4, 5)] == [0, 3, 4, 4]
    assert [queue.count_for(rows, skip=3) for rows in (1, 2)] == [1, 1]


def test_the_lists_are_cut_once_many_heads_have_been_taken() -> None:
    queue = queue_of(*(request(n, deadline_s=float(n)) for n in range(COMPACT_AT + 10)))
    queue.take(COMPACT_AT - 1)
    assert len(queue.requests) == COMPACT_AT + 10
    queue.take(1)
    queue.check()
    assert len(queue.requests) == len(queue.deadlines) == len(queue) == 10
    assert queue.first().number == COMPACT_AT


def test_a_queue_whose_last_request_is_removed_keeps_none_of_those_that_were_taken() -> None:
    first, second = request(1, deadline_s=1.0), request(2, deadline_s=2.0)
    queue = queue_of(first, second)
    assert queue.take(1) == [first]
    assert queue.remove(second)
    assert queue.requests == []
    queue.check()


class QueueMachine(RuleBasedStateMachine):
    """The queue against a list that is sorted anew each time. Few deadlines: ties are the rule."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = ModelQueue()
        self.model: list[Request] = []
        self.gone: list[Request] = []
        self.count = 0

    @rule(
        deadline=st.integers(0, 5), rows=st.sampled_from([1, 1, 1, 2, 5]), weight=st.sampled_from([1.0, 1.0, 0.25, 3.0])
    )
    def push(self, deadline: int, rows: int, weight: float) -> None:
        self.count += 1
        self._push(request(self.count, deadline_s=float(deadline), rows=rows, weight=weight))

    @rule(deadline=st.integers(0, 5), host=st.sampled_from(["", "a", "b"]), near=st.booleans(), size=st.integers(0, 9))
    def push_kept(self, deadline: int, host: str, near: bool, size: int) -> None:
        self.count += 1
        kept = wire.Kept(sizes=(size, 1), slot=SLOT if near else None)
        self._push(request(self.count, deadline_s=float(deadline), kept=kept, host=host))

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def push_back(self, data: Any) -> None:
        self._push(self.gone.pop(data.draw(st.integers(0, len(self.gone) - 1))))

    @rule(data=st.data())
    def take(self, data: Any) -> None:
        count = data.draw(st.integers(0, len(self.model)))
        taken = self.queue.take(count)
        assert [id(one) for one in taken] == [id(one) for one in self.model[:count]]
        del self.model[:count]
        self.gone += taken

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        one = self.model.pop(data.draw(st.integers(0, len(self.model) - 1)))
        assert self.queue.remove(one)
        self.gone.append(one)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def remove_what_is_gone(self, data: Any) -> None:
        assert not self.queue.remove(data.draw(st.sampled_from(self.gone)))

    @rule(rows=st.integers(0, 12), data=st.data())
    def ask(self, rows: int, data: Any) -> None:
        skip = data.draw(st.integers(0, len(self.model)))
        rest = self.model[skip:]
        fit = 0
        while fit < len(rest) and sum(one.rows for one in rest[: fit + 1]) <= rows:
            fit += 1
        assert self.queue.count_for(rows, skip) == fit
        count = data.draw(st.integers(0, len(rest)))
        assert self.queue.rows_of(count, skip) == sum(one.rows for one in rest[:count])
        assert self.queue.weight_of(count, skip) == sum(one.weight for one in rest[:count])

    @rule(deadline=st.sampled_from([-0.5, 0.0, 2.0, 2.5, 5.0, 5.5]))
    def ask_before(self, deadline: float) -> None:
        assert self.queue.before(deadline) == sum(one.deadline_s < deadline for one in self.model)

    def _push(self, one: Request) -> None:
        self.queue.push(one)
        self.model.append(one)
        self.model.sort(key=lambda other: other.deadline_s)  # stable: ties in order of arrival

    @invariant()
    def agrees(self) -> None:
        self.queue.check()
        assert len(self.queue) == len(self.model)
        assert self.queue.rows == sum(one.rows for one in self.model)
        for host in ("", "a", "b"):
            for reads_slots in (False, True):
                device = PagedDevice("w1", INFO, Residency(1, 1), host=host, reads_slots=reads_slots)
                assert device.far_waiting(self.queue) == device.far_bytes(self.model)
        if self.model:
            assert self.queue.first() is self.model[0]


TestQueueMachine = QueueMachine.TestCase
