"""A mesh of real processes on ports of its own, for benchmarks and end-to-end tests."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from frontend.client.async_client import AsyncClient
from gearmesh.operations.containers import ContainerFile, keep_containers
from gearmesh.operations.joining import why_apart
from gearmesh.operations.ports import free_ports
from gearmesh.operations.supervisor import PROCFILE, Supervisor, processes_of, procfile_commands
from gearmesh.operations.up import first_of, wait_ready
from mesh.process.configuration import read_settings
from mesh.process.settings import without_settings

STARTS_WITHIN_S = 600.0


class NotReady(RuntimeError):
    """The mesh was not ready in time; `str()` has its log's last lines."""


@dataclass(slots=True)
class Mesh:
    """A running mesh."""

    supervisor: Supervisor
    environment: dict[str, str]
    address: str  # address for clients
    lines: list[str] = field(default_factory=list)  # output of its processes, "process | line"

    def log(self, last: int = 60) -> str:
        """The last lines of the output, for error messages."""
        return "\n".join(self.lines[-last:])


@contextlib.asynccontextmanager
async def mesh(
    repository: Path,
    data_dir: Path,
    *,
    compact: bool = False,
    formation: Mapping[str, int] | None = None,
    ready: bool = True,
    **settings: object,
) -> AsyncIterator[Mesh]:
    """Runs the Procfile until the block ends. With `ready` it first waits until every model can be served. Raises:
    NotReady.

    There is a gateway only if the setting http_port is given, and spares only if the setting spares is: they would
    take processor time from what is measured or tested.
    """
    formation = {**({} if settings.get("http_port") else {"gateway": 0}), **(formation or {})}
    frontends = max(1, formation.get("frontend", 1))
    broker, controller, first, *_ = free_ports(2 + frontends)
    environment = {
        **without_settings(os.environ),
        "GEARMESH_BROKER_PORT": str(broker),
        "GEARMESH_CONTROLLER_PORT": str(controller),
        "GEARMESH_FRONTEND_PORT": str(first),
        "GEARMESH_HTTP_PORT": "0",
        "GEARMESH_SPARES": "",
        "GEARMESH_MODEL_REPOSITORY": str(repository),
        "GEARMESH_DATA_DIR": str(data_dir),
        **{f"GEARMESH_{name.upper()}": str(value) for name, value in settings.items()},
    }
    lines: list[str] = []
    read = read_settings(environment=environment)
    worker = compact and not why_apart(read, processes_of(PROCFILE), formation)
    commands = procfile_commands(PROCFILE, formation, compact=compact, worker=worker)
    supervisor = Supervisor(commands, lambda name, line: lines.append(f"{name} | {line}"), environment, read.spares)
    running = Mesh(supervisor, environment, f"tcp://127.0.0.1:{first}", lines)
    supervisor.start()
    containers = asyncio.create_task(keep_containers(supervisor, ContainerFile(data_dir), read))
    try:
        if ready:
            await _wait(running)
        yield running
    finally:
        containers.cancel()
        await asyncio.gather(containers, return_exceptions=True)
        await supervisor.stop()


async def _wait(running: Mesh) -> None:
    async with AsyncClient(running.address) as session:
        waiting = asyncio.ensure_future(wait_ready(session, lambda done, names: None))
        await first_of(waiting, running.supervisor.failed, timeout_s=STARTS_WITHIN_S)
        if not waiting.done():
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            raise NotReady(f"the mesh did not become ready:\n{running.log()}")
