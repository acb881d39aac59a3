"""Events in, orders out: the whole shard."""

import pytest

from controller.core.devices.base import DISPATCH_S, EARLY_S
from controller.core.orders import ToWorker
from mesh import wire
from mesh.codes import ActionCode, ActionKind, ErrorCode
from tests.controller.core.controller_builders import TEN_MS, Shard, line, one, wake_at, woken

BOTH = {"m:1": TEN_MS, "n:1": TEN_MS}


# -- a request's way --------------------------------------------------------------------------------------------------


def test_a_request_for_a_device_that_is_free_goes_out_at_once() -> None:
    shard = one()
    assert shard.wake(100.0) == []
    assert shard.submit(7, now=100.0, budget_s=0.05, tensors=(b"ins.",)) == []
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
                        inline=(b"ins.",),
                    ),
                ),
            ),
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


def test_of_inputs_that_a_frontend_keeps_the_order_says_where_they_are() -> None:
    shard = one()
    kept = wire.Kept(sizes=(4,), slot=wire.Slot(segment="1.2.ab", offset=64, generation=3), whole=1, sample=2)
    shard.submit(1, now=100.0, kept=kept)
    (order,) = shard.orders(100.0)
    assert isinstance(order.message, wire.Infer)
    assert [(part.kept, part.inline) for part in order.message.parts] == [(kept, ())]


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
                if action.kind == ActionKind.INFER:
                    served += len(action.requests)
                    shard.ran(action.id, begin_s=now - 0.01, duration_s=0.01)
                elif action.kind == ActionKind.LOAD:
                    shard.loaded(action.id, now=now)
                else:
                    shard.result(action.id, ActionKind.UNLOAD, now=now)
    assert served == 6


@pytest.mark.parametrize("code", [ActionCode.LATE, ActionCode.NO_PAGES, ActionCode.DEVICE_ERROR])
def test_a_load_that_failed_is_tried_again_while_somebody_waits_for_it(code: str) -> None:
    shard = Shard().serve({"m:1": TEN_MS}, resident=[])
    shard.submit(1, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    shard.wake(100.0)
    assert shard.result(1, ActionKind.LOAD, now=100.01, code=code) == []
    assert shard.result(2, now=100.01, code=ActionCode.WEIGHTS_MISSING) == []
    orders = shard.wake(100.01) + woken(shard, until=100.5)
    assert orders[:2] == ["w1: load #3 m:1", "w1: infer #4 m:1 x1 f/1"]


@pytest.mark.parametrize("requests", [0, 1])
def test_a_load_that_fails_every_time_is_not_sent_without_end(requests: int) -> None:
    for code in (ActionCode.NO_PAGES, ActionCode.DEVICE_ERROR, ActionCode.LATE):
        shard = Shard().serve({"m:1": TEN_MS}, resident=[])
        for number in range(requests):
            shard.submit(number, now=100.0, budget_s=5.0)
        for half_milliseconds in range(2000):
            now = 100.0 + half_milliseconds / 2000
            shard.wake(now)
            for action in list(shard.state.devices["w1"].actions.values()):
                answer = code if action.kind == ActionKind.LOAD else ActionCode.WEIGHTS_MISSING
                shard.result(action.id, action.kind, now=now + 0.0004, code=answer)
        assert shard.scheduler.counters.loads < 100, code


def test_a_model_that_turned_out_to_be_there_already_serves_and_may_leave_again() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS}, resident=[], pages=3)
    shard.submit(1, "a:1", now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: load #1 a:1"]
    assert shard.result(1, ActionKind.LOAD, now=100.001, code=ActionCode.ALREADY_LOADED) == []
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
    shard.result(1, ActionKind.LOAD, now=100.01, code=ActionCode.LATE)
    shard.submit(3, now=100.2, budget_s=1.0)
    assert shard.wake(100.2) == ["w1: load #4 m:1"]
    shard.result(2, now=100.201, code=ActionCode.WEIGHTS_MISSING)
    shard.result(3, now=100.202, code=ActionCode.WEIGHTS_MISSING)
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
    shard.result(1, now=100.001, code=ActionCode.LATE)
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
    assert counters.refused == {ErrorCode.NOT_DEPLOYED: 1, ErrorCode.DEADLINE: 1}
