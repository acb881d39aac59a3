"""Inputs that frontends keep: read where they lie on the same host, and fetched ahead of the window on another."""

import pytest

from controller.core.devices.base import DISPATCH_S, EARLY_S, RemoteDevice
from controller.core.estimation.fetching import PAUSE_S_MAX, FetchEstimate
from mesh import wire
from mesh.codes import ActionCode, RequestOutcome
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, line, wake_at
from tests.controller.core.open_models import open_prepared, open_spec, sized_profile

MISSING = ActionCode.INPUTS_MISSING
HERE = wire.Kept(sizes=(4,), slot=wire.Slot(segment="1.2.ab", offset=0, generation=1))
FAR = wire.Kept(sizes=(4,))
FETCH_S = DISPATCH_S + FetchEstimate().expected_s(4)


def kept(rows: int = 1, *, slot: bool = False) -> wire.Kept:
    """Inputs of so many rows, in memory of the frontend's host or not."""
    return wire.Kept(sizes=(4 * rows,), slot=HERE.slot if slot else None)


def network(made: Shard, row_s: float, worker: str = "w1") -> None:
    """To fetch the inputs of one row takes so long, and nothing is added by chance."""
    fetch = made.scheduler.state.devices[worker].fetch
    for estimate in (fetch.here, fetch.elsewhere):
        estimate.batch_s, estimate.megabyte_s, estimate.margin.value_s = 0.0, row_s * 1e6 / 4, 0.0


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


@pytest.mark.parametrize(("lies", "host"), [(FAR, "h"), (HERE, "elsewhere"), (HERE, "")])
def test_a_window_opens_when_inputs_that_are_fetched_are_expected_to_be_there(lies: wire.Kept, host: str) -> None:
    made = shard(frontend_host=host)
    assert made.submit(1, now=100.0, kept=lies) == []
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
    before_s = device(made).fetch.expected_s((4, 0))
    for number in range(1, 60):
        now = 100.0 + number
        made.submit(number, now=now, kept=FAR)
        (infer,) = infers(made, now)
        begin_s = infer.earliest_s
        made.result(
            number, now=begin_s + 0.01, begin_s=begin_s, end_s=begin_s + 0.01, duration_s=0.01, fetched_bytes=4,
            fetch_s=0.0001,
        )  # fmt: skip
    assert device(made).fetch.expected_s((4, 0)) < before_s / 3
    assert device(made).dispatch.value_s == DISPATCH_S  # a window that opens later says nothing of the way


def test_requests_that_were_left_out_of_a_batch_are_planned_again_and_nobody_is_suspected() -> None:
    made = shard()
    for number in (1, 2, 3):
        made.submit(number, now=100.0, budget_s=1.0, kept=FAR)
    made.wake(100.0)
    before_s = device(made).fetch.expected_s((12, 0))
    told = made.result(1, now=100.05, begin_s=100.04, end_s=100.05, duration_s=0.01, missing=(0, 2, 17))
    assert told == []
    assert made.scheduler.counters.in_time == 1
    assert made.scheduler.counters.left_out == 2
    assert device(made).fetch.expected_s((12, 0)) > before_s
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
    before_s = device(made).fetch.expected_s((4, 0))
    made.cancel(1, now=100.001)
    made.result(1, now=100.5, code=MISSING)
    assert device(made).fetch.expected_s((4, 0)) == before_s
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


@pytest.mark.parametrize("lies", [HERE, FAR])
def test_a_batch_that_ran_whole_teaches_how_long_it_takes_though_its_requests_were_given_up(lies: wire.Kept) -> None:
    made = shard()
    for number in (1, 2):
        made.submit(number, now=100.0, kept=lies)
    (infer,) = infers(made, 100.0)
    curve, noise = device(made).curves["m:1"], device(made).noise.value_s
    before_s = curve.exec_s(2)
    for number in (1, 2):
        made.cancel(number, now=100.1)
    begin_s = max(infer.earliest_s, 100.001)
    fetched = {} if lies is HERE else {"fetched_bytes": 8, "fetch_s": 0.001}
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
    before_s = device(made).fetch.expected_s((4, 0))
    made.result(1, now=100.05, begin_s=100.04, end_s=100.05, duration_s=0.01, ended=(1,))
    assert made.scheduler.counters.in_time == 1
    made.cancel(2, now=100.0501)  # the word was on its way
    assert made.wake(100.0502) == []
    assert (made.scheduler.open_requests, made.scheduler.counters.left_out) == (0, 0)
    assert device(made).fetch.expected_s((4, 0)) == before_s


