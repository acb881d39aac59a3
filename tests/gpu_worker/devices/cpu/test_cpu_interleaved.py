"""The thread that prepares and the loop's, on one CPU device: whatever comes between, no state is half changed."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
import torch

from gpu_worker.core.jobs import Job, Phase
from gpu_worker.devices import cpu, slots
from gpu_worker.devices.cpu import SLOTS, CpuDevice
from mesh.codes import ActionCode
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cpu_builders import at_once, infer_job, linear, put
from tests.gpu_worker.devices.interleaving import instructions_of, interrupted

MODULES = (cpu, slots)  # every instruction of theirs is a point at which threads may change
X = torch.arange(12.0).reshape(3, 4)


class Growing:
    """A device with linear:1 and linear:2 in pages 0 and 1; each `prepare` makes linear:1's batch a row larger."""

    def __init__(self, device: CpuDevice, repository: Repository) -> None:
        self.device, self.repository = device, repository
        self.batch_max = 16
        self.prepare()
        device.prepare(repository.package("linear:2"))
        self.load()

    def load(self) -> None:
        for page, ref in enumerate(("linear:1", "linear:2")):
            put(self.device, ref, (page,))

    def prepare(self) -> None:
        self.batch_max += 1
        found = self.repository.package("linear:1")
        self.device.prepare(replace(found, spec=msgspec.structs.replace(found.spec, batch_max=self.batch_max)))

    def held(self, rows: torch.Tensor = X) -> Job:
        """A job that has its slot."""
        job = infer_job("linear:1", (0,), rows)
        assert at_once(self.device, Phase.INPUT, job).code == ActionCode.OK
        return job

    def check(self) -> None:
        """Every slot takes the largest batch, no more slots are there, and both versions answer rightly."""
        jobs = [self.held(torch.zeros(self.batch_max, 4)) for _ in range(SLOTS)]
        assert at_once(self.device, Phase.INPUT, infer_job("linear:1", (0,), X)).code == ActionCode.NO_SLOTS
        for job in jobs:
            self.device.release(job)
        self.load()
        for page, ref in enumerate(("linear:1", "linear:2")):
            expected = self.repository.outputs(ref, X)[0]
            assert torch.allclose(linear(self.device, ref, (page,), X), expected)
        self.device.check()


def released(growing: Growing) -> Callable[[], object]:
    """The turn in which a batch that came before ends."""
    job = growing.held()
    return lambda: growing.device.release(job)


def taken_and_released(growing: Growing) -> Callable[[], object]:
    """The turn in which a whole batch comes and goes."""
    return lambda: growing.device.release(growing.held())


def forgotten(growing: Growing) -> Callable[[], object]:
    """The turn in which another version of the same architecture is forgotten, and prepared again afterwards."""
    return lambda: growing.device.forget("linear:2")


def unloaded(growing: Growing) -> Callable[[], object]:
    """The turn in which the weights leave their pages."""
    return lambda: growing.device.unloaded("linear:1")


@pytest.mark.parametrize("turn", [released, taken_and_released, forgotten, unloaded])
def test_the_loops_turn_may_come_at_any_point_of_a_preparation(
    turn: Callable[[Growing], Callable[[], object]], device: CpuDevice, repository: Repository
) -> None:
    growing = Growing(device, repository)
    count = instructions_of(MODULES, growing.prepare)
    assert count > 50
    for at in range(count):
        interrupted(MODULES, growing.prepare, at, turn(growing))
        if turn is forgotten:
            device.prepare(repository.package("linear:2"))
        growing.check()


@pytest.mark.parametrize("first", ["grow", "release"])
def test_a_slot_that_has_become_too_small_never_comes_back(
    first: str, device: CpuDevice, repository: Repository
) -> None:
    growing = Growing(device, repository)
    job = growing.held()
    for step in ("grow", "release") if first == "grow" else ("release", "grow"):
        if step == "grow":
            growing.prepare()
        else:
            device.release(job)
    growing.check()


def test_weights_that_leave_their_pages_during_an_exec_do_not_fail_it(
    device: CpuDevice, repository: Repository
) -> None:
    growing = Growing(device, repository)
    job = growing.held()

    def run() -> None:
        assert at_once(device, Phase.EXEC, job).code == ActionCode.OK

    for at in range(instructions_of(MODULES, run)):
        job.outputs = []
        interrupted(MODULES, run, at, lambda: device.unloaded("linear:1"))
        put(device, "linear:1", (0,))


def test_views_of_pages_that_are_anothers_by_now_are_not_used(device: CpuDevice, repository: Repository) -> None:
    """An EXEC that began before an UNLOAD may note its pages after the LOAD into others."""
    growing = Growing(device, repository)
    device.unloaded("linear:1")
    job = growing.held()

    def moved() -> None:
        device.unloaded("linear:1")
        put(device, "linear:1", (2,))
        put(device, "linear:2", (0,))  # where the running EXEC reads: its pages are kept for it in earnest

    count = instructions_of(MODULES, lambda: at_once(device, Phase.EXEC, job))
    for at in range(count):
        device.unloaded("linear:1")
        put(device, "linear:1", (0,))
        device.unloaded("linear:1")
        interrupted(MODULES, lambda: at_once(device, Phase.EXEC, job), at, moved)
        assert torch.allclose(linear(device, "linear:1", (2,), X), repository.outputs("linear:1", X)[0])
