"""What dies: kill -9 of each service under load, with real processes. Every request gets one answer, in time."""

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from frontend.client import AsyncClient, Prediction, RequestError, TimedOut
from scripts.meshes import Mesh
from scripts.up import wait_ready
from tests.end_to_end.meshes import emulated_device, emulated_model, run_with_mesh

pytestmark = pytest.mark.end_to_end
X = np.zeros((1, 4), np.float32)
SLO_MS = 4000.0
BACK_WITHIN_S = 3.0  # no torch is involved


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two models for emulated devices."""
    for name in ("a", "b"):
        emulated_model(tmp_path / "repository", name)
    return tmp_path / "repository"


async def load(
    client: AsyncClient, outcomes: list[Prediction | RequestError], until: asyncio.Event, *, slo_ms: float = SLO_MS
) -> None:
    """Closed loop of eight over both models until the event; adds the outcomes of all requests."""

    async def one(model: str) -> None:
        while not until.is_set():
            outcomes.append(await client.submit(model, X, slo_ms=slo_ms))

    await asyncio.gather(*(one("ab"[i % 2]) for i in range(8)))


async def served(client: AsyncClient, within_s: float) -> float:
    """Seconds until a request is served, asking again and again."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < within_s:
        outcome = await client.submit("a", X, slo_ms=200)
        if isinstance(outcome, Prediction):
            return time.monotonic() - began_s
    raise AssertionError(f"not served again within {within_s} s")


async def kill_under_load(running: Mesh, victim: str, *, slo_ms: float = SLO_MS) -> Counter[str]:
    """Kills a process while load runs, and waits until it is back and serves; the outcomes, counted by status."""
    outcomes: list[Prediction | RequestError] = []
    async with AsyncClient(running.address) as client, AsyncClient(running.address) as probe:
        await client.models()
        await probe.models()
        until = asyncio.Event()
        loading = asyncio.create_task(load(client, outcomes, until, slo_ms=slo_ms))
        while len(outcomes) < 50:
            await served(probe, 5.0)
        members = len((await probe.call("status"))["members"])
        pid = running.supervisor.pids()[victim]
        os.kill(pid, signal.SIGKILL)
        while running.supervisor.pids().get(victim, pid) == pid:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0)
        took_s = await served(probe, 10.0)
        assert took_s < BACK_WITHIN_S, f"served again only after {took_s:.1f} s"
        began_s = time.monotonic()
        while len((await probe.call("status"))["members"]) != members:
            assert time.monotonic() - began_s < 10, "it did not come back"
        after = len(outcomes)
        while len(outcomes) < after + 50:
            await served(probe, 5.0)
        until.set()
        await loading
    return Counter("ok" if isinstance(o, Prediction) else f"{o.status} {o.code}" for o in outcomes)


def test_a_killed_worker_fails_nothing_that_another_can_serve(repository: Path, tmp_path: Path) -> None:
    async def scenario(running: Mesh) -> None:
        outcomes = await kill_under_load(running, "gpu_worker.1")
        assert outcomes["ok"] > 100
        assert set(outcomes) == {"ok"}, outcomes

    device = emulated_device(tmp_path, exec_ms=5)
    run_with_mesh(scenario, repository, tmp_path / "data", formation={"gpu_worker": 2}, device=device)


def test_the_only_worker_killed_every_request_is_answered_and_it_is_used_again(
    repository: Path, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        outcomes = await kill_under_load(running, "gpu_worker", slo_ms=300)
        assert outcomes["ok"] > 10
        assert {outcome.split()[0] for outcome in outcomes} <= {"ok", "failed", "rejected", "timed_out"}, outcomes

    device = emulated_device(tmp_path, exec_ms=5)
    run_with_mesh(scenario, repository, tmp_path / "data", device=device)


def test_a_killed_controller_loses_no_request_whose_budget_outlasts_its_return(
    repository: Path, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        outcomes = await kill_under_load(running, "controller")
        assert outcomes["ok"] > 100
        assert set(outcomes) == {"ok"}, outcomes

    device = emulated_device(tmp_path, exec_ms=2)
    run_with_mesh(scenario, repository, tmp_path / "data", device=device)


def test_a_killed_frontend_is_called_again_by_its_clients_and_the_rest_never_notice(
    repository: Path, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        port = int(running.address.rpartition(":")[2])
        other = f"tcp://127.0.0.1:{port + 1}"
        async with AsyncClient(other) as bystander:
            await wait_ready(bystander, lambda ready, names: None)
            until = asyncio.Event()
            rest: list[Prediction | RequestError] = []
            undisturbed = asyncio.create_task(load(bystander, rest, until, slo_ms=500))
            outcomes = await kill_under_load(running, "frontend.1")
            until.set()
            await undisturbed
        assert set(outcomes) == {"ok"}, outcomes
        assert all(isinstance(outcome, Prediction) for outcome in rest), Counter(map(str, rest)).most_common(3)

    device = emulated_device(tmp_path, exec_ms=2)
    run_with_mesh(scenario, repository, tmp_path / "data", formation={"frontend": 2}, device=device)


def test_a_killed_broker_stops_no_traffic_and_comes_back_with_everything_it_knew(
    repository: Path, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            before = await client.models()
            epoch = (await client.call("status"))["epoch"]
            until = asyncio.Event()
            outcomes: list[Prediction | RequestError] = []
            loading = asyncio.create_task(load(client, outcomes, until, slo_ms=500))
            pid = running.supervisor.pids()["broker"]
            os.kill(pid, signal.SIGKILL)
            while True:
                status = await client.call("status")
                if status["epoch"] > epoch + (1 << 20) and len(status["members"]) == 3:
                    break
            until.set()
            await loading
            assert len(outcomes) > 100
            assert all(isinstance(outcome, Prediction) for outcome in outcomes)
            assert await client.models() == before

    device = emulated_device(tmp_path, exec_ms=2)
    run_with_mesh(scenario, repository, tmp_path / "data", device=device)


def test_no_answer_comes_later_than_its_deadline_and_20_ms_while_the_controller_is_gone(
    repository: Path, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await client.models()
            os.kill(running.supervisor.pids()["controller"], signal.SIGKILL)
            began_s = time.monotonic()
            outcomes = []
            for _ in range(20):
                asked_s = time.monotonic()
                outcome = await client.submit("a", X, slo_ms=30)
                outcomes.append((outcome, time.monotonic() - asked_s))
            assert time.monotonic() - began_s < 5
            late = [took_s for outcome, took_s in outcomes if took_s > 0.050 + 0.030]  # 30 ms for this test's own loop
            assert not late
            answered = [outcome for outcome, _ in outcomes if isinstance(outcome, TimedOut)]
            assert all(outcome.code == "deadline" for outcome in answered)

    device = emulated_device(tmp_path)
    run_with_mesh(scenario, repository, tmp_path / "data", device=device)


def test_compact_serves_and_survives_its_own_death(repository: Path, tmp_path: Path) -> None:
    async def scenario(running: Mesh) -> None:
        assert set(running.supervisor.pids()) == {"mesh", "gpu_worker"}
        outcomes = await kill_under_load(running, "mesh")
        assert set(outcomes) == {"ok"}, outcomes

    device = emulated_device(tmp_path, exec_ms=2)
    run_with_mesh(scenario, repository, tmp_path / "data", compact=True, device=device)
