"""Workers on virtual time: the production lanes and pump, on a device that takes as long as it is told to. Pure."""

import math
from collections.abc import Callable
from typing import Protocol, assert_never

from gearmesh.simulation.timeline import VirtualTime
from gpu_worker.core.cutting import hollow
from gpu_worker.core.emulation import Emulator
from gpu_worker.core.jobs import Done, Job, Phase, Report
from gpu_worker.core.lanes import Lanes
from gpu_worker.core.obeyed import ObeyedOrders
from gpu_worker.core.pages import PageTable
from gpu_worker.core.pump import Pump
from mesh import wire
from mesh.codes import ActionCode

OK = ActionCode.OK
DEPTH = {Phase.LOAD: 2, Phase.INPUT: 64, Phase.EXEC: 2, Phase.OUTPUT: 64}
FromWorker = wire.ActionResult | wire.Prepared
Duration = Callable[[Phase, Job], float]  # seconds of a LOAD or an EXEC


class SimVersions(Protocol):
    """What a simulated worker serves: the part of `gpu_worker.versions.Versions` that a simulation needs."""

    def attach(self, pump: Pump, tell: Callable[[wire.Prepared], None]) -> None:
        """The worker starts, or starts again."""

    def reports(self) -> tuple[wire.Prepared, ...]:
        """The last report of each version that is prepared: part of the worker's hello."""

    def prepare(self, ref: str, content: str) -> None:
        """The controller asks for a version, with this content if one is named. It will be told how that went."""

    def forget(self, ref: str) -> None:
        """The controller does not want the version any more. The worker itself tells the lanes."""

    def executed(self, action: wire.Load | wire.Infer, duration_s: float) -> None:
        """An action ended well."""


