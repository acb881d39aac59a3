"""A broker inside the test's process, and links that call it."""

import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.service import BrokerService
from gearmesh.operations.ports import free_ports
from mesh import wire
from mesh.net.links import Link
from mesh.net.registrar import DECODER as FROM_BROKER
from mesh.net.registrar import Registrar
from mesh.process.runtime import Runtime
from mesh.roles import PortKind
from tests.loops import Told
from tests.mesh.net.processes import Processes, messages_of

SPEC = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
    outputs=(wire.TensorSpec(name="y", dtype="float32", shape=(-1, 2)),),
    batch_max=8,
    slo_ms=50.0,
)


def package(repository: Path, name: str, *versions: str) -> None:
    """Writes a package into the repository, as much of it as the broker looks at."""
    (repository / name).mkdir(parents=True, exist_ok=True)
    (repository / name / "model.toml").write_text("")
    for version in versions:
        (repository / name / version).mkdir(exist_ok=True)


class Broker:
    """A broker that listens. `stop` ends it; another one may then be started on the same data and port.

    The port is reserved: while nobody listens there, the system gives it neither to another program's connection nor to
    one of those that call in vain.
    """

    def __init__(self, made: Processes, folder: Path, number: int = 0, wall_s: Callable[[], float] = time.time) -> None:
        self.folder = folder
        number = number or free_ports(1)[0]
        made.lend_keys(folder / "data")
        self.runtime = made.runtime(
            data_dir=folder / "data", model_repository=folder / "repository", broker_port=number
        )
        self.service = BrokerService(self.runtime, wall_s)
        self.service.start()
        self.running = True
        self.addresses = self.service.addresses
        self.number = int(self.addresses[-1].rpartition(":")[2])

    def stop(self) -> None:
        """Stops the broker as the end of its process does."""
        if self.running:
            self.running = False
            self.service.stop()
            self.runtime.transport.close()
            self.runtime.hub.close()


class Caller:
    """A link of any service to the broker; collects what the broker sent, by kind."""

    def __init__(self, runtime: Runtime, addresses: tuple[str, ...], identity: str) -> None:
        self.identity = identity
        self.mail, self.lost = Told(), Told()
        self.link: Link[Any, Any] = Link(
            runtime.transport, identity, "broker", FROM_BROKER, self.mail, self.lost, to=PortKind.BROKER
        ).call(addresses)

    def said(self) -> list[Any]:
        """All messages of the broker except heartbeats, in order."""
        return messages_of(self.mail.items)

    def tables(self) -> list[wire.Table]:
        """All tables received."""
        return [message for message in self.said() if isinstance(message, wire.Table)]

    def replies(self) -> list[wire.CallReply]:
        """All replies received."""
        return [message for message in self.said() if isinstance(message, wire.CallReply)]

    async def ask(self, message: Any) -> wire.CallReply:
        """The reply to this call. Its number must not have been used before."""
        self.link.send(message)
        await self.mail.until(lambda _: any(reply.call == message.call for reply in self.replies()))
        return next(reply for reply in self.replies() if reply.call == message.call)

    async def table(self, wanted: Any = lambda table: True) -> wire.Table:
        """The latest table for which `wanted` is true; waits for it."""
        await self.mail.until(lambda _: self.tables() and wanted(self.tables()[-1]))
        return self.tables()[-1]

    def register(self, role: str, epoch: int = 0) -> wire.Member:
        """Registers with the broker. Returns the member."""
        member = wire.Member(id=self.identity, role=role, host="here", endpoints=listens(self.identity), pid=7)
        self.link.send(wire.Register(member=member, epoch=epoch))
        return member


class Registered:
    """A service's registrar, and what it was told."""

    def __init__(self, runtime: Runtime, addresses: tuple[str, ...], identity: str, role: str) -> None:
        self.runtime = runtime
        self.tables, self.replies = Told(), Told()
        self.member = wire.Member(id=identity, role=role, host="here", endpoints=listens(identity))
        self.registrar = Registrar(runtime.transport, addresses, self.member, self.tables, self.replies)

    async def table(self, wanted: Any = lambda table: True) -> wire.Table:
        """The latest table for which `wanted` is true; waits for it."""
        tables = await self.tables.until(lambda tables: tables and wanted(tables[-1]))
        table: wire.Table = tables[-1]
        return table


def listens(identity: str) -> dict[str, tuple[str, ...]]:
    """Endpoints of a member: no two of them listen at one address."""
    return {"control": (f"tcp://127.0.0.1:{1 + zlib.crc32(identity.encode()) % 65_535}",)}


def members(table: wire.Table) -> list[str]:
    """The ids of the members in a table."""
    return [member.id for member in table.members]
