"""Large inputs and outputs between real processes: they lie in shared memory or are fetched, whoever dies meanwhile."""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction, RequestError
from gearmesh.operations.meshes import Mesh
from gpu_worker.packages.export import write_package
from mesh.process.segments import MEMFD_NAME
from mesh.tensors import Array
from scripts.rigs.meshes import LONG_MS, PAUSE_S, run_with_mesh, until

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]
WIDTH = 50_000  # floats of a row: 200 KB in, and as many out
MEMFD = f"memfd:{MEMFD_NAME} (deleted)"
LOOPS = 8


class Scaled(nn.Module):
    """Twice each number, and one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, n] -> [batch, n]."""
        return x * 2 + 1


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model with large inputs and large outputs."""
    folder = tmp_path / "repository"
    inputs = {"x": ("float32", (WIDTH,))}
    write_package(folder, "scaled", "1", Scaled(), inputs=inputs, outputs=["y"], batch_max=8, slo_ms=LONG_MS)
    return folder


def row(number: int) -> Array:
    """Inputs that no other request has."""
    return (np.arange(WIDTH, dtype=np.float32) + number)[None]


def files(pid: int) -> int:
    """How many files the process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def logs_requests(pid: int) -> bool:
    """Whether the log of requests is open: it is opened when the first lines are written."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if "/requests-" in os.readlink(f"/proc/{pid}/fd/{name}"):
                return True
    return False


def segments(pid: int) -> int:
    """How many segments of shared memory the process has mapped or open, its own included."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    found = {int(line.split()[4]) for line in lines if line.endswith(MEMFD)}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if MEMFD in os.readlink(f"/proc/{pid}/fd/{name}"):
                found.add(os.stat(f"/proc/{pid}/fd/{name}").st_ino)
    return len(found)


@contextlib.asynccontextmanager
async def load(client: AsyncClient, slo_ms: float = LONG_MS) -> AsyncIterator[Counter[str]]:
    """Closed loops until the block ends, and their last requests; how requests ended. No answer is another's."""
    ended: Counter[str] = Counter()
    enough = asyncio.Event()
    numbers = iter(range(1, 1 << 24))

    async def one() -> None:
        while not enough.is_set():
            inputs = row(next(numbers) % 1000)
            outcome: Prediction | RequestError = await client.submit("scaled", inputs, slo_ms=slo_ms, cache=False)
            if isinstance(outcome, Prediction):
                assert outcome.outputs["y"].tobytes() == (inputs * 2 + 1).tobytes()
                ended["ok"] += 1
            else:
                ended[f"{outcome.status} {outcome.code}"] += 1
                await asyncio.sleep(PAUSE_S)

    loops = [asyncio.create_task(one()) for _ in range(LOOPS)]
    try:
        yield ended
    finally:
        enough.set()
        await asyncio.gather(*loops)


@pytest.mark.parametrize("shared_mb", [64, 16, 0])
def test_outputs_are_right_whether_tensors_are_shared_fetched_or_sent(
    repository: Path, tmp_path: Path, shared_mb: int
) -> None:
    """With 64 MiB there is always room, with 16 not always, with none never."""

    async def scenario(running: Mesh) -> None:
        pids = running.supervisor.pids()
        async with AsyncClient(running.address) as client:
            async with load(client) as ended:
                await until(lambda: ended["ok"] >= 50 and logs_requests(pids["controller"]))
                before = {name: files(pid) for name, pid in pids.items()}
                await until(lambda: ended["ok"] >= 250)
                after = {name: files(pid) for name, pid in pids.items()}
            assert set(ended) == {"ok"}, ended
            assert after == before
            for name in ("frontend", "gpu_worker"):  # its own, and the other one's
                assert segments(pids[name]) == (2 if shared_mb else 0), name
            assert segments(pids["controller"]) == 0

    run_with_mesh(scenario, repository, tmp_path / "data", device="cpu", shared_mb=shared_mb)


@pytest.mark.parametrize("victim", ["frontend", "gpu_worker"])
@pytest.mark.parametrize("shared_mb", [64, 0])
def test_who_is_killed_while_the_other_reads_costs_no_second_answer_and_leaves_nothing(
    repository: Path, tmp_path: Path, victim: str, shared_mb: int
) -> None:
    async def scenario(running: Mesh) -> None:
        (other,) = {"frontend", "gpu_worker"} - {victim}
        async with AsyncClient(running.address) as client:
            await client.models()
            async with load(client) as ended:
                await until(lambda: ended["ok"] >= 50)
                for _ in range(2):
                    pid = running.supervisor.pids()[victim]
                    os.kill(pid, signal.SIGKILL)
                    await until(lambda pid=pid: running.supervisor.pids().get(victim, pid) != pid)
                    then = ended["ok"]
                    await until(lambda then=then: ended["ok"] >= then + 50)
            assert ended["ok"] >= 150
            survivor = running.supervisor.pids()[other]
            await until(lambda: segments(survivor) <= (2 if shared_mb else 0))  # its own, and the living one's

    run_with_mesh(scenario, repository, tmp_path / "data", device="cpu", shared_mb=shared_mb)


def test_a_request_that_is_cancelled_while_it_is_read_costs_the_others_nothing(
    repository: Path, tmp_path: Path
) -> None:
    async def scenario(running: Mesh) -> None:
        async with AsyncClient(running.address) as client, load(client) as ended:
            for _ in range(5):
                then = ended["ok"]
                async with AsyncClient(running.address) as leaver:
                    await leaver.models()
                    for number in range(20):
                        leaver.submit("scaled", row(number), slo_ms=LONG_MS, cache=False)
                # it has left, and its requests are cancelled wherever they are
                await until(lambda then=then: ended["ok"] >= then + 40)
        assert set(ended) == {"ok"}, ended

    run_with_mesh(scenario, repository, tmp_path / "data", device="cpu", shared_mb=64)