class SimWorker:
    """One worker. What it has to say goes to `say`, and each batch with outputs for clients to `answer`."""

    def __init__(
        self,
        name: str,
        timeline: VirtualTime,
        pages: int,
        versions: SimVersions,
        duration_s: Duration,
        *,
        offset_s: float = 0.0,
        checked: bool = False,
        any_batch: bool = True,
        container: str = "",
    ) -> None:
        """`offset_s`: its clock minus the timeline's. `checked`: what the device is told to do is checked, too.

        `any_batch`: it computes any rows and extents; False: those that were measured only.
        `container`: the version that it serves as a container; empty: it has an arena.
        """
        self.name = name
        self.pages = pages
        self.versions = versions
        self.offset_s = offset_s
        self.say: Callable[[SimWorker, FromWorker], None] = _nobody
        self.answer: Callable[[SimWorker, wire.Infer], None] = _nobody
        self.linked = False  # with the controller
        self.link_in = 0  # number of the link from there; what was sent on an earlier one is lost
        self.link_out = 0  # and of the link to there
        self.hung = False  # nothing ends, and nothing is begun that waits for its time
        self.losing = 0  # so many of the next results are lost on their way to the controller
        self.fault: Callable[[wire.Infer], ActionCode] = _well  # the code with which this EXEC ends
        self.epoch = 1  # of the controller that is obeyed
        self._timeline = timeline
        self._duration_s = duration_s
        self._checked = checked
        self._any_batch = any_batch
        self._container = container
        self._clock_s = -math.inf
        self._lives = 0
        self.renew()

    def renew(self) -> None:
        """The worker is as if just started, and its arena is empty."""
        self._lives += 1
        self.lanes = Lanes(PageTable(self.pages), dict(DEPTH))
        self.lanes.welcome(self.epoch)
        self.pump = Pump(self.lanes, self, self._reported)
        self._orders = ObeyedOrders()
        self._emulator = Emulator(self._duration_s)
        self._contents = ["nothing"] * self.pages  # by page: whose weights are there
        self.versions.attach(self.pump, lambda report: self.say(self, self._orders.named(report)))

    def welcome(self, epoch: int) -> None:
        """A controller took over; what its predecessor ordered and has not begun is dropped."""
        self.epoch = epoch
        self.pump.welcome(epoch)

    def hello(self, page_bytes: int) -> wire.WorkerHello:
        """How the worker introduces itself."""
        info = wire.DeviceInfo(
            name=self.name, kind="simulated", pages=self.pages, page_bytes=page_bytes, any_batch=self._any_batch
        )
        free_pages, resident = self.lanes.table.free, self.lanes.table.resident()
        if self._container:
            info = wire.DeviceInfo(
                name=self.name, kind="container", pages=1, page_bytes=1, any_batch=True, container=self._container
            )
            free_pages, resident = 0, (self._container,)
        return wire.WorkerHello(
            member=self.name,
            host="simulated",
            device=info,
            free_pages=free_pages,
            resident=resident,
            prepared=tuple(map(self._orders.named, self.versions.reports())),
        )

    def take(self, message: wire.FromControllerToWorker, epoch: int) -> None:
        """A message of the controller has arrived."""
        match message:
            case wire.Infer() | wire.Load() | wire.Unload():
                self.pump.take(message, epoch, now=self._now_s())
                self._arm()
            case wire.Revoke():
                self.pump.revoke(message.action, epoch, now=self._now_s())
                self._arm()
            case wire.Prepare():
                self._orders.obey(message)
                self.versions.prepare(message.ref, message.content)
            case wire.Forget():
                self._orders.obey(message)
                self.versions.forget(message.ref)
                self.pump.forget(message.ref, now=self._now_s())
                self._arm()
            case wire.Welcome() | wire.Frontends() | wire.Introduce() | wire.Heartbeat() | wire.Goodbye():
                pass  # the mesh does what these would lead to
            case _:
                assert_never(message)

    def resume(self) -> None:
        """The worker does not hang any more; what has ended meanwhile is reported."""
        self.hung = False
        self._wake(self._lives, self._now_s())

    def check(self) -> None:
        """Every invariant holds."""
        self.lanes.check()

    # -- time ---------------------------------------------------------------------------------------------------------

    def _now_s(self) -> float:
        """Its own clock, which never goes back, whatever rounding makes of the offset."""
        self._clock_s = max(self._clock_s, self._timeline.now + self.offset_s)
        return self._clock_s

    def _arm(self) -> None:
        life, timeline = self._lives, self._timeline
        for wake_s in (self._emulator.wake_at(), self.lanes.wake_at()):
            if wake_s is not None:
                at_s = max(wake_s - self.offset_s, timeline.now)
                timeline.at(at_s, lambda wake_s=wake_s: self._wake(life, wake_s))  # type: ignore[misc]

    def _wake(self, life: int, wake_s: float) -> None:
        """The clock shows `wake_s`, or later. `life`: for whom this was planned."""
        if self._lives != life or self.hung:
            return
        self._clock_s = max(self._clock_s, wake_s)
        now = self._now_s()
        for phase, job, done in self._emulator.due(now):
            self._ended(phase, job)
            if isinstance(job.action, wire.Infer):
                done.code = self.fault(job.action)
            self.pump.finished(phase, job, done, now=now)
            self._arm()
        if self.pump.wake(now=now):
            self._arm()

    # -- the device ---------------------------------------------------------------------------------------------------

    def begin(self, phase: Phase, job: Job) -> Done | None:
        """The phase has started. Returns how it went if it is over already; None: its end comes by `wake`."""
        now = self._now_s()
        if self._checked and phase in (Phase.LOAD, Phase.EXEC):
            action = job.action
            assert action.earliest_s <= now <= action.latest_s, f"{phase} of {action} was started at {now}"
        done = self._emulator.begin(phase, job, now)
        if phase is Phase.OUTPUT and job.spec is not None and isinstance(job.action, wire.Infer):
            job.outputs, job.output_shapes = hollow(job.spec, job.action.batch, job.action.extents)
        if self._checked and done is None:
            if phase is Phase.EXEC:
                self._check_weights(job)
            for page in job.pages if phase is Phase.LOAD else ():
                self._contents[page] = f"half of {job.action.ref}"
        return done

    def release(self, job: Job) -> None:
        """Nothing changes: jobs hold nothing here."""

    def unloaded(self, ref: str) -> None:
        """Nothing changes: there are no views of pages here."""

    def _ended(self, phase: Phase, job: Job) -> None:
        if not self._checked:
            return
        if phase is Phase.EXEC:
            self._check_weights(job)
        for page in job.pages if phase is Phase.LOAD else ():
            self._contents[page] = job.action.ref

    def _check_weights(self, job: Job) -> None:
        ref = job.action.ref
        read = {self._contents[page] for page in job.pages}
        assert read == {ref}, f"{ref} reads {read}"

    def _reported(self, report: Report) -> None:
        result, job = report.result, report.job
        well = job is not None and result.code == OK
        if job is not None and well and isinstance(job.action, wire.Infer) and job.action.parts:
            self.answer(self, job.action)
        if self.losing:
            self.losing -= 1
        else:
            self.say(self, result)
        if job is not None and well and result.duration_s is not None:
            self.versions.executed(job.action, result.duration_s)


def _well(action: wire.Infer) -> ActionCode:
    """Every EXEC ends well, if nothing else is said."""
    return OK


def _nobody(worker: SimWorker, message: object) -> None:
    """A worker that belongs to no mesh has nobody to tell."""
