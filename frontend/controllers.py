"""The frontend's links to controllers: which controller owns which model, what it serves, and what follows its loss."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, assert_never

import msgspec
import structlog

from mesh import wire
from mesh.addresses import address_fault
from mesh.codes import LinkLoss, RequestOutcome
from mesh.doubling import Doubling
from mesh.losses import Losses
from mesh.net.links import KEY_AGAIN_S, KEY_LOSSES, Link
from mesh.net.transport import Mail, Transport

DECODER = msgspec.msgpack.Decoder(wire.Envelope[wire.FromControllerToFrontend])
REOPEN_S, REOPEN_S_MAX = 0.05, 0.5  # pause before a lost link is opened again: the first, and the longest
TOLD_MAX = 20_000  # the latest requests that controllers were told are over; refusals may cross with that
log = structlog.get_logger("frontend")


@dataclass(slots=True)
class Controller:
    """One known controller."""

    link: Link[wire.FromControllerToFrontend, wire.ToController]
    serving: set[str] = field(default_factory=set)  # refs for which it has a worker
    heard_s: float | None = None  # when something last arrived
    lag_s: float = 0.0  # how long our mail waits there, as it said last; it says so until that is short

    def heard(self, now: float) -> float | None:
        """When it was last heard. In our own process it has nothing to say while there is nothing to do."""
        return now if self.link.in_memory and self.heard_s is not None else self.heard_s


class Controllers:
    """Shell.

    Calls `refused` with every refusal and its controller's id, `suspected` with what a controller says of a client,
    `lagging` with how long our mail waits where it waits longest, `lost` with the id of a controller that is gone,
    `ready` when to submit.
    """

    def __init__(
        self,
        transport: Transport,
        hello: Callable[[], wire.FrontendHello],
        refused: Callable[[wire.Refused, str], None],
        suspected: Callable[[wire.ClientSuspected], None],
        lagging: Callable[[float], None],
        lost: Callable[[str], None],
        ready: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._hello = hello
        self._refused = refused
        self._suspected = suspected
        self._lagging = lagging
        self._lost = lost
        self._ready = ready
        self._known: dict[str, Controller] = {}  # {member id: controller} with an open link
        self._members: dict[str, wire.Member] = {}  # {member id: member}, of the last table
        self._owners: dict[str, str] = {}  # {model: id of its controller}; kept while that link is open
        self.losses = Losses()  # links that were lost
        self._pauses: dict[str, Doubling] = {}  # {controller of the table: until its link is opened again}
        self._silent: dict[str, float] = {}  # {lost controller: when it was last heard}: the table's, and the last one
        self._told: dict[int, None] = {}  # requests that a controller was told are over, oldest first; at most TOLD_MAX
        self._stopped = False

    def table_changed(self, table: wire.Table) -> None:
        """Opens links to all controllers of the table."""
        controllers = [member for member in table.members if member.role == "controller"]
        usable = [member for member in controllers if not address_fault(member.endpoints.get("control", ()))]
        living = {member.endpoints["control"]: member for member in usable}
        self._members = {member.id: member for member in living.values()}  # of two at one address, the later is alive
        for model in table.models:
            if model.owner is not None:
                self._owners[model.name] = model.owner
            elif self._owners.get(model.name) not in self._known:
                self._owners.pop(model.name, None)
        latest = max(self._silent, key=self._silent.__getitem__, default=None)
        self._silent = {peer: at for peer, at in self._silent.items() if peer in self._members or peer == latest}
        self._pauses = {peer: pauses for peer, pauses in self._pauses.items() if peer in self._members}
        self.losses.keep_only({*self._members, *self._known})
        self._let_go()
        for member in self._members.values():
            if member.id not in self._known:
                self._open(member)
        self._ready()

    def _let_go(self) -> None:
        """Closes links that still wait for a controller that is gone.

        Such a link would connect to the successor at the same address, where nobody waits for it.
        """
        for peer, known in list(self._known.items()):
            if peer not in self._members and known.link.heard_s is None:
                known.link.close()
                self._link_lost(peer, LinkLoss.GONE)

    def submit(self, model: str, message: wire.Submit) -> None:
        """Sends `message` to the controller that `owner` returns."""
        self._known[self._owners[model]].link.send(message)

    def owner(self, model: str) -> str | None:
        """The id of the model's controller if there is a link to it; else None."""
        owner = self._owners.get(model)
        return owner if owner in self._known else None

    @property
    def reached(self) -> int:
        """How many controllers have been heard on a link that is open."""
        return sum(known.link.heard_s is not None for known in self._known.values())

    def serves(self, model: str, ref: str) -> bool:
        """Whether the model's controller has a worker for `ref`."""
        controller = self._known.get(self._owners.get(model, ""))
        return controller is not None and ref in controller.serving

    def heard_ago(self, now: float) -> dict[str, float | None]:
        """{controller: seconds since it was heard; None: never yet}: those of the table. While none of them is there,
        also the one that was lost last.
        """
        heard = {peer: known.heard(now) for peer, known in self._known.items() if peer in self._members}
        there = any(at is not None for at in heard.values())
        for peer in self._members if there else (*self._members, *self._silent):
            if heard.get(peer) is None:
                heard[peer] = self._silent.get(peer)
        return {peer: None if at is None else now - at for peer, at in heard.items()}

    def describe(self, now: float) -> list[dict[str, Any]]:
        """How the links to the table's controllers are: for the answer to `status`."""
        described: list[dict[str, Any]] = []
        for peer in self._members:
            known, loss = self._known.get(peer), self.losses.of(peer)
            heard_s = known.heard(now) if known is not None else self._silent.get(peer)
            described.append(
                {
                    "peer": peer,
                    "role": "controller",
                    "up": known is not None and known.heard_s is not None,
                    "heard_ago_s": None if heard_s is None else now - heard_s,
                    "lost": 0 if loss is None else loss.count,
                    "lost_ago_s": None if loss is None else now - loss.at_s,
                    "why": None if loss is None else loss.why,
                    "resent": 0,
                }
            )
        return described

    def cancel(self, controller: str, request: int, outcome: str = RequestOutcome.CANCELLED) -> None:
        """Tells the controller that nobody waits for this request any more, and how it ended for its client."""
        self._told[request] = None
        if len(self._told) > TOLD_MAX:
            del self._told[next(iter(self._told))]
        known = self._known.get(controller)
        if known is not None:
            known.link.send(wire.Cancel(request=request, outcome=outcome))

    def told(self, request: int) -> bool:
        """Whether a controller was told lately that this request is over."""
        return request in self._told

    def stop(self) -> None:
        """Tells every controller that we leave."""
        self._stopped = True
        for controller in self._known.values():
            controller.link.send(wire.Goodbye())
            self._transport.hub.loop.call_soon(controller.link.close, 200)

    def _open(self, member: wire.Member) -> None:
        link: Link[wire.FromControllerToFrontend, wire.ToController] = Link(
            self._transport, self._hello().member, member.id, DECODER, self._received, self._link_lost
        )
        self._known[member.id] = Controller(link)
        link.call(member.endpoints["control"])
        link.send(self._hello())

    def _link_lost(self, peer: str, why: str) -> None:
        told = log.info if self._transport.ending or why == LinkLoss.LEFT else log.warning
        told("controller_lost", controller=peer, why=why)
        self.losses.lost(peer, why, time.monotonic())
        gone = self._known.pop(peer)
        heard_s = gone.heard_s
        if gone.lag_s:
            self._tell_lag()  # it can say no more that nothing waits there
        if heard_s is not None and why in (LinkLoss.SILENT, LinkLoss.CLOSED):
            self._silent[peer] = heard_s
        self._lost(peer)
        if not self._stopped:
            pauses = self._pauses.setdefault(peer, Doubling(REOPEN_S, REOPEN_S_MAX))
            if heard_s is not None:
                pauses.reset()
            pause = pauses.next()
            self._transport.hub.loop.call_later(
                max(pause, KEY_AGAIN_S) if why in KEY_LOSSES else pause, self._reopen, peer
            )

    def _tell_lag(self) -> None:
        self._lagging(max((known.lag_s for known in self._known.values()), default=0.0))

    def _reopen(self, peer: str) -> None:
        """Opens a link again if the table still names the lost controller: perhaps only the connection broke."""
        member = self._members.get(peer)
        if member is not None and peer not in self._known and not self._stopped:
            self._open(member)
            self._ready()

    def _received(self, mail: Mail[wire.FromControllerToFrontend]) -> None:
        controller = self._known.get(mail.peer)
        if controller is None:
            return
        controller.heard_s = mail.now
        for message in mail.messages:
            match message:
                case wire.Refused():
                    self._refused(message, mail.peer)
                case wire.ClientSuspected():
                    self._suspected(message)
                case wire.IntakeLag():
                    controller.lag_s = message.lag_s
                    self._tell_lag()
                case wire.Serving():
                    if message.controller != mail.peer:
                        self._members.pop(mail.peer, None)  # its successor answers there; the table will name it
                        controller.link.close()
                        self._link_lost(mail.peer, LinkLoss.REPLACED)
                        return
                    if message.reset:
                        controller.serving.clear()
                    controller.serving.update(message.added)
                    controller.serving.difference_update(message.removed)
                case wire.Introduce():
                    controller.link.send(self._hello())
                case wire.Goodbye():
                    controller.link.close()
                    self._link_lost(mail.peer, LinkLoss.LEFT)
                    return
                case wire.HelloRefused():
                    log.error("hello_refused", controller=mail.peer, code=message.code, why=message.message)
                case wire.Heartbeat():
                    pass
                case _:
                    assert_never(message)