def test_a_batch_whose_requests_have_all_ended_misses_nothing() -> None:
    made = shard()
    made.submit(1, now=100.0, budget_s=1.0, kept=FAR)
    made.wake(100.0)
    before_s = device(made).fetch.expected_s((4, 0))
    assert made.result(1, now=100.01, code=MISSING, ended=(0,)) == []
    assert device(made).fetch.expected_s((4, 0)) == before_s


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


def test_the_inputs_of_those_who_take_part_count_and_not_those_of_who_waits_behind() -> None:
    made = shard()
    network(made, 0.004)
    for number in (1, 2, 3, 4):
        assert made.submit(number, now=100.0, budget_s=1.0, rows=4, kept=kept(4)) == []
    (infer,) = infers(made, 100.0)
    assert [part.request for part in infer.parts] == [1, 2]
    assert infer.earliest_s == pytest.approx(100.0 + DISPATCH_S + 8 * 0.004)
    assert device(made).actions[1].expected_end_s == pytest.approx(infer.earliest_s + 0.024)


def test_nobody_is_given_up_because_of_what_others_fetch() -> None:
    made = Shard().serve({"m:1": line(0.010, 0.0)})
    made.scheduler.frontend_joined("f", "elsewhere")
    network(made, 0.004)
    assert made.submit(1, now=100.0, budget_s=0.018, kept=kept()) == []
    for number in range(2, 9):
        assert made.submit(number, now=100.0, budget_s=1.0, kept=kept()) == []
    assert made.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]


def test_what_lies_on_the_worker_s_host_does_not_wait_for_what_is_fetched() -> None:
    made = shard()
    network(made, 0.05)
    made.submit(1, now=100.0, budget_s=1.0, kept=kept())
    assert made.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    made.submit(2, now=100.001, budget_s=0.4, kept=kept())
    made.submit(3, now=100.001, budget_s=0.5, kept=kept(slot=True))
    assert made.wake(100.001) == ["w1: infer #2 m:1 x1 f/3"]
    made.ran(2, begin_s=100.002, duration_s=0.01)
    assert made.wake(100.012) == []  # one fetch after the other
    made.submit(4, now=100.04, budget_s=1.0, kept=kept(slot=True))
    opens_s = device(made).fetching_until_s
    assert made.wake(opens_s + 1e-6) == ["w1: infer #3 m:1 x2 f/2 f/4"]


def test_what_goes_before_inputs_that_are_fetched_does_not_let_the_next_ones_be_asked_for_later() -> None:
    made = shard()
    network(made, 0.05)
    made.submit(1, now=100.0, budget_s=1.0, kept=kept())
    assert made.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    assert device(made).ahead_s == pytest.approx(0.05)
    made.submit(2, now=100.001, budget_s=1.0, kept=kept(slot=True))
    assert made.wake(100.001) == ["w1: infer #2 m:1 x1 f/2"]
    assert device(made).ahead_s == pytest.approx(0.05)
    made.ran(2, begin_s=100.002, duration_s=0.01)
    made.ran(1, begin_s=100.051, duration_s=0.01)
    made.submit(3, now=100.062, budget_s=1.0, kept=kept(slot=True))
    assert made.wake(100.062) == ["w1: infer #3 m:1 x1 f/3"]
    assert device(made).ahead_s == 0.0


