"""The worker's shell: it obeys one controller, drives one device, and sends outputs straight to the frontends."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import assert_never

import msgspec
import structlog

from gpu_worker import tuning
from gpu_worker.answering import OutputLinks
from gpu_worker.core.jobs import Done, Job, Phase, Report
from gpu_worker.core.lanes import Lanes
from gpu_worker.core.obeyed import ObeyedOrders
from gpu_worker.core.pages import PageTable
from gpu_worker.core.pump import Pump
from gpu_worker.devices.base import Device
from gpu_worker.inputs import KeptInputs
from gpu_worker.versions import Versions
from mesh import wire
from mesh.addresses import address_fault
from mesh.codes import ActionCode, ActionKind
from mesh.doubling import Doubling
from mesh.net.links import KEY_AGAIN_S, KEY_LOSSES, Link
from mesh.net.registrar import Registrar
from mesh.net.transport import Mail
from mesh.process.ids import host_id, member_id
from mesh.process.runtime import Runtime
from mesh.process.segments import SegmentReader, SegmentWriter
from mesh.process.timers import Alarm
from mesh.wire import Buffer

OK, CONTENT_CHANGED, NO_MEMORY = ActionCode.OK, ActionCode.CONTENT_CHANGED, ActionCode.NO_MEMORY
INFER = ActionKind.INFER
DEVICE_LOST = 3  # exit code: the device can do nothing more for this process, but perhaps for the next one
CALL_AGAIN_S, CALL_AGAIN_S_MAX = 0.05, 0.5  # after the controller was lost: the first pause, and the longest
TIDY_S = 5.0  # between two looks at shared memory that nobody uses
CONTROLLER = msgspec.msgpack.Decoder(wire.Envelope[wire.FromControllerToWorker])
log = structlog.get_logger("worker")


class WorkerService:
    """One device, one controller at a time, any number of frontends."""

    def __init__(
        self,
        runtime: Runtime,
        device: Device,
        versions: Versions,
        refused: Callable[[wire.CallReply], None] | None = None,
        welcomed: Callable[[], None] | None = None,
        broker: tuple[str, ...] = (),
        *,
        reader: SegmentReader | None = None,
        writer: SegmentWriter | None = None,
    ) -> None:
        """`versions`: what is served; `refused` is told if the broker does not want what the worker offers.

        `broker`: where to call the broker, if not where the settings say. `welcomed` is called whenever a controller
        has taken the device over. `reader`, `writer`: of memory that the processes of this machine share, in place of
        its own.
        """
        self.settings = runtime.settings
        self.versions = versions
        self._end = runtime.end
        self._transport = runtime.transport
        self._hub = runtime.hub
        self._device = device
        lanes = Lanes(PageTable(device.info.pages), device.depth, device.ahead_s)
        self._member = wire.Member(
            id=member_id("gpu_worker"), role="gpu_worker", host=host_id(), pid=os.getpid(), offer=versions.offer
        )
        self._registrar = Registrar(
            runtime.transport, broker or (runtime.settings.broker_address,), self._member, self._table_changed,
            self._replied,
        )  # fmt: skip
        self._refused = refused
        self._on_welcome = welcomed
        self._answering = OutputLinks(
            runtime.transport, self._member.id, device.info.name,
            writer if writer is not None else SegmentWriter(runtime.settings.shared_mb << 20),
        )  # fmt: skip
        self._inputs = KeptInputs(
            self._answering, runtime.hub.schedule_turn, reader if reader is not None else SegmentReader()
        )
        self._answering.tell(self)
        self._pump = Pump(lanes, device, self._report, self._inputs)
        self._controller: Link[wire.FromControllerToWorker, wire.ToController] | None = None
        self._controller_id = ""  # for whom the link was opened, or who answered there
        self._pauses = Doubling(CALL_AGAIN_S, CALL_AGAIN_S_MAX)
        self._obeyed = ""  # who welcomed us last
        self._orders = ObeyedOrders()
        self._alarm: Alarm | None = None
        self._tidying: asyncio.TimerHandle | None = None
        self._draining = False
        self._released = False  # the controller sends nothing more
        self._lost = False  # the device
        versions.attach(self._pump, self._tell)

    @property
    def member(self) -> wire.Member:
        """How the broker knows the worker."""
        return self._member

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The worker registers, and waits for a controller."""
        tuned = tuning.apply(self.settings.cores, self.settings.real_time)
        self._device.attach(self._finished, self._device_lost)
        self._alarm = Alarm(self._hub.loop, self._ring)
        self._hub.on_turn(self._turn)
        self._tidying = self._hub.loop.call_later(TIDY_S, self._tidy)
        self._registrar.start()
        info = self._device.info
        about = {"member": self._member.id, "pid": os.getpid(), **tuned}
        log.info("started", device=info.name, kind=info.kind, pages=info.pages, **about)

    def drain(self) -> bool:
        """The controller plans without us from now on. True once it has confirmed that and nothing runs here."""
        if not self._draining:
            self._draining = True
            if self._controller is not None:
                self._controller.send(wire.Goodbye())
        shares_nothing = self._answering.share_no_more()
        if self._lost:  # preparations are answered, too: one of them may be what the device was lost by
            return shares_nothing and not (self._pump.lanes.running or self.versions.pending)
        return shares_nothing and self._pump.lanes.idle and (self._released or self._controller is None)

    def stop(self) -> None:
        """Another process can use the device."""
        self._registrar.stop()
        if self._controller is not None:
            self._controller.close(linger_ms=200)
        self._answering.close()
        self._inputs.close()
        if self._tidying is not None:
            self._tidying.cancel()
        if self._alarm is not None:
            self._alarm.close()
        self.versions.close()
        self._device.close()
        log.info("stopped", member=self._member.id)

    def describe(self, child: wire.ChildState) -> None:
        """Others will know how the container's code is."""
        self._member = msgspec.structs.replace(self._member, child=child)
        self._registrar.update(self._member)
        self._hub.schedule_turn()

    # -- broker -------------------------------------------------------------------------------------------------------

    def _replied(self, reply: wire.CallReply) -> None:
        if not reply.ok and self._refused is not None:
            self._refused(reply)

    def _table_changed(self, table: wire.Table) -> None:
        self._answering.know_hosts(table.members)
        owner = table.workers.get(self._member.id)
        if owner is None or (self._controller is not None and self._controller_id == owner):
            return
        member = next((member for member in table.members if member.id == owner), None)
        if member is not None and not address_fault(member.endpoints.get("control", ())):
            self._call(member)

    # -- controller ---------------------------------------------------------------------------------------------------

    def _call(self, controller: wire.Member) -> None:
        if self._controller is not None:
            self._controller.close()
        link: Link[wire.FromControllerToWorker, wire.ToController] = Link(
            self._transport, self._member.id, controller.id, CONTROLLER, self._received, self._controller_lost
        )
        self._controller = link.call(controller.endpoints["control"])
        self._controller_id = controller.id
        self._hello()

    def _hello(self) -> None:
        assert self._controller is not None
        table = self._pump.lanes.table
        self._controller.send(
            wire.WorkerHello(
                member=self._member.id,
                host=self._member.host,
                device=self._device.info,
                free_pages=table.free,
                resident=table.resident(),
                prepared=tuple(map(self._orders.named, self.versions.reports())),
            )
        )

    def _controller_lost(self, peer: str, why: str) -> None:
        told = log.info if self._transport.ending else log.warning
        told("controller_lost", controller=peer, why=why)
        self._controller = None
        if not self._draining:
            pause = self._pauses.next()
            self._hub.loop.call_later(max(pause, KEY_AGAIN_S) if why in KEY_LOSSES else pause, self._call_again)

    def _call_again(self) -> None:
        if self._controller is None and self._registrar.table is not None and not self._draining:
            self._table_changed(self._registrar.table)

    def _received(self, mail: Mail[wire.FromControllerToWorker]) -> None:
        for message in mail.messages:
            match message:
                case wire.Infer():
                    self._infer(message, mail.epoch)
                case wire.Load():
                    self._pump.load(message, mail.epoch, now=time.monotonic())
                case wire.Unload():
                    self._pump.unload(message, mail.epoch, now=time.monotonic())
                case wire.Revoke():
                    self._pump.revoke(message.action, mail.epoch, now=time.monotonic())
                case wire.Welcome():
                    self._welcomed(message.controller, mail.epoch)
                case wire.Frontends():
                    self._answering.know(message.results)
                case wire.Prepare():
                    self._orders.obey(message)
                    self.versions.prepare(message.ref, message.content)
                case wire.Forget():
                    self._orders.obey(message)
                    self.versions.forget(message.ref)
                case wire.Introduce():
                    self._hello()
                case wire.Goodbye():
                    self._released = True
                case wire.Heartbeat():
                    pass  # the link has noted it
                case _:
                    assert_never(message)

    def _infer(self, action: wire.Infer, epoch: int) -> None:
        tensors: list[Sequence[Buffer]] = []
        kept = False
        for part in action.parts:
            kept = kept or part.kept is not None
            tensors.append(part.inline)
        if not kept:
            self._pump.infer(action, epoch, tensors, now=time.monotonic())
            return
        incoming = self._inputs.incoming(action)
        now = time.monotonic()
        self._pump.infer_kept(incoming, epoch, now=now)
        self._inputs.fetch(incoming, now)

    # -- inputs that frontends keep -----------------------------------------------------------------------------------

    def fetched(self, frontend: str, message: wire.Fetched, frames: Iterator[Buffer], now: float) -> None:
        """A frontend has sent the inputs that it was asked for, or they have ended."""
        if self._inputs.came(frontend, message, frames, now):
            self._ring(time.monotonic())

    def link_opened(self, frontend: str) -> None:
        """A link replaces one that was lost."""
        self._inputs.opened(frontend)

    def link_gone(self, frontend: str) -> None:
        """The frontend is gone: its requests have ended with it."""
        if self._inputs.lost(frontend):
            self._ring(time.monotonic())

    def _tidy(self) -> None:
        self._answering.tidy()
        self._inputs.tidy()
        self._tidying = self._hub.loop.call_later(TIDY_S, self._tidy)

    def _welcomed(self, controller: str, epoch: int) -> None:
        self._pauses.reset()
        self._pump.welcome(epoch, same=controller == self._obeyed)
        self._obeyed = controller
        self._registrar.obeyed(self._pump.lanes.epoch)
        self._controller_id = controller
        log.info("welcomed", controller=controller, epoch=epoch)
        if self._on_welcome is not None:
            self._on_welcome()

    def _tell(self, message: wire.Prepared | wire.ActionResult) -> None:
        """Sends to the controller. Without one, nothing is sent: the next one learns all from the hello."""
        if self._controller is not None:
            self._controller.send(self._orders.named(message) if isinstance(message, wire.Prepared) else message)

    # -- device -------------------------------------------------------------------------------------------------------

    def _finished(self, phase: Phase, job: Job, done: Done) -> None:
        self._pump.finished(phase, job, done, now=time.monotonic())
        self._hub.schedule_turn()

    def _ring(self, now: float) -> None:
        self._pump.wake(now=now)
        self._hub.schedule_turn()

    def _turn(self, now: float) -> None:
        assert self._alarm is not None
        if self._inputs.give_up_gone():
            self._pump.wake(now=now)
        self._alarm.by(self._pump.wake_at())

    def _report(self, report: Report) -> None:
        result, job = report.result, report.job
        if job is not None and result.code == OK and result.kind == INFER:
            self._answering.send(job)
        self._tell(result)
        if job is None:
            return
        if result.code == CONTENT_CHANGED:
            self._hub.loop.call_soon(self.versions.withdraw, job.action.ref, result.message)  # the pump is at work
        elif result.code == OK and result.duration_s is not None:
            self.versions.executed(job.action, result.duration_s, job.exec.memory_bytes if job.exec is not None else 0)
        elif result.code == NO_MEMORY and isinstance(job.action, wire.Infer):
            self.versions.did_not_fit(job.action)

    def _device_lost(self, why: str) -> None:
        """What runs on the device is reported, what waits is left to others, and the process ends for its successor."""
        self._lost = True
        self._pump.halt()
        self.versions.device_lost(why)
        log.error(
            "device_lost",
            device=self._device.info.name,
            why=why,
            preparing=list(self.versions.pending),
            exit_code=DEVICE_LOST,
            advice="the process ends, and has to be started again (gearmesh up does); nvidia-smi -q, dmesg (Xid)",
        )
        self._end(DEVICE_LOST)
