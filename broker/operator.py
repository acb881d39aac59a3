"""An operator's calls to the broker: deploy, undeploy, rollback, and a look at the table."""

import secrets
import time
from collections.abc import Callable

import msgspec
import zmq

from broker import wire
from broker.config import Settings

DECODER = msgspec.msgpack.Decoder(wire.Envelope[wire.FromBroker])


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
        """The outcome of a call. `waiting` is called now and again until then. Raises: NoBroker, TimeoutError."""
        reply, _ = self._ask(message, timeout_s, waiting)
        return reply

    def table(self, timeout_s: float = 3.0) -> wire.Table:
        """The routing table. Raises: NoBroker, TimeoutError."""
        _, table = self._ask(wire.GetTable(call=1), timeout_s, lambda: None)
        assert table is not None
        return table

    def _ask(
        self, message: wire.ToBroker, timeout_s: float, waiting: Callable[[], None]
    ) -> tuple[wire.CallReply, wire.Table | None]:
        self._send(message)
        began_s = beat_s = time.monotonic()
        table: wire.Table | None = None
        heard = False
        while True:
            now = time.monotonic()
            if not heard and now - began_s > 3.0:
                raise NoBroker(f"no broker answers at {self._settings.broker_address}; is the mesh up? (gearmesh up)")
            if now - began_s > timeout_s:
                raise TimeoutError(f"no outcome after {timeout_s:.0f} s; the broker is still at it")
            if now - beat_s > 0.2:
                self._send(wire.Heartbeat())
                beat_s = now
            waiting()
            if not self._sock.poll(100):
                continue
            heard = True
            for answer in DECODER.decode(self._sock.recv()).messages:
                if isinstance(answer, wire.Table):
                    table = answer
                elif isinstance(answer, wire.CallReply):
                    return answer, table

    def _send(self, message: wire.ToBroker) -> None:
        self._sock.send(msgspec.msgpack.encode(wire.Envelope(time.monotonic(), None, 0, [message])))
