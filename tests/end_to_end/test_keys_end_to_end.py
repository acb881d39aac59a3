"""Keys, in meshes of real processes: what each key can do, and what somebody without one cannot."""

import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from zmq.utils.monitor import parse_monitor_message

from frontend.client.async_client import AsyncClient
from frontend.client.client import RequestError
from frontend.client.defaults import read_keys
from gearmesh.operations.meshes import Mesh
from mesh import wire
from mesh.identities import named
from mesh.net.key_folder import add_key, revoke
from mesh.net.keys import Keys
from mesh.net.links import REFUSED
from mesh.net.transport import MEMORY
from mesh.roles import PortKind, Role
from scripts.rigs.meshes import LIMIT_S, LONG_MS, emulated_device, emulated_model, gearmesh, run_with_mesh, until

pytestmark = pytest.mark.end_to_end
X = np.zeros((1, 4), np.float32)
FROM_BROKER: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.FromBroker])
OK = 0  # exit code
ANY: Any = msgspec.msgpack.Decoder()


class Rogue:
    """Speaks to the internal ports as a service would, with the keys that it has: none, a client's, a worker's."""

    def __init__(self, keys: Keys | None) -> None:
        self.keys = keys
        self._context = zmq.Context()

    @contextlib.contextmanager
    def calling(
        self, address: str, identity: str | bytes, kind: PortKind, peer: str = ""
    ) -> "Iterator[zmq.Socket[bytes]]":
        with self._socket(identity, kind, peer) as sock:
            sock.connect(address)
            yield sock

    def refused(self, address: str, identity: str, kind: PortKind) -> bool:
        """Whether the port of this kind does not even let him connect."""
        with self._socket(identity, kind) as sock:
            # before it connects: whoever is refused sooner than somebody listens for it is never heard of
            monitor = sock.get_monitor_socket(REFUSED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
            sock.connect(address)
            assert monitor.poll(LIMIT_S * 1e3)
            event = parse_monitor_message(monitor.recv_multipart())["event"]
            sock.disable_monitor()
            monitor.close(0)
            return event != zmq.EVENT_HANDSHAKE_SUCCEEDED

    @contextlib.contextmanager
    def _socket(self, identity: str | bytes, kind: PortKind, peer: str = "") -> "Iterator[zmq.Socket[bytes]]":
        sock = self._context.socket(zmq.DEALER)
        sock.setsockopt(zmq.ROUTING_ID, identity.encode() if isinstance(identity, str) else identity)
        sock.linger, sock.rcvtimeo = 0, int(LIMIT_S * 1e3)
        if self.keys is not None:
            self.keys.present(sock, kind, peer)
        yield sock
        sock.close(0)

    def close(self) -> None:
        self._context.destroy(linger=0)


def said(*messages: Any) -> bytes:
    return msgspec.msgpack.encode(wire.Envelope(time.monotonic(), None, 0, list(messages)))


def tcp(member: wire.Member, endpoint: str) -> str:
    return next(address for address in member.endpoints[endpoint] if not address.startswith(MEMORY))


def broker_of(running: Mesh) -> str:
    return f"tcp://127.0.0.1:{running.environment['GEARMESH_BROKER_PORT']}"


def of(running: Mesh, **settings: Path) -> Mesh:
    """The mesh as a shell with these settings knows it."""
    environment = {**running.environment, **{name: str(value) for name, value in settings.items()}}
    return Mesh(running.supervisor, environment, running.address)


async def table(running: Mesh, keys: Keys) -> dict[str, wire.Member]:
    """{role: the member of it} of this mesh."""
    rogue = Rogue(keys)
    with rogue.calling(broker_of(running), "operator-1", PortKind.BROKER) as sock:
        sock.send(said(wire.GetTable(call=1)))
        found = None
        while found is None:
            messages = FROM_BROKER.decode(await asyncio.to_thread(sock.recv)).messages
            found = next((message for message in messages if isinstance(message, wire.Table)), None)
    rogue.close()
    return {member.role: member for member in found.members}


@contextlib.asynccontextmanager
async def worker_elsewhere(running: Mesh, keys: Path, device: str) -> AsyncIterator[None]:
    """A worker that was started by hand, with a folder of keys of its own and no data_dir of the mesh."""
    environment = {**running.environment, "GEARMESH_KEYS_DIR": str(keys), "GEARMESH_DEVICE": device}
    environment["GEARMESH_DATA_DIR"] = str(keys / "data")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gpu_worker", env={**os.environ, **environment}, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def is_served(address: str, keys: Any) -> bool:
    async with AsyncClient(address, keys=keys) as client:
        try:
            await client.infer("m", {"x": X}, slo_ms=LONG_MS, cache=False)
        except RequestError:
            return False
    return True


def test_each_key_does_what_its_role_says_and_nothing_else(tmp_path: Path) -> None:
    folder, device = tmp_path / "keys", emulated_device(tmp_path)
    Keys.make(folder)
    alice, box = add_key(folder, "alice", (Role.CLIENT,)), add_key(folder, "box", (Role.WORKER,))
    other = add_key(folder, "box-2", (Role.WORKER,))
    operator = add_key(folder, "olga", (Role.OPERATOR,))
    emulated_model(tmp_path / "models", "m")

    async def scenario(running: Mesh) -> None:
        broker = broker_of(running)
        async with worker_elsewhere(running, box, device):
            await until(lambda: is_served(running.address, read_keys(alice)))
            members = await table(running, Keys.read(operator))
            assert members["gpu_worker"].key == Keys.read(box).public.decode()
            # a client's key: no port but the clients'
            mallory = Rogue(Keys.read(alice))
            for name in ("operator-9", "gpu_worker-9", members["gpu_worker"].id):
                assert mallory.refused(broker, name, PortKind.BROKER)
                assert mallory.refused(tcp(members["controller"], "control"), name, PortKind.CONTROL)
                assert mallory.refused(tcp(members["frontend"], "results"), name, PortKind.RESULTS)
            mallory.close()
            code, output = await gearmesh(of(running, GEARMESH_KEYS_DIR=alice), "undeploy", "m")
            assert code != OK
            assert "takes keys with the role" in output
            # a worker's key: a worker, of its own name
            await rogue_worker(Rogue(Keys.read(box)), broker, members)
            # another worker's key: nobody who is connected
            await hijacker(Rogue(Keys.read(other)), members)
            assert await is_served(running.address, read_keys(alice))
            # an operator's
            code, output = await gearmesh(of(running, GEARMESH_KEYS_DIR=operator), "status")
            assert (code, "gpu_worker" in output) == (OK, True), output
            # revoked
            revoke(folder, "alice")
            await until(lambda: gone(running.address, alice))
            assert not await gone(running.address, operator)

    run_with_mesh(
        scenario, tmp_path / "models", tmp_path / "data", formation={"gpu_worker": 0}, ready=False, keys_dir=folder
    )


async def gone(address: str, folder: Path) -> bool:
    rogue = Rogue(Keys.read(folder))
    refused = await asyncio.to_thread(rogue.refused, address, "somebody", PortKind.CLIENTS)
    rogue.close()
    return refused


async def rogue_worker(rogue: Rogue, broker: str, members: dict[str, wire.Member]) -> None:
    """With a worker's key nobody deploys, reports for controllers, or registers as one; no answer is forged by it in
    another one's name.
    """
    with rogue.calling(broker, "operator-9", PortKind.BROKER) as sock:
        sock.send(said(wire.Undeploy(call=1, name="m")))
        assert not await asyncio.to_thread(sock.poll, 300)
    with rogue.calling(broker, "gpu_worker-9", PortKind.BROKER) as sock:
        sock.send(said(wire.Undeploy(call=1, name="m"), wire.PrepareReport(ref="m:1", ok=False, faults=("forged",))))
        told: list[Any] = []
        while not any(message[0] == "call_reply" for message in told):
            told += ANY.decode(await asyncio.to_thread(sock.recv))[3]
        (reply,) = (message for message in told if message[0] == "call_reply")
        assert "no_role" in reply
        member = wire.Member(id="controller-9", role="controller", host="here")
        posing = wire.Member(id="gpu_worker-9", role="controller", host="here")
        sock.send(said(wire.Register(member=member), wire.Register(member=posing)))
        sock.send(said(wire.Undeploy(call=2, name="m")))
        await asyncio.to_thread(sock.recv)  # it came behind them
    rogue.close()


async def hijacker(rogue: Rogue, members: dict[str, wire.Member]) -> None:
    """Speaks in the name of the connected worker, on a newer link as it seems: nobody listens, and nobody answers."""
    controller, frontend, worker = (members[role] for role in ("controller", "frontend", "gpu_worker"))
    outputs = wire.Outputs(ref="m:1", device="forged", batch=1, exec_s=0.0, answers=())
    for name in (worker.id.encode(), named(worker.id, 10**9, "ab", controller.id)):
        with rogue.calling(tcp(controller, "control"), name, PortKind.CONTROL, controller.id) as sock:
            for _ in range(3):
                sock.send(said(wire.Heartbeat(), wire.Goodbye()))
            assert not await asyncio.to_thread(sock.poll, 300)
    with rogue.calling(
        tcp(frontend, "results"), named(worker.id, 10**9, "ab", frontend.id), PortKind.RESULTS, frontend.id
    ) as sock:
        sock.send(said(outputs, wire.Goodbye()))
        assert not await asyncio.to_thread(sock.poll, 300)
    rogue.close()


def test_without_keys_a_stranger_on_the_machine_is_a_client_and_no_more(tmp_path: Path) -> None:
    emulated_model(tmp_path / "models", "m")
    data = tmp_path / "data"

    async def scenario(running: Mesh) -> None:
        keys = Keys.of_data_dir(data, make=False)
        members = await table(running, keys)
        broker = broker_of(running)
        for stranger in (Rogue(None), Rogue(Keys.of_data_dir(tmp_path / "own", make=True))):
            assert stranger.refused(broker, "operator-9", PortKind.BROKER)
            assert stranger.refused(tcp(members["controller"], "control"), members["gpu_worker"].id, PortKind.CONTROL)
            assert stranger.refused(tcp(members["frontend"], "results"), "gpu_worker-9", PortKind.RESULTS)
            assert not stranger.refused(running.address, "somebody", PortKind.CLIENTS)
            stranger.close()
        assert await is_served(running.address, None)
        assert (await gearmesh(running, "status"))[0] == OK
        for folder in (tmp_path / "nowhere", tmp_path / "own"):
            code, output = await gearmesh(of(running, GEARMESH_DATA_DIR=folder), "undeploy", "m")
            assert code != OK
            assert "GEARMESH_DATA_DIR" in output
            _, output = await gearmesh(of(running, GEARMESH_DATA_DIR=folder), "status")
            assert "GEARMESH_DATA_DIR" in re.sub(r"[\s│]+", " ", output)
        assert (await gearmesh(running, "undeploy", "m"))[0] == OK

    run_with_mesh(scenario, tmp_path / "models", data, device=emulated_device(tmp_path))
