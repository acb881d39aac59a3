"""A mesh with spares, as real processes: who takes the place of a worker that dies, and what is left in the end."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction
from gearmesh.operations import spares
from gearmesh.operations.meshes import Mesh
from scripts.rigs.meshes import LONG_MS, emulated_device, emulated_model, run_with_mesh, until
from tests.gearmesh.operations.test_supervisor import runs

pytestmark = pytest.mark.end_to_end
X = np.zeros((1, 4), np.float32)


async def answered(client: AsyncClient) -> bool:
    return isinstance(await client.submit("m", X, slo_ms=LONG_MS, cache=False), Prediction)


def test_a_spare_serves_in_the_place_of_a_worker_that_was_killed_and_goes_with_the_mesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spares, "AFTER_S", 0.0)
    emulated_model(tmp_path / "repository", "m")
    known: set[int] = set()

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            for _ in range(2):
                await until(lambda: answered(client))
                await until(lambda: list(running.supervisor.spares().values()) == ["gpu_worker"])
                (spare,) = running.supervisor.spares()
                worker = running.supervisor.pids()["gpu_worker"]
                members = (await client.call("status"))["members"]
                assert [member["pid"] for member in members if member["role"] == "gpu_worker"] == [worker]
                known.update((spare, worker))
                os.kill(worker, signal.SIGKILL)
                await until(lambda spare=spare: running.supervisor.pids().get("gpu_worker") == spare)
            await until(lambda: answered(client))

    run_with_mesh(
        scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path), spares="gpu_worker"
    )
    assert len(known) == 3
    assert not [pid for pid in known if runs(pid)]
