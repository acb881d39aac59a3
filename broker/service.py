"""The broker's shell: tells services of each other, and keeps the catalogue."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import assert_never

import msgspec
import structlog

from broker.core.admitting import why_not
from broker.core.calls import Replies
from broker.core.catalogue import Catalogue
from broker.core.children import ChildStates
from broker.core.effect import HeldReplies
from broker.core.rights import needed, refusal
from broker.core.routing import Routing
from broker.keeping import CatalogueKeeper
from broker.store import CatalogueStore
from mesh import wire
from mesh.codes import LinkLoss, ReplyCode
from mesh.net.ports import Port
from mesh.net.transport import Mail
from mesh.process.ids import host_id
from mesh.process.repository import look, scan_repository
from mesh.process.runtime import Runtime
from mesh.roles import Holder, PortKind
from mesh.versions import why_changed

DECODER = msgspec.msgpack.Decoder(wire.Envelope[wire.ToBroker])
LINES_S = 1.0  # least time between two tables that differ in nothing but a line that containers printed
CALLS = frozenset(
    ("deploy", "undeploy", "rollback", "put_app", "drop_app", "claim_version", "get_table", "get_catalogue")
)  # tags of messages that are answered
REGISTER = "register"
Operation = wire.Deploy | wire.Rollback | wire.Undeploy | wire.PutApp | wire.DropApp | wire.ClaimVersion
log = structlog.get_logger("broker")


def _unsaved(reply: wire.CallReply, fault: str) -> wire.CallReply:
    """The reply with `fault` added if the change that it reports is not on disk."""
    if not fault or not reply.ok:
        return reply
    message = f"{reply.message}, but a broker that is started again will not know it: {fault}"
    return msgspec.structs.replace(reply, ok=False, message=message, code=ReplyCode.NOT_SAVED)


class BrokerService:
    """The port, the catalogue and the routing table."""

    def __init__(self, runtime: Runtime, wall_s: Callable[[], float] = time.time) -> None:
        """`wall_s`: seconds since 1970; how a broker whose catalogue is lost guesses which epochs were given."""
        self.settings = runtime.settings
        self._wall_s = wall_s
        self._hub = runtime.hub
        store = CatalogueStore(self.settings.data_dir / "catalogue.sqlite")
        self._keeper = CatalogueKeeper(store, runtime.hub.loop)
        self._catalogue = Catalogue()
        self._repository = self.settings.model_repository  # made absolute when the service starts
        self._routing = Routing(0)
        self._children = ChildStates()
        self._held = HeldReplies()  # to operators
        self._late: asyncio.TimerHandle | None = None  # when the first of them has waited long enough
        self._soon: asyncio.TimerHandle | None = None  # of a table that may wait
        self._changed = False
        self._stopped = False  # nothing more is taken, as nothing more is saved
        self._behind: dict[str, None] = {}  # members that registered again as they were: they may have lost the table
        self._port: Port[wire.ToBroker, wire.FromBroker] = Port(
            runtime.transport, "broker", DECODER, self._received, self._lost, kind=PortKind.BROKER, key_of=self._key_of
        )
        self.addresses: tuple[str, ...] = ()

    def start(self) -> None:
        """Listens, with the saved catalogue, and deploys packages that are new in the repository."""
        self._catalogue = self._keeper.open()
        self._repository = self.settings.model_repository.resolve()
        self._catalogue.repository = str(self._repository)
        self._routing = Routing(max(self._keeper.reserved(), int(self._wall_s() * 1000) << 16))
        self._keeper.reserve(self._routing.epoch)
        self._catalogue.scan(scan_repository(self._repository))
        self._keeper.save()
        most = self.settings.request_bytes_max  # an application's definition comes in a client's request
        self.addresses = self._port.listen(
            self.settings.host, self.settings.broker_port, "GEARMESH_BROKER_PORT", size_max=most
        )
        self._hub.on_turn(self._turn)
        log.info("started", address=self.addresses[-1], models=sorted(self._catalogue.deployed()), pid=os.getpid())

    def drain(self) -> bool:
        """Always True: the broker has nothing to finish."""
        return True

    def stop(self) -> None:
        """Saves the catalogue; replies that waited leave with the next turn, and the port is closed behind it."""
        self._stopped = True
        if self._soon is not None:
            self._soon.cancel()
        if self._late is not None:
            self._late.cancel()
        self._answer(self._held.rest())
        self._keeper.close()
        self._hub.loop.call_soon(self._port.close)
        log.info("stopped")

    def _key_of(self, member: str) -> str:
        known = self._routing.members.get(member)
        return known.key if known is not None else ""

    def _received(self, mail: Mail[wire.ToBroker]) -> None:
        if self._stopped:
            return
        holder = self._port.holder(mail.peer)
        for message in mail.messages:
            if holder is None or not needed(message).isdisjoint(holder.roles):
                self._take(mail.peer, message)
            else:
                self._refuse(mail.peer, message, holder)
        for unread in mail.unread:
            if unread.tag in CALLS:
                why = wire.CallReply(call=unread.number, ok=False, message=unread.why, code=ReplyCode.BAD_MESSAGE)
                self._port.send(mail.peer, why)
            elif unread.tag == REGISTER:
                self._refuse_member(mail.peer, unread.why)

    def _refuse(self, peer: str, message: wire.ToBroker, holder: Holder) -> None:
        """What the caller's key does not allow is not done, and told if somebody waits for it."""
        who = {"key": holder.name, "roles": ",".join(sorted(holder.roles))}
        log.warning("no_role", peer=peer, message=type(message).__name__, **who)
        reply = refusal(message, holder.roles)
        if reply is not None:
            self._port.send(peer, reply)

    def _take(self, peer: str, message: wire.ToBroker) -> None:
        match message:
            case wire.Heartbeat():
                self._beat(peer)
            case wire.Register():
                self._register(peer, message)
            case wire.Goodbye():
                self._leave(peer, LinkLoss.LEFT)
                self._port.forget(peer)
            case wire.TableTaken():
                self._answer(self._held.taken(peer, message.epoch))
            case wire.PrepareReport():
                self._report(peer, message)
            case wire.GetTable():
                self._port.send(peer, self._table())
                self._port.send(peer, wire.CallReply(call=message.call, ok=True, message=""))
            case wire.GetCatalogue():
                self._port.send(peer, self._known(message.call))
            case (
                wire.Deploy() | wire.Rollback() | wire.Undeploy() | wire.PutApp() | wire.DropApp() | wire.ClaimVersion()
            ):
                self._operate(peer, message)
            case _:
                assert_never(message)

    def _register(self, peer: str, register: wire.Register) -> None:
        """The member is in the table; or, of a container, it is told why its model cannot be."""
        holder = self._port.holder(peer)
        member = msgspec.structs.replace(register.member, key=holder.key if holder is not None else "")
        known = self._routing.members.get(member.id)
        why = why_not(peer, member, known)
        if why:
            self._refuse_member(peer, why)
            return
        self._children.took(member, time.monotonic())
        if known is not None and self._children.only_line(known, member):
            self._routing.register(member, register.epoch, register.seen)
            self._push_soon()
            return
        offered = member.offer is not None and (known is None or known.offer != member.offer)
        if offered and member.offer is not None and not self._take_offer(peer, member.id, member.offer):
            return
        for gone in self._routing.replaced_by(member):
            self._leave(gone, LinkLoss.REPLACED)
            self._port.forget(gone)
        changed = self._routing.register(member, register.epoch, register.seen)
        if changed and known is None:
            log.info("registered", member=member.id, role=member.role, pid=member.pid)
        if changed or offered:
            self._changed = True
        else:
            self._behind[peer] = None

    def _refuse_member(self, peer: str, why: str) -> None:
        """The service is told why it cannot be in the table."""
        log.warning("member_refused", peer=peer, why=why)
        self._port.send(peer, wire.CallReply(call=0, ok=False, message=why, code=ReplyCode.BAD_MEMBER))

    def _report(self, peer: str, report: wire.PrepareReport) -> None:
        """The report counts if it comes from the controller that owns the model, and says what can be."""
        name, _ = wire.split_ref(report.ref)
        fault = report.spec.fault() if report.spec is not None else ""
        if fault or self._routing.owners([name]).get(name) != peer:
            why = fault or "another controller owns the model"
            log.warning("report_refused", peer=peer, ref=report.ref, why=why)
            return
        self._log_report(report)
        self._reply(self._catalogue.reported(report))

    def _beat(self, peer: str) -> None:
        """An operator hears what its calls wait for.

        Whoever is unknown introduces itself: a member registers again; an operator, if it waits for a call that an
        earlier life of the broker took, calls again.
        """
        if peer in self._routing.members:
            return
        waits: list[wire.CallWaits] = []
        if peer.startswith("operator"):
            waits = self._catalogue.awaited(peer, self._routing.members.values())
        for told in waits or (wire.Introduce(),):
            self._port.send(peer, told)

    def _known(self, call: int) -> wire.CatalogueReply:
        try:
            inode = self._repository.stat().st_ino
        except OSError:
            inode = 0
        return wire.CatalogueReply(
            call=call,
            models=self._catalogue.known(),
            repository=str(self._repository),
            host=host_id(),
            machine=socket.gethostname(),
            inode=inode,
        )

    def _take_offer(self, peer: str, member: str, offer: wire.Offer) -> bool:
        """Puts a container's model into the catalogue, or tells the container why not. Returns whether it was taken."""
        why = self._catalogue.offered(member, offer)
        if why is not None:
            log.warning("container_refused", member=member, ref=offer.ref, why=why.message, code=why.code)
            self._port.send(peer, why)
            return False
        self._keeper.save()
        self._changed = True
        return True

    def _operate(self, peer: str, message: Operation) -> None:
        key = (peer, message.call)
        match message:
            case wire.Deploy():
                found = look(self._repository)
                deploy = self._catalogue.deploy
                self._reply(deploy(key, message.name, message.version, found.versions, found.faults), key)
            case wire.Rollback():
                self._reply(self._catalogue.rollback(key, message.name, message.version), key)
            case wire.Undeploy():
                self._reply(self._catalogue.undeploy(key, message.name), key)
            case wire.PutApp():
                self._answer_app(peer, self._catalogue.put_app(message.call, message.definition, create=message.create))
            case wire.DropApp():
                self._answer_app(peer, self._catalogue.drop_app(message.call, message.name))
            case wire.ClaimVersion():
                self._answer_claim(peer, message)
            case _:
                assert_never(message)

    def _answer_app(self, peer: str, reply: wire.CallReply) -> None:
        """Saves before it replies; the new table leaves in the same envelope, ahead of the reply."""
        fault = self._keeper.save()
        if reply.ok:
            self._push()
        self._port.send(peer, _unsaved(reply, fault))

    def _answer_claim(self, peer: str, claim: wire.ClaimVersion) -> None:
        """Saves before it replies, so that no number is given twice.

        A full disk does not keep a container from serving.
        """
        reply = self._catalogue.claim(claim.call, claim.name, claim.content, claim.version)
        self._keeper.save()
        self._port.send(peer, reply)
        log.info("claimed", peer=peer, model=claim.name, ok=reply.ok, message=reply.message, code=reply.code)

    def _reply(self, replies: Replies, asked: tuple[str, int] | None = None) -> None:
        changed = bool(self._catalogue.changed_models)
        self._changed = self._changed or changed or asked is not None
        fault = self._keeper.save()
        for (peer, call), told in replies:
            reply = _unsaved(told, fault)
            self._held.hold(peer, msgspec.structs.replace(reply, call=call))
            log.info(
                "answered", peer=peer, ok=reply.ok, message=reply.message, faults=list(reply.faults), code=reply.code
            )
        if not self._changed:
            self._answer(self._held.pushed(0, (), 0.0))
        if asked is not None:
            log.info("call", peer=asked[0], call=asked[1])

    def _answer(self, replies: list[tuple[str, wire.CallReply]]) -> None:
        for peer, reply in replies:
            self._port.send(peer, reply)

    def _ring(self) -> None:
        """Frontends that stand still hold up no operator."""
        self._late = None
        self._answer(self._held.due(time.monotonic()))
        self._arm()

    def _arm(self) -> None:
        due_s = self._held.due_at()
        if due_s is not None and self._late is None:
            self._late = self._hub.loop.call_later(max(0.0, due_s - time.monotonic()), self._ring)

    def _log_report(self, report: wire.PrepareReport) -> None:
        if self._catalogue.differs(report):
            log.warning("content_differs", ref=report.ref, content=report.content, advice=why_changed(report.ref))
        elif report.ok:
            log.debug("prepared", ref=report.ref, content=report.content)
        else:
            log.warning("not_prepared", ref=report.ref, faults=list(report.faults), code=report.code)

    def _lost(self, peer: str, why: str) -> None:
        self._leave(peer, why)

    def _leave(self, peer: str, why: str) -> None:
        self._catalogue.drop_calls(peer)
        self._catalogue.withdrawn(peer)
        self._children.left(peer)
        self._answer(self._held.left(peer))
        if self._routing.leave(peer):
            log.info("member_left", member=peer, why=why)
            self._changed = True

    def _turn(self, now: float) -> None:
        if self._stopped:
            return
        behind, self._behind = self._behind, {}
        if self._changed:
            self._push()
        elif behind:
            table = self._table()
            for peer in behind:
                self._port.send(peer, table)

    def _push_soon(self) -> None:
        """The table goes out within LINES_S: what containers print must not make the mesh busy."""
        if self._soon is None:
            self._soon = self._hub.loop.call_later(LINES_S, self._push)

    def _push(self) -> None:
        self._changed = False
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        self._routing.next_epoch()
        table = self._table()
        for member in self._routing.members:
            self._port.send(member, table)
        frontends = [member.id for member in self._routing.members.values() if member.role == "frontend"]
        self._answer(self._held.pushed(table.epoch, frontends, time.monotonic()))
        self._arm()

    def _table(self) -> wire.Table:
        self._keeper.reserve(self._routing.epoch)
        routing = self._routing
        return wire.Table(
            epoch=routing.epoch,
            members=self._children.aged(routing.members.values(), time.monotonic()),
            models=self._catalogue.entries(routing.owners(self._catalogue.deployed())),
            apps=self._catalogue.apps.entries(),
            shards=dict(routing.shards),
            workers=dict(routing.workers),
        )
