"""The controller's shell: carries events to the scheduler and its orders to their peers, once per turn."""

import os
import time
from collections.abc import Container
from typing import assert_never

import msgspec
import structlog

from controller.core.failures import MENDED_BY_PEOPLE
from controller.core.isolation.isolation import Notice
from controller.core.orders import Order, ToBroker, ToFrontend, ToWorker
from controller.core.policies.registry import make_policy
from controller.core.scheduler import Parameters, Scheduler
from controller.core.state import ShardState
from controller.core.versions.shard import shard_of
from controller.monitoring import OPERATOR, ControllerPort, Monitoring
from mesh import wire
from mesh.addresses import address_fault
from mesh.codes import ActionCode, AnswerStatus, ErrorCode, LinkLoss, ReplyCode, RequestOutcome
from mesh.folding import Folding
from mesh.net.ports import Port
from mesh.net.registrar import Registrar
from mesh.net.transport import Mail
from mesh.process.ids import host_id, member_id
from mesh.process.runtime import Runtime
from mesh.process.timers import Alarm
from mesh.roles import Role, role_of
from mesh.salvage import RefusedMessage

OK = ActionCode.OK  # for what runs for every action
SUBMIT = "submit"  # tag of the message
DECODER = msgspec.msgpack.Decoder(wire.Envelope[wire.ToController])
RareMessage = (  # those of ToController but requests and results
    wire.FrontendHello
    | wire.WorkerHello
    | wire.Cancel
    | wire.Prepared
    | wire.AskSnapshot
    | wire.AskFacts
    | wire.Heartbeat
    | wire.Goodbye
)
LAG_TOLD_S = 0.005  # a frontend whose mail waits for longer is told
log = structlog.get_logger("controller")


