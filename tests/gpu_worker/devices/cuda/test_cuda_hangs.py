"""A device with CUDA graphs that hangs: who waits for it keeps waiting; the worker is told and can still end."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from gpu_worker.core.jobs import Phase
from gpu_worker.devices.attempts import Attempts
from gpu_worker.devices.cuda import device as device_module
from gpu_worker.devices.cuda.driver import Event, Stream, Work
from gpu_worker.devices.cuda.host import HostDriver, HostStream
from gpu_worker.devices.cuda.waiting.threads import Helper
from gpu_worker.devices.cuda.waiting.watchdog import HangLimits
from mesh.codes import ActionCode
from mesh.errors import PackageError
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cuda.cuda_builders import ROOM, Served, infer_job
from tests.gpu_worker.devices.cuda.fragile import WHY, FragileDriver
from tests.loops import LIMIT_S, on_loop
from tests.messages import names


class HangingDriver(HostDriver):
    """A driver that can hang: works of some or of all streams do not run, and calls may not return."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = frozenset[str]()  # streams that hang; "issuing", "preparing": calls that do
        self.waits = threading.Event()  # set when somebody waits for the device
        self.goes_on = threading.Event()
        self.closed = False
        self.ends_its_caller = False  # a call ends the thread that makes it

    def hang(self, *what: str) -> None:
        """These streams and calls hang from now on, and no others."""
        self.streams = frozenset(what)

    def pass_by(self, what: str) -> None:
        """Waits here if `what` is to hang."""
        if what in self.streams:
            self.waits.set()
            self.goes_on.wait()

    def stream(self, name: str) -> Stream:
        """Returns a stream that can hang."""
        stream = HangingStream(name, self)
        self._streams.append(stream)
        return stream

    def warm_up(self, work: Work) -> None:
        """`work` has run, unless preparing hangs."""
        self.pass_by("preparing")
        super().warm_up(work)

    def close(self) -> None:
        """The device is closed; `closed` says so."""
        self.closed = True
        super().close()


class HangingStream(HostStream):
    """A stream whose works do not run while it hangs."""

    def __init__(self, name: str, driver: HangingDriver) -> None:
        self._name, self._driver = name, driver
        super().__init__(name)

    def run(self, work: Work) -> None:
        """`work` is issued; it runs unless the stream hangs."""

        def run() -> None:
            self._driver.pass_by(self._name)
            work()

        super().run(run)

    def record(self, event: Event) -> None:
        """The event is recorded, unless issuing hangs."""
        self._driver.pass_by("issuing")
        if self._driver.ends_its_caller:
            raise SystemExit("no outcome of any action")
        super().record(event)


@asynccontextmanager
async def hanging(
    repository: Repository, attempts: Attempts | None = None, hang_limits: HangLimits | None = None
) -> AsyncIterator[tuple[Served, HangingDriver]]:
    """Yields a device that has linear:1 in page 0. After the test it stops hanging, and all its threads have ended.

    Without `hang_limits` the device does not observe its threads by itself.
    """
    grad, before = torch.is_grad_enabled(), set(threading.enumerate())
    driver = HangingDriver()
    on = Served(driver, Helper("helper"), ROOM, 1 << 30, attempts, hang_limits)
    if hang_limits is None:
        on.device.watching.stop()
    on.device.prepare(repository.package("linear:1"))
    assert (await on.load("linear:1", (0,))).code == ActionCode.OK
    try:
        yield on, driver
    finally:
        driver.goes_on.set()
        on.device.close()
        for thread in on.device.threads:
            assert await asyncio.to_thread(thread.stop)
        if not driver.closed:
            driver.close()
        torch.set_grad_enabled(grad)
        assert [thread.name for thread in set(threading.enumerate()) - before if thread.daemon] == []


def looked(on: Served, seconds: int, since_s: float = 0.0) -> bool:
    """The device was looked at once a second, for so long; whether it is given up."""
    return any([on.device.watching.look(since_s + second) for second in range(seconds + 1)])


async def hangs(on: Served, driver: HangingDriver, *names: str) -> None:
    """Something hangs in the driver now, and the threads of these names are at work that it holds up."""
    threads = [thread for thread in on.device.threads if thread.name in names]
    assert len(threads) == len(names)
    assert await asyncio.to_thread(driver.waits.wait, LIMIT_S)

    def see() -> None:
        while not all(thread.observed() for thread in threads):
            os.sched_yield()

    await asyncio.to_thread(see)


