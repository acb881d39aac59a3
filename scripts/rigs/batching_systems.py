"""Systems that batch the calls of one function: containers of a mesh with each method, mosec and BentoML."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from gearmesh.operations.meshes import Mesh
from gearmesh.operations.ports import free_ports
from gearmesh.operations.up import client
from mesh.codes import AnswerStatus
from mesh.process.configuration import read_settings
from scripts import ROOT
from scripts.rigs import batching_functions
from scripts.rigs.closed_loops import Drive, HttpDriver, ZmqDriver
from scripts.rigs.processes import family, peer_environment, start

METHODS = {
    "aimd": ["--batching", "aimd"],
    "aimd, wait 2 ms": ["--batching", "aimd", "--batch-wait-ms", "2"],
    "quantile": ["--batching", "quantile"],
    "fixed 16": ["--batching", "fixed:16"],
    "none": ["--batching", "none"],
}
FEATURES = batching_functions.FEATURES
BATCH_MAX = 1024


@dataclass(slots=True)
class System:
    """One way to serve one function."""

    function: str
    name: str
    drive: Drive
    pids: dict[str, int]
    sizes: list[tuple[float, int]] = field(default_factory=list)  # (instant, batch size) of answers, if it reports them
    runs: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # {in flight: results, one per round}


@asynccontextmanager
async def containers(
    running: Mesh, function: str, method: str, objective_ms: float, replicas: int = 1, budget_ms: float | None = None
) -> AsyncIterator[System]:
    """Replicas of one container beside a running mesh, and a driver for them with the objective as budget."""
    model = f"{function}.{METHODS[method][1]}.{len(METHODS[method])}.{replicas}".replace(":", "-")
    command = [
        sys.executable, "-P", "-m", "gearmesh", "container", "--model", model,
        "--predict", f"scripts.rigs.batching_functions:{function}",
        "--input", f"x:float32:-1,{FEATURES}", "--output", "y:int64:-1",
        "--slo-ms", str(objective_ms), "--batch-max", str(BATCH_MAX), *METHODS[method],
    ]  # fmt: skip
    environment = {**running.environment, "BENCH_ONNX": os.environ["BENCH_ONNX"], "BENCH_WARM": function}
    processes = [start(command, env=environment, cwd=ROOT) for _ in range(replicas)]
    row = np.random.default_rng(1).normal(size=FEATURES).astype(np.float32).tobytes()
    inputs = [{"name": "x", "dtype": "float32", "shape": [1, FEATURES], "data": row}]
    sizes: list[tuple[float, int]] = []

    def ask(number: int) -> bytes:
        body: bytes = msgpack.packb(
            {
                "op": "infer",
                "id": number,
                "model": model,
                "inputs": inputs,
                "slo_ms": budget_ms or objective_ms,
                "cache": False,
            }
        )
        return body

    def check(body: bytes) -> tuple[int, bool]:
        answer = msgpack.unpackb(body)
        if answer["status"] == AnswerStatus.OK:
            sizes.append((time.perf_counter(), answer["batch_size"]))
        return answer["id"], answer["status"] == AnswerStatus.OK

    driver = ZmqDriver(running.address, ask, check)
    try:
        await _served(running, model, replicas)
        name = method if replicas == 1 else f"{method}, {replicas} replicas"
        pids = {f"container {i}": p.pid for i, p in enumerate(processes)}
        pids |= {f"code {i}": pid for i, p in enumerate(processes) for pid in family(p.pid).values() if pid != p.pid}
        yield System(function, name, driver.drive, {**running.supervisor.pids(), **pids}, sizes)
    finally:
        driver.close()
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            await asyncio.to_thread(process.wait)


async def _served(running: Mesh, model: str, replicas: int) -> None:
    settings = read_settings(environment=running.environment)
    async with client(settings) as session:
        while True:
            members = (await session.call("status"))["members"]
            there = sum(member["serves"] == f"{model}:1" for member in members)
            ready = any(found["name"] == model and found["ready"] for found in await session.models())
            if ready and there >= replicas:
                return
            await asyncio.sleep(0.1)


MOSEC = """
import sys
sys.path.insert(0, {root!r})
from mosec import Server, Worker
from mosec.mixin import MsgpackMixin
import numpy as np
from scripts.rigs.batching_functions import warm
class Model(MsgpackMixin, Worker):
    def __init__(self):
        self.function = warm({function!r})
    def forward(self, data):
        x = np.stack([np.frombuffer(item["x"], np.float32) for item in data])
        return [{{"y": int(y)}} for y in self.function(x)]
server = Server()
server.append_worker(Model, num=1, max_batch_size={size}, max_wait_time=2)
server.run()
"""


BENTO = """
import sys
sys.path.insert(0, {root!r})
import bentoml, numpy as np
from scripts.rigs.batching_functions import warm
@bentoml.service(workers=1, traffic={{"timeout": 10, "max_concurrency": 4096}})
class Model:
    def __init__(self):
        self.function = warm({function!r})
    @bentoml.api(batchable=True, max_batch_size={size}, max_latency_ms={objective_ms})
    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.function(np.asarray(x, np.float32))
"""


PACKAGES = ["msgpack", "numpy", "scikit-learn", "onnxruntime"]


@asynccontextmanager
async def mosec(folder: Path, function: str, size: int) -> AsyncIterator[System]:
    """mosec, whose batches are limited by a size and a wait of 2 ms."""
    python = await asyncio.to_thread(peer_environment, "mosec-batching", ["mosec", *PACKAGES])
    script = folder / f"mosec_{function}_{size}.py"
    script.write_text(MOSEC.format(root=str(ROOT), function=function, size=size))
    port = free_ports(1)[0]
    command = [str(python), str(script), "--port", str(port), "--log-level", "error", "--timeout", "10000"]
    body = msgpack.packb({"x": np.random.default_rng(1).normal(size=FEATURES).astype(np.float32).tobytes()})
    async with _peer(command, HttpDriver(port, body)) as (driver, pids):
        yield System(function, f"mosec {size}, wait 2 ms", driver.drive, pids)


@asynccontextmanager
async def bentoml(folder: Path, function: str, objective_ms: float) -> AsyncIterator[System]:
    """BentoML, whose batches adapt to a latency; arrays travel as JSON."""
    python = await asyncio.to_thread(peer_environment, "bentoml", ["bentoml", *PACKAGES])
    script = folder / f"bento_{function}.py"
    script.write_text(
        BENTO.format(root=str(ROOT), function=function, size=BATCH_MAX, objective_ms=max(1, int(objective_ms)))
    )
    port = free_ports(1)[0]
    command = [
        str(python.parent / "bentoml"), "serve", f"{script.stem}:Model", "--port", str(port), "--host", "127.0.0.1",
        "--working-dir", str(folder),
    ]  # fmt: skip
    row = np.random.default_rng(1).normal(size=(1, FEATURES)).round(3).tolist()
    body = json.dumps({"x": row}).encode()
    async with _peer(command, HttpDriver(port, body, path="/predict", content="application/json")) as (driver, pids):
        yield System(function, "bentoml", driver.drive, pids)


@asynccontextmanager
async def _peer(command: list[str], driver: HttpDriver) -> AsyncIterator[tuple[HttpDriver, dict[str, int]]]:
    process = start(command)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                latencies, not_ok = await asyncio.wait_for(driver.drive(1, 0.01), 5.0)
                if latencies and not not_ok:
                    break
            await asyncio.sleep(0.1)
        else:
            raise RuntimeError(f"{command[1]} did not start")
        yield driver, family(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
