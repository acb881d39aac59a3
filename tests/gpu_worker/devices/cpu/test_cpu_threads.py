"""LOAD and EXEC on the CPU: what is over at once, what runs on a thread, and how either ends."""

import threading
import time

import pytest
import torch

from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.cpu import INLINE_BYTES_MAX, INLINE_S_MAX, CpuDevice
from mesh.codes import ActionCode
from mesh.process.settings import Settings
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cpu_builders import SHORT_S, at_once, attached, infer_job, load_job, outputs_of, put, run
from tests.gpu_worker.worker_builders import never
from tests.loops import LIMIT_S, Told, on_loop

LONG_S = INLINE_S_MAX * 2


# -- LOAD -------------------------------------------------------------------------------------------------------------


def test_a_small_load_is_over_at_once_and_says_how_long_it_took(device: CpuDevice, repository: Repository) -> None:
    package = repository.package("linear:1")
    assert package.image_bytes <= INLINE_BYTES_MAX
    device.prepare(package)
    done = at_once(device, Phase.LOAD, load_job("linear:1", (0,)))
    assert done.code == ActionCode.OK
    assert done.end_s - done.begin_s == pytest.approx(done.duration_s)
    assert done.duration_s > 0


@on_loop
async def test_a_large_load_runs_on_a_thread_of_its_own(settings: Settings, repository: Repository) -> None:
    package = repository.package("tall:1")
    assert package.image_bytes > INLINE_BYTES_MAX
    device, told = attached(settings)
    device.prepare(package)
    job = load_job("tall:1", (1, 2, 3))
    assert device.begin(Phase.LOAD, job) is None
    ((phase, ended, done),) = await told.count(1)
    assert (phase, ended, done.code) == (Phase.LOAD, job, ActionCode.OK)
    x = torch.randn(1, 4)
    (y,) = run(device, infer_job("tall:1", (1, 2, 3), x), (1, 140_000))
    assert torch.allclose(y, repository.outputs("tall:1", x)[0], atol=1e-6)
    device.close()


# -- EXEC -------------------------------------------------------------------------------------------------------------


@on_loop
async def test_a_short_exec_is_over_at_once_and_a_long_one_runs_on_a_thread(
    settings: Settings, repository: Repository
) -> None:
    device, told = attached(settings)
    device.prepare(repository.package("linear:1"))
    put(device, "linear:1", (0,))
    x = torch.randn(3, 4)
    for expected_s, threaded in ((INLINE_S_MAX, False), (INLINE_S_MAX * 1.001, True)):
        job = infer_job("linear:1", (0,), x, expected_s=expected_s)
        at_once(device, Phase.INPUT, job)
        done = device.begin(Phase.EXEC, job)
        assert (done is None) == threaded
        if threaded:
            ((phase, ended, done),) = await told.count(1)
            assert (phase, ended) == (Phase.EXEC, job)
        assert done is not None
        assert done.code == ActionCode.OK
        assert torch.allclose(outputs_of(job, (3, 3))[0], repository.outputs("linear:1", x)[0])
        device.release(job)
    device.close()


@on_loop
async def test_executions_end_in_the_order_they_began_and_are_told_on_the_loop(
    settings: Settings, repository: Repository
) -> None:
    device = CpuDevice(settings)
    told = Told()
    threads = []

    def finished(phase: Phase, job: Job, done: Done) -> None:
        threads.append(threading.current_thread())
        told(job)

    device.attach(finished, never)
    device.prepare(repository.package("tall:1"))
    put(device, "tall:1", (0, 1, 2))
    jobs = [infer_job("tall:1", (0, 1, 2), torch.randn(8, 4), expected_s=LONG_S)]
    jobs += [infer_job("tall:1", (0, 1, 2), torch.randn(1, 4), expected_s=SHORT_S) for _ in range(2)]
    for job in jobs:
        at_once(device, Phase.INPUT, job)
    assert [device.begin(Phase.EXEC, job) for job in jobs] == [None, None, None]
    assert await told.count(3) == jobs
    assert set(threads) == {threading.main_thread()}
    device.close()


@on_loop
async def test_closing_waits_for_what_runs(settings: Settings, repository: Repository) -> None:
    before = set(threading.enumerate())
    device, told = attached(settings)
    assert {thread.name for thread in set(threading.enumerate()) - before} >= {"exec", "load"}
    device.prepare(repository.package("tall:1"))
    job = load_job("tall:1", (0, 1, 2))
    device.begin(Phase.LOAD, job)
    device.close()
    await told.count(1)
    assert set(threading.enumerate()) - before == set()


@pytest.mark.parametrize(("margin_s", "code"), [(-1.0, ActionCode.LATE), (LIMIT_S, ActionCode.OK)])
def test_an_exec_that_comes_to_its_turn_after_its_window_is_not_run(
    device: CpuDevice, repository: Repository, margin_s: float, code: str
) -> None:
    device.prepare(repository.package("linear:1"))
    put(device, "linear:1", (0,))
    job = infer_job("linear:1", (0,), torch.randn(1, 4), latest_s=time.monotonic() + margin_s)
    at_once(device, Phase.INPUT, job)
    assert at_once(device, Phase.EXEC, job).code == code
    assert bool(job.outputs) == (code == ActionCode.OK)


@pytest.mark.parametrize("expected_s", [SHORT_S, LONG_S])
def test_a_model_that_fails_is_an_outcome_and_the_device_goes_on(
    settings: Settings, repository: Repository, expected_s: float
) -> None:
    @on_loop
    async def story() -> None:
        device, told = attached(settings)
        device.prepare(repository.package("two:1"))
        put(device, "two:1", (0,))
        for index, code in ((7, ActionCode.DEVICE_ERROR), (6, ActionCode.OK)):
            job = infer_job("two:1", (0,), torch.randn(1, 4), torch.tensor([index]), expected_s=expected_s)
            at_once(device, Phase.INPUT, job)
            done = device.begin(Phase.EXEC, job)
            if done is None:
                done = (await told.count(1)).pop()[2]
            assert done.code == code
            assert ("index" in done.message) == (code == ActionCode.DEVICE_ERROR)
            device.release(job)
        device.close()

    story()
