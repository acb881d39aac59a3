"""Lanes and inputs that come later: who waits for them, until when, and what becomes of a batch without some."""

import pytest

from gpu_worker.core.input_times import INPUT_S
from gpu_worker.core.jobs import Done, Phase, Servable
from gpu_worker.core.lanes import INPUT_AHEAD_S
from mesh.codes import ActionCode
from tests.gpu_worker.worker_builders import EPOCH, TWO, Device, awaiting, infer, load, unload

LATEST_S = 20.0
GIVE_UP_S = LATEST_S - INPUT_S
BATCH = infer(1, earliest_s=10.0, latest_s=LATEST_S, batch=4, rows=[1, 1, 1])


def loaded(**more: object) -> Device:
    return Device(**more).loaded()  # type: ignore[arg-type]


def test_input_begins_once_the_last_inputs_have_come() -> None:
    device, incoming = loaded(), awaiting(BATCH, 0)
    assert device.order_kept(incoming, now=10.0) == []
    incoming.arrived(2, [b"c"], 10.5)
    assert device.wake(10.5) == []
    incoming.arrived(1, [b"b"], 11.0)
    assert device.wake(11.0) == ["start input #1"]
    job = device.running[Phase.INPUT, 1]
    assert (job.action, job.tensors) == (incoming.action, [[b"i" * 100], [b"b"], [b"c"]])
    assert device.end(Phase.INPUT, 1, now=11.1) == ["start exec #1"]
    device.end(Phase.EXEC, 1, now=11.2)
    assert device.end(Phase.OUTPUT, 1, now=11.3) == ["infer #1 ok, 2 free"]
    assert (device.results[1].missing, device.results[1].fetched_bytes) == ((), 2)


def test_inputs_that_came_ahead_of_the_window_wait_for_it() -> None:
    device, incoming = loaded(), awaiting(BATCH, 0, 1)
    assert device.order_kept(incoming, now=9.0) == []
    incoming.arrived(2, [b"c"], 9.5)
    assert device.wake(9.5) == []
    assert device.lanes.wake_at() == 10.0 - INPUT_AHEAD_S
    assert device.wake(10.0 - INPUT_AHEAD_S) == ["start input #1"]
    assert device.end(Phase.INPUT, 1, now=9.999) == []
    assert device.wake(10.0) == ["start exec #1"]


@pytest.mark.parametrize(("now", "effects"), [(GIVE_UP_S - 1e-6, []), (GIVE_UP_S, ["start input #1"])])
def test_a_batch_goes_without_what_is_not_there_while_it_can_still_begin(now: float, effects: list[str]) -> None:
    device, incoming = loaded(), awaiting(BATCH, 0, 2)
    device.order_kept(incoming, now=10.0)
    assert device.lanes.wake_at() == GIVE_UP_S
    assert device.wake(now) == effects
    if effects:
        job = device.running[Phase.INPUT, 1]
        assert ([part.request for part in job.action.parts], job.action.batch) == ([0, 2], 2)  # type: ignore[union-attr]
        assert len(job.tensors) == 2
        device.end(Phase.INPUT, 1, now=now)
        device.end(Phase.EXEC, 1, now=now)
        assert device.end(Phase.OUTPUT, 1, now=now) == ["infer #1 ok, 2 free"]
        assert device.results[1].missing == (1,)


def test_where_only_some_sizes_can_be_executed_the_rows_left_out_are_padding() -> None:
    device, incoming = loaded(batch_sizes=[4]), awaiting(BATCH, 0, 2)
    device.order_kept(incoming, now=10.0)
    device.wake(GIVE_UP_S)
    assert device.running[Phase.INPUT, 1].action.batch == 4  # type: ignore[union-attr]


@pytest.mark.parametrize("batch_sizes", [None, [4]])
def test_the_result_names_the_parts_that_had_ended_and_no_others(batch_sizes: list[int] | None) -> None:
    device, incoming = loaded(batch_sizes=batch_sizes), awaiting(BATCH, 0)
    device.order_kept(incoming, now=10.0)
    incoming.end(2)
    incoming.arrived(1, [b"x"], 10.1)
    device.wake(10.1)
    for phase in (Phase.INPUT, Phase.EXEC, Phase.OUTPUT):
        device.end(phase, 1, now=10.2)
    assert (device.results[1].code, device.results[1].missing, device.results[1].ended) == (ActionCode.OK, (), (2,))


