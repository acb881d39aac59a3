"""Events in, orders out: the whole shard."""

import pytest

from broker import wire
from controller.actions import EARLY_S, OVERDUE_S_MIN
from controller.orders import ToFrontend, ToWorker
from controller.requests import DESERTED_S
from controller.scheduler import Parameters
from controller.state import DISPATCH_S
from tests.controller.controller_builders import TEN_MS, Shard, hello, line, prepared

BOTH = {"m:1": TEN_MS, "n:1": TEN_MS}


def one() -> Shard:
    """One worker with "m:1" in its memory: 10, 12, 16, 24 ms for 1, 2, 4, 8 rows."""
    return Shard().serve({"m:1": TEN_MS})


def wake_at(shard: Shard) -> float:
    at = shard.scheduler.wake_at()
    assert at is not None
    return at


def woken(shard: Shard, until: float) -> list[str]:
    """What is ordered if nothing happens but wakes, each when it was asked for."""
    orders = []
    for _ in range(10_000):
        at = shard.scheduler.wake_at()
        if at is None or at > until:
            return orders
        orders += shard.wake(at)
    raise AssertionError("it wakes without end")


# -- a request's way --------------------------------------------------------------------------------------------------


def test_a_request_for_a_device_that_is_free_goes_out_at_once() -> None:
    shard = one()
    assert shard.wake(100.0) == []
    assert shard.submit(7, now=100.0, budget_s=0.05, tensors=(b"in",)) == []
    deadline_s = 100.0 + 0.05 - 0.001
    assert shard.orders(100.0) == [
        ToWorker(
            "w1",
            wire.Infer(
                action=1,
                ref="m:1",
                earliest_s=100.0 - EARLY_S,
                latest_s=pytest.approx(deadline_s - 0.010),
                expected_s=pytest.approx(0.010),
                batch=1,
                parts=(
                    wire.Part(
                        frontend="f", request=7, attempt=0, rows=1, predicted_s=pytest.approx(DISPATCH_S + 0.010),
                        inline=(b"in",),
                    ),
                ),
            ),
            [],
        )
    ]  # fmt: skip
    assert shard.scheduler.open_requests == 1
    assert shard.ran(1, begin_s=100.0003, duration_s=0.010) == []
    assert shard.scheduler.open_requests == 0
    assert (shard.scheduler.counters.in_time, shard.scheduler.counters.late) == (1, 0)


