"""What lanes load, unload and forget."""

import pytest

from gpu_worker.core.jobs import Phase, Servable
from mesh.codes import ActionCode
from tests.gpu_worker.worker_builders import TWO, Device, infer, load, unload

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


def test_a_load_that_cannot_start_in_its_window_is_refused_as_soon_as_that_is_over() -> None:
    device = Device("m:1", "n:1")
    device.order(load(1), now=10.0)
    device.order(load(2, "n:1", latest_s=11.0), now=10.0)
    effects = []
    while (at := device.lanes.wake_at()) is not None:
        assert at < 11.1
        effects += device.wake(at)
    assert effects == ["load #2 late, 2 free"]


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
