"""Figures of the whole device on an event loop: cold and warm answers, loads from disk, lateness."""

import asyncio
import sys
import time

from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.cuda.device import CudaDevice
from gpu_worker.devices.cuda.driver import Driver
from gpu_worker.devices.cuda.threads import Helper
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.codes import ActionCode
from scripts.rigs.gpu_figures import PAGE, ROOM, Figures, spread


class Serving:
    """The device on an event loop, for running jobs."""

    def __init__(self, driver: Driver, helper: Helper, *, keep_warm: bool, host_bytes_max: int = 1 << 30) -> None:
        self.device = CudaDevice(driver, ROOM, helper, host_bytes_max=host_bytes_max, keep_warm=keep_warm)
        self._waiting: dict[tuple[Phase, int], asyncio.Future[Done]] = {}
        self._actions = 0
        self.device.attach(self._finished, self._lost)

    def _finished(self, phase: Phase, job: Job, done: Done) -> None:
        self._waiting.pop((phase, job.action.action)).set_result(done)

    def _lost(self, why: str) -> None:
        """Does nothing: every phase that was begun reports the loss itself."""

    async def do(self, phase: Phase, job: Job) -> Done:
        """Runs one phase. Raises: RuntimeError, if it fails."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[phase, job.action.action] = future
        done = self.device.begin(phase, job)
        if done is None:
            done = await future
        if done.code != ActionCode.OK:
            raise RuntimeError(f"{phase}: {done.code}: {done.message}")
        return done

    def job(self, ref: str, pages: tuple[int, ...], *, load: bool = False, earliest_s: float = 0.0) -> Job:
        """A LOAD, or an INFER of one row of zeros."""
        self._actions += 1
        action: wire.Load | wire.Infer
        if load:
            action = wire.Load(action=self._actions, ref=ref, earliest_s=0.0, latest_s=1e12, expected_s=0.01)
        else:
            action = wire.Infer(
                action=self._actions, ref=ref, earliest_s=earliest_s, latest_s=1e12, expected_s=0.001, batch=1
            )
        made = Job(action, 0.0, 0)
        made.pages = pages
        return made

    async def infer(self, ref: str, pages: tuple[int, ...], earliest_in_s: float = 0.0) -> Done:
        """INPUT, EXEC at its time, OUTPUT. Returns the result of EXEC."""
        job = self.job(ref, pages, earliest_s=time.monotonic() + earliest_in_s if earliest_in_s else 0.0)
        await self.do(Phase.INPUT, job)
        done = await self.do(Phase.EXEC, job)
        await self.do(Phase.OUTPUT, job)
        self.device.release(job)
        return done


async def device_figures(driver: Driver, helper: Helper, package: Package, seconds: float, keep_warm: bool) -> Figures:
    """Cold and warm answers, EXEC after idling, lateness; with the clock kept up or not."""
    on = Serving(driver, helper, keep_warm=keep_warm)
    try:
        on.device.prepare(package)
        pages = tuple(range(package.pages(PAGE)))
        found: Figures = {"keep_warm": keep_warm}
        cold, warm, copy = list[float](), list[float](), list[float]()
        began_s = time.perf_counter()
        while len(cold) < 1000 and time.perf_counter() - began_s < seconds:
            on.device.unloaded(package.ref)  # otherwise the execution buffer still holds it, and nothing is gathered
            asked_s = time.perf_counter()
            copy.append((await on.do(Phase.LOAD, on.job(package.ref, pages, load=True))).duration_s)
            await on.infer(package.ref, pages)
            cold.append(time.perf_counter() - asked_s)
            asked_s = time.perf_counter()
            await on.infer(package.ref, pages)
            warm.append(time.perf_counter() - asked_s)
        found["cold_ms"], found["warm_ms"] = spread(cold, 1e-3), spread(warm, 1e-3)
        found["load_gb_per_s"] = round(package.image_bytes / sorted(copy)[len(copy) // 2] / 1e9, 2)
        found["exec_after_idle_ms"] = await _after_idle(on, package.ref, pages, seconds)
        found["issue_late_us"] = await _lateness(on, package.ref, pages, seconds)
        return found
    finally:
        on.device.close()


async def disk_figures(driver: Driver, helper: Helper, package: Package, seconds: float) -> Figures:
    """LOADs of weights that are on disk, through the pinned buffers."""
    on = Serving(driver, helper, keep_warm=False, host_bytes_max=0)
    try:
        on.device.prepare(package)
        pages = tuple(range(package.pages(PAGE)))
        durations: list[float] = []
        began_s = time.perf_counter()
        while len(durations) < 1000 and (not durations or time.perf_counter() - began_s < seconds):
            durations.append((await on.do(Phase.LOAD, on.job(package.ref, pages, load=True))).duration_s)
        median = sorted(durations)[len(durations) // 2]
        return {"gb_per_s": round(package.image_bytes / median / 1e9, 3), "ms": spread(durations, 1e-3)}
    finally:
        on.device.close()


async def _after_idle(on: Serving, ref: str, pages: tuple[int, ...], seconds: float) -> Figures:
    found = {}
    for idle_ms in (0, 10, 100, 1000):
        durations, clocks = [], []
        for _ in range(max(3, min(200, int(seconds / max(idle_ms, 1) * 1e3)))):
            await asyncio.sleep(idle_ms / 1e3)
            done = await on.infer(ref, pages)
            durations.append(done.duration_s)
            clocks.append(done.clock_mhz)
        found[str(idle_ms)] = {**spread(durations, 1e-3), "clock_mhz": sorted(clocks)[len(clocks) // 2]}
    return found


async def _lateness(on: Serving, ref: str, pages: tuple[int, ...], seconds: float) -> Figures:
    """Delay of EXECs at times known ahead, with an idle event loop and with a busy one."""
    found: Figures = {}
    for name, busy in (("quiet", False), ("busy", True)):
        for interval_s in (5e-3, 5e-5):
            sys.setswitchinterval(interval_s)
            noise = asyncio.create_task(_noise()) if busy else None
            on.device.figures.late_s.clear()
            began_s = time.perf_counter()
            while time.perf_counter() - began_s < seconds / 2:
                await on.infer(ref, pages, 0.0015)
            if noise is not None:
                noise.cancel()
            sys.setswitchinterval(5e-3)
            found[f"{name}, switch {interval_s * 1e6:.0f} us"] = spread(list(on.device.figures.late_s), 1e-6)
    return found


async def _noise() -> None:
    """About 20,000 short callbacks per second, like messages."""
    while True:
        until_s = time.perf_counter() + 25e-6
        while time.perf_counter() < until_s:
            pass
        await asyncio.sleep(25e-6)
