"""What lanes execute, in which order and inside which windows."""

import pytest

from gpu_worker.core.jobs import Done, Phase, Servable
from gpu_worker.core.lanes import INPUT_AHEAD_S
from mesh import wire
from mesh.codes import ActionCode, ActionKind
from tests.gpu_worker.worker_builders import EPOCH, ONE_AT_A_TIME, TWO, Device, infer, load, unload

# -- INFER ------------------------------------------------------------------------------------------------------------


def test_an_infer_goes_through_input_exec_and_output_and_is_reported_with_all_its_times() -> None:
    device = Device().loaded()
    assert device.order(infer(1, earliest_s=9.0, latest_s=11.0), now=10.0) == ["start input #1"]
    assert device.end(Phase.INPUT, 1, now=10.1) == ["start exec #1"]
    assert device.end(Phase.EXEC, 1, now=10.2) == ["start output #1"]
    assert device.end(Phase.OUTPUT, 1, now=10.3) == ["infer #1 ok, 2 free"]
    result = device.results[1]
    assert (result.received_s, result.begin_s, result.end_s) == (10.0, 10.199, 10.2)
    assert (result.duration_s, result.input_s, result.output_s) == (0.001, 0.001, 0.001)
    assert device.lanes.idle


def test_the_report_says_what_the_device_measured() -> None:
    device = Device().loaded().executing(1, now=10.0)
    job = device.running[Phase.EXEC, 1]
    done = Done(10.0, 10.5, 0.4, gathered=True, clock_mhz=1400.0)
    device.lanes.finished(Phase.EXEC, job, done, now=10.5)
    (report,) = device.lanes.finished(Phase.OUTPUT, job, Done(10.5, 10.6, 0.1), now=10.6)
    assert report.result == wire.ActionResult(
        action=1, kind=ActionKind.INFER, code=ActionCode.OK, received_s=10.0, free_pages=2,
        begin_s=10.0, end_s=10.5, duration_s=0.4, input_s=0.001, output_s=0.1, gathered=True, clock_mhz=1400.0,
    )  # fmt: skip
    assert report.job is job


def test_input_starts_a_little_ahead_of_the_window_and_exec_when_it_opens() -> None:
    device = Device().loaded()
    early_s = 10.0 - INPUT_AHEAD_S
    assert device.order(infer(1, earliest_s=10.0), now=9.0) == []
    assert device.lanes.wake_at() == early_s
    assert device.wake(early_s - 1e-6) == []
    assert device.wake(early_s) == ["start input #1"]
    assert device.end(Phase.INPUT, 1, now=9.998) == []
    assert device.lanes.wake_at() == 10.0
    assert device.wake(10.0 - 1e-6) == []
    assert device.wake(10.0) == ["start exec #1"]


@pytest.mark.parametrize(
    ("now", "effects"), [(10.9, ["start exec #1"]), (11.0, ["start exec #1"]), (11.001, ["infer #1 late, 2 free"])]
)
def test_exec_may_start_until_the_end_of_its_window(now: float, effects: list[str]) -> None:
    device = Device().loaded()
    device.order(infer(1, latest_s=11.0), now=10.0)
    assert device.end(Phase.INPUT, 1, now=now) == effects


@pytest.mark.parametrize(("now", "effects"), [(11.0, ["start input #1"]), (11.001, ["infer #1 late, 2 free"])])
def test_an_infer_that_arrives_after_its_window_is_refused(now: float, effects: list[str]) -> None:
    assert Device().loaded().order(infer(1, latest_s=11.0), now=now) == effects


def test_an_infer_that_cannot_start_in_its_window_is_refused_as_soon_as_that_is_over() -> None:
    """The lane is taken for long; nothing happens but the wakes that the lanes ask for."""
    device = Device().loaded().executing(1, now=10.0)
    device.order(infer(2, latest_s=11.0), now=10.0)
    device.end(Phase.INPUT, 2, now=10.1)
    effects = []
    while (at := device.lanes.wake_at()) is not None:
        assert at < 11.1
        effects += device.wake(at)
    assert effects == ["infer #2 late, 2 free"]


def test_an_infer_whose_window_passes_during_its_input_is_refused_when_that_ends() -> None:
    device = Device().loaded()
    device.order(infer(1, latest_s=11.0), now=10.0)
    assert device.wake(12.0) == []
    assert device.end(Phase.INPUT, 1, now=12.0) == ["infer #1 late, 2 free"]


def test_infers_are_executed_in_order_of_their_windows_and_then_of_their_arrival() -> None:
    device = Device(depth=TWO | {Phase.EXEC: 1}).loaded()
    for number, earliest_s in ((1, 10.002), (2, 10.001), (3, 10.001)):
        device.order(infer(number, earliest_s=earliest_s), now=10.0)
    for number in (3, 1, 2):
        device.end(Phase.INPUT, number, now=10.0)
    assert device.wake(10.002) == ["start exec #2"]
    assert device.end(Phase.EXEC, 2, now=10.1) == ["start output #2", "start exec #3"]
    assert device.end(Phase.EXEC, 3, now=10.2) == ["start output #3", "start exec #1"]