def test_requests_that_arrive_before_a_decision_go_together() -> None:
    shard = one()
    for number in (1, 2, 3):
        shard.submit(number, now=100.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x3 f/1 f/2 f/3"]


def test_parts_go_in_order_of_deadline_and_with_the_frontends_they_came_from() -> None:
    shard = one()
    shard.submit(1, now=100.0, budget_s=0.3)
    shard.submit(1, now=100.0, budget_s=0.1, frontend="g")
    shard.submit(2, now=100.0, budget_s=0.2)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x3 g/1 f/2 f/1"]


def test_large_tensors_travel_beside_the_order() -> None:
    shard = one()
    shard.submit(1, now=100.0, tensors=(b"large",), frames=1)
    (order,) = shard.orders(100.0)
    assert isinstance(order, ToWorker)
    assert list(order.frames) == [b"large"]


def test_time_spent_on_the_way_here_is_taken_off_the_budget_and_added_to_the_prediction() -> None:
    shard = one()
    assert shard.submit(1, now=100.0, budget_s=0.05, age_s=0.045) == ["f: 1 rejected deadline"]
    shard.submit(2, now=100.0, budget_s=0.05, age_s=0.02)
    (order,) = shard.orders(100.0)
    assert isinstance(order.message, wire.Infer)
    assert order.message.parts[0].predicted_s == pytest.approx(0.02 + DISPATCH_S + 0.010)
    assert order.message.latest_s == pytest.approx(100.0 + 0.05 - 0.02 - 0.001 - 0.010)


def test_windows_are_in_the_worker_s_clock_and_results_are_brought_back_to_ours() -> None:
    shard = one()
    shard.scheduler.clock("w1", 5000.0)
    shard.scheduler.clock("w9", 1.0)
    shard.submit(1, now=100.0, budget_s=0.05)
    (order,) = shard.orders(100.0)
    assert isinstance(order.message, wire.Infer)
    assert order.message.earliest_s == pytest.approx(5100.0 - EARLY_S)
    assert order.message.latest_s == pytest.approx(5100.039)
    shard.ran(1, begin_s=5100.0003, duration_s=0.010, now=100.011)
    assert shard.scheduler.counters.in_time == 1
    assert shard.state.devices["w1"].exec.free_at(100.0) == pytest.approx(100.0103)


def test_a_batch_that_ends_after_its_deadline_counts_as_late() -> None:
    for end_s, counts in ((100.0499, (1, 0)), (100.0501, (0, 1))):
        shard = one()
        shard.submit(1, now=100.0, budget_s=0.05)
        shard.wake(100.0)
        shard.ran(1, begin_s=100.0003, duration_s=end_s - 100.0003, now=100.06)
        assert (shard.scheduler.counters.in_time, shard.scheduler.counters.late) == counts


def test_whoever_is_let_in_by_an_idle_device_is_sent_to_it() -> None:
    sent = set()
    for microseconds in range(10_000, 13_000, 50):
        shard = one()
        if shard.submit(1, now=100.0, budget_s=microseconds / 1e6) == []:
            sent.add(tuple(shard.wake(100.0)))
    assert sent == {("w1: infer #1 m:1 x1 f/1",)}


# -- how late a batch is bound ----------------------------------------------------------------------------------------


def test_the_next_batch_goes_out_shortly_before_the_device_comes_free_and_not_earlier() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    free_s = 100.0 + DISPATCH_S + 0.010
    shard.submit(2, now=100.001)
    assert shard.wake(100.001) == []
    assert wake_at(shard) == pytest.approx(free_s - 0.0015)
    assert shard.wake(free_s - 0.0015 - 1e-5) == []
    shard.submit(3, now=100.008)
    assert shard.wake(free_s - 0.0015 + 1e-9) == ["w1: infer #2 m:1 x2 f/2 f/3"]


def test_a_device_has_no_more_batches_than_its_depth() -> None:
    shard = Shard(lead_ms=10_000, policy={"depth": 2}).serve({"m:1": line(0.1, 0.0)})
    for number in (1, 2, 3):
        shard.submit(number, now=100.0, budget_s=5.0)
        shard.wake(100.0)
    assert shard.state.devices["w1"].infers == 2
    shard.ran(1, begin_s=100.0, duration_s=0.1)
    assert shard.wake(100.1) == ["w1: infer #3 m:1 x1 f/3"]


def test_the_device_is_filled_up_to_its_depth_in_one_go() -> None:
    shard = Shard(lead_ms=10_000, policy={"depth": 2}).serve({"m:1": TEN_MS})
    for number in range(1, 12):
        shard.submit(number, now=100.0, budget_s=5.0)
    assert [order.split(" f/")[0] for order in shard.wake(100.0)] == ["w1: infer #1 m:1 x8", "w1: infer #2 m:1 x3"]


def test_a_batch_that_ends_early_brings_the_next_forward() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.submit(2, now=100.001)
    shard.ran(1, begin_s=100.0003, duration_s=0.004)
    assert shard.wake(100.0043) == ["w1: infer #2 m:1 x1 f/2"]


def test_idle_devices_share_what_waits() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2"))
    shard.submit(1, now=100.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    shard.submit(2, now=100.001)
    assert shard.wake(100.001) == ["w2: infer #2 m:1 x1 f/2"]


def test_waking_early_or_twice_is_harmless() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.submit(2, now=100.001)
    for now in (100.001, 100.001, 100.002, 100.005):
        assert shard.wake(now) == []


def test_rows_are_padded_where_the_device_needs_it() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, any_batch=False)
    for number in (1, 2, 3):
        shard.submit(number, now=100.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x4 f/1 f/2 f/3"]


def test_an_idle_shard_need_not_be_woken() -> None:
    shard = one()
    shard.wake(100.0)
    assert shard.scheduler.wake_at() is None
    assert Shard().scheduler.wake_at() is None


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_version_that_is_not_wanted_is_not_deployed() -> None:
    assert one().submit(1, "x:1", now=100.0) == ["f: 1 rejected not_deployed"]


def test_without_a_worker_there_is_no_worker() -> None:
    shard = Shard()
    shard.want(["m:1"])
    assert shard.submit(1, now=100.0) == ["f: 1 rejected no_worker"]


def test_a_version_that_no_worker_has_prepared_yet_is_not_ready() -> None:
    shard = Shard()
    shard.want(["m:1"])
    shard.join(hello("w1"), now=0.0)
    refused = shard.scheduler.submit(
        wire.Submit(request=1, attempt=2, ref="m:1", rows=1, budget_s=1.0), "f", (), age_s=0.0, now=100.0
    )
    assert refused == [
        ToFrontend(
            "f",
            wire.Refused(
                request=1, attempt=2, status="rejected", code="not_ready", message="m:1 is still being prepared",
                retry_after_s=1.0,
            ),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(("rows", "refused"), [(7, False), (8, False), (9, True)])
def test_more_rows_than_the_largest_batch_are_refused(rows: int, refused: bool) -> None:
    assert one().submit(1, now=100.0, rows=rows) == (["f: 1 failed bad_batch"] if refused else [])


def test_more_requests_than_may_wait_are_refused() -> None:
    shard = Shard(Parameters(queue_max=3)).serve({"m:1": TEN_MS})
    answers = [shard.submit(number, now=100.0, budget_s=5.0) for number in (1, 2, 3, 4)]
    assert answers == [[], [], [], ["f: 4 rejected queue_full"]]
    shard.wake(100.0)
    assert shard.submit(5, now=100.0, budget_s=5.0) == []


def test_a_budget_that_cannot_be_met_even_alone_is_refused_with_the_prediction() -> None:
    shard = one()
    message = wire.Submit(request=1, attempt=0, ref="m:1", rows=1, budget_s=0.008)
    (order,) = shard.scheduler.submit(message, "f", (), age_s=0.0, now=100.0)
    assert isinstance(order.message, wire.Refused)
    assert (order.message.code, order.message.retry_after_s) == ("deadline", None)
    assert order.message.predicted_s == pytest.approx(DISPATCH_S + 0.010)
    assert order.message.message == "it would take 10.3 ms even alone; the budget is 8.0 ms"
    shard.scheduler.check()
    assert shard.wake(100.0) == []


def test_an_estimate_that_nothing_confirms_is_tried_once_a_while() -> None:
    shard = one()
    refused = ["f: 1 rejected deadline"]
    assert shard.submit(1, now=100.0, budget_s=0.009) == refused
    assert shard.submit(1, now=100.2, budget_s=0.009) == refused
    assert shard.submit(1, now=101.1, budget_s=0.009) == []
    assert shard.wake(101.1) == ["w1: infer #1 m:1 x1 f/1"]
    shard.ran(1, begin_s=101.1, duration_s=0.006)
    assert shard.submit(2, now=101.2, budget_s=0.009) == []


def test_a_budget_that_what_waits_uses_up_is_refused_for_overload_and_told_when_to_come_again() -> None:
    shard = one()
    for number in range(1, 9):
        shard.submit(number, now=100.0, budget_s=1.0)
    message = wire.Submit(request=9, attempt=0, ref="m:1", rows=1, budget_s=0.020)
    (order,) = shard.scheduler.submit(message, "f", (), age_s=0.0, now=100.0)
    assert isinstance(order.message, wire.Refused)
    assert (order.message.status, order.message.code) == ("rejected", "overload")
    late_s = DISPATCH_S + 0.024 + 0.010 - 0.019
    assert late_s <= order.message.retry_after_s <= late_s + 0.003
    assert shard.scheduler.counters.refused == {"overload": 1}


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
    assert shard.wake(100.499 - DESERTED_S - 1e-4) == []
    assert shard.wake(100.499 - DESERTED_S + 1e-4) + woken(shard, until=100.5) == ["f: 1 rejected deadline"]


# -- the same request again, and requests given up --------------------------------------------------------------------


def test_a_request_submitted_twice_runs_once() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    assert shard.submit(1, now=100.0, attempt=1) == []
    (order,) = shard.orders(100.0)
    assert isinstance(order.message, wire.Infer)
    assert [(part.request, part.attempt) for part in order.message.parts] == [(1, 1)]
    assert shard.submit(1, now=100.001, attempt=2) == []
    assert shard.wake(100.02) == []
    assert shard.scheduler.counters.submitted == 1


def test_the_same_number_from_another_frontend_is_another_request() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.submit(1, now=100.0, frontend="g")
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x2 f/1 g/1"]


def test_a_number_may_be_used_again_once_its_request_has_ended() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.ran(1, begin_s=100.0, duration_s=0.01)
    shard.submit(1, now=100.02)
    assert shard.wake(100.02) == ["w1: infer #2 m:1 x1 f/1"]


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
    assert shard.result(1, now=100.01, code="late") == []
    assert shard.wake(100.01) == []
    assert shard.scheduler.open_requests == 0


def test_all_that_waits_for_a_lost_frontend_is_dropped() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.submit(2, now=100.0, frontend="g")
    shard.lose_frontend("f")
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 g/2"]
    shard.lose_frontend("g")
    assert shard.scheduler.open_requests == 0
    assert shard.result(1, now=100.01, code="late") == []
    assert shard.wake(100.01) == []


def test_a_lost_frontend_hears_nothing_more_of_what_ran_for_it() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.lose_frontend("f")
    assert shard.result(1, now=100.01, code="device_error") == []


@pytest.mark.parametrize("code", ["ok", "device_error", "late"])
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


# -- workers lost, actions failed -------------------------------------------------------------------------------------


def test_what_a_lost_worker_had_is_planned_again_on_another() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2"))
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.submit(2, now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x2 f/1 f/2"]
    assert shard.lose("w1", now=100.005) == []
    assert shard.wake(100.005) == ["w2: infer #2 m:1 x2 f/1 f/2"]


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


@pytest.mark.parametrize("code", ["late", "no_slots", "overfull", "weights_missing", "lost"])
def test_a_request_whose_action_came_to_nothing_is_planned_again(code: str) -> None:
    shard = one()
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    assert shard.result(1, now=100.01, code=code) == []
    assert any(order.endswith("infer #2 m:1 x1 f/1") for order in shard.wake(100.01)) or code == "weights_missing"
    assert shard.scheduler.counters.failed_actions == {code: 1}


def test_a_request_is_not_planned_more_often_than_three_times() -> None:
    shard = one()
    shard.submit(1, now=100.0, budget_s=5.0)
    for action in (1, 2, 3):
        assert shard.wake(100.0 + action) == [f"w1: infer #{action} m:1 x1 f/1"]
        refused = shard.result(action, now=100.01 + action, code="late", message="too late")
        assert refused == (["f: 1 failed late"] if action == 3 else [])
    assert shard.scheduler.open_requests == 0


@pytest.mark.parametrize("code", ["device_error", "bad_input", "bad_batch"])
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
    shard.result(1, now=100.001, code="weights_missing")
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


# -- LOAD and UNLOAD --------------------------------------------------------------------------------------------------


def test_models_are_loaded_one_after_the_other_while_there_is_room() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS, "c:1": TEN_MS}, resident=[], pages=5)
    shard.submit(1, "c:1", now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: load #1 c:1"]
    assert shard.wake(100.0) == ["w1: infer #2 c:1 x1 f/1"]
    shard.loaded(1, now=100.005)
    assert shard.wake(100.005) == ["w1: load #3 a:1"]
    shard.loaded(3, now=100.01)
    assert shard.wake(100.01) == []


def test_a_batch_is_sent_behind_a_load_that_is_still_running() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, resident=[])
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    (order,) = shard.orders(100.0)
    assert isinstance(order.message, wire.Infer)
    assert order.message.parts[0].predicted_s == pytest.approx(0.005 + DISPATCH_S + 0.010)
    assert shard.state.devices["w1"].exec.free_at(100.0) == pytest.approx(100.0 + DISPATCH_S + 0.005 + 0.010)


def test_a_model_in_demand_takes_the_place_of_one_that_nobody_asks_for() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS}, resident=["a:1"], pages=3)
    shard.submit(1, "b:1", now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: unload #1 a:1", "w1: load #2 b:1"]
    assert shard.scheduler.counters.unloads == 1
    assert shard.wake(100.0) == ["w1: infer #3 b:1 x1 f/1"]


def test_a_model_with_waiting_work_keeps_its_place_until_that_is_done() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS}, resident=["a:1"], pages=3)
    shard.submit(1, "a:1", now=100.0, budget_s=1.0)
    shard.submit(2, "b:1", now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: infer #1 a:1 x1 f/1"]
    assert shard.wake(100.005) == []
    shard.ran(1, begin_s=100.0003, duration_s=0.01)
    assert shard.wake(100.0103) == ["w1: unload #2 a:1", "w1: load #3 b:1"]


def test_requests_that_take_turns_for_one_place_are_all_served() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS}, resident=["a:1"], pages=3)
    now = 100.0
    served = 0
    for number in range(1, 7):
        shard.submit(number, "ab"[number % 2] + ":1", now=now, budget_s=1.0)
        while shard.scheduler.open_requests:
            shard.wake(now)
            for action in list(shard.state.devices["w1"].actions.values()):
                now += 0.01
                if action.kind == "infer":
                    served += len(action.requests)
                    shard.ran(action.id, begin_s=now - 0.01, duration_s=0.01)
                elif action.kind == "load":
                    shard.loaded(action.id, now=now)
                else:
                    shard.result(action.id, "unload", now=now)
    assert served == 6


