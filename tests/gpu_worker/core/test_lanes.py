"""Which orders lanes refuse, and what they do when a controller or a device is lost."""

import pytest

from gpu_worker.core.jobs import Phase
from gpu_worker.core.lanes import ACTIONS_MAX
from mesh.codes import ActionCode
from tests.gpu_worker.worker_builders import EPOCH, Device, infer, load, said, unload

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


def test_what_a_controller_ordered_holds_when_it_has_a_newer_epoch_itself() -> None:
    device = Device().loaded()
    device.order(infer(1, earliest_s=11.0), now=10.0)
    assert device.lanes.welcome(EPOCH + 1, same=True) == []
    assert device.order(infer(2), now=10.0, epoch=EPOCH) == ["infer #2 stale_epoch, 2 free"]
    assert device.wake(11.0) == ["start input #1"]


# -- lost devices -----------------------------------------------------------------------------------------------------


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


# -- nothing to do ----------------------------------------------------------------------------------------------------


def test_lanes_with_nothing_to_do_need_not_be_woken() -> None:
    device = Device()
    assert device.lanes.wake_at() is None
    assert said(device.lanes.wake(now=10.0)) == []
    assert device.lanes.idle
