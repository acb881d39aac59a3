"""controller/core/requests.py: every request ends once, however it ends."""

import pytest

from controller.core.policies.registry import make_policy
from controller.core.requests import UNREADY_S
from controller.core.scheduler import Scheduler
from mesh.codes import ActionCode
from tests.controller.core.controller_builders import (
    TEN_MS,
    Shard,
    hello,
    line,
    one,
    prepared,
    wake_at,
    woken,
)

# -- too late to be served --------------------------------------------------------------------------------------------


def test_requests_given_up_for_a_larger_batch_are_refused() -> None:
    expected = {
        0.0285: ["w1: infer #1 m:1 x8 f/9 f/1 f/2 f/3 f/4 f/5 f/6 f/7"],
        0.0140: ["f: 9 rejected overload", "w1: infer #1 m:1 x8 f/1 f/2 f/3 f/4 f/5 f/6 f/7 f/8"],
    }
    for budget_s, orders in expected.items():
        shard = one()
        shard.submit(9, now=100.0, budget_s=budget_s)
        for number in range(1, 9):
            shard.submit(number, now=100.0, budget_s=1.0)
        assert shard.wake(100.0) == orders


def stuck() -> Shard:
    """Batches take 100 ms; two are at the device, and nothing is heard of them. A third request is due by 100.349."""
    shard = Shard().serve({"m:1": line(0.1, 0.0)})
    shard.submit(1, now=100.0, budget_s=0.5)
    shard.wake(100.0)
    shard.submit(2, now=100.0, budget_s=0.5)
    assert shard.wake(100.099) == ["w1: infer #2 m:1 x1 f/2"]
    assert shard.submit(3, now=100.1, budget_s=0.25) == []
    return shard


def test_what_waits_until_it_is_too_late_is_refused_then() -> None:
    shard = stuck()
    late_s = 100.349 - 0.1 - 0.1 - 0.01  # EXEC of itself, of the second, and a tenth of the first, which is overdue
    assert shard.wake(late_s - 1e-3) == []
    assert shard.wake(late_s + 0.02) == ["f: 3 rejected deadline"]


def test_wakes_alone_are_enough_to_end_every_request() -> None:
    shard = stuck()
    assert woken(shard, until=100.35) == ["f: 3 rejected deadline"]
    assert woken(shard, until=200.0) == ["f: 1 rejected deadline", "f: 2 rejected deadline"]
    assert shard.scheduler.open_requests == 0


def test_requests_of_a_model_that_nobody_can_serve_any_more_are_refused_shortly_before_their_deadline() -> None:
    shard = one()
    shard.submit(1, now=100.0, budget_s=0.5)
    shard.lose("w1", now=100.0)
    assert shard.wake(100.4) == []
    assert shard.wake(100.499 - UNREADY_S - 1e-4) == []
    assert shard.wake(100.499 - UNREADY_S + 1e-4) + woken(shard, until=100.5) == ["f: 1 rejected deadline"]


# -- nobody waits for it any more -------------------------------------------------------------------------------------


def test_a_request_that_is_cancelled_while_it_waits_is_dropped_without_a_word() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.submit(2, now=100.0)
    shard.cancel(1)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 f/2"]
    shard.cancel(1)
    shard.cancel(99)
    assert shard.scheduler.open_requests == 1


def test_a_request_that_is_cancelled_while_it_runs_ends_with_its_batch() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.cancel(1)
    assert shard.ran(1, begin_s=100.0, duration_s=0.01) == []
    assert shard.scheduler.open_requests == 0


def test_a_request_that_is_cancelled_while_it_runs_is_not_planned_again() -> None:
    shard = one()
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    shard.cancel(1)
    assert shard.result(1, now=100.01, code=ActionCode.LATE) == []
    assert shard.wake(100.01) == []
    assert shard.scheduler.open_requests == 0


