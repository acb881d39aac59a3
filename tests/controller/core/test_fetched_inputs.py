"""Inputs that frontends keep: read where they lie on the same host, and fetched ahead of the window on another."""

import pytest

from controller.core.devices.base import DISPATCH_S, EARLY_S, RemoteDevice
from controller.core.estimation.fetching import PAUSE_S_MAX, FetchEstimate
from mesh import wire
from mesh.codes import ActionCode, RequestOutcome
from tests.controller.core.controller_builders import TEN_MS, Shard, wake_at

MISSING = ActionCode.INPUTS_MISSING
HERE = wire.Kept(sizes=(4,), slot=wire.Slot(segment="1.2.ab", offset=0, generation=1))
FAR = wire.Kept(sizes=(4,))
FETCH_S = DISPATCH_S + FetchEstimate().expected_s(4)


def shard(*models: str, frontend_host: str = "h") -> Shard:
    """One worker, on host "h", and a frontend."""
    made = Shard().serve({ref: TEN_MS for ref in models or ("m:1",)})
    made.scheduler.frontend_joined("f", frontend_host)
    return made


def infers(made: Shard, now: float) -> list[wire.Infer]:
    """What is sent to the worker."""
    return [order.message for order in made.orders(now) if isinstance(order.message, wire.Infer)]


def device(made: Shard) -> RemoteDevice:
    return made.scheduler.state.devices["w1"]


def test_inputs_in_memory_of_the_same_host_cost_nothing() -> None:
    made = shard()
    assert made.submit(1, now=100.0, budget_s=0.0115, kept=HERE) == []
    (infer,) = infers(made, 100.0)
    assert infer.earliest_s == 100.0 - EARLY_S
    assert infer.parts[0].predicted_s == pytest.approx(DISPATCH_S + 0.010)


@pytest.mark.parametrize(("kept", "host"), [(FAR, "h"), (HERE, "elsewhere"), (HERE, "")])
def test_a_window_opens_when_inputs_that_are_fetched_are_expected_to_be_there(kept: wire.Kept, host: str) -> None:
    made = shard(frontend_host=host)
    assert made.submit(1, now=100.0, kept=kept) == []
    (infer,) = infers(made, 100.0)
    assert infer.earliest_s == pytest.approx(100.0 + FETCH_S)
    assert infer.latest_s > infer.earliest_s
    assert infer.parts[0].predicted_s == pytest.approx(FETCH_S + 0.010)
    assert device(made).actions[1].expected_end_s == pytest.approx(100.0 + FETCH_S + 0.010)


def test_a_request_whose_inputs_cannot_be_there_in_time_is_refused_at_once() -> None:
    budget_s = 0.001 + FETCH_S + 0.010  # the first is kept for the way back
    assert shard().submit(1, now=100.0, budget_s=budget_s - 1e-5, kept=FAR) == ["f: 1 rejected deadline"]
    assert shard().submit(1, now=100.0, budget_s=budget_s + 1e-5, kept=FAR) == []


def test_behind_a_batch_that_runs_inputs_are_fetched_meanwhile() -> None:
    made = shard()
    made.submit(1, now=100.0)
    made.wake(100.0)
    made.submit(2, now=100.001, budget_s=0.5, kept=FAR)
    assert made.scheduler.isolation.requests.open["f", 2].predicted_s == pytest.approx(DISPATCH_S + 0.019)


def test_the_next_batch_goes_out_earlier_if_the_last_one_s_inputs_were_fetched() -> None:
    made = shard()
    made.submit(1, now=100.0, kept=FAR)
    assert made.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    opens_s = 100.0 + FETCH_S
    made.submit(2, now=100.001, kept=FAR)
    assert made.wake(100.001) == []  # one after the other
    assert wake_at(made) == pytest.approx(opens_s)
    assert made.wake(opens_s + 1e-6) == []
    lead_s = 0.0015 + FETCH_S - DISPATCH_S
    due_s = opens_s + 0.010 - lead_s
    assert wake_at(made) == pytest.approx(due_s)
    assert made.wake(due_s + 1e-6) == ["w1: infer #2 m:1 x1 f/2"]


def test_what_is_there_goes_before_what_is_fetched() -> None:
    made = shard("m:1", "n:1")
    made.submit(1, now=100.0, kept=FAR)
    assert made.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    assert made.submit(2, "n:1", now=100.0001, budget_s=0.0125) == []
    assert made.wake(100.0001) == ["w1: infer #2 n:1 x1 f/2"]
    executed = device(made).executed()
    assert executed is not None
    assert executed.id == 2  # it is what runs
    assert made.ran(2, begin_s=100.0004, duration_s=0.01) == []
    executed = device(made).executed()
    assert executed is not None
    assert executed.id == 1


