"""Fairness: a model whose patience is at its end goes first, whoever else asks meanwhile."""

import random

import pytest

from controller.core.policies.base import LoadPlan
from controller.core.policies.fairness import CREDIT_S_MAX, GONE_MAX, PATIENCE_S, SHARE, Fairness
from tests.controller.core.controller_builders import request
from tests.controller.core.policies.policy_world import NOW, SECONDS, World

OVER_S = NOW + PATIENCE_S + 1e-6  # the patience of a model that lost its first request now has just ended


def test_a_model_is_due_once_its_patience_has_ended_and_no_more_when_it_was_served() -> None:
    fairness = Fairness()
    fairness.lost("a:1", NOW)
    assert fairness.first({"a:1": None}, NOW + PATIENCE_S) == []
    assert fairness.first({"a:1": None}, OVER_S) == ["a:1"]
    fairness.served("a:1", OVER_S)
    assert fairness.first({"a:1": None}, OVER_S) == []
    fairness.lost("a:1", OVER_S + 0.5)  # it was served in between: patience begins with that
    assert fairness.first({"a:1": None}, OVER_S + PATIENCE_S) == []
    assert fairness.first({"a:1": None}, OVER_S + PATIENCE_S + 1e-6) == ["a:1"]


def test_who_was_never_served_for_long_is_due_with_its_first_loss_and_the_longest_unserved_goes_first() -> None:
    fairness = Fairness()
    for ref, served_s in (("b:1", 2.0), ("a:1", 1.0), ("c:1", 1.0)):
        fairness.served(ref, served_s)
    for ref in ("b:1", "c:1", "a:1"):
        fairness.lost(ref, NOW)
    assert fairness.first(dict.fromkeys(("c:1", "b:1", "a:1", "d:1")), NOW) == ["a:1", "c:1", "b:1"]
    assert fairness.first(dict.fromkeys(("b:1", "d:1")), NOW) == ["b:1"]


def test_nobody_is_due_without_credit() -> None:
    fairness = Fairness()
    fairness.lost("a:1", NOW)
    fairness.accrue(OVER_S, 1)
    fairness.spend(CREDIT_S_MAX + 0.1)
    assert fairness.first({"a:1": None}, OVER_S) == []
    fairness.accrue(OVER_S + 0.5 / SHARE, 1)
    assert fairness.first({"a:1": None}, OVER_S + 0.5 / SHARE) == ["a:1"]


@pytest.mark.parametrize("seed", range(10))
def test_who_is_due_depends_on_losses_and_services_and_not_on_who_asked_before(seed: int) -> None:
    """Devices ask, each for what waits there: as often as it may be, whoever is due for one is found by it."""
    rng = random.Random(seed)
    refs = [f"m{i}:1" for i in range(6)]
    asked, fresh = Fairness(), Fairness()
    now, log = NOW, list[tuple[bool, str, float]]()
    for _ in range(300):
        now += rng.choice((0.0, 0.001, 0.02, 0.3))
        ref = rng.choice(refs)
        if rng.random() < 0.3:
            log.append((rng.random() < 0.3, ref, now))
            (asked.served if log[-1][0] else asked.lost)(ref, now)
        waiting = dict.fromkeys(rng.sample(refs, rng.randint(0, 4)))
        fresh = Fairness()
        for served, ref, at_s in log:
            (fresh.served if served else fresh.lost)(ref, at_s)
        assert asked.first(waiting, now) == fresh.first(waiting, now)


def test_of_models_that_are_gone_only_the_latest_are_known() -> None:
    fairness, there = Fairness(), dict.fromkeys(("a:1", "b:1"))
    fairness.lost("a:1", NOW)
    for number in range(1000):
        fairness.lost(f"gone:{number}", NOW)
        fairness.forget_others(there)
        assert len(fairness) <= 2 * len(there) + GONE_MAX
    due = fairness.first(there, OVER_S)
    assert due == ["a:1"]
    assert "gone:0" not in fairness.first({"a:1": None, "gone:0": None}, OVER_S)
    fairness.lost("gone:0", OVER_S)  # it is there again, as a new one
    assert fairness.first({"gone:0": None}, OVER_S + PATIENCE_S) == []


# -- among several devices --------------------------------------------------------------------------------------------


def starving(world: World, ref: str) -> World:
    """The model lost a request and is past its patience; one of its requests waits, with time enough."""
    world.policy.ended(request(9, ref=ref), False, NOW)
    return world.waits(NOW + 200.0, ref=ref)


def test_a_device_that_asks_without_the_starving_model_does_not_hide_it_from_the_one_that_has_it() -> None:
    world = World(dict.fromkeys(("a:1", "b:1"), SECONDS), resident=["a:1", "b:1"], workers=("w1", "w2"))
    world.state.drop_host(world.model("b:1"), world.state.devices["w1"])
    starving(world, "b:1").waits(*[NOW + 5.0] * 8, ref="a:1")  # worth more, and more urgent
    elsewhere = world.policy.choose(world.state.devices["w1"], OVER_S)
    assert elsewhere is not None
    assert elsewhere.model.ref == "a:1"
    batch = world.policy.choose(world.state.devices["w2"], OVER_S)
    assert batch is not None
    assert batch.model.ref == "b:1"


def test_a_search_for_a_load_while_nobody_is_unplaced_does_not_hide_a_starving_model() -> None:
    world = World(dict.fromkeys(("a:1", "b:1", "c:1"), SECONDS), resident=["a:1", "b:1"], pages=4)
    starving(world, "b:1").waits(*[NOW + 5.0] * 8, ref="a:1")
    assert world.policy.choose_load(world.device, OVER_S) is None
    batch = world.policy.choose(world.device, OVER_S)
    assert batch is not None
    assert batch.model.ref == "b:1"


def test_a_batch_chosen_while_nobody_starves_there_does_not_hide_a_model_that_waits_for_its_load() -> None:
    world = World(dict.fromkeys(("a:1", "b:1", "c:1"), SECONDS), resident=["a:1", "b:1"], pages=4)
    for ref in ("a:1", "b:1"):
        world.model(ref).popularity.add(OVER_S, 1000)
    starving(world, "c:1").waits(NOW + 5.0, ref="a:1")
    assert world.policy.choose(world.device, OVER_S) is not None
    assert world.policy.choose_load(world.device, OVER_S) == LoadPlan(world.model("c:1"), ("b:1",))
