"""Runs a plan: starts the generator processes, gives each its share of every phase, and collects their records."""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from frontend.client.client import AsyncClient, RequestError
from gearmesh.load.errors import LoadError
from gearmesh.load.generating.jobs import (
    Broken,
    Finished,
    FromCommand,
    FromGenerator,
    Go,
    Loaded,
    Progress,
    Ready,
    Run,
    Start,
    read_records,
    write_arrivals,
)
from gearmesh.load.generating.messages import random_inputs
from gearmesh.load.generating.schedule import Clients, closed_clients, deal_clients, open_arrivals
from gearmesh.load.plan import Phase, Plan, Target, Tensor
from gearmesh.load.reporting.records import Records, merge
from gearmesh.telemetry.machine import Watch

LEAD_S = 0.1  # from telling the generators when to begin until the first request
CONNECT_S = 5.0
LINE_BYTES_MAX = 1 << 24
LONE_RUNS, LONE_WARM = 9, 2  # requests that measure the batch-1 time, and warm-up requests before them
LONE_SLO_MS = 60_000.0
MEASURED_MODELS_MAX = 32


@dataclass(frozen=True, slots=True)
class Where:
    """The mesh that is asked."""

    addresses: tuple[str, ...]
    keys_dir: str = ""


@dataclass(slots=True, eq=False)
class PhaseRun:
    """The results of one phase."""

    phase: Phase
    records: Records
    codes: list[str]
    scheduled: int  # requests of open loops
    generator_cpu_s: list[float]  # of each generator process
    stray: int
    broken: int  # connections to the mesh that were lost
    full: bool  # a generator could record no more requests, and its clients stopped
    watched: dict[str, object]  # result of machine.Watch.stop()


@dataclass(slots=True)
class Seen:
    """The latest progress of all generators, summed."""

    parts: dict[int, Progress] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        """Requests sent."""
        return sum(part.sent for part in self.parts.values())

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        return sum(part.in_flight for part in self.parts.values())

    @property
    def late_ms(self) -> float:
        """Delay of the last request sent, of the generator where it is greatest."""
        return max((part.late_ms for part in self.parts.values()), default=0.0)

    @property
    def outcomes(self) -> list[int]:
        """Counts by outcome."""
        return [sum(counts) for counts in zip(*(part.outcomes for part in self.parts.values()), strict=True)]


OnProgress = Callable[[Phase, float, Seen], None]  # phase, seconds since it began, counts


async def find_targets(where: Where, models: Sequence[str]) -> dict[str, Target]:
    """The models as the mesh describes them; by default all that are ready. Raises: LoadError."""
    async with _client(where) as client:
        try:
            described = {model["name"]: model for model in (await client.call("models", timeout_s=CONNECT_S))["models"]}
        except RequestError as error:
            raise LoadError(
                f"no mesh answers at {', '.join(where.addresses)} within {CONNECT_S:g} s; is one up (gearmesh up), and "
                "is the address right (--address, GEARMESH_FRONTEND_PORT)?"
            ) from error
    ready = [name for name, model in described.items() if model["ready"]]
    known = ", ".join(ready[:12]) + (f" and {len(ready) - 12} more" if len(ready) > 12 else "") or "none"
    for name in models:
        if name not in described:
            raise LoadError(f"--model {name}: there is no such model; ready are: {known}")
        if not described[name]["ready"]:
            why = described[name]["fault"] or "it is being prepared"
            raise LoadError(f"--model {name}: it is not ready ({why}); ready are: {known}")
    if not ready:
        raise LoadError(f"the mesh at {', '.join(where.addresses)} has no model that is ready")
    return {name: _target(described[name]) for name in models or ready}


def _target(model: Mapping[str, object]) -> Target:
    inputs = model["inputs"]
    assert isinstance(inputs, list)
    tensors = tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"][1:])) for t in inputs)
    batch_max = model["batch_max"]
    return Target(str(model["name"]), tensors, batch_max if isinstance(batch_max, int) else 1)


def _client(where: Where) -> AsyncClient:
    if not where.keys_dir:
        return AsyncClient(where.addresses)
    from mesh.net.keys import Keys

    keys = Keys.read(Path(where.keys_dir))
    return AsyncClient(where.addresses, keys=(keys.public, keys.public, keys.secret))


async def mesh_pids(where: Where) -> dict[str, int]:
    """{member: process id} of the mesh's services on this host, so that their CPU time is not counted as foreign."""
    async with _client(where) as client:
        try:
            members = (await client.call("status", timeout_s=CONNECT_S))["members"]
        except RequestError:
            return {}
    pids = {member["id"]: member["pid"] for member in members}
    return {name: pid for name, pid in pids.items() if _runs_gearmesh(pid)}