def records(folder: Path) -> list[str]:
    """Returns the names of all records of all devices."""
    return sorted(file.name for file in folder.glob("*/*"))


@on_loop
async def test_an_exec_that_never_ends_is_noticed_and_everything_that_was_begun_ends(repository: Repository) -> None:
    async with hanging(repository) as (on, driver):
        on.device.prepare(repository.package("tall:1"))
        jobs = [infer_job("linear:1", (0,), torch.randn(1, 4)) for _ in range(2)]
        for job in jobs:
            assert (await on.begin(Phase.INPUT, job)).code == ActionCode.OK
        driver.hang("exec", "load")
        begun = [*(on.begin(Phase.EXEC, job) for job in jobs), asyncio.ensure_future(on.load("tall:1", (1, 2, 3)))]
        await hangs(on, driver, "watch exec", "watch load")
        assert not looked(on, 10)
        assert (on.lost, [future.done() for future in begun]) == ([], [False] * 3)
        assert looked(on, 1, 11.0)
        (why,) = on.lost
        assert names(why, "LOAD", "tall:1", "11 s", "10 s")
        dones = await asyncio.gather(*begun)
        assert [(done.code, done.message) for done in dones] == [(ActionCode.DEVICE_LOST, why)] * 3
        after = await on.begin(Phase.INPUT, infer_job("linear:1", (0,), torch.randn(1, 4)))
        assert after.code == ActionCode.DEVICE_LOST


@pytest.mark.parametrize(("phase", "lane"), [(Phase.INPUT, "input"), (Phase.EXEC, "exec"), (Phase.OUTPUT, "output")])
@on_loop
async def test_each_stream_that_hangs_is_noticed_with_what_it_hangs_in(
    phase: Phase, lane: str, repository: Repository
) -> None:
    async with hanging(repository) as (on, driver):
        job = infer_job("linear:1", (0,), torch.randn(1, 4))
        driver.hang(lane)
        for each in (Phase.INPUT, Phase.EXEC, Phase.OUTPUT):
            future = on.begin(each, job)
            if each is phase:
                break
            assert (await future).code == ActionCode.OK
        await hangs(on, driver, f"watch {lane}")
        assert not looked(on, 10)
        assert looked(on, 1, 11.0)
        (why,) = on.lost
        assert names(why, lane.upper(), "linear:1", "11 s", "10 s")
        assert (await future).code == ActionCode.DEVICE_LOST


@on_loop
async def test_an_exec_that_is_expected_to_take_long_is_waited_for(repository: Repository) -> None:
    async with hanging(repository) as (on, driver):
        job = infer_job("linear:1", (0,), torch.randn(1, 4), expected_s=3.0)
        assert (await on.begin(Phase.INPUT, job)).code == ActionCode.OK
        driver.hang("exec")
        ended = on.begin(Phase.EXEC, job)
        await hangs(on, driver, "watch exec")
        assert not looked(on, 60)
        driver.goes_on.set()
        assert (await ended).code == ActionCode.OK
        assert not looked(on, 100, 61.0), "it is over"
        assert (await on.begin(Phase.OUTPUT, job)).code == ActionCode.OK


@on_loop
async def test_a_call_that_does_not_come_back_is_noticed_though_nothing_is_watched(repository: Repository) -> None:
    async with hanging(repository) as (on, driver):
        driver.hang("issuing")
        begun = on.begin(Phase.INPUT, infer_job("linear:1", (0,), torch.randn(1, 4)))
        await hangs(on, driver)
        assert not looked(on, 10)
        assert looked(on, 1, 11.0)
        (why,) = on.lost
        assert names(why, "issuing", "11 s", "10 s")
        assert (await begun).code == ActionCode.DEVICE_LOST


@on_loop
async def test_a_device_that_hangs_is_closed_without_waiting_for_it(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "CLOSE_S", LIMIT_S)
    async with hanging(repository) as (on, driver):
        job = infer_job("linear:1", (0,), torch.randn(1, 4))
        assert (await on.begin(Phase.INPUT, job)).code == ActionCode.OK
        driver.hang("exec")
        ended = on.begin(Phase.EXEC, job)
        await hangs(on, driver, "watch exec")
        assert looked(on, 11)
        assert (await ended).code == ActionCode.DEVICE_LOST
        began_s = time.monotonic()
        on.device.close()
        assert time.monotonic() - began_s < LIMIT_S / 2
        assert not driver.closed, "that would wait for the device"
        (watcher,) = (thread for thread in on.device.threads if thread.name == "watch exec")
        assert not watcher.stop(0.0), "it waits for the device"
        driver.goes_on.set()
        assert await asyncio.to_thread(watcher.stop)
        await asyncio.sleep(0)
        assert ended.done(), "what comes after all is told to nobody: it would be a second end"


