"""controller/core/results.py: what follows when an action ends, fails, or is never heard of again."""

import pytest

from controller.core.devices.action import OVERDUE_S_MIN
from controller.core.devices.base import DISPATCH_S
from mesh.codes import ActionCode
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, line, one, prepared, wake_at, woken

# -- workers lost, actions failed -------------------------------------------------------------------------------------


def test_what_a_lost_worker_executed_is_tried_again_on_another_each_request_alone_and_the_rest_together() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2"))
    for number in (1, 2):
        shard.submit(number, now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x2 f/1 f/2"]
    for number in (3, 4):
        shard.submit(number, now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w2: infer #2 m:1 x2 f/3 f/4"]
    for number in (5, 6):
        shard.submit(number, now=100.011, budget_s=1.0)
    assert shard.wake(100.011) == ["w1: infer #3 m:1 x2 f/5 f/6"]
    assert shard.lose("w1", now=100.011) == []
    assert shard.wake(100.011) == ["w2: infer #4 m:1 x1 f/1"]
    assert shard.ran(2, worker="w2", begin_s=100.0, duration_s=0.012) == []
    assert shard.wake(100.012) == []  # nothing is sent behind what may end the process
    assert shard.ran(4, worker="w2", begin_s=100.012, duration_s=0.01) == []
    assert shard.wake(100.022) == ["w2: infer #5 m:1 x1 f/2"]
    assert shard.ran(5, worker="w2", begin_s=100.022, duration_s=0.01) == []
    assert shard.wake(100.032) == ["w2: infer #6 m:1 x2 f/5 f/6"]


def test_what_a_lost_worker_had_is_failed_if_no_other_can_serve_it() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.submit(2, now=100.0)
    shard.wake(100.0)
    assert shard.lose("w1", now=100.005) == ["f: 1 failed worker_lost", "f: 2 failed worker_lost"]
    assert shard.scheduler.open_requests == 0


def test_what_a_lost_worker_had_is_refused_if_time_is_too_short_for_another() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2"))
    shard.submit(1, now=100.0, budget_s=0.015)
    shard.wake(100.0)
    shard.lose("w1", now=100.008)
    assert shard.wake(100.008) == ["f: 1 rejected deadline"]


def test_what_waits_for_a_lost_worker_s_model_is_loaded_elsewhere() -> None:
    shard = Shard()
    shard.want(["m:1", "n:1"])
    shard.join(hello("w1", prepared("m:1"), prepared("n:1"), resident=["m:1"], pages=3), now=0.0)
    shard.join(hello("w2", prepared("m:1"), prepared("n:1"), resident=["n:1"], pages=3), now=0.0)
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.lose("w1", now=100.0)
    assert shard.wake(100.0) == ["w2: unload #1 n:1", "w2: load #2 m:1"]
    assert shard.wake(100.0001) == ["w2: infer #3 m:1 x1 f/1"]


def test_a_worker_that_says_hello_again_begins_anew_with_what_it_had() -> None:
    shard = one()
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    words = hello("w1", prepared("m:1"), resident=["m:1"])
    assert shard.join(words, now=100.005) == []
    assert shard.wake(100.005) == ["w1: infer #2 m:1 x1 f/1"]
    assert shard.ran(1, begin_s=100.0, duration_s=0.010) == []
    assert shard.scheduler.open_requests == 1


@pytest.mark.parametrize(
    "code", [ActionCode.LATE, ActionCode.NO_SLOTS, ActionCode.OVERFULL, ActionCode.WEIGHTS_MISSING, ActionCode.LOST]
)
def test_a_request_whose_action_came_to_nothing_is_planned_again(code: str) -> None:
    shard = one()
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    assert shard.result(1, now=100.01, code=code) == []
    planned = any(order.endswith("infer #2 m:1 x1 f/1") for order in shard.wake(100.01))
    assert planned or code == ActionCode.WEIGHTS_MISSING
    assert shard.scheduler.counters.failed_actions == {code: 1}


def test_a_request_is_not_planned_more_often_than_three_times() -> None:
    shard = one()
    shard.submit(1, now=100.0, budget_s=5.0)
    for action in (1, 2, 3):
        assert shard.wake(100.0 + action) == [f"w1: infer #{action} m:1 x1 f/1"]
        refused = shard.result(action, now=100.01 + action, code=ActionCode.LATE, message="too late")
        assert refused == (["f: 1 failed late"] if action == 3 else [])
    assert shard.scheduler.open_requests == 0


@pytest.mark.parametrize("code", [ActionCode.DEVICE_ERROR, ActionCode.BAD_INPUT, ActionCode.BAD_BATCH])
def test_a_request_that_would_fail_again_is_failed_at_once(code: str) -> None:
    shard = one()
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    assert shard.result(1, now=100.01, code=code, message="why") == [f"f: 1 failed {code}"]
    assert shard.wake(100.01) == []


def test_missing_weights_are_loaded_again_before_the_request_is_planned_again() -> None:
    shard = one()
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    shard.result(1, now=100.001, code=ActionCode.WEIGHTS_MISSING)
    assert shard.wake(100.001) == ["w1: load #2 m:1"]
    assert "w1: infer #3 m:1 x1 f/1" in woken(shard, until=100.1)


def test_a_result_of_an_action_that_is_not_known_changes_nothing() -> None:
    shard = one()
    assert shard.ran(77, begin_s=100.0, duration_s=0.01) == []
    assert shard.loaded(78, now=100.0) == []


def test_a_result_that_belongs_to_another_kind_of_action_is_not_taken_for_it() -> None:
    """A worker that served another controller before may still report what that one ordered, under its numbers."""
    shard = one()
    shard.submit(1, now=100.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    assert shard.loaded(1, now=100.001) == []
    assert shard.scheduler.open_requests == 1
    assert shard.state.devices["w1"].infers == 1


# -- actions of which nothing is heard --------------------------------------------------------------------------------


def test_an_action_without_a_result_is_taken_for_lost_and_its_request_planned_again() -> None:
    shard = one()
    shard.submit(1, now=100.0, budget_s=10.0)
    shard.wake(100.0)
    overdue_s = 100.0 + DISPATCH_S + 0.010 + OVERDUE_S_MIN
    assert wake_at(shard) == pytest.approx(overdue_s)
    assert shard.wake(overdue_s - 1e-3) == []
    assert shard.wake(overdue_s + 1e-9) == ["w1: infer #2 m:1 x1 f/1"]
    assert shard.ran(1, begin_s=102.4, duration_s=0.01) == []
    assert shard.scheduler.open_requests == 1


def test_an_action_is_taken_for_lost_though_an_older_one_may_still_take_long() -> None:
    shard = Shard().serve({"m:1": TEN_MS, "slow:1": line(0.01, 0.0, load_s=60.0)}, resident=["m:1"])
    assert shard.wake(100.0) == ["w1: load #1 slow:1"]
    shard.submit(1, now=100.0, budget_s=10.0)
    assert shard.wake(100.0) == ["w1: infer #2 m:1 x1 f/1"]
    assert wake_at(shard) <= 100.0 + DISPATCH_S + 0.010 + OVERDUE_S_MIN + 1e-6
    assert shard.wake(103.0) == ["w1: infer #3 m:1 x1 f/1"]


def test_a_load_without_a_result_is_sent_again() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, resident=[])
    shard.submit(1, now=100.0, budget_s=10.0)
    assert shard.wake(100.0) == ["w1: load #1 m:1"]
    assert shard.wake(100.0001) == ["w1: infer #2 m:1 x1 f/1"]
    orders = woken(shard, until=103.0)
    assert "w1: load #3 m:1" in orders


def test_an_action_that_takes_much_longer_than_expected_does_not_keep_the_controller_awake() -> None:
    shard = Shard(lead_ms=0).serve({"m:1": TEN_MS})
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    shard.submit(2, now=100.02, budget_s=1.0)
    wakes = 0
    now = 100.02
    while now < 100.9:
        shard.wake(now)
        now = wake_at(shard)
        wakes += 1
    assert wakes < 100
