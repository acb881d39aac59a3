"""Offered load from 0.5 to 10 times what the mesh can do; a greedy client, and junk, beside honest clients.

    .venv/bin/python -m scripts.bench_overload [--seconds 2] [--rounds 1] [--quick] [--beside FOLDER] [--json FILE]

Clients ask a no-op model in an open loop, with a budget of 100 ms. They have half of the processors, and all of the
mesh has the others. *Capacity*: the highest rate of those tried of which 99 % were answered in time. *Offered*: what
was sent, which is less than what the load asks for if connections had no room. *Goodput*: the share of requests that
was answered in time; *per CPU*: their number for each second of the mesh's processors that other programs leave,
relative to the most at any rate. *Mesh*, *frontend*: processors that they took. *Late*: answers beyond deadline and
20 ms by the frontend's clock. *MiB*: memory of the frontend, at the end. `--beside` does the same with the mesh of
another checkout with a .venv, at the same rates.

*Refusal us*: processor time of the mesh for each refusal, if a served request costs as little as it does at any load.
*Bound*: what is left of the processors after these. With r, a refusal's cost as a part of a served request's, it is
(1 - L r) / (1 - r) at L times the capacity. The last line is JSON.
"""

import argparse
import asyncio
import json
import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop
from rich.table import Table

from gearmesh.telemetry.machine import describe, quantile
from scripts import ROOT
from scripts.build_models import build_noop
from scripts.rigs.checkouts import HeldMesh, held_mesh
from scripts.rigs.flood_runs import FloodRun, Load, Processors, pinned, processors, run_loads
from scripts.rigs.processes import console

TIMES = (0.5, 1.0, 2.0, 4.0, 10.0)
FIRST_PER_S, STEP = 3000.0, 1.4  # of the search for capacity
RATES_MAX = 9
ENOUGH = 0.99
HONEST, GREEDY = 0.2, 5.0  # times capacity
JUNK_PER_S = 4000.0
REST_S = 0.5  # between runs
HERE, OTHER = "gearmesh", "the other"


async def capacity(mesh: HeldMesh, seconds: float, cpus: Processors) -> float:
    """The highest rate that is answered, of rates that grow by STEP."""
    found = per_s = FIRST_PER_S
    missed = 0
    for _ in range(RATES_MAX):
        run = (await run_loads(mesh, [Load("all", per_s)], seconds, cpus))["all"]
        await asyncio.sleep(REST_S)
        enough = run.ok >= ENOUGH * run.sent
        missed = 0 if enough else missed + 1
        if missed > 1:  # the first may have been another program's
            break
        found, per_s = per_s if enough else found, per_s * STEP
    return found


async def measure(mesh: HeldMesh, capacity_per_s: float, seconds: float, cpus: Processors) -> dict[str, FloodRun]:
    """Every load once."""
    honest = Load("honest", HONEST * capacity_per_s)
    loads = {f"{times:g}": [Load("all", times * capacity_per_s)] for times in TIMES}
    loads["alone"] = [honest]
    loads["beside greedy"] = [honest, Load("greedy", GREEDY * capacity_per_s, connections=1)]
    loads["beside junk"] = [honest, Load("junk", JUNK_PER_S, junk=True)]
    found = {}
    for name, each in loads.items():
        runs = await run_loads(mesh, each, seconds, cpus)
        found[name] = runs[each[0].name]
        await asyncio.sleep(REST_S)
    return found


