"""Devices that have nothing to do are left alone, and nothing is decided otherwise for that."""

import math
import random

import pytest

from mesh.codes import ActionCode, ActionKind
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, line, one, prepared

MODELS = {f"m{i}:1": line(0.002 + 0.001 * i, 0.001) for i in range(5)}
WORKERS = ("w1", "w2", "w3")
BAD = sorted({*ActionCode} - {ActionCode.OK})


def story(seed: int, *, touched: bool) -> list[object]:
    """All that is ordered, and when the shard wants to be woken. `touched`: every device is looked at in every turn."""
    rng = random.Random(seed)
    shard = Shard().serve(MODELS, workers=WORKERS, resident=list(MODELS)[: rng.randint(0, 3)], pages=6)
    told: list[object] = []
    now, away = 0.0, ""
    for number in range(80):
        now += rng.choice((0.0, 0.001, 0.004, 0.02, 0.3))
        for _ in range(rng.randint(0, 6)):
            told += shard.submit(rng.randrange(1 << 30), rng.choice(list(MODELS)), now=now, budget_s=0.08, frontend="f")
        for worker, device in list(shard.state.devices.items()):
            for action in list(device.actions.values()):
                if rng.random() < 0.6:
                    code = ActionCode.OK if rng.random() < 0.85 else rng.choice(BAD)
                    ran = action.kind is not ActionKind.UNLOAD and code is ActionCode.OK
                    told += shard.result(
                        action.id, action.kind, now=now, worker=worker, code=code, begin_s=now - 0.003 if ran else None,
                        end_s=now if ran else None, duration_s=0.003 if ran else None,
                    )  # fmt: skip
        if number == 30:
            away = rng.choice(WORKERS)
            told += shard.lose(away, now=now)
        if number == 45:
            reports = [prepared(ref, profile) for ref, profile in MODELS.items()]
            told += shard.join(hello(away, *reports, pages=6, resident=list(MODELS)[:1]), now=now)
        if touched:
            shard.state.touch_all()
        told += shard.wake(now)
        told.append(shard.scheduler.wake_at())
    return told


@pytest.mark.parametrize("seed", range(12))
def test_what_is_ordered_is_the_same_as_if_every_device_were_looked_at_in_every_turn(seed: int) -> None:
    assert story(seed, touched=False) == story(seed, touched=True)


def test_a_device_is_quiet_once_all_is_done_and_no_longer_when_a_request_waits_for_it() -> None:
    shard = one()
    shard.wake(100.0)
    device = shard.state.devices["w1"]
    assert device.quiet_until_s > 100.0
    shard.submit(1, now=100.0)
    assert device.quiet_until_s < 100.0
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    assert device.quiet_wake_s == device.actions[1].overdue_s


def test_a_device_is_quiet_while_another_one_s_action_fails_or_a_version_drains() -> None:
    shard = Shard()
    shard.want(["m:1", "n:1"])
    shard.join(hello("w1", prepared("m:1"), prepared("n:1"), resident=["m:1", "n:1"]), now=100.0)
    shard.join(hello("w2", prepared("n:1"), resident=["n:1"]), now=100.0)
    other = shard.state.devices["w2"]
    assert shard.wake(100.0) == ["w2: prepare m:1"]
    shard.want(["m:1"], now=100.0)
    shard.wake(100.0)
    for number in range(1, 20):  # n:1 drains for 2 s
        now = 100.0 + 0.1 * number
        shard.submit(number, "m:1", now=now, budget_s=0.02)
        assert shard.wake(now) == [f"w1: infer #{number} m:1 x1 f/{number}"]
        shard.result(number, now=now + 0.015, code=ActionCode.LATE)
        assert other.quiet_until_s == math.inf
        shard.wake(now + 0.015)
        assert other.quiet_until_s == math.inf
    assert shard.wake(102.0) == ["w1: forget n:1", "w2: forget n:1"]


def test_nothing_is_looked_at_anew_because_a_device_was_busy_for_longer_than_its_first_batch_might_have_taken() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2"))
    shard.wake(100.0)
    other, now = shard.state.devices["w2"], 100.0
    for number in range(1, 400):  # one batch after the other, for 4 s; each would be overdue after 2 s
        shard.submit(number, now=now)
        for ordered in ([f"w1: infer #{number} m:1 x1 f/{number}"], []):
            turn = shard.state.turn
            assert shard.wake(now) == ordered
            assert shard.state.turn == turn + 1
            assert other.quiet_until_s == math.inf
            now += 0.005
        shard.ran(number, begin_s=now - 0.0095, duration_s=0.0095)


def test_everything_is_looked_at_anew_when_an_action_is_lost() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, workers=("w1", "w2"))
    shard.submit(1, now=100.0)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    overdue_s, turn = shard.state.devices["w1"].overdue_s, shard.state.turn
    shard.wake(math.nextafter(overdue_s, 0.0))
    assert (list(shard.state.devices["w1"].actions), shard.state.turn) == ([1], turn + 1)
    shard.wake(overdue_s)
    assert (list(shard.state.devices["w1"].actions), shard.state.turn) == ([], turn + 3)
