"""The default policy: what runs next."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.policies.atc import AtcParameters
from controller.core.policies.base import Batch
from mesh import wire
from tests.controller.core.controller_builders import line, request
from tests.controller.core.policies.policy_world import NOW, SECONDS, World, heads

# -- one model's batch ------------------------------------------------------------------------------------------------


def test_nothing_is_chosen_while_nothing_waits() -> None:
    assert World().policy.choose(World().device, NOW) is None


def test_a_batch_says_when_it_starts_how_long_it_takes_and_when_it_is_of_no_use() -> None:
    world = World().waits(104.0, 105.0, 106.0).busy(0.5)
    model = world.model()
    assert world.policy.choose(world.device, NOW) == Batch(
        model, heads(model), given_up=[], rows=3, start_s=100.5, expected_s=2.0, latest_s=105.0 - 2.0
    )


def test_a_batch_starts_when_the_weights_are_there() -> None:
    world = World({"m:1": SECONDS}, resident=[])
    world.shard.wake(NOW)
    world.waits(200.0)
    batch = world.policy.choose(world.device, NOW)
    assert batch is not None
    assert batch.start_s == world.device.residency.models["m:1"].ready_s > NOW


def test_a_busy_device_is_not_bound_behind_a_load_before_that_is_nearly_done() -> None:
    """Other work may come until then, which it could do."""
    world = World({"m:1": SECONDS}, resident=[])
    world.device.busy_until_s = NOW
    world.shard.wake(NOW)
    world.waits(200.0)
    ready_s = world.device.residency.models["m:1"].ready_s
    assert world.choose() is None
    assert world.policy.wake_at(NOW) == pytest.approx(ready_s)
    assert world.choose(ready_s) == ("m:1", 1, 0)


def test_a_batch_that_must_wait_for_its_load_earns_less_than_one_that_need_not() -> None:
    world = World({"a:1": SECONDS, "b:1": SECONDS}, resident=["b:1"])
    world.shard.wake(NOW)
    assert world.device.residency.models["a:1"].loading is not None
    world.waits(NOW + 3.0, ref="a:1").waits(NOW + 1.05, ref="b:1")
    assert world.choose() == ("b:1", 1, 0)


def test_all_that_waits_goes_together_up_to_the_largest_batch() -> None:
    assert World().waits(*[200.0] * 5).choose() == ("m:1", 5, 0)
    assert World().waits(*[200.0] * 8).choose() == ("m:1", 8, 0)
    assert World().waits(*[200.0] * 9).choose() == ("m:1", 8, 0)


def test_the_batch_is_no_larger_than_the_first_deadline_allows_where_larger_ones_gain_nothing() -> None:
    flat = line(0.0, 1.0)  # batching does not pay
    world = World({"m:1": flat}).waits(103.3, *[200.0] * 5)
    assert world.choose() == ("m:1", 3, 0)


def test_heads_are_given_up_where_the_rest_then_earns_more_per_second() -> None:
    world = World().waits(101.2, *[200.0] * 8)
    assert world.choose() == ("m:1", 8, 1)


@pytest.mark.parametrize(
    ("two_s", "choice"),
    [(1.90, ("m:1", 2, 1)), (1.95, ("m:1", 2, 1)), (1.97, ("m:1", 1, 0)), (2.0, ("m:1", 1, 0))],
)
def test_heads_are_given_up_only_for_a_gain_of_more_than_two_percent(
    two_s: float, choice: tuple[str, int, int]
) -> None:
    assert AtcParameters().skip_gain == 1.02
    profile = wire.Profile(exec_s={1: 1.0, 2: two_s}, load_s=2.0)
    assert World({"m:1": profile}, batch_max=2).waits(101.5, 200.0, 200.0).choose() == choice


def test_heads_that_cannot_make_it_are_passed_over() -> None:
    assert World().waits(100.5, 100.9, 150.0, 150.0).choose() == ("m:1", 2, 2)


def test_heads_that_are_too_late_here_may_still_make_it_on_another_device() -> None:
    world = World(workers=("w1", "w2")).waits(100.5, 100.9, 150.0, 160.0)
    batch = world.policy.choose(world.device, NOW)
    assert batch is not None
    assert [one.deadline_s for one in batch.requests] == [150.0, 160.0]
    assert batch.given_up == []


def test_nothing_is_chosen_if_nobody_can_make_it() -> None:
    assert World().waits(100.5, 100.9).choose() is None


def test_batches_come_as_large_as_the_rest_of_the_queue_supports() -> None:
    """Seven could wait for eight rows, not eight: the largest batch whose members can all wait has six."""
    world = World().waits(101.2, 103.0, *[104.0] * 6)
    assert world.choose() == ("m:1", 6, 2)


def reference_batch(deadlines: list[float], durations: list[float], start_s: float) -> tuple[int, int] | None:
    """(batch, heads given up) on an idle device, naively. Source: docs/design/policy.md#the-rule."""
    late = sum(deadline < start_s + durations[1] for deadline in deadlines)
    rest = sorted(deadlines)[late:]
    most = min(len(rest), len(durations) - 1)
    if not most:
        return None
    keep = max(b for b in range(1, most + 1) if start_s + durations[b] <= rest[0])
    if keep < most:
        fits = [b for b in range(1, most + 1) if sum(d >= start_s + durations[b] for d in rest) >= b]
        if fits and fits[-1] / durations[fits[-1]] > 1.02 * keep / durations[keep]:
            given_up = sum(d < start_s + durations[fits[-1]] for d in rest)
            return fits[-1], late + given_up
    return keep, late


