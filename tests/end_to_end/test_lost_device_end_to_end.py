"""A device that fails for good, in a mesh of real processes: its worker ends, says why, and another takes its place."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from frontend.client import AsyncClient, Failed, Prediction
from gpu_worker.export import write_package
from scripts.meshes import ROOT, Mesh
from scripts.up import wait_ready
from tests.end_to_end.meshes import LONG_MS, run_with_mesh
from tests.gpu_worker.conftest import ROW, TwoInputs
from tests.gpu_worker.fragile import WHY, install

pytestmark = pytest.mark.end_to_end


def test_a_lost_device_ends_its_worker_with_a_code_of_its_own_and_the_next_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    two = ROW | {"i": ("int64", ())}
    write_package(repository, "two", "1", TwoInputs(), inputs=two, outputs=["y", "z"], batch_max=2)
    write_package(repository, "linear", "1", nn.Linear(4, 3), inputs=ROW, outputs=["y"], batch_max=2)
    install(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    x = np.ones((1, 4), np.float32)

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await client.infer("two", {"x": x, "i": np.array([6])}, slo_ms=LONG_MS)
            with pytest.raises(Failed, match=WHY):
                await client.infer("two", {"x": x, "i": np.array([99])}, slo_ms=LONG_MS)
            while not isinstance(outcome := await client.submit("linear", x, slo_ms=LONG_MS), Prediction):
                assert outcome.code in ("not_ready", "no_worker", "worker_lost"), outcome
                await wait_ready(client, lambda done, names: None)
        (line,) = [line for line in running.lines if "device_lost" in line]
        lost = json.loads(line.partition(" | ")[2])
        assert (lost["level"], lost["device"], lost["why"], lost["exit_code"]) == ("error", "fragile:0", WHY, 3)
        assert any(line.startswith("up | gpu_worker") and "code 3" in line for line in running.lines)

    run_with_mesh(scenario, repository, tmp_path / "data", device="fragile", log_format="json", compact=True)
