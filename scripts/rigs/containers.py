"""Containers of small numpy functions beside a mesh, as real processes."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from frontend.client.async_client import AsyncClient
from gearmesh.operations.meshes import Mesh
from mesh.process.readiness import ReadyPipe
from scripts import ROOT
from scripts.rigs.checkouts import HeldMesh, interpreter
from scripts.rigs.meshes import until

SPECS = ("--input", "x:float32:-1,4", "--output", "y:float32:-1,4")
X = np.arange(4, dtype=np.float32)[np.newaxis]


class Container:
    """One running container, and what it has printed. `welcomed`: set once a controller has welcomed it."""

    def __init__(self, process: asyncio.subprocess.Process, welcomed: asyncio.Event, pipe: ReadyPipe) -> None:
        self.process, self.welcomed, self._pipe = process, welcomed, pipe
        self.lines: list[str] = []
        self._reading = asyncio.create_task(self._read())
        self._changed = asyncio.Event()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode().rstrip())
            self._changed.set()

    async def says(self, text: str) -> str:
        """Returns the first line that holds `text`, once there is one."""
        while True:
            for line in self.lines:
                if text in line:
                    return line
            self._changed.clear()
            await self._changed.wait()

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        code = await self.process.wait()
        await self._reading
        self._pipe.close()
        return code

    async def stop(self) -> int:
        """Asks it to end, and returns its exit code."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    def kill(self) -> None:
        """Ends it without a word."""
        self.process.send_signal(signal.SIGKILL)


everybody: list[Container] = []  # started by this test


async def start_container(
    running: Mesh | HeldMesh, folder: Path, predict: str, *options: str, model: str = "f", checkout: Path = ROOT
) -> Container:
    """A container of `predict`, which lies in `folder`, by the code of `checkout`; it registers in its own time."""
    welcomed = asyncio.Event()
    pipe = ReadyPipe(asyncio.get_running_loop(), welcomed.set).open()
    process = await asyncio.create_subprocess_exec(
        interpreter(checkout), "-P", "-m", "gearmesh", "container", "--model", model, "--predict", predict, *options,
        cwd=folder, env={**running.environment, **pipe.environment, "PYTHONPATH": str(checkout)}, limit=1 << 20,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, pass_fds=pipe.descriptors,
    )  # fmt: skip
    pipe.handed_over()
    everybody.append(Container(process, welcomed, pipe))
    return everybody[-1]


def kill_everybody() -> None:
    """Whatever a test that failed left running is gone."""
    for started in everybody:
        if started.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(started.process.pid, signal.SIGKILL)
    everybody.clear()


@contextlib.asynccontextmanager
async def container(
    running: Mesh | HeldMesh,
    folder: Path,
    predict: str,
    *options: str,
    model: str = "f",
    ready: bool = True,
    checkout: Path = ROOT,
) -> AsyncIterator[Container]:
    """A container until the block ends; `ready`: entered once its model can be asked."""
    started = await start_container(running, folder, predict, *(options or SPECS), model=model, checkout=checkout)
    try:
        if ready:
            await started.welcomed.wait()
            await is_ready(running, model)
        yield started
    except BaseException as error:
        error.add_note("the container's log:\n" + "\n".join(started.lines[-40:]))
        raise
    finally:
        await started.stop()


async def is_ready(running: Mesh | HeldMesh, model: str, ready: bool = True) -> None:
    """Returns once the model can be asked (or cannot any more)."""
    async with AsyncClient(running.address) as client:

        async def is_so() -> bool:
            return ready == any(entry["ready"] for entry in await client.models() if entry["name"] == model)

        await until(is_so)


def child_pid(started: Container) -> int:
    """The process that the function runs in."""
    children = Path(f"/proc/{started.process.pid}/task/{started.process.pid}/children").read_text().split()
    assert len(children) == 1, children
    return int(children[0])


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
