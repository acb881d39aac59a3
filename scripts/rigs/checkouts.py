"""Meshes of several checkouts in one run, each by an interpreter of its own, for before and after."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts import ROOT

HOLD = """
import asyncio, importlib, json, sys
from pathlib import Path
mesh = importlib.import_module(sys.argv[1]).mesh
async def main():
    async with mesh(Path(sys.argv[2]), Path(sys.argv[3]), **json.loads(sys.argv[4])) as running:
        settings = {name: value for name, value in running.environment.items() if name.startswith("GEARMESH_")}
        print(json.dumps([running.address, settings, running.supervisor.pids()]), flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class HeldMesh:
    """A running mesh of a checkout."""

    checkout: Path
    address: str  # for clients
    environment: dict[str, str]  # of whoever belongs to it
    pids: dict[str, int]  # {name: process id} of its services


def interpreter(checkout: Path) -> str:
    """The one that runs this checkout's code: ours for ours, and else that in its .venv."""
    return sys.executable if checkout == ROOT else str(checkout / ".venv/bin/python")


@asynccontextmanager
async def held_mesh(checkout: Path, repository: Path, data_dir: Path, **settings: object) -> AsyncIterator[HeldMesh]:
    """The mesh of this checkout, ready, until the block ends. `settings`: of `gearmesh.operations.meshes.mesh`.

    Raises: SystemExit, if it does not start.
    """
    # before the layout of 2026-11-28, `gearmesh` was no package
    module = "gearmesh.operations.meshes" if (checkout / "gearmesh").is_dir() else "scripts.meshes"
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    process = await asyncio.create_subprocess_exec(
        interpreter(checkout), "-c", HOLD, module, repository, data_dir, json.dumps(settings), cwd=checkout,
        env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        told = await process.stdout.readline()
        if not told:
            raise SystemExit(f"the mesh of {checkout} did not start; what it said is above")
        address, named, pids = json.loads(told)
        yield HeldMesh(checkout, address, {**environment, **named}, pids)
    finally:
        process.stdin.close()
        await process.wait()