@pytest.mark.parametrize("code", ["late", "no_pages", "device_error"])
def test_a_load_that_failed_is_tried_again_while_somebody_waits_for_it(code: str) -> None:
    shard = Shard().serve({"m:1": TEN_MS}, resident=[])
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    shard.wake(100.0)
    assert shard.result(1, "load", now=100.01, code=code) == []
    assert shard.result(2, now=100.01, code="weights_missing") == []
    orders = shard.wake(100.01) + woken(shard, until=100.5)
    assert orders[:2] == ["w1: load #3 m:1", "w1: infer #4 m:1 x1 f/1"]


@pytest.mark.parametrize("requests", [0, 1])
def test_a_load_that_fails_every_time_is_not_sent_without_end(requests: int) -> None:
    for code in ("no_pages", "device_error", "late"):
        shard = Shard().serve({"m:1": TEN_MS}, resident=[])
        for number in range(requests):
            shard.submit(number, now=100.0, budget_s=5.0)
        for half_milliseconds in range(2000):
            now = 100.0 + half_milliseconds / 2000
            shard.wake(now)
            for action in list(shard.state.devices["w1"].actions.values()):
                answer = code if action.kind == "load" else "weights_missing"
                shard.result(action.id, action.kind, now=now + 0.0004, code=answer)
        assert shard.scheduler.counters.loads < 100, code


