"""frontend/transport.py, where clients have keys: what a key lets its client say, and what its revocation ends."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import zmq

from frontend.core.protocol import InferRequest
from frontend.suspects import Suspects
from frontend.transport import ClientId, ClientPort
from mesh.net.key_folder import add_key, revoke
from mesh.net.keys import Keys
from mesh.roles import PortKind, Role
from tests.loops import Told, on_loop
from tests.mesh.net.processes import LIMIT_MS, Processes, processes

SIZE_MAX = 10_000


def calling(made: Processes, own: Path, address: str) -> "zmq.Socket[bytes]":
    sock = made.bare(zmq.DEALER)
    Keys.read(own).present(sock, PortKind.CLIENTS)
    sock.connect(address)
    sock.send(b"hello")
    return sock


@pytest.mark.parametrize(("role", "names"), [(Role.CLIENT, False), (Role.FRONTEND, True), (Role.OPERATOR, True)])
@on_loop
async def test_a_source_counts_from_those_who_may_name_one(tmp_path: Path, role: Role, names: bool) -> None:
    Keys.make(tmp_path / "keys")
    own = add_key(tmp_path / "keys", "somebody", (role,))
    async with processes() as made:
        numbers = Told()

        def heard(client: ClientId, header: bytes, frames: Any, arrived_s: float) -> None:
            asked = [InferRequest(id=1, inputs=[], model="m", source=source) for source in ("red", "blue", "red")]
            numbers([suspects.number(client, request) for request in asked])

        port = ClientPort(made.runtime(keys_dir=str(tmp_path / "keys")).hub, heard, lambda *_: True)
        suspects = Suspects(port.reception)
        calling(made, own, port.listen("127.0.0.1", 0, SIZE_MAX))
        ((red, blue, again),) = await numbers.count(1)  # from its first message on
        assert red == again
        assert (red != blue) is names
        port.close()


@on_loop
async def test_a_revoked_clients_connection_ends_and_others_do_not(tmp_path: Path) -> None:
    Keys.make(tmp_path / "keys")
    alice, bob = (add_key(tmp_path / "keys", name, (Role.CLIENT,)) for name in ("alice", "bob"))
    async with processes() as made:
        heard, gone = Told(), Told()
        port = ClientPort(made.runtime(keys_dir=str(tmp_path / "keys")).hub, heard, lambda *_: True, gone)
        address = port.listen("127.0.0.1", 0, SIZE_MAX)
        of_alice, of_bob = (calling(made, own, address) for own in (alice, bob))
        clients = {client for client, *_ in await heard.count(2)}
        monitor = of_alice.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        revoke(tmp_path / "keys", "alice")
        (left,) = await gone.count(1)
        assert left in clients
        assert await asyncio.to_thread(monitor.poll, LIMIT_MS)
        of_alice.disable_monitor()
        monitor.close(0)
        of_bob.send(b"again")
        client, header, *_ = (await heard.count(3))[2]
        assert (header, client == left) == (b"again", False)
        assert port.reception.connections_refused == 1
        port.close()
