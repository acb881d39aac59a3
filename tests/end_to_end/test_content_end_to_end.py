"""A version is its content, with real processes: other files under a number that was served are refused."""

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from frontend.admin.operator import Operator
from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction, RequestError
from gearmesh.operations.meshes import Mesh
from gpu_worker.packages.export import write_package
from mesh import wire
from mesh.process.configuration import read_settings
from scripts.rigs.meshes import LIMIT_S, LONG_MS, PAUSE_S, gearmesh, run_with_mesh, until

pytestmark = pytest.mark.end_to_end
X = np.ones((1, 4), np.float32)
SETTINGS: dict[str, Any] = {"device": "cpu", "arena_mb": 16, "threads": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with versions 1 and 2 of model m."""
    folder = tmp_path_factory.mktemp("made")
    for version in ("1", "2"):
        torch.manual_seed(int(version))
        inputs = {"x": ("float32", (4,))}
        write_package(folder, "m", version, nn.Linear(4, 3), inputs=inputs, outputs=["y"], slo_ms=LONG_MS, cache=False)
    return folder


def expected(repository: Path, version: str) -> Any:
    """What the files of the version answer."""
    weights = load_file(repository / "m" / version / "weights.safetensors")
    return X @ weights["weight"].T + weights["bias"]


def other_weights(version: Path, value: float = 1.0) -> None:
    """Other numbers, in another file in the old one's place."""
    file = version / "weights.safetensors"
    save_file({name: np.full_like(array, value) for name, array in load_file(file).items()}, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)


def files(folder: Path) -> dict[str, bytes]:
    """Their bytes, but for what workers measure."""
    found = [file for file in folder.rglob("*") if file.is_file() and file.parent.name != "profiles"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


async def answer(client: AsyncClient) -> Prediction:
    """The next answer, whatever is refused or lost on the way: what is asked here is which content it comes from."""
    while True:
        outcome = await client.submit("m", X, slo_ms=LONG_MS)
        if isinstance(outcome, Prediction):
            return outcome
        assert outcome.status != "invalid", outcome


async def unserved(client: AsyncClient) -> dict[str, Any]:
    """What `models` says of m, once it says that its current version cannot be served."""
    while True:
        (model,) = await client.models()
        if model["fault_code"] == "content_changed" and not model["ready"]:
            return model
        await asyncio.sleep(PAUSE_S)


async def is_ready(client: AsyncClient) -> None:
    async def it_is() -> bool:
        return bool((await client.models())[0]["ready"])

    await until(it_is)


def kill(running: Mesh, name: str) -> int:
    """Ends a process without a word; returns which it was."""
    pid = running.supervisor.pids()[name]
    os.kill(pid, signal.SIGKILL)
    return pid


async def said(running: Mesh, *words: str, times: int = 1) -> None:
    """Returns once so many lines of the mesh's log have all of these words."""
    await until(lambda: sum(all(word in line for word in words) for line in running.lines) >= times)


@pytest.mark.slow
def test_a_folder_with_other_files_of_a_deployed_version_changes_nothing(made: Path, tmp_path: Path) -> None:
    repository, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
    shutil.copytree(made / "m" / "1", repository / "m" / "1")
    shutil.copytree(made, elsewhere)
    before = files(repository)
    right = expected(repository, "1")

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            code, output = await gearmesh(running, "deploy", str(made / "m"), "--version", "1")
            assert code == 0, output  # the same, with a second version
            assert (await answer(client)).version == "1"
            other_weights(elsewhere / "m" / "1")
            known = files(repository)
            code, output = await gearmesh(running, "deploy", str(elsewhere / "m"), "--version", "1")
            assert (code, "version_exists" in output) == (1, True), output
            assert files(repository) == known
            np.testing.assert_allclose((await answer(client))["y"], right, rtol=1e-4)
            kill(running, "gpu_worker")
            np.testing.assert_allclose((await answer(client))["y"], right, rtol=1e-4)
            (elsewhere / "m" / "2" / "weights.safetensors").write_bytes(b"junk")
            code, output = await gearmesh(running, "deploy", str(elsewhere / "m"))
            assert (code, "bad_package" in output) == (2, True), output

    run_with_mesh(scenario, repository, tmp_path / "data", **SETTINGS)
    assert before.items() <= files(repository).items()


@pytest.mark.slow
def test_files_that_changed_while_the_mesh_was_down_are_not_served_until_they_are_back(
    made: Path, tmp_path: Path
) -> None:
    repository, data = tmp_path / "repository", tmp_path / "data"
    shutil.copytree(made / "m" / "1", repository / "m" / "1")
    right = expected(repository, "1")

    async def first(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            assert (await answer(client)).version == "1"

    async def second(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            model = await unserved(client)
            assert (model["version"], model["preparing"]) == ("1", None)
            outcome = await client.submit("m", X)
            assert isinstance(outcome, RequestError)
            assert (outcome.status, outcome.code) == ("rejected", "not_ready")
            assert model["fault"] in outcome.message
            code, output = await gearmesh(running, "deploy", "m")
            assert (code, "content_changed" in output) == (1, True), output
            other_weights(repository / "m" / "1", 2.0)
            code, output = await gearmesh(running, "models")
            assert code == 0, output
            shutil.copy(made / "m" / "1" / "weights.safetensors", repository / "m" / "1")
            code, output = await gearmesh(running, "deploy", "m")
            assert code == 0, output
            await is_ready(client)
            np.testing.assert_allclose((await answer(client))["y"], right, rtol=1e-4)
            (model,) = await client.models()
            assert (model["fault"], model["fault_code"]) == (None, None)

    run_with_mesh(first, repository, data, **SETTINGS)
    other_weights(repository / "m" / "1")
    run_with_mesh(second, repository, data, ready=False, **SETTINGS)


def overwrite(file: Path, content: bytes) -> None:
    """In place, and the file does not tell when: its time is set back."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_weights_on_disk_that_become_others_are_not_served_and_the_same_bytes_are(tmp_path: Path) -> None:
    """There is no host memory for the weights of two models, and room in the arena for one: each answer is a LOAD."""
    repository, inputs = tmp_path / "repository", {"x": ("float32", (4,))}
    for seed, name in enumerate(("m", "n")):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(4, 100_000), nn.Linear(100_000, 3))
        write_package(
            repository, name, "1", module, inputs=inputs, outputs=["y"], slo_ms=LONG_MS, cache=False, batch_max=2
        )
    file = repository / "m" / "1" / "weights.safetensors"
    good = file.read_bytes()

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:

            async def ask(name: str) -> Prediction | RequestError:
                return await client.submit(name, X, slo_ms=LONG_MS)

            async def answers(name: str) -> Any:
                outcome = await ask(name)
                assert isinstance(outcome, Prediction), outcome
                return outcome["y"]

            async def model_m() -> dict[str, Any]:
                return next(model for model in await client.models() if model["name"] == "m")

            right = await answers("m")
            for change in (file.touch, lambda: overwrite(file, good)):
                change()
                await answers("n")
                np.testing.assert_array_equal(await answers("m"), right)
            await answers("n")
            overwrite(file, good[:-1000] + bytes(1000))
            outcome = await ask("m")
            assert isinstance(outcome, RequestError)
            assert (outcome.status, outcome.code) == ("rejected", "not_ready"), outcome
            await until(lambda: fault_is(model_m, "content_changed"))
            code, output = await gearmesh(running, "deploy", "m")
            assert (code, "content_changed" in output) == (1, True), output
            await answers("n")
            overwrite(file, good)
            code, output = await gearmesh(running, "deploy", "m")
            assert code == 0, output
            await until(lambda: fault_is(model_m, None))
            np.testing.assert_array_equal(await answers("m"), right)

    settings = {**SETTINGS, "arena_mb": 4, "page_mb": 1, "host_memory_mb": 1}
    run_with_mesh(scenario, repository, tmp_path / "data", **settings)


async def fault_is(model: Callable[[], Awaitable[dict[str, Any]]], code: str | None) -> bool:
    """`models` gives this reason for not serving it; None: it is served."""
    found = await model()
    return (found["ready"], found["fault_code"]) == (code is None, code)


def operate(running: Mesh, message: wire.Deploy | wire.Rollback) -> wire.CallReply:
    """The outcome of an operator's call."""
    with Operator(read_settings(environment=running.environment)) as operator:
        return operator.call(message, LIMIT_S)


def test_a_version_whose_files_have_changed_does_not_come_back_and_the_current_one_serves_on(
    made: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(made / "m" / "1", repository / "m" / "1")

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            assert (await answer(client)).version == "1"
            shutil.copytree(made / "m" / "2", repository / "m" / "2")
            reply = await asyncio.to_thread(operate, running, wire.Deploy(call=1, name="m", version="2"))
            assert reply.ok, reply
            await said(running, "forgotten", "m:1")
            other_weights(repository / "m" / "1")
            for message in (wire.Rollback(call=1, name="m"), wire.Deploy(call=1, name="m", version="1")):
                reply = await asyncio.to_thread(operate, running, message)
                assert (reply.ok, reply.code) == (False, "content_changed"), reply
                assert reply.faults
                got = await answer(client)
                assert got.version == "2"
                np.testing.assert_allclose(got["y"], expected(repository, "2"), rtol=1e-4)
            other_weights(repository / "m" / "2")  # in place, under what is served
            code, output = await gearmesh(running, "deploy", "m")
            assert (code, "content_changed" in output) == (1, True), output

    run_with_mesh(scenario, repository, tmp_path / "data", **SETTINGS)


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two processors")
def test_two_workers_that_read_different_files_serve_one_content_whoever_dies(made: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(made / "m" / "1", repository / "m" / "1")
    right = expected(repository, "1")
    settings = {**SETTINGS, "device": "auto", "silence_ms_max": 60_000}

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:

            async def all_right() -> None:
                for _ in range(50):
                    np.testing.assert_allclose((await answer(client))["y"], right, rtol=1e-4)

            await all_right()
            await said(running, '"prepared"', times=2)
            other_weights(repository / "m" / "1")
            kill(running, "gpu_worker.2")
            await said(running, "gpu_worker.2", "not_prepared", "content_changed")
            await all_right()
            running.lines.clear()
            kill(running, "controller")
            await said(running, "gpu_worker.2", "not_prepared", "content_changed")
            await all_right()
            kill(running, "broker")
            await said(running, "broker |", "started")
            await all_right()
            kill(running, "gpu_worker.1")  # the last that had the right files in memory
            model = await unserved(client)
            assert model["version"] == "1"

    run_with_mesh(scenario, repository, tmp_path / "data", formation={"gpu_worker": 2}, **settings)
