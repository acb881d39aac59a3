"""The worker's shell: obeys one controller, drives one device, sends outputs straight to the frontends."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import structlog

from gpu_worker import tuning
from gpu_worker.core.lanes import Done, Effect, Job, Lanes, Phase, Prepared, Report
from gpu_worker.core.outputs import outputs_by_frontend, row_bytes
from gpu_worker.core.pages import PageTable
from gpu_worker.core.sharing import Sharing
from gpu_worker.devices.base import Device
from gpu_worker.packages.package import Package
from gpu_worker.preparing import Made, Preparer
from gpu_worker.profiling import Measurement, write_profile
from mesh import wire
from mesh.errors import PackageError
from mesh.net.links import Link
from mesh.net.registrar import Registrar
from mesh.net.transport import Mail
from mesh.process.runtime import Runtime, host_id, member_id
from mesh.process.timers import Alarm
from mesh.versions import CHANGED, why_changed
from mesh.wire import Buffer

DEVICE_LOST = 3  # exit code: the device can do nothing more for this process, and may for the next one
PREPARATION_ENDS_S = 2.0  # after the device is lost: then whoever prepares is stuck in it
CONTROLLER = msgspec.msgpack.Decoder(wire.Envelope[wire.FromControllerToWorker])
RESULTS = msgspec.msgpack.Decoder(wire.Envelope[wire.FromResults])
log = structlog.get_logger("worker")


@dataclass(frozen=True, slots=True)
class Fixture:
    """What a container brings: its one version, which is prepared and resident from the start."""

    offer: wire.Offer
    batching: wire.Batching

    def report(self, faults: tuple[str, ...] = ()) -> wire.Prepared:
        """It serves; or, with faults, it does not at the moment."""
        return wire.Prepared(
            ref=self.offer.ref,
            ok=not faults,
            faults=faults,
            spec=self.offer.spec,
            pages=1,
            batching=self.batching,
        )


class WorkerService:
    """One device, one controller at a time, any number of frontends."""

    def __init__(
        self,
        runtime: Runtime,
        device: Device,
        fixture: Fixture | None = None,
        refused: Callable[[wire.CallReply], None] | None = None,
        welcomed: Callable[[], None] | None = None,
    ) -> None:
        """`fixture`: it serves this and nothing else; `refused` hears if the broker does not want it.

        `welcomed` is called whenever a controller has taken the device over.
        """
        self.settings = runtime.settings
        self._end = runtime.end
        self._transport = runtime.transport
        self._hub = runtime.hub
        self._device = device
        self._lanes = Lanes(PageTable(device.info.pages), device.depth, device.ahead_s)
        self._member = wire.Member(
            id=member_id("gpu_worker"),
            role="gpu_worker",
            host=host_id(),
            pid=os.getpid(),
            offer=fixture.offer if fixture is not None else None,
        )
        self._registrar = Registrar(
            runtime.transport, (runtime.settings.broker_address,), self._member, self._table_changed, self._replied
        )
        self._fixture = fixture
        self._refused = refused
        self._on_welcome = welcomed
        self._controller: Link[wire.FromControllerToWorker, wire.ToController] | None = None
        self._controller_id = ""  # whom that link was opened for, or who answered there
        self._frontends: dict[str, tuple[str, ...]] = {}  # {member id: addresses for outputs}
        self._links: dict[
            str, Link[wire.FromResults, wire.ToResults]
        ] = {}  # {frontend: link}, opened when first needed
        self._packages: dict[str, Package] = {}  # {ref: package}, prepared here
        self._reports: dict[str, wire.Prepared] = {}  # {ref: what the controller was told of it}
        self._sharing = Sharing()  # of figures, among versions of one architecture
        self._preparer = Preparer(runtime.settings.model_repository, runtime.settings.factory_allow, device)
        self._preparing: dict[str, Future[None]] = {}  # {ref: its preparation}; of one forgotten meanwhile, the next
        self._thread = ThreadPoolExecutor(1, "prepare")
        self._alarm: Alarm | None = None
        self._draining = False
        self._released = False  # the controller sends nothing more
        self._lost = False  # the device is
        if fixture is not None:
            self._install(fixture)

    def _install(self, fixture: Fixture) -> None:
        ref = fixture.offer.ref
        spec = fixture.offer.spec
        self._lanes.prepared(ref, Prepared(1, spec.batch_max, None, row_bytes(spec.outputs)))
        self._lanes.table.take(ref, 1)
        self._lanes.table.loaded(ref)
        self._reports[ref] = fixture.report()

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Registered, and waiting for a controller."""
        tuned = tuning.settle(self.settings.cores, self.settings.real_time)
        self._device.attach(self._device_finished, self._device_lost)
        self._alarm = Alarm(self._hub.loop, self._ring)
        self._hub.on_turn(self._turn)
        self._registrar.start()
        info = self._device.info
        about = {"member": self._member.id, "pid": os.getpid(), **tuned}
        log.info("started", device=info.name, kind=info.kind, pages=info.pages, **about)

    def drain(self) -> bool:
        """The controller plans without us from now on; True once it says so too, and nothing runs here."""
        if not self._draining:
            self._draining = True
            if self._controller is not None:
                self._controller.send(wire.Goodbye())
                self._hub.schedule_turn()
        if self._lost:  # what was being prepared is answered too: it may be what did it
            return not (self._lanes.running or self._preparing)
        return self._lanes.idle and (self._released or self._controller is None)

    def stop(self) -> None:
        """The device is free for another process."""
        self._registrar.stop()
        if self._controller is not None:
            self._controller.close(linger_ms=200)
        for link in self._links.values():
            link.close(linger_ms=200)
        if self._alarm is not None:
            self._alarm.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._device.close()
        log.info("stopped", member=self._member.id)

    # -- broker -------------------------------------------------------------------------------------------------------

    def _replied(self, reply: wire.CallReply) -> None:
        """The broker does not want what this container brings."""
        if not reply.ok and self._refused is not None:
            self._refused(reply)

    def changed(self, faults: tuple[str, ...]) -> None:
        """The container's code died, or (no faults) serves again."""
        assert self._fixture is not None
        report = self._fixture.report(faults)
        self._reports[report.ref] = report
        self._tell(report)
        self._hub.schedule_turn()

    # -- controller ---------------------------------------------------------------------------------------------------

    def _table_changed(self, table: wire.Table) -> None:
        owner = table.workers.get(self._member.id)
        if owner is None or (self._controller is not None and self._controller_id == owner):
            return
        member = next((member for member in table.members if member.id == owner), None)
        if member is not None:
            self._call(member)

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
        self._controller.send(
            wire.WorkerHello(
                member=self._member.id,
                host=self._member.host,
                device=self._device.info,
                free_pages=self._lanes.table.free,
                resident=self._lanes.table.resident(),
                prepared=tuple(self._reports.values()),
            )
        )

    def _controller_lost(self, peer: str, why: str) -> None:
        log.warning("controller_lost", controller=peer, why=why)
        self._controller = None
        if not self._draining:
            self._hub.loop.call_later(0.05, self._call_again)

    def _call_again(self) -> None:
        if self._controller is None and self._registrar.table is not None and not self._draining:
            self._table_changed(self._registrar.table)

    def _received(self, mail: Mail[wire.FromControllerToWorker]) -> None:
        frames = iter(mail.frames)
        for message in mail.messages:
            if isinstance(message, wire.Infer):
                tensors = [_tensors(part, frames) for part in message.parts]
                self._apply(self._lanes.infer(message, mail.epoch, now=time.monotonic(), tensors=tensors))
            elif isinstance(message, wire.Load):
                self._apply(self._lanes.load(message, mail.epoch, now=time.monotonic()))
            elif isinstance(message, wire.Unload):
                self._apply(self._lanes.unload(message, mail.epoch, now=time.monotonic()))
                self._device.unloaded(message.ref)
            else:
                self._manage(message, mail.epoch)

    def _manage(self, message: wire.FromControllerToWorker, epoch: int) -> None:
        if isinstance(message, wire.Welcome):
            for job in self._lanes.welcome(epoch):
                self._device.release(job)
            self._controller_id = message.controller
            log.info("welcomed", controller=message.controller, epoch=epoch)
            if self._on_welcome is not None:
                self._on_welcome()
        elif isinstance(message, wire.Frontends):
            self._frontends = dict(message.results)
            for gone in self._links.keys() - self._frontends.keys():
                self._links.pop(gone).close()
        elif isinstance(message, wire.Prepare):
            self._prepare(message.ref, message.content)
        elif isinstance(message, wire.Forget):
            self._forget(message.ref)
        elif isinstance(message, wire.Introduce):
            self._hello()
        elif isinstance(message, wire.Goodbye):
            self._released = True

    # -- preparation --------------------------------------------------------------------------------------------------

    def _prepare(self, ref: str, content: str) -> None:
        """The version is prepared, with this content if one is named, or the controller hears why not."""
        told = self._reports.get(ref)
        if told is not None and told.ok and told.content and content not in ("", told.content):
            self._forget(ref)  # it has another one, from before
            told = None
        if told is not None and (told.ok or self._fixture is not None):
            self._tell(told)
        elif ref not in self._preparing and not self._lost:
            future: Future[None] = Future()
            self._preparing[ref] = future
            self._thread.submit(self._prepare_there, ref, content, future)

    def _prepare_there(self, ref: str, content: str, future: "Future[None]") -> None:
        """On the thread for preparations."""
        if not future.set_running_or_notify_cancel():
            return
        loop = self._hub.loop
        began_s = time.monotonic()
        try:
            made = self._preparer.prepare(ref, content)
        except PackageError as error:
            loop.call_soon_threadsafe(self._not_prepared, ref, future, tuple(error.faults), error.code)
        except Exception as error:  # a package must not end the worker, whatever is in it
            faults = (f"{type(error).__name__}: {error}",)
            loop.call_soon_threadsafe(self._not_prepared, ref, future, faults, "bad_package")
        else:
            loop.call_soon_threadsafe(self._is_prepared, made, future, time.monotonic() - began_s)

    def _not_prepared(self, ref: str, future: "Future[None]", faults: tuple[str, ...], code: str) -> None:
        if not self._ended(ref, future):
            return
        self._free(ref)
        log.warning("not_prepared", ref=ref, faults=list(faults), code=code)
        self._tell(wire.Prepared(ref=ref, ok=False, faults=faults, code=code))

    def _ended(self, ref: str, future: "Future[None]") -> bool:
        """This preparation is over. False if nobody wants what it made: the version was forgotten meanwhile."""
        if self._preparing.get(ref) is future:
            del self._preparing[ref]
            return True
        if ref not in self._preparing:  # the next one, if there is, takes its place on the device
            self._free(ref)
        return False

    def _free(self, ref: str) -> None:
        """Nothing of the version stays on the device; of a device that is lost nothing can be freed."""
        if not self._lost:
            self._device.forget(ref)

    def _is_prepared(self, made: Made, future: "Future[None]", took_s: float) -> None:
        package, profile, ref = made.package, made.profile, made.package.ref
        if not self._ended(ref, future):
            return
        if all(other.architecture != package.architecture for other in self._packages.values()):
            tuning.freeze()  # an executable has very many objects
        self._packages[ref] = package
        pages = package.pages(self._device.info.page_bytes)
        spec = package.spec
        self._lanes.prepared(ref, Prepared(pages, spec.batch_max, self._batch_sizes(package), row_bytes(spec.outputs)))
        sizes = Measurement(package.spec.batch_max).sizes
        if self._device.measured:
            group = (package.architecture, self._device.traits(ref).load_from, package.spec.batch_max)
            known, profile = profile, self._sharing.join(ref, group, profile)
            if known is None and profile is not None:
                self._keep(ref, profile)
        measurement = self._sharing.measurements.get(ref)
        spec = msgspec.structs.replace(package.spec, batch_sizes=sizes)
        self._reports[ref] = wire.Prepared(
            ref=ref,
            ok=True,
            spec=spec,
            pages=pages,
            weights_bytes=package.image_bytes,
            profile=profile,
            measure=measurement.next_plan() if measurement is not None else (),
            content=made.content,
        )
        log.info("prepared", ref=ref, took_s=round(took_s, 3), pages=pages, profiled=profile is not None)
        self._tell(self._reports[ref])

    def _forget(self, ref: str) -> None:
        if self._fixture is not None:
            return  # it may be wanted again, and there is nothing else to make room for
        self._preparing.pop(ref, None)
        self._packages.pop(ref, None)
        self._reports.pop(ref, None)
        heir = self._sharing.leave(ref)
        if heir is not None:
            plan = self._sharing.measurements[heir].next_plan()
            self._reports[heir] = msgspec.structs.replace(self._reports[heir], measure=plan)
            self._tell(self._reports[heir])
        self._apply(self._lanes.forgotten(ref, now=time.monotonic()))
        self._device.unloaded(ref)
        self._device.forget(ref)
        log.info("forgotten", ref=ref)

    def _withdraw(self, ref: str, why: str) -> None:
        """The files are not the version's any more: it is not served from here, until the controller asks for it."""
        if ref not in self._reports:
            return  # it was forgotten meanwhile
        log.warning("withdrawn", ref=ref, why=why, code=CHANGED)
        self._forget(ref)
        self._tell(wire.Prepared(ref=ref, ok=False, faults=(why_changed(ref),), code=CHANGED))
        self._hub.schedule_turn()

    def _measured(self, ref: str, measurement: Measurement) -> None:
        """A figure came in: once a plan is done the controller is told of the next, or of the profile."""
        if not measurement.due:
            return
        plan = measurement.next_plan()
        traits = self._device.traits(ref)
        profile = measurement.profile(traits.engine, traits.load_from)
        for other in [ref] if profile is None else self._sharing.complete(ref, profile):
            if profile is not None:
                self._keep(other, profile)
            self._reports[other] = msgspec.structs.replace(self._reports[other], profile=profile, measure=plan)
            self._tell(self._reports[other])

    def _keep(self, ref: str, profile: wire.Profile) -> None:
        try:
            write_profile(self._packages[ref].folder, self._preparer.kind(ref), profile)
        except OSError as error:
            log.warning("profile_not_kept", ref=ref, error=str(error), advice="it will be measured again next time")

    def _batch_sizes(self, package: Package) -> frozenset[int] | None:
        """Sizes that the device can execute; None: any."""
        return None if self._device.info.any_batch else frozenset(Measurement(package.spec.batch_max).sizes)

    # -- lanes --------------------------------------------------------------------------------------------------------

    def _apply(self, effects: list[Effect]) -> None:
        """The device starts what is to start, and reports go out, until nothing more follows from it."""
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            if isinstance(effect, Report):
                self._report(effect)
                continue
            done = self._device.begin(effect.phase, effect.job)
            if done is not None:
                waiting.extend(self._lanes.finished(effect.phase, effect.job, done, now=done.end_s))

    def _device_finished(self, phase: Phase, job: Job, done: Done) -> None:
        self._apply(self._lanes.finished(phase, job, done, now=time.monotonic()))
        self._hub.schedule_turn()

    def _device_lost(self, why: str) -> None:
        """What runs there is answered, what waits is left to others, and the process ends, for another to begin."""
        self._lost = True
        self._lanes.halt()
        for ref, preparation in list(self._preparing.items()):
            if preparation.cancel():  # not begun: the next process prepares it
                del self._preparing[ref]
        log.error(
            "device_lost",
            device=self._device.info.name,
            why=why,
            preparing=sorted(self._preparing),
            exit_code=DEVICE_LOST,
            advice="the process ends, and has to be started again (gearmesh up does); nvidia-smi -q, dmesg (Xid)",
        )
        self._hub.loop.call_later(PREPARATION_ENDS_S, self._give_up_preparing, why)
        self._end(DEVICE_LOST)

    def _give_up_preparing(self, why: str) -> None:
        """What is still being prepared will not come to an end, and is not waited for."""
        for ref, future in list(self._preparing.items()):
            faults = (f"the device was lost while it was being prepared: {why}",)
            self._not_prepared(ref, future, faults, "device_lost")
        self._hub.schedule_turn()

    def _ring(self, now: float) -> None:
        self._apply(self._lanes.wake(now=now))
        self._hub.schedule_turn()

    def _turn(self, now: float) -> None:
        assert self._alarm is not None
        self._alarm.by(self._lanes.wake_at())

    def _report(self, report: Report) -> None:
        result, job = report.result, report.job
        if job is not None:
            if result.code == "ok" and result.kind == "infer":
                self._send_outputs(job)
            self._device.release(job)
        self._tell(result)
        if job is not None and result.code == CHANGED:
            self._hub.loop.call_soon(self._withdraw, job.action.ref, result.message)  # lanes are at work
        if job is not None and result.code == "ok" and result.duration_s is not None:
            measurement = self._sharing.measurements.get(job.action.ref)
            if measurement is not None and isinstance(job.action, wire.Load):
                measurement.loaded(result.duration_s)
                self._measured(job.action.ref, measurement)
            elif measurement is not None and isinstance(job.action, wire.Infer) and not job.action.parts:
                measurement.ran(job.action.batch, result.duration_s)
                self._measured(job.action.ref, measurement)

    def _tell(self, message: wire.Prepared | wire.ActionResult) -> None:
        """The controller is told; without one, it will learn from the next Hello."""
        if self._controller is not None:
            self._controller.send(message)

    # -- outputs ------------------------------------------------------------------------------------------------------

    def _send_outputs(self, job: Job) -> None:
        action = job.action
        assert isinstance(action, wire.Infer)
        assert job.exec is not None
        shares = outputs_by_frontend(action, job.outputs, self._device.info.name, job.exec.duration_s)
        for frontend, (message, frames) in shares.items():
            link = self._link(frontend)
            if link is None:
                requests = len(message.answers)
                log.warning("outputs_dropped", frontend=frontend, why="it is gone", requests=requests)
                continue
            link.send(message, frames)

    def _link(self, frontend: str) -> Link[wire.FromResults, wire.ToResults] | None:
        link = self._links.get(frontend)
        if link is not None and link.open:
            return link
        addresses = self._frontends.get(frontend)
        if addresses is None:
            return None
        link = Link(self._transport, self._member.id, frontend, RESULTS, _ignore, self._frontend_lost, watch=False)
        self._links[frontend] = link.call(addresses)
        return link

    def _frontend_lost(self, peer: str, why: str) -> None:
        self._links.pop(peer, None)


def _ignore(mail: Mail[wire.FromResults]) -> None:
    """A frontend has nothing to say to a worker but that it is there."""


def _tensors(part: wire.Part, frames: Iterator[Buffer]) -> Sequence[Buffer]:
    """The inputs of one part: inside the message, or the next frames."""
    return part.inline or [next(frames) for _ in range(part.frames)]
