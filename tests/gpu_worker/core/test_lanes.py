"""What lanes hold, start and refuse."""

import pytest

from gpu_worker.core.jobs import Done, Phase, Servable
from gpu_worker.core.lanes import ACTIONS_MAX, INPUT_AHEAD_S
from mesh import wire
from mesh.codes import ActionCode, ActionKind
from tests.gpu_worker.worker_builders import EPOCH, ONE_AT_A_TIME, Device, infer, load, said, unload

TWO = {Phase.LOAD: 2, Phase.INPUT: 4, Phase.EXEC: 2, Phase.OUTPUT: 4}


# -- LOAD -------------------------------------------------------------------------------------------------------------


def test_a_load_inside_its_window_starts_at_once_and_is_reported_with_its_times() -> None:
    device = Device()
    assert device.order(load(1, earliest_s=9.0, latest_s=11.0), now=10.0) == ["start load #1"]
    assert not device.lanes.idle
    assert device.end(Phase.LOAD, 1, now=10.5) == ["load #1 ok, 2 free"]
    result = device.results[1]
    assert (result.received_s, result.begin_s, result.end_s, result.duration_s) == (10.0, 10.499, 10.5, 0.001)
    assert device.lanes.table.resident() == ("m:1",)
    assert device.lanes.idle


def test_a_load_is_held_until_its_window_opens() -> None:
    device = Device()
    assert device.order(load(1, earliest_s=10.0), now=9.0) == []
    assert device.lanes.wake_at() == 10.0
    assert device.wake(9.999) == []
    assert device.lanes.wake_at() == 10.0
    assert device.wake(10.0) == ["start load #1"]
    assert device.lanes.table.free == 2


@pytest.mark.parametrize(
    ("now", "effects"),
    [(10.9, ["start load #1"]), (11.0, ["start load #1"]), (11.001, ["load #1 late, 4 free"])],
)
def test_a_load_may_start_until_the_end_of_its_window(now: float, effects: list[str]) -> None:
    assert Device().order(load(1, earliest_s=9.0, latest_s=11.0), now=now) == effects


@pytest.mark.parametrize(
    ("now", "effects"),
    [(11.0, ["load #1 ok, 2 free", "start load #2"]), (11.001, ["load #1 ok, 2 free", "load #2 late, 2 free"])],
)
def test_a_load_that_waits_for_another_may_start_until_the_end_of_its_window(now: float, effects: list[str]) -> None:
    device = Device("m:1", "n:1")
    device.order(load(1), now=10.0)
    assert device.order(load(2, "n:1", latest_s=11.0), now=10.0) == []
    assert device.end(Phase.LOAD, 1, now=now) == effects


def test_loads_start_in_order_of_their_windows_and_then_of_their_arrival() -> None:
    device = Device("a:1", "b:1", "c:1", pages_each=1)
    device.order(load(1, "a:1", earliest_s=12.0), now=10.0)
    device.order(load(2, "b:1", earliest_s=11.0), now=10.0)
    device.order(load(3, "c:1", earliest_s=11.0), now=10.0)
    assert device.wake(12.0) == ["start load #2"]
    assert device.end(Phase.LOAD, 2, now=12.5)[1:] == ["start load #3"]
    assert device.end(Phase.LOAD, 3, now=13.0)[1:] == ["start load #1"]


def test_as_many_loads_are_begun_as_the_device_takes() -> None:
    device = Device("a:1", "b:1", "c:1", pages_each=1, depth=TWO)
    assert [device.order(load(n, f"{ref}:1"), now=10.0) for n, ref in enumerate("abc")] == [
        ["start load #0"], ["start load #1"], [],
    ]  # fmt: skip
    assert device.end(Phase.LOAD, 0, now=11.0) == ["load #0 ok, 2 free", "start load #2"]


