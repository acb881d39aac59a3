"""A device behind its lanes, driven as the worker's service drives it, but by a script in the same process."""

import asyncio
import itertools
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gpu_worker.core.lanes import Done, Effect, Job, Lanes, Phase, Prepared, Report
from gpu_worker.core.outputs import row_bytes
from gpu_worker.core.pages import PageTable
from gpu_worker.devices.base import Device
from gpu_worker.packages.package import Package, read_package
from gpu_worker.profiling import Measurement
from mesh import wire
from mesh.errors import GearmeshError
from mesh.process.timers import Alarm
from mesh.tensors import DTYPES, byte_count

FOREVER_S = 1e12
FIRST_GUESS_S = 0.05  # for an EXEC never seen: long enough to be run on the device's thread
SEED = 7


class ActionFailed(GearmeshError):
    """The device failed in an action that a measurement needs; `str()` says which and why."""


class Rig:
    """One device. Every action's result is a future; outputs are dropped."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.lanes = Lanes(PageTable(device.info.pages), device.depth, device.ahead_s)
        self.packages: dict[str, Package] = {}
        self.issue_s: list[float] = []  # host time to start an EXEC, on devices that execute asynchronously
        self._durations_s: dict[tuple[str, int], float] = {}  # {(ref, batch): duration of the last EXEC}
        self._inputs: dict[tuple[str, int], list[bytes]] = {}  # {(ref, batch): random rows}
        self._waiting: dict[int, asyncio.Future[wire.ActionResult]] = {}
        self._numbers = itertools.count(1)
        self._alarm: Alarm | None = None
        self._thread = ThreadPoolExecutor(1, "prepare")
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Connects the device to this loop."""
        self.device.attach(self._finished, self._lost)
        self._alarm = Alarm(self._loop, self._ring)

    def close(self) -> None:
        """Closes the device."""
        if self._alarm is not None:
            self._alarm.close()
        self._thread.shutdown()
        self.device.close()

    async def prepare(self, repository: Path, ref: str, factory_allow: tuple[str, ...]) -> float:
        """Prepares the version for LOAD. Returns how long that took in seconds. Raises: PackageError."""
        began_s = time.monotonic()
        package = read_package(repository, ref, factory_allow)
        await self._loop.run_in_executor(self._thread, self.device.prepare, package)
        sizes = None if self.device.info.any_batch else frozenset(self.sizes(package))
        pages = package.pages(self.device.info.page_bytes)
        self.lanes.prepared(ref, Prepared(pages, package.spec.batch_max, sizes, row_bytes(package.spec.outputs)))
        self.packages[ref] = package
        return time.monotonic() - began_s

    def sizes(self, package: Package) -> tuple[int, ...]:
        """Batch sizes worth measuring."""
        return Measurement(package.spec.batch_max).sizes

    def load(self, ref: str) -> asyncio.Future[wire.ActionResult]:
        """Orders a LOAD at once."""
        action = wire.Load(action=next(self._numbers), ref=ref, earliest_s=0.0, latest_s=FOREVER_S, expected_s=0.01)
        future = self._expect(action.action)
        self._apply(self.lanes.load(action, 0, now=time.monotonic()))
        return future

    def unload(self, ref: str) -> None:
        """Orders an UNLOAD: the weights leave the arena."""
        if self.lanes.table.is_loaded(ref):
            action = wire.Unload(action=next(self._numbers), ref=ref)
            self._apply(self.lanes.unload(action, 0, now=time.monotonic()))
            self.device.unloaded(ref)

    def infer(self, ref: str, batch: int, earliest_s: float = 0.0) -> asyncio.Future[wire.ActionResult]:
        """Orders an INFER of random rows, with EXEC from `earliest_s` on."""
        action = wire.Infer(
            action=next(self._numbers),
            ref=ref,
            earliest_s=earliest_s,
            latest_s=FOREVER_S,
            expected_s=self._durations_s.get((ref, batch), FIRST_GUESS_S),
            batch=batch,
            parts=(wire.Part(frontend="", request=0, attempt=0, rows=batch, predicted_s=0.0),),
        )
        future = self._expect(action.action)
        tensors = [self._rows(ref, batch)]
        self._apply(self.lanes.infer(action, 0, now=time.monotonic(), tensors=tensors))
        return future

    async def ran(self, ref: str, batch: int) -> wire.ActionResult:
        """The result of a successful INFER. Raises: ActionFailed."""
        return good(await self.infer(ref, batch))

    async def resident(self, *refs: str) -> None:
        """Loads these versions and unloads all others. Raises: ActionFailed."""
        for other in self.lanes.table.resident():
            if other not in refs:
                self.unload(other)
        for ref in refs:
            if not self.lanes.table.is_loaded(ref):
                good(await self.load(ref))

    def _rows(self, ref: str, batch: int) -> list[bytes]:
        if (ref, batch) not in self._inputs:
            rng = np.random.default_rng(SEED)
            self._inputs[ref, batch] = [
                rng.standard_normal((batch, *spec.shape[1:])).astype(DTYPES[spec.dtype]).tobytes()
                if spec.dtype.startswith("float")
                else bytes(byte_count(spec.dtype, (batch, *spec.shape[1:])))
                for spec in self.packages[ref].spec.inputs
            ]
        return self._inputs[ref, batch]

    def _expect(self, action: int) -> asyncio.Future[wire.ActionResult]:
        self._waiting[action] = future = self._loop.create_future()
        return future

    def _apply(self, effects: list[Effect]) -> None:
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            if isinstance(effect, Report):
                self._report(effect)
                continue
            began_s = time.perf_counter()
            done = self.device.begin(effect.phase, effect.job)
            if done is not None:
                waiting.extend(self.lanes.finished(effect.phase, effect.job, done, now=done.end_s))
            elif effect.phase is Phase.EXEC:
                self.issue_s.append(time.perf_counter() - began_s)
        assert self._alarm is not None
        self._alarm.by(self.lanes.wake_at())

    def _lost(self, why: str) -> None:
        """Does nothing: every action that was begun reports the loss itself."""

    def _report(self, report: Report) -> None:
        result, job = report.result, report.job
        if job is not None:
            if isinstance(job.action, wire.Infer) and result.duration_s is not None:
                self._durations_s[job.action.ref, job.action.batch] = result.duration_s
            self.device.release(job)
        future = self._waiting.pop(result.action, None)
        if future is not None and not future.done():
            future.set_result(result)

    def _finished(self, phase: Phase, job: Job, done: Done) -> None:
        self._apply(self.lanes.finished(phase, job, done, now=time.monotonic()))

    def _ring(self, now: float) -> None:
        self._apply(self.lanes.wake(now=now))


def good(result: wire.ActionResult) -> wire.ActionResult:
    """The result, if the action succeeded. Raises: ActionFailed."""
    if result.code != "ok":
        raise ActionFailed(f"{result.kind} ended with {result.code}: {result.message}")
    return result
