"""The hub, links and settings of a mesh process, and bare sockets as its peers; several of each on a test's loop."""

import asyncio
import contextlib
import errno
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from mesh import wire
from mesh.net.keys import LOCAL, Keys
from mesh.net.links import Link
from mesh.net.ports import Port
from mesh.net.transport import Mail
from mesh.process.runtime import Runtime
from mesh.process.settings import Settings
from mesh.roles import PortKind
from scripts.rigs.meshes import until
from tests.loops import LIMIT_S, Told

LIMIT_MS = int(LIMIT_S * 1e3)
TO_CONTROLLER: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.ToController])
FROM_CONTROLLER: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.FromControllerToFrontend])


class Processes:
    """Makes what a test needs, and closes all of it at the end."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self._stack = contextlib.ExitStack()
        self._keys: Keys | None = None  # of processes without a keys_dir: those of one mesh
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._bare: list[zmq.Socket[bytes]] = []  # kept, as a collected socket is closed with a warning

    def runtime(self, **settings: Any) -> Runtime:
        """The runtime of a new process: hub, transport, settings."""
        chosen = Settings(**{**self.settings, **settings})
        runtime = Runtime(chosen, keys=chosen.keys() or self.keys)
        self._stack.callback(runtime.hub.close)
        self._stack.callback(runtime.transport.close)
        return runtime

    def trusting(self, **settings: Any) -> Runtime:
        """The runtime of a process that presents no keys, for calls to sockets that ask for none."""
        runtime = self.runtime(**settings)
        runtime.hub.keys = None
        return runtime

    @property
    def keys(self) -> Keys:
        """The keys of the mesh, where it has no folder of keys."""
        if self._keys is None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory())
            self._keys = Keys.of_data_dir(Path(folder), make=True)
        return self._keys

    def bare(self, kind: int, identity: str | bytes = b"") -> "zmq.Socket[bytes]":
        """A socket outside the mesh, without keys, which may send anything; blocking, with a time limit."""
        return self._opened(self._shared().socket(kind), identity)

    def insider(
        self, kind: int, identity: str | bytes = b"", port: PortKind = PortKind.CONTROL, peer: str = "controller-1"
    ) -> "zmq.Socket[bytes]":
        """The same of somebody who has the keys of the mesh, and will call this port of this member."""
        sock = self._opened(self._shared().socket(kind), identity)
        self.keys.present(sock, port, peer)
        return sock

    def lend_keys(self, folder: Path) -> None:
        """The keys of the mesh are in this data_dir, too, if it takes files."""
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.keys.folder / LOCAL, folder / LOCAL)

    def _shared(self) -> "zmq.Context[zmq.Socket[bytes]]":
        if self._context is None:
            self._context = zmq.Context()
            self._stack.callback(self._context.destroy, linger=0)
        return self._context

    def _opened(self, sock: "zmq.Socket[bytes]", identity: str | bytes) -> "zmq.Socket[bytes]":
        self._bare.append(sock)
        sock.setsockopt(zmq.RCVTIMEO, LIMIT_MS)
        sock.setsockopt(zmq.SNDTIMEO, LIMIT_MS)
        if identity:
            sock.setsockopt(zmq.ROUTING_ID, identity if isinstance(identity, bytes) else identity.encode())
        return sock

    def port(self, runtime: Runtime, name: str = "control", **options: Any) -> "Listening":
        """An open port of the process."""
        return Listening(runtime, name, **options)

    def link(
        self,
        runtime: Runtime,
        addresses: tuple[str, ...],
        identity: str = "frontend-1",
        peer: str = "controller-1",
        **options: Any,
    ) -> "Calling":
        """A link of the process, which calls at once."""
        return Calling(runtime, addresses, identity, peer, **options)

    def close(self) -> None:
        """Closes everything."""
        self._stack.close()


@contextlib.asynccontextmanager
async def processes(**settings: Any) -> AsyncIterator[Processes]:
    """Processes with these settings, for one test."""
    made = Processes(**settings)
    try:
        yield made
    finally:
        made.close()


class Listening:
    """A port, and what it was told; `received`, if it is given, is called in place of `mail`."""

    def __init__(
        self,
        runtime: Runtime,
        name: str,
        number: int = 0,
        received: Callable[[Mail[Any]], None] | None = None,
        **options: Any,
    ) -> None:
        self.mail, self.lost = Told(), Told()
        self.port: Port[Any, Any] = Port(
            runtime.transport, name, TO_CONTROLLER, received or self.mail, self.lost, **options
        )
        self.addresses = self.port.listen("127.0.0.1", number, "GEARMESH_CONTROLLER_PORT")
        self.tcp = self.addresses[-1]

    async def messages(self, number: int) -> list[Any]:
        """All messages but heartbeats, once there are `number`."""
        return await _messages(self.mail, number)


class Calling:
    """A link, and what it was told; `received`, if it is given, is called in place of `mail`."""

    def __init__(
        self,
        runtime: Runtime,
        addresses: tuple[str, ...],
        identity: str,
        peer: str = "controller-1",
        received: Callable[[Mail[Any]], None] | None = None,
        **options: Any,
    ) -> None:
        self.mail, self.lost = Told(), Told()
        self.link: Link[Any, Any] = Link(
            runtime.transport, identity, peer, FROM_CONTROLLER, received or self.mail, self.lost, **options
        ).call(addresses)

    async def messages(self, number: int) -> list[Any]:
        """All messages but heartbeats, once there are `number`."""
        return await _messages(self.mail, number)


async def hears(sock: "zmq.Socket[bytes]") -> None:
    """Something can be read from the bare socket; the loop goes on meanwhile."""
    assert await asyncio.to_thread(sock.poll, LIMIT_MS)


async def unreachable(router: "zmq.Socket[bytes]", identity: bytes) -> None:
    """The ROUTER, which tells so, has no connection of that name any more.

    A monitor hears of a connection's end before the socket does, which takes messages for it until then.
    """

    def refused() -> bool:
        try:
            router.send_multipart([identity, b""], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            return error.errno == errno.EHOSTUNREACH
        return False

    await until(refused)


def messages_of(mails: list[Mail[Any]]) -> list[Any]:
    """All messages but heartbeats, in order."""
    return [message for mail in mails for message in mail.messages if not isinstance(message, wire.Heartbeat)]


async def _messages(mail: Told, number: int) -> list[Any]:
    return messages_of(await mail.until(lambda mails: len(messages_of(mails)) >= number))


def envelope(*messages: Any, sent_s: float = 0.0) -> bytes:
    """The bytes that a peer with its own clock would send."""
    return msgspec.msgpack.encode(wire.Envelope(sent_s, None, 0, list(messages)))
