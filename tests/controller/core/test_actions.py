"""Orders to a worker, and what the controller notes of them."""

import pytest

from controller.core.actions import Actions
from controller.core.devices.action import OVERDUE_FACTOR, OVERDUE_S_MIN
from controller.core.devices.base import DISPATCH_S, EARLY_S, LOAD_LATE_S, RemoteDevice
from controller.core.devices.paged import PagedDevice
from controller.core.orders import ToWorker
from controller.core.residency import Residency
from controller.core.state import ShardState
from mesh import wire
from mesh.codes import ActionKind
from tests.controller.core.controller_builders import TEN_MS, hello, prepared, request


def device(offset_s: float = 0.0) -> RemoteDevice:
    """Eight pages; "m:1" would take three of them."""
    info = hello("w1", prepared("m:1", TEN_MS)).device
    one = PagedDevice("w1", info, Residency(8, 8), offset_s=offset_s)
    one.prepared("m:1", 3)
    return one


def with_weights(offset_s: float = 0.0) -> RemoteDevice:
    one = device(offset_s)
    one.residency.place("m:1", 3, 0.0)
    return one


def test_an_infer_is_noted_and_worded_in_the_worker_s_clock() -> None:
    one = with_weights(offset_s=1000.0)
    actions = Actions(ShardState())
    first = request(1, rows=2, frontend="f", tensors=(b"ab", b"c"))
    first.predicted_s = 0.02
    order = actions.infer(one, "m:1", 4, [first], start_s=10.5, expected_s=0.25, latest_s=11.0, now=10.0)
    assert order == ToWorker(
        "w1",
        wire.Infer(
            action=1,
            ref="m:1",
            earliest_s=10.0 - EARLY_S + 1000.0,
            latest_s=1011.0,
            expected_s=0.25,
            batch=4,
            parts=(wire.Part(frontend="f", request=1, attempt=0, rows=2, predicted_s=0.02, inline=(b"ab", b"c")),),
        ),
    )
    action = one.actions[1]
    assert (action.kind, action.ref, action.batch, action.requests) == (ActionKind.INFER, "m:1", 4, [first])
    assert (action.sent_s, action.expected_end_s) == (10.0, 10.75)
    assert one.exec.free_at(10.0) == 10.75
    assert one.infers == 1
    place = one.residency.models["m:1"]
    assert (place.bound, place.used_s) == (1, 10.0)


def test_of_each_part_the_order_has_its_inputs_or_where_they_are_kept() -> None:
    here = wire.Kept(sizes=(8,), slot=wire.Slot(segment="1.2.ab", offset=64, generation=3))
    far = wire.Kept(sizes=(8,))
    requests = [request(2, kept=here), request(1, tensors=(b"s",)), request(3, kept=far)]
    order = Actions(ShardState()).infer(
        with_weights(), "m:1", 3, requests, start_s=1.0, expected_s=0.1, latest_s=2.0, now=1.0
    )
    assert isinstance(order.message, wire.Infer)
    assert [(part.request, part.inline, part.kept) for part in order.message.parts] == [
        (2, (), here), (1, (b"s",), None), (3, (), far),
    ]  # fmt: skip


def test_a_measuring_run_may_start_until_it_is_overdue() -> None:
    one = with_weights(offset_s=-5.0)
    order = Actions(ShardState()).infer(one, "m:1", 1, [], start_s=10.0, expected_s=0.1, latest_s=None, now=10.0)
    assert isinstance(order.message, wire.Infer)
    assert order.message.parts == ()
    assert order.message.latest_s == one.actions[1].overdue_s - 5.0


@pytest.mark.parametrize(("expected_s", "grace_s"), [(0.1, OVERDUE_S_MIN), (1.0, OVERDUE_FACTOR * 1.0)])
def test_an_action_is_overdue_some_time_after_its_expected_end(expected_s: float, grace_s: float) -> None:
    one = with_weights()
    Actions(ShardState()).infer(one, "m:1", 1, [], start_s=10.0, expected_s=expected_s, latest_s=None, now=10.0)
    assert one.actions[1].overdue_s == pytest.approx(10.0 + expected_s + grace_s)


def test_a_load_takes_its_pages_and_its_place_in_the_lane() -> None:
    one = device(offset_s=7.0)
    actions = Actions(ShardState(), count=41)
    order = actions.load(one, "m:1", expected_s=0.5, now=10.0)
    end_s = 10.0 + DISPATCH_S + 0.5
    assert order == ToWorker(
        "w1",
        wire.Load(
            action=42, ref="m:1", earliest_s=10.0 - EARLY_S + 7.0, latest_s=end_s + LOAD_LATE_S + 7.0, expected_s=0.5
        ),
    )
    assert one.residency.free == 5
    assert one.residency.models["m:1"].ready_s == end_s
    assert one.residency.models["m:1"].loading == 42
    assert one.load.free_at(10.0) == end_s
    assert one.exec.free_at(10.0) == 10.0
    one.residency.check()


def test_a_batch_behind_a_load_starts_when_the_weights_are_there() -> None:
    one = device()
    Actions(ShardState()).load(one, "m:1", expected_s=0.5, now=10.0)
    assert one.start_s("m:1", 10.0) == 10.0 + DISPATCH_S + 0.5
    assert one.start_s("m:1", 20.0) == 20.0 + DISPATCH_S


def test_an_unload_frees_its_pages_at_once() -> None:
    one = with_weights()
    one.no_load_found()
    assert not one.room_for_more
    order = Actions(ShardState()).unload(one, "m:1", now=10.0)
    assert order == ToWorker("w1", wire.Unload(action=1, ref="m:1"))
    assert one.residency.free == 8
    assert one.room_for_more
    assert one.actions[1].overdue_s == 10.0 + OVERDUE_S_MIN


def test_every_action_has_a_number_of_its_own_over_all_devices() -> None:
    actions = Actions(ShardState())
    first, second = with_weights(), with_weights()
    actions.unload(first, "m:1", now=1.0)
    actions.unload(second, "m:1", now=1.0)
    actions.load(first, "m:1", expected_s=0.1, now=1.0)
    assert (list(first.actions), list(second.actions)) == ([1, 3], [2])