@settings(max_examples=400)
@given(
    deadlines=st.lists(st.integers(0, 6000), min_size=1, max_size=14),
    base=st.floats(0.01, 1.0),
    row=st.floats(0.01, 1.0),
)
def test_the_batch_of_a_model_is_the_one_that_the_study_s_rule_finds(
    deadlines: list[int], base: float, row: float
) -> None:
    world = World({"m:1": line(base, row)})
    instants = [NOW + milliseconds / 1000 + 1e-5 for milliseconds in deadlines]
    world.waits(*instants)
    curve = world.device.curves["m:1"]
    found = world.choose()
    expected = reference_batch(instants, [curve.exec_s(rows) for rows in range(9)], NOW)
    assert found == (None if expected is None else ("m:1", *expected))


# -- requests of several rows -----------------------------------------------------------------------------------------


def test_requests_of_several_rows_are_kept_whole() -> None:
    assert World().waits(200.0, 201.0, 202.0, rows=3).choose() == ("m:1", 2, 0)
    world = World().waits(200.0, rows=5).waits(201.0, rows=4).waits(202.0)
    assert world.choose() == ("m:1", 1, 0)


def test_a_batch_of_many_rows_is_no_larger_than_the_first_deadline_allows() -> None:
    assert World().waits(102.8, rows=2).waits(200.0, rows=2).choose() == ("m:1", 2, 0)
    assert World().waits(102.4, rows=2).waits(200.0, rows=2).choose() == ("m:1", 1, 0)


def test_a_request_as_large_as_the_largest_batch_runs_alone() -> None:
    world = World().waits(200.0, rows=8).waits(201.0)
    first = world.model().queue.first()
    assert world.policy.choose(world.device, NOW) == Batch(world.model(), [first], [], 8, NOW, 4.5, 200.0 - 4.5)


def test_the_expected_duration_is_the_same_for_four_rows_of_one_request_and_of_four() -> None:
    one = World().waits(200.0, rows=4)
    four = World().waits(*[200.0] * 4)
    first, second = one.policy.choose(one.device, NOW), four.policy.choose(four.device, NOW)
    assert first is not None
    assert second is not None
    assert first.expected_s == second.expected_s == 2.5


@settings(max_examples=200)
@given(
    waiting=st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 8)), min_size=1, max_size=10),
    running=st.floats(0.0, 3.0),
)
def test_a_batch_has_whole_requests_in_order_and_never_too_many_rows(
    waiting: list[tuple[int, int]], running: float
) -> None:
    world = World()
    for milliseconds, rows in waiting:
        world.waits(NOW + milliseconds / 1000, rows=rows)
    if running:
        world.busy(running)
    batch = world.policy.choose(world.device, NOW)
    queue = world.model().queue
    if batch is None:
        start_s = NOW + running
        assert all(one.deadline_s < start_s + 1.06 for one in queue.requests)
        return
    assert batch.requests
    assert batch.rows == sum(one.rows for one in batch.requests) <= 8
    assert [*batch.given_up, *batch.requests] == heads(world.model())[: len(batch.given_up) + len(batch.requests)]
    assert batch.start_s == NOW + running
    assert batch.latest_s >= batch.start_s


