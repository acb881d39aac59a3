"""The threads of a device with CUDA graphs: when work is issued, what they release, and events that return."""

import os
import queue
import threading
import time
import weakref

import pytest
import torch

from gpu_worker.devices.base import DeviceError
from gpu_worker.devices.cuda.driver import Work
from gpu_worker.devices.cuda.events import EventPool
from gpu_worker.devices.cuda.host import HostDriver
from gpu_worker.devices.cuda.issuer import Agenda, Issuer
from gpu_worker.devices.cuda.threads import EventWatcher, Helper
from gpu_worker.devices.opening import open_device
from gpu_worker.tuning import REAL_TIME_PRIORITY, may_be_real_time
from mesh.process.settings import Settings
from tests.gpu_worker.devices.cuda.cuda_builders import NO_GPU
from tests.loops import LIMIT_S


def nothing() -> None:
    """Does nothing; the work of an idle thread."""


class Said:
    """Works that record their names when they run, and a wait for all of them."""

    def __init__(self, count: int, names: list[str] | None = None) -> None:
        self.names = [] if names is None else names
        self._left, self._all = count, threading.Event()

    def more(self, count: int) -> "Said":
        """Returns another set of works, whose names go to the same list."""
        return Said(count, self.names)

    def work(self, name: str) -> Work:
        """Returns a work of that name."""

        def say() -> None:
            self.names.append(name)
            self._left -= 1
            if not self._left:
                self._all.set()

        return say

    def all(self) -> list[str]:
        """Waits until all works have run. Returns their names in order."""
        assert self._all.wait(LIMIT_S)
        return self.names


def test_an_agenda_gives_what_is_due_earliest_first_and_equals_in_order() -> None:
    agenda, said = Agenda(), Said(4)
    for due_s, name in ((2.0, "c"), (1.0, "a"), (2.0, "d"), (1.5, "b")):
        agenda.add(due_s, said.work(name))
    assert agenda.due_s == 1.0
    assert agenda.pop(0.999) is None
    for now in (1.0, 1.5, 2.0, 2.0):
        work = agenda.pop(now)
        assert work is not None
        work()
    assert said.all() == ["a", "b", "c", "d"]
    assert agenda.due_s is None
    assert agenda.pop(9.0) is None


class Clock:
    """A clock that stands still until it is set forward."""

    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now


def test_works_are_issued_in_order_and_those_with_a_time_not_before_it() -> None:
    clock, soon = Clock(), Said(3)
    issuer = Issuer(nothing, nothing, None, clock)
    then, later = soon.more(1), soon.more(1)
    issuer.at(10.03, later.work("later"))
    issuer.at(10.02, then.work("then"))
    issuer.at(0.0, soon.work("overdue"))
    issuer.now(soon.work("first"))
    issuer.now(soon.work("second"))
    issuer.start()
    assert soon.all() == ["overdue", "first", "second"]
    clock.now = 10.02
    assert then.all() == ["overdue", "first", "second", "then"]
    clock.now = 10.03
    assert later.all() == ["overdue", "first", "second", "then", "later"]
    issuer.stop()


def test_the_clock_of_an_issuer_is_the_machine_s_and_nothing_is_issued_early() -> None:
    issuer = Issuer(nothing, nothing, None, time.monotonic)
    issued: queue.SimpleQueue[float] = queue.SimpleQueue()
    due_s = time.monotonic() + 0.02
    issuer.at(due_s, lambda: issued.put(time.monotonic()))
    issuer.start()
    assert issued.get(timeout=LIMIT_S) >= due_s
    issuer.stop()


def test_a_work_that_comes_while_another_is_awaited_is_not_held_up() -> None:
    clock, between = Clock(), Said(1)
    issuer, awaited = Issuer(nothing, nothing, None, clock), between.more(1)
    issuer.start()
    issuer.at(10.05, awaited.work("awaited"))
    issuer.now(between.work("between"))
    assert between.all() == ["between"]
    clock.now = 10.05
    assert awaited.all() == ["between", "awaited"]
    issuer.stop()


def test_an_issuer_stops_with_works_that_are_not_due() -> None:
    issuer = Issuer(nothing, nothing, None, time.monotonic)
    issuer.at(time.monotonic() + 3600.0, nothing)
    issuer.start()
    assert issuer.stop(), "it has ended"


