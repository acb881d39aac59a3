"""Looks at a running mesh: asks the broker for the members, then every controller and frontend for its state.

The mesh spends nothing on this while nobody looks. It works across machines: controllers and frontends are called at
the addresses in the broker's table.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

import msgspec
import zmq

from frontend.admin import counts
from frontend.admin.operator import NoBroker, NotLetIn, Operator
from frontend.client.client import Client, RequestError
from mesh import wire
from mesh.addresses import MEMORY
from mesh.facts import Fact, Snapshot
from mesh.net.keys import Keys
from mesh.process.settings import Settings
from mesh.roles import PortKind

DECODER = msgspec.msgpack.Decoder(wire.Envelope[wire.FromControllerToOperator])
REPLY_S_MAX = 1.0  # a member that has not answered by then is shown as silent
BROKER_AGAIN_S = 5.0  # a broker that was silent is not asked again for so long
POLL_S = 0.05  # between two requests for facts
ROUNDS_MAX = 250  # replies fetched in one go: more than a controller stores for us
CHILD = wire.ChildState.__struct_fields__
FACTS_MAX = 1_000_000  # of one recording; about 2 GB of memory


class NoMesh(Exception):
    """No member of the mesh answers."""


@dataclass(slots=True)
class View:
    """The state of a mesh at one moment; members that did not answer are missing."""

    at_s: float  # by our clock
    broker: bool  # whether it answers
    epoch: int | None
    members: Sequence[wire.Member]
    snapshots: dict[str, Snapshot] = field(default_factory=dict)  # {controller: its state}
    frontends: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # {frontend: its status}
    models: list[dict[str, Any]] = field(default_factory=list)  # as a frontend describes them
    why: str = ""  # the broker does not let us in
    silent: dict[str, float | None] = field(default_factory=dict)  # {controller without a snapshot: seconds, if known}


@dataclass(slots=True)
class Recording:
    """What ended during a recording."""

    began_s: float
    ended_s: float
    facts: dict[str, list[Fact]] = field(default_factory=dict)  # {controller: facts, with instants of its clock}
    offset_s: dict[str, float] = field(default_factory=dict)  # {controller: its clock minus ours}
    dropped: int = 0
    silent: list[str] = field(default_factory=list)  # controllers that did not answer at the end


class Observer:
    """Links to every member that answers questions; a context manager, for one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = settings.keys()
        self._operator = Operator(settings)
        self._identity = f"operator-{secrets.token_hex(4)}"
        self._context = zmq.Context()
        self._controllers: dict[str, zmq.Socket[bytes]] = {}  # {controller: socket}
        self._frontends: dict[str, Client] = {}  # {address: client}
        self._members: Sequence[wire.Member] = ()  # of the last table
        self._epoch: int | None = None
        self._broker_after_s = 0.0
        self._why = ""  # the broker does not let us in
        self._call = 0
        self._heard_s: dict[str, float] = {}  # {controller of the last look: when it last answered}

    def __enter__(self) -> "Observer":
        return self

    def __exit__(self, *_: object) -> None:
        for controller, sock in self._controllers.items():
            self._send(controller, wire.Goodbye())
            sock.close(200)
        for client in self._frontends.values():
            client.close()
        self._operator.__exit__()
        self._context.term()

    # -- the present --------------------------------------------------------------------------------------------------

    def look(self, *, models: bool = False) -> View:
        """The state of the mesh; with `models`, what is deployed too.

        Takes up to 1 s per silent member. Raises: NoMesh.
        """
        broker = self._refresh()
        frontends = self._ask_frontends(models)
        if not broker and not self._members and not frontends:
            address = self._settings.frontend_address
            if self._why:  # it says what to do
                raise NoMesh(f"no frontend answers at {address}, and {self._why}")
            raise NoMesh(
                f"nobody answers: no broker at {self._settings.broker_address}, no frontend at {address}; is the mesh "
                "up? (gearmesh up)"
            )
        view = View(time.monotonic(), broker, self._epoch, self._members, why=self._why)
        for status, described in frontends:
            view.frontends[status["frontend"]] = status
            view.models = described
        for controller, reply in self._ask_controllers(lambda call: wire.AskSnapshot(call=call)).items():
            if isinstance(reply, wire.SnapshotReply):
                view.snapshots[controller] = reply.snapshot
        self._find_silent(view)
        return view

    def _find_silent(self, view: View) -> None:
        """The view knows which controllers do not answer, and for how long that is so as far as anybody knows."""
        self._heard_s |= dict.fromkeys(view.snapshots, view.at_s)
        told = [status.get("controllers", {}) for status in view.frontends.values()]
        known = {member.id for member in view.members if member.role == "controller"}.union(*told)
        for controller in sorted(known - view.snapshots.keys()):
            ago = [found[controller] for found in told if found.get(controller) is not None]
            ago += [view.at_s - self._heard_s[controller]] if controller in self._heard_s else []
            view.silent[controller] = min(ago, default=None)
        self._heard_s = {name: at for name, at in self._heard_s.items() if name in known}

    def _refresh(self) -> bool:
        """Updates the members.

        Returns False if the broker is silent: then the last table's, or a frontend's list, holds.
        """
        now = time.monotonic()
        if now < self._broker_after_s:
            return False
        try:
            table = self._operator.table(REPLY_S_MAX)
        except (NoBroker, TimeoutError) as error:
            self._why = str(error) if isinstance(error, NotLetIn) else ""
            self._broker_after_s = time.monotonic() + BROKER_AGAIN_S
            return False
        self._members, self._epoch, self._why = table.members, table.epoch, ""
        self._keep_links()
        return True

    def _keep_links(self) -> None:
        """Opens links to every controller of the table and closes all others."""
        wanted = {member.id: member for member in self._members if member.role == "controller"}
        for controller in self._controllers.keys() - wanted.keys():
            self._controllers.pop(controller).close(0)
        for controller in wanted.keys() - self._controllers.keys():
            addresses = wanted[controller].endpoints.get("control", ())
            address = next((address for address in addresses if not address.startswith(MEMORY)), None)
            if address is not None and self._operator.keys is not None:
                self._controllers[controller] = self._dial(controller, address, self._operator.keys)

    def _dial(self, controller: str, address: str, keys: Keys) -> "zmq.Socket[bytes]":
        sock: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        sock.setsockopt_string(zmq.ROUTING_ID, self._identity)
        sock.setsockopt(zmq.LINGER, 200)
        keys.present(sock, PortKind.CONTROL, controller)
        sock.connect(address)
        return sock

    def _ask_frontends(self, models: bool) -> list[tuple[Mapping[str, Any], list[dict[str, Any]]]]:
        addresses = [
            member.endpoints["clients"][0]
            for member in self._members
            if member.role == "frontend" and member.endpoints.get("clients")
        ] or [self._settings.frontend_address]
        for address in self._frontends.keys() - set(addresses):
            self._frontends.pop(address).close()
        answers = []
        for address in addresses:
            client = self._frontends.get(address)
            if client is None:
                keys = self._keys
                client = Client(address, keys=keys.for_clients if keys else None)
                self._frontends[address] = client
            try:
                status = client.call("status", timeout_s=REPLY_S_MAX)
            except RequestError:
                continue
            described: list[dict[str, Any]] = []
            if models:
                with contextlib.suppress(RequestError):  # it may not have a table yet
                    described = client.models()
            answers.append((status, described))
            if not self._members:
                self._members = [_member(found) for found in status["members"]]
                self._epoch = status["epoch"]
                self._keep_links()
        return answers

    # -- the past, as it happens --------------------------------------------------------------------------------------

    def record(self, seconds: float, waiting: Callable[[float], None] = lambda left_s: None) -> Recording:
        """All that ends in the next `seconds`. `waiting(seconds left)` is called repeatedly. Raises: NoMesh."""
        if not self._refresh() and not self._ask_frontends(False):
            raise NoMesh(f"no broker answers at {self._settings.broker_address}; is the mesh up? (gearmesh up)")
        if not self._controllers:
            raise NoMesh("the mesh has no controller; `gearmesh status` shows who is there")
        self._collect(Recording(0.0, 0.0), stop=True)  # opens the links and measures the clocks
        recording = Recording(time.monotonic(), 0.0)
        rtts: dict[str, float] = {}
        ends_s = recording.began_s + seconds
        self._collect(recording, rtts=rtts)
        if len(recording.offset_s) == 0:
            raise NoMesh(f"no controller answers within {REPLY_S_MAX:g} s: {', '.join(self._controllers)}")
        while (now := time.monotonic()) < ends_s:
            waiting(ends_s - now)
            time.sleep(min(POLL_S, ends_s - now))
            self._collect(recording, rtts=rtts)
        answered = self._collect(recording, rtts=rtts)
        recording.ended_s = time.monotonic()
        recording.silent = sorted(self._controllers.keys() - answered)
        self._collect(recording, stop=True)
        return recording

    def _collect(self, recording: Recording, *, stop: bool = False, rtts: dict[str, float] | None = None) -> set[str]:
        """Fetches all facts that the controllers stored. Returns the controllers that answered."""
        rtts = {} if rtts is None else rtts
        answered: set[str] = set()
        open_: Iterable[str] = list(self._controllers)
        for _ in range(ROUNDS_MAX):
            if not open_:
                break
            sent_s = time.monotonic()
            replies = self._ask_controllers(lambda call: wire.AskFacts(call=call, stop=stop), open_)
            rtt_s = time.monotonic() - sent_s
            for controller, reply in replies.items():
                if not isinstance(reply, wire.FactsReply):
                    continue
                answered.add(controller)
                room = max(0, FACTS_MAX - sum(map(len, recording.facts.values())))
                recording.facts.setdefault(controller, []).extend(reply.facts[:room])
                recording.dropped += reply.dropped + max(0, len(reply.facts) - room)
                if rtt_s < rtts.get(controller, float("inf")):
                    rtts[controller] = rtt_s
                    recording.offset_s[controller] = reply.now_s - (sent_s + rtt_s / 2)
            open_ = [name for name, r in replies.items() if isinstance(r, wire.FactsReply) and r.more and not stop]
        return answered

    # -- links --------------------------------------------------------------------------------------------------------

    def _ask_controllers(
        self, message: Callable[[int], wire.ToController], controllers: Iterable[str] | None = None
    ) -> dict[str, wire.SnapshotReply | wire.FactsReply]:
        """{controller: its reply}, of those that reply in time."""
        self._call += 1
        asked = list(self._controllers) if controllers is None else list(controllers)
        poller = zmq.Poller()
        for controller in asked:
            self._send(controller, message(self._call))
            poller.register(self._controllers[controller], zmq.POLLIN)
        names = {self._controllers[controller]: controller for controller in asked}
        replies: dict[str, wire.SnapshotReply | wire.FactsReply] = {}
        ends_s = time.monotonic() + REPLY_S_MAX
        while len(replies) < len(asked) and (left_s := ends_s - time.monotonic()) > 0:
            for sock, _ in poller.poll(int(left_s * 1e3) + 1):
                for answer in DECODER.decode(sock.recv()).messages:
                    match answer:
                        case wire.SnapshotReply() | wire.FactsReply():
                            if answer.call == self._call:
                                replies[names[sock]] = answer
                        case wire.Heartbeat() | wire.Introduce() | wire.Goodbye():
                            pass
                        case _:
                            assert_never(answer)
        return replies

    def _send(self, controller: str, message: wire.ToController) -> None:
        body = msgspec.msgpack.encode(wire.Envelope(time.monotonic(), None, 0, [message]))
        with contextlib.suppress(zmq.Again):  # it refuses us, or is gone: then it is shown as silent
            self._controllers[controller].send(body, zmq.NOBLOCK)


