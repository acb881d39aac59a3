"""A device and its lanes, driven by the same pump as in a worker, but by a script in the same process."""

import asyncio
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gpu_worker.core.jobs import Done, Job, Phase, Report, Servable
from gpu_worker.core.lanes import Lanes
from gpu_worker.core.measuring import Measurement
from gpu_worker.core.outputs import row_bytes
from gpu_worker.core.pages import PageTable
from gpu_worker.core.pump import Pump
from gpu_worker.devices.base import Device
from gpu_worker.packages.package import Package, read_package
from mesh import wire
from mesh.codes import ActionCode
from mesh.errors import GearmeshError
from mesh.process.timers import Alarm
from mesh.tensors import DTYPES, byte_count

FOREVER_S = 1e12
FIRST_GUESS_S = 0.05  # duration of an EXEC never seen: long enough that a device hands it to its thread
SEED = 7


class ActionFailed(GearmeshError):
    """An action that a measurement needs has failed; `str()` says which one, and why."""

    def __init__(self, result: wire.ActionResult) -> None:
        super().__init__(f"{result.kind} ended with {result.code}: {result.message}")
        self.code = result.code


class Rig:
    """One device. Each action returns a future for its result; outputs are dropped."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.lanes = Lanes(PageTable(device.info.pages), device.depth, device.ahead_s)
        self.packages: dict[str, Package] = {}
        timed = _Timed(device)
        self.issue_s = timed.issue_s  # host time that starting an EXEC took, where the device then went on by itself
        self._pump = Pump(self.lanes, timed, self._report)
        self._durations_s: dict[tuple[str, int], float] = {}  # {(ref, batch): duration of the last EXEC}
        self._inputs: dict[tuple[str, int], list[bytes]] = {}  # {(ref, batch): random rows}
        self._waiting: dict[int, asyncio.Future[wire.ActionResult]] = {}
        self._numbers = itertools.count(1)
        self._alarm: Alarm | None = None
        self._thread = ThreadPoolExecutor(1, "prepare")
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """The device reports to this loop from now on."""
        self.device.attach(self._finished, self._lost)
        self._alarm = Alarm(self._loop, self._ring)

    def close(self) -> None:
        """Another process can use the device."""
        if self._alarm is not None:
            self._alarm.close()
        self._thread.shutdown()
        self.device.close()

    async def prepare(self, repository: Path, ref: str, factory_allow: tuple[str, ...]) -> float:
        """The version can be loaded. Returns the seconds that the preparation took. Raises: PackageError."""
        began_s = time.monotonic()
        package = read_package(repository, ref, factory_allow)
        await self._loop.run_in_executor(self._thread, self.device.prepare, package)
        sizes = None if self.device.info.any_batch else frozenset(self.sizes(package))
        pages = package.pages(self.device.info.page_bytes)
        self.lanes.prepared(ref, Servable(pages, package.spec.batch_max, sizes, row_bytes(package.spec.outputs)))
        self.packages[ref] = package
        return time.monotonic() - began_s

    def sizes(self, package: Package) -> tuple[int, ...]:
        """Batch sizes worth measuring."""
        return Measurement(package.spec.batch_max).sizes

    def load(self, ref: str) -> asyncio.Future[wire.ActionResult]:
        """Orders a LOAD that may start at once."""
        action = wire.Load(action=next(self._numbers), ref=ref, earliest_s=0.0, latest_s=FOREVER_S, expected_s=0.01)
        future = self._expect(action.action)
        self._pump.load(action, 0, now=time.monotonic())
        self._arm()
        return future

    def unload(self, ref: str) -> None:
        """The weights are not in the arena any more."""
        if self.lanes.table.is_loaded(ref):
            action = wire.Unload(action=next(self._numbers), ref=ref)
            self._pump.unload(action, 0, now=time.monotonic())
            self._arm()

    def infer(self, ref: str, batch: int, earliest_s: float = 0.0) -> asyncio.Future[wire.ActionResult]:
        """Orders an INFER of random rows, whose EXEC may start from `earliest_s` on."""
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
        self._pump.infer(action, 0, [self._rows(ref, batch)], now=time.monotonic())
        self._arm()
        return future

    async def ran(self, ref: str, batch: int) -> wire.ActionResult:
        """The result of a successful INFER. Raises: ActionFailed."""
        return good(await self.infer(ref, batch))

    async def resident(self, *refs: str) -> None:
        """The arena holds the weights of these versions and of no others. Raises: ActionFailed."""
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

    def _report(self, report: Report) -> None:
        result, job = report.result, report.job
        if job is not None and isinstance(job.action, wire.Infer) and result.duration_s is not None:
            self._durations_s[job.action.ref, job.action.batch] = result.duration_s
        future = self._waiting.pop(result.action, None)
        if future is not None and not future.done():
            future.set_result(result)

    def _lost(self, why: str) -> None:
        """Nothing to do: every action that was begun is reported as failed."""

    def _finished(self, phase: Phase, job: Job, done: Done) -> None:
        self._pump.finished(phase, job, done, now=time.monotonic())
        self._arm()

    def _ring(self, now: float) -> None:
        self._pump.wake(now=now)
        self._arm()

    def _arm(self) -> None:
        assert self._alarm is not None
        self._alarm.by(self._pump.wake_at())


class _Timed:
    """A device, and how long it took to start each EXEC that then went on by itself: seconds of the host."""

    def __init__(self, device: Device) -> None:
        self.issue_s: list[float] = []
        self.release = device.release
        self.unloaded = device.unloaded
        self._device = device

    def begin(self, phase: Phase, job: Job) -> Done | None:
        """The phase has started on the device; if it is an EXEC that goes on, the time to start it is noted."""
        began_s = time.perf_counter()
        done = self._device.begin(phase, job)
        if done is None and phase is Phase.EXEC:
            self.issue_s.append(time.perf_counter() - began_s)
        return done


def good(result: wire.ActionResult) -> wire.ActionResult:
    """The result, if the action succeeded. Raises: ActionFailed."""
    if result.code != ActionCode.OK:
        raise ActionFailed(result)
    return result
