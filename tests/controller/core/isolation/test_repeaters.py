"""A client that goes on sending bad requests costs its own answers, and not the others'."""

import random
from collections.abc import Callable

import pytest

from controller.core.isolation.suspects import SUSPECT_S, TOLD_EVERY_S
from mesh.codes import ActionCode
from tests.controller.core.controller_builders import Shard, one
from tests.controller.core.isolation.poisoned_mesh import PoisonedMesh

POISONER = 10**6  # the client of all requests with higher numbers
SECONDS = 2.0
BUDGET_S = 0.1


def who(number: int) -> int:
    """Others are fifty clients."""
    return POISONER if number >= POISONER else 1 + number % 50


def in_time(rate: float, poison: Callable[[int], bool] | None, poison_rate: float = 0.0, *, seed: int = 1) -> float:
    """The share of others' requests that are answered in time, on one device, in overload or not."""
    rng, mesh = random.Random(seed), PoisonedMesh(batch_max=32)
    at, number = 0.0, 0
    arrivals: list[tuple[float, int]] = []
    while at < SECONDS:
        at += rng.expovariate(rate)
        number += 1
        arrivals.append((at, number))
    sound = number
    at, number = 0.0, POISONER
    while poison is not None and at < SECONDS:
        at += rng.expovariate(poison_rate)
        number += 1
        if poison(number):
            mesh.bad.add(number)
        arrivals.append((at, number))
    for at_s, which in arrivals:
        mesh.later(at_s, lambda which=which: mesh.submit([which], budget_s=BUDGET_S, client=who))  # type: ignore[misc]
    mesh.run(SECONDS + 1.0)
    assert mesh.told("device_error") <= mesh.bad
    return len([n for n in mesh.told("ok") if n < POISONER]) / sound


@pytest.mark.parametrize("rate", [500.0, 2000.0])  # of about 4,400 that the device can serve
@pytest.mark.parametrize("poison_rate", [20.0, 200.0, 1000.0])
def test_a_client_of_nothing_but_poison_leaves_others_nine_tenths_of_their_goodput(
    rate: float, poison_rate: float
) -> None:
    without = in_time(rate, None)
    assert without > 0.99
    assert in_time(rate, lambda number: True, poison_rate) >= 0.9 * without


def test_a_client_that_forwards_everybody_s_rows_gets_its_sound_ones_served() -> None:
    mesh = PoisonedMesh(batch_max=32)
    mesh.submit(range(1, 33), client=lambda n: 7)
    mesh.bad.update(range(80, 2000, 80))
    mesh.run(0.1)
    for first in range(33, 2000, 20):
        mesh.submit(range(first, first + 20), budget_s=0.5, client=lambda n: 7)
        mesh.run(0.05)
    mesh.run(1.0)
    sent = set(range(33, 2013))
    assert len(mesh.told("ok") & sent) >= 0.95 * len(sent - mesh.bad)
    assert mesh.told("device_error") <= mesh.bad
    together = [numbers for numbers in mesh.executed if len(numbers) > 1]
    assert len(together) > 100  # still in batches


def suspected() -> Shard:
    """Client 7's request failed alone, though its neighbour was served."""
    shard = one()
    shard.submit(1, now=100.0, budget_s=1.0, client=1, tensors=(b"good",))
    shard.submit(2, now=100.0, budget_s=1.0, client=7, tensors=(b"bad!",))
    shard.wake(100.0)
    shard.result(1, now=100.01, code=ActionCode.DEVICE_ERROR)
    shard.wake(100.01)
    shard.ran(2, begin_s=100.01, duration_s=0.01)
    shard.wake(100.02)
    assert shard.result(3, now=100.03, code=ActionCode.DEVICE_ERROR) == ["f: 2 failed device_error"]
    return shard


def together(shard: Shard, now: float, **clients: tuple[int, bytes]) -> list[str]:
    for number, (client, tensor) in enumerate(clients.values(), 50):
        shard.submit(number, now=now, budget_s=0.5, client=client, tensors=(tensor.ljust(4),))
    return shard.wake(now)


def test_a_suspect_s_requests_are_taken_out_of_the_batch_and_others_fill_their_places() -> None:
    shard = suspected()
    for number in range(10, 30):
        shard.submit(number, now=100.1, budget_s=0.5, client=7 if number % 2 else 1)
    assert shard.wake(100.1) == ["w1: infer #4 m:1 x8 f/10 f/12 f/14 f/16 f/18 f/20 f/22 f/24"]
    shard.ran(4, begin_s=100.1, duration_s=0.024)
    assert shard.wake(100.124) == ["w1: infer #5 m:1 x4 f/11 f/13 f/15 f/17"]
    shard.ran(5, begin_s=100.124, duration_s=0.016)
    assert shard.wake(100.14) == ["w1: infer #6 m:1 x2 f/26 f/28"]


def test_a_suspect_s_batches_halve_with_each_failure_and_double_with_each_success() -> None:
    shard = suspected()
    now, action, sizes = 100.1, 3, []
    for code in (ActionCode.DEVICE_ERROR, ActionCode.DEVICE_ERROR, ActionCode.OK, ActionCode.OK, ActionCode.OK):
        for number in range(8):
            shard.submit(action * 100 + number, now=now, budget_s=0.05, client=7)
        (order,) = [order for order in shard.wake(now) if "infer" in order]
        action += 1
        sizes.append(len(order.split()) - 5)
        if code == ActionCode.OK:
            shard.ran(action, begin_s=now, duration_s=0.01)
        else:
            shard.result(action, now=now + 0.01, code=code)
        now += 0.2
        shard.wake(now)
    assert sizes == [4, 2, 1, 2, 4]