def test_an_issuer_has_the_priority_of_the_thread_that_starts_it() -> None:
    """Threads do not inherit real-time priority, and this thread keeps time."""
    if not may_be_real_time():
        pytest.skip("this machine allows no real-time priority")
    found: queue.SimpleQueue[int] = queue.SimpleQueue()

    def start(policy: int) -> None:
        if policy == os.SCHED_FIFO:
            os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(REAL_TIME_PRIORITY))
        issuer.start()

    for policy in (os.SCHED_OTHER, os.SCHED_FIFO):
        issuer = Issuer(nothing, nothing, None, time.monotonic)
        issuer.now(lambda: found.put(os.sched_getscheduler(0)))
        thread = threading.Thread(target=start, args=(policy,))
        thread.start()
        thread.join()
        assert found.get(timeout=LIMIT_S) & ~os.SCHED_RESET_ON_FORK == policy
        issuer.stop()


def test_an_idle_issuer_does_what_it_has_for_that() -> None:
    said = Said(3)
    issuer = Issuer(nothing, said.work("idle"), 0.001, time.monotonic)
    issuer.start()
    assert said.all()[:3] == ["idle"] * 3
    issuer.stop()


class Thing:
    """Something whose release is observed."""


def test_threads_keep_nothing_of_what_they_have_done() -> None:
    """The last reference may be to graphs or pinned memory: idle threads must not hold it."""
    for thread in (Helper("helper"), Issuer(nothing, nothing, None, time.monotonic)):
        thing, gone = Thing(), threading.Event()
        weakref.finalize(thing, gone.set)
        give = thread.do if isinstance(thread, Helper) else thread.now
        give(lambda thing=thing: None)
        del thing
        thread.start()
        assert gone.wait(LIMIT_S)
        thread.stop()


def test_a_watcher_tells_in_the_order_given_and_what_failed() -> None:
    driver = HostDriver()
    stream, watcher = driver.stream("s"), EventWatcher("s", nothing)
    told: queue.SimpleQueue[str] = queue.SimpleQueue()

    def fail() -> None:
        raise IndexError("no such row")

    for work in (nothing, fail, nothing):
        event = driver.event(sleeps=False)
        stream.run(work)
        stream.record(event)
        watcher.watch(event, lambda error: told.put(str(error)))
    watcher.start()
    assert [told.get(timeout=LIMIT_S) for _ in range(3)] == ["None", "IndexError: no such row", "None"]
    watcher.stop()
    driver.close()


def test_a_helper_ticks_however_busy_it_is() -> None:
    helper, said = Helper("helper"), Said(3)
    helper.every(0.001, said.work("tick"))
    stop = threading.Event()

    def again() -> None:
        if not stop.is_set():
            helper.do(again)

    again()
    helper.start()
    assert said.all()
    stop.set()
    helper.stop()


def test_events_of_a_pool_come_back_and_more_are_not_made() -> None:
    driver = HostDriver()
    pool = EventPool(lambda: driver.event(sleeps=False), 2)
    first, second = pool.take(), pool.take()
    with pytest.raises(queue.Empty):
        pool.take()
    pool.give(first, second)
    assert pool.free == 2
    assert driver.allocations() == {"event": 2}


def test_a_stream_waits_for_another_s_event_and_nothing_has_happened_before() -> None:
    driver = HostDriver()
    first, second = driver.stream("first"), driver.stream("second")
    gate, event, end = threading.Event(), driver.event(sleeps=False), driver.event(sleeps=False)
    buffer = torch.zeros(1)

    def set_to_three() -> None:
        gate.wait()
        buffer.fill_(3.0)

    def double() -> None:
        buffer.mul_(2.0)

    first.run(set_to_three)
    first.record(event)
    second.wait(event)
    second.run(double)
    second.record(end)
    assert float(buffer) == 0.0
    gate.set()
    end.synchronize()
    assert float(buffer) == 6.0
    assert driver.seconds(event, end) > 0
    driver.close()


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused_with_what_torch_sees(name: str, tmp_path: object) -> None:
    with pytest.raises(DeviceError, match=f"GEARMESH_DEVICE='{name}'.*cpu"):
        open_device(Settings(device=name, data_dir=tmp_path))


@pytest.mark.parametrize("name", ["cuda:", "cuda:x", "cuda:-1"])
def test_a_gpu_without_a_number_is_refused(name: str, tmp_path: object) -> None:
    with pytest.raises(DeviceError, match="cuda:N"):
        open_device(Settings(device=name, data_dir=tmp_path))


@pytest.mark.cuda
@pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)
def test_an_unknown_gpu_is_refused_with_those_there_are(tmp_path: object) -> None:
    with pytest.raises(DeviceError, match="cuda:0"):
        open_device(Settings(device="cuda:99", data_dir=tmp_path))