def test_estimates_follow_what_results_say_of_fetches_and_of_the_way() -> None:
    made = shard()
    before_s = device(made).fetch.expected_s(4)
    for number in range(1, 60):
        now = 100.0 + number
        made.submit(number, now=now, kept=FAR)
        (infer,) = infers(made, now)
        begin_s = infer.earliest_s
        made.result(
            number, now=begin_s + 0.01, begin_s=begin_s, end_s=begin_s + 0.01, duration_s=0.01, fetched_bytes=4,
            fetch_s=0.0001,
        )  # fmt: skip
    assert device(made).fetch.expected_s(4) < before_s / 3
    assert device(made).dispatch.value_s == DISPATCH_S  # a window that opens later says nothing of the way


def test_requests_that_were_left_out_of_a_batch_are_planned_again_and_nobody_is_suspected() -> None:
    made = shard()
    for number in (1, 2, 3):
        made.submit(number, now=100.0, budget_s=1.0, kept=FAR)
    made.wake(100.0)
    before_s = device(made).fetch.expected_s(12)
    told = made.result(1, now=100.05, begin_s=100.04, end_s=100.05, duration_s=0.01, missing=(0, 2, 17))
    assert told == []
    assert made.scheduler.counters.in_time == 1
    assert made.scheduler.counters.left_out == 2
    assert device(made).fetch.expected_s(12) > before_s
    assert not made.scheduler.isolation.watched
    assert made.wake(100.05) == ["w1: infer #2 m:1 x2 f/1 f/3"]


def test_a_batch_of_which_every_request_was_left_out_has_served_nobody() -> None:
    made = shard()
    made.submit(1, now=100.0, budget_s=1.0, kept=FAR)
    made.wake(100.0)
    assert made.result(1, now=100.01, begin_s=100.0, end_s=100.01, duration_s=0.01, missing=(0,)) == []
    assert made.wake(100.01) == ["w1: infer #2 m:1 x1 f/1"]
    assert made.scheduler.counters.in_time == 0


@pytest.mark.parametrize("whole", [True, False])
def test_a_request_whose_inputs_are_missed_three_times_has_failed(whole: bool) -> None:
    made = shard()
    made.submit(1, now=100.0, budget_s=5.0, kept=HERE)
    for action in (1, 2, 3):
        now = 100.0 + action
        assert made.wake(now) == [f"w1: infer #{action} m:1 x1 f/1"]
        told = (
            made.result(action, now=now, code=MISSING)
            if whole
            else made.result(action, now=now, begin_s=now, end_s=now, duration_s=0.01, missing=(0,))
        )
        assert told == ([] if action < 3 else ["f: 1 failed inputs_missing"])
    assert not made.scheduler.isolation.watched
    assert made.scheduler.open_requests == 0


def test_inputs_that_nobody_waits_for_any_more_say_nothing_of_the_network() -> None:
    made = shard()
    made.submit(1, now=100.0, budget_s=1.0, kept=FAR)
    made.wake(100.0)
    before_s = device(made).fetch.expected_s(4)
    made.cancel(1, now=100.001)
    made.result(1, now=100.5, code=MISSING)
    assert device(made).fetch.expected_s(4) == before_s
    assert made.wake(100.5) == []


def test_a_worker_that_cannot_be_reached_for_a_while_is_asked_again() -> None:
    made = shard()
    now, number = 100.0, 0
    while True:
        number += 1
        if made.submit(number, now=now, budget_s=0.1, kept=FAR):
            break  # nothing is expected to be there in time any more
        made.wake(now)
        (action,) = device(made).actions
        now += 0.08
        made.result(action, now=now, code=MISSING)
        made.cancel(number, now=now)
        assert number < 1000
    now += PAUSE_S_MAX
    assert made.submit(number + 1, now=now, budget_s=0.1, kept=FAR) == []


def test_a_worker_that_fetches_what_lies_on_its_host_is_planned_as_one_elsewhere() -> None:
    made = shard()
    made.submit(1, now=100.0, kept=HERE)
    (infer,) = infers(made, 100.0)
    assert infer.earliest_s < 100.0
    made.result(
        1, now=100.02, begin_s=100.01, end_s=100.02, duration_s=0.01, fetched_bytes=4, fetch_s=FETCH_S - DISPATCH_S
    )
    made.submit(2, now=101.0, kept=HERE)
    (infer,) = infers(made, 101.0)
    assert infer.earliest_s > 101.001
    made.result(2, now=101.02, begin_s=101.01, end_s=101.02, duration_s=0.01)  # it could read them
    made.submit(3, now=102.0, kept=HERE)
    (infer,) = infers(made, 102.0)
    assert infer.earliest_s < 102.0


