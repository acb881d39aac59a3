"""The container as a device: one version, always resident; EXEC runs user code in a process of its own."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from gpu_worker.container.process import ChildProcess
from gpu_worker.container.slots import SharedSlots
from gpu_worker.container.specs import SLOTS, ContainerError, ContainerOptions, content_of, lay_out, model_spec
from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.base import Finished, Lost, Traits
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.codes import ActionCode
from mesh.process.timers import Alarm

BACKOFF_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)  # delays before the code is restarted, by the number of short lives in a row
HEALTHY_S = 5.0
WATCH_S = 0.5  # between checks of the child's memory
ERRORS_LOGGED_PER_S = 2
log = structlog.get_logger("container")
# called with (the reason why it cannot serve,), or with () once it can serve again
ServingChanged = Callable[[tuple[str, ...]], None]
OTHER_CODE = (
    "its code has changed since it was started, and is not what was announced any more: "
    "the container ends, and is to be started again"
)


class ContainerDevice:
    """A Device whose code is restarted when it dies; who asks for it is told of the death and of the restart."""

    def __init__(self, options: ContainerOptions, *, start_s: float) -> None:
        """The code is imported and ready. Raises: ContainerError."""
        self.options = options
        self._start_s = start_s
        self._child: ChildProcess | None = ChildProcess(options)
        ready = self._child.wait_ready(start_s)
        try:
            self.spec = model_spec(options, ready["inputs"], ready["outputs"])
            self._layout = lay_out(self.spec)
        except ContainerError:
            self._child.end()
            raise
        self.code: str = ready["code"]
        self.content = content_of(self.code, self.spec)
        self._slots = SharedSlots(self.spec, self._layout)
        self._child.share(self._slots.fd, self._layout)
        self.info = _info(options.ref)
        self.depth = {Phase.LOAD: 1, Phase.INPUT: SLOTS, Phase.EXEC: 1, Phase.OUTPUT: SLOTS}
        self.measured = False
        self.ahead_s = 0.0
        self._running: Job | None = None  # job that runs in the child
        self._overdue_s: float | None = None  # the job counts as hung from then on
        self._why = ""  # why the child is being ended
        self._outlived = False  # its code is not the announced one any more: it is not started again
        self._lives = 0  # short lives in a row
        self._born_s = time.monotonic()
        self._logged: tuple[int, int] = (0, 0)  # (second, errors logged in it)
        self._memory_max = (options.memory_mb << 20) or _half_of_memory()
        self._finished: Finished | None = None
        self._serving_changed: ServingChanged | None = None
        self._outdated: Callable[[str], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: Alarm | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process that the code runs in; None while there is none, before it is started again."""
        return self._child.pid if self._child is not None else None

    def claimed(self, version: str) -> None:
        """The code is this version of the model. Call it before the device is attached."""
        self.options = replace(self.options, version=version)
        self.info = _info(self.options.ref)

    def attach(self, finished: Finished, lost: Lost) -> None:
        """Phases are reported to `finished` from now on, and the child's memory is watched."""
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._overdue)
        self._listen()
        self._later("watch", WATCH_S, self._watch_memory)

    def on_change(self, serving_changed: ServingChanged, outdated: Callable[[str], None]) -> None:
        """`serving_changed` is called when the code has died or serves again.

        `outdated` is called with the reason if the container must end.
        """
        self._serving_changed = serving_changed
        self._outdated = outdated

    def prepare(self, package: Package) -> wire.Profile | None:
        """Never called: the only version was prepared at the start."""
        raise AssertionError(package.ref)

    def traits(self, ref: str) -> Traits:
        """Returns the traits of the only version, which is always prepared."""
        return Traits("container")

    def forget(self, ref: str) -> None:
        """Does nothing: the only version stays, because it may be wanted again."""

    def unloaded(self, ref: str) -> None:
        """Does nothing: a container has no pages."""

    def begin(self, phase: Phase, job: Job) -> Done | None:
        """Starts a phase. Returns its outcome if it is over; None for an EXEC that runs in the child."""
        if phase is Phase.INPUT:
            return self._input(job)
        if phase is Phase.OUTPUT:
            return self._output(job)
        return self._exec(job)

    def release(self, job: Job) -> None:
        """The job's slot is free."""
        self._slots.give(job)

    def close(self) -> None:
        """The child has ended, and timers and shared memory are released."""
        if self._closed:
            return
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        if self._alarm is not None:
            self._alarm.close()
        if self._child is not None:
            self._unlisten()
            self._child.end()
        self._slots.close()

    # -- phases -------------------------------------------------------------------------------------------------------

    def _input(self, job: Job) -> Done:
        begin_s = time.monotonic()
        if not self._slots.take(job):
            return Done(begin_s, begin_s, 0.0, ActionCode.NO_SLOTS)
        fault = self._slots.fill(job)
        if fault:
            return Done(begin_s, begin_s, 0.0, ActionCode.BAD_INPUT, fault)
        end_s = time.monotonic()
        return Done(begin_s, end_s, end_s - begin_s)

    def _exec(self, job: Job) -> Done | None:
        action = job.action
        assert isinstance(action, wire.Infer)
        now = time.monotonic()
        child = self._child
        if child is None or child.ready is None or self._why or not child.run(action.action, action.batch, job.slot):
            return Done(now, now, 0.0, ActionCode.RESTARTING)
        self._running = job
        assert self._alarm is not None
        self._overdue_s = action.overdue_s + (0.0 if child.warm else action.cold_s) if action.overdue_s else None
        self._alarm.by(self._overdue_s)
        return None

    def _output(self, job: Job) -> Done:
        begin_s = time.monotonic()
        self._slots.copy_outputs(job)
        end_s = time.monotonic()
        return Done(begin_s, end_s, end_s - begin_s)

    # -- the child ----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        assert self._loop is not None
        assert self._child is not None
        self._loop.add_reader(self._child.control.fileno(), self._readable)
        self._loop.add_reader(self._child.exits, self._exited)

    def _unlisten(self) -> None:
        if self._loop is not None and self._child is not None:
            self._loop.remove_reader(self._child.control.fileno())
            self._loop.remove_reader(self._child.exits)

    def _readable(self) -> None:
        child = self._child
        while child is not None and child is self._child:
            message = child.read()
            if message is None:
                return
            if not message:
                self._died()
            elif child.ready is None:
                self._started(message)
            else:
                self._ran(message)

    def _exited(self) -> None:
        """The process is gone. A fork of it may hold its end of the socket, which then never closes."""
        child = self._child
        self._readable()  # messages that it sent before
        if child is not None and child is self._child:
            self._died()

    def _ran(self, message: dict[str, Any]) -> None:
        job, self._running = self._running, None
        assert job is not None
        assert self._finished is not None
        error = message["error"]
        begin_s, end_s = message["begin"], message["end"]
        if error is not None:
            self._log_error(error, message["trace"])
        code = ActionCode.OK if error is None else ActionCode.MODEL_ERROR
        if error is None and self._child is not None:
            self._child.warm = True
        self._finished(Phase.EXEC, job, Done(begin_s, end_s, end_s - begin_s, code, error or ""))

    def _log_error(self, error: str, trace: str) -> None:
        second = int(time.monotonic())
        count = self._logged[1] + 1 if self._logged[0] == second else 1
        self._logged = (second, count)
        if count <= ERRORS_LOGGED_PER_S:
            log.warning("model_error", ref=self.options.ref, error=error, trace=trace)

    def _overdue(self, now: float) -> None:
        """A batch has run far past all its deadlines, or the alarm was set for a batch that has ended since."""
        if self._running is None or self._overdue_s is None:
            return
        if now < self._overdue_s:
            assert self._alarm is not None
            self._alarm.by(self._overdue_s)
            return
        action = self._running.action
        self._end(f"its code hung: a batch of {getattr(action, 'batch', 0)} rows did not return")

    def _watch_memory(self) -> None:
        self._later("watch", WATCH_S, self._watch_memory)
        if self._child is None or self._why:
            return
        held = self._child.resident_bytes()
        if held > self._memory_max:
            limit = self._memory_max >> 20
            self._end(f"its code held {held >> 20} MiB; the limit is {limit} MiB (--memory-mb)")

    def _end(self, why: str) -> None:
        """The child is ended; the controller gives its work to others."""
        assert self._child is not None
        self._why = why
        self._died()

    def _died(self) -> None:
        assert self._child is not None
        assert self._serving_changed is not None
        self._unlisten()
        how = self._child.end()
        why = self._why or f"its code ended: {how}"
        lived_s = time.monotonic() - self._born_s
        log.warning("container_died", ref=self.options.ref, why=why, how=how, printed=self._child.tail)
        self._child, self._why = None, why
        slow = self._timers.pop("slow", None)
        if slow is not None:
            slow.cancel()
        self._lives = 0 if lived_s > HEALTHY_S else self._lives + 1
        self._serving_changed((why,))
        job, self._running = self._running, None
        if self._alarm is not None:
            self._alarm.set(None)
        if job is not None:
            assert self._finished is not None
            now = time.monotonic()
            self._finished(Phase.EXEC, job, Done(now, now, 0.0, ActionCode.CONTAINER_DIED, why))
        if not self._closed and not self._outlived:
            self._later("start", BACKOFF_S[min(self._lives, len(BACKOFF_S) - 1)], self._start_again)

    def _start_again(self) -> None:
        self._born_s = time.monotonic()
        try:
            self._child = ChildProcess(self.options)
        except ContainerError as error:
            log.error("not_started", ref=self.options.ref, error=str(error))
            self._lives += 1
            self._later("start", BACKOFF_S[-1], self._start_again)
            return
        self._child.control.setblocking(False)
        self._why = ""
        self._listen()
        self._later("slow", self._start_s, self._too_slow)

    def _started(self, message: dict[str, Any]) -> None:
        """Handles the child's first message after a restart."""
        assert self._child is not None
        assert self._serving_changed is not None
        assert self._outdated is not None
        self._timers.pop("slow").cancel()
        if message["op"] == "error":
            self._end(message["text"].strip().rpartition("\n")[2])
            return
        if not self._announced(message):
            self._outlived = True
            self._end(OTHER_CODE)
            self._outdated(OTHER_CODE)
            return
        self._child.ready = message
        self._child.share(self._slots.fd, self._layout)
        log.info("container_restarted", ref=self.options.ref, pid=self._child.pid)
        self._serving_changed(())

    def _announced(self, message: dict[str, Any]) -> bool:
        """Returns whether the code is still the announced one, which clients, caches and other replicas know.

        Its file may have changed.
        """
        try:
            spec = model_spec(self.options, message["inputs"], message["outputs"])
        except ContainerError:
            return False
        return spec == self.spec and message["code"] == self.code

    def _too_slow(self) -> None:
        if self._child is not None and self._child.ready is None:
            self._end(f"its code was not ready after {self._start_s:g} s (--start-s)")

    def _later(self, name: str, delay_s: float, call: Callable[[], None]) -> None:
        assert self._loop is not None
        self._timers[name] = self._loop.call_later(delay_s, call)


def _info(ref: str) -> wire.DeviceInfo:
    name = f"container:{ref}/{os.getpid()}"
    return wire.DeviceInfo(name=name, kind="container", pages=1, page_bytes=1, any_batch=True, container=ref)


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
