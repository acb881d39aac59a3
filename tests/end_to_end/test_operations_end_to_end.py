"""What an operator does to a running mesh, with real processes: deploy, roll back, undeploy, mistakes in settings."""

import asyncio
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from frontend.admin.operator import Operator
from frontend.client.async_client import AsyncClient
from frontend.client.client import Invalid, Prediction, RequestError
from gearmesh.operations.meshes import Mesh
from gearmesh.operations.ports import free_ports
from mesh import wire
from mesh.process.configuration import read_settings
from mesh.process.settings import without_settings
from scripts import ROOT
from scripts.rigs.meshes import LIMIT_S, LONG_MS, emulated_device, emulated_model, run_with_mesh, until
from tests.end_to_end.conftest import Shared

pytestmark = pytest.mark.end_to_end
X = np.zeros((1, 4), np.float32)


def operate(running: Mesh, message: wire.Deploy | wire.Undeploy | wire.Rollback) -> wire.CallReply:
    """The outcome of an operator's call."""
    with Operator(read_settings(environment=running.environment)) as operator:
        return operator.call(message, LIMIT_S)


async def deploy(running: Mesh, name: str) -> wire.CallReply:
    """The newest version is deployed, and current."""
    reply = await asyncio.to_thread(operate, running, wire.Deploy(call=1, name=name, version=None))
    assert reply.ok, reply
    return reply


async def count_versions(client: AsyncClient, until: asyncio.Event, seen: Counter[str]) -> None:
    """Asks a model until the event, and counts how often each version answered. Any other outcome fails the test."""
    while not until.is_set():
        outcome = await client.submit("rolled", X, slo_ms=LONG_MS)
        assert isinstance(outcome, Prediction), outcome
        seen[outcome.version] += 1


def test_deploy_and_rollback_under_traffic_lose_nothing(shared: Shared) -> None:
    emulated_model(shared.repository, "rolled")

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await deploy(running, "rolled")
            await client.models()
            until = asyncio.Event()
            seen: Counter[str] = Counter()
            traffic = [asyncio.create_task(count_versions(client, until, seen)) for _ in range(8)]
            await answered_by(client, "1", seen)
            emulated_model(shared.repository, "rolled", version="2")
            assert "rolled:2" in (await deploy(running, "rolled")).message
            await answered_by(client, "2", seen)
            reply = await asyncio.to_thread(operate, running, wire.Rollback(call=1, name="rolled"))
            assert reply.ok, reply
            assert "rolled:1" in reply.message
            again: Counter[str] = Counter()
            traffic.append(asyncio.create_task(count_versions(client, until, again)))
            await answered_by(client, "1", again)
            until.set()
            await asyncio.gather(*traffic)

    shared.play(scenario)


async def answered_by(client: AsyncClient, version: str, seen: Counter[str]) -> None:
    """Returns once the traffic has been answered by that version."""
    while not seen[version]:
        outcome = await client.submit("rolled", X, slo_ms=LONG_MS)
        assert isinstance(outcome, Prediction), outcome


def test_undeploy_refuses_new_requests_and_deploy_brings_the_model_back(shared: Shared) -> None:
    emulated_model(shared.repository, "gone")

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await deploy(running, "gone")
            assert (await client.infer("gone", X, slo_ms=LONG_MS)).model == "gone"
            reply = await asyncio.to_thread(operate, running, wire.Undeploy(call=1, name="gone"))
            assert reply.ok, reply
            outcome: Prediction | RequestError = await client.submit("gone", X)
            while isinstance(outcome, Prediction):  # the table is on its way
                outcome = await client.submit("gone", X)
            assert isinstance(outcome, Invalid)
            assert outcome.code == "unknown_model"
            assert (await client.infer("b", X)).model == "b"
            assert "gone" not in [model["name"] for model in await client.models()]
            await deploy(running, "gone")
            while not isinstance(await client.submit("gone", X), Prediction):
                pass

    shared.play(scenario)


def test_a_bad_package_is_refused_with_all_its_faults_and_the_old_version_serves_on(shared: Shared) -> None:
    folder = shared.repository / "spoilt"
    emulated_model(shared.repository, "spoilt")

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await deploy(running, "spoilt")
            emulated_model(shared.repository, "spoilt", version="2")
            weights = folder / "2" / "weights.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
            manifest = folder / "model.toml"
            good = manifest.read_text()
            manifest.write_text(good.replace("float32", "float31"))
            reply = await asyncio.to_thread(operate, running, wire.Deploy(call=1, name="spoilt", version="2"))
            manifest.write_text(good)
            assert not reply.ok
            assert len(reply.faults) == 3, reply.faults
            assert sum("float31" in fault for fault in reply.faults) == 2
            assert sum("weights.safetensors" in fault for fault in reply.faults) == 1
            answer = await client.infer("spoilt", X, slo_ms=LONG_MS)
            assert answer.version == "1"

            async def told() -> bool:
                model = next(model for model in await client.models() if model["name"] == "spoilt")
                return "weights.safetensors" in (model["fault"] or "")

            await until(told)  # the table is on its way

    shared.play(scenario)


