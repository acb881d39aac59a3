"""One system of a comparison: started, checked, and measured in all cells."""

import argparse
import asyncio
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch

from gearmesh.load.generating.messages import Template
from gearmesh.load.plan import LoadTarget, ModelInput
from gearmesh.operations.meshes import mesh
from gearmesh.telemetry.machine import MachineWatch
from gpu_worker.packages.export import write_package
from scripts import ROOT
from scripts.peers.catalogue import Peer
from scripts.peers.drivers import Driver, MeshDriver
from scripts.peers.environments import STARTS_WITHIN_S, PeerError, last_words, serving
from scripts.peers.http_driver import HttpDriver
from scripts.peers.models import INPUTS, build
from scripts.rigs.processes import family

OURS = ("gearmesh", "gearmesh compact")
GOODPUTS = {"goodput", "closed"}  # parts in which answers have to come within an SLO
CLIENTS = 16  # of the closed loop
SEED = 7
WARM_S, PAUSE_S = 0.7, 0.3
TOLERANCE = 1e-3
LOOSE_SLO_MS = 5000.0  # budget for gearmesh in loads without an SLO

CAPACITY = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
from models import build
model = build("m5"); found = {}
with torch.inference_mode():
    for batch in [b for b in (1, 2, 4, 8, 16, 32, 64) if b <= int(sys.argv[2])]:
        x = torch.rand(batch, 64); model(x); took = []
        for _ in range(40):
            began = time.perf_counter(); model(x); took.append(time.perf_counter() - began)
        found[batch] = sorted(took)[len(took) // 2] * 1e3
print(found)
"""


@dataclass(slots=True)
class Bench:
    """The options, and the results so far."""

    arguments: argparse.Namespace
    repositories: Path
    pythons: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # {system: why it is left out}
    runs: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = field(
        default_factory=dict
    )  # {model: {system: {cell: runs}}}
    capacity: list[dict[int, float]] = field(default_factory=list)  # {batch: ms} of the bare model, once per round

    def note(self, model: str, system: str, cell: str, run: dict[str, Any]) -> None:
        """Adds a run."""
        self.runs.setdefault(model, {}).setdefault(system, {}).setdefault(cell, []).append(run)


def row_of(model: str) -> list[float]:
    """The input row that is sent to the model."""
    generator = np.random.default_rng(SEED)
    return [float(value) for value in generator.random(INPUTS[model], np.float32)]


def expected(model: str) -> tuple[float, ...]:
    """The model's answer to that row."""
    with torch.inference_mode():
        return tuple(build(model)(torch.tensor([row_of(model)], dtype=torch.float32))[0].tolist())


def build_repository(folder: Path, model: str, batch_max: int) -> None:
    """Writes a repository with this one model, for gearmesh."""
    write_package(
        folder / model, model, "1", build(model), inputs={"x": ("float32", (INPUTS[model],))}, outputs=["y"],
        batch_max=batch_max, slo_ms=1000.0, cache=False, description="for a comparison",
    )  # fmt: skip


@asynccontextmanager
async def ours(bench: Bench, system: str, model: str) -> AsyncIterator[tuple[Driver, dict[str, int]]]:
    """A mesh with the model, and a driver for it."""
    target = LoadTarget(model, (ModelInput("x", "float32", (INPUTS[model],)),))
    template = Template(target, [np.array([row_of(model)], np.float32)], cache=False)
    folder = bench.repositories / model
    with tempfile.TemporaryDirectory(prefix="gearmesh-data-") as data:
        async with mesh(folder, Path(data), compact=system.endswith("compact")) as running:
            driver = MeshDriver(running.address, template, back_off=bench.arguments.back_off)
            try:
                await _check(driver, model, _our_answer)
                yield driver, running.supervisor.pids()
            finally:
                driver.close()


def _our_answer(body: bytes) -> tuple[float, ...]:
    data = msgpack.unpackb(body)["outputs"][0]["data"]
    return struct.unpack(f"<{len(data) // 4}f", data)


@asynccontextmanager
async def theirs(bench: Bench, peer: Peer, model: str) -> AsyncIterator[tuple[Driver, dict[str, int]]]:
    """A peer's server with the model, and a driver for it. Raises: PeerError if the server does not start."""
    async with serving(peer, bench.pythons[peer.name], model, bench.arguments.batch_max) as (port, process, log):
        driver = HttpDriver(port, peer.path, peer.content_type, peer.body(row_of(model)))
        try:
            ends_s = time.monotonic() + STARTS_WITHIN_S
            while True:
                samples = await driver.closed(1, 0.01, LOOSE_SLO_MS)
                if samples.ok_s:
                    break
                if time.monotonic() > ends_s or process.poll() is not None:
                    raise PeerError(f"did not serve {model} within {STARTS_WITHIN_S:g} s: {last_words(log)}")
                await asyncio.sleep(0.2)
            await _check(driver, model, peer.answer)
            yield driver, family(process.pid)
        finally:
            driver.close()


async def _check(driver: Driver, model: str, read: Any) -> None:
    """Checks that the server's answer is the model's. Raises: PeerError."""
    bodies: list[bytes] = []
    driver.on_body = bodies.append
    await driver.closed(1, 0.01, LOOSE_SLO_MS)
    driver.on_body = None
    wanted = expected(model)
    if not bodies or not np.allclose(read(bodies[-1]), wanted, rtol=TOLERANCE, atol=TOLERANCE):
        raise PeerError(f"answers for {model} are not the model's: {bodies[-1][:120]!r}" if bodies else "no answer")


async def measure(bench: Bench, system: str, model: str, driver: Driver, pids: dict[str, int]) -> None:
    """Measures all cells of one system with one model."""
    arguments = bench.arguments
    is_ours = system in OURS
    cells: list[tuple[str, Any, float]] = []
    if model in arguments.parts:
        cells += [(str(n), n, LOOSE_SLO_MS) for n in arguments.in_flight]
    if model == "m5" and GOODPUTS.intersection(arguments.parts):
        for load, shape in loads_of(arguments).items():
            cells += [(f"{load}@{s:g}", shape, s) for s in arguments.slos] if is_ours else [(load, shape, LOOSE_SLO_MS)]
    await driver.closed(16, WARM_S, LOOSE_SLO_MS)
    for cell, shape, slo_ms in cells:
        await asyncio.sleep(PAUSE_S)
        await driver.closed(1, 0.1, LOOSE_SLO_MS)
        watch = MachineWatch({**pids, "client": os.getpid()})
        if isinstance(shape, int):
            samples = await driver.closed(shape, arguments.seconds, slo_ms)
        else:
            due_s = poisson(shape, arguments.seconds)
            samples = await driver.open(due_s, arguments.seconds, slo_ms)
        watched = watch.stop()
        run = samples.summary(tuple(arguments.slos))
        run["client_cpu"] = round(watched["cpu_s"]["client"] / watched["wall_s"], 3)
        run["server_cpu"] = round((sum(watched["cpu_s"].values()) - watched["cpu_s"]["client"]) / watched["wall_s"], 3)
        bench.note(model, system, cell, {**run, "steal": watched["steal"], "foreign": watched["foreign"]})


def poisson(rate: float, seconds: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Times at which requests are due; the same for every system."""
    rng = np.random.default_rng([SEED, int(rate)])
    return np.sort(rng.random(rng.poisson(rate * seconds)) * seconds)


def measure_capacity(batch_max: int) -> dict[int, float]:
    """{batch: ms} of the bare m5 on one thread, measured in a process of its own."""
    command = [sys.executable, "-c", CAPACITY, str(ROOT / "scripts" / "peers"), str(batch_max)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {int(k): float(v) for k, _, v in (pair.partition(":") for pair in text.strip().strip("{}").split(","))}


def loads_of(arguments: argparse.Namespace) -> dict[str, int | float]:
    """{name: clients of a closed loop (int), or requests per second (float)} for which goodput is measured."""
    rates = arguments.rates if "goodput" in arguments.parts else ()
    return {f"{arguments.clients} clients": arguments.clients, **{f"{rate:g}/s": float(rate) for rate in rates}}
