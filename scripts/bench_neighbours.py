"""What sound clients get beside bad neighbours: clients that give up and ask again, poison, and many that leave.

    .venv/bin/python -m scripts.bench_neighbours [--rounds 3] [--seconds 2] [--quick] [--beside FOLDER] [--json FILE]

Sound clients ask in an open loop, Poisson, at 60 % of what the model does, alone and beside the neighbours in turn, at
the same instants in each round. Neighbours are a process of their own. *Goodput* is the share of sound requests that
were answered rightly and in time. Then many clients send a request over HTTP and leave: how long until a live one is
answered, and how many rows are computed for nobody. `--beside` does all of it with the mesh, the containers and the
neighbours' client of another checkout with a .venv, too, say of an older commit. The last line is JSON.
"""

import argparse
import asyncio
import json
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from rich.table import Table

from gearmesh.telemetry.machine import MachineWatch, describe, median, quantile
from scripts import ROOT
from scripts.rigs.neighbourhoods import (
    BATCH_MAX,
    Neighbourhood,
    neighbour,
    neighbourhood,
    of_container,
    of_device,
    plan_of,
)
from scripts.rigs.open_loops import (
    OK,
    WRONG,
    Ask,
    Subject,
    capacity,
    drive,
    http_asker,
    poisson,
    settled,
    zmq_asker,
)
from scripts.rigs.processes import console

SEED = 14
LOAD = 0.6  # of capacity
IMPATIENT = 16
PATIENCE = 0.1  # of the budget
LEAVERS_SLO_MS = 60_000.0
SETTLED_S = 60.0
STILL_S = 1.0  # without a row of theirs: nothing of those that left is left
LIVE_PAUSE_S = 0.02  # between requests of a live client that was refused
HERE = "gearmesh"


@dataclass(slots=True)
class Situation:
    """One kind of neighbour, and what sound clients of the same model saw."""

    name: str
    subject: Subject
    kind: str  # of the neighbours' plan
    first: float  # value of their rows
    plan: dict[str, Any] = field(default_factory=dict)
    http: bool = False
    rate_per_s: float = 0.0  # of sound requests, once it is measured
    runs: dict[tuple[str, bool], list[dict[str, Any]]] = field(default_factory=dict)  # {(mesh, beside): one a round}


def situations(tokens: Subject) -> list[Situation]:
    """All of them."""
    impatient = {"clients": IMPATIENT}
    bad_id = 10**6
    return [
        Situation("16 impatient, ZeroMQ", of_container("double"), "impatient", 0.0, impatient),
        Situation("16 impatient, HTTP", of_container("double"), "impatient_http", 0.0, impatient, http=True),
        Situation("bad row, device", tokens, "repeating", bad_id),
        Situation("bad row, container raises", of_container("double_or_raise"), "repeating", -1.0),
        Situation("bad row, container ends", of_container("double_or_end"), "repeating", -1.0),
    ]


class Clients:
    """The sound clients of every situation and mesh: connected once, used in every round."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._asks: dict[tuple[str, str, bool], Ask] = {}

    async def of(self, where: Neighbourhood, subject: Subject, http: bool) -> Ask:
        """Asks that model on that mesh."""
        key = (where.name, subject.model, http)
        if key not in self._asks:
            asker = http_asker(where.http_port, subject) if http else zmq_asker(where.held.address, subject)
            self._asks[key] = await self._stack.enter_async_context(asker)
        return self._asks[key]


async def measure(
    where: Neighbourhood, situation: Situation, ask: Ask, due_s: Sequence[float], *, beside: bool, lead_s: float
) -> None:
    """Notes what sound clients see, with or without the neighbours."""
    subject = situation.subject
    await settled(ask, subject, SETTLED_S)
    told: dict[str, int] = {}
    async with AsyncExitStack() as stack:
        if beside:
            patience_s = PATIENCE * subject.slo_ms / 1e3
            plan = plan_of(where, situation.kind, subject, situation.first, patience_s=patience_s, **situation.plan)
            running = await stack.enter_async_context(neighbour(where, plan))
            await asyncio.sleep(lead_s)
        watch = MachineWatch(where.held.pids)
        seen = await drive(ask, due_s, subject.slo_ms / 1e3)
        watched = watch.stop()
    if beside:
        told = running.told
    ordered = sorted(seen.latencies_s)
    situation.runs.setdefault((where.name, beside), []).append({
        "n": len(due_s),
        "goodput": seen.outcomes[OK] / len(due_s),
        "p50_ms": ms(quantile(ordered, 0.5)),
        "p99_ms": ms(quantile(ordered, 0.99)),
        "outcomes": dict(seen.outcomes),
        "neighbours": told,
        "steal": watched["steal"],
    })  # fmt: skip


def ms(seconds: float | None) -> float | None:
    """Milliseconds."""
    return None if seconds is None else seconds * 1e3


async def leave(where: Neighbourhood, ask: Ask, subject: Subject, count: int) -> dict[str, Any]:
    """Many clients send a request and leave; what a live one sees from then on, and what is computed for nobody."""
    await settled(ask, subject, SETTLED_S)
    refused: Counter[str] = Counter()
    plan = plan_of(where, "leaving", subject, -1.0, clients=count, slo_ms=LEAVERS_SLO_MS)
    async with neighbour(where, plan) as left:
        while (reply := await ask(0)).outcome != OK:
            refused[reply.outcome] += 1
            await asyncio.sleep(LIVE_PAUSE_S)
        next_live_s = time.monotonic() - left.began_s
        rows, since_s = -1, time.monotonic()
        while time.monotonic() < since_s + STILL_S:
            if (now := where.rows_of_leavers(left.began_s)) != rows:
                rows, since_s = now, time.monotonic()
            await asyncio.sleep(LIVE_PAUSE_S)
    return {"next_live_s": next_live_s, "rows_for_nobody": rows, "refused": dict(refused), "sent": left.told["asked"]}


def report(all_: Sequence[Situation], meshes: Sequence[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Prints the table of goodput. Returns the figures and their ratios, for the JSON."""
    table = Table(
        "neighbours", "mesh", "", "goodput (min-max)", "p50 ms", "p99 ms", "n", "failures of sound requests",
        "of the neighbours",
    )  # fmt: skip
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for situation in all_:
        for mesh in meshes:
            for beside in (False, True):
                runs = situation.runs[mesh, beside]
                table.add_row(situation.name, mesh, "beside" if beside else "alone", *cells(runs))
            alone, with_them = (middle(situation.runs[mesh, beside], "goodput") for beside in (False, True))
            figures.setdefault(situation.name, {})[mesh] = {
                "rate_per_s": situation.rate_per_s,
                "alone": situation.runs[mesh, False],
                "beside": situation.runs[mesh, True],
            }
            if alone:
                ratios[f"{situation.name}, {mesh}: goodput beside / alone"] = (with_them or 0.0) / alone
        table.add_section()
    console.print(table)
    return figures, ratios


def cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Of one row of the table."""
    goodputs = [run["goodput"] for run in runs]
    failures: Counter[str] = Counter()
    neighbours: Counter[str] = Counter()
    for run in runs:
        failures.update({name: n for name, n in run["outcomes"].items() if name != OK})
        neighbours.update(run["neighbours"])
    return [
        f"{median(goodputs):.3f} ({min(goodputs):.3f}-{max(goodputs):.3f})",
        *("-" if (value := middle(runs, key)) is None else f"{value:.0f}" for key in ("p50_ms", "p99_ms")),
        str(sum(run["n"] for run in runs)),
        listed(failures),
        listed(neighbours),
    ]


def listed(counts: Counter[str]) -> str:
    """The counts, most frequent first."""
    return ", ".join(f"{name}: {count}" for name, count in counts.most_common())


def middle(runs: Sequence[dict[str, Any]], key: str) -> float | None:
    """The median of the rounds that have it."""
    values = [run[key] for run in runs if run[key] is not None]
    return median(values) if values else None


def report_leavers(found: dict[str, list[dict[str, Any]]]) -> None:
    """Prints the table of those that left."""
    table = Table("mesh", "left", "next live answer, s (min-max)", "rows for nobody (min-max)", "refused meanwhile")
    for mesh, runs in found.items():
        texts = []
        for key, digits in (("next_live_s", 3), ("rows_for_nobody", 0)):
            values = [run[key] for run in runs]
            texts.append(f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})")
        refused = sum((Counter(run["refused"]) for run in runs), Counter[str]())
        table.add_row(mesh, str(runs[0]["sent"]), *texts, listed(refused))
    console.print(table)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts all meshes, measures, and stops them."""
    left: dict[str, list[dict[str, Any]]] = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        all_ = situations(of_device(folder / "models"))
        checkouts = {HERE: ROOT} | ({"beside": arguments.beside.resolve()} if arguments.beside else {})
        meshes = []
        for name, checkout in checkouts.items():
            own = folder / name
            own.mkdir()
            meshes.append(await stack.enter_async_context(neighbourhood(name, checkout, folder / "models", own)))
        clients = Clients(stack)
        for situation in all_:
            for where in reversed(meshes):  # ours is the last
                ask = await clients.of(where, situation.subject, situation.http)
                await settled(ask, situation.subject, SETTLED_S)
                in_flight = 2 * BATCH_MAX * situation.subject.replicas
                situation.rate_per_s = LOAD * await capacity(ask, in_flight, arguments.warm_s)
        rates = ", ".join(f"{each.name} {each.rate_per_s:.0f}" for each in all_)
        console.print(f"sound requests/s: {rates}", style="dim")
        for round_ in range(arguments.rounds):
            in_turn = meshes if round_ % 2 == 0 else list(reversed(meshes))
            for i, situation in enumerate(all_):
                due_s = poisson(situation.rate_per_s, arguments.seconds, np.random.default_rng((SEED, round_, i)))
                for where in in_turn:
                    ask = await clients.of(where, situation.subject, situation.http)
                    for beside in (False, True):
                        await measure(where, situation, ask, due_s, beside=beside, lead_s=arguments.warm_s)
            for where in in_turn:
                subject = all_[0].subject
                ask = await clients.of(where, subject, True)
                left.setdefault(where.name, []).append(await leave(where, ask, subject, arguments.leavers))
            console.print(f"round {round_ + 1} of {arguments.rounds} done", style="dim")
        figures, ratios = report(all_, [where.name for where in meshes])
        report_leavers(left)
    for name, ratio in ratios.items():
        console.print(f"{name}: {ratio:.2f}")
    asked = {"seed": SEED, "rounds": arguments.rounds, "seconds": arguments.seconds}
    return {"machine": describe(), **asked, "results": figures, "leavers": left, "ratios": ratios}


def wrong(figures: dict[str, Any]) -> int:
    """Answers that were ok, and not right."""
    runs = [run for of in figures.values() for mesh in of.values() for run in (*mesh["alone"], *mesh["beside"])]
    return sum(run["outcomes"].get(WRONG, 0) for run in runs)


def main() -> int:
    """Runs the benchmark. Exit code 0, or 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of sound requests, each time")
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
    return int(wrong(result["results"]) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
