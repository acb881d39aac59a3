"""What dies: kill -9 of each service under load, with real processes. Every request gets one answer, in time."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction, RequestError, TimedOut
from gearmesh.operations.meshes import Mesh
from gearmesh.operations.up import wait_ready
from scripts.rigs.meshes import LONG_MS, PAUSE_S, emulated_device, emulated_model, run_with_mesh, until
from tests.end_to_end.canary import Canaries, canaries

pytestmark = pytest.mark.end_to_end
X = np.zeros((1, 4), np.float32)
UNDISTURBED_S = 0.5  # an answer of those who have nothing to do with what died
LATE_S = 0.02  # after its deadline an answer may come so much later
PATIENT = {"silence_ms_max": 60_000}  # nobody is missed because he is silent: what dies is noticed at once, or too late


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two models for emulated devices."""
    for name in ("a", "b"):
        emulated_model(tmp_path / "repository", name)
    return tmp_path / "repository"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that was answered, at these instants."""

    outcome: Prediction | RequestError
    asked_s: float
    answered_s: float


async def ask(client: AsyncClient, model: str, slo_ms: float) -> Asked:
    """One request that no cache answers."""
    asked_s = time.monotonic()
    outcome = await client.submit(model, X, slo_ms=slo_ms, cache=False)
    return Asked(outcome, asked_s, time.monotonic())


@contextlib.asynccontextmanager
async def load(client: AsyncClient, *, slo_ms: float = LONG_MS) -> AsyncIterator[list[Asked]]:
    """Closed loop of eight over both models until the block ends, and the last request; all that were answered."""
    answered: list[Asked] = []
    enough = asyncio.Event()

    async def one(model: str) -> None:
        while not enough.is_set():
            answered.append(await ask(client, model, slo_ms))

    loops = [asyncio.create_task(one("ab"[i % 2])) for i in range(8)]
    try:
        yield answered
    finally:
        enough.set()
        await asyncio.gather(*loops)


def statuses(answered: list[Asked]) -> Mapping[str, int]:
    """How many were answered so."""
    outcomes = [each.outcome for each in answered]
    return Counter("ok" if isinstance(o, Prediction) else f"{o.status} {o.code}" for o in outcomes)


def too_late(answered: list[Asked], within_s: float, seen: Canaries) -> list[tuple[float, float]]:
    """(seconds it took, of which the machine may have cost) of answers that took longer than that and this."""
    times = [(each.answered_s - each.asked_s, seen.waited_s(each.asked_s, each.answered_s)) for each in answered]
    return [(took_s, waited_s) for took_s, waited_s in times if took_s > within_s + waited_s]


def watched(running: Mesh) -> list[int]:
    """The mesh, and whoever asks."""
    return [os.getpid(), *running.supervisor.pids().values()]


async def served(client: AsyncClient) -> None:
    """Returns once a request is served, asking again and again."""
    while not isinstance(await client.submit("a", X, slo_ms=LONG_MS, cache=False), Prediction):
        pass


async def members(client: AsyncClient) -> set[str]:
    """Who is there, after a pause."""
    await asyncio.sleep(PAUSE_S)
    return {member["id"] for member in (await client.call("status"))["members"]}


async def kill_under_load(running: Mesh, victim: str, *, slo_ms: float = LONG_MS) -> Mapping[str, int]:
    """Kills a process while load runs, and waits until it is back and serves; the outcomes, counted by status."""
    async with AsyncClient(running.address) as client, AsyncClient(running.address) as probe:
        await client.models()
        await probe.models()
        async with load(client, slo_ms=slo_ms) as answered:
            await until(lambda: len(answered) >= 50)
            before = await members(probe)
            pid = running.supervisor.pids()[victim]
            os.kill(pid, signal.SIGKILL)
            await until(lambda: running.supervisor.pids().get(victim, pid) != pid)
            await served(probe)
            after = await members(probe)
            while after == before or len(after) != len(before):
                after = await members(probe)
            then = len(answered)
            await until(lambda: len(answered) >= then + 50)
    return statuses(answered)


def test_a_killed_worker_fails_nothing_that_another_can_serve(repository: Path, tmp_path: Path) -> None:
    async def scenario(running: Mesh) -> None:
        outcomes = await kill_under_load(running, "gpu_worker.1")
        assert outcomes["ok"] >= 100
        assert set(outcomes) == {"ok"}, outcomes

    device = emulated_device(tmp_path, exec_ms=5)
    settings = {"formation": {"gpu_worker": 2}, "device": device, **PATIENT}
    run_with_mesh(scenario, repository, tmp_path / "data", **settings)


def test_the_only_worker_killed_every_request_is_answered_and_it_is_used_again(
    repository: Path, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        outcomes = await kill_under_load(running, "gpu_worker", slo_ms=3000)
        assert outcomes["ok"] > 10
        assert {outcome.split()[0] for outcome in outcomes} <= {"ok", "failed", "rejected", "timed_out"}, outcomes

    device = emulated_device(tmp_path, exec_ms=5)
    run_with_mesh(scenario, repository, tmp_path / "data", device=device, **PATIENT)


def test_a_killed_controller_loses_no_request_whose_budget_outlasts_its_return(
    repository: Path, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        outcomes = await kill_under_load(running, "controller")
        assert outcomes["ok"] >= 100
        assert set(outcomes) == {"ok"}, outcomes

    device = emulated_device(tmp_path, exec_ms=2)
    run_with_mesh(scenario, repository, tmp_path / "data", device=device, **PATIENT)


def test_a_killed_frontend_is_called_again_by_its_clients_and_the_rest_never_notice(
    repository: Path, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        port = int(running.address.rpartition(":")[2])
        other = f"tcp://127.0.0.1:{port + 1}"
        async with AsyncClient(other) as bystander, canaries(tmp_path, lambda: watched(running)) as seen:
            await wait_ready(bystander, lambda ready, names: None)
            async with load(bystander) as rest:
                outcomes = await kill_under_load(running, "frontend.1")
            assert set(outcomes) == {"ok"}, outcomes
            assert set(statuses(rest)) == {"ok"}, statuses(rest)
            assert not too_late(rest, UNDISTURBED_S, seen)

    device = emulated_device(tmp_path, exec_ms=2)
    settings = {"formation": {"frontend": 2}, "device": device, **PATIENT}
    run_with_mesh(scenario, repository, tmp_path / "data", **settings)


def test_a_killed_broker_stops_no_traffic_and_comes_back_with_everything_it_knew(
    repository: Path, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client, canaries(tmp_path, lambda: watched(running)) as seen:
            before = await client.models()
            status = await client.call("status")
            epoch = status["epoch"]
            async with load(client) as answered:
                os.kill(running.supervisor.pids()["broker"], signal.SIGKILL)
                while status["epoch"] <= epoch + (1 << 20) or len(status["members"]) < 3:
                    await asyncio.sleep(PAUSE_S)
                    status = await client.call("status")
            assert set(statuses(answered)) == {"ok"}, statuses(answered)
            assert not too_late(answered, UNDISTURBED_S, seen)
            assert await client.models() == before

    device = emulated_device(tmp_path, exec_ms=2)
    run_with_mesh(scenario, repository, tmp_path / "data", device=device, **PATIENT)


def test_no_answer_comes_later_than_its_deadline_and_20_ms_while_the_controller_is_gone(
    repository: Path, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        asking = (os.getpid(), running.supervisor.pids()["frontend"])
        async with AsyncClient(running.address) as client, canaries(tmp_path, lambda: asking) as seen:
            await client.models()
            os.kill(running.supervisor.pids()["controller"], signal.SIGKILL)
            back = client.submit("b", X, slo_ms=LONG_MS)
            answered = [await ask(client, "a", 30.0)]
            while not back.done() or len(answered) < 20:
                answered.append(await ask(client, "a", 30.0))
            assert isinstance(await back, Prediction)
            assert not too_late(answered, 0.030 + LATE_S, seen)
            timed_out = [each.outcome for each in answered if isinstance(each.outcome, TimedOut)]
            assert {outcome.code for outcome in timed_out} == {"deadline"}

    device = emulated_device(tmp_path)
    run_with_mesh(scenario, repository, tmp_path / "data", device=device, **PATIENT)


def test_compact_serves_and_survives_its_own_death(repository: Path, tmp_path: Path) -> None:
    async def scenario(running: Mesh) -> None:
        assert set(running.supervisor.pids()) == {"mesh", "gpu_worker"}
        outcomes = await kill_under_load(running, "mesh")
        assert set(outcomes) == {"ok"}, outcomes

    device = emulated_device(tmp_path, exec_ms=2)
    run_with_mesh(scenario, repository, tmp_path / "data", compact=True, device=device, **PATIENT)
