"""mesh/process/timers.py: the alarm, on real loops, with the kernel's timer and without."""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mesh.process import timers
from mesh.process.timers import Alarm
from tests.loops import LIMIT_S, Told
from tests.memory import open_files


@pytest.fixture(params=["timerfd", "loop's own"])
def timer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The timer that the alarm uses: the kernel's on Linux, or, as elsewhere, only the loop's."""
    if request.param != "timerfd":
        monkeypatch.setattr(timers, "LIBC", None)
    return str(request.param)


Run = Callable[[Callable[[asyncio.AbstractEventLoop], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest, timer: str) -> Iterator[Run]:
    """Runs a test's coroutine on each kind of loop, and checks that no file descriptor is left open."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        loop = runner.get_loop()

        def run_(test: Callable[[asyncio.AbstractEventLoop], Coroutine[Any, Any, None]]) -> None:
            before = open_files()
            runner.run(asyncio.wait_for(test(loop), LIMIT_S))
            assert open_files() - before == set()

        runner.run(_nothing())
        yield run_


async def _nothing() -> None:
    """Lets the loop open the file descriptors that it needs for itself."""


class Rings(Told):
    """Records (the `now` passed by the alarm, the actual instant)."""

    def __call__(self, *args: Any) -> None:
        super().__call__((args[0], time.monotonic()))


@pytest.mark.parametrize("in_s", [0.0005, 0.0011, 0.003, 0.0202])
def test_the_alarm_rings_once_and_never_early(run: Run, in_s: float) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        rings = Rings()
        alarm = Alarm(loop, rings)
        for number in range(1, 4):
            at = time.monotonic() + in_s
            alarm.set(at)
            now, when = (await rings.count(number))[-1]
            assert now >= at
            assert when >= at - 1e-8  # timerfd counts in whole nanoseconds
        alarm.close()
        assert len(rings.items) == 3

    run(test)


@pytest.mark.parametrize("at", [-5.0, 0.0, 1e-12, 1.0])
def test_an_instant_that_has_passed_rings_at_once(run: Run, at: float) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        rings = Rings()
        alarm = Alarm(loop, rings)
        began = time.monotonic()
        alarm.set(at)
        assert rings.items == []  # `set` itself never rings
        ((now, _),) = await rings.count(1)
        assert now >= began
        alarm.close()

    run(test)


def test_the_alarm_can_be_set_earlier_and_later(run: Run) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        rings = Rings()
        alarm = Alarm(loop, rings)
        began = time.monotonic()
        alarm.set(began + 1000.0)
        alarm.set(began + 0.005)
        alarm.set(began + 0.01)
        ((now, _),) = await rings.count(1)
        assert now >= began + 0.01
        alarm.close()

    run(test)


def test_by_moves_the_alarm_forward_only(run: Run) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        rings = Rings()
        alarm = Alarm(loop, rings)
        began = time.monotonic()
        alarm.by(None)  # the alarm was not set, and stays so
        alarm.by(began + 1000.0)
        alarm.by(began + 0.01)
        alarm.by(began + 2000.0)
        alarm.by(None)
        ((now, _),) = await rings.count(1)
        assert now >= began + 0.01
        alarm.by(began + 0.005)  # after it rang, any instant is an earlier one
        assert len(await rings.count(2)) == 2
        alarm.close()

    run(test)


def test_an_alarm_set_to_never_does_not_ring(run: Run) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        silent, rings = Rings(), Rings()
        first, second = Alarm(loop, silent), Alarm(loop, rings)
        at = time.monotonic() + 0.003
        first.set(at)
        first.set(None)
        second.set(at + 0.01)
        await rings.count(1)
        assert silent.items == []
        first.set(at)  # it can be set again
        await silent.count(1)
        first.close()
        second.close()

    run(test)


def test_an_alarm_may_be_set_again_by_what_it_rings_even_to_the_same_instant(run: Run) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        rings = Rings()
        at = time.monotonic() + 0.002

        def ring(now: float) -> None:
            rings(now)
            if len(rings.items) < 3:
                alarm.set(at)

        alarm = Alarm(loop, ring)
        alarm.set(at)
        assert len(await rings.count(3)) == 3
        alarm.close()

    run(test)


def test_setting_it_to_the_instant_it_has_changes_nothing(run: Run) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        rings = Rings()
        alarm = Alarm(loop, rings)
        at = time.monotonic() + 0.003
        alarm.set(at)
        alarm.set(at)
        await rings.count(1)
        alarm.close()
        assert len(rings.items) == 1

    run(test)


def test_an_alarm_that_is_put_off_after_it_expired_does_not_ring_for_the_old_instant(run: Run) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        rings = Rings()
        alarm = Alarm(loop, rings)
        at = time.monotonic() + 0.001
        alarm.set(at)
        while time.monotonic() < at + 0.002:  # the loop is busy at the instant of the alarm
            pass
        alarm.set(at + 0.02)
        ((now, _),) = await rings.count(1)
        assert now >= at + 0.02
        alarm.close()

    run(test)


@pytest.mark.parametrize("set_before", [True, False])
def test_a_closed_alarm_never_rings(run: Run, set_before: bool) -> None:
    async def test(loop: asyncio.AbstractEventLoop) -> None:
        silent, rings = Rings(), Rings()
        closed, other = Alarm(loop, silent), Alarm(loop, rings)
        at = time.monotonic() + 0.002
        if set_before:
            closed.set(at)
        closed.close()
        other.set(at + 0.005)
        await rings.count(1)
        other.close()
        assert silent.items == []

    run(test)


def kernels_timers_s() -> list[float]:
    """Seconds until each of this process's kernel timers rings."""
    told = "".join(each.read_text() for each in Path("/proc/self/fdinfo").glob("[0-9]*") if each.exists())
    found = re.findall(r"it_value: \((\d+), (\d+)\)", told)
    return [int(seconds) + int(nanoseconds) / 1e9 for seconds, nanoseconds in found]


@pytest.mark.skipif(timers.LIBC is None, reason="no timerfd on this system")
def test_the_kernel_is_told_the_instant_itself_and_not_whole_milliseconds() -> None:
    async def test() -> None:
        alarm = Alarm(asyncio.get_running_loop(), Rings())
        at = time.monotonic() + 1000.0003
        earliest_s = at - time.monotonic()
        alarm.set(at)
        rings_in_s = kernels_timers_s()
        latest_s = at - time.monotonic()
        alarm.close()
        assert any(latest_s - 1e-6 <= each <= earliest_s + 1e-6 for each in rings_in_s)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())
