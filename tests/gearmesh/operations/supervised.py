"""A supervisor of shell commands, and what its processes say."""

import contextlib
import os
from collections.abc import AsyncIterator, Mapping

from gearmesh.operations.supervisor import Supervisor
from tests.loops import Told


@contextlib.asynccontextmanager
async def running(
    commands: Mapping[str, str | tuple[str, int]], environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Supervisor, Told]]:
    """A supervisor of these shell commands, and all output lines."""
    said = Told()
    pairs = {name: command if isinstance(command, tuple) else (command, 0) for name, command in commands.items()}
    supervisor = Supervisor(pairs, said, environment or {"PATH": os.environ["PATH"]})
    supervisor.start()
    try:
        yield supervisor, said
    finally:
        await supervisor.stop()
        assert supervisor.pids() == {}


async def heard(said: Told, *lines: tuple[str, str]) -> None:
    await said.until(lambda items: all(line in items for line in lines))
