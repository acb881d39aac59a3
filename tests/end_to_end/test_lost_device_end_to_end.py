"""A device that fails for good, in a mesh of real processes: its worker ends, says why, and another takes its place."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from frontend.client.async_client import AsyncClient
from frontend.client.client import Failed, Prediction
from gearmesh.operations.meshes import Mesh
from gearmesh.operations.up import wait_ready
from gpu_worker.packages.export import write_package
from scripts import ROOT
from scripts.rigs.meshes import LONG_MS, run_with_mesh, until
from tests.gpu_worker.conftest import ROW, TwoInputs
from tests.gpu_worker.devices.cuda.fragile import WHY, install
from tests.gpu_worker.devices.cuda.hanging import DEADLY, STUCK
from tests.messages import names

pytestmark = pytest.mark.end_to_end


TWO = ROW | {"i": ("int64", ())}
X = np.ones((1, 4), np.float32)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`two` fails on the device where its index is none of the table's; `linear` never does."""
    folder = tmp_path / "repository"
    write_package(folder, "two", "1", TwoInputs(), inputs=TWO, outputs=["y", "z"], batch_max=4)
    write_package(folder, "linear", "1", nn.Linear(4, 3), inputs=ROW, outputs=["y"], batch_max=2)
    install(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return folder


def write_bad(repository: Path, name: str) -> None:
    """A package that says what it does not keep, which only the device finds out."""
    manifest = write_package(repository, name, "1", nn.Linear(4, 3), inputs=ROW, outputs=["y"], batch_max=2).manifest
    manifest.write_text(manifest.read_text().replace("shape = [-1, 3]", "shape = [-1, 5]"))


async def served_again(client: AsyncClient) -> None:
    """Another worker has taken the lost one's place."""
    while not isinstance(outcome := await client.submit("linear", X, slo_ms=LONG_MS), Prediction):
        assert outcome.code in ("not_ready", "no_worker", "worker_lost"), outcome
        await wait_ready(client, lambda done, names: None)


async def ended_as(running: Mesh, words: str) -> None:
    """Returns once the supervisor has said so of the worker: lines are read later than answers."""
    await until(lambda: any(line.startswith("up | gpu_worker") and words in line for line in running.lines))


def events(running: Mesh, name: str) -> list[dict[str, Any]]:
    """What the worker logged under this name."""
    found = [line.partition(" | ")[2] for line in running.lines if line.startswith("gpu_worker | {")]
    return [event for event in map(json.loads, found) if event["event"] == name]


def test_a_lost_device_ends_its_worker_with_a_code_of_its_own_and_the_next_one_serves(
    repository: Path, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await client.infer("two", {"x": X, "i": np.array([6])}, slo_ms=LONG_MS)
            with pytest.raises(Failed, match=WHY):
                await client.infer("two", {"x": X, "i": np.array([99])}, slo_ms=LONG_MS)
            await served_again(client)
        await until(lambda: bool(events(running, "device_lost")))
        (lost,) = events(running, "device_lost")
        assert (lost["level"], lost["device"], lost["why"], lost["exit_code"]) == ("error", "fragile:0", WHY, 3)
        await ended_as(running, "code 3")

    run_with_mesh(scenario, repository, tmp_path / "data", device="fragile", log_format="json", compact=True)


@pytest.mark.slow
def test_a_device_that_hangs_ends_its_worker_and_the_next_one_serves(repository: Path, tmp_path: Path) -> None:
    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await client.infer("two", {"x": X, "i": np.array([6])}, slo_ms=LONG_MS)
            with pytest.raises(Failed, match=r"EXEC.*two:1"):
                await client.infer("two", {"x": X, "i": np.array([99])}, slo_ms=LONG_MS)
            await served_again(client)
        await until(lambda: bool(events(running, "device_lost")))
        (lost,) = events(running, "device_lost")
        assert (lost["device"], lost["exit_code"]) == ("hanging:0", 3)
        assert events(running, "not_drained") == []
        await ended_as(running, "code 3")

    run_with_mesh(scenario, repository, tmp_path / "data", device="hanging", log_format="json", compact=True)


@pytest.mark.slow
def test_versions_whose_preparation_ends_workers_are_refused_in_the_end_and_the_others_are_served(
    repository: Path, tmp_path: Path
) -> None:
    write_bad(repository, DEADLY)
    write_bad(repository, STUCK)
    data = tmp_path / "data"

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await wait_ready(client, lambda done, names: None)
            await served_again(client)
        both = {f"{DEADLY}:1", f"{STUCK}:1"}
        await until(lambda: {event["ref"] for event in events(running, "not_prepared")} >= both)
        refused = {event["ref"]: event["faults"] for event in events(running, "not_prepared")}
        record = data / "attempts" / "hanging-0" / f"{DEADLY}@1.json"
        assert names(refused[f"{DEADLY}:1"][0], 2, record)
        assert names(refused[f"{STUCK}:1"][0], "PREPARE", f"{STUCK}:1")

        def killed() -> int:
            ends = [line for line in running.lines if line.startswith("up | gpu_worker")]
            return [("SIGKILL" in line, "code 3" in line) for line in ends].count((True, False))

        await until(lambda: killed() >= 2)
        assert killed() == 2

    run_with_mesh(scenario, repository, data, ready=False, device="hanging", log_format="json", compact=True)


def test_a_worker_that_is_asked_to_end_does_not_wait_for_a_preparation_that_is_stuck(
    repository: Path, tmp_path: Path
) -> None:
    write_bad(repository, STUCK)
    data = tmp_path / "data"

    def deaths() -> int | None:
        try:
            found = json.loads((data / "attempts" / "hanging-0" / f"{STUCK}@1.json").read_text())
        except FileNotFoundError:
            return None
        return int(found["deaths"])

    async def scenario(running: Mesh) -> None:
        await until(lambda: deaths() is not None)
        pid = running.supervisor.pids()["gpu_worker"]
        os.kill(pid, signal.SIGTERM)
        await until(lambda: running.supervisor.pids().get("gpu_worker", pid) != pid)
        await ended_as(running, "code 0")
        assert deaths() in (None, 0)
        assert events(running, "preparation_ended_worker") == events(running, "device_lost") == []

    run_with_mesh(scenario, repository, data, ready=False, device="hanging", log_format="json", compact=True)
