"""Meshes whose processes are killed one after the other: all services, real models, and a container that is kept."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frontend.client.async_client import AsyncClient
from gearmesh.operations.ports import free_ports
from scripts import ROOT
from scripts.rigs.checkouts import HeldMesh, held_mesh, interpreter
from scripts.rigs.meshes import until
from scripts.rigs.recovery_clients import Subject

DIGITS, PHOTOS, FUNCTION = "digits_mlp", "resnet18", "double"
CODE = "def double(x):\n    return 2 * x\n"
CONTAINER = (
    "container", "--model", FUNCTION, "--predict", "code_of_bench:double", "--input", "x:float32:-1,4",
    "--output", "y:float32:-1,4", "--replicas", "1",
)  # fmt: skip
SUBJECTS = {
    DIGITS: Subject("image", np.full((1, 64), 8, np.float32), 0.02),
    PHOTOS: Subject("x", np.zeros((1, 3, 224, 224), np.float32), 0.2),
    FUNCTION: Subject("x", np.ones((1, 4), np.float32), 0.02),
}
SERVICES = {  # {kind: what follows -m in its command line}
    "worker": "gpu_worker", "controller": "controller", "frontend": "frontend", "broker": "broker",
    "gateway": "frontend.gateway", "container": "gearmesh", "code": "",
}  # fmt: skip
READY_S = 120.0


@dataclass(frozen=True, slots=True)
class KilledMesh:
    """A mesh, and where its processes are found."""

    held: HeldMesh
    http_port: int
    holder: int  # the process that started all others

    async def pid(self, kind: str) -> int:
        """The process of that kind that serves now."""
        if kind == "code":
            return _children(await self.pid("container"))[0]
        found = [pid for pid in _children(self.holder) if _module(pid) == SERVICES[kind]]
        if kind == "worker":  # one that waits to take its place looks like it, but is no member
            async with AsyncClient(self.held.address) as client:
                members = (await client.call("status"))["members"]
            found = [pid for pid in found if any(member["pid"] == pid for member in members)]
        (one,) = found
        return one


@asynccontextmanager
async def killed_mesh(checkout: Path, repository: Path, folder: Path, spares: str | None) -> AsyncIterator[KilledMesh]:
    """A mesh of that checkout, ready, until the block ends. `spares`: the setting; None: the checkout knows none."""
    (port,) = free_ports(1)
    more = {} if spares is None else {"spares": spares}
    async with held_mesh(checkout, repository, folder / "data", device="cpu", http_port=port, **more) as held:
        (folder / "code_of_bench.py").write_text(CODE)  # beside the data, whose folder the mesh has made
        process = await asyncio.create_subprocess_exec(
            interpreter(checkout), "-P", "-m", "gearmesh", *CONTAINER, cwd=folder,
            env={**held.environment, "PYTHONPATH": str(checkout)}, stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        if await process.wait():
            raise SystemExit(f"the container of {checkout} could not be kept")
        await _all_ready(held)
        yield KilledMesh(held, port, _parent(next(iter(held.pids.values()))))


async def starts(checkout: Path, repository: Path, folder: Path, count: int, spares: str | None) -> list[float]:
    """Seconds from the start of the process that runs a mesh until all its models can be asked, so many times."""
    more = {} if spares is None else {"spares": spares}
    took_s = []
    for _ in range(count):
        began_s = time.monotonic()
        async with held_mesh(checkout, repository, folder, device="cpu", **more):
            took_s.append(time.monotonic() - began_s)
    return took_s


def knows_spares(checkout: Path) -> bool:
    """Whether the mesh of that checkout can keep processes ready."""
    return checkout == ROOT or (checkout / "gearmesh/operations/spares.py").exists()


async def _all_ready(held: HeldMesh) -> None:
    """Every model that clients ask can be asked. Raises: TimeoutError."""
    async with AsyncClient(held.address) as client, asyncio.timeout(READY_S):

        async def are() -> bool:
            return {entry["name"] for entry in await client.models() if entry["ready"]} >= SUBJECTS.keys()

        await until(are)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _module(pid: int) -> str:
    """What the process runs with -m."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return ""
    return words[words.index("-m") + 1] if "-m" in words else ""