def test_a_model_that_turned_out_to_be_there_already_serves_and_may_leave_again() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS}, resident=[], pages=3)
    shard.submit(1, "a:1", now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: load #1 a:1"]
    assert shard.result(1, "load", now=100.001, code="already_loaded") == []
    assert shard.wake(100.001) == ["w1: infer #2 a:1 x1 f/1"]
    shard.ran(2, begin_s=100.0015, duration_s=0.01)
    shard.submit(2, "b:1", now=100.02, budget_s=1.0)
    assert shard.wake(100.02) == ["w1: unload #3 a:1", "w1: load #4 b:1"]


def test_a_model_s_second_life_on_a_device_is_not_ended_by_what_was_sent_in_its_first() -> None:
    """Two batches were sent behind a LOAD that came to nothing; their reports come in one by one."""
    shard = Shard(lead_ms=1000).serve({"m:1": TEN_MS}, resident=[])
    shard.submit(1, now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: load #1 m:1"]
    assert shard.wake(100.0) == ["w1: infer #2 m:1 x1 f/1"]
    shard.submit(2, now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: infer #3 m:1 x1 f/2"]
    shard.result(1, "load", now=100.01, code="late")
    shard.submit(3, now=100.2, budget_s=1.0)
    assert shard.wake(100.2) == ["w1: load #4 m:1"]
    shard.result(2, now=100.201, code="weights_missing")
    shard.result(3, now=100.202, code="weights_missing")
    assert shard.state.devices["w1"].residency.models["m:1"].loading == 4


def test_one_load_is_under_way_at_a_time() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS}, resident=[])
    shard.submit(1, "a:1", now=100.0, budget_s=1.0)
    shard.submit(2, "b:1", now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: load #1 a:1"]
    assert shard.wake(100.001) == ["w1: infer #2 a:1 x1 f/1"]
    shard.loaded(1, now=100.005)
    assert shard.wake(100.005) == ["w1: load #3 b:1"]


def test_loads_teach_how_long_they_take() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, resident=[])
    assert shard.wake(100.0) == ["w1: load #1 m:1"]
    shard.loaded(1, now=100.02, duration_s=0.02)
    assert shard.state.devices["w1"].loads["m:1"].load_s() > 0.005
    assert shard.state.devices["w1"].residency.models["m:1"].ready_s == 100.02


# -- leaving ----------------------------------------------------------------------------------------------------------


def test_what_waits_for_a_worker_that_leaves_goes_to_another() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2"))
    shard.submit(1, now=100.0)
    shard.leave("w1")
    assert shard.wake(100.0) == ["w2: infer #1 m:1 x1 f/1"]


def test_an_action_that_fails_on_a_worker_that_leaves_is_planned_on_another() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2"))
    shard.submit(1, now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    shard.leave("w1")
    shard.result(1, now=100.001, code="late")
    assert shard.wake(100.001) == ["w2: infer #2 m:1 x1 f/1"]


def test_an_action_on_a_worker_that_leaves_is_lost_when_overdue() -> None:
    shard = one()
    shard.submit(1, now=100.0, budget_s=10.0)
    shard.wake(100.0)
    shard.leave("w1")
    assert shard.wake(103.0) == ["f: 1 failed lost"]


def test_counters_add_up() -> None:
    shard = one()
    for number in range(1, 4):
        shard.submit(number, now=100.0)
    shard.wake(100.0)
    shard.ran(1, begin_s=100.0003, duration_s=0.014)
    shard.submit(4, "x:1", now=100.1)
    shard.submit(5, now=100.1, budget_s=0.001)
    counters = shard.scheduler.counters
    assert (counters.submitted, counters.batches, counters.batched_rows) == (5, 1, 3)
    assert (counters.in_time, counters.late) == (3, 0)
    assert counters.refused == {"not_deployed": 1, "deadline": 1}
