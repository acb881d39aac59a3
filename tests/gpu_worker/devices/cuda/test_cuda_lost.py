"""A device with CUDA graphs that fails for good, so that its process must end; and failures that are not that."""

import asyncio

import pytest
import torch

from gpu_worker.core.jobs import Phase
from gpu_worker.devices.cuda.waiting.threads import Helper
from mesh.codes import ActionCode
from mesh.errors import PackageError
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cuda.cuda_builders import ROOM, Served, infer_job, served
from tests.gpu_worker.devices.cuda.fragile import WHY, FragileDriver
from tests.loops import on_loop

BAD = torch.tensor([99])  # not an index of a table of seven


def fragile() -> tuple[Served, FragileDriver]:
    """Returns a device on this loop, and its driver."""
    driver = FragileDriver()
    return Served(driver, Helper("helper"), ROOM, 1 << 30), driver


@on_loop
async def test_what_ends_all_use_of_a_device_is_told_once_and_all_that_was_begun_ends(repository: Repository) -> None:
    on, _ = fragile()
    for ref in ("two:1", "linear:1", "tall:1"):
        on.device.prepare(repository.package(ref))
    await on.load("two:1", (0,))
    await on.load("linear:1", (1,))
    bad = infer_job("two:1", (0,), torch.randn(1, 4), BAD)
    behind = infer_job("linear:1", (1,), torch.randn(1, 4))
    for job in (bad, behind):
        assert (await on.begin(Phase.INPUT, job)).code == ActionCode.OK
    dones = await asyncio.gather(on.begin(Phase.EXEC, bad), on.begin(Phase.EXEC, behind))
    assert [(done.code, done.message) for done in dones] == [(ActionCode.DEVICE_LOST, WHY)] * 2
    assert (await on.load("tall:1", (2, 3, 4))).code == ActionCode.DEVICE_LOST
    assert on.lost == [WHY]
    on.device.close()


@on_loop
async def test_an_idle_device_that_is_lost_says_so_before_anything_is_ordered(repository: Repository) -> None:
    class Warmed(FragileDriver):
        def keep_warm(self) -> object:
            return lambda: None

    driver = Warmed()
    on = Served(driver, Helper("helper"), ROOM, 1 << 30)
    on.device.prepare(repository.package("linear:1"))
    await on.load("linear:1", (0,))
    await on.run(infer_job("linear:1", (0,), torch.randn(1, 4)), (1, 3))
    driver.why = "CUDA error: uncorrectable ECC error encountered"
    await on.told_lost.wait()
    assert on.lost == [driver.why]
    on.device.close()


@on_loop
async def test_a_package_whose_warming_up_ends_the_device_is_refused_and_the_device_is_lost(
    repository: Repository,
) -> None:
    on, driver = fragile()
    driver.why = WHY
    with pytest.raises(PackageError, match=WHY):
        await asyncio.to_thread(on.device.prepare, repository.package("two:1"))
    await on.told_lost.wait()
    assert on.lost == [WHY]
    on.device.close()


@on_loop
async def test_a_device_that_one_action_or_package_was_too_much_for_is_not_lost(repository: Repository) -> None:
    async with served("host") as on:
        on.device.prepare(repository.package("two:1"))
        await on.load("two:1", (0,))
        assert (await on.through(infer_job("two:1", (0,), torch.randn(1, 4), BAD))).code == ActionCode.DEVICE_ERROR
        on.driver.memory_bytes = on.driver.used_bytes
        with pytest.raises(PackageError, match="host:0"):
            on.device.prepare(repository.package("tall:1"))
        await asyncio.sleep(0)
        assert on.lost == []


@on_loop
async def test_a_lost_device_can_be_closed(repository: Repository) -> None:
    """Its threads do not wait for what will never end."""
    on, driver = fragile()
    on.device.prepare(repository.package("linear:1"))
    driver.why = WHY
    assert (await on.load("linear:1", (0,))).code == ActionCode.DEVICE_LOST
    on.device.close()
    assert all(thread.stop(0.0) for thread in on.device.threads), "they have ended"
