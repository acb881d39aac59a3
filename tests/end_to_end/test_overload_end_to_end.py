"""A flood far beyond what the mesh can do, from another process: every request is answered once."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from gearmesh.operations.meshes import Mesh
from scripts.rigs.checkouts import HeldMesh
from scripts.rigs.flood_runs import Load, processors, run_loads
from scripts.rigs.meshes import emulated_device, emulated_model, run_with_mesh

pytestmark = pytest.mark.end_to_end
FLOATS = 4
FLOOD_PER_S, JUNK_PER_S, SECONDS = 30_000.0, 4000.0, 0.7
X = np.zeros((1, FLOATS), np.float32)


def held(running: Mesh) -> HeldMesh:
    return HeldMesh(Path(), running.address, dict(os.environ), running.supervisor.pids())


def test_in_a_flood_and_beside_junk_every_request_is_answered_once_and_clients_are_served_after(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "noop")

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await client.infer("noop", X)
            loads = [Load("flood", FLOOD_PER_S, model="noop", floats=FLOATS), Load("junk", JUNK_PER_S, junk=True)]
            sent, status = 0, {"expelled": 0}
            for seconds in (SECONDS, 4 * SECONDS):  # in the first a slow machine may read too little of the junk
                flood = (await run_loads(held(running), loads, seconds, processors()))["flood"]
                assert (flood.unanswered, flood.doubled) == (0, 0)
                assert set(flood.outcomes) <= {
                    "ok", "rejected frontend_busy", "rejected frontend_full", "rejected deadline", "rejected overload",
                    "rejected queue_full", "timed_out deadline",
                }  # fmt: skip
                answered: Any = await client.infer("noop", X, cache=False)
                assert answered.outputs
                status = await client.call("status")
                assert (status["in_flight"], status["requests_waiting"]) == (0, 0)
                total = status["outcomes"]["total"]
                sent += flood.sent
                assert total["offered"] >= sent, json.dumps(total)
                if status["expelled"]:
                    break
            assert status["expelled"] > 0

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path))
