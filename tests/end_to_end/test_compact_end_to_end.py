"""A mesh in one process, the worker included, as real processes: what ends it ends all, and all of it comes back."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction, RequestError
from gearmesh.operations import spares
from gearmesh.operations.meshes import Mesh
from scripts.rigs.meshes import LONG_MS, gearmesh, run_with_mesh, until

pytestmark = pytest.mark.end_to_end
IN_FLIGHT = 40


async def answers(client: AsyncClient, model: torch.nn.Module, image: np.ndarray) -> bool:
    """Whether the model is served; then the answer is its own."""
    outcome = await client.submit("digits_linear", {"image": image}, slo_ms=LONG_MS, cache=False)
    if isinstance(outcome, RequestError):
        return False
    with torch.no_grad():
        expected = model(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(outcome.outputs["scores"], expected, rtol=1e-4, atol=1e-4)
    return True


async def ready(client: AsyncClient) -> set[str]:
    return {model["name"] for model in await client.models() if model["ready"]}


@pytest.mark.parametrize("spare", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_at_once_it_comes_back_with_its_catalogue_and_answers_the_clients_it_had(
    spare: bool,
    digits_repository: Path,
    digit_models: dict[str, torch.nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spares, "AFTER_S", 0.0)
    repository = tmp_path / "repository"
    shutil.copytree(digits_repository, repository)
    model = digit_models["digits_linear"]
    image = np.linspace(0, 16, 64, dtype=np.float32).reshape(1, 64)

    async def scenario(running: Mesh) -> None:
        supervisor = running.supervisor
        assert set(supervisor.pids()) == {"mesh"}
        async with AsyncClient(running.address) as client:
            assert await answers(client, model, image)
            members = (await client.call("status"))["members"]
            assert {member["pid"] for member in members} == {supervisor.pids()["mesh"]}
            assert (await gearmesh(running, "undeploy", "digits_mlp"))[0] == 0
            if spare:
                await until(lambda: list(supervisor.spares().values()) == ["gpu_worker"])
            waiting = [
                asyncio.ensure_future(client.submit("digits_linear", {"image": image}, slo_ms=LONG_MS, cache=False))
                for _ in range(IN_FLIGHT)
            ]
            killed = supervisor.pids()["mesh"]
            expected = list(supervisor.spares())
            os.kill(killed, signal.SIGKILL)
            outcomes = await asyncio.gather(*waiting)
            assert all(isinstance(outcome, (Prediction, RequestError)) for outcome in outcomes)
            await until(lambda: answers(client, model, image))
            assert supervisor.pids()["mesh"] != killed
            assert not spare or [supervisor.pids()["mesh"]] == expected
            assert await ready(client) == {"digits_linear"}

    run_with_mesh(
        scenario, repository, tmp_path / "data", compact=True, device="cpu", spares="gpu_worker" if spare else ""
    )
