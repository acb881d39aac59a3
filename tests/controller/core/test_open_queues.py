"""Waiting requests with extents: what they cost, and whose start is due first."""

import math
import random

import pytest

from controller.core.queues import COMPACT_AT, ModelQueue, Request, rank_of
from tests.controller.core.controller_builders import request


def sized(number: int, *, deadline_s: float, share_s: float, latest_s: float, rows: int = 1) -> Request:
    one = request(number, deadline_s=deadline_s, extents=(8,), rows=rows)
    one.share_s, one.rank, one.latest_s = share_s * rows, rank_of(share_s), latest_s
    return one


def test_who_has_to_start_first_need_not_be_the_first_of_the_queue() -> None:
    queue = ModelQueue()
    for one in (
        sized(1, deadline_s=1.0, share_s=0.01, latest_s=0.9),
        sized(2, deadline_s=2.0, share_s=1.0, latest_s=0.5),
        sized(3, deadline_s=3.0, share_s=0.01, latest_s=2.9),
    ):
        queue.push(one)
    queue.check()
    assert queue.first().number == 1
    assert queue.first_start_s() == 0.5
    assert [one.number for one in queue.starts_before(0.95)] == [2, 1]


def test_a_start_that_was_put_off_is_due_then() -> None:
    queue = ModelQueue()
    one = sized(1, deadline_s=2.0, share_s=0.1, latest_s=1.0)
    queue.push(one)
    assert queue.starts_before(1.5) == [one]
    queue.starts(one, 1.7)
    queue.check()
    assert queue.first_start_s() == 1.7
    assert queue.starts_before(1.6) == []


def test_the_shares_of_those_that_cost_less_are_summed_and_of_equals_with_no_later_deadline() -> None:
    queue = ModelQueue()
    for number, share_s in enumerate((0.001, 0.002, 0.004, 0.004)):
        queue.push(sized(number, deadline_s=1.0 + number, share_s=share_s, latest_s=0.5, rows=2))
    assert queue.share_before(rank_of(0.0005), 9.0) == 0.0
    assert queue.share_before(rank_of(0.002), 9.0) == pytest.approx(0.006)
    assert queue.share_before(rank_of(0.002), 0.5) == pytest.approx(0.002)
    assert queue.share_before(rank_of(0.004), 3.0) == pytest.approx(0.014)  # a deadline that is as early
    assert queue.share_before(rank_of(0.5), 0.0) == pytest.approx(queue.share_s) == pytest.approx(0.022)


def test_what_is_kept_beside_the_queue_is_right_whatever_comes_and_goes_and_comes_back() -> None:
    rng, queue, taken = random.Random(4), ModelQueue(), []
    for number in range(3000):
        at_s = rng.uniform(0, 10)
        queue.push(sized(number, deadline_s=at_s, share_s=rng.uniform(1e-4, 1e-2), latest_s=at_s - 0.1))
        if rng.random() < 0.5 and len(queue):
            taken += queue.take(1)
        if rng.random() < 0.4 and len(queue):
            one = rng.choice(queue.requests[queue.head :])
            assert queue.remove(one)
            taken.append(one)
        if taken and rng.random() < 0.3:
            queue.push(taken.pop())
        if number % 100 == 0:
            queue.check()
            waiting = queue.requests[queue.head :]
            assert queue.first_start_s() == min((one.latest_s for one in waiting), default=math.inf)


def test_an_empty_queue_costs_nothing() -> None:
    queue = ModelQueue()
    queue.push(sized(1, deadline_s=1.0, share_s=0.1, latest_s=0.5))
    queue.take(1)
    assert (queue.share_s, queue.share_before(1000, 9.0), queue.first_start_s()) == (0.0, 0.0, math.inf)
    queue.check()


def test_the_starts_of_those_who_left_are_not_kept_for_ever() -> None:
    queue = ModelQueue()
    queue.push(sized(0, deadline_s=1e9, share_s=0.1, latest_s=1e9))
    for number in range(1, 10 * COMPACT_AT):
        queue.push(sized(number, deadline_s=1e8, share_s=0.1, latest_s=1e8))
        queue.take(1)
    assert len(queue.starts_before(math.inf)) == 1
