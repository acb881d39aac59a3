"""Controllers that follow each other: whatever crosses with whatever, in the end every wanted version is served."""

import random
from collections.abc import Sequence

import pytest

from tests.succession_on_paper import Succession


def play(
    world: Succession, chances: dict[str, float], steps: int, pauses: Sequence[float] = (0.001, 0.05, 0.5, 2.5)
) -> None:
    """So many things happen, with what chance has in store; then whatever is under way ends."""
    wrong = {
        "controller": world.kill_controller, "broker": world.restart_broker, "hello": world.hello_again,
        "link": world.break_link, "deploy": world.undeploy,
    }  # fmt: skip
    for _ in range(steps):
        possible = world.steps()
        for name, chance in chances.items():
            if world.rng.random() < chance:
                wrong[name]()
        if possible and world.rng.random() < 0.9:
            step = world.rng.choice(possible)
            if step in world.steps():
                world.step(*step)
        else:
            world.pass_time(world.rng.choice(pauses))


@pytest.mark.parametrize("seed", range(150))
def test_after_any_deaths_and_any_order_of_messages_every_version_is_served(seed: int) -> None:
    rng = random.Random(seed)
    world = Succession(
        seed, controllers=rng.choice((1, 1, 2, 3)), workers=rng.choice((1, 2, 3)), models=rng.choice((1, 2, 4)),
        policy=rng.choice(("atc", "fifo", "clockwork")),
    )  # fmt: skip
    chances = {"controller": 0.03, "broker": 0.02, "hello": 0.05, "link": 0.03, "deploy": rng.choice((0.0, 0.02))}
    play(world, chances, rng.choice((40, 150, 400)))
    for name, model in world.catalogue.models.items():
        if not model.deployed:
            world.catalogue.deploy(("operator", 1), name, None, world.found)
    world.restart_broker()  # whatever it had told is told again
    world.settle()
    assert world.ask_everything() == []


@pytest.mark.parametrize("replaces", [True, False], ids=["same address", "other host"])
@pytest.mark.parametrize("seed", range(40))
def test_where_a_quiet_controller_dies_nothing_is_forgotten_and_prepared_again(seed: int, replaces: bool) -> None:
    """On another host the successor may meet workers before the broker knows that its predecessor is dead."""
    world = Succession(seed, controllers=1, workers=2, models=3, policy="atc")
    world.replaces = replaces
    world.settle()
    assert world.ask_everything() == []
    before = world.prepared.copy()
    for _ in range(3):
        world.kill_controller()
        play(world, {"hello": 0.1}, 60, pauses=(0.001, 0.05))
        world.settle()
        assert world.ask_everything() == []
    assert (world.forgotten, world.prepared) == (0, before)
