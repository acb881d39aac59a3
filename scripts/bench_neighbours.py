"""What sound clients get beside bad neighbours: clients that give up and ask again, poison, and many that leave.

    .venv/bin/python -m scripts.bench_neighbours [--rounds 3] [--seconds 1.5] [--quick] [--beside FOLDER] [--json FILE]

Sound clients ask in an open loop, Poisson, at 60 % of what the model does, alone and beside the neighbours in turn, at
the same instants in each round. Neighbours are a process of their own. *Goodput* is the share of sound requests that
were answered rightly and in time. Then many clients send a request over HTTP and leave: how long until a live one is
answered, and how many rows are computed for nobody. `--beside` does all of it with the mesh, the containers and the
neighbours' client of another checkout with a .venv, too, say of an older commit. The last line is JSON.
"""

import argparse
import asyncio
import json
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from gearmesh.telemetry.machine import MachineWatch, describe
from scripts import ROOT
from scripts.rigs.neighbour_tables import Figures, LeavingRun, SoundRun, show
from scripts.rigs.neighbourhoods import (
    LEAVERS,
    Neighbourhood,
    Situation,
    neighbour,
    neighbourhood,
    of_container,
    of_device,
    plan_of,
    situations,
)
from scripts.rigs.open_loops import OK, Ask, Subject, capacity, drive, http_asker, poisson, settled, zmq_asker
from scripts.rigs.processes import console

SEED = 14
LOAD = 0.6  # of capacity
LEAVERS_SLO_MS = 60_000.0
SETTLED_S = 60.0
STILL_S = 1.0  # without a row of theirs: nothing of those that left is left
LIVE_PAUSE_S = 0.02  # between requests of a live client that was refused
HERE, OTHER = "gearmesh", "the other"


class Clients:
    """The sound clients of every situation and mesh: connected once, used in every round."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._asks: dict[tuple[str, str, bool], Ask] = {}

    async def of(self, where: Neighbourhood, subject: Subject, *, http: bool) -> Ask:
        """Asks that model on that mesh, where every replica of it answers."""
        key = (where.name, subject.model, http)
        if key not in self._asks:
            asker = http_asker(where.http_port, subject) if http else zmq_asker(where.held.address, subject)
            self._asks[key] = await self._stack.enter_async_context(asker)
        await settled(self._asks[key], subject, SETTLED_S)
        return self._asks[key]


async def measure(
    where: Neighbourhood, situation: Situation, ask: Ask, due_s: Sequence[float], *, lead_s: float | None
) -> SoundRun:
    """What sound clients see: alone, or beside neighbours that have been at work for so long."""
    subject = situation.subject
    async with AsyncExitStack() as stack:
        if lead_s is not None:
            running = await stack.enter_async_context(neighbour(where, plan_of(where, situation)))
            await asyncio.sleep(lead_s)
        watch = MachineWatch({**where.held.pids, "client": os.getpid()})
        seen = await drive(ask, due_s, subject.slo_ms / 1e3)
        steal = watch.stop()["steal"]
    return SoundRun(seen, {} if lead_s is None else running.told, steal)


async def leave(where: Neighbourhood, ask: Ask, subject: Subject, count: int) -> LeavingRun:
    """Many clients send a request and leave; what a live one sees from then on, and what is computed for nobody."""
    refused: Counter[str] = Counter()
    leaving = Situation("", subject, "leaving", -1.0, {"clients": count, "slo_ms": LEAVERS_SLO_MS})
    async with neighbour(where, plan_of(where, leaving)) as left:
        while (reply := await ask(0)).outcome != OK:
            refused[reply.outcome] += 1
            await asyncio.sleep(LIVE_PAUSE_S)
        next_live_s = time.monotonic() - left.began_s
        rows, since_s = -1, time.monotonic()
        while time.monotonic() < since_s + STILL_S:
            if (now := where.rows_of_leavers(left.began_s)) != rows:
                rows, since_s = now, time.monotonic()
            await asyncio.sleep(LIVE_PAUSE_S)
    return LeavingRun(left.told["asked"], next_live_s, rows, refused)


async def rates(
    meshes: Sequence[Neighbourhood], clients: Clients, all_: Sequence[Situation], seconds: float
) -> list[float]:
    """Sound requests per second of each situation: 60 % of what our mesh, the first, does. All have then been used."""
    found = []
    for situation in all_:
        for where in reversed(meshes):
            ask = await clients.of(where, situation.subject, http=situation.http)
            most = await capacity(ask, 2 * situation.subject.batch_max * situation.subject.replicas, seconds)
        found.append(LOAD * most)
    return found


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts all meshes, measures, and stops them."""
    figures = Figures()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        all_ = situations(of_device(folder / "models"))
        checkouts = {HERE: ROOT} | ({OTHER: arguments.beside.resolve()} if arguments.beside else {})
        meshes = []
        for number, (name, checkout) in enumerate(checkouts.items()):
            own = folder / str(number)
            meshes.append(await stack.enter_async_context(neighbourhood(name, checkout, folder / "models", own)))
        clients = Clients(stack)
        per_s = await rates(meshes, clients, all_, arguments.warm_s)
        asked = dict(zip((each.name for each in all_), per_s, strict=True))
        console.print("sound requests/s:", ", ".join(f"{name} {rate:.0f}" for name, rate in asked.items()))
        for round_ in range(arguments.rounds):
            for where in meshes if round_ % 2 == 0 else reversed(meshes):
                for number, situation in enumerate(all_):
                    rng = np.random.default_rng((SEED, round_, number))
                    due_s = poisson(per_s[number], arguments.seconds, rng)
                    for lead_s in (None, arguments.warm_s):
                        ask = await clients.of(where, situation.subject, http=situation.http)
                        key = (situation.name, where.name, lead_s is not None)
                        figures.sound.setdefault(key, []).append(
                            await measure(where, situation, ask, due_s, lead_s=lead_s)
                        )
                subject = of_container(LEAVERS)
                ask = await clients.of(where, subject, http=True)
                figures.leaving.setdefault(where.name, []).append(await leave(where, ask, subject, arguments.leavers))
            console.print(f"round {round_ + 1} of {arguments.rounds} done", style="dim")
    show(figures, all_, list(checkouts))
    how = {"seed": SEED, "seconds": arguments.seconds, "sound_requests_per_s": asked}
    return {"machine": describe(), **how, **figures.described(), "wrong": figures.wrong}


def main() -> int:
    """Runs the benchmark. Exit code 0, or 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of sound requests, each time")
    parser.add_argument("--leavers", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="one short round: only whether everything runs")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout, with a .venv")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    arguments.warm_s = 1.0
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.leavers, arguments.warm_s = 1, 0.4, 100, 0.2
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # of all processes here: each client has a connection
    result = uvloop.run(run(arguments))
    text = json.dumps(result)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return int(result["wrong"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