def test_ten_seconds_after_its_last_failure_a_client_is_like_others() -> None:
    shard = suspected()
    assert together(shard, 100.03 + SUSPECT_S - 0.01, a=(7, b"x"), b=(1, b"y"))[0].endswith("x1 f/51")
    shard = suspected()
    assert together(shard, 100.03 + SUSPECT_S, a=(7, b"x"), b=(1, b"y"))[0].endswith("x2 f/50 f/51")


def test_exactly_the_same_input_is_executed_alone_whoever_sends_it() -> None:
    shard = suspected()
    assert together(shard, 100.1, a=(9, b"bad!"), b=(1, b"fine"), c=(9, b"bae")) == ["w1: infer #4 m:1 x2 f/51 f/52"]
    shard.ran(4, begin_s=100.1, duration_s=0.012)
    assert shard.wake(100.112) == ["w1: infer #5 m:1 x1 f/50"]


def test_clients_that_are_not_told_apart_are_not_suspected() -> None:
    shard = one()
    for number in (1, 2):
        shard.submit(number, now=100.0, budget_s=1.0)
    shard.wake(100.0)
    shard.result(1, now=100.01, code=ActionCode.DEVICE_ERROR)
    shard.wake(100.01)
    shard.ran(2, begin_s=100.01, duration_s=0.01)
    shard.wake(100.02)
    shard.result(3, now=100.03, code=ActionCode.DEVICE_ERROR)
    assert together(shard, 100.1, a=(0, b"x"), b=(1, b"y")) == ["w1: infer #4 m:1 x2 f/50 f/51"]


def test_who_gave_up_before_it_could_be_tried_apart_is_cleared_by_its_first_batch_that_ends_well() -> None:
    shard = one()
    for number in (1, 2):
        shard.submit(number, now=100.0, budget_s=1.0, client=number)
    shard.wake(100.0)
    shard.cancel(2, now=100.005)
    shard.result(1, now=100.01, code=ActionCode.DEVICE_ERROR)
    shard.wake(100.01)
    shard.ran(2, begin_s=100.01, duration_s=0.01)
    assert together(shard, 100.1, a=(2, b"x"), b=(1, b"y")) == ["w1: infer #3 m:1 x1 f/51"]
    shard.ran(3, begin_s=100.1, duration_s=0.01)
    assert shard.wake(100.11) == ["w1: infer #4 m:1 x1 f/50"]
    shard.ran(4, begin_s=100.11, duration_s=0.01)
    for number in (60, 61):
        shard.submit(number, now=100.2, budget_s=0.5, client=number - 59)
    assert shard.wake(100.2) == ["w1: infer #5 m:1 x2 f/60 f/61"]


def test_a_suspect_s_failures_cost_a_quarter_of_a_device_and_what_has_no_room_is_told_so() -> None:
    mesh = PoisonedMesh(batch_max=32)
    mesh.submit([1], client=lambda n: 1)
    mesh.run(0.1)
    number = POISONER
    for _ in range(800):  # 200 a second
        number += 1
        mesh.bad.add(number)
        mesh.submit([number, number - POISONER + 1], budget_s=BUDGET_S, client=who)
        mesh.run(0.005)
    mesh.run(1.0)
    assert mesh.failed_s <= 0.25 * 5.0 + 0.5 + 0.1
    assert {mesh.answers[n] for n in mesh.bad} == {"device_error", "batch_failed"}
    assert not any("alone" in mesh.messages[n] for n in mesh.told("batch_failed"))


def test_operators_are_told_of_a_client_once_a_minute() -> None:
    shard = suspected()
    told = shard.scheduler.isolation.take_notices()
    assert [(n.event, n.ref, n.frontend, n.client, n.code) for n in told] == [
        ("suspect_client", "m:1", "f", 7, "device_error")
    ]
    action, times = 3, []
    for i in range(130):
        now = 101.0 + i
        shard.submit(1000 + 2 * i, now=now, client=1)
        shard.submit(1001 + 2 * i, now=now, client=7)
        for _ in range(4):
            for order in shard.wake(now):
                action += 1
                bad = f"f/{1001 + 2 * i}" in order
                if bad:
                    shard.result(action, now=now + 0.01, code=ActionCode.DEVICE_ERROR)
                else:
                    shard.ran(action, begin_s=now, duration_s=0.01)
            now += 0.02
        times += [now for _ in shard.scheduler.isolation.take_notices()]
    assert len(times) == 2
    assert times[1] - times[0] >= TOLD_EVERY_S


def test_what_is_remembered_is_forgotten_and_costs_nothing_then() -> None:
    shard = suspected()
    assert shard.scheduler.isolation.watched
    shard.wake(100.03 + max(SUSPECT_S, TOLD_EVERY_S) + 1.0)
    assert not shard.scheduler.isolation.watched


def test_requests_that_wait_for_a_suspect_of_whom_nothing_is_known_any_more_are_executed_one_by_one() -> None:
    shard = suspected()
    for number in range(10, 14):
        shard.submit(number, now=100.1, budget_s=0.5, client=7)
    shard.submit(20, now=100.1, budget_s=0.5, client=1)
    assert shard.wake(100.1) == ["w1: infer #4 m:1 x1 f/20"]
    shard.scheduler.isolation.watched["m:1"].suspects.clear()  # another thousand clients were named since
    shard.ran(4, begin_s=100.1, duration_s=0.01)
    assert shard.wake(100.11) == ["w1: infer #5 m:1 x1 f/10"]
