"""What is believed of a worker, against what it shows: reports that crossed with orders, results that contradict."""

import itertools

import msgspec
import pytest

from controller.core.devices.base import FEWER_PAGES_S
from controller.core.orders import ToWorker
from controller.core.versions.preparation import DOUBT_OVER_S, DOUBTED_S_MAX, REPORT_S
from controller.core.versions.wanted import LET_GO_S
from mesh import wire
from mesh.codes import ActionCode, ActionKind
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, one, prepared

NOT_PREPARED = (ActionCode.UNKNOWN_MODEL, ActionCode.WRONG_VERSION)


def numbered(shard: Shard, now: float) -> list[wire.Prepare | wire.Forget]:
    """The orders about versions that a wake gives."""
    orders = [order.message for order in shard.orders(now) if isinstance(order, ToWorker)]
    return [message for message in orders if isinstance(message, wire.Prepare | wire.Forget)]


def says(report: wire.Prepared, order: int) -> wire.Prepared:
    """The report of a worker that obeyed this order last."""
    return msgspec.structs.replace(report, order=order)


# -- results that say otherwise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", NOT_PREPARED)
def test_a_version_that_its_worker_does_not_know_is_prepared_again_at_once_and_who_asked_waits(code: str) -> None:
    shard = one()
    shard.scheduler.frontend_joined("f")
    shard.submit(1, now=100.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    assert shard.result(1, now=100.001, code=code) == ["f: serving -m:1"]
    assert shard.state.devices["w1"].residency.free == 8
    assert shard.wake(100.001) == ["w1: prepare m:1"]
    assert shard.report(prepared(), now=100.01) == ["f: serving +m:1"]
    assert shard.wake(100.01) == ["w1: load #2 m:1"]
    shard.loaded(2, now=100.016)
    assert shard.wake(100.016) == ["w1: infer #3 m:1 x1 f/1"]


@pytest.mark.parametrize("code", NOT_PREPARED)
def test_a_version_that_cannot_be_loaded_because_its_worker_does_not_know_it_is_prepared_again(code: str) -> None:
    shard = Shard().serve({"m:1": TEN_MS}, resident=())
    shard.submit(1, now=100.0)
    assert shard.wake(100.0) == ["w1: load #1 m:1"]
    assert shard.result(1, ActionKind.LOAD, now=100.001, code=code) == []
    assert shard.wake(100.001) == ["w1: prepare m:1"]


@pytest.mark.parametrize("code", NOT_PREPARED)
def test_a_version_that_its_worker_does_not_know_when_it_is_measured_is_prepared_again(code: str) -> None:
    shard = Shard()
    shard.want(["m:1"])
    shard.join(hello("w1", prepared("m:1", None, measure=((1, 3),)), resident=["m:1"]), now=100.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 measuring"]
    shard.result(1, now=100.001, code=code)
    assert shard.wake(100.001) == ["w1: prepare m:1"]


def test_a_result_that_is_older_than_the_preparation_says_nothing_about_it() -> None:
    shard = one()
    shard.submit(1, now=100.0)
    shard.wake(100.0)
    shard.submit(2, now=100.0)
    shard.wake(100.0095)
    assert shard.result(1, now=100.01, code=ActionCode.UNKNOWN_MODEL) == []
    assert shard.wake(100.01) == ["w1: prepare m:1"]
    shard.report(prepared(), now=100.011)
    assert shard.result(2, now=100.012, code=ActionCode.UNKNOWN_MODEL) == []
    assert shard.wake(100.012) == ["w1: load #3 m:1"]


def test_a_worker_that_says_prepared_and_then_does_not_know_is_asked_less_and_less_often() -> None:
    shard = one()
    now, asked, number = 100.0, [], 0
    while now < 150.0:
        number += 1
        shard.submit(number, now=now)
        for order in shard.orders(now):
            match order.message:
                case wire.Prepare():
                    asked.append(now)
                    shard.report(prepared(), now=now)
                case wire.Load(action=action):
                    shard.result(action, ActionKind.LOAD, now=now, code=ActionCode.UNKNOWN_MODEL)
                case wire.Infer(action=action):
                    shard.result(action, now=now, code=ActionCode.UNKNOWN_MODEL)
        now += 0.01
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert pauses[0] < 0.2
    assert pauses[-1] == pytest.approx(DOUBTED_S_MAX, abs=0.1)
    assert len(asked) < 20
    shard.submit(10_000, now=now + DOUBT_OVER_S)
    shard.wake(now + DOUBT_OVER_S)


def test_no_order_of_two_hellos_and_a_table_leaves_a_version_that_nobody_prepares() -> None:
    """An old worker, which numbers nothing: the second Hello crossed with whatever the first one brought about."""
    shard = Shard()
    first = hello("w1", prepared("m:1"), resident=["m:1"])
    orders = shard.join(first, now=100.0) + shard.want(["m:1"], now=100.0) + shard.wake(100.0)
    assert not any("forget" in order for order in orders)
    shard.join(first, now=100.001)
    shard.submit(1, now=100.01)
    shard.wake(100.01)
    shard.result(1, now=100.011, code=ActionCode.UNKNOWN_MODEL)  # it has forgotten the version all the same
    assert shard.wake(100.011) == ["w1: prepare m:1"]


# -- reports that crossed with an order -------------------------------------------------------------------------------


def test_a_hello_that_crossed_with_a_forget_is_not_believed() -> None:
    shard = Shard().serve({"m:1": TEN_MS})
    shard.want([], now=100.0)
    (forget,) = numbered(shard, 100.0 + LET_GO_S)
    assert isinstance(forget, wire.Forget)
    shard.want(["m:1"], now=103.0)
    words = hello("w1", says(prepared("m:1"), 7), resident=["m:1"], free_pages=6)
    assert shard.join(words, now=103.0) == ["w1: unload #0 m:1"]
    (prepare,) = numbered(shard, 103.0)
    assert isinstance(prepare, wire.Prepare)
    assert shard.report(says(prepared("m:1"), forget.order), now=103.1) == []
    assert shard.report(says(prepared("m:1"), prepare.order), now=103.1) == ["broker: m:1 is ready"]


def test_a_report_that_crossed_with_an_order_is_not_believed() -> None:
    shard = Shard()
    shard.want(["m:1"], now=100.0)
    shard.join(hello("w1"), now=100.0)
    (first,) = numbered(shard, 100.0)
    shard.want([], now=100.0)
    numbered(shard, 100.0 + LET_GO_S)
    shard.want(["m:1"], now=103.0)
    (again,) = numbered(shard, 103.0)
    assert shard.report(says(prepared("m:1"), first.order), now=103.0) == []
    assert shard.report(says(prepared("m:1"), again.order), now=103.0) == ["broker: m:1 is ready"]


def test_orders_of_two_lives_of_a_controller_have_different_numbers() -> None:
    numbers = set()
    for name in ("controller-1", "controller-2"):
        shard = Shard(name=name)
        shard.want(["m:1"])
        shard.join(hello("w1"), now=0.0)
        numbers |= {order.order for order in numbered(shard, 0.0)}
    assert len(numbers) == 2


def test_a_worker_whose_measuring_runs_are_done_and_that_does_not_say_so_is_asked_again() -> None:
    shard = Shard()
    shard.want(["m:1"])
    shard.join(hello("w1", prepared("m:1", None, measure=((1, 1),)), resident=["m:1"]), now=100.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 measuring"]
    shard.ran(1, begin_s=100.0, duration_s=0.01)
    assert shard.wake(100.0 + REPORT_S) == []
    assert shard.wake(100.011 + REPORT_S) == ["w1: prepare m:1"]
    assert shard.report(prepared("m:1"), now=103.0) == ["broker: m:1 is ready"]
    assert not any("prepare" in order for order in shard.wake(110.0))


# -- pages ------------------------------------------------------------------------------------------------------------


def test_what_a_worker_has_loaded_without_our_knowledge_is_unloaded_when_a_load_finds_no_room() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS}, resident=(), pages=3)
    shard.submit(1, "a:1", now=100.0)
    shard.wake(100.0)
    assert shard.result(1, ActionKind.LOAD, now=100.01, code=ActionCode.NO_PAGES) == ["w1: unload #0 b:1"]


def test_a_worker_that_has_fewer_free_pages_for_a_while_than_we_count_unloads_what_we_do_not_know() -> None:
    shard = Shard().serve({"a:1": TEN_MS, "b:1": TEN_MS}, resident=["a:1"], pages=3)

    def ran(number: int, now: float, free: int) -> list[str]:
        shard.submit(number, "a:1", now=now)
        assert shard.wake(now) == [f"w1: infer #{number} a:1 x1 f/{number}"]
        result = wire.ActionResult(
            action=number, kind=ActionKind.INFER, code=ActionCode.OK, received_s=now, free_pages=free,
            begin_s=now, end_s=now + 0.01, duration_s=0.01,
        )  # fmt: skip
        return shard.checked(shard.scheduler.result("w1", result, now=now + 0.01))

    assert ran(1, 100.0, 0) == []
    assert ran(2, 100.0 + FEWER_PAGES_S / 2, 0) == []
    assert ran(3, 100.0 + FEWER_PAGES_S, 0) == ["w1: unload #0 b:1"]
    assert ran(4, 100.0 + 1.5 * FEWER_PAGES_S, 0) == []
    assert ran(5, 100.0 + 2.5 * FEWER_PAGES_S, 1) == []