# -- between models ---------------------------------------------------------------------------------------------------


def two(urgent_s: float, other_s: float, *, others: int = 1, weight: float = 1.0, lost: bool = False) -> World:
    """One request of "m:1" and some of "n:1"; all have a budget of ten seconds."""
    world = World({"m:1": SECONDS, "n:1": SECONDS})
    world.waits(NOW + urgent_s, ref="m:1", slo_s=10.0)
    world.waits(*[NOW + other_s] * others, ref="n:1", slo_s=10.0, weight=weight)
    if lost:
        world.loses(5, of=10)
    return world


def test_the_earlier_deadline_goes_first_where_all_else_is_equal() -> None:
    assert two(2.0, 3.0).choose() == ("m:1", 1, 0)
    assert two(3.0, 2.0).choose() == ("n:1", 1, 0)


def test_while_nothing_is_lost_the_earlier_deadline_goes_ahead_of_the_denser_batch() -> None:
    assert two(1.1, 3.5, others=4).choose() == ("m:1", 1, 0)


def test_while_much_is_lost_the_denser_batch_goes_first() -> None:
    assert two(1.1, 3.5, others=4, lost=True).choose() == ("n:1", 4, 0)


def test_what_was_lost_is_forgotten_in_some_hundred_milliseconds() -> None:
    world = two(1.7, 4.0, others=4, lost=True)
    assert world.choose() == ("n:1", 4, 0)
    world.loses(0, of=1, now=NOW + 0.5)
    assert world.choose(NOW + 0.5) == ("m:1", 1, 0)


def test_a_full_batch_need_not_wait_for_its_deadline() -> None:
    assert two(1.5, 90.0, others=8).choose() == ("n:1", 8, 0)
    assert two(1.5, 90.0, others=7).choose() == ("m:1", 1, 0)


def test_a_request_worth_more_goes_ahead_of_a_slightly_earlier_deadline() -> None:
    assert two(2.0, 2.1, weight=1.0).choose() == ("m:1", 1, 0)
    assert two(2.0, 2.1, weight=1.5).choose() == ("n:1", 1, 0)


def test_a_request_worth_next_to_nothing_and_in_no_hurry_is_still_served_by_an_idle_device() -> None:
    assert World().waits(1e9, weight=0.01, slo_s=1.0).choose() == ("m:1", 1, 0)


def test_rows_count_for_the_value_of_a_batch() -> None:
    """Four rows in one request are worth as much as four requests."""
    world = World({"m:1": SECONDS, "n:1": SECONDS})
    world.waits(*[NOW + 4.0] * 3, ref="m:1", slo_s=10.0).waits(NOW + 4.5, ref="n:1", rows=4, slo_s=10.0)
    assert world.choose() == ("n:1", 1, 0)


def test_equal_scores_go_to_the_model_that_has_waited_longest() -> None:
    world = World({"a:1": SECONDS, "b:1": SECONDS})
    assert world.waits(105.0, ref="b:1").waits(105.0, ref="a:1").choose() == ("b:1", 1, 0)
    world = World({"a:1": SECONDS, "b:1": SECONDS})
    assert world.waits(105.0, ref="a:1").waits(105.0, ref="b:1").choose() == ("a:1", 1, 0)


def test_a_deadline_centuries_away_does_not_stop_the_work() -> None:
    world = World()
    world.state.push(world.model(), request(1, arrived_s=NOW, deadline_s=1e12))
    world.state.push(world.model(), request(2, arrived_s=1e12 - 1e-9, deadline_s=1e12))
    assert world.choose() == ("m:1", 2, 0)


def test_the_look_ahead_follows_the_share_that_is_lost() -> None:
    """A batch of "n:1" is 1.6 times as dense; how much slack outweighs that depends on the loss alone."""

    def last_slack_that_wins(lost: int) -> float:
        for tenths in range(60, 0, -1):
            world = two(1.05, 2.5 + tenths / 10, others=4)
            world.loses(lost, of=100)
            if world.choose() == ("n:1", 4, 0):
                return tenths / 10
        return 0.0

    slacks = [last_slack_that_wins(lost) for lost in (0, 5, 12, 25, 50)]
    assert slacks == sorted(slacks)
    assert slacks[0] < slacks[2] < slacks[3] == slacks[4]