def test_as_many_executions_are_begun_as_the_device_queues_in_order() -> None:
    device = Device(depth=TWO).loaded()
    for number in (1, 2, 3):
        device.order(infer(number), now=10.0)
    assert [device.end(Phase.INPUT, number, now=10.1) for number in (1, 2, 3)] == [
        ["start exec #1"], ["start exec #2"], [],
    ]  # fmt: skip
    assert device.end(Phase.EXEC, 1, now=10.2) == ["start output #1", "start exec #3"]


def test_inputs_are_brought_in_as_many_at_a_time_as_the_device_takes() -> None:
    device = Device().loaded()
    assert device.order(infer(1), now=10.0) == ["start input #1"]
    assert device.order(infer(2), now=10.0) == []
    assert device.end(Phase.INPUT, 1, now=10.1) == ["start exec #1", "start input #2"]


def test_outputs_start_at_once_however_many_there_are() -> None:
    device = Device(depth=dict(ONE_AT_A_TIME)).loaded().executing(1, now=10.0)
    device.order(infer(2), now=10.0)
    device.end(Phase.INPUT, 2, now=10.0)
    assert device.end(Phase.EXEC, 1, now=10.1) == ["start output #1", "start exec #2"]
    assert device.end(Phase.EXEC, 2, now=10.2) == ["start output #2"]


@pytest.mark.parametrize("phase", [Phase.INPUT, Phase.EXEC, Phase.OUTPUT])
def test_what_the_device_fails_is_reported_with_its_words(phase: Phase) -> None:
    device = Device().loaded()
    device.order(infer(1), now=10.0)
    for before in (Phase.INPUT, Phase.EXEC):
        if before is phase:
            break
        device.end(before, 1, now=10.1)
    assert device.end(phase, 1, now=10.2, code=ActionCode.DEVICE_ERROR, message="it burns") == [
        "infer #1 device_error, 2 free"
    ]
    assert device.results[1].message == "it burns"
    assert device.lanes.idle
    assert device.order(unload(2), now=10.3) == ["unload #2 ok, 4 free"]


@pytest.mark.parametrize(
    ("outputs", "code"),
    [
        ([12, 3], ActionCode.OK),
        ([16, 3], ActionCode.BAD_OUTPUTS),
        ([13, 3], ActionCode.BAD_OUTPUTS),
        ([12, 2], ActionCode.BAD_OUTPUTS),
        ([12], ActionCode.BAD_OUTPUTS),
        ([12, 3, 3], ActionCode.BAD_OUTPUTS),
        ([], ActionCode.BAD_OUTPUTS),
    ],
)
def test_outputs_that_have_not_one_row_for_each_of_the_batch_are_nobody_s(outputs: list[int], code: str) -> None:
    device = Device().loaded()
    device.lanes.prepared("m:1", Servable(2, 8, None, (4, 1)))
    device.order(infer(1, batch=3, rows=[1, 1]), now=1.0)
    device.end(Phase.INPUT, 1, now=1.0)
    device.end(Phase.EXEC, 1, now=1.1)
    device.running[Phase.OUTPUT, 1].outputs = [memoryview(bytes(size)) for size in outputs]
    device.end(Phase.OUTPUT, 1, now=1.2)
    result = device.results[1]
    assert result.code == code
    assert code == ActionCode.OK or (str(outputs) in result.message and "[12, 3]" in result.message)


def test_the_end_of_a_phase_that_had_not_begun_is_a_mistake() -> None:
    device = Device().loaded()
    device.order(infer(1), now=10.0)
    job = device.running[Phase.INPUT, 1]
    with pytest.raises(AssertionError, match=r"\S"):
        device.lanes.finished(Phase.EXEC, job, Done(10.0, 10.1, 0.1), now=10.1)


def test_a_device_that_keeps_the_time_itself_is_given_an_exec_so_long_before_it() -> None:
    device = Device().loaded()
    device.lanes.ahead_s = 0.002
    assert device.order(infer(1, earliest_s=1.0), now=0.9) == []
    assert device.wake(0.995) == ["start input #1"]
    assert device.end(Phase.INPUT, 1, now=0.996) == []
    assert device.lanes.wake_at() == pytest.approx(0.998)
    assert device.wake(0.9979) == []
    assert device.wake(0.998) == ["start exec #1"]


# -- INFER and LOAD ---------------------------------------------------------------------------------------------------


def test_an_infer_behind_a_load_on_its_way_waits_for_it() -> None:
    device = Device()
    device.order(load(1), now=10.0)
    assert device.order(infer(2), now=10.0) == ["start input #2"]
    assert device.end(Phase.INPUT, 2, now=10.1) == []
    assert device.end(Phase.LOAD, 1, now=10.5) == ["load #1 ok, 2 free", "start exec #2"]


