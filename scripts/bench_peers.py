"""gearmesh compared with mosec, LitServe, BentoML, Ray Serve and FastAPI: the same torch models, interleaved in one
run.

    .venv/bin/python -m scripts.bench_peers [--parts noop,mlp,m5,goodput] [--peers mosec,ray] [--seconds 3] [--rounds 2]
        [--json FILE] [--plot FILE.png]

Every round starts each system with each model, checks its answers, measures, and stops it, so that nothing else runs
meanwhile. Each round begins with another system. noop, mlp, m5: closed loops at 1, 16 and 64 in flight. goodput: m5, a
closed loop of 16 clients and open loops (Poisson, latency from when a request was due) at 150, 400 and 1,200
requests/s, with SLOs of 10, 25, 50 and 100 ms. Every system has one worker with one torch thread and the same largest
batch. Each peer is installed into .venv-peers/NAME. Prints Markdown tables; the last line is JSON.
"""

import argparse
import asyncio
import json
import math
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
import uvloop

from gearmesh.load.generating.messages import Template
from gearmesh.load.plan import Target, Tensor
from gearmesh.operations.meshes import mesh
from gearmesh.telemetry.machine import Watch, describe
from gpu_worker.packages.export import write_package
from scripts import ROOT
from scripts.peers import plots, tables
from scripts.peers.catalogue import PEERS, Peer
from scripts.peers.drivers import Driver, HttpDriver, MeshDriver
from scripts.peers.environments import STARTS_WITHIN_S, PeerError, family, install, last_words, serving, version
from scripts.peers.models import INPUTS, build
from scripts.rigs.flags import picture

PARTS = ("noop", "mlp", "m5", "goodput")
OURS = ("gearmesh", "gearmesh compact")
WARM_S, PAUSE_S = 0.7, 0.3
SEED = 7
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
    target = Target(model, (Tensor("x", "float32", (INPUTS[model],)),))
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
    if model == "m5" and "goodput" in arguments.parts:
        for load, shape in loads_of(arguments).items():
            cells += [(f"{load}@{s:g}", shape, s) for s in arguments.slos] if is_ours else [(load, shape, LOOSE_SLO_MS)]
    await driver.closed(16, WARM_S, LOOSE_SLO_MS)
    for cell, shape, slo_ms in cells:
        await asyncio.sleep(PAUSE_S)
        await driver.closed(1, 0.1, LOOSE_SLO_MS)
        watch = Watch({**pids, "client": os.getpid()})
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


async def run(bench: Bench, say: Any) -> None:
    """Runs all rounds."""
    arguments = bench.arguments
    models = list(dict.fromkeys("m5" if part == "goodput" else part for part in arguments.parts))
    for model in models:
        build_repository(bench.repositories, model, arguments.batch_max)
    for round_ in range(arguments.rounds):
        for model in models:
            if model == "m5" and "goodput" in arguments.parts:
                bench.capacity.append(measure_capacity(arguments.batch_max))
            for system in rotated((*arguments.ours, *bench.pythons), round_):
                if system in bench.missing:
                    continue
                began_s = time.monotonic()
                held = ours(bench, system, model) if system in OURS else theirs(bench, PEERS[system], model)
                try:
                    async with held as (driver, pids):
                        await measure(bench, system, model, driver, pids)
                except (PeerError, OSError, RuntimeError) as error:
                    bench.missing[system] = f"{model}: {error}"
                    say(f"{system}: {error}")
                    continue
                say(f"round {round_ + 1} of {arguments.rounds}: {system}, {model}: {time.monotonic() - began_s:.0f} s")


def loads_of(arguments: argparse.Namespace) -> dict[str, int | float]:
    """{name: clients of a closed loop (int), or requests per second (float)} for which goodput is measured."""
    return {
        f"{arguments.clients} clients": arguments.clients,
        **{f"{rate:g}/s": float(rate) for rate in arguments.rates},
    }


def rotated(systems: Sequence[str], by: int) -> list[str]:
    """The systems in another order for each round, so that none always runs after the same one."""
    by %= max(1, len(systems))
    return [*systems[by:], *systems[:by]]