def test_a_load_without_free_pages_is_refused_when_it_would_start() -> None:
    device = Device("m:1", "n:1", pages=3).loaded("m:1")
    assert device.order(load(1, "n:1", earliest_s=10.0), now=9.0) == []
    assert device.wake(10.0) == ["load #1 no_pages, 1 free"]
    device.order(unload(2), now=10.0)
    assert device.order(load(3, "n:1"), now=10.0) == ["start load #3"]


def test_an_unload_ahead_of_a_load_makes_room_for_it() -> None:
    device = Device("m:1", "n:1", pages=3).loaded("m:1")
    device.order(load(1, "n:1", earliest_s=10.0), now=9.0)
    assert device.order(unload(2), now=9.5) == ["unload #2 ok, 3 free"]
    assert device.wake(10.0) == ["start load #1"]


def test_what_is_there_or_on_its_way_is_not_loaded_again() -> None:
    device = Device()
    device.order(load(1, earliest_s=10.0), now=9.0)
    assert device.order(load(2), now=9.0) == ["load #2 already_loaded, 4 free"]
    device.wake(10.0)
    assert device.order(load(3), now=10.0) == ["load #3 already_loaded, 2 free"]
    device.end(Phase.LOAD, 1, now=11.0)
    assert device.order(load(4), now=11.0) == ["load #4 already_loaded, 2 free"]


def test_a_load_that_the_device_fails_gives_its_pages_back() -> None:
    device = Device()
    device.order(load(1), now=10.0)
    assert device.end(Phase.LOAD, 1, now=11.0, code=ActionCode.DEVICE_ERROR, message="out of order") == [
        "load #1 device_error, 4 free"
    ]
    assert device.results[1].message == "out of order"
    assert device.order(load(2), now=11.0) == ["start load #2"]


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


def test_a_load_that_cannot_start_in_its_window_is_refused_as_soon_as_that_is_over() -> None:
    device = Device("m:1", "n:1")
    device.order(load(1), now=10.0)
    device.order(load(2, "n:1", latest_s=11.0), now=10.0)
    effects = []
    while (at := device.lanes.wake_at()) is not None:
        assert at < 11.1
        effects += device.wake(at)
    assert effects == ["load #2 late, 2 free"]


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


# -- UNLOAD -----------------------------------------------------------------------------------------------------------


def test_an_unload_is_done_at_once() -> None:
    device = Device().loaded()
    assert device.order(unload(1), now=10.0) == ["unload #1 ok, 4 free"]
    assert (device.results[1].begin_s, device.results[1].end_s) == (10.0, 10.0)
    assert device.order(unload(2), now=10.0) == ["unload #2 weights_missing, 4 free"]


def test_pages_of_a_model_that_is_executing_are_given_back_when_that_ends() -> None:
    device = Device("m:1", "n:1", pages=3).loaded().executing(1, now=10.0)
    assert device.order(unload(2), now=10.1) == ["unload #2 ok, 1 free"]
    assert device.order(load(3, "n:1"), now=10.1) == ["load #3 no_pages, 1 free"]
    assert device.end(Phase.EXEC, 1, now=10.2) == ["start output #1"]
    assert device.lanes.table.free == 3
    assert device.order(load(4, "n:1"), now=10.3) == ["start load #4"]


def test_a_model_that_is_executing_may_be_loaded_into_other_pages_meanwhile() -> None:
    device = Device(pages=4).loaded().executing(1, now=10.0)
    old = device.running[Phase.EXEC, 1].pages
    device.order(unload(2), now=10.1)
    device.order(load(3), now=10.1)
    new = device.running[Phase.LOAD, 3].pages
    assert not set(old) & set(new)
    device.end(Phase.LOAD, 3, now=10.2)
    device.end(Phase.EXEC, 1, now=10.3)
    assert device.lanes.table.free == 2
    assert device.order(infer(4), now=10.4) == ["start input #4"]
    assert device.end(Phase.INPUT, 4, now=10.5) == ["start exec #4"]
    assert device.running[Phase.EXEC, 4].pages == new