def test_a_batch_without_any_inputs_ends_at_once_when_there_will_be_none() -> None:
    device, incoming = loaded(), awaiting(BATCH)
    device.order_kept(incoming, now=9.0)
    incoming.miss((0, 1))
    incoming.end(2)
    assert device.wake(9.5) == ["infer #1 inputs_missing, 2 free"]
    assert (device.results[1].missing, device.results[1].ended) == ((0, 1), (2,))
    assert device.lanes.idle


def test_a_batch_without_any_inputs_ends_when_it_is_too_late_for_them() -> None:
    device, incoming = loaded(), awaiting(BATCH)
    device.order_kept(incoming, now=10.0)
    assert device.wake(GIVE_UP_S) == ["infer #1 inputs_missing, 2 free"]
    assert device.results[1].missing == (0, 1, 2)


def test_what_is_woken_too_late_says_that_inputs_were_missing_and_which() -> None:
    device, incoming = loaded(), awaiting(BATCH, 1)
    device.order_kept(incoming, now=10.0)
    assert device.wake(LATEST_S + 1) == ["infer #1 inputs_missing, 2 free"]
    assert device.results[1].missing == (0, 2)


def test_what_has_all_its_inputs_and_is_woken_too_late_is_late() -> None:
    device = loaded()
    assert device.order_kept(awaiting(BATCH, 0, 1, 2), now=9.0) == []
    assert device.wake(LATEST_S + 1) == ["infer #1 late, 2 free"]


def test_others_go_ahead_of_who_waits_for_inputs() -> None:
    device, incoming = loaded(depth=TWO), awaiting(BATCH)
    device.order_kept(incoming, now=10.0)
    assert device.order(infer(2, earliest_s=10.0), now=10.0) == ["start input #2"]
    assert device.end(Phase.INPUT, 2, now=10.0) == ["start exec #2"]
    for part in range(3):
        incoming.arrived(part, [b"x"], 10.1)
    assert device.wake(10.1) == ["start input #1"]


def test_the_longest_input_of_late_decides_how_soon_inputs_are_given_up() -> None:
    device = loaded()
    device.order_kept(awaiting(infer(2, latest_s=LATEST_S), 0), now=10.0)
    job = device.running[Phase.INPUT, 2]
    device.lanes.finished(Phase.INPUT, job, Done(10.0, 13.0, 3.0), now=13.0)
    device.order_kept(awaiting(BATCH, 0), now=13.0)
    assert device.lanes.wake_at() == LATEST_S - 3.0


def after_an_input_of(seconds: float, *refs: str) -> Device:
    """The device has had an INPUT of "m:1" that lasted so long, and ended before 10.0."""
    device = Device("m:1", *refs).loaded("m:1", *refs)
    device.order_kept(awaiting(infer(2, latest_s=LATEST_S), 0), now=10.0 - seconds)
    job = device.running.pop((Phase.INPUT, 2))
    device.lanes.finished(Phase.INPUT, job, Done(10.0 - seconds, 10.0, seconds), now=10.0)
    return device


@pytest.mark.parametrize("window_s", [2**-10, 2**-5, 1.0])
def test_inputs_are_never_given_up_before_they_can_be_asked_for(window_s: float) -> None:
    """An INPUT lasted 3 s, as when the process was stopped, and every INFER after it has less time than that."""
    device = after_an_input_of(3.0)
    for action in range(10, 20):
        incoming = awaiting(infer(action, earliest_s=11.0, latest_s=11.0 + window_s))
        assert device.order_kept(incoming, now=11.0) == []
        assert incoming.awaited
        assert device.lanes.wake_at() == 11.0 + window_s / 2
        incoming.arrived(0, [b"x"], 11.0 + window_s / 4)
        assert device.wake(11.0 + window_s / 4) == [f"start input #{action}"]
        device.revoke(action, now=11.0)
        device.end(Phase.INPUT, action, now=11.0 + window_s / 2)


def test_a_long_input_is_forgotten_though_nothing_but_give_ups_follows() -> None:
    device = after_an_input_of(3.0)
    asked_s = []
    for action in range(10, 100):
        device.order_kept(awaiting(infer(action, earliest_s=11.0, latest_s=12.0)), now=11.0)
        at = device.lanes.wake_at()
        assert at is not None
        asked_s.append(12.0 - at)
        assert device.wake(at) == [f"infer #{action} inputs_missing, 2 free"]
    assert asked_s[0] == 0.5
    assert asked_s == sorted(asked_s, reverse=True)
    assert asked_s[-1] == pytest.approx(INPUT_S)


