"""A batch that fails is tried apart: sound requests are served, and a bad one is told its own error alone."""

import math

import pytest

from controller.core.orders import Order, ToFrontend
from mesh import wire
from mesh.codes import ActionCode
from tests.controller.core.controller_builders import TEN_MS, Shard, line, one, woken
from tests.controller.core.isolation.poisoned_mesh import PoisonedMesh

FINAL = (
    ActionCode.DEVICE_ERROR, ActionCode.MODEL_ERROR, ActionCode.BAD_INPUT, ActionCode.BAD_OUTPUTS,
    ActionCode.ROWS_CHANGED, ActionCode.BAD_BATCH,
)  # fmt: skip


@pytest.mark.parametrize("bad", [(1,), (128,), (64, 65), (7, 13, 77, 101, 120, 121, 122, 128), tuple(range(1, 129))])
@pytest.mark.parametrize("policy", ["atc", "fifo"])
def test_all_sound_requests_of_a_batch_are_served_and_only_the_bad_ones_fail(bad: tuple[int, ...], policy: str) -> None:
    mesh = PoisonedMesh(policy=policy)
    mesh.bad.update(bad)
    mesh.submit(range(1, 129), budget_s=3.0)
    mesh.run(3.0)
    assert mesh.told("device_error") == set(bad)
    assert mesh.told("ok") == set(range(1, 129)) - set(bad)


def test_under_clockwork_too_all_sound_requests_of_a_batch_are_served() -> None:
    mesh = PoisonedMesh(policy="clockwork")  # whose largest batch is 16
    mesh.bad.add(5)
    mesh.submit(range(1, 17), budget_s=3.0)
    mesh.run(3.0)
    assert (mesh.told("device_error"), len(mesh.told("ok"))) == ({5}, 15)


def test_a_bad_request_costs_about_as_many_executions_as_its_batch_can_be_halved() -> None:
    mesh = PoisonedMesh()
    mesh.bad.add(50)
    mesh.submit(range(1, 129))
    mesh.run(1.0)
    assert len(mesh.executed) <= 2 * math.log2(128) + 2, mesh.executed
    assert len(mesh.told("ok")) == 127


