"""One version in two contents, in every order: at no time is it served from both, and it is served in the end."""

import itertools
import random

import pytest

from broker.core.records import ModelRecord
from mesh.codes import PackageCode
from tests.controller.core.versions_on_paper import Mesh

TWO = {"w1": "A", "w2": "B"}
NEW = None  # nobody has served the version
SERVED = ModelRecord("m", current="1", versions=["1"], contents={"1": "A"})
OLD = ModelRecord("m", current="1", versions=["1"])  # an older release served it, and kept no content
RECORDS = {"new": NEW, "served": SERVED, "old": OLD}


def mesh(record: str, disks: dict[str, str]) -> Mesh:
    kept = RECORDS[record]
    return Mesh(
        disks, ModelRecord("m", current=kept.current, versions=["1"], contents=dict(kept.contents)) if kept else None
    )


def ends_well(world: Mesh, record: str) -> None:
    """After all is quiet, and the operator has asked again if it was not served, it is, from the right content."""
    world.settle()
    if not world.serving:
        world.deploy()
        world.settle()
    assert world.serving == ({"A"} if record == "served" else world.served)
    assert len(world.serving) == 1


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_restart_between_any_two_steps_serves_one_content(record: str, order: tuple[int, ...]) -> None:
    """`order`: which of the links that have mail goes first."""

    def play(restarts: dict[int, str]) -> int:
        world = mesh(record, TWO)
        for count in range(200):
            if count in restarts:
                world.restart_controller() if restarts[count] == "controller" else world.restart_broker()
            steps = sorted(world.steps(), key=lambda step: (order[hash_of(step) % 3], step))
            if not steps and count > max(restarts, default=0):
                ends_well(world, record)
                return count
            if steps:
                world.step(steps[0])
        raise AssertionError("they talk without end")

    length = play({})
    services = ("controller", "broker")
    for first, second in itertools.combinations_with_replacement(range(length), 2):
        for one, two in itertools.product(services, services):
            play({first: one, second: two})


def hash_of(step: str) -> int:
    return sum(map(ord, step))


@pytest.mark.parametrize("seed", range(400))
def test_in_any_order_with_any_deaths_one_content_is_served(seed: int) -> None:
    rng = random.Random(seed)
    record = rng.choice(list(RECORDS))
    world = mesh(record, {f"w{i}": rng.choice("AB") for i in range(1, rng.choice((2, 3, 4)))})
    for _ in range(rng.choice((10, 40, 120))):
        chance = rng.random()
        steps = world.steps()
        if chance < 0.04:
            world.restart_controller()
        elif chance < 0.08:
            world.restart_broker()
        elif chance < 0.12:
            world.restart_worker(rng.choice(list(world.workers)))
        elif chance < 0.14:
            world.deploy()
        elif chance < 0.17:
            worker = rng.choice(list(world.workers.values()))
            worker.disk = "AB"[worker.disk == "A"]
        elif steps:
            world.step(rng.choice(steps))
    world.settle()
    right = world.catalogue.models["m"].contents.get("1", "A")
    assert right == "A" or record != "served"
    for worker in world.workers.values():
        worker.disk = right  # the operator puts the right files back
    ends_well(world, record)
    assert world.serving == {right}


def test_a_device_that_read_other_files_serves_when_the_right_ones_are_back() -> None:
    world = mesh("served", {"w1": "B"})
    world.settle()
    assert world.serving == set()
    world.workers["w1"].disk = "A"
    world.deploy()
    world.settle()
    assert world.serving == {"A"}
    assert [reply.ok for reply in world.replies] == [True]


def test_a_version_whose_files_are_not_the_right_ones_is_refused_with_a_code() -> None:
    world = mesh("served", {"w1": "B", "w2": "B"})
    world.settle()
    world.deploy()
    world.settle()
    assert [(reply.ok, reply.code) for reply in world.replies] == [(False, PackageCode.CONTENT_CHANGED)]
    assert world.table is not None
    assert (world.table.unserved, world.table.fault_code) == (True, PackageCode.CONTENT_CHANGED)
