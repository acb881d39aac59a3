"""gearmesh/operations/compact.py, and the same services apart: how many turns one request takes where all is idle.

A turn more is a wake more: a timer that was waited for, or a message that was left for the next round.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from broker.service import BrokerService
from controller.service import ControllerService
from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction
from frontend.service import FrontendService
from gearmesh.operations.compact import services
from gearmesh.operations.ports import free_ports
from gpu_worker.main import make_worker
from gpu_worker.packages.export import write_package
from mesh.process.runtime import Runtime, Service
from scripts.rigs.meshes import LONG_MS, until
from tests.loops import on_loop
from tests.mesh.net.processes import processes

REQUESTS = 20
X = np.arange(4, dtype=np.float32).reshape(1, 4)


class Double(torch.nn.Module):
    """Takes next to no time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 4] -> [batch, 4]."""
        return x * 2


class Turns:
    """Counts the turns of each process."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def watch(self, name: str, runtime: Runtime) -> None:
        self.of[name] = 0
        runtime.hub.on_flush(lambda: self._count(name))

    def _count(self, name: str) -> None:
        self.of[name] += 1


@contextlib.asynccontextmanager
async def running(folder: Path, *, compact: bool) -> AsyncIterator[tuple[str, Turns]]:
    """(where clients call, the turns) of a mesh whose processes are all here."""
    write_package(
        folder / "repository", "m", "1", Double(), inputs={"x": ("float32", (4,))}, outputs=["y"], batch_max=4,
        slo_ms=LONG_MS,
    )  # fmt: skip
    broker, controller, frontend = free_ports(3)
    settings: dict[str, Any] = {
        "broker_port": broker, "controller_port": controller, "frontend_port": frontend, "device": "cpu",
        "model_repository": folder / "repository", "data_dir": folder / "data", "telemetry": False, "cache_mb": 0,
        "heartbeat_ms": 1000.0, "silence_ms_max": 60_000.0, "arena_mb": 16, "window_mb": 16,
    }  # fmt: skip
    turns = Turns()
    async with processes(**settings) as made:
        began: list[Service] = []
        if compact:
            runtime = made.runtime()
            turns.watch("mesh", runtime)
            began = services(runtime, worker=True)
        else:
            for name, make in {
                "broker": BrokerService, "controller": ControllerService, "frontend": FrontendService,
                "gpu_worker": make_worker,
            }.items():  # fmt: skip
                runtime = made.runtime()
                turns.watch(name, runtime)
                began.append(make(runtime))
        for service in began:
            service.start()
        try:
            yield f"tcp://127.0.0.1:{frontend}", turns
        finally:
            for service in reversed(began):
                service.stop()
            await asyncio.sleep(0)  # what closes after the goodbyes does


@pytest.mark.parametrize(
    ("compact", "least"),
    [
        pytest.param(True, {"mesh": 1}, id="compact"),
        # the frontend's: the request, the answer; the controller's: the request, the result
        pytest.param(False, {"frontend": 2, "controller": 2, "gpu_worker": 1, "broker": 0}, id="apart"),
    ],
)
@on_loop
async def test_a_request_that_finds_all_idle_waits_for_no_turn_but_those_of_its_messages(
    compact: bool, least: dict[str, int], tmp_path: Path
) -> None:
    async with running(tmp_path, compact=compact) as (address, turns), AsyncClient(address) as client:

        async def answered() -> bool:
            outcome = await client.submit("m", X, slo_ms=LONG_MS)
            return isinstance(outcome, Prediction)

        await until(answered)
        seen = []
        for _ in range(REQUESTS):
            before = dict(turns.of)
            assert await answered()
            seen.append({name: count - before[name] for name, count in turns.of.items()})
        for name, count in least.items():
            assert min(took[name] for took in seen) <= count, (name, seen)
