"""One system that serves the encoder: started, checked, and measured with texts of unequal length."""

import asyncio
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from gearmesh.load.generating.messages import Template
from gearmesh.load.plan import LoadTarget, ModelInput
from gearmesh.operations.meshes import Mesh, mesh
from gearmesh.telemetry.machine import MachineWatch
from gpu_worker.packages.export import write_package
from scripts import ROOT
from scripts.peers.drivers import Driver, MeshDriver, Samples
from scripts.peers.encoder import COUNTS, LONGEST, Counts, build, embed
from scripts.peers.environments import STARTS_WITHIN_S, PeerError, last_words, serving
from scripts.peers.http_driver import HttpDriver
from scripts.peers.lengths import TextPeer, Words
from scripts.rigs.meshes import gearmesh
from scripts.rigs.processes import family

Floats = npt.NDArray[np.float64]
MODEL = "encoder"
CHECKED = 6  # texts whose answers are compared with the model's
TOLERANCE = 1e-3
WARM_S, PAUSE_S = 1.0, 0.5
LOOSE_SLO_MS = 30_000.0  # budget of requests that only warm up or are checked
QUARTERS = 4
ELEMENTS = re.compile(r'^gearmesh_elements_total\{.*\bof="(\w+)".*\} (\S+)$', re.MULTILINE)
COST = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
from encoder import VOCABULARY, build
model = build()
with torch.inference_mode():
    for length in (2, 4, 8, 16, 32, 64, 128, 256, 512):
        for batch in [b for b in (1, 2, 4, 8, 16, 32) if b <= int(sys.argv[2])]:
            ids = torch.randint(1, VOCABULARY, (batch, length)); mask = torch.ones(ids.shape, dtype=torch.bool)
            model(ids, mask); took = []
            while len(took) < 3 or (sum(took) < 0.2 and len(took) < 30):
                began = time.perf_counter(); model(ids, mask); took.append(time.perf_counter() - began)
            print(length, batch, sorted(took)[len(took) // 2], flush=True)
            if took[0] > 1.0:
                break
"""


@dataclass(frozen=True, slots=True)
class OwnSystem:
    """A way in which gearmesh serves the encoder."""

    name: str
    about: str
    repository: str  # folder of its model
    padded: bool  # the client pads every text to the longest that the model takes
    settings: dict[str, Any] = field(default_factory=dict)


OWN = {
    one.name: one
    for one in (
        OwnSystem("gearmesh", "texts as they are", "open", padded=False),
        OwnSystem("padded to 512", "gearmesh; a model of one length, the client pads", "fixed", padded=True),
        OwnSystem(
            "fifo to longest", "gearmesh, policy fifo: order of arrival, padded to the longest of the batch", "open",
            padded=False, settings={"policy": "fifo"},
        ),
    )
}  # fmt: skip


def build_repositories(folder: Path, batch_max: int) -> None:
    """Writes the encoder for texts of any length, and once more for texts of one length."""
    for name, shape, dims in (("open", ("length",), {"length": (1, LONGEST)}), ("fixed", (LONGEST,), {})):
        write_package(
            folder / name, MODEL, "1", build(), inputs={"ids": ("int64", shape), "mask": ("bool", shape)},
            outputs=["vector"], dims=dims, batch_max=batch_max, slo_ms=1000.0, cache=False,
            description="for a comparison",
        )  # fmt: skip


def measure_costs(batch_max: int) -> dict[tuple[int, int], float]:
    """{(length, batch): seconds} of the bare encoder on one thread, measured in a process of its own."""
    command = [sys.executable, "-c", COST, str(ROOT / "scripts" / "peers"), str(batch_max)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {(int(length), int(batch)): float(s) for length, batch, s in (line.split() for line in lines)}


def capacity_per_s(costs: dict[tuple[int, int], float], texts: Sequence[Words]) -> float:
    """Texts per second if each were computed in the best batch of its own length."""
    lengths = sorted({length for length, _ in costs})
    shares = [min(s / batch for (at, batch), s in costs.items() if at == length) for length in lengths]
    return float(1 / np.interp([len(text) for text in texts], lengths, shares).mean())


def target(padded: bool) -> LoadTarget:
    """The model as the load generator knows it."""
    shape = (LONGEST,) if padded else (-1,)
    return LoadTarget(MODEL, (ModelInput("ids", "int64", shape), ModelInput("mask", "bool", shape)))


def template(text: Words, padded: bool) -> Template:
    """A request of gearmesh for the text."""
    length = LONGEST if padded else len(text)
    ids, mask = np.zeros((1, length), np.int64), np.zeros((1, length), bool)
    ids[0, : len(text)] = text
    mask[0, : len(text)] = True
    return Template(target(padded), [ids, mask], cache=False)


def expected(texts: Sequence[Words]) -> list[tuple[float, ...]]:
    """The encoder's vector for each text alone."""
    model, counts = build(), Counts()
    return [struct.unpack(f"<{len(v) // 4}f", v) for text in texts for v in embed(model, counts, [text.tolist()])]


@dataclass(slots=True)
class Served:
    """A running system."""

    driver: Driver
    pids: dict[str, int]
    words: Callable[[], Awaitable[tuple[int, int]]]  # asked for, and computed, so far; zeros if it does not say


def counted_by(file: Path) -> Callable[[], Awaitable[tuple[int, int]]]:
    """What a peer's server has written there."""

    def read() -> tuple[int, int]:
        text = file.read_text().split() if file.exists() else []
        return (int(text[0]), int(text[1])) if len(text) == 2 else (0, 0)

    return lambda: asyncio.to_thread(read)


def counted_of(running: Mesh) -> Callable[[], Awaitable[tuple[int, int]]]:
    """What the mesh says in its metrics."""

    async def words() -> tuple[int, int]:
        _, text = await gearmesh(running, "metrics")
        found = {of: int(float(value)) for of, value in ELEMENTS.findall(text)}
        return found.get("asked", 0), found.get("computed", 0)

    return words


@asynccontextmanager
async def ours(system: OwnSystem, repositories: Path, texts: Sequence[Words]) -> AsyncIterator[Served]:
    """A mesh with the encoder, and a driver that asks for these texts in turn. Raises: PeerError for wrong answers."""
    templates = [template(text, system.padded) for text in texts]
    with tempfile.TemporaryDirectory(prefix="gearmesh-data-") as data:
        async with mesh(repositories / system.repository, Path(data), **system.settings) as running:
            driver = MeshDriver(running.address, *templates)
            try:
                await check(driver, texts, _our_answer)
                yield Served(driver, running.supervisor.pids(), counted_of(running))
            finally:
                driver.close()


def _our_answer(body: bytes) -> tuple[float, ...]:
    data = msgpack.unpackb(body)["outputs"][0]["data"]
    return struct.unpack(f"<{len(data) // 4}f", data)


@asynccontextmanager
async def theirs(one: TextPeer, python: Path, texts: Sequence[Words], batch_max: int) -> AsyncIterator[Served]:
    """A peer's server with the encoder, and a driver. Raises: PeerError if it does not start or answers wrongly."""
    peer = one.peer
    with tempfile.TemporaryDirectory(prefix="gearmesh-counts-") as folder:
        counts = Path(folder) / "counts"
        os.environ[COUNTS] = str(counts)
        try:
            async with serving(peer, python, MODEL, batch_max) as (port, process, log):
                driver = HttpDriver(port, peer.path, peer.content_type, *map(one.body, texts))
                try:
                    ends_s = time.monotonic() + STARTS_WITHIN_S
                    while not (await driver.closed(1, 0.01, LOOSE_SLO_MS)).ok_s:
                        if time.monotonic() > ends_s or process.poll() is not None:
                            raise PeerError(f"did not serve within {STARTS_WITHIN_S:g} s: {last_words(log)}")
                        await asyncio.sleep(0.2)
                    await check(driver, texts, peer.answer)
                    yield Served(driver, family(process.pid), counted_by(counts))
                finally:
                    driver.close()
        finally:
            del os.environ[COUNTS]


async def check(driver: Driver, texts: Sequence[Words], read: Any) -> None:
    """The server's vectors are the model's for some texts, one by one. Raises: PeerError."""
    for _ in range(CHECKED):
        bodies: list[bytes] = []
        driver.on_body = bodies.append
        samples = await driver.closed(1, 0.0, LOOSE_SLO_MS)
        driver.on_body = None
        if not samples.ok_numbers:
            raise PeerError(f"a request was not answered: {bodies[:1]!r}")
        text = texts[samples.ok_numbers[0] % len(texts)]
        found, wanted = read(bodies[0]), expected([text])[0]
        if len(found) != len(wanted) or not np.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE):
            raise PeerError(f"the vector of a text of {len(text)} words is not the model's: {found[:3]}, {wanted[:3]}")


async def measure(
    served: Served, texts: Sequence[Words], due_s: Floats | int, seconds: float, slo_ms: float, slos: Sequence[float]
) -> dict[str, Any]:
    """One run: an open loop with these instants, or a closed loop of so many clients."""
    await served.driver.closed(4, WARM_S, LOOSE_SLO_MS)
    await asyncio.sleep(PAUSE_S)
    before, watch = await served.words(), MachineWatch({**served.pids, "client": os.getpid()})
    if isinstance(due_s, int):
        samples = await served.driver.closed(due_s, seconds, slo_ms)
    else:
        samples = await served.driver.open(due_s, seconds, slo_ms)
    watched, after = watch.stop(), await served.words()
    asked, computed = (late - early for late, early in zip(after, before, strict=True))
    run = samples.summary(tuple(slos))
    run["padding"] = 1 - asked / computed if computed else None
    run["quarters"] = {f"{slo:g}": quarters(samples, texts, slo) for slo in slos}
    run["client_cpu"] = round(watched["cpu_s"]["client"] / watched["wall_s"], 3)
    return {**run, "steal": watched["steal"], "foreign": watched["foreign"]}


def quarters(samples: Samples, texts: Sequence[Words], slo_ms: float) -> list[float]:
    """Share in time of the shortest quarter of the requests, and of the following ones."""
    sent = range(samples.first, samples.first + samples.sent)
    lengths = np.array([len(texts[number % len(texts)]) for number in sent], float)
    in_time = np.zeros(len(sent), bool)
    for number, took_s in zip(samples.ok_numbers, samples.ok_s, strict=True):
        in_time[number - samples.first] = took_s * 1e3 <= slo_ms
    order = np.argsort(lengths, kind="stable")
    return [float(in_time[part].mean()) if len(part) else math.nan for part in np.array_split(order, QUARTERS)]