def test_what_goes_before_inputs_that_are_fetched_does_not_make_their_requests_late() -> None:
    made = shard()
    network(made, 0.05)
    made.submit(1, now=100.0, budget_s=0.075, kept=kept())  # its EXEC may begin at 100.0635, as 5 % may be added to it
    assert made.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    for number in range(2, 10):
        made.submit(number, now=100.045, budget_s=1.0, kept=kept(slot=True))
    made.submit(10, now=100.045, budget_s=1.0, kept=kept())
    assert made.wake(100.045) == ["w1: infer #2 m:1 x4 f/2 f/3 f/4 f/5"]  # five would take 18.9 of the 18.2 ms


def test_no_more_are_let_in_than_can_be_fetched_in_time_and_whoever_is_let_in_is_served_in_time() -> None:
    made = Shard().serve({"m:1": line(0.001, 0.0001)})
    made.scheduler.frontend_joined("f", "elsewhere")
    network(made, 0.004)
    told = [made.submit(number, now=100.0, budget_s=0.05, kept=kept()) for number in range(1, 31)]
    let_in = told.count([])
    assert 9 <= let_in <= 11
    assert told[:let_in] == [[]] * let_in
    assert told[let_in:] == [[f"f: {number} rejected overload"] for number in range(let_in + 1, 31)]
    now, answered = 100.0, 0
    while answered < let_in:
        (infer,) = infers(made, now)
        now = infer.earliest_s + 0.002
        made.ran(infer.action, begin_s=infer.earliest_s, duration_s=0.002)
        answered += len(infer.parts)
    assert made.scheduler.counters.in_time == let_in


def test_with_two_hosts_twice_as_many_are_fetched_in_time() -> None:
    made = Shard().serve({"m:1": line(0.001, 0.0001)}, workers=("w1", "w2"))
    made.scheduler.frontend_joined("f", "elsewhere")
    for worker in ("w1", "w2"):
        network(made, 0.004, worker)
    told = [made.submit(number, now=100.0, budget_s=0.05, kept=kept()) for number in range(1, 41)]
    assert 18 <= told.count([]) <= 22


def test_what_waits_in_memory_of_the_worker_s_host_is_in_no_line_for_the_network() -> None:
    made = Shard().serve({"m:1": line(0.001, 0.0001)})
    made.scheduler.frontend_joined("f", "h")
    network(made, 0.004)
    for number in range(1, 31):
        assert made.submit(number, now=100.0, budget_s=0.05, kept=kept(slot=True)) == []
    assert made.submit(31, now=100.0, budget_s=0.05, kept=kept()) == []


def test_a_request_that_is_expected_to_be_fetched_too_late_is_refused_before_its_time_is_over() -> None:
    made = shard()
    network(made, 0.05)
    assert made.submit(1, now=100.0, budget_s=0.07, kept=kept()) == []
    assert made.submit(2, now=100.0, budget_s=0.15, kept=kept()) == []
    assert made.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    network(made, 0.08)
    assert made.wake(100.06) == ["f: 2 rejected deadline"]


def test_it_is_looked_at_whether_a_request_has_become_hopeless_before_it_could_still_be_executed() -> None:
    made = shard()
    network(made, 0.05)
    assert made.submit(1, now=100.0, budget_s=0.2, kept=kept()) == []
    network(made, 0.3)
    assert made.wake(100.0) == []
    assert wake_at(made) == pytest.approx(100.199 - 0.010 - 0.05)
    assert made.wake(100.14) == ["f: 1 rejected deadline"]


@pytest.mark.parametrize("slower_s", [0.0, 0.05])
def test_of_unequal_lengths_who_cannot_be_fetched_in_time_hears_it_while_it_waits(slower_s: float) -> None:
    made = Shard()
    made.want(["m:1"])
    made.join(hello("w1", open_prepared("m:1", open_spec(), sized_profile()), resident=["m:1"]), now=0.0)
    made.scheduler.frontend_joined("f", "elsewhere")
    network(made, 0.005)
    assert made.submit(1, now=100.0, budget_s=0.07, kept=kept(10), extents=(10,)) == []
    assert made.submit(2, now=100.0, budget_s=0.15, kept=kept(10), extents=(10,)) == []
    assert made.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    network(made, 0.005 + slower_s / 10)
    assert made.wake(100.07) == ([] if slower_s else ["w1: infer #2 m:1 x1 f/2"])
    assert made.wake(100.092) == (["f: 2 rejected deadline"] if slower_s else [])


