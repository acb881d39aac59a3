"""A controller that stands still is said to be silent, by whoever is asked and for how long: real processes."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from gearmesh.operations.meshes import Mesh
from scripts.rigs.meshes import emulated_device, emulated_model, gearmesh, run_with_mesh, until

pytestmark = pytest.mark.end_to_end
X = np.zeros((1, 4), np.float32)
LONG_S = 2.5  # by then the broker has given the controller up, and its table does not name it any more


async def status(running: Mesh, *options: str) -> str:
    """What a status that has not looked before prints."""
    code, printed = await gearmesh(running, "status", *options)
    assert code == 0, printed
    return printed


def test_a_controller_that_stands_still_is_silent_and_clients_outcomes_are_known_all_the_same(tmp_path: Path) -> None:
    emulated_model(tmp_path / "repository", "a")

    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client:
            await client.infer("a", X)
            (stopped,) = [
                member
                for member in json.loads(await status(running, "--json"))["members"]
                if member["role"] == "controller"
            ]
            os.kill(stopped["pid"], signal.SIGSTOP)
            try:
                outcome: Any = await client.submit("a", X, slo_ms=50.0, cache=False)
                assert outcome.status == "timed_out"
                seen: Any = None

                async def silent() -> bool:
                    nonlocal seen
                    seen = json.loads(await status(running, "--json"))
                    return (seen["silent"].get(stopped["id"]) or 0) >= LONG_S

                await until(silent)
                assert seen["controllers"] == {}
                assert seen["outcomes"]["models"]["a"]["timed_out"] == 1
                shown = await status(running, "--over", "0")
                assert f"{stopped['id']} controller silent for " in " ".join(shown.split())
                assert "goodput" in shown
            finally:
                os.kill(stopped["pid"], signal.SIGCONT)

            async def back() -> bool:
                now = json.loads(await status(running, "--json"))
                return now["silent"] == {} and stopped["id"] in now["controllers"]

            await until(back)

    run_with_mesh(scenario, tmp_path / "repository", tmp_path / "data", device=emulated_device(tmp_path))