def test_models_larger_than_memory_together_are_paged_in_and_out_by_demand(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    names = [f"m{i}" for i in range(6)]
    for name in names:
        emulated_model(repository, name, megabytes=10)

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await client.models()
            for round_ in range(3):
                for name in names if round_ % 2 else reversed(names):
                    answer = await client.infer(name, X, slo_ms=LONG_MS)
                    assert answer.model == name
            outcomes = await asyncio.gather(*(client.submit(n, X, slo_ms=LONG_MS) for n in names * 20))
            assert all(isinstance(outcome, Prediction) for outcome in outcomes)

    device = emulated_device(tmp_path, memory_mb=24, load_gb_per_s=1.0)
    run_with_mesh(scenario, repository, tmp_path / "data", device=device, compact=True)


def test_the_catalogue_outlives_the_mesh(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    emulated_model(repository, "a")
    emulated_model(repository, "b")
    device = emulated_device(tmp_path)

    async def first(running: Mesh) -> None:
        reply = await asyncio.to_thread(operate, running, wire.Undeploy(call=1, name="b"))
        assert reply.ok, reply

    async def second(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            assert [model["name"] for model in await client.models()] == ["a"]
            assert (await client.infer("a", X)).version == "1"

    run_with_mesh(first, repository, tmp_path / "data", device=device)
    run_with_mesh(second, repository, tmp_path / "data", device=device)


def test_two_meshes_run_side_by_side(tmp_path: Path) -> None:
    for name in ("one", "two"):
        emulated_model(tmp_path / name, name)
    device = emulated_device(tmp_path)

    async def inner(second: Mesh, first: Mesh) -> None:
        async with AsyncClient(first.address) as a, AsyncClient(second.address) as b:
            assert (await a.infer("one", X)).model == "one"
            assert (await b.infer("two", X)).model == "two"

    async def outer(first: Mesh) -> None:
        def beside() -> None:
            run_with_mesh(lambda second: inner(second, first), tmp_path / "two", tmp_path / "data-two", device=device)

        await asyncio.to_thread(beside)

    run_with_mesh(outer, tmp_path / "one", tmp_path / "data-one", device=device)


def start(service: str, folder: Path, *flags: str, **settings: object) -> "subprocess.CompletedProcess[str]":
    """Runs a service that is expected to end by itself."""
    clean = without_settings(os.environ)
    named = {f"GEARMESH_{key.upper()}": str(value) for key, value in settings.items()}
    environment = {**clean, "GEARMESH_DATA_DIR": str(folder), **named}
    return subprocess.run(
        [sys.executable, "-m", service, *flags],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def test_a_mistake_in_the_settings_stops_a_service_at_start_with_the_key_and_what_is_allowed(tmp_path: Path) -> None:
    ended = start("frontend", tmp_path, "--heartbeat-ms", "soon", policy="magic", fronted_port=1)
    assert ended.returncode == 2
    assert "GEARMESH_POLICY='magic'" in ended.stderr
    assert "atc" in ended.stderr
    assert "--heartbeat-ms='soon'" in ended.stderr
    assert "GEARMESH_FRONTEND_PORT" in ended.stderr  # which was meant


@pytest.mark.parametrize(
    ("service", "setting"),
    [("broker", "broker_port"), ("controller", "controller_port"), ("frontend", "frontend_port")],
)
def test_a_port_in_use_says_which_setting_to_change(tmp_path: Path, service: str, setting: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = start(service, tmp_path, **{setting: taken.getsockname()[1]})
    assert ended.returncode == 2
    assert f"GEARMESH_{setting.upper()}" in ended.stderr


def test_listening_beyond_loopback_without_keys_is_refused_at_start(tmp_path: Path) -> None:
    ended = start("broker", tmp_path, host="0.0.0.0", broker_port=free_ports(1)[0])
    assert ended.returncode == 2
    assert "GEARMESH_KEYS_DIR" in ended.stderr


def test_an_unknown_device_is_refused_at_start_with_those_there_are(tmp_path: Path) -> None:
    ended = start("gpu_worker", tmp_path, device="tpu")
    assert ended.returncode == 2
    assert all(name in ended.stderr for name in ("tpu", "auto", "cpu", "cuda:N", "emulated:PROFILE.json"))