def test_a_worker_that_fetched_less_than_it_would_have_to_reads_slots_again() -> None:
    made = shard()
    made.scheduler.frontend_joined("g", "elsewhere")
    device(made).reads_slots = False
    for number, frontend, lies in ((1, "f", HERE), (2, "g", FAR)):
        made.submit(number, now=100.0, budget_s=1.0, frontend=frontend, kept=lies)
    made.wake(100.0)
    ended = {"now": 100.05, "begin_s": 100.04, "end_s": 100.05, "duration_s": 0.01, "fetch_s": 0.001}
    made.result(1, fetched_bytes=4, **ended)  # type: ignore[arg-type]
    assert device(made).reads_slots


@pytest.mark.parametrize("how", ["missing", "ended"])
def test_a_worker_that_fetched_less_because_a_request_was_left_out_does_not_read_slots_for_that(how: str) -> None:
    made = shard()
    device(made).reads_slots = False
    for number in (1, 2):
        made.submit(number, now=100.0, budget_s=1.0, kept=HERE)
    made.wake(100.0)
    ended = {"now": 100.05, "begin_s": 100.04, "end_s": 100.05, "duration_s": 0.01, "fetch_s": 0.001, how: (0,)}
    made.result(1, fetched_bytes=4, **ended)  # type: ignore[arg-type]
    assert not device(made).reads_slots


def test_a_worker_that_fetched_nothing_because_a_request_had_ended_does_not_read_slots_for_that() -> None:
    made = shard()
    device(made).reads_slots = False
    made.submit(1, now=100.0, budget_s=1.0, kept=HERE)
    made.submit(2, now=100.0, budget_s=1.0, tensors=(b"1234",))
    made.wake(100.0)
    made.result(1, now=100.05, begin_s=100.04, end_s=100.05, duration_s=0.01, ended=(0,))
    assert not device(made).reads_slots


def test_what_comes_from_the_worker_s_own_host_says_nothing_of_the_network() -> None:
    made = shard()  # "f" is on the worker's host, and has no room in its memory
    made.scheduler.frontend_joined("g", "elsewhere")
    opens_s = {"f": 0.0, "g": 0.0}
    for number in range(1, 100):
        frontend, now = "fg"[number % 2], 100.0 + number
        made.submit(number, now=now, budget_s=0.9, frontend=frontend, kept=FAR)
        (infer,) = infers(made, now)
        opens_s[frontend] = infer.earliest_s - now
        fetch_s = 0.0001 if frontend == "f" else 0.02
        begin_s = max(infer.earliest_s, now + fetch_s + 0.0003)
        made.result(
            number, now=begin_s + 0.01, begin_s=begin_s, end_s=begin_s + 0.01, duration_s=0.01, fetched_bytes=4,
            fetch_s=fetch_s,
        )  # fmt: skip
    assert opens_s["f"] < 0.002
    assert 0.02 < opens_s["g"] < 0.04


def test_a_batch_with_inputs_from_both_waits_for_the_slower() -> None:
    made = shard()
    made.scheduler.frontend_joined("g", "elsewhere")
    network(made, 0.004)
    device(made).fetch.here.megabyte_s = 1.0
    made.submit(1, now=100.0, budget_s=1.0, frontend="f", kept=FAR)
    made.submit(2, now=100.0, budget_s=1.0, frontend="g", kept=FAR)
    (infer,) = infers(made, 100.0)
    assert infer.earliest_s == pytest.approx(100.0 + DISPATCH_S + 0.004)
    before = device(made).fetch.here.expected_s(4)
    made.result(1, now=100.05, begin_s=100.04, end_s=100.05, duration_s=0.01, fetched_bytes=8, fetch_s=0.03)
    assert device(made).fetch.here.expected_s(4) == before
    assert device(made).fetch.elsewhere.expected_s(4) > 0.004