@pytest.mark.parametrize("code", FINAL)
def test_only_a_request_that_failed_alone_is_told_the_text(code: str) -> None:
    shard = one()
    for number in (1, 2, 3):
        shard.submit(number, now=100.0, budget_s=1.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x3 f/1 f/2 f/3"]
    assert shard.result(1, now=100.02, code=code, message="secret") == []
    assert shard.wake(100.02) == ["w1: infer #2 m:1 x2 f/1 f/2"]
    assert shard.ran(2, begin_s=100.02, duration_s=0.012) == []
    assert shard.wake(100.032) == ["w1: infer #3 m:1 x1 f/3"]
    failed = wire.ActionResult(action=3, kind="infer", code=code, received_s=0.0, free_pages=0, message="secret")
    (refused,) = refusals(shard.scheduler.result("w1", failed, now=100.05))
    assert (refused.request, refused.code, refused.message, refused.alone) == (3, code, "secret", True)
    assert shard.scheduler.open_requests == 0


def refusals(orders: list[Order]) -> list[wire.Refused]:
    return [o.message for o in orders if isinstance(o, ToFrontend) and isinstance(o.message, wire.Refused)]


def test_what_there_is_no_time_to_try_apart_is_told_so_without_the_text() -> None:
    shard = Shard().serve({"m:1": line(0.1, 0.0)})
    for number in (1, 2, 3):
        shard.submit(number, now=100.0, budget_s=0.35)
    shard.wake(100.0)
    assert shard.result(1, now=100.1, code=ActionCode.MODEL_ERROR, message="secret") == []
    assert shard.wake(100.1) == ["w1: infer #2 m:1 x2 f/1 f/2"]
    assert shard.result(2, now=100.2, code=ActionCode.MODEL_ERROR, message="secret") == []
    assert shard.wake(100.2) == ["w1: infer #3 m:1 x1 f/3"]  # of three single ones there is time for one
    refused = refusals(shard.orders(100.2601))
    assert {message.request for message in refused} == {1, 2}
    assert {(message.status, message.code) for message in refused} == {("failed", "batch_failed")}
    assert not any("secret" in message.message for message in refused)


def test_wakes_alone_are_enough_to_end_what_waits_apart() -> None:
    shard = Shard().serve({"m:1": line(0.1, 0.0)})
    for number in (1, 2, 3):
        shard.submit(number, now=100.0, budget_s=0.35)
    shard.wake(100.0)
    shard.result(1, now=100.1, code=ActionCode.MODEL_ERROR)
    shard.wake(100.1)
    shard.result(2, now=100.2, code=ActionCode.MODEL_ERROR)
    shard.wake(100.2)
    assert woken(shard, until=100.3) == ["f: 1 failed batch_failed", "f: 2 failed batch_failed"]
    woken(shard, until=110.0)
    assert shard.scheduler.open_requests == 0


def test_what_is_tried_apart_goes_before_what_waits_and_is_never_mixed_with_it() -> None:
    shard = one()
    for number in (1, 2):
        shard.submit(number, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    for number in (3, 4, 5):
        shard.submit(number, now=100.001, budget_s=1.0)
    shard.result(1, now=100.012, code=ActionCode.DEVICE_ERROR)
    orders = shard.wake(100.012)
    assert orders == ["w1: infer #2 m:1 x1 f/1"]
    shard.ran(2, begin_s=100.012, duration_s=0.01)
    assert shard.wake(100.022) == ["w1: infer #3 m:1 x1 f/2"]
    shard.ran(3, begin_s=100.022, duration_s=0.01)
    assert shard.wake(100.032) == ["w1: infer #4 m:1 x3 f/3 f/4 f/5"]


def tried_apart() -> Shard:
    """Of four requests, two are tried apart at the one device that has the weights, and two wait for that."""
    shard = Shard(lead_ms=0.01).serve({"m:1": TEN_MS, "n:1": TEN_MS}, pages=2, resident=["m:1"])
    for number in (1, 2, 3, 4):
        shard.submit(number, now=100.0, budget_s=1.0, client=number)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x4 f/1 f/2 f/3 f/4"]
    shard.result(1, now=100.014, code=ActionCode.DEVICE_ERROR)
    assert shard.wake(100.014) == ["w1: infer #2 m:1 x2 f/1 f/2"]
    return shard


def test_who_gives_up_while_it_waits_apart_or_runs_apart_is_not_tried_again() -> None:
    shard = tried_apart()
    shard.cancel(1, now=100.015)
    shard.cancel(3, now=100.015)
    shard.result(2, now=100.03, code=ActionCode.DEVICE_ERROR)
    assert shard.wake(100.03) == ["w1: infer #3 m:1 x1 f/4"]
    shard.ran(3, begin_s=100.03, duration_s=0.01)
    assert shard.wake(100.04) == ["w1: infer #4 m:1 x1 f/2"]
    shard.lose_frontend()
    assert shard.scheduler.open_requests == 0
    assert shard.wake(100.05) == ["w1: revoke #4"]


def test_a_lost_frontend_leaves_nothing_that_waits_apart() -> None:
    shard = tried_apart()
    shard.lose_frontend()
    assert shard.scheduler.open_requests == 0
    shard.result(2, now=100.03, code=ActionCode.DEVICE_ERROR)
    assert shard.wake(100.03) == []


def test_a_model_is_not_evicted_while_its_requests_wait_apart() -> None:
    shard = tried_apart()
    shard.submit(9, "n:1", now=100.015, budget_s=0.5)
    assert not any("unload" in order for order in shard.wake(100.015))


def test_what_waits_apart_when_its_last_worker_goes_waits_in_the_queue_and_is_tried_apart_on_the_next() -> None:
    shard = tried_apart()
    shard.lose("w1", now=100.015)
    shard.wake(100.015)
    shard.serve({"m:1": TEN_MS}, workers=("w2",), resident=[], now=100.1)
    assert "w2: load #3 m:1" in shard.wake(100.1)
    orders = shard.loaded(3, now=100.11, worker="w2") + shard.wake(100.11) + woken(shard, until=100.12)
    assert orders == ["w2: infer #4 m:1 x2 f/3 f/4"]


def test_what_waits_apart_for_a_version_that_is_not_wanted_any_more_is_served_before_it_goes() -> None:
    shard = tried_apart()
    shard.want([], now=100.015)
    shard.ran(2, begin_s=100.015, duration_s=0.012)
    assert shard.wake(100.03) == ["w1: infer #3 m:1 x2 f/3 f/4"]
    shard.ran(3, begin_s=100.03, duration_s=0.012)
    assert shard.scheduler.open_requests == 0


def test_what_came_to_nothing_apart_is_tried_apart_again_but_not_more_often_than_others() -> None:
    shard = Shard().serve({"m:1": TEN_MS})
    for number in (1, 2):
        shard.submit(number, now=100.0, budget_s=9.0)
    shard.wake(100.0)
    shard.result(1, now=100.1, code=ActionCode.DEVICE_ERROR)
    now, told = 100.1, []
    for action in (2, 3, 4, 5, 6, 7):
        now += 0.1
        shard.wake(now)
        told += shard.result(action, now=now, code=ActionCode.LATE)
    assert told == ["f: 1 failed late", "f: 2 failed late"]


def test_a_version_that_fails_for_everybody_costs_at_most_a_quarter_of_a_device_more() -> None:
    mesh = PoisonedMesh(batch_max=8)
    mesh.broken = True
    first, seconds = 1, 8
    for _ in range(seconds * 10):
        mesh.submit(range(first, first + 8), budget_s=0.2)
        first += 8
        mesh.run(0.1)
    mesh.run(1.0)
    batches_s = seconds * 10 * (0.004 + 8 * 0.0001)
    assert mesh.failed_s <= batches_s + 0.25 * (seconds + 1) + 1.0 + 0.01
    assert set(mesh.answers.values()) <= {"device_error", "batch_failed"}
    assert len(mesh.answers) == first - 1


def test_nobody_is_suspected_of_what_the_version_does_to_everybody() -> None:
    mesh = PoisonedMesh(batch_max=8)
    mesh.broken = True
    mesh.submit(range(1, 9), budget_s=1.0)
    mesh.run(3.0)
    mesh.broken = False
    mesh.submit(range(11, 19), budget_s=1.0)
    mesh.run(0.5)
    assert mesh.executed[-1] == tuple(range(11, 19))
    assert mesh.mesh.scheduler.isolation.take_notices() == []


def test_nobody_is_suspected_of_what_one_device_of_several_does_to_everybody() -> None:
    mesh = PoisonedMesh(4, batch_max=32)
    mesh.broken_worker = "w0"
    for first in range(1, 2000, 20):
        mesh.submit(range(first, first + 20), budget_s=0.3, client=lambda number: number % 50)
        mesh.run(0.02)
    mesh.run(0.5)
    assert mesh.mesh.scheduler.isolation.take_notices() == []
    assert len(mesh.told("ok")) > 0.95 * 2000
    assert not mesh.told("batch_failed")
