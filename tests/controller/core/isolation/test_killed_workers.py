"""Workers that somebody kills, or that die of themselves: no client is blamed for what it did not do."""

import random

import pytest

from controller.core.isolation.suspects import CALM_S
from tests.controller.core.controller_builders import Shard, hello, one, prepared
from tests.controller.core.isolation.poisoned_mesh import PoisonedMesh

EVERY_S = 0.02


@pytest.mark.parametrize("gives_up", [0.0, 0.3])
@pytest.mark.parametrize("at_once", [1, 20])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_lone_client_whose_worker_is_killed_again_and_again_is_neither_refused_nor_slowed_down(
    workers: int, at_once: int, gives_up: float
) -> None:
    """Also if it gives up much of what it sends. Some of the kills find the worker without any work."""
    rng = random.Random(5)
    mesh = PoisonedMesh(workers, batch_max=32)
    first = 1
    for turn in range(900):
        numbers = range(first, first + at_once)
        first += at_once
        mesh.submit(numbers, client=lambda number: 7)
        mesh.run(0.1 * EVERY_S)
        for number in numbers:
            if rng.random() < gives_up:
                mesh.cancel(number)
        before_s = rng.uniform(0.0, 0.9 * EVERY_S)
        mesh.run(before_s)
        if turn % 75 == 40:
            mesh.kill(rng.choice([worker for worker in mesh.mesh.workers.values() if worker.linked]))
        mesh.run(0.9 * EVERY_S - before_s)
    mesh.run(1.0)
    assert mesh.kills == 12
    assert mesh.told("quarantined") | mesh.told("batch_failed") == set()
    lost = mesh.told("worker_lost")
    assert len(lost) <= at_once * mesh.kills, "what was executed at a kill, and could not be tried again"
    assert mesh.told("no_worker") == set() or workers == 1


@pytest.mark.parametrize("since_s", [3.0, CALM_S, CALM_S + 1.0])
def test_a_worker_that_was_lost_while_it_executed_nothing_speaks_for_those_who_were_there_at_other_losses(
    since_s: float,
) -> None:
    shard = one()
    shard.submit(1, now=100.0, client=1)
    assert shard.wake(100.0) == ["w1: infer #1 m:1 x1 f/1"]
    shard.ran(1, begin_s=100.0, duration_s=0.01)
    now = _lost(shard, 100.1) + since_s - 2.1
    shard.submit(2, now=now, client=1)
    shard.ran(int(shard.wake(now)[-1].split("#")[1].split()[0]), begin_s=now, duration_s=0.01)
    for number in (3, 4):
        now += 1.0
        shard.submit(number, now=now, budget_s=0.5, client=7)
        assert shard.wake(now)[-1].endswith(f"x1 f/{number}")
        now = _lost(shard, now + 0.001) - 0.001
    told = shard.submit(5, now=now, client=7)
    assert told == ([] if since_s <= CALM_S else ["f: 5 rejected quarantined"])


def _lost(shard: Shard, now: float) -> float:
    """The worker goes, and is there again, at this instant."""
    shard.lose("w1", now=now)
    shard.join(hello("w1", prepared("m:1"), resident=("m:1",)), now=now)
    return now