class ControllerService:
    """One port, for frontends, workers and operators alike; one scheduler behind it."""

    def __init__(self, runtime: Runtime, broker: tuple[str, ...] = ()) -> None:
        settings = self.settings = runtime.settings
        self.addresses: tuple[str, ...] = ()  # where it listens, once it does
        self._hub = runtime.hub
        self._transport = runtime.transport
        self._id = member_id("controller")
        state = ShardState()
        self.scheduler = Scheduler(
            make_policy(settings.policy, state, settings.policy_parameters),
            state,
            Parameters(settings.slack_ms / 1e3, settings.queue_max, settings.heartbeat_ms / 1e3),
            name=self._id,
            started_s=time.monotonic(),
        )
        self._keys: dict[str, str] = {}  # {member: the key with which it has registered}, of the table
        self._port: ControllerPort = Port(
            runtime.transport, "controller", DECODER, self._received, self._lost,
            me=self._id, key_of=lambda member: self._keys.get(member, ""),
        )  # fmt: skip
        self._monitoring = Monitoring(settings, self.scheduler, self._port, self._id)
        self._broker = broker or (settings.broker_address,)
        self._registrar: Registrar | None = None
        self._alarm: Alarm | None = None
        self._leaving: set[str] = set()  # workers that said goodbye, and end what they have
        self._workers: set[str] = set()  # members that said a worker's Hello, and are not lost
        self._frontends: dict[str, tuple[str, ...]] = {}  # {frontend: where it takes outputs}
        self._lagging: set[str] = set()  # frontends that were told so
        self._refusals = Folding()  # of frontends that cannot be told anything
        self._early: dict[str, wire.WorkerHello] = {}  # of workers that came before our epoch did, and are not lost

    @property
    def member(self) -> str:
        """The id under which the broker knows it."""
        return self._id

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """It listens, and calls the broker."""
        settings = self.settings
        self._monitoring.start(time.monotonic())
        self.addresses = self._port.listen(settings.host, settings.controller_port, "GEARMESH_CONTROLLER_PORT")
        endpoints = {"control": self.addresses}
        member = wire.Member(id=self._id, role="controller", host=host_id(), endpoints=endpoints, pid=os.getpid())
        self._registrar = Registrar(self._transport, self._broker, member, self._table_changed)
        self._registrar.start()
        self._alarm = Alarm(self._hub.loop, lambda now: self._hub.schedule_turn())
        self._hub.on_turn(self._turn)
        log.info("started", member=self._id, address=self.addresses[-1], policy=settings.policy, pid=os.getpid())

    def drain(self) -> bool:
        """True once no request is open here."""
        return not self.scheduler.open_requests

    def stop(self) -> None:
        """Everybody is told, and the port is closed."""
        for peer in [*self._workers, *self._frontends]:
            self._port.send(peer, wire.Goodbye())
        if self._registrar is not None:
            self._registrar.stop()
        if self._alarm is not None:
            self._alarm.close()
        self._hub.loop.call_soon(self._port.close)
        self._monitoring.stop()
        log.info("stopped", member=self._id)

    # -- events -------------------------------------------------------------------------------------------------------

    def _received(self, mail: Mail[wire.ToController]) -> None:
        """A peer has sent something. One that has not introduced itself is asked to."""
        peer = mail.peer
        if peer in self._workers:
            self.scheduler.clock(peer, mail.clock.offset_s, mail.now)
            self._monitoring.heard(peer, mail.now)
        elif peer.startswith(OPERATOR):
            self._monitoring.asked(mail)
            return
        elif peer not in self._frontends and not _introduces(mail.messages):
            self._port.send(peer, wire.Introduce())
            return
        if mail.age_s > LAG_TOLD_S or peer in self._lagging:
            self._tell_lag(peer, mail.age_s)
        scheduler, now, age_s, asks = self.scheduler, mail.now, mail.age_s, peer in self._frontends
        for message in mail.messages:
            if isinstance(message, wire.Submit):
                orders = scheduler.submit(message, peer, age_s=age_s, now=now) if asks else None
            elif isinstance(message, wire.ActionResult):
                self._log_result(peer, message)
                orders = scheduler.result(peer, message, now=now)
            else:
                self._handle(message, mail)
                asks = peer in self._frontends
                continue
            if orders:
                self._order(orders)
        for unread in mail.unread:
            self._refuse_unread(peer, unread)

    def _handle(self, message: RareMessage, mail: Mail[wire.ToController]) -> None:
        """A message that is neither a request nor a result goes where it belongs."""
        scheduler, peer, now = self.scheduler, mail.peer, mail.now
        match message:
            case wire.Cancel():
                outcome = RequestOutcome.named(message.outcome) or RequestOutcome.CANCELLED
                scheduler.cancel(peer, message.request, outcome, now=now)
            case wire.Prepared():
                self._order(scheduler.prepared(peer, message, now=now))
            case wire.WorkerHello():
                if self._is_own(peer, message.member, Role.WORKER, self._frontends):
                    self._worker_joined(peer, message, now)
            case wire.FrontendHello():
                if self._is_own(peer, message.member, Role.FRONTEND, self._workers):
                    self._frontend_joined(peer, message, now)
            case wire.Goodbye():
                self._left(peer)
            case wire.Heartbeat():
                pass  # the port has noted it
            case wire.AskSnapshot() | wire.AskFacts():
                pass  # only operators are answered
            case _:
                assert_never(message)

    def _is_own(self, peer: str, member: str, role: Role, others: Container[str]) -> bool:
        """Whether a hello is the peer's own, who is what it says, and nothing else already. If not, that is logged."""
        why = ""
        if member != peer:
            why = f"it says that it is {member[:64]!r}"
        elif role_of(peer) not in (role, None):
            why = f"it is no {role}, by its id"
        elif peer in others:
            why = "it has introduced itself as something else"
        if why:
            log.warning("hello_refused", peer=peer, why=why)
        return not why

    def _refuse_unread(self, peer: str, unread: RefusedMessage) -> None:
        """A frontend whose request could not be read is told so; whatever else it is, it has been logged."""
        if unread.tag == SUBMIT and peer in self._frontends:
            refused = wire.Refused(
                request=unread.number, attempt=unread.attempt, status=AnswerStatus.FAILED, code=ErrorCode.BAD_MESSAGE,
                message=f"the controller could not read it: {unread.why}",
            )  # fmt: skip
            self._port.send(peer, refused)

    def _tell_lag(self, peer: str, lag_s: float) -> None:
        """A frontend whose mail waits here for long sends less: it learns that, and once when it is over."""
        if peer not in self._frontends:
            return
        self._port.send(peer, wire.IntakeLag(lag_s=lag_s))
        (self._lagging.add if lag_s > LAG_TOLD_S else self._lagging.discard)(peer)

    def _worker_joined(self, peer: str, hello: wire.WorkerHello, now: float) -> None:
        if self._port.epoch == 0:
            self._early[peer] = hello
            return
        self._workers.add(peer)
        self._leaving.discard(peer)
        self._port.send(peer, wire.Welcome(controller=self._id))
        self._port.send(peer, wire.Frontends(results=dict(self._frontends)))
        self._order(self.scheduler.worker_joined(hello, now=now))
        log.info("worker_joined", worker=peer, device=hello.device.name, pages=hello.device.pages)

    def _frontend_joined(self, peer: str, hello: wire.FrontendHello, now: float) -> None:
        fault = address_fault(hello.results)
        if fault:
            times = self._refusals.happened(peer, now)
            if times:
                log.warning("frontend_refused", frontend=peer, code=ReplyCode.BAD_ADDRESS, why=fault, times=times)
            self._port.send(peer, wire.HelloRefused(code=ReplyCode.BAD_ADDRESS, message=fault))
            return
        self._frontends[peer] = hello.results
        self._tell_frontends()  # ahead of any INFER that names it
        self._order(self.scheduler.frontend_joined(peer, hello.host))
        log.info("frontend_joined", frontend=peer)

    def _tell_frontends(self) -> None:
        for worker in self._workers:
            self._port.send(worker, wire.Frontends(results=dict(self._frontends)))

    def _left(self, peer: str) -> None:
        """A peer said goodbye. A worker first ends what it has."""
        if peer in self._workers:
            log.info("worker_leaves", worker=peer)
            self._leaving.add(peer)
            self._order(self.scheduler.worker_leaving(peer))
            self._port.send(peer, wire.Goodbye())  # behind the last order: it may go when that is done
        else:
            self._lost(peer, LinkLoss.LEFT)

    def _lost(self, peer: str, why: str) -> None:
        now = time.monotonic()
        self._early.pop(peer, None)
        if peer in self._workers:
            self._workers.discard(peer)
            told = log.info if peer in self._leaving or self._transport.ending else log.warning
            told("worker_lost", worker=peer, why=why)
            self._leaving.discard(peer)
            self._order(self.scheduler.worker_lost(peer, now=now))
        elif peer in self._frontends:
            del self._frontends[peer]
            self._lagging.discard(peer)
            told = log.info if why == LinkLoss.LEFT or self._transport.ending else log.warning
            told("frontend_lost", frontend=peer, why=why)
            self.scheduler.frontend_lost(peer, now=now)
            self._tell_frontends()
        self._monitoring.lost(peer)
        self._port.forget(peer)

    def _table_changed(self, table: wire.Table) -> None:
        self._keys = {member.id: member.key for member in table.members}
        self._port.recheck()
        shard = shard_of(table, self._id)
        if shard is None:
            return
        if shard.epoch != self._port.epoch:
            self._new_shard(shard.epoch)
        self._order(self.scheduler.want(list(shard.terms), shard.contained, shard.terms, now=time.monotonic()))
        early, self._early = self._early, {}  # only now, so that workers keep what they have and is wanted
        for peer, hello in early.items():
            self._worker_joined(peer, hello, time.monotonic())

    def _new_shard(self, epoch: int) -> None:
        assert self._registrar is not None
        self._port.epoch = self._registrar.shard_epoch = epoch
        log.info("shard", epoch=epoch)
        for worker in self._workers:
            self._port.send(worker, wire.Welcome(controller=self._id))

    # -- orders -------------------------------------------------------------------------------------------------------

    def _turn(self, now: float) -> None:
        """Everything that has arrived was handled: now it is decided, once."""
        self._order(self.scheduler.wake(now=now))
        for notice in self.scheduler.isolation.take_notices():
            _log_notice(notice)
            self._tell_who(notice)
        self._monitoring.turn(now)
        assert self._alarm is not None
        self._alarm.by(self.scheduler.wake_at())

    def _tell_who(self, notice: Notice) -> None:
        """The client's frontend, which alone knows who that is, says so."""
        if notice.frontend in self._frontends:
            message = wire.ClientSuspected(
                client=notice.client, ref=notice.ref, code=notice.code, pause_s=notice.pause_s
            )
            self._port.send(notice.frontend, message)

    def _order(self, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, ToWorker):
                self._port.send(order.worker, order.message)
            elif isinstance(order, ToFrontend):
                self._port.send(order.frontend, order.message)
            elif isinstance(order, ToBroker):
                assert self._registrar is not None
                self._registrar.send(order.message)
            else:
                assert_never(order)

    def _log_result(self, peer: str, result: wire.ActionResult) -> None:
        if result.code != OK:
            (log.warning if result.code in MENDED_BY_PEOPLE else log.debug)(
                "action_failed",
                worker=peer,
                action=result.action,
                kind=result.kind,
                code=result.code,
                message=result.message,
            )


def _log_notice(notice: Notice) -> None:
    pause = {"pause_s": notice.pause_s} if notice.pause_s else {}
    log.warning(notice.event, frontend=notice.frontend, client=notice.client, ref=notice.ref, code=notice.code, **pause)


def _introduces(messages: list[wire.ToController]) -> bool:
    return any(isinstance(message, (wire.WorkerHello, wire.FrontendHello, wire.Goodbye)) for message in messages)
