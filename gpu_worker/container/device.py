"""The container as a device: one version, always resident; EXEC runs user code in a process of its own."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from gpu_worker.container.keeper import ChildKeeper
from gpu_worker.container.layouts import SLOTS, lay_out
from gpu_worker.container.open_slots import OpenSlots
from gpu_worker.container.process import NO_MESSAGE
from gpu_worker.container.promises import content_of, model_spec
from gpu_worker.container.slots import SharedSlots
from gpu_worker.container.specs import ContainerError, ContainerOptions
from gpu_worker.core.jobs import Done, Job, Phase
from gpu_worker.devices.base import Finished, Lost, Traits
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.codes import ActionCode
from mesh.process.timers import Alarm

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

    def __init__(self, options: ContainerOptions, keeper: ChildKeeper, ready: dict[str, Any]) -> None:
        """The keeper's process, which says `ready`, serves. Raises: ContainerError, if nothing can be served so."""
        self.options = options
        self.spec = model_spec(options, ready["inputs"], ready["outputs"], ready["declared"])
        self._layout = lay_out(self.spec)
        self.code: str = ready["code"]
        self.content = content_of(self.code, self.spec)
        kind = OpenSlots if self._layout.open else SharedSlots
        self._slots: OpenSlots | SharedSlots = kind(self.spec, self._layout)
        self.info = _info(options.ref)
        self.depth = {Phase.LOAD: 1, Phase.INPUT: SLOTS, Phase.EXEC: 1, Phase.OUTPUT: SLOTS}
        self.measured = False
        self.ahead_s = 0.0
        self._running: Job | None = None  # job that runs in the child
        self._overdue_s: float | None = None  # the job counts as hung from then on
        self._faults: tuple[str, ...] = ()  # why the code cannot serve now
        self._outlived = False  # its code is not the announced one any more: it is not started again
        self._logged: tuple[int, int] = (0, 0)  # (second, errors logged in it)
        self._finished: Finished | None = None
        self._serving_changed: ServingChanged | None = None
        self._outdated: Callable[[str], None] | None = None
        self._alarm: Alarm | None = None
        self._closed = False
        self._keeper = keeper
        keeper.hand_to(self)
        keeper.serve(self._slots.fd, self._layout)

    @property
    def pid(self) -> int | None:
        """The process that the code runs in; None while there is none, before it is started again."""
        return self._keeper.pid

    def claimed(self, version: str) -> None:
        """The code is this version of the model. Call it before the device is attached."""
        self.options = replace(self.options, version=version)
        self.info = _info(self.options.ref)

    def attach(self, finished: Finished, lost: Lost) -> None:
        """Phases are reported to `finished` from now on."""
        self._finished = finished
        self._alarm = Alarm(asyncio.get_running_loop(), self._overdue)

    def on_change(self, serving_changed: ServingChanged, outdated: Callable[[str], None]) -> None:
        """`serving_changed` is called when the code has died or serves again; now, if it is dead.

        `outdated` is called with the reason if the container must end.
        """
        self._serving_changed = serving_changed
        self._outdated = outdated
        if self._faults:
            serving_changed(self._faults)
        if self._outlived:
            outdated(OTHER_CODE)

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
        if self._alarm is not None:
            self._alarm.close()
        self._keeper.close()
        self._slots.close()

    # -- phases -------------------------------------------------------------------------------------------------------

    def _input(self, job: Job) -> Done:
        begin_s = time.monotonic()
        if not self._slots.take(job):
            return Done(begin_s, begin_s, 0.0, ActionCode.NO_SLOTS)
        refusal = self._slots.fill(job)
        if refusal is not None:
            return Done(begin_s, begin_s, 0.0, *refusal)
        end_s = time.monotonic()
        return Done(begin_s, end_s, end_s - begin_s)

    def _exec(self, job: Job) -> Done | None:
        action = job.action
        assert isinstance(action, wire.Infer)
        now = time.monotonic()
        if not self._keeper.run(action.action, action.batch, *self._slots.order(job)):
            return Done(now, now, 0.0, ActionCode.RESTARTING)
        self._running = job
        assert self._alarm is not None
        cold_s = 0.0 if self._keeper.warm else action.cold_s
        self._overdue_s = action.overdue_s + cold_s if action.overdue_s else None
        self._alarm.by(self._overdue_s)
        return None

    def _output(self, job: Job) -> Done:
        begin_s = time.monotonic()
        refusal = self._slots.copy_outputs(job)
        if refusal is not None:
            return Done(begin_s, begin_s, 0.0, *refusal)
        end_s = time.monotonic()
        return Done(begin_s, end_s, end_s - begin_s)

    # -- the child ----------------------------------------------------------------------------------------------------

    def ready(self, message: dict[str, Any]) -> None:
        """A process is there again: it serves, if its code is the announced one."""
        if not self._announced(message):
            self._outlived = True
            self._keeper.end(OTHER_CODE)
            self._keeper.close()
            if self._outdated is not None:
                self._outdated(OTHER_CODE)
            return
        self._keeper.serve(self._slots.fd, self._layout)
        log.info("container_restarted", ref=self.options.ref, pid=self.pid)
        self._tell(())

    def ran(self, message: dict[str, Any]) -> None:
        """The batch has ended."""
        job, self._running = self._running, None
        if job is None:  # the code sent that by itself
            self._keeper.end(NO_MESSAGE)
            return
        assert self._finished is not None
        error = message["error"]
        begin_s, end_s = message["begin"], message["end"]
        if error is not None:
            self._log_error(error, message["trace"])
        failed = ActionCode.BAD_INPUT if message.get("refused") else ActionCode.MODEL_ERROR
        code = ActionCode.OK if error is None else failed
        if "described" in message:
            first, size = message["described"]
            self._slots.ended(job, (first, size))
        self._finished(Phase.EXEC, job, Done(begin_s, end_s, end_s - begin_s, code, error or ""))

    def died(self, why: str) -> None:
        """The controller hears why nothing can be served, and gives the batch to others."""
        self._tell((why,))
        job, self._running = self._running, None
        if self._alarm is not None:
            self._alarm.set(None)
        if job is not None:
            assert self._finished is not None
            now = time.monotonic()
            self._finished(Phase.EXEC, job, Done(now, now, 0.0, ActionCode.CONTAINER_DIED, why))

    def _tell(self, faults: tuple[str, ...]) -> None:
        self._faults = faults
        if self._serving_changed is not None:
            self._serving_changed(faults)

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
        self._keeper.end(f"its code hung: a batch of {getattr(action, 'batch', 0)} rows did not return")

    def _announced(self, message: dict[str, Any]) -> bool:
        """Returns whether the code is still the announced one, which clients, caches and other replicas know.

        Its file may have changed.
        """
        try:
            spec = model_spec(self.options, message["inputs"], message["outputs"], message["declared"])
        except ContainerError:
            return False
        return spec == self.spec and message["code"] == self.code


def _info(ref: str) -> wire.DeviceInfo:
    name = f"container:{ref}/{os.getpid()}"
    return wire.DeviceInfo(name=name, kind="container", pages=1, page_bytes=1, any_batch=True, container=ref)