def test_what_is_woken_too_late_to_wait_for_inputs_counts_as_given_up() -> None:
    device = after_an_input_of(0.4)
    for action in range(10, 100):
        device.order_kept(awaiting(infer(action, earliest_s=11.0, latest_s=12.0)), now=11.0)
        assert device.wake(12.1) == [f"infer #{action} inputs_missing, 2 free"]
    device.order_kept(awaiting(infer(3, earliest_s=11.0, latest_s=12.0)), now=11.0)
    assert device.lanes.wake_at() == pytest.approx(12.0 - INPUT_S)


def test_a_version_is_not_judged_by_the_inputs_of_another() -> None:
    device = after_an_input_of(3.0, "n:1")
    device.order_kept(awaiting(infer(3, "n:1", earliest_s=10.0, latest_s=LATEST_S)), now=10.0)
    assert device.lanes.wake_at() == GIVE_UP_S


def test_a_version_that_is_served_again_begins_anew() -> None:
    device = after_an_input_of(3.0)
    device.forget("m:1", now=10.0)
    device.lanes.prepared("m:1", Servable(2, 8, None, ()))
    device.order(load(4), now=10.0)
    device.end(Phase.LOAD, 4, now=10.0)
    device.order_kept(awaiting(BATCH, 0), now=10.0)
    assert device.lanes.wake_at() == GIVE_UP_S


def test_input_is_done_again_without_what_cannot_be_trusted() -> None:
    device, incoming = loaded(), awaiting(BATCH, 0, 1, 2)
    assert device.order_kept(incoming, now=10.0) == ["start input #1"]
    assert device.input_again(1, [0, 1], now=10.1) == ["start input #1"]
    job = device.running[Phase.INPUT, 1]
    assert [part.request for part in job.action.parts] == [2]  # type: ignore[union-attr]
    assert device.end(Phase.INPUT, 1, now=10.2) == ["start exec #1"]
    device.end(Phase.EXEC, 1, now=10.3)
    device.end(Phase.OUTPUT, 1, now=10.4)
    assert device.results[1].missing == (0, 1)


def test_a_batch_of_which_nothing_can_be_trusted_ends() -> None:
    device = loaded()
    device.order_kept(awaiting(BATCH, 0, 1, 2), now=10.0)
    assert device.input_again(1, [0, 1, 2], now=10.1) == ["infer #1 inputs_missing, 2 free"]


def test_who_was_revoked_meanwhile_does_not_begin_again() -> None:
    device = loaded()
    device.order_kept(awaiting(BATCH, 0, 1, 2), now=10.0)
    assert device.revoke(1, now=10.1) == []
    assert device.input_again(1, [0], now=10.2) == ["infer #1 revoked, 2 free"]
    assert device.lanes.idle


def test_who_waits_for_inputs_can_be_revoked() -> None:
    device = loaded()
    device.order_kept(awaiting(BATCH), now=10.0)
    assert device.revoke(1, now=10.1) == ["infer #1 revoked, 2 free"]
    assert device.lanes.wake_at() is None


def test_who_waits_for_inputs_ends_if_its_weights_are_gone() -> None:
    device = loaded()
    device.order_kept(awaiting(BATCH), now=10.0)
    assert device.order(unload(2), now=10.1) == ["unload #2 ok, 4 free", "infer #1 weights_missing, 4 free"]


def test_weights_and_inputs_may_come_in_any_order() -> None:
    device, incoming = Device("m:1"), awaiting(BATCH)
    device.order(load(9), now=10.0)
    device.order_kept(incoming, now=10.0)
    for part in range(3):
        incoming.arrived(part, [b"x"], 10.1)
    assert device.wake(10.1) == ["start input #1"]
    assert device.end(Phase.INPUT, 1, now=10.2) == []
    assert device.end(Phase.LOAD, 9, now=10.3) == ["load #9 ok, 2 free", "start exec #1"]


def test_a_new_controller_and_a_lost_device_drop_who_waits_for_inputs() -> None:
    device = loaded()
    device.order_kept(awaiting(BATCH), now=10.0)
    assert [job.action.action for job in device.lanes.welcome(EPOCH + 1)] == [1]
    assert device.lanes.wake_at() is None
    lost = loaded()
    lost.order_kept(awaiting(BATCH), now=10.0)
    assert [job.action.action for job in lost.lanes.halt()] == [1]


def test_what_is_refused_waits_for_nothing() -> None:
    device = Device("m:1")
    assert device.order_kept(awaiting(BATCH), now=10.0) == ["infer #1 weights_missing, 4 free"]
    assert device.results[1].code == ActionCode.WEIGHTS_MISSING
