"""Workers that somebody kills, or that die of themselves: no client is blamed for what it did not do."""

import random

import pytest

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