def test_an_infer_behind_a_load_that_waits_for_its_window_waits_for_both() -> None:
    device = Device()
    device.order(load(1, earliest_s=11.0), now=10.0)
    device.order(infer(2), now=10.0)
    device.end(Phase.INPUT, 2, now=10.1)
    assert device.wake(11.0) == ["start load #1"]
    assert device.end(Phase.LOAD, 1, now=11.5) == ["load #1 ok, 2 free", "start exec #2"]


def test_an_infer_is_refused_with_the_load_it_waits_for() -> None:
    for now, code in ((11.001, ActionCode.LATE), (10.5, ActionCode.DEVICE_ERROR)):
        device = Device("m:1", "n:1")
        device.order(load(1, "n:1"), now=10.0)
        device.order(load(2, latest_s=11.0), now=10.0)
        device.order(infer(3), now=10.0)
        device.end(Phase.INPUT, 3, now=10.1)
        device.end(Phase.LOAD, 1, now=now)
        if code == ActionCode.DEVICE_ERROR:
            device.end(Phase.LOAD, 2, now=10.6, code=code)
        assert (device.results[2].code, device.results[3].code) == (code, ActionCode.WEIGHTS_MISSING)


def test_an_infer_whose_load_comes_too_late_is_refused() -> None:
    device = Device()
    device.order(load(1), now=10.0)
    device.order(infer(2, latest_s=10.4), now=10.0)
    device.end(Phase.INPUT, 2, now=10.1)
    assert device.end(Phase.LOAD, 1, now=10.5) == ["load #1 ok, 2 free", "infer #2 late, 2 free"]


def test_an_infer_of_one_model_does_not_wait_for_the_load_of_another() -> None:
    device = Device("m:1", "n:1").loaded("m:1")
    device.order(load(1, "n:1"), now=10.0)
    device.order(infer(2, "n:1"), now=10.0)
    device.end(Phase.INPUT, 2, now=10.1)
    device.order(infer(3, "m:1"), now=10.1)
    assert device.end(Phase.INPUT, 3, now=10.2) == ["start exec #3"]


# -- revoked ----------------------------------------------------------------------------------------------------------


def test_an_infer_that_waits_for_its_window_ends_at_once_when_it_is_revoked() -> None:
    device = Device().loaded()
    device.order(infer(1, earliest_s=20.0), now=10.0)
    assert device.revoke(1, now=10.1) == ["infer #1 revoked, 2 free"]
    assert device.lanes.idle
    assert device.revoke(1, now=10.2) == []


def test_one_that_waits_for_its_weights_or_for_the_lane_ends_at_once_too_and_the_next_one_goes_on() -> None:
    device = Device().loaded().executing(1, now=10.0)
    for number in (2, 3):
        device.order(infer(number), now=10.0)
        device.end(Phase.INPUT, number, now=10.0)
    assert device.revoke(2, now=10.1) == ["infer #2 revoked, 2 free"]
    assert device.end(Phase.EXEC, 1, now=10.2) == ["start output #1", "start exec #3"]
    device = Device("m:1", "n:1")
    assert device.order(load(1), now=10.0) == ["start load #1"]
    device.order(infer(2), now=10.0)
    device.end(Phase.INPUT, 2, now=10.0)
    assert device.revoke(2, now=10.1) == ["infer #2 revoked, 2 free"]
    assert device.end(Phase.LOAD, 1, now=10.2) == ["load #1 ok, 2 free"]


@pytest.mark.parametrize("code", [ActionCode.OK, ActionCode.BAD_INPUT])
def test_one_whose_input_runs_ends_with_it_as_revoked_or_as_what_went_wrong(code: ActionCode) -> None:
    device = Device().loaded()
    device.order(infer(1), now=10.0)
    device.order(infer(2), now=10.0)
    assert device.revoke(1, now=10.1) == []
    ended = "revoked" if code == ActionCode.OK else "bad_input"
    assert device.end(Phase.INPUT, 1, now=10.2, code=code) == [f"infer #1 {ended}, 2 free", "start input #2"]


@pytest.mark.parametrize("phase", [Phase.EXEC, Phase.OUTPUT])
def test_one_that_has_begun_goes_on(phase: Phase) -> None:
    device = Device().loaded().executing(1, now=10.0)
    if phase is Phase.OUTPUT:
        device.end(Phase.EXEC, 1, now=10.1)
    assert device.revoke(1, now=10.1) == []
    if phase is Phase.EXEC:
        device.end(Phase.EXEC, 1, now=10.2)
    assert device.end(Phase.OUTPUT, 1, now=10.3) == ["infer #1 ok, 2 free"]


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
def test_an_action_of_another_controller_with_the_same_number_is_not_revoked(epoch: int) -> None:
    device = Device().loaded()
    device.order(infer(1, earliest_s=20.0), now=10.0)
    assert device.revoke(1, now=10.1, epoch=epoch) == []
    assert device.revoke(1, now=10.1) == ["infer #1 revoked, 2 free"]