def test_an_unload_refuses_the_infers_that_wait_for_these_weights_and_no_others() -> None:
    device = Device("m:1", "n:1", depth=TWO | {Phase.EXEC: 1}).loaded("m:1", "n:1").executing(1, "n:1", now=10.0)
    for number, ref in ((2, "m:1"), (3, "n:1"), (4, "m:1")):
        device.order(infer(number, ref), now=10.0)
    device.end(Phase.INPUT, 2, now=10.1)
    device.end(Phase.INPUT, 3, now=10.1)
    assert device.order(unload(5), now=10.2) == ["unload #5 ok, 2 free", "infer #2 weights_missing, 2 free"]
    assert device.end(Phase.INPUT, 4, now=10.3) == ["infer #4 weights_missing, 2 free"]
    assert device.end(Phase.EXEC, 1, now=10.4) == ["start output #1", "start exec #3"]


def test_a_model_whose_load_is_still_running_is_not_unloaded() -> None:
    device = Device()
    device.order(load(1), now=10.0)
    assert device.order(unload(2), now=10.1) == ["unload #2 weights_missing, 2 free"]
    assert device.end(Phase.LOAD, 1, now=10.2) == ["load #1 ok, 2 free"]


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_an_infer_without_weights_is_refused() -> None:
    device = Device()
    assert device.order(infer(1), now=10.0) == ["infer #1 weights_missing, 4 free"]
    assert device.results[1].message == ActionCode.WEIGHTS_MISSING.meaning


@pytest.mark.parametrize("make", [load, infer])
def test_a_model_that_is_not_prepared_is_unknown_and_another_version_of_it_is_the_wrong_one(make: type) -> None:
    device = Device("m:1")
    kind = make.__name__
    assert device.order(make(1, "x:1"), now=10.0) == [f"{kind} #1 unknown_model, 4 free"]
    assert device.order(make(2, "m:2"), now=10.0) == [f"{kind} #2 wrong_version, 4 free"]
    assert device.order(make(3, "m:1:1"), now=10.0) == [f"{kind} #3 unknown_model, 4 free"]


@pytest.mark.parametrize(
    ("batch", "rows", "good"),
    [
        (-1, [], False), (0, [], False), (1, [1], True), (8, [8], True), (9, [9], False),
        (4, [1, 2], True), (4, [1, 3], True), (4, [2, 3], False), (4, [], True),
    ],
)  # fmt: skip
def test_a_batch_has_one_row_at_least_and_no_more_than_the_model_takes_and_room_for_all_parts(
    batch: int, rows: list[int], good: bool
) -> None:
    effects = Device(batch_max=8).loaded().order(infer(1, batch=batch, rows=rows), now=10.0)
    assert effects == (["start input #1"] if good else ["infer #1 bad_batch, 2 free"])


@pytest.mark.parametrize(("batch", "good"), [(1, True), (2, False), (3, False), (4, True), (8, True)])
def test_a_batch_is_of_a_size_that_the_device_can_execute(batch: int, good: bool) -> None:
    effects = Device(batch_max=8, batch_sizes=(1, 4, 8)).loaded().order(infer(1, batch=batch, rows=[1]), now=10.0)
    assert effects == (["start input #1"] if good else ["infer #1 bad_batch, 2 free"])


def test_orders_of_a_controller_that_was_replaced_are_refused() -> None:
    device = Device().loaded()
    assert device.order(load(1), now=10.0, epoch=EPOCH - 1) == ["load #1 stale_epoch, 2 free"]
    assert device.order(infer(2), now=10.0, epoch=EPOCH - 1) == ["infer #2 stale_epoch, 2 free"]
    assert device.order(unload(3), now=10.0, epoch=EPOCH - 1) == ["unload #3 stale_epoch, 2 free"]
    assert device.order(infer(4), now=10.0, epoch=EPOCH) == ["start input #4"]


