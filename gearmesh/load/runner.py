"""Runs a plan: starts the generator processes, gives each its share of every phase, and collects their records."""

import asyncio
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from gearmesh.load.generating.jobs import (
    Finished,
    Go,
    Loaded,
    Progress,
    Ready,
    Run,
    StartGenerator,
    read_records,
    write_arrivals,
)
from gearmesh.load.generating.processes import GeneratorProcess, generator_process
from gearmesh.load.generating.schedule import ClosedLoopClients, closed_clients, open_arrivals, share_clients
from gearmesh.load.plan import LoadPhase, LoadTarget, LoadTestPlan
from gearmesh.load.reporting.records import merge
from gearmesh.load.results import OnProgress, PhaseRun, Seen
from gearmesh.load.targets import Where
from gearmesh.telemetry.machine import MachineWatch

LEAD_S = 0.1  # from telling the generators when to begin until the first request


async def run_plan(
    plan: LoadTestPlan,
    targets: Mapping[str, LoadTarget],
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
            start = StartGenerator(
                list(where.addresses), chosen, plan.rows, plan.cache, plan.distinct_inputs, plan.seed + number,
                plan.back_off, where.keys_dir, plan.sizes,
            )  # fmt: skip
            running.append(await stack.enter_async_context(generator_process(number, start)))
        for process in running:
            await process.expect(Ready)
        generators = {f"generator {p.number}": p.process.pid for p in running}
        runs = []
        for number, (phase, (arrivals, clients)) in enumerate(zip(plan.phases, shares, strict=True)):
            for process in running:
                write_arrivals(arrivals.share(process.number, processes), folder / f"{number}-{process.number}.npz")
            await _hand_out(plan, phase, number, clients, running, folder)
            watch = MachineWatch({**(pids or {}), **generators, "command": os.getpid()})
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
    plan: LoadTestPlan,
    phase: LoadPhase,
    number: int,
    clients: Sequence[ClosedLoopClients],
    running: Sequence[GeneratorProcess],
    folder: Path,
) -> None:
    """Gives every generator its share of the phase, and waits until all can begin."""
    for process in running:
        shares = share_clients(clients, process.number, len(running))
        name = f"{number}-{process.number}"
        await process.send(
            Run(
                str(folder / f"{name}.npz"),
                shares,
                phase.seconds,
                plan.seed * 1000 + process.number,
                str(folder / f"{name}.records"),
            )
        )
    for process in running:
        await process.expect(Loaded)


async def _run_phase(phase: LoadPhase, running: Sequence[GeneratorProcess], progress: OnProgress) -> list[Finished]:
    """Starts the phase at all generators at once, and waits until it is over at each."""
    start_s = time.monotonic() + LEAD_S
    seen = Seen()
    for process in running:
        await process.send(Go(start_s))

    async def follow(process: GeneratorProcess) -> Finished:
        while True:
            message = await process.read()
            if isinstance(message, Finished):
                return message
            if isinstance(message, Progress):
                seen.parts[process.number] = message
                progress(phase, time.monotonic() - start_s, seen)

    return list(await asyncio.gather(*(follow(process) for process in running)))