@on_loop
async def test_a_preparation_has_its_own_time_and_others_are_given_more_meanwhile(
    repository: Repository, tmp_path: Path
) -> None:
    attempts = Attempts(tmp_path, "host:0")
    async with hanging(repository, attempts) as (on, driver):
        job = infer_job("linear:1", (0,), torch.randn(1, 4))
        assert (await on.begin(Phase.INPUT, job)).code == ActionCode.OK
        driver.hang("preparing")
        preparing = asyncio.ensure_future(asyncio.to_thread(on.device.prepare, repository.package("other:1")))
        await hangs(on, driver)
        assert not looked(on, 600)
        assert looked(on, 1, 601.0)
        (why,) = on.lost
        assert names(why, "PREPARE", "other:1", "601 s", "600 s")
        on.device.close()
        assert not driver.closed
        assert records(tmp_path) == ["other@1.json"], "the next worker is to know"
        driver.goes_on.set()
        await preparing


@on_loop
async def test_a_worker_that_ends_while_it_prepares_waits_for_no_device_and_leaves_no_record(
    repository: Repository, tmp_path: Path
) -> None:
    attempts = Attempts(tmp_path, "host:0")
    async with hanging(repository, attempts) as (on, driver):
        driver.hang("preparing")
        preparing = asyncio.ensure_future(asyncio.to_thread(on.device.prepare, repository.package("other:1")))
        await hangs(on, driver)
        assert records(tmp_path) == ["other@1.json"]
        on.device.close()
        assert records(tmp_path) == []
        assert not driver.closed
        driver.goes_on.set()
        await preparing


@on_loop
async def test_a_preparation_that_breaks_the_device_stays_on_record_and_a_refused_one_does_not(
    repository: Repository, tmp_path: Path
) -> None:
    driver = FragileDriver()
    on = Served(driver, Helper("helper"), ROOM, 1 << 30, Attempts(tmp_path, "fragile:0"))
    on.device.prepare(repository.package("linear:1"))
    driver.memory_bytes = driver.used_bytes
    with pytest.raises(PackageError, match="fragile:0"):
        on.device.prepare(repository.package("tall:1"))
    assert records(tmp_path) == []
    driver.used_bytes, driver.why = 0, WHY
    with pytest.raises(PackageError, match=WHY):
        on.device.prepare(repository.package("two:1"))
    await on.told_lost.wait()
    on.device.close()
    assert records(tmp_path) == ["two@1.json"]


@on_loop
async def test_a_device_is_looked_at_again_and_again_until_it_is_closed(repository: Repository) -> None:
    async with hanging(repository, hang_limits=HangLimits(least_s=1.0, look_s=0.001)) as (on, driver):
        job = infer_job("linear:1", (0,), torch.randn(1, 4))
        assert (await on.begin(Phase.INPUT, job)).code == ActionCode.OK
        driver.hang("exec")
        ended = on.begin(Phase.EXEC, job)
        await on.told_lost.wait()
        assert (await ended).code == ActionCode.DEVICE_LOST
    async with hanging(repository, hang_limits=HangLimits(look_s=0.0)) as (on, _):
        on.device.close()
        for _ in range(100):
            await asyncio.sleep(0)
        assert on.lost == [], "its threads have ended, as they should"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@on_loop
async def test_a_thread_that_is_gone_is_noticed(repository: Repository) -> None:
    """Else nothing would be issued any more, and nobody told why."""
    async with hanging(repository) as (on, driver):
        (issuing,) = (thread for thread in on.device.threads if thread.name == "issue")
        driver.ends_its_caller = True
        begun = on.begin(Phase.INPUT, infer_job("linear:1", (0,), torch.randn(1, 4)))

        def see() -> None:
            while not issuing.broken:
                os.sched_yield()

        await asyncio.to_thread(see)
        assert looked(on, 1)
        (why,) = on.lost
        assert "issue" in why
        assert (await begun).code == ActionCode.DEVICE_LOST
