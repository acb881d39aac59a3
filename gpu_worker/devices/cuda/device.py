"""A GPU as the worker sees it: gpu_worker.devices.base.Device, on any Driver.

One thread issues. The loop's thread hands phases over; threads that wait for events report their ends:

    LOAD    loads.py                                                                              stream load
    INPUT   bytes into a pinned slot (large ones by a helper), from there to the device           stream input
    EXEC    slot to static input, gather unless the execution buffer holds the model, replay, back   stream exec
    OUTPUT  issued with EXEC, after it; the phase waits for it and copies it out of the slot      stream output

Instants are the host's: when work was issued, and when its end was observed. Durations are the device's, between two
events.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch

from gpu_worker.core.cutting import Indivisible
from gpu_worker.core.figures import Cell
from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.attempts import Attempts
from gpu_worker.devices.base import Finished, Lost, Traits
from gpu_worker.devices.cuda.driver import Driver, Event, MemoryFull, Stream, Work
from gpu_worker.devices.cuda.issuer import Issuer
from gpu_worker.devices.cuda.memory import Memory, WrongBytes, capacity_faults, fill, outputs_of, portions_of
from gpu_worker.devices.cuda.plans import MIB, ExecutionBuffer, Room, StreamForecast
from gpu_worker.devices.cuda.records import CudaVersion, Figures, InferResources, Loading, done_of, message_of
from gpu_worker.devices.cuda.reporting import Reporter
from gpu_worker.devices.cuda.transfer.loads import Loader
from gpu_worker.devices.cuda.versions import ENGINE, CudaVersions
from gpu_worker.devices.cuda.waiting.events import EventPool
from gpu_worker.devices.cuda.waiting.threads import DeviceThread, EventWatcher, Helper
from gpu_worker.devices.cuda.waiting.watchdog import HangLimits
from gpu_worker.devices.cuda.waiting.watching import ThreadObserver
from gpu_worker.devices.locks import DeviceLock
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.codes import ActionCode
from mesh.errors import PackageError

FILL_BYTES_MAX = 64 * 1024  # more is filled in by the helper; this much takes some 10 us on the loop's thread
# EXECs are taken over so long before their time: the issuing thread starts them more exactly than an event loop
AHEAD_S = 0.002
IDLE_S = 0.0015  # without work, after which the clock is kept up. Source: the clock falls within milliseconds
WARM_FOR_S = 30.0  # after the last EXEC the clock is kept up so long; then the device may rest
OK = ActionCode.OK
CLOCK_EVERY_S = 0.05
CLOSE_S = 5.0  # for all threads to end when the device is closed
EVENTS = 64  # for EXEC, INPUT and OUTPUT
DEPTH = {Phase.LOAD: 2, Phase.INPUT: 4, Phase.EXEC: 2, Phase.OUTPUT: 4}


class CudaDevice:
    """A Device on one GPU. Raises: DeviceError."""

    def __init__(
        self,
        driver: Driver,
        room: Room,
        helper: Helper | None = None,
        lock: DeviceLock | None = None,
        *,
        host_bytes_max: int,
        keep_warm: bool = True,
        attempts: Attempts | None = None,
        hang_limits: HangLimits | None = None,
    ) -> None:
        self._driver, self._lock, self._attempts = driver, lock, attempts
        driver.enter()
        self._memory = Memory(driver, room)
        self._timed = EventPool(partial(driver.event, sleeps=False), EVENTS)
        lanes = (Phase.INPUT, Phase.EXEC, Phase.OUTPUT)
        self._streams: dict[Phase, Stream] = {phase: driver.stream(phase.value) for phase in lanes}
        self._watchers = {phase: EventWatcher(phase.value, driver.enter) for phase in lanes}
        self._warm = driver.keep_warm() if keep_warm else None
        self._issuer = Issuer(driver.enter, self._idle, IDLE_S if self._warm is not None else None, time.monotonic)
        self._reporter = Reporter(driver)
        self._loader = Loader(
            driver, self._memory, self._issuer, partial(self._reporter.tell, Phase.LOAD), self._reporter.suspect
        )
        self._helper = helper if helper is not None else Helper("helper")
        self._helper.every(CLOCK_EVERY_S, self._tick)
        # first of all: otherwise memory that it frees would open the first device instead
        self._helper.do(driver.enter)
        self.figures = Figures()
        self._versions = CudaVersions(
            driver, self._memory, self._helper, self.figures, host_bytes_max=host_bytes_max,
            prepare_disk=self._loader.prepare_disk, attempts=attempts,
        )  # fmt: skip
        self._execution_buffer = ExecutionBuffer()
        self._lane = StreamForecast()
        self._executed_s = 0.0
        self._clock_mhz = driver.clock_mhz()
        self.threads: tuple[DeviceThread, ...] = (  # in the order in which to stop them
            self._issuer, *self._loader.threads, *self._watchers.values(), self._helper
        )  # fmt: skip
        self.watching = ThreadObserver(self.threads, hang_limits or HangLimits(), self._reporter.give_up)
        self.info = wire.DeviceInfo(
            name=driver.name, kind=driver.kind, pages=room.pages, page_bytes=room.page_bytes, any_batch=False,
            memory_note=f"arena {room.arena_bytes // MIB} MiB, execution buffer {room.buffer_bytes // MIB} MiB",
        )  # fmt: skip
        self.depth = dict(DEPTH)
        self.ahead_s = AHEAD_S
        self.measured = True

    def attach(self, finished: Finished, lost: Lost) -> None:
        """The threads run and report to `finished` through the loop; `lost` is called once if the device fails."""
        self._reporter.attach(finished, lost)
        self._issuer.start()
        self._helper.start()
        self._loader.start()
        for watcher in self._watchers.values():
            watcher.start()
        self.watching.start()

    def close(self) -> None:
        """The threads have ended, and the device is free for another process.

        A thread stuck in the driver is not waited for: it and the lock last until the process ends.
        """
        self.watching.stop()
        if self._attempts is not None and not self._reporter.is_lost:
            self._attempts.close()
        ends_s = time.monotonic() + (0.0 if self._reporter.hangs else CLOSE_S)
        stopped = [thread.stop(max(0.0, ends_s - time.monotonic())) for thread in self.threads]
        if all(stopped) and not self.watching.prepares:
            self._driver.close()
            if self._lock is not None:
                self._lock.release()

    def check(self) -> None:
        """Every invariant holds while nothing is on its way: all events are free. On the loop's thread."""
        assert self._reporter.idle
        self._loader.check()
        self._versions.images.check()
        assert self._timed.free == self._timed.count

    # -- preparation --------------------------------------------------------------------------------------------------

    def prepare(self, package: Package) -> wire.Profile | None:
        """The version can be loaded and executed. Returns None, as its profile is measured. Raises: PackageError."""
        faults = capacity_faults(package, self._memory.room)
        if faults:
            raise PackageError(package.ref, faults)
        self._driver.enter()
        try:
            with self.watching.preparing(package.ref, package.image_bytes):
                self._prepare(package)
        except MemoryFull as error:
            raise PackageError(package.ref, [f"{self.info.name} is full: {error}; lower GEARMESH_ARENA_MB"]) from error
        except MemoryError as error:
            raise PackageError(package.ref, [f"{error}; lower GEARMESH_HOST_MEMORY_MB"]) from error
        except RuntimeError as error:
            why = f"{self.info.name}: cannot be captured as a graph: {message_of(error)}"
            raise PackageError(package.ref, [why]) from error
        return None

    def _prepare(self, package: Package) -> None:
        try:
            self._versions.prepare(package, self.info.kind)
        except Exception:
            self._reporter.suspect()
            raise

    def forget(self, ref: str) -> None:
        """The version, and what it alone used, is gone."""
        self._versions.forget(ref)

    def traits(self, ref: str) -> Traits:
        """Returns the traits of a prepared version."""
        version = self._versions.get(ref)
        assert version is not None
        of_extents = version.executable.batches.by_extents if version.package.spec.dims else ()
        cells = tuple(Cell(extents, rows) for extents, rows in of_extents if rows)
        return Traits(engine=ENGINE, load_from=version.image.place, cells=cells)

    def unloaded(self, ref: str) -> None:
        """The execution buffer must gather the version's weights again.

        The buffer's copy would still be valid, but then no figure would show the cost of a gather.
        """
        version = self._versions.get(ref)
        if version is not None:
            self._issuer.now(partial(self._execution_buffer.invalidate_if, version.number))

    # -- phases, on the loop's thread ---------------------------------------------------------------------------------

    def begin(self, phase: Phase, job: Job) -> Done | None:
        """Starts a phase. Returns its outcome if it is over already; None: `finished` will be called."""
        now = time.monotonic()
        if self._reporter.hangs:
            return Done(now, now, 0.0, ActionCode.DEVICE_LOST, "the device hangs")
        self._reporter.begun(phase, job)
        done = self._begin(phase, job, now)
        if done is not None:
            self._reporter.over(job)
        return done

    def _begin(self, phase: Phase, job: Job, now: float) -> Done | None:
        ref = job.action.ref
        if phase is Phase.OUTPUT:
            held: InferResources = job.slot
            assert held.output is not None
            self._watchers[Phase.OUTPUT].watch(held.output[1], partial(self._output_reached, job, held), ref)
            return None
        version = self._versions.get(ref)
        if version is None:
            return Done(now, now, 0.0, ActionCode.UNKNOWN_MODEL)
        if phase is Phase.INPUT:
            return self._begin_input(job, version, now)
        if phase is Phase.LOAD:
            self._issue(Phase.LOAD, job, partial(self._loader.order, Loading(job, version)))
        else:
            work = partial(self._guarded, phase, job, partial(self._issue_exec, job, version, now))
            self._issuer.at(job.action.earliest_s, work)
        return None

    def release(self, job: Job) -> None:
        """The job's slot is free."""
        held, job.slot = job.slot, None
        if held is not None:
            self._versions.ring.give(held.slot)

    def _begin_input(self, job: Job, version: CudaVersion, now: float) -> Done | None:
        action = job.action
        assert isinstance(action, wire.Infer)
        fixed = version.executable.batches.holding(action.batch, action.extents)
        if fixed is None:
            return Done(now, now, 0.0, ActionCode.NO_MEMORY if action.extents else ActionCode.BAD_BATCH)
        slot = self._versions.ring.take()
        if slot is None:
            return Done(now, now, 0.0, ActionCode.NO_SLOTS)
        layout = version.executable.layouts[fixed]
        job.slot = InferResources(slot, version, fixed, layout)
        if layout.inputs_end > FILL_BYTES_MAX:
            self._helper.do(partial(self._fill_there, job, job.slot, now))
            return None
        return self._fill(job, job.slot, now)

    def _fill(self, job: Job, held: InferResources, begin_s: float) -> Done | None:
        try:
            fill(held.slot, held.layout, job, held.version.padding, held.version.open)
        except WrongBytes as error:
            return Done(begin_s, begin_s, 0.0, ActionCode.BAD_INPUT, str(error))
        self._issue(Phase.INPUT, job, partial(self._issue_input, job, held))
        return None

    # -- on the helper's thread ---------------------------------------------------------------------------------------

    def _fill_there(self, job: Job, held: InferResources, begin_s: float) -> None:
        done = self._fill(job, held, begin_s)
        if done is not None:
            self._reporter.tell(Phase.INPUT, job, done)

    def _tick(self) -> None:
        self._clock_mhz = self._driver.clock_mhz()

    # -- on the issuing thread ----------------------------------------------------------------------------------------

    def _issue(self, phase: Phase, job: Job, work: Work) -> None:
        self._issuer.now(partial(self._guarded, phase, job, work))

    def _guarded(self, phase: Phase, job: Job, work: Work) -> None:
        try:
            work()
        # whatever the device raises is the outcome of this action, and must not end the thread
        except Exception as error:
            self._execution_buffer.invalidate()
            now = time.monotonic()
            self._reporter.suspect()
            self._reporter.tell(phase, job, Done(now, now, 0.0, ActionCode.DEVICE_ERROR, message_of(error)))

    def _issue_input(self, job: Job, held: InferResources) -> None:
        stream, slot, size = self._streams[Phase.INPUT], held.slot, held.layout.inputs_end
        with self._timed.lend(2) as (begin, end):
            stream.record(begin)
            stream.run(partial(_copy, slot.there[:size], slot.here[:size]))
            stream.record(end)
            reached = partial(self._input_reached, job, begin, end)
            self._watchers[Phase.INPUT].watch(end, reached, job.action.ref)

    def _issue_exec(self, job: Job, version: CudaVersion, given_s: float) -> None:
        action, held, now = job.action, job.slot, time.monotonic()
        assert isinstance(held, InferResources)
        if self._lane.start_s(now) > action.latest_s:
            self._reporter.tell(Phase.EXEC, job, Done(now, now, 0.0, ActionCode.LATE))
            return
        if held.version is not version:
            self._reporter.tell(Phase.EXEC, job, Done(now, now, 0.0, ActionCode.UNKNOWN_MODEL))
            return
        self.figures.late_s.append(now - max(action.earliest_s, given_s))
        gather = version.package.image_bytes > 0 and self._execution_buffer.switch_to(version.number)
        execute, output = self._streams[Phase.EXEC], self._streams[Phase.OUTPUT]
        with self._timed.lend(4) as (begin, end, output_begin, output_end):
            execute.record(begin)
            execute.run(partial(self._execute, held, job.pages if gather else ()))
            execute.record(end)
            output.wait(end)
            output.record(output_begin)
            output.run(partial(_copy_outputs, held))
            output.record(output_end)
            held.output = (output_begin, output_end)
            issued_s = None if self._lane.busy else now  # the stream is idle, so it starts now
            self._lane.issued(now, action.expected_s)
            self._executed_s = now
            self.figures.gathers += gather
            reached = partial(self._exec_reached, job, held, issued_s, gather, begin, end)
            self._watchers[Phase.EXEC].watch(end, reached, action.ref, action.expected_s)

    def _execute(self, held: InferResources, pages: Sequence[int]) -> None:
        executable, layout, there = held.version.executable, held.layout, held.slot.there
        _copy(executable.static[: layout.inputs_end], there[: layout.inputs_end])
        if pages:
            memory = self._memory
            self._driver.gather(memory.arena_pages, memory.buffer_pages, memory.tables[pages[0], : len(pages)])
        executable.replays[held.fixed]()
        _copy(there[layout.outputs_at : layout.end], executable.static[layout.outputs_at : layout.end])

    def _idle(self) -> None:
        now = time.monotonic()
        if self._warm is not None and not self._lane.busy and now - self._executed_s < WARM_FOR_S:
            try:
                self._streams[Phase.EXEC].run(self._warm)
            except RuntimeError:
                self._warm = None
                self._reporter.suspect()
                return
            self.figures.kept_warm += 1

    # -- on the threads that wait -------------------------------------------------------------------------------------

    def _input_reached(self, job: Job, begin: Event, end: Event, error: Exception | None) -> None:
        done = self._done(begin, end, error)
        self._timed.give(begin, end)
        self._reporter.tell(Phase.INPUT, job, done)

    def _exec_reached(
        self,
        job: Job,
        held: InferResources,
        issued_s: float | None,
        gathered: bool,
        begin: Event,
        end: Event,
        error: Exception | None,
    ) -> None:
        done = self._done(begin, end, error)
        done.gathered, done.clock_mhz = gathered, self._clock_mhz
        if issued_s is not None:
            done.begin_s = issued_s
        self._timed.give(begin, end)
        self._issuer.now(partial(self._lane.ended, done.end_s))
        if done.code == OK:
            self._reporter.tell(Phase.EXEC, job, done)
            return
        self._issuer.now(self._execution_buffer.invalidate)
        assert held.output is not None  # its copy still writes to the slot, so the job must not end before
        reached = partial(self._failed_reached, job, held, done)
        self._watchers[Phase.OUTPUT].watch(held.output[1], reached, job.action.ref)

    def _failed_reached(self, job: Job, held: InferResources, done: Done, error: Exception | None) -> None:
        assert held.output is not None
        self._timed.give(*held.output)
        self._reporter.tell(Phase.EXEC, job, done)

    def _output_reached(self, job: Job, held: InferResources, error: Exception | None) -> None:
        assert held.output is not None
        assert isinstance(job.action, wire.Infer)
        done = self._done(*held.output, error)
        self._timed.give(*held.output)
        if held.version.open is None:
            job.outputs = outputs_of(held.slot, held.layout, job.action.batch)
        elif done.code == OK:
            done = self._cut(job, job.action, held, done)
        self._reporter.tell(Phase.OUTPUT, job, done)

    def _cut(self, job: Job, action: wire.Infer, held: InferResources, done: Done) -> Done:
        """What each part gets is cut out of the slot. Returns the outcome."""
        try:
            job.cut = portions_of(held.slot, held.layout, action, held.version.package.spec)
        except Indivisible as error:
            done.code, done.message = error.code, f"{action.ref}: {error}"
        return done

    def _done(self, begin: Event, end: Event, error: Exception | None) -> Done:
        done, error = done_of(self._driver, begin, end, time.monotonic(), error)
        if error is not None:
            self._reporter.suspect()
        return done


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)


def _copy_outputs(held: InferResources) -> None:
    layout, slot = held.layout, held.slot
    _copy(slot.here[layout.outputs_at : layout.end], slot.there[layout.outputs_at : layout.end])
