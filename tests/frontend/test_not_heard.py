"""frontend/transport.py: messages that are not heard keep the port from nothing, however many and fast they come."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import structlog
import zmq

from frontend import reception
from frontend import transport as module
from frontend.transport import ClientPort
from mesh.codes import IdentityRefusal
from tests.frontend.test_identities import Echo, asking
from tests.loops import LIMIT_S, on_loop
from tests.mesh.net.processes import Processes, processes

FLOOD = 20_000
STEP_MAX = 4 * (module.LOOK_EVERY + 1)  # of a flood, between two turns of the loop: two drains are usual
OLD_GREETING, OLD_MESSAGE = b"\x01\x00", b"\x02\x00a"  # of ZMTP 1


def not_heard(port: ClientPort) -> int:
    """How many messages were read and not heard."""
    return port.reception.unreadable + port.unheard


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is hardly time for anything before others get their turn."""
    for seconds in ("SLICE_S", "READ_S", "WORK_S"):
        monkeypatch.setattr(module, seconds, 0.0)


@pytest.fixture
def slow_to_expel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is expelled has its connection for longer than a test takes."""
    monkeypatch.setattr(reception, "EXPEL_S", LIMIT_S)


Flooding = Callable[[Processes, Echo], contextlib.AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def old_peer(made: Processes, echo: Echo) -> AsyncIterator[None]:
    """A flood of a peer that does not speak ZMTP 3."""
    with socket.create_connection(("127.0.0.1", int(echo.address.rpartition(":")[2]))) as old:
        old.sendall(OLD_GREETING + FLOOD * OLD_MESSAGE)
        yield


@contextlib.asynccontextmanager
async def expelled(made: Processes, echo: Echo) -> AsyncIterator[None]:
    """A flood of a client that was expelled, and goes on."""
    with asking(made, echo.address) as client:
        client.sock.setsockopt(zmq.SNDHWM, 0)
        assert await client.answer(b"one", LIMIT_S) == b"one!"
        echo.port.expel(echo.said.items[-1][0])
        for _ in range(FLOOD):
            client.send(b"more")
        yield


@pytest.mark.parametrize("flooding", [old_peer, expelled])
@on_loop
async def test_between_messages_that_are_not_heard_all_else_has_its_turn(
    flooding: Flooding, short_slices: None, slow_to_expel: None
) -> None:
    async with processes() as made:
        echo = Echo(made)
        seen = [0]
        echo.hub.on_turn(lambda now: seen.append(not_heard(echo.port)))
        with asking(made, echo.address) as honest:
            assert await honest.answer(b"before", LIMIT_S) == b"before!"
            async with flooding(made, echo):
                assert await honest.answer(b"meanwhile", LIMIT_S) == b"meanwhile!"
                while not_heard(echo.port) < FLOOD:
                    assert await honest.answer(b"meanwhile", LIMIT_S) == b"meanwhile!"
        assert max(later - earlier for earlier, later in itertools.pairwise(seen)) <= STEP_MAX


@pytest.mark.parametrize("flooding", [old_peer, expelled])
@on_loop
async def test_at_the_end_messages_that_are_not_heard_are_read_for_as_long_as_others(
    flooding: Flooding, monkeypatch: pytest.MonkeyPatch, short_slices: None, slow_to_expel: None
) -> None:
    monkeypatch.setattr(module, "LAST_MAX", 50)
    async with processes() as made:
        echo = Echo(made)
        async with flooding(made, echo):
            steps: list[int] = []
            while sum(steps) < FLOOD:  # the loop does not go on meanwhile
                before = not_heard(echo.port)
                assert list(echo.port.waiting()) == []
                steps.append(not_heard(echo.port) - before)
            assert max(steps) <= 50


OLD = [
    pytest.param(OLD_GREETING, OLD_MESSAGE, id="ZMTP 1"),
    pytest.param(b"\xff" + bytes(8) + b"\x7f\x01\x05" + b"\x00\x00", b"\x00\x01a", id="ZMTP 2"),
]


@pytest.mark.parametrize(("greeting", "message"), OLD)
@on_loop
async def test_a_peer_that_does_not_speak_zmtp_3_is_cut_off_and_nobody_else(greeting: bytes, message: bytes) -> None:
    async with processes() as made:
        echo = Echo(made)
        with (
            asking(made, echo.address) as honest,
            asking(made, echo.address) as quiet,
            asking(made, echo.address, b"quiet") as named,
            socket.create_connection(("127.0.0.1", int(echo.address.rpartition(":")[2]))) as old,
            structlog.testing.capture_logs() as lines,
        ):
            quiet.connect()
            named.connect()
            old.sendall(greeting + 100 * message)
            old.setblocking(False)
            with contextlib.suppress(ConnectionError):
                while await asyncio.get_running_loop().sock_recv(old, 1024):
                    pass
            assert await honest.answer(b"one", LIMIT_S) == b"one!"
            assert not any(client.lost() for client in (honest, quiet, named))
            assert echo.port.reception.unreadable == 100
            (line,) = (line for line in lines if line["event"] == "connection_refused")
            assert line["why"] == IdentityRefusal.OLD_PROTOCOL
