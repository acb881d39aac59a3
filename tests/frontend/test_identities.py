"""The clients' port over real sockets: whose connection an identity is, who has left, and who can never be heard."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
import structlog
import zmq

from frontend import transport as module
from frontend.core.unheard import CURVE, FIRST_LOOK_S, FREE_S, IN_USE_S, LOOK_S, PLAIN, REQ_LESS, Wire
from frontend.descriptors import received_by
from frontend.transport import HEARTBEAT_S, SILENCE_S_MAX, ClientId, ClientPort
from mesh.codes import IdentityRefusal
from scripts import ROOT
from tests.loops import Told, on_loop
from tests.mesh.net.processes import Processes, processes

NAME = b"host-A"
ENDS = zmq.EVENT_DISCONNECTED
SPEAKER = """
import sys, zmq
sock = zmq.Context().socket(zmq.DEALER)
sock.routing_id = sys.argv[2].encode()
sock.connect(sys.argv[1])
sock.send(b"spoke")
print(sock.recv(), flush=True)
sock.recv()
"""


class Echo:
    """An open port that answers each message with `header` + b"!"; `said` and `gone` keep what it was told."""

    def __init__(self, made: Processes) -> None:
        self.hub = made.runtime().hub
        self.said, self.gone = Told(), Told()
        self.received: Callable[[ClientId, bytes, list[Any]], None] = self._answer
        self.port = ClientPort(self.hub, self._hear, lambda *_: True, self._left)
        self.address = self.port.listen("127.0.0.1", 0, 1 << 20)
        self.answers = True

    def _hear(self, who: ClientId, header: bytes, frames: list[Any], *instants: float) -> None:
        self.received(who, header, frames)

    def _answer(self, client: ClientId, header: bytes, frames: list[Any]) -> None:
        self.said(client, header)
        if self.answers:
            self.port.answer(client, header + b"!")

    def _left(self, client: ClientId) -> None:
        self.gone(client)


class Asking:
    """A client's socket with a monitor, which asks again when its connection has ended, as the protocol wants it."""

    def __init__(self, made: Processes, address: str, name: bytes = b"", kind: int = zmq.DEALER) -> None:
        self.sock = made.bare(kind, name)
        self.sock.setsockopt(zmq.LINGER, 0)
        self.sock.setsockopt(zmq.RECONNECT_IVL, 50)
        self.monitor = self.sock.get_monitor_socket(ENDS)
        self._address: str | None = address
        self.ended = 0
        self.again = True

    def connect(self) -> None:
        """It connects, unless it has: who comes first must be no matter of chance."""
        address, self._address = self._address, None
        if address is not None:
            self.sock.connect(address)

    def send(self, message: bytes) -> None:
        """The message is sent."""
        self.connect()
        self.sock.send(message)

    async def answer(self, message: bytes, within_s: float) -> bytes | None:
        """The answer to the message; None: not in that time."""
        self.send(message)
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            if self.sock.poll(0):
                return self.sock.recv()
            if self.lost() and self.again:
                self.sock.send(message)
            await asyncio.sleep(0.01)
        return None

    def lost(self) -> bool:
        """Whether the connection was lost since the last call."""
        if not self.monitor.poll(0):
            return False
        self.monitor.recv_multipart()
        self.ended += 1
        return True

    def close(self) -> None:
        """The socket is closed."""
        self.sock.disable_monitor()
        self.monitor.close(0)
        self.sock.close(0)


@contextlib.contextmanager
def asking(made: Processes, *args: Any) -> Iterator[Asking]:
    client = Asking(made, *args)
    try:
        yield client
    finally:
        if not client.sock.closed:
            client.close()


