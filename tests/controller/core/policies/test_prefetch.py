"""Free pages are filled: what failed, was put off, or fits only now is loaded in the end, with no event but wakes."""

import pytest

from controller.core.devices.base import LOAD_LOOK_EVERY_S, LOAD_RETRY_S
from controller.core.policies.prefetch import PREFETCH_AFTER
from mesh.codes import ActionCode, ActionKind
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, line, prepared, wake_at, woken

SLOW = line(0.008, 0.002, load_s=0.06)


def holds(shard: Shard, worker: str = "w1") -> set[str]:
    """What is in the worker's memory, or on its way there."""
    return set(shard.state.devices[worker].residency.models)


# -- what failed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [ActionCode.NO_PAGES, ActionCode.LATE, ActionCode.DEVICE_ERROR])
def test_a_prefetch_that_failed_is_tried_again_when_its_pause_is_over(code: str) -> None:
    shard = Shard().serve({"a:1": TEN_MS}, resident=[])
    assert shard.wake(100.0) == ["w1: load #1 a:1"]
    shard.result(1, ActionKind.LOAD, now=100.005, code=code)
    assert shard.wake(100.005) == []
    assert wake_at(shard) == pytest.approx(100.005 + LOAD_RETRY_S)
    assert woken(shard, 100.1) == ["w1: load #2 a:1"]
    shard.result(2, ActionKind.LOAD, now=100.02, code=code)
    assert shard.wake(100.02) == []
    assert wake_at(shard) == pytest.approx(100.02 + 2 * LOAD_RETRY_S)
    assert woken(shard, 100.2) == ["w1: load #3 a:1"]


def test_of_several_that_failed_the_one_whose_pause_ends_first_is_tried_first() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS}, resident=[])
    assert shard.wake(100.0) == ["w1: load #1 a:1"]
    shard.result(1, ActionKind.LOAD, now=100.004, code=ActionCode.LATE)
    assert shard.wake(100.004) == ["w1: load #2 b:1"]
    shard.result(2, ActionKind.LOAD, now=100.009, code=ActionCode.LATE)
    assert shard.wake(100.009) == []
    assert wake_at(shard) == pytest.approx(100.004 + LOAD_RETRY_S)
    assert woken(shard, 100.1) == ["w1: load #3 a:1"]


def test_nothing_is_searched_again_while_nothing_fits() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS}, resident=["a:1"], pages=3)
    for now in (100.0, 100.1, 200.0):
        assert shard.wake(now) == []
        assert shard.scheduler.wake_at() is None


# -- what fits only now -----------------------------------------------------------------------------------------------


def test_a_version_that_takes_the_place_of_a_larger_one_is_loaded() -> None:
    shard = Shard()
    shard.want(["a:1", "b:1"])
    reports = [prepared("a:1", pages=2), prepared("b:1", pages=2)]
    shard.join(hello("w1", *reports, pages=3, resident=["a:1"]), now=100.0)
    assert shard.wake(100.0) == []
    shard.want(["a:1", "c:1"], now=100.1)
    assert shard.wake(100.1) == ["w1: prepare c:1"]
    assert shard.wake(103.0) == ["w1: forget b:1"]
    shard.report(prepared("c:1", pages=1), now=103.1)
    assert shard.wake(103.1) == ["w1: load #1 c:1"]


def test_a_model_that_made_room_for_a_larger_one_is_loaded_into_what_that_left_free() -> None:
    shard = Shard()
    refs = ["small:1", "some:1", "large:1"]
    shard.want(refs)
    reports = [prepared(ref, pages=pages) for ref, pages in zip(refs, (1, 3, 4), strict=True)]
    shard.join(hello("w1", *reports, pages=6, resident=["small:1", "some:1"]), now=100.0)
    assert shard.wake(100.0) == []  # two pages are free, and the large one has four
    shard.submit(1, "large:1", now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: unload #1 small:1", "w1: unload #2 some:1", "w1: load #3 large:1"]
    assert shard.wake(100.0) == ["w1: infer #4 large:1 x1 f/1"]
    shard.loaded(3, now=100.005)
    assert woken(shard, 100.0) == []
    shard.ran(4, begin_s=100.005, duration_s=0.010)
    assert shard.wake(101.0) == ["w1: load #5 small:1"]


# -- what was put off -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before_s", [0.0, 0.001, 0.3 * LOAD_LOOK_EVERY_S, 0.9 * LOAD_LOOK_EVERY_S])
def test_a_prefetch_that_is_put_off_is_done_whenever_its_device_was_looked_at_last(before_s: float) -> None:
    """A LOAD that requests waited for puts prefetches off; some event shortly before they are due makes a look."""
    shard = Shard().serve({"a:1": TEN_MS, "b:1": SLOW, "c:1": SLOW}, resident=[], pages=4)
    shard.submit(1, "a:1", now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: load #1 a:1"]
    assert shard.wake(100.0) == ["w1: infer #2 a:1 x1 f/1"]
    shard.loaded(1, now=100.005)
    shard.ran(2, begin_s=100.005, duration_s=0.010)
    assert shard.wake(100.015) == []
    due_s = 100.0 + PREFETCH_AFTER * SLOW.load_s
    assert wake_at(shard) == pytest.approx(due_s)
    assert shard.wake(due_s - before_s) == ([] if before_s else ["w1: load #3 b:1"])
    assert woken(shard, due_s + LOAD_LOOK_EVERY_S) == (["w1: load #3 b:1"] if before_s else [])


def test_nobody_wakes_for_a_prefetch_while_the_device_loads_something_else() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": SLOW, "c:1": TEN_MS}, resident=[], pages=6)
    shard.submit(1, "a:1", now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: load #1 a:1"]
    assert shard.wake(100.0) == ["w1: infer #2 a:1 x1 f/1"]
    shard.loaded(1, now=100.005)
    shard.ran(2, begin_s=100.005, duration_s=0.010)
    assert shard.wake(100.015) == []
    shard.submit(2, "c:1", now=100.020, budget_s=1.0)
    assert shard.wake(100.020) == ["w1: load #3 c:1"]
    wakes = 0
    while (at_s := wake_at(shard)) < 100.5:
        shard.wake(at_s)
        wakes += 1
    assert wakes < 10