def _runs_gearmesh(pid: int) -> bool:
    """Whether this process exists on this host and belongs to a mesh (the member may be on another host)."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(
        part in (b"broker", b"controller", b"frontend", b"gpu_worker", b"gearmesh.operations.compact")
        for part in command
    )


async def measure_batch1(where: Where, targets: Mapping[str, Target]) -> dict[str, Target]:
    """The targets with the median latency, at the frontend, of requests sent one at a time. Raises: LoadError.

    Of more than 32 models, 32 are measured and the others get the median of those.
    """
    rng = np.random.default_rng(0)
    chosen = list(targets)[:: max(1, -(-len(targets) // MEASURED_MODELS_MAX))]
    measured: dict[str, float] = {}
    async with _client(where) as client:
        await client.models()
        for name in chosen:
            inputs = dict(
                zip((t.name for t in targets[name].inputs), random_inputs(targets[name], 1, rng), strict=True)
            )
            taken = []
            for _ in range(LONE_WARM + LONE_RUNS):
                try:
                    answer = await client.infer(name, inputs, slo_ms=LONE_SLO_MS, cache=False)
                except RequestError as error:
                    raise LoadError(f"--slo-factor: a lone request to {name} was not served: {error}") from error
                taken.append(answer.latency_ms)
            measured[name] = float(np.median(taken[LONE_WARM:]))
    common = float(np.median(list(measured.values())))
    return {name: replace(target, batch1_ms=measured.get(name, common)) for name, target in targets.items()}


class _Process:
    """A generator process and its pipes."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.process = process
        self._decoder = msgspec.json.Decoder(FromGenerator)

    async def send(self, message: FromCommand) -> None:
        """Writes one line to the generator."""
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(message) + b"\n")
        await self.process.stdin.drain()

    async def read(self) -> FromGenerator:
        """Its next line. Raises: LoadError, if the generator failed."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise LoadError(f"generator process {self.number} ended with code {await self.process.wait()}")
        message: FromGenerator = self._decoder.decode(line)
        if isinstance(message, Broken):
            raise LoadError(f"generator process {self.number}: {message.why}")
        return message

    async def expect(self, kind: type[Ready] | type[Loaded]) -> None:
        """Waits for a line of this kind. Raises: LoadError."""
        message = await self.read()
        if not isinstance(message, kind):
            raise LoadError(f"generator process {self.number} said {message} in place of {kind.__name__}")

    async def stop(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 3.0)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def _process(number: int, start: Start) -> AsyncIterator[_Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "gearmesh.load.generating.generator", limit=LINE_BYTES_MAX,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    held = _Process(number, process)
    try:
        await held.send(start)
        yield held
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # its results are not needed: no orderly end
        raise
    finally:
        with contextlib.suppress(ConnectionError):
            await held.stop()


async def run_plan(
    plan: Plan,
    targets: Mapping[str, Target],
    where: Where,
    processes: int,
    progress: OnProgress,
    pids: Mapping[str, int] | None = None,
) -> list[PhaseRun]:
    """The results of every phase. `pids`: {name: process of the mesh}, whose CPU time is not foreign.

    Raises: LoadError.
    """
    index = {model: i for i, model in enumerate(plan.models)}
    shares = [
        (open_arrivals(p, index, targets, plan.seed, plan.rows), closed_clients(p, index, targets, plan.seed))
        for p in plan.phases
    ]
    chosen = [targets[model] for model in plan.models]
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gearmesh-load-")))
        running = []
        for number in range(processes):
            start = Start(
                list(where.addresses), chosen, plan.rows, plan.cache, plan.distinct_inputs, plan.seed + number,
                plan.back_off, where.keys_dir,
            )  # fmt: skip
            running.append(await stack.enter_async_context(_process(number, start)))
        for process in running:
            await process.expect(Ready)
        generators = {f"generator {p.number}": p.process.pid for p in running}
        runs = []
        for number, (phase, (arrivals, clients)) in enumerate(zip(plan.phases, shares, strict=True)):
            for process in running:
                write_arrivals(arrivals.share(process.number, processes), folder / f"{number}-{process.number}.npz")
            await _hand_out(plan, phase, number, clients, running, folder)
            watch = Watch({**(pids or {}), **generators, "command": os.getpid()})
            parts = await _run_phase(phase, running, progress)
            watched = watch.stop()
            files = [folder / f"{number}-{process.number}.records" for process in running]
            records, codes = merge([(read_records(file), part.codes) for file, part in zip(files, parts, strict=True)])
            runs.append(
                PhaseRun(
                    phase,
                    records,
                    codes,
                    scheduled=len(arrivals),
                    generator_cpu_s=[part.cpu_s for part in parts],
                    stray=sum(part.stray for part in parts),
                    broken=sum(part.broken for part in parts),
                    full=any(part.full for part in parts),
                    watched=watched,
                )
            )
        return runs


async def _hand_out(
    plan: Plan, phase: Phase, number: int, clients: Sequence[Clients], running: Sequence[_Process], folder: Path
) -> None:
    """Gives every generator its share of the phase, and waits until all can begin."""
    for process in running:
        dealt = deal_clients(clients, process.number, len(running))
        name = f"{number}-{process.number}"
        await process.send(
            Run(
                str(folder / f"{name}.npz"),
                dealt,
                phase.seconds,
                plan.seed * 1000 + process.number,
                str(folder / f"{name}.records"),
            )
        )
    for process in running:
        await process.expect(Loaded)


async def _run_phase(phase: Phase, running: Sequence[_Process], progress: OnProgress) -> list[Finished]:
    """Starts the phase at all generators at once, and waits until it is over at each."""
    start_s = time.monotonic() + LEAD_S
    seen = Seen()
    for process in running:
        await process.send(Go(start_s))

    async def follow(process: _Process) -> Finished:
        while True:
            message = await process.read()
            if isinstance(message, Finished):
                return message
            if isinstance(message, Progress):
                seen.parts[process.number] = message
                progress(phase, time.monotonic() - start_s, seen)

    return list(await asyncio.gather(*(follow(process) for process in running)))
