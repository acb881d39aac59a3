"""Placement follows what waits from change to change, and knows what a look at everything would show."""

import random

import pytest

from controller.core.policies.fairness import Fairness
from controller.core.policies.placement import Placement
from tests.controller.core.controller_builders import request
from tests.controller.core.policies.policy_world import NOW, SECONDS, World

WORKERS = ("w1", "w2", "w3")


@pytest.mark.parametrize("seed", range(10))
def test_models_that_another_host_would_help_are_known_after_every_change_of_a_turn(seed: int) -> None:
    rng = random.Random(seed)
    world = World({f"m{i}:1": SECONDS for i in range(4)}, workers=WORKERS, resident=["m0:1", "m1:1"], pages=6)
    state, placement = world.state, Placement(world.state, Fairness())
    state.next_turn()
    numbers = iter(range(1000))
    for _ in range(60):
        model = world.model(f"m{rng.randrange(4)}:1")
        device = state.devices[rng.choice(WORKERS)]
        change = rng.randrange(5)
        if change < 2:
            deadline_s = NOW + rng.uniform(0.5, 12.0)
            state.push(model, request(next(numbers), ref=model.ref, arrived_s=NOW, deadline_s=deadline_s))
        elif change == 2 and len(model.queue):
            state.take_first(model, rng.randint(1, len(model.queue)))
        elif change == 3:
            plan = placement.choose(device, NOW)
            if plan is not None and not plan.evict:
                world.loads(plan.model.ref, device.worker)
        elif change == 4:
            state.next_turn()
        placement.choose(device, NOW)
        placement.check(NOW)
