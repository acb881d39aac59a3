"""An operator's calls to the broker: deploy, undeploy, rollback, and reading the routing table and the catalogue."""

import secrets
import time
from collections.abc import Callable
from typing import TypeVar, assert_never

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from mesh import wire
from mesh.errors import SettingsError
from mesh.net.keys import Keys
from mesh.net.links import REFUSED
from mesh.process.settings import Settings
from mesh.roles import PortKind, who_may_call

DECODER = msgspec.msgpack.Decoder(wire.Envelope[wire.FromBroker])
TOLD_WITHIN_S = 3.0  # even a slow broker answers within this time
GONE_S = 10.0  # a broker that was heard may be silent for so long: `gearmesh up` restarts it within a few seconds
BEAT_S = 0.2
UNKNOWN = "what was asked may have been done, or not; `gearmesh models` tells, once it is back"
Reply = TypeVar("Reply", wire.CallReply, wire.CatalogueReply)


class NoBroker(Exception):
    """No broker answers at its address."""


class NotLetIn(NoBroker):
    """The broker refuses this operator's key, or there is none to show."""


class Operator:
    """A short-lived link to the broker; a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waits_for = ""  # what the call waits for, as the broker last said
        self._context = zmq.Context()
        self._sock: zmq.Socket[bytes] | None = None  # opened by the first call, and again after a refusal
        self._monitor: zmq.Socket[bytes] | None = None
        self._doubts = 0  # handshakes that the broker has ended without a reason
        self.keys: Keys | None = None  # with which it called last; None: it had none

    def __enter__(self) -> "Operator":
        return self

    def __exit__(self, *_: object) -> None:
        if self._sock is not None:
            self._send(wire.Goodbye())
        self._hang_up()
        self._context.term()

    def _dial(self) -> None:
        """There is a link. Raises: NoBroker (there are no keys with which an operator may call)."""
        if self._sock is not None:
            return
        address = self._settings.broker_address
        try:
            self.keys = self._settings.mesh_keys(make=False)
        except SettingsError as error:
            self.keys = None
            raise NotLetIn(f"the broker at {address} cannot be asked: {'; '.join(error.faults)}") from error
        sock = self._sock = self._context.socket(zmq.DEALER)
        sock.setsockopt_string(zmq.ROUTING_ID, f"operator-{secrets.token_hex(4)}")
        sock.setsockopt(zmq.LINGER, 200)
        self._monitor = sock.get_monitor_socket(REFUSED)
        self._doubts = 0
        self.keys.present(sock, PortKind.BROKER)
        sock.connect(address)

    def _hang_up(self) -> None:
        if self._sock is not None and self._monitor is not None:
            self._sock.disable_monitor()
            self._monitor.close(0)
            self._sock.close()
        self._sock = self._monitor = None

    def _check_let_in(self) -> None:
        """Raises NoBroker if the broker refuses our keys; the next call reads them again."""
        assert self._monitor is not None
        assert self.keys is not None
        while self._monitor.poll(0):
            event = parse_monitor_message(self._monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._doubts += 1
                continue
            self._hang_up()
            address, needed = self._settings.broker_address, who_may_call(PortKind.BROKER)
            why = "refuses our key" if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH else "has no keys, or others"
            raise NotLetIn(f"the broker at {address} {why}: {needed}; {self.keys.advice}")

    def call(
        self,
        message: wire.ToBroker,
        timeout_s: float,
        waiting: Callable[[], None] = lambda: None,
        told: Callable[[wire.CallWaits], None] = lambda waits: None,
    ) -> wire.CallReply:
        """The outcome of a call. Raises: NoBroker, TimeoutError.

        Until it arrives, `waiting` is called repeatedly, and `told` with what the call waits for, as often as the
        broker says so. If the broker restarts meanwhile the call is sent again, unless it must not be done twice.
        """
        return self._ask(message, wire.CallReply, timeout_s, waiting, told)[0]

    def table(self, timeout_s: float = TOLD_WITHIN_S) -> wire.Table:
        """The routing table. Raises: NoBroker, TimeoutError."""
        _, table = self._ask(wire.GetTable(call=1), wire.CallReply, timeout_s)
        assert table is not None
        return table

    def catalogue(self, timeout_s: float = TOLD_WITHIN_S) -> wire.CatalogueReply:
        """All that the broker knows of models, and where packages are. Raises: NoBroker, TimeoutError."""
        return self._ask(wire.GetCatalogue(call=1), wire.CatalogueReply, timeout_s)[0]

    def _ask(
        self,
        message: wire.ToBroker,
        wanted: type[Reply],
        timeout_s: float,
        waiting: Callable[[], None] = lambda: None,
        told: Callable[[wire.CallWaits], None] = lambda waits: None,
    ) -> tuple[Reply, wire.Table | None]:
        self._dial()
        assert self._sock is not None
        self._send(message)
        self._waits_for = ""
        began_s = beat_s = asked_s = time.monotonic()
        heard_s: float | None = None
        table: wire.Table | None = None
        while True:
            now = time.monotonic()
            self._check_alive(now, began_s, heard_s, timeout_s)
            if now - beat_s > BEAT_S:
                self._send(wire.Heartbeat())
                beat_s = now
            waiting()
            self._check_let_in()
            if not self._sock.poll(100):
                continue
            heard_s = time.monotonic()
            for answer in DECODER.decode(self._sock.recv()).messages:
                if isinstance(answer, wanted):
                    return answer, table
                match answer:
                    case wire.Table():
                        table = answer
                    case wire.Introduce():
                        if heard_s - asked_s > BEAT_S:
                            asked_s = heard_s  # once, though it says so of every heartbeat that waited for it
                            self._ask_again(message)
                    case wire.CallWaits():
                        self._waits_for = answer.message
                        told(answer)
                    case wire.Heartbeat() | wire.Goodbye() | wire.CallReply() | wire.CatalogueReply():
                        pass
                    case _:
                        assert_never(answer)

    def _check_alive(self, now: float, began_s: float, heard_s: float | None, timeout_s: float) -> None:
        """Raises NoBroker if the broker was never heard or has been silent for too long, TimeoutError if time is up."""
        address = self._settings.broker_address
        late = now - began_s > timeout_s
        if heard_s is None and self._doubts and (late or now - began_s > TOLD_WITHIN_S) and self.keys is not None:
            self._hang_up()  # the next call reads the keys again
            raise NotLetIn(f"what listens at {address} has other keys, or is no broker: {self.keys.advice}")
        if heard_s is None and now - began_s > TOLD_WITHIN_S:
            self._hang_up()
            raise NoBroker(f"no broker answers at {address}; is the mesh up? (gearmesh up)")
        silent_s = now - (heard_s if heard_s is not None else began_s)
        if silent_s > (self._settings.silence_ms_max / 1e3 if late else GONE_S):
            raise NoBroker(f"the broker at {address} has not been heard for {silent_s:.0f} s: {UNKNOWN}")
        if late:
            why = f": {self._waits_for}" if self._waits_for else ""
            raise TimeoutError(f"no outcome after {timeout_s:.0f} s{why}; the broker is still at it")

    def _ask_again(self, message: wire.ToBroker) -> None:
        """Sends the call again, because the broker does not know of it: it restarted, or it took us for lost.

        Raises: NoBroker, if the call may have taken effect already and must not be done twice.
        """
        if isinstance(message, wire.Rollback) and message.version is None:
            raise NoBroker(f"the broker at {self._settings.broker_address} has been started again: {UNKNOWN}")
        self._send(message)

    def _send(self, message: wire.ToBroker) -> None:
        assert self._sock is not None
        self._sock.send(msgspec.msgpack.encode(wire.Envelope(time.monotonic(), None, 0, [message])))