def test_a_batch_without_a_request_that_had_ended_says_nothing_of_how_long_it_takes() -> None:
    made = shard()
    for number in (1, 2):
        made.submit(number, now=100.0, budget_s=1.0, kept=FAR)
    assert made.wake(100.0) == ["w1: infer #1 m:1 x2 f/1 f/2"]
    before_s = device(made).curves["m:1"].exec_s(2)
    made.cancel(1, now=100.001)
    made.result(
        1, now=100.05, begin_s=100.04, end_s=100.041, duration_s=0.001, fetched_bytes=4, fetch_s=0.001, ended=(0,)
    )
    assert device(made).curves["m:1"].exec_s(2) == before_s
    counters = made.scheduler.counters
    assert (counters.in_time, counters.computed_for_nobody, counters.left_out) == (1, 0, 0)


@pytest.mark.parametrize("kept", [HERE, FAR])
def test_a_batch_that_ran_whole_teaches_how_long_it_takes_though_its_requests_were_given_up(kept: wire.Kept) -> None:
    made = shard()
    for number in (1, 2):
        made.submit(number, now=100.0, kept=kept)
    (infer,) = infers(made, 100.0)
    curve, noise = device(made).curves["m:1"], device(made).noise.value_s
    before_s = curve.exec_s(2)
    for number in (1, 2):
        made.cancel(number, now=100.1)
    begin_s = max(infer.earliest_s, 100.001)
    fetched = {} if kept is HERE else {"fetched_bytes": 8, "fetch_s": 0.001}
    made.result(1, now=begin_s + 0.2, begin_s=begin_s, end_s=begin_s + 0.2, duration_s=0.2, **fetched)  # type: ignore[arg-type]
    assert curve.exec_s(2) > before_s
    assert device(made).noise.value_s > noise
    counters = made.scheduler.counters
    assert (counters.in_time, counters.computed_for_nobody, counters.left_out) == (0, 2, 0)


def test_a_device_that_became_slow_is_given_fewer_large_inputs_until_what_it_is_given_is_in_time() -> None:
    made = shard()
    now, number, lost = 100.0, 0, []
    for _ in range(60):
        first = number + 1
        for number in range(first, first + 8):
            made.submit(number, now=now, budget_s=0.05, kept=HERE)
        sent = infers(made, now)
        late = 0
        for infer in sent:
            took_s = 4 * (0.008 + 0.002 * infer.batch)
            end_s = now + 0.0005 + took_s
            if end_s > now + 0.05:  # their frontend gives them up before
                for part in infer.parts:
                    made.scheduler.cancel("f", part.request, RequestOutcome.TIMED_OUT, now=now + 0.05)
                late += len(infer.parts)
            made.ran(infer.action, begin_s=now + 0.0005, duration_s=took_s)
        lost.append(late)
        now += 1.0
        made.wake(now)
    assert lost[0] == 8
    assert lost[-20:] == [0] * 20
    assert made.scheduler.counters.in_time > 0


def test_a_request_that_has_ended_for_its_frontend_but_not_here_is_neither_served_nor_a_miss() -> None:
    made = shard()
    for number in (1, 2):
        made.submit(number, now=100.0, budget_s=1.0, kept=FAR)
    made.wake(100.0)
    before_s = device(made).fetch.expected_s(4)
    made.result(1, now=100.05, begin_s=100.04, end_s=100.05, duration_s=0.01, ended=(1,))
    assert made.scheduler.counters.in_time == 1
    made.cancel(2, now=100.0501)  # the word was on its way
    assert made.wake(100.0502) == []
    assert (made.scheduler.open_requests, made.scheduler.counters.left_out) == (0, 0)
    assert device(made).fetch.expected_s(4) == before_s


def test_a_batch_whose_requests_have_all_ended_misses_nothing() -> None:
    made = shard()
    made.submit(1, now=100.0, budget_s=1.0, kept=FAR)
    made.wake(100.0)
    before_s = device(made).fetch.expected_s(4)
    assert made.result(1, now=100.01, code=MISSING, ended=(0,)) == []
    assert device(made).fetch.expected_s(4) == before_s


@pytest.mark.parametrize(
    ("code", "counted"), [(ActionCode.OK, 1), (ActionCode.WEIGHTS_MISSING, 0), (ActionCode.LATE, 0)]
)
def test_left_out_are_those_who_still_wait_for_a_batch_that_ran_without_them(code: ActionCode, counted: int) -> None:
    made = shard()
    for number in (1, 2, 3):
        made.submit(number, now=100.0, budget_s=1.0, kept=FAR)
    made.wake(100.0)
    made.cancel(3, now=100.001)
    ran = {"begin_s": 100.04, "end_s": 100.05, "duration_s": 0.01} if code is ActionCode.OK else {}
    made.result(1, now=100.05, code=code, missing=(0, 2), **ran)  # type: ignore[arg-type]
    assert made.scheduler.counters.left_out == counted