@contextlib.contextmanager
def speaker(address: str, name: bytes) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with a client of this name, which speaks once."""
    with subprocess.Popen([sys.executable, "-c", SPEAKER, address, name.decode()], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@on_loop
async def test_a_client_that_leaves_is_told_of_once_all_it_said_was_passed_on() -> None:
    async with processes() as made:
        echo = Echo(made)
        with asking(made, echo.address) as one, asking(made, echo.address, NAME) as other:
            assert await one.answer(b"one", 10) == b"one!"
            assert await other.answer(b"other", 10) == b"other!"
            first, second = (client for client, _ in echo.said.items)
            one.close()
            assert await echo.gone.count(1) == [first]
            other.close()
            assert await echo.gone.count(2) == [first, second]


@on_loop
async def test_every_client_that_asks_and_leaves_at_once_is_told_of_after_its_last_message() -> None:
    async with processes() as made:
        echo = Echo(made)
        for i in range(30):
            with asking(made, echo.address, *([b"name-%d" % i] if i % 3 else [])) as client:
                for _ in range(3):
                    client.send(b"%d" % i)
                await echo.said.count(3 * i + 3)
        clients = [client for client, _ in echo.said.items]
        await echo.gone.until(lambda gone: set(gone) >= set(clients))
        assert len(set(clients)) >= 30


@on_loop
async def test_the_second_of_one_name_is_answered_soon_after_the_first_has_closed() -> None:
    async with processes() as made:
        echo = Echo(made)
        with asking(made, echo.address, NAME) as first, asking(made, echo.address, NAME) as second:
            assert await first.answer(b"first", 10) == b"first!"
            assert await second.answer(b"second", 0.5) is None
            first.close()
            closed_s = time.monotonic()
            assert await second.answer(b"second", 10) == b"second!"
            assert time.monotonic() - closed_s < 3
            assert second.ended == 1


@on_loop
async def test_while_the_first_lives_the_second_is_closed_and_a_line_says_why_and_the_first_is_served_on() -> None:
    async with processes() as made:
        echo = Echo(made)
        with (
            asking(made, echo.address, NAME) as first,
            asking(made, echo.address, NAME) as second,
            asking(made, echo.address) as quiet,
            asking(made, echo.address, NAME[::-1]) as quiet_with_a_name,
            structlog.testing.capture_logs() as lines,
        ):
            assert await first.answer(b"first", 10) == b"first!"
            quiet.connect()
            quiet_with_a_name.connect()
            second.send(b"second")
            while not second.lost():
                assert await first.answer(b"first", 10) == b"first!"
            (line,) = (line for line in lines if line["event"] == "connection_refused")
            assert line["why"] == IdentityRefusal.IN_USE
            assert line["peer"].startswith("127.0.0.1:")
            assert echo.port.reception.connections_refused == 1
            assert not any(client.lost() for client in (first, quiet, quiet_with_a_name))
            assert {header for _, header in echo.said.items} == {b"first"}


@on_loop
async def test_the_successor_of_a_frozen_client_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """With heartbeats ten times as fast; the bound with the real ones is the sum below."""
    assert HEARTBEAT_S + SILENCE_S_MAX + max(FREE_S, FIRST_LOOK_S) + LOOK_S < 8
    monkeypatch.setattr(module, "HEARTBEAT_S", HEARTBEAT_S / 10)
    monkeypatch.setattr(module, "SILENCE_S_MAX", SILENCE_S_MAX / 10)
    async with processes() as made:
        echo = Echo(made)
        with speaker(echo.address, NAME) as frozen:
            await echo.said.count(1)
            os.kill(frozen.pid, signal.SIGSTOP)
            frozen_s = time.monotonic()
            with asking(made, echo.address, NAME) as second:
                request = b"a request of some length"
                assert await second.answer(request, 20) == request + b"!"
                assert time.monotonic() - frozen_s < 8 - 0.9 * (HEARTBEAT_S + SILENCE_S_MAX)


@on_loop
async def test_no_answer_reaches_a_later_client_of_the_same_name() -> None:
    async with processes() as made:
        echo = Echo(made)
        echo.answers = False
        with asking(made, echo.address, NAME) as first, asking(made, echo.address, NAME) as second:
            first.send(b"first")
            ((one, _),) = await echo.said.count(1)
            first.close()
            await echo.gone.count(1)
            second.again = False
            while len(echo.said.items) < 2:
                second.send(b"second")
                await asyncio.sleep(0.05)
            other = echo.said.items[1][0]
            assert (other.identity, other == one) == (one.identity, False)
            echo.port.answer(one, b"the first one's")
            echo.port.answer(other, b"the second one's")
            echo.port.flush()
            assert second.sock.recv() == b"the second one's"
            assert echo.port.outbox.dropped == 1


@on_loop
async def test_clients_without_a_name_may_be_quiet_for_as_long_as_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.5)
    async with processes() as made:
        echo = Echo(made)
        kinds = (zmq.DEALER, zmq.REQ, zmq.ROUTER)
        with contextlib.ExitStack() as stack:
            quiet = [stack.enter_context(asking(made, echo.address, b"", kind)) for kind in kinds]
            named = [stack.enter_context(asking(made, echo.address, NAME)) for _ in range(2)]
            for client in quiet:
                client.connect()
            assert await named[0].answer(b"first", 10) == b"first!"
            request = b"a request of some length"
            assert await named[1].answer(request, FIRST_LOOK_S + IN_USE_S + 4 * LOOK_S) is None
            assert named[1].ended > 0
            named[0].close()
            assert await named[1].answer(request, 10) == request + b"!"
            assert not any(client.lost() for client in quiet)
            assert await quiet[0].answer(b"now", 10) == b"now!"


@on_loop
async def test_a_name_of_the_form_that_zeromq_gives_itself_is_refused_before_zeromq_gives_it() -> None:
    """Without that, the process ends with the first connection that would have it."""
    async with processes() as made:
        echo = Echo(made)
        with asking(made, echo.address) as honest, structlog.testing.capture_logs() as lines:
            assert await honest.answer(b"one", 10) == b"one!"
            ((client, _),) = echo.said.items
            number = int.from_bytes(client.identity[1:])
            for ahead in (100, 110, 1 << 20):
                with asking(made, echo.address, bytes(1) + ((number + ahead) % (1 << 32)).to_bytes(4)) as hostile:
                    assert await hostile.answer(b"hostile", 0.5) is None
                    while not hostile.ended:
                        hostile.lost()
                        await asyncio.sleep(0.01)
                    assert not hostile.sock.poll(0)
            for _ in range(120):
                with asking(made, echo.address) as other:
                    assert await other.answer(b"other", 10) == b"other!"
            assert await honest.answer(b"one", 10) == b"one!"
        assert lines[0]["event"] == "connection_refused"
        assert lines[0]["why"] == IdentityRefusal.RESERVED
        assert all(header != b"hostile" for _, header in echo.said.items)


OLD = [
    pytest.param(b"\x01\x00", b"\x02\x00a", id="without a name"),
    pytest.param(b"\x05\x00name", b"\x02\x01a\x03\x00bc", id="with a name, in two frames"),
    pytest.param(b"\x06\x00\x00abcd", b"\x01\x01\x02\x00a", id="with a reserved name"),
]


@pytest.mark.parametrize(("greeting", "message"), OLD)
@on_loop
async def test_messages_of_peers_with_an_old_protocol_are_counted_and_disturb_nobody(
    greeting: bytes, message: bytes
) -> None:
    async with processes() as made:
        echo = Echo(made)
        failed: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
        port = int(echo.address.rpartition(":")[2])
        with asking(made, echo.address) as honest, socket.create_connection(("127.0.0.1", port)) as old:
            assert await honest.answer(b"one", 10) == b"one!"
            old.sendall(greeting + 20 * message)
            while echo.port.reception.unreadable < 20:
                assert await honest.answer(b"one", 10) == b"one!"
            assert await honest.answer(b"one", 10) == b"one!"
        assert {header for _, header in echo.said.items} == {b"one"}
        assert not failed


NUMBER = """
import zmq
from mesh.net.sockets import Hub
hub = Hub(None)
router, dealer = (hub.socket(kind, size_max=-1) for kind in (zmq.ROUTER, zmq.DEALER))
router.bind("inproc://here")
dealer.connect("inproc://here")
dealer.send(b"")
print(router.recv().hex())
"""


def test_the_names_that_zeromq_gives_are_others_in_each_process() -> None:
    ran = [subprocess.run([sys.executable, "-c", NUMBER], cwd=ROOT, capture_output=True, check=True) for _ in range(3)]
    assert len({each.stdout for each in ran}) == 3


@pytest.mark.parametrize("wire", [PLAIN, CURVE], ids=["plain", "curve"])
@pytest.mark.parametrize(("kind", "less"), [(zmq.DEALER, 0), (zmq.ROUTER, 0), (zmq.REQ, REQ_LESS)])
@pytest.mark.parametrize("name", [b"", b"a", b"host-A", b"n" * 255])
def test_a_connection_costs_the_bytes_that_it_is_said_to_cost(wire: Wire, kind: int, less: int, name: bytes) -> None:
    context = zmq.Context()
    router, client = context.socket(zmq.ROUTER), context.socket(kind)
    router.heartbeat_ivl = 20
    if wire is CURVE:
        (public, secret), (its_public, its_secret) = zmq.curve_keypair(), zmq.curve_keypair()
        router.curve_server, router.curve_secretkey = True, secret
        client.curve_serverkey, client.curve_publickey, client.curve_secretkey = public, its_public, its_secret
    if name:
        client.routing_id = name
    monitor = router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    try:
        client.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        descriptor = int.from_bytes(monitor.recv_multipart()[0][2:], "little")
        monitor.recv_multipart()
        seen: set[int] = set()
        until_s = time.monotonic() + 10
        while len(seen) < 4 and time.monotonic() < until_s:
            received = received_by(descriptor)
            assert received is not None
            seen.add(received.bytes)
        first = wire.handshake + len(name) - less
        assert len(seen) == 4
        assert all(count >= first and (count - first) % wire.heartbeat == 0 for count in seen)
    finally:
        router.disable_monitor()
        monitor.close(0)
        context.destroy(linger=0)


BLOCKING = """
import sys
from frontend.client.client import Client
with Client(sys.argv[1]) as client:
    for _ in range(2):
        print(client.call("ping", timeout_s=60.0)["status"], flush=True)