def test_a_batch_that_nobody_waits_for_any_more_is_taken_back_once() -> None:
    shard = one()
    for number in (1, 2):
        shard.submit(number, now=100.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x2 f/1 f/2"]
    shard.cancel(1)
    assert shard.wake(100.0) == []  # the other one is still waited for
    shard.cancel(2)
    assert shard.wake(100.0) == ["w1: revoke #1"]
    shard.cancel(2)
    shard.submit(3, now=100.001)
    shard.cancel(3, now=100.001)
    assert shard.wake(100.001) == []


def test_a_batch_that_was_taken_back_leaves_its_place_to_the_next_one_and_has_not_failed() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.cancel(1)
    shard.wake(100.0)
    assert shard.result(1, now=100.001, code=ActionCode.REVOKED) == []
    device = shard.state.devices["w1"]
    assert (device.infers, device.exec.free_at(100.001)) == (0, 100.001)
    counters = shard.scheduler.counters
    assert (counters.revoked, counters.failed_actions, counters.computed_for_nobody) == (1, {}, 0)
    assert shard.scheduler.telemetry.devices["w1"].failed == 0
    shard.submit(2, now=100.002)
    assert shard.wake(100.002) == ["w1: infer #2 m:1 x1 f/2"]


def test_a_batch_that_had_begun_when_it_was_taken_back_is_counted_as_computed_for_nobody() -> None:
    shard = one()
    shard.submit(1, now=100.0, rows=2)
    shard.wake(100.0)
    shard.cancel(1)
    assert shard.wake(100.0) == ["w1: revoke #1"]
    shard.submit(2, now=100.001, rows=3)
    assert shard.ran(1, begin_s=100.0, duration_s=0.012) == []
    assert shard.wake(100.012) == ["w1: infer #2 m:1 x3 f/2"]
    assert shard.ran(2, begin_s=100.012, duration_s=0.014) == []
    counters = shard.scheduler.counters
    assert (counters.revoked, counters.computed_for_nobody, counters.rows_for_nobody) == (0, 1, 2)
    assert counters.in_time == 1


def test_what_runs_for_a_lost_frontend_alone_is_taken_back() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2"))
    for number, frontend in ((1, "f"), (2, "g")):
        shard.submit(number, now=100.0, frontend=frontend)
        shard.wake(100.0)
    shard.lose_frontend("f")
    assert shard.wake(100.0) == ["w1: revoke #1"]


def test_a_request_that_waits_for_the_first_worker_can_be_cancelled_too() -> None:
    shard = Shard(started_s=100.0)
    shard.want(["m:1"])
    for number, frontend in ((1, "f"), (2, "f"), (1, "g"), (2, "g")):
        assert shard.submit(number, now=100.0, frontend=frontend, budget_s=5.0) == []
    shard.submit(2, now=100.0, attempt=1, budget_s=5.0)  # its frontend's link was lost and came back
    shard.cancel(1)
    shard.lose_frontend("g")
    assert shard.scheduler.open_requests == 1
    assert (shard.scheduler.counters.submitted, shard.scheduler.telemetry.cancelled) == (4, 3)
    shard.join(hello("w1", prepared("m:1"), resident=["m:1"]), now=100.1)
    assert shard.wake(100.1) == ["w1: infer #1 m:1 x1 f/2"]


@pytest.mark.parametrize(("given_up_s", "admitted"), [(0.05, True), (0.2, False)])
def test_what_clients_give_up_in_time_says_nothing_about_its_model(given_up_s: float, admitted: bool) -> None:
    """A model that loses requests is let in less beside others: one client that cancels thousands must not cause it."""
    shard = Shard().serve({"m:1": TEN_MS, "n:1": TEN_MS})
    now = 100.0
    for number in range(300):
        shard.submit(number, now=now, budget_s=0.1)
        now += given_up_s
        shard.cancel(number, now=now)
    for number in range(64):
        shard.submit(1000 + number, "n:1", now=now, budget_s=10.0)
    said = [shard.submit(2000 + number, now=now, budget_s=0.1) for number in range(3)]
    assert said == ([[]] * 3 if admitted else [[f"f: {2000 + number} rejected overload"] for number in range(3)])


def test_a_policy_that_keeps_late_requests_is_not_asked_for_them_without_end() -> None:
    shard = Shard()
    shard.scheduler = Scheduler(make_policy("fifo", shard.state), shard.state)
    shard.serve({"m:1": TEN_MS})
    for number in range(40):
        shard.submit(number, now=100.0, budget_s=0.01)
    shard.wake(100.0)
    wakes = 0
    now = 100.0
    while now < 101.5:  # no result comes
        shard.wake(now)
        wakes += 1
        now = max(now, wake_at(shard))
    assert wakes < 50


def test_all_that_waits_for_a_lost_frontend_is_dropped() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.submit(2, now=100.0, frontend="g")
    shard.lose_frontend("f")
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 g/2"]
    shard.lose_frontend("g")
    assert shard.scheduler.open_requests == 0
    assert shard.result(1, now=100.01, code=ActionCode.LATE) == []
    assert shard.wake(100.01) == []


def test_a_lost_frontend_hears_nothing_more_of_what_ran_for_it() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.lose_frontend("f")
    assert shard.result(1, now=100.01, code=ActionCode.DEVICE_ERROR) == []


@pytest.mark.parametrize("code", [ActionCode.OK, ActionCode.DEVICE_ERROR, ActionCode.LATE])
def test_a_frontend_that_comes_back_may_submit_what_still_runs_for_its_former_self(code: str) -> None:
    """Its link was lost and is there again: the new attempt is a request of its own, whatever becomes of the old."""
    shard = one()
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    shard.lose_frontend("f")
    shard.submit(1, now=100.002, budget_s=1.0, attempt=1)
    assert shard.result(1, now=100.011, code=code, begin_s=100.001, end_s=100.011, duration_s=0.01) == []
    assert shard.scheduler.open_requests == 1
    assert shard.wake(100.02) == ["w1: infer #2 m:1 x1 f/1"]


def test_a_frontend_may_give_up_what_runs_on_a_worker_that_leaves() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.leave("w1")
    shard.want(["m:1"])
    shard.cancel(1)
    shard.lose_frontend("f")
    assert shard.scheduler.open_requests == 0