def test_more_actions_than_a_controller_keeps_here_are_refused() -> None:
    device = Device().loaded()
    for number in range(ACTIONS_MAX - 1):
        device.lanes.infer(infer(number, earliest_s=20.0), EPOCH, now=10.0)
    assert device.order(infer(5001, earliest_s=20.0), now=10.0) == []
    assert device.order(infer(5002, earliest_s=20.0), now=10.0) == ["infer #5002 overfull, 2 free"]
    assert device.order(load(5003, earliest_s=20.0), now=10.0) == ["load #5003 overfull, 2 free"]
    assert device.order(unload(5004), now=10.0)[0] == "unload #5004 ok, 4 free"


def test_every_code_has_its_sentence() -> None:
    device = Device("m:1", "n:1", pages=2).loaded("m:1")
    device.order(load(1, "n:1"), now=10.0)
    device.order(load(2, "m:1"), now=10.0)
    device.order(infer(3, latest_s=9.0), now=10.0)
    assert [device.results[n].message for n in (1, 2, 3)] == [
        ActionCode.NO_PAGES.meaning, ActionCode.ALREADY_LOADED.meaning, ActionCode.LATE.meaning,
    ]  # fmt: skip


# -- controllers come and go ------------------------------------------------------------------------------------------


def test_a_new_controller_s_welcome_drops_what_has_not_begun() -> None:
    device = Device("m:1", "n:1", "o:1", pages=6).loaded("m:1").executing(1, now=10.0)
    device.order(load(2, "n:1"), now=10.0)
    device.order(load(3, "o:1"), now=10.0)
    device.order(infer(4, earliest_s=11.0), now=10.0)
    dropped = device.lanes.welcome(EPOCH + 1)
    device.lanes.check()
    assert [job.action.action for job in dropped] == [3, 4]
    assert device.wake(12.0) == []
    assert device.end(Phase.EXEC, 1, now=12.0) == ["start output #1"]
    assert device.end(Phase.LOAD, 2, now=12.0) == ["load #2 ok, 2 free"]
    assert device.lanes.table.resident() == ("m:1", "n:1")


def test_a_welcome_at_an_older_epoch_drops_nothing() -> None:
    device = Device()
    device.order(load(1, earliest_s=11.0), now=10.0)
    assert device.lanes.welcome(EPOCH - 1) == []
    assert device.lanes.epoch == EPOCH
    assert device.wake(11.0) == ["start load #1"]


def test_after_a_welcome_the_former_controller_is_not_obeyed_any_more() -> None:
    device = Device().loaded()
    device.lanes.welcome(EPOCH + 1)
    assert device.order(infer(1), now=10.0, epoch=EPOCH) == ["infer #1 stale_epoch, 2 free"]
    assert device.order(infer(2), now=10.0, epoch=EPOCH + 1) == ["start input #2"]


# -- versions come and go ---------------------------------------------------------------------------------------------


def test_a_version_that_is_forgotten_frees_its_pages_and_is_unknown() -> None:
    device = Device().loaded()
    assert device.forget("m:1", now=10.0) == []
    assert device.lanes.table.free == 4
    assert device.order(infer(1), now=10.0) == ["infer #1 unknown_model, 4 free"]
    assert device.forget("m:1", now=10.0) == []


def test_a_version_that_is_forgotten_while_it_executes_ends_that_and_then_frees_its_pages() -> None:
    device = Device().loaded().executing(1, now=10.0)
    assert device.forget("m:1", now=10.1) == []
    assert device.lanes.table.free == 2
    assert device.end(Phase.EXEC, 1, now=10.2) == ["start output #1"]
    assert device.end(Phase.OUTPUT, 1, now=10.2) == ["infer #1 ok, 4 free"]


