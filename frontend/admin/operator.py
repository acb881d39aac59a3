"""An operator's calls to the broker: deploy, undeploy, rollback, and a look at the table."""

import secrets
import time
from collections.abc import Callable
from typing import TypeVar, assert_never

import msgspec
import zmq

from mesh import wire
from mesh.process.settings import Settings

DECODER = msgspec.msgpack.Decoder(wire.Envelope[wire.FromBroker])
TOLD_WITHIN_S = 3.0  # a broker that is there, if only just, answers by then
GONE_S = 10.0  # one that was heard may be away so long: `gearmesh up` starts it again, a few seconds later at most
BEAT_S = 0.2
UNKNOWN = "what was asked may have been done, or not; `gearmesh models` tells, once it is back"
Told = TypeVar("Told", wire.CallReply, wire.CatalogueReply)


class NoBroker(Exception):
    """Nobody answers at the broker's address."""


class Operator:
    """A short-lived link to the broker; a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = zmq.Context()
        self._sock: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._sock.setsockopt_string(zmq.ROUTING_ID, f"operator-{secrets.token_hex(4)}")
        self._sock.setsockopt(zmq.LINGER, 200)
        keys = settings.keys()
        if keys is not None:
            keys.present(self._sock)
        self._sock.connect(settings.broker_address)

    def __enter__(self) -> "Operator":
        return self

    def __exit__(self, *_: object) -> None:
        self._send(wire.Goodbye())
        self._sock.close()
        self._context.term()

    def call(
        self, message: wire.ToBroker, timeout_s: float, waiting: Callable[[], None] = lambda: None
    ) -> wire.CallReply:
        """The outcome of a call. `waiting` is called now and again until then. Raises: NoBroker, TimeoutError.

        A broker that is started again meanwhile is asked again, except for what must not be done twice.
        """
        return self._ask(message, wire.CallReply, timeout_s, waiting)[0]

    def table(self, timeout_s: float = TOLD_WITHIN_S) -> wire.Table:
        """The routing table. Raises: NoBroker, TimeoutError."""
        _, table = self._ask(wire.GetTable(call=1), wire.CallReply, timeout_s, lambda: None)
        assert table is not None
        return table

    def catalogue(self, timeout_s: float = TOLD_WITHIN_S) -> wire.CatalogueReply:
        """All that the broker knows of models, and where packages lie. Raises: NoBroker, TimeoutError."""
        return self._ask(wire.GetCatalogue(call=1), wire.CatalogueReply, timeout_s, lambda: None)[0]

    def _ask(
        self, message: wire.ToBroker, wanted: type[Told], timeout_s: float, waiting: Callable[[], None]
    ) -> tuple[Told, wire.Table | None]:
        self._send(message)
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
                    case wire.Heartbeat() | wire.Goodbye() | wire.CallReply() | wire.CatalogueReply():
                        pass
                    case _:
                        assert_never(answer)

    def _check_alive(self, now: float, began_s: float, heard_s: float | None, timeout_s: float) -> None:
        """Raises: NoBroker, of one that was never heard, or is silent for too long; TimeoutError."""
        address = self._settings.broker_address
        if heard_s is None and now - began_s > TOLD_WITHIN_S:
            raise NoBroker(f"no broker answers at {address}; is the mesh up? (gearmesh up)")
        late = now - began_s > timeout_s
        silent_s = now - (heard_s if heard_s is not None else began_s)
        if silent_s > (self._settings.silence_ms_max / 1e3 if late else GONE_S):
            raise NoBroker(f"the broker at {address} has not been heard for {silent_s:.0f} s: {UNKNOWN}")
        if late:
            raise TimeoutError(f"no outcome after {timeout_s:.0f} s; the broker is still at it")

    def _ask_again(self, message: wire.ToBroker) -> None:
        """The broker does not know that we wait: it is another one, or has taken us for gone.

        Raises: NoBroker, where it may have been done already, and must not be done once more."""
        if isinstance(message, wire.Rollback) and message.version is None:
            raise NoBroker(f"the broker at {self._settings.broker_address} has been started again: {UNKNOWN}")
        self._send(message)

    def _send(self, message: wire.ToBroker) -> None:
        self._sock.send(msgspec.msgpack.encode(wire.Envelope(time.monotonic(), None, 0, [message])))