def measure_capacity(batch_max: int) -> dict[int, float]:
    """{batch: ms} of the bare m5 on one thread, measured in a process of its own."""
    command = [sys.executable, "-c", CAPACITY, str(ROOT / "scripts" / "peers"), str(batch_max)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {int(k): float(v) for k, _, v in (pair.partition(":") for pair in text.strip().strip("{}").split(","))}


def report(bench: Bench) -> str:
    """The tables, and the cells in which a peer is ahead."""
    arguments = bench.arguments
    parts, ahead = [], []
    titles = {"noop": "no-op, 16 floats", "mlp": "MLP 784-512-512-10", "m5": "MLP 64-4480-4480-10 (m5)"}
    for model, title in titles.items():
        if model in arguments.parts and model in bench.runs:
            parts.append(tables.throughput_table(f"{title}, closed loop", bench.runs[model], arguments.in_flight))
            ahead += tables.behind_throughput(title, bench.runs[model], arguments.in_flight)
    if "goodput" in arguments.parts and "m5" in bench.runs:
        loads = loads_of(arguments)
        for load, shape in loads.items():
            kind = "closed loop" if isinstance(shape, int) else "open loop, Poisson"
            parts.append(tables.goodput_table(f"Goodput on m5, {kind}, {load}", bench.runs["m5"], load, arguments.slos))
        ahead += tables.behind(bench.runs["m5"], list(loads), arguments.slos)
        parts.append(_capacity(bench, list(loads)[-1]))
    parts.append(tables.lateness(bench.runs))
    for system, why in bench.missing.items():
        parts.append(f"**{system} is not compared (or only in part)**: {why}\n")
    if not arguments.ours:
        return "\n".join(parts)
    parts.append("A peer is ahead in:\n\n" + "\n".join(f"* {one}" for one in ahead) if ahead else "No peer is ahead.")
    return "\n".join(parts)


def capacity_per_s(bench: Bench) -> float:
    """Rows per second of the bare model at its best batch size; the median round."""
    return sorted(max(b / ms * 1e3 for b, ms in one.items()) for one in bench.capacity)[len(bench.capacity) // 2]


def _capacity(bench: Bench, load: str) -> str:
    best = capacity_per_s(bench)
    times = ", ".join(f"{batch}: {ms:.1f}" for batch, ms in bench.capacity[-1].items())
    lines = [
        f"The bare model on one thread: {best:,.0f} rows/s at its best batch (ms by batch, last round: {times}).",
        "",
    ]
    for system, cells in bench.runs["m5"].items():
        if system in OURS:
            shares = []
            for slo in bench.arguments.slos:
                found = cells.get(f"{load}@{slo:g}")
                if found:
                    shares.append(f"{tables.goodput(found, f'{slo:g}')[1] / best:.0%} inside {slo:g} ms")
            lines.append(f"{system} at {load}, goodput as a share of that: {', '.join(shares)}.")
    return "\n".join([*lines, ""])


def _list_of(kind: Any, allowed: Sequence[str] = ()) -> Any:
    def parse(text: str) -> list[Any]:
        values = [part.strip() for part in text.split(",") if part.strip()]
        strange = [value for value in values if allowed and value not in allowed]
        if strange:
            raise argparse.ArgumentTypeError(f"{', '.join(strange)}: must be some of {', '.join(allowed)}")
        return [kind(value) for value in values]

    return parse


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--peers", type=_list_of(str, list(PEERS)), default=list(PEERS), help="some of them, or ''")
    made.add_argument("--ours", type=_list_of(str, OURS), default=list(OURS), help="gearmesh, gearmesh compact")
    made.add_argument("--parts", type=_list_of(str, PARTS), default=list(PARTS))
    made.add_argument("--seconds", type=float, default=3.0, help="of every cell")
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--in-flight", type=_list_of(int), default=[1, 16, 64])
    made.add_argument("--clients", type=int, default=16)
    made.add_argument("--rates", type=_list_of(float), default=[150.0, 400.0, 1200.0])
    made.add_argument("--slos", type=_list_of(float), default=[10.0, 25.0, 50.0, 100.0])
    made.add_argument("--batch-max", type=int, default=16, help="largest batch of every system")
    made.add_argument("--back-off", action="store_true", help="a client that gearmesh refuses waits as it is told to")
    made.add_argument("--json", type=Path, help="write the result here, too; must not exist")
    made.add_argument("--plot", type=picture, help="draw the goodput there: .png, .svg or .pdf")
    return made


def main() -> int:
    """Runs the benchmark. Exit code 0; 1 if a system could not be compared; 2 for wrong flags."""
    flags = parser()
    arguments = flags.parse_args()
    if arguments.json is not None and arguments.json.exists():
        flags.error(f"--json {arguments.json}: it exists already")
    for name in ("seconds", "rounds", "in_flight", "clients", "rates", "slos", "batch_max"):
        given = getattr(arguments, name)
        if not all(0 < value < math.inf for value in (given if isinstance(given, list) else [given])):
            flags.error(f"--{name.replace('_', '-')}: must be above 0; got {given}")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="gearmesh-peers-") as folder:
        bench = Bench(arguments, Path(folder))
        for name in arguments.peers:
            try:
                bench.pythons[name] = install(PEERS[name])
            except PeerError as error:
                bench.missing[name] = str(error)
                say(f"{name}: {error}")
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # what runs is stopped first
        uvloop.run(run(bench, say))
    print(report(bench))
    if arguments.plot is not None and "m5" in bench.runs and "goodput" in arguments.parts:
        plots.draw(bench.runs["m5"], list(loads_of(arguments)), arguments.slos, arguments.plot)
    result = {
        "machine": describe(),
        "peers": {
            n: {"version": version(PEERS[n], p), "configuration": PEERS[n].configuration}
            for n, p in bench.pythons.items()
        },
        "missing": bench.missing,
        "flags": {key: str(value) for key, value in vars(arguments).items()},
        "capacity_ms": bench.capacity,
        "runs": bench.runs,
    }
    text = json.dumps(result)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return int(bool(bench.missing))


if __name__ == "__main__":
    raise SystemExit(main())
