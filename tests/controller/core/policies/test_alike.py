"""Where all requests, or most, cost about the same, the batches are those of a model without open dimensions."""

import random

import pytest

from controller.core.policies.alike import are_alike, first_deadlines, near_the_longest, use_of
from controller.core.policies.composing import compose
from controller.core.policies.planned import Costs, Waiting, batch_of
from tests.controller.core.controller_builders import line
from tests.controller.core.policies.policy_world import NOW, World

ROWS_MAX = 8


def table(base_s: float, row_s: float) -> list[float]:
    return [0.0, *(base_s + row_s * rows for rows in range(1, ROWS_MAX + 1))]


COSTS = Costs([table(0.5, 0.5), table(0.5, 0.51), table(0.5, 0.8), table(0.5, 8.0)], [ROWS_MAX] * 4)


def waiting(places: list[int], left_s: list[float], values: list[float] | None = None) -> Waiting:
    return Waiting(places, [1] * len(places), left_s, values or [1.0] * len(places))


def test_requests_of_one_class_and_about_one_value_are_alike() -> None:
    everybody = [0, 1, 2]
    assert are_alike(everybody, waiting([0, 1, 0], [9.0] * 3), COSTS)
    assert not are_alike(everybody, waiting([0, 2, 0], [9.0] * 3), COSTS)
    assert are_alike([0, 2], waiting([0, 2, 0], [9.0] * 3), COSTS)  # whoever is not usable does not count
    assert are_alike(everybody, waiting([0] * 3, [9.0] * 3, [1.0, 1.5, 1.0]), COSTS)
    assert not are_alike(everybody, waiting([0] * 3, [9.0] * 3, [1.0, 1.6, 1.0]), COSTS)
    assert not are_alike(everybody, Waiting([0] * 3, [1, 2, 1], [9.0] * 3, [1.0] * 3), COSTS)
    assert not are_alike(everybody, Waiting([0] * 3, [1] * 3, [9.0] * 3, [1.0] * 3, kinds=[0, 1, 0]), COSTS)


def test_high_and_wide_are_alike_only_if_a_batch_of_both_costs_no_more() -> None:
    """Places 1 and 2 are 1 x 2 and 2 x 1 of two dimensions; 3 holds both."""
    grown = Costs([table(0.5, row_s) for row_s in (0.5, 1.0, 1.0, 2.0)], [ROWS_MAX] * 4, width=2)
    assert are_alike([0, 1], waiting([1, 1], [9.0] * 2), grown)
    assert not are_alike([0, 1], waiting([1, 2], [9.0] * 2), grown)


@pytest.mark.parametrize("seed", range(40))
def test_with_one_length_the_batch_is_that_of_a_model_without_open_dimensions(seed: int) -> None:
    rng = random.Random(seed)
    lefts = sorted(rng.uniform(0.5, rng.choice((3.0, 8.0))) for _ in range(rng.randrange(1, 20)))
    plain = World({"m:1": line(0.5, 0.5, sizes=range(1, ROWS_MAX + 1))}, batch_max=ROWS_MAX)
    plain.waits(*[NOW + left for left in lefts])
    batch = plain.policy.choose(plain.device, NOW)
    plan = compose(waiting([0] * len(lefts), lefts), COSTS)
    if batch is None:
        assert plan is None
        return
    assert plan is not None
    assert [NOW + lefts[i] for i in plan.first.members] == [request.deadline_s for request in batch.requests]
    usable = [left for left in lefts if left >= 1.0]
    assert len(plan.passed) == len(batch.given_up) - (len(lefts) - len(usable))


def test_those_near_the_longest_are_told_if_they_are_most() -> None:
    assert near_the_longest([0, 1, 2], waiting([0, 2, 2], [9.0] * 3), COSTS) == [0, 1, 2]
    assert near_the_longest([0, 1, 2], waiting([0, 3, 0], [9.0] * 3), COSTS) == []
    mostly = waiting([3, 3, 3, 3, 0], [9.0] * 5)
    assert near_the_longest([0, 1, 2, 3, 4], mostly, COSTS) == [0, 1, 2, 3]
    assert near_the_longest([0, 1], waiting([0, 0], [9.0] * 2, [1.0, 9.0]), COSTS) == []
    assert near_the_longest([0, 1], Waiting([0, 0], [1, 2], [9.0] * 2, [1.0] * 2), COSTS) == []
    assert near_the_longest([0, 1], Waiting([0, 0], [1, 1], [9.0] * 2, [1.0] * 2, kinds=[0, 1]), COSTS) == []


def test_what_is_of_use_is_what_the_members_would_take_in_full_batches() -> None:
    requests = waiting([0, 3], [99.0] * 2)
    alone = batch_of([1], requests, COSTS)
    both = batch_of([0, 1], requests, COSTS)
    assert use_of(alone, requests, COSTS) == pytest.approx(COSTS.shares[3] / 8.5)
    assert use_of(both, requests, COSTS) == pytest.approx((COSTS.shares[0] + COSTS.shares[3]) / 16.5)


def test_where_lengths_are_nearly_equal_a_larger_batch_goes_without_the_first_deadlines() -> None:
    requests = waiting([0, 2, 2, 2], [1.0, 1.5, 2.5, 4.0])  # alone they take 1.0 and 1.3, two of the longer ones 2.1
    plan = compose(requests, COSTS)
    assert plan is not None
    assert (plan.first.members, plan.passed) == ([2, 3], [0, 1])


def test_the_first_deadlines_are_never_more_than_fit() -> None:
    few = Costs([table(0.5, 0.5)], [3])
    assert first_deadlines(list(range(9)), waiting([0] * 9, [99.0] * 9), few).first.rows == 3