"""
ASYNC = """
import asyncio, sys
from frontend.client.async_client import AsyncClient
async def main():
    async with AsyncClient(sys.argv[1]) as client:
        for _ in range(2):
            print((await client.call("ping", timeout_s=60.0))["status"], flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("code", [BLOCKING, ASYNC], ids=["blocking", "asyncio"])
@on_loop
async def test_our_clients_ask_again_after_they_were_frozen_for_too_long(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEARTBEAT_S", "SILENCE_S_MAX", "CLIENTS_PATIENCE_S"):
        monkeypatch.setattr(module, name, getattr(module, name) / 10)
    async with processes() as made:
        echo = Echo(made)

        def answer(client: ClientId, header: bytes, frames: list[Any]) -> None:
            echo.said(client, header)
            if len(echo.said.items) != 2:  # what was asked last before it froze is not answered
                told = {"id": msgpack.unpackb(header)["id"], "status": "ok"}
                echo.port.answer(client, msgpack.packb(told))

        echo.received = answer
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, echo.address, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        try:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ok\n"
            (asked, _), (again, _) = await echo.said.count(2)
            assert asked == again
            process.send_signal(signal.SIGSTOP)
            assert await echo.gone.count(1) == [asked]
            process.send_signal(signal.SIGCONT)
            assert await process.stdout.readline() == b"ok\n"
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
