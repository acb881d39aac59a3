"""Which version a container's code is, with real processes: changed code is another one, by itself or not at all."""

import asyncio
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction
from gearmesh.operations.meshes import Mesh
from scripts.rigs.containers import SPECS, X, is_ready
from scripts.rigs.meshes import PAUSE_S, emulated_device, emulated_model, gearmesh, run_with_mesh, until
from tests.end_to_end.conftest import Shared
from tests.end_to_end.test_containers_end_to_end import keep

pytestmark = pytest.mark.end_to_end
ONCE_MS = 2000.0  # who asks for code that is gone may wait in vain: it is asked for again


def write(folder: Path, factor: int) -> None:
    """The code multiplies by this from now on."""
    (folder / "toy.py").write_text(f"def f(x):\n    return x * {factor}\n")


async def one(running: Mesh, folder: Path, *options: str, model: str = "f", replicas: int = 1) -> None:
    """`gearmesh up` keeps so many replicas of what the code is now."""
    command = ("--model", model, "--predict", "toy:f", *SPECS, "--replicas", str(replicas))
    await keep(running, folder, *command, *options)


def kill_code(running: Mesh, model: str = "f") -> None:
    """The process that the kept replica's code runs in."""
    (pid,) = [pid for name, pid in running.supervisor.pids().items() if name.startswith(f"{model}.")]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


async def serves(client: AsyncClient, factor: int, version: str, model: str = "f") -> None:
    """Returns once the answers are of this code and version; no other code ever answers under it."""
    while True:
        outcome = await client.submit(model, X, slo_ms=ONCE_MS, cache=False)
        if isinstance(outcome, Prediction) and outcome.version == version:
            np.testing.assert_array_equal(outcome["y"], X * factor)
            return


def test_code_that_changed_serves_under_the_next_number_when_its_process_has_to_be_started_again(
    tmp_path: Path,
) -> None:
    emulated_model(tmp_path / "repository", "a")

    async def first(running: Mesh) -> None:
        write(tmp_path, 2)
        await one(running, tmp_path)
        await is_ready(running, "f")
        async with AsyncClient(running.address) as client:
            await serves(client, 2, "1")
            write(tmp_path, 3)
            await serves(client, 2, "1")
            kill_code(running)
            await serves(client, 3, "2")
        write(tmp_path, 4)

    async def second(running: Mesh) -> None:
        await is_ready(running, "f")
        async with AsyncClient(running.address) as client:
            await serves(client, 4, "3")
            write(tmp_path, 2)
            kill_code(running)
            await serves(client, 2, "1")

    device = emulated_device(tmp_path)
    run_with_mesh(first, tmp_path / "repository", tmp_path / "data", device=device)
    run_with_mesh(second, tmp_path / "repository", tmp_path / "data", device=device, ready=False)


def test_code_that_changed_under_a_number_of_its_own_stays_down_and_status_says_why(
    shared: Shared, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        async def is_said() -> bool:
            _, output = await gearmesh(running, "status", "--over", "0")
            return re.search(r"numbered\.1 .*version_exists", output) is not None

        write(tmp_path, 2)
        await one(running, tmp_path, "--version", "7", model="numbered")
        await is_ready(running, "numbered")
        async with AsyncClient(running.address) as client:
            await serves(client, 2, "7", "numbered")
            write(tmp_path, 3)
            kill_code(running, "numbered")
            await until(is_said)
            write(tmp_path, 2)
            code, output = await gearmesh(running, "scale", "numbered", "1")
            assert code == 0, output
            await serves(client, 2, "7", "numbered")
        await gearmesh(running, "scale", "numbered", "0")

    shared.play(scenario)


def test_two_replicas_of_changed_code_started_at_once_are_one_version(shared: Shared, tmp_path: Path) -> None:
    async def scenario(running: Mesh) -> None:
        write(tmp_path, 2)
        await one(running, tmp_path, model="together")
        await is_ready(running, "together")
        write(tmp_path, 3)
        await one(running, tmp_path, model="together", replicas=3)
        async with AsyncClient(running.address) as client:
            await serves(client, 3, "2", "together")
            offers: list[str] = []
            while offers != ["together:2"] * 3:
                members = (await client.call("status"))["members"]
                serving = sorted(member["serves"] for member in members if member["serves"])
                offers = [ref for ref in serving if ref.startswith("together:")]
                assert set(offers) <= {"together:1", "together:2"}
                await asyncio.sleep(PAUSE_S)
            (versions,) = [model["versions"] for model in await client.models() if model["name"] == "together"]
            assert versions == ["1", "2"]
        await gearmesh(running, "scale", "together", "0")

    shared.play(scenario)
