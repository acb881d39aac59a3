"""A device with CUDA graphs that refuses one call while work is issued: one action fails, and nothing of it stays."""

import pytest
import torch

from gpu_worker.core.jobs import Phase
from gpu_worker.devices.cuda.device import EVENTS
from gpu_worker.devices.cuda.driver import Event, Stream, Work
from gpu_worker.devices.cuda.host import HostDriver, HostStream
from gpu_worker.devices.cuda.plans import Room
from gpu_worker.devices.cuda.waiting.events import EventPool
from gpu_worker.devices.cuda.waiting.threads import Helper
from mesh.codes import ActionCode
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.cuda.cuda_builders import SMALL_PAGES, Served, infer_job
from tests.loops import on_loop

CALLS = {Phase.INPUT: 3, Phase.EXEC: 7}  # calls to streams that issuing the phase takes
EVENTS_EACH = {Phase.INPUT: 2, Phase.EXEC: 4}


class RefusingDriver(HostDriver):
    """A driver that refuses once the call to a stream that `refuse` chooses, and durations while `refuse_times`."""

    def __init__(self) -> None:
        super().__init__()
        self.left = -1  # calls that are taken before one is refused; negative: it was
        self.refuse_times = False

    def refuse(self, call: int) -> None:
        """So many more calls are taken, then one is not."""
        self.left = call

    @property
    def refused(self) -> bool:
        """That call has come."""
        return self.left < 0

    def call(self) -> None:
        """A call comes. Raises: RuntimeError."""
        self.left -= 1
        if self.left == -1:
            raise RuntimeError("one call was refused")

    def stream(self, name: str) -> Stream:
        """Returns a stream that counts its calls."""
        stream = RefusingStream(name, self)
        self._streams.append(stream)
        return stream

    def seconds(self, begin: Event, end: Event) -> float:
        """Returns the seconds between two events. Raises: RuntimeError if `refuse_times`."""
        if self.refuse_times:
            raise RuntimeError("no time is told")
        return super().seconds(begin, end)


class RefusingStream(HostStream):
    """A stream whose calls may be refused."""

    def __init__(self, name: str, driver: RefusingDriver) -> None:
        self._driver = driver
        super().__init__(name)

    def run(self, work: Work) -> None:
        """`work` is issued. Raises: RuntimeError if this call is refused."""
        self._driver.call()
        super().run(work)

    def record(self, event: Event) -> None:
        """The event is recorded. Raises: RuntimeError if this call is refused."""
        self._driver.call()
        super().record(event)

    def wait(self, event: Event) -> None:
        """Later work waits for the event. Raises: RuntimeError if this call is refused."""
        self._driver.call()
        super().wait(event)


def refusing(room: Room) -> tuple[Served, RefusingDriver]:
    """Returns a device on this loop, and its driver."""
    driver = RefusingDriver()
    return Served(driver, Helper("helper"), room, 0), driver


@pytest.mark.parametrize("phase", [Phase.INPUT, Phase.EXEC])
@on_loop
async def test_however_often_issuing_fails_events_come_back_and_the_next_one_runs(
    phase: Phase, repository: Repository
) -> None:
    on, driver = refusing(SMALL_PAGES)
    on.device.prepare(repository.package("linear:1"))
    assert (await on.load("linear:1", (0,))).code == ActionCode.OK
    rounds = EVENTS // EVENTS_EACH[phase] // CALLS[phase] + 1  # more rounds than the pool has events for
    for call in (*range(CALLS[phase]),) * rounds:
        job = infer_job("linear:1", (0,), torch.randn(2, 4))
        if phase is Phase.EXEC:
            assert (await on.begin(Phase.INPUT, job)).code == ActionCode.OK
        driver.refuse(call)
        done = await on.begin(phase, job)
        assert (done.code, done.message) == (ActionCode.DEVICE_ERROR, "one call was refused")
        on.device.release(job)
        on.device.check()
    driver.refuse(1000)
    x = torch.randn(3, 4)
    (y,) = await on.run(infer_job("linear:1", (0,), x), (3, 3))
    assert torch.allclose(y, repository.outputs("linear:1", x)[0])
    on.device.check()
    on.device.close()


@on_loop
async def test_issuing_takes_as_many_calls_as_are_refused_above(repository: Repository) -> None:
    on, driver = refusing(SMALL_PAGES)
    on.device.prepare(repository.package("linear:1"))
    assert (await on.load("linear:1", (0,))).code == ActionCode.OK
    job = infer_job("linear:1", (0,), torch.randn(2, 4))
    for phase, calls in CALLS.items():
        driver.refuse(calls)
        assert (await on.begin(phase, job)).code == ActionCode.OK
        assert driver.left == 0, phase
    driver.refuse(0)
    assert (await on.begin(Phase.OUTPUT, job)).code == ActionCode.OK, "it was issued with EXEC"
    on.device.close()


@on_loop
async def test_a_load_that_cannot_be_issued_gives_its_events_back_whichever_call_it_was(
    repository: Repository,
) -> None:
    """From pinned memory and from disk, with eleven pieces each."""
    for host_bytes_max in (1 << 30, 0):
        driver = RefusingDriver()
        on = Served(driver, Helper("helper"), SMALL_PAGES, host_bytes_max)
        on.device.prepare(repository.package("tall:1"))
        pages, call = tuple(range(11)), 0
        while True:
            driver.refuse(call)
            done = await on.load("tall:1", pages)
            on.device.check()
            if not driver.refused:
                break
            assert (done.code, done.message) == (ActionCode.DEVICE_ERROR, "one call was refused")
            call += 1
        assert call == 1 + 11 * 2 + 1, "an event before; copy and event for each piece; the list of pages"
        assert done.code == ActionCode.OK
        driver.refuse(1000)
        x = torch.randn(2, 4)
        (y,) = await on.run(infer_job("tall:1", pages, x), (2, 140_000))
        assert torch.allclose(y, repository.outputs("tall:1", x)[0], atol=1e-5)
        on.device.close()


@on_loop
async def test_an_exec_whose_duration_cannot_be_had_gives_the_events_of_its_output_back(
    repository: Repository,
) -> None:
    on, driver = refusing(SMALL_PAGES)
    on.device.prepare(repository.package("linear:1"))
    await on.load("linear:1", (0,))
    for _ in range(EVENTS):
        job = infer_job("linear:1", (0,), torch.randn(2, 4))
        assert (await on.begin(Phase.INPUT, job)).code == ActionCode.OK
        driver.refuse_times = True
        assert (await on.begin(Phase.EXEC, job)).message == "no time is told"
        driver.refuse_times = False
        on.device.release(job)
    on.device.check()
    on.device.close()


def test_events_that_are_too_few_are_not_kept_by_whoever_asked_for_more() -> None:
    driver = HostDriver()
    pool = EventPool(lambda: driver.event(sleeps=False), 3)
    with pytest.raises(Exception, match=r"\b3\b"):
        pool.lend(4)
    assert pool.free == 3
    with pool.lend(2) as lent:
        assert (len(lent), pool.free) == (2, 1)
    assert pool.free == 1, "somebody has them who gives them back"
    pool.give(*lent)

    def fail() -> None:
        with pool.lend(2):
            raise ValueError("issuing failed")

    with pytest.raises(ValueError, match="issuing failed"):
        fail()
    assert pool.free == 3
