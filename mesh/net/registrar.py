"""A service's side of the broker: registers the service, keeps the latest table, registers again after a restart."""

import time
from collections.abc import Callable
from typing import assert_never

import msgspec
import structlog

from mesh import wire
from mesh.codes import ReplyCode
from mesh.doubling import Doubling
from mesh.net.links import KEY_AGAIN_S, KEY_LOSSES, Link
from mesh.net.transport import Mail, Transport
from mesh.roles import PortKind

CALL_S, CALL_S_MAX = 0.1, 0.5  # pause before a broker that was lost is called again: the first, and the longest
DECODER = msgspec.msgpack.Decoder(wire.Envelope[wire.FromBroker])
FRONTEND = "frontend"  # role of those for whose tables operators wait
log = structlog.get_logger("registrar")


class Registrar:
    """Shell. Calls `changed(table)` for every newer table, and `replied(reply)` at the end of every call."""

    def __init__(
        self,
        transport: Transport,
        addresses: tuple[str, ...],
        member: wire.Member,
        changed: Callable[[wire.Table], None],
        replied: Callable[[wire.CallReply], None] | None = None,
    ) -> None:
        self.member = member
        self.shard_epoch = 0  # a controller's own, once the broker assigned it one; a worker's newest
        self.table: wire.Table | None = None
        self._transport = transport
        self._addresses = addresses
        self._changed = changed
        self._replied = replied
        self._link: Link[wire.FromBroker, wire.ToBroker] | None = None
        self._pauses = Doubling(CALL_S, CALL_S_MAX)
        self._stopped = False

    def start(self) -> None:
        """Starts to call the broker."""
        self._open()

    def stop(self) -> None:
        """Tells the broker that this service leaves."""
        self._stopped = True
        if self._link is not None:
            self._link.send(wire.Goodbye())
            self._transport.hub.loop.call_soon(self._link.close, 200)

    def update(self, member: wire.Member) -> None:
        """The broker, and whoever has its table, will know the member as it is now."""
        self.member = member
        if self._link is not None:
            self._link.send(self._introduction())

    def obeyed(self, epoch: int) -> None:
        """The worker obeys a shard of this epoch; the broker, which may know of an older one, is told if it is newer.

        Otherwise the owner that the broker names could have an older one, and all that it orders would be refused.
        """
        if epoch > self.shard_epoch:
            self.shard_epoch = epoch
            self.update(self.member)

    def send(self, message: wire.ToBroker) -> bool:
        """Sends `message` to the broker once it answers. Returns False if the broker is known to be gone."""
        if self._link is None:
            return False
        self._link.send(message)
        return True

    def _open(self) -> None:
        if self._stopped:
            return
        link: Link[wire.FromBroker, wire.ToBroker] = Link(
            self._transport, self.member.id, "broker", DECODER, self._received, self._lost, to=PortKind.BROKER
        )
        self._link = link.call(self._addresses)
        self._link.send(self._introduction())

    def _introduction(self) -> wire.Register:
        seen = max(self.shard_epoch, self.table.epoch if self.table is not None else 0)
        return wire.Register(member=self.member, epoch=self.shard_epoch, seen=seen)

    def _lost(self, peer: str, why: str) -> None:
        if self.table is not None and not self._stopped:
            told = log.info if self._transport.ending else log.warning
            told("broker_lost", why=why, epoch=self.table.epoch, advice="serving goes on with the last table")
        self._link = None
        pause = self._pauses.next()
        self._transport.hub.loop.call_later(max(pause, KEY_AGAIN_S) if why in KEY_LOSSES else pause, self._open)

    def _received(self, mail: Mail[wire.FromBroker]) -> None:
        self._pauses.reset()
        for message in mail.messages:
            match message:
                case wire.Table():
                    self._take_table(message)
                case wire.CallReply():
                    if message.code == ReplyCode.BAD_MEMBER:
                        log.error("registration_refused", member=self.member.id, why=message.message, code=message.code)
                    if self._replied is not None:
                        self._replied(message)
                case wire.Introduce():
                    if self._link is not None:
                        self._link.send(self._introduction())
                case wire.Heartbeat() | wire.Goodbye() | wire.CatalogueReply() | wire.CallWaits():
                    pass  # that it was heard is the link's affair; nobody here asks for the catalogue, or deploys
                case _:
                    assert_never(message)

    def _take_table(self, table: wire.Table) -> None:
        if self.table is not None and table.epoch <= self.table.epoch:
            return
        self.table = table
        log.debug("table", epoch=table.epoch, members=len(table.members), models=len(table.models), at=time.monotonic())
        self._changed(table)
        if self.member.role == FRONTEND and self._link is not None:
            self._link.send(wire.TableTaken(epoch=table.epoch))