def rows_of(runs: dict[str, FloodRun]) -> dict[str, dict[str, float | int | None]]:
    """What the table and the JSON show of each load."""
    per_cpu = {name: run.ok_per_s / run.left_cpus for name, run in runs.items()}
    most = max(per_cpu[f"{times:g}"] for times in TIMES)
    cost_s = min(run.mesh_cpus * run.wall_s / max(run.ok, 1) for run in runs.values())
    refusals = {  # where one load is all there is
        name: max(0.0, run.mesh_cpus * run.wall_s - run.ok * cost_s) / max(len(run.refused_ms), 1)
        for name, run in runs.items()
        if name in {f"{times:g}" for times in TIMES}
    }
    return {
        name: {
            "offered_per_s": run.sent / run.wall_s,
            "unsent_per_s": run.unsent / run.wall_s,
            "ok_per_s": run.ok_per_s,
            "goodput": run.ok / max(run.sent, 1),
            "left_cpus": run.left_cpus,
            "mesh_cpus": run.mesh_cpus,
            "frontend_cpus": run.frontend_cpus,
            "request_us": 1e6 * cost_s,
            "refusal_us": 1e6 * refusals[name] if name in refusals and run.refused_ms else None,
            "bound": max(0.0, 1.0 - len(run.refused_ms) * refusals.get(name, 0.0) / (run.left_cpus * run.wall_s)),
            "per_cpu_relative": per_cpu[name] / most,
            "ok_p50_ms": quantile(run.ok_ms, 0.5),
            "ok_p99_ms": quantile(run.ok_ms, 0.99),
            "refused": len(run.refused_ms),
            "refused_p50_ms": quantile(run.refused_ms, 0.5),
            "refused_p99_ms": quantile(run.refused_ms, 0.99),
            "late": run.late,
            "late_max_ms": run.late_ms[-1] if run.late_ms else 0.0,
            "unanswered": run.unanswered,
            "doubled": run.doubled,
            "frontend_mib": run.frontend_mib,
        }
        for name, run in runs.items()
    }


def show(mesh: str, rows: dict[str, dict[str, float | int | None]]) -> None:
    """Prints the table of one mesh."""
    table = Table(
        "load", "offered/s", "unsent/s", "ok/s", "goodput", "CPUs left", "mesh, frontend", "refusal us", "per CPU",
        "bound", "ok ms", "refused ms", "late", "latest", "MiB", title=mesh,
    )  # fmt: skip

    def number(value: float | int | None, digits: int = 0) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    for name, row in rows.items():
        table.add_row(
            name,
            number(row["offered_per_s"]),
            number(row["unsent_per_s"]),
            number(row["ok_per_s"]),
            number(row["goodput"], 2),
            number(row["left_cpus"], 2),
            f"{number(row['mesh_cpus'], 2)}, {number(row['frontend_cpus'], 2)}",
            number(row["refusal_us"], 1),
            number(row["per_cpu_relative"], 2),
            number(row["bound"], 2),
            f"{number(row['ok_p50_ms'], 1)} / {number(row['ok_p99_ms'], 1)}",
            f"{number(row['refused_p50_ms'], 1)} / {number(row['refused_p99_ms'], 1)}",
            number(row["late"]),
            number(row["late_max_ms"]),
            number(row["frontend_mib"]),
        )
    console.print(table)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts each mesh in turn, measures, and stops it."""
    checkouts = {HERE: ROOT} | ({OTHER: arguments.beside.resolve()} if arguments.beside else {})
    results: dict[str, Any] = {}
    per_s = arguments.capacity
    cpus = processors()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for round_ in range(arguments.rounds):
            for name, checkout in checkouts.items():
                async with AsyncExitStack() as stack:
                    own = folder / f"{round_}-{len(results)}-{name.replace(' ', '-')}"
                    build_noop(own / "models", "noop")
                    with pinned(cpus.mesh):
                        mesh = await stack.enter_async_context(held_mesh(checkout, own / "models", own / "data"))
                    per_s = per_s or await capacity(mesh, arguments.seconds, cpus)
                    rows = rows_of(await measure(mesh, per_s, arguments.seconds, cpus))
                results.setdefault(name, []).append(rows)
                show(f"{name}, round {round_ + 1}: capacity {per_s:,.0f}/s", rows)
    how = {"seconds": arguments.seconds, "capacity_per_s": per_s, "cpus": os.cpu_count()}
    return {"machine": describe(), **how, "results": results}


def main() -> int:
    """Runs the benchmark. Exit code 0, or 1 if an answer of this checkout came twice, or none did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--capacity", type=float, default=0.0, help="requests/s, in place of looking for it")
    parser.add_argument("--quick", action="store_true", help="short: only whether everything runs")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout, with a .venv")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.capacity = 0.3, 2000.0
    result = uvloop.run(run(arguments))
    text = json.dumps(result)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return int(any(row["doubled"] or row["unanswered"] for rows in result["results"][HERE] for row in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
