"""Which version a container's code is, with real processes: changed code is another one, by itself or not at all."""

import asyncio
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from frontend.client import AsyncClient, Prediction
from scripts.meshes import Mesh
from tests.end_to_end.containers import SPECS, X, is_ready
from tests.end_to_end.meshes import emulated_device, emulated_model, run_with_mesh
from tests.end_to_end.test_containers_end_to_end import gearmesh

pytestmark = pytest.mark.end_to_end


def write(folder: Path, factor: int) -> None:
    """The code multiplies by this from now on."""
    (folder / "toy.py").write_text(f"def f(x):\n    return x * {factor}\n")


async def keep(running: Mesh, folder: Path, *options: str) -> None:
    """`gearmesh up` keeps a replica of what the code is now."""
    command = ("container", "--model", "f", "--predict", "toy:f", *SPECS, "--replicas", "1", *options)
    code, output = await gearmesh(running, folder, *command)
    assert code == 0, output


def kill_code(running: Mesh) -> None:
    """The process that the kept replica's code runs in."""
    (pid,) = [pid for name, pid in running.supervisor.pids().items() if name.startswith("f.")]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


async def serves(client: AsyncClient, factor: int, version: str) -> None:
    """Returns once the answers are of this code and version; no other code ever answers under it."""
    while True:
        outcome = await client.submit("f", X, slo_ms=20_000, cache=False)
        if isinstance(outcome, Prediction) and outcome.version == version:
            np.testing.assert_array_equal(outcome["y"], X * factor)
            return


def test_code_that_changed_serves_under_the_next_number_when_its_process_has_to_be_started_again(
    tmp_path: Path,
) -> None:
    emulated_model(tmp_path / "repository", "a")

    async def first(running: Mesh) -> None:
        write(tmp_path, 2)
        await keep(running, tmp_path)
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


def test_code_that_changed_under_a_number_of_its_own_stays_down_and_status_says_why(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "a")

    async def scenario(running: Mesh) -> None:
        write(tmp_path, 2)
        await keep(running, tmp_path, "--version", "7")
        await is_ready(running, "f")
        async with AsyncClient(running.address) as client:
            await serves(client, 2, "7")
            write(tmp_path, 3)
            kill_code(running)
            while True:
                _, output = await gearmesh(running, tmp_path, "status", "--over", "0")
                if re.search(r"f\.1 is down: it cannot start.*version_exists", output):
                    break
            write(tmp_path, 2)
            code, output = await gearmesh(running, tmp_path, "scale", "f", "1")
            assert code == 0, output
            await serves(client, 2, "7")

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path))


def test_two_replicas_of_changed_code_started_at_once_are_one_version(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "a")

    async def scenario(running: Mesh) -> None:
        write(tmp_path, 2)
        await keep(running, tmp_path)
        await is_ready(running, "f")
        write(tmp_path, 3)
        command = ("container", "--model", "f", "--predict", "toy:f", *SPECS, "--replicas", "3")
        code, output = await gearmesh(running, tmp_path, *command)
        assert code == 0, output
        async with AsyncClient(running.address) as client:
            await serves(client, 3, "2")
            while True:
                members = (await client.call("status"))["members"]
                offers = sorted(member["serves"] for member in members if member["serves"])
                if offers == ["f:2"] * 3:
                    break
                assert set(offers) <= {"f:1", "f:2"}
                await asyncio.sleep(0)
            assert (await client.models())[-1]["versions"] == ["1", "2"]

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path))
