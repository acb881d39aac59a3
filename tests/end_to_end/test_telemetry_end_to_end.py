"""Logs, traces and status of a mesh of real processes with an emulated device."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontend.admin import observer
from frontend.admin.observer import Observer, View
from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction
from gearmesh.cli.watching import describe
from gearmesh.operations.meshes import Mesh
from gearmesh.telemetry.journals import arrivals, read_actions, read_requests
from gearmesh.telemetry.timeline import timeline
from gearmesh.telemetry.trace import record
from mesh.facts import ActionFact, RequestFact
from mesh.process.configuration import read_settings
from scripts.rigs.meshes import LIMIT_S, LONG_MS, emulated_device, emulated_model, run_with_mesh, until
from tests.gearmesh.telemetry.test_timeline import check_format

pytestmark = pytest.mark.end_to_end
X = np.zeros((1, 4), np.float32)
REQUESTS = 20
EXEC_MS, SLACK_S = 20.0, 0.01  # clocks of processes are known to each other well within this slack
HOPELESS_MS = 5000.0  # of a model that takes hours: it is refused, and long before its deadline


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is taken for silent because the machine is slow."""
    monkeypatch.setattr(observer, "REPLY_S_MAX", LIMIT_S)


def look(running: Mesh) -> View:
    """How the mesh is."""
    with Observer(read_settings(environment=running.environment)) as observer:
        return observer.look(models=True)


async def ask(client: AsyncClient, models: tuple[str, ...], slo_ms: float) -> Counter[str]:
    """So many requests, in turn, to these models; how they were answered."""
    seen: Counter[str] = Counter()
    for i in range(REQUESTS):
        outcome = await client.submit(models[i % len(models)], X, slo_ms=slo_ms, cache=False)
        seen["ok" if isinstance(outcome, Prediction) else outcome.status] += 1
    return seen


@pytest.mark.parametrize("compact", [False, True])
def test_what_the_mesh_did_is_in_its_logs_in_its_trace_and_in_its_status(tmp_path: Path, compact: bool) -> None:
    repository = tmp_path / "repository"
    for name in ("a", "b", "never"):
        emulated_model(repository, name)
    seen: dict[str, Any] = {}

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await client.models()
            seen["before"] = await asyncio.to_thread(look, running)
            recorder = asyncio.create_task(
                asyncio.to_thread(record, read_settings(environment=running.environment), 1.0, lambda left_s: None)
            )
            while not recorder.done():
                seen["answers"] = seen.get("answers", Counter[str]()) + await ask(client, ("a", "b"), LONG_MS)
                seen["hopeless"] = seen.get("hopeless", Counter[str]()) + await ask(client, ("never",), HOPELESS_MS)
            seen["recording"] = await recorder

            async def counted() -> bool:
                """The controller has heard of the last outputs, too, which went past it."""
                seen["after"] = await asyncio.to_thread(look, running)
                snapshots = seen["after"].snapshots.values()
                return sum(snapshot.in_time for snapshot in snapshots) >= seen["answers"]["ok"]

            await until(counted)

    device = emulated_device(tmp_path, exec_ms=EXEC_MS, never="never")
    run_with_mesh(scenario, repository, tmp_path / "data", compact=compact, device=device)
    assert set(seen["answers"]) == {"ok"}
    assert set(seen["hopeless"]) == {"rejected"}
    failed = check_logs(tmp_path / "data" / "telemetry", seen["answers"]["ok"], seen["hopeless"]["rejected"])
    check_recording(seen["recording"])
    check_status(seen["after"], seen["answers"] + seen["hopeless"], failed)


def check_logs(folder: Path, ok: int, rejected: int) -> int:
    """Every request and every action is in the logs, once, with times that fit; how many actions failed."""
    (log,) = read_requests(folder)
    outcomes = Counter(fact.outcome for fact in log.facts)
    assert (outcomes, log.dropped, log.cut) == ({"in_time": ok, "rejected": rejected}, 0, 0)
    assert len({(fact.frontend, fact.request) for fact in log.facts}) == len(log.facts)
    (actions,) = read_actions(folder)
    by_id = {fact.action: fact for fact in actions.facts}
    assert len(by_id) == len(actions.facts)
    for fact in log.facts:
        if fact.outcome == "in_time":
            action = by_id[fact.action]
            assert (action.ref, action.code, action.device) == (fact.ref, "ok", fact.device)
            assert action.begin_s is not None
            assert action.end_s is not None
            assert fact.arrived_s <= action.sent_s <= action.begin_s + SLACK_S <= action.end_s
            assert fact.exec_s == pytest.approx(EXEC_MS / 1e3, rel=0.2)
    replayed = list(arrivals(folder))
    assert len(replayed) == ok + rejected
    assert replayed == sorted(replayed)
    kinds = {(ref, rows, extents) for _, ref, _, rows, extents in replayed}
    assert kinds == {("a:1", 1, ()), ("b:1", 1, ()), ("never:1", 1, ())}
    for _, ref, slo_s, _, _ in replayed:
        assert 0 < slo_s <= (HOPELESS_MS if ref == "never:1" else LONG_MS) / 1e3  # left when the frontend sent it on
    return sum(fact.code != "ok" for fact in actions.facts)


def check_recording(recording: Any) -> None:
    """The recording holds requests and actions, and makes a trace that keeps the format."""
    (facts,) = recording.facts.values()
    assert any(isinstance(fact, RequestFact) for fact in facts)
    assert any(isinstance(fact, ActionFact) for fact in facts)
    assert (recording.dropped, recording.silent) == (0, [])
    events = check_format(timeline(recording))
    assert any(event["ph"] == "s" for event in events)


def check_status(view: View, answers: Counter[str], failed: int) -> None:
    """Everybody answers, and the counts are right."""
    assert view.broker
    assert Counter(member.role for member in view.members) == {"controller": 1, "frontend": 1, "gpu_worker": 1}
    (snapshot,) = view.snapshots.values()
    assert (snapshot.in_time, snapshot.refused) == (answers["ok"], {"deadline": answers["rejected"]})
    assert {model.ref for model in snapshot.models} == {"a:1", "b:1", "never:1"}
    (device,) = snapshot.devices
    assert (device.prepared, device.failed) == (3, failed)
    assert device.resident >= 2  # what nobody can be served is in memory or not
    assert device.exec_busy_s == pytest.approx(EXEC_MS / 1e3 * device.batches, rel=0.3)
    (status,) = view.frontends.values()
    assert status["answers"] == answers
    assert json.loads(json.dumps(describe(view)))["controllers"][snapshot.controller]["in_time"] == answers["ok"]


def test_with_telemetry_off_nothing_is_written_and_traces_work_all_the_same(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    emulated_model(repository, "a")
    emulated_model(repository, "b")

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await client.models()
            settings = read_settings(environment=running.environment)
            recorder = asyncio.create_task(asyncio.to_thread(record, settings, 0.5, lambda left_s: None))
            while not recorder.done():
                await ask(client, ("a", "b"), LONG_MS)
            check_recording(await recorder)
            assert not (await asyncio.to_thread(look, running)).snapshots.popitem()[1].journal.on

    device = emulated_device(tmp_path, exec_ms=EXEC_MS)
    run_with_mesh(scenario, repository, tmp_path / "data", telemetry="off", device=device)
    assert not (tmp_path / "data" / "telemetry").exists()