def _member(found: Mapping[str, Any]) -> wire.Member:
    """The member, from a frontend's description."""
    endpoints = {name: tuple(addresses) for name, addresses in found["endpoints"].items()}
    told = found.get("child")
    child = wire.ChildState(**{name: told[name] for name in CHILD if name in told}) if told is not None else None
    return wire.Member(id=found["id"], role=found["role"], host="", endpoints=endpoints, pid=found["pid"], child=child)


# -- for programs -----------------------------------------------------------------------------------------------------


def describe(view: View) -> dict[str, Any]:
    """The view as maps and lists, for JSON."""
    built = msgspec.to_builtins
    return {
        "broker": view.broker,
        "epoch": view.epoch,
        "members": [
            {
                "id": m.id,
                "role": m.role,
                "pid": m.pid,
                "endpoints": {k: list(v) for k, v in m.endpoints.items()},
                "child": msgspec.structs.asdict(m.child) if m.child is not None else None,  # of a container
            }
            for m in view.members
        ],
        "controllers": {name: built(snapshot) for name, snapshot in view.snapshots.items()},
        "frontends": dict(view.frontends),
        "models": view.models,
        "silent": view.silent,
        "outcomes": counts.describe(view.frontends),
    }


def answering(view: View) -> dict[str, bool]:
    """{member: whether it answers}, the broker included; a worker counts as answering if a controller has it."""
    workers = {device.worker for snapshot in view.snapshots.values() for device in snapshot.devices}
    starting = {member.id for member in view.members if member.role == "container"}  # the broker hears of them
    there = {*view.snapshots, *view.frontends, *workers, *starting}
    silent = dict.fromkeys(view.silent, False)  # the broker may have given them up
    return {"broker": view.broker, **silent, **{member.id: member.id in there for member in view.members}}