def test_what_waits_for_a_version_that_is_forgotten_is_refused() -> None:
    device = Device("m:1", "n:1", pages=6)
    device.order(load(1, "n:1"), now=10.0)
    device.order(load(2, "m:1"), now=10.0)
    device.order(infer(3, "m:1", earliest_s=10.0), now=10.0)
    device.end(Phase.INPUT, 3, now=10.0)
    assert device.forget("m:1", now=10.1) == ["load #2 unknown_model, 4 free", "infer #3 weights_missing, 4 free"]


def test_a_version_that_is_forgotten_while_it_is_loaded_frees_its_pages_when_that_ends() -> None:
    device = Device()
    device.order(load(1), now=10.0)
    device.order(infer(2), now=10.0)
    device.end(Phase.INPUT, 2, now=10.0)
    assert device.forget("m:1", now=10.1) == []
    assert device.end(Phase.LOAD, 1, now=10.2) == ["load #1 ok, 4 free", "infer #2 weights_missing, 4 free"]
    assert device.lanes.table.resident() == ()


def test_another_version_of_a_forgotten_model_goes_on() -> None:
    device = Device("m:1", "m:2").loaded("m:1", "m:2")
    device.forget("m:1", now=10.0)
    assert device.order(infer(1, "m:2"), now=10.0) == ["start input #1"]
    assert device.order(load(2, "m:1"), now=10.0) == ["load #2 wrong_version, 2 free"]


def test_a_version_may_be_prepared_again_with_other_needs() -> None:
    device = Device().loaded()
    device.forget("m:1", now=10.0)
    device.lanes.prepared("m:1", Servable(3, 2, None, ()))
    device.order(load(1), now=10.0)
    assert device.lanes.table.free == 1
    assert device.order(infer(2, batch=3), now=10.0) == ["infer #2 bad_batch, 1 free"]


def test_lanes_with_nothing_to_do_need_not_be_woken() -> None:
    device = Device()
    assert device.lanes.wake_at() is None
    assert said(device.lanes.wake(now=10.0)) == []
    assert device.lanes.idle


def test_a_device_that_keeps_the_time_itself_is_given_an_exec_so_long_before_it() -> None:
    device = Device().loaded()
    device.lanes.ahead_s = 0.002
    assert device.order(infer(1, earliest_s=1.0), now=0.9) == []
    assert device.wake(0.995) == ["start input #1"]
    assert device.end(Phase.INPUT, 1, now=0.996) == []
    assert device.lanes.wake_at() == pytest.approx(0.998)
    assert device.wake(0.9979) == []
    assert device.wake(0.998) == ["start exec #1"]


def test_lanes_of_a_lost_device_end_what_was_begun_and_leave_the_rest_to_others() -> None:
    device = Device("m:1", "m:2").loaded("m:1").executing(1, now=10.0)
    device.order(infer(2), now=10.0)
    device.order(infer(3), now=10.0)
    device.order(load(4, "m:2"), now=10.0)
    assert set(device.running) == {(Phase.EXEC, 1), (Phase.INPUT, 2), (Phase.LOAD, 4)}
    device.lanes.halt()
    assert device.order(infer(5), now=10.1) == []
    assert device.order(load(6, "m:2"), now=10.1) == []
    assert device.end(Phase.INPUT, 2, now=10.2) == [], "no EXEC is begun"
    assert device.end(Phase.EXEC, 1, now=10.3, code=ActionCode.DEVICE_ERROR) == ["infer #1 device_error, 0 free"]
    assert device.lanes.running
    assert device.end(Phase.LOAD, 4, now=10.4, code=ActionCode.DEVICE_ERROR) == ["load #4 device_error, 2 free"]
    assert not device.lanes.running
    assert device.wake(99.0) == []


def test_what_a_lost_device_had_executed_before_is_brought_out_if_that_can_be() -> None:
    device = Device().loaded().executing(1, now=10.0)
    device.lanes.halt()
    assert device.end(Phase.EXEC, 1, now=10.1) == ["start output #1"]
    assert device.end(Phase.OUTPUT, 1, now=10.2) == ["infer #1 ok, 2 free"]
