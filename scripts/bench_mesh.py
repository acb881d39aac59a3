"""The overhead of the mesh: round trips and throughput for a no-op model, compared with a bare ZeroMQ echo and mosec.

    .venv/bin/python scripts/bench_mesh.py [--rounds 3] [--seconds 2] [--without-mosec] [--beside FOLDER] [--json FILE]

All systems run interleaved: every round measures each of them at each number of requests in flight, every other round
in the opposite order. One client process, closed loop, callbacks only. `--beside` also runs the mesh of another
checkout with a .venv, say of an older commit, and prints ratios of ours to it. The last line is JSON.
"""

import argparse
import json
import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop
from rich.table import Table

from gearmesh.telemetry.machine import MachineWatch, describe, median, quantile
from scripts.build_models import build_noop
from scripts.rigs.noop_systems import System, echo, mosec, of_checkout, ours
from scripts.rigs.processes import console

IN_FLIGHT = (1, 16, 64, 256)


async def measure(systems: list[System], rounds: int, seconds: float) -> None:
    """Measures every system at every number in flight, in every round."""
    for round_ in range(rounds):
        for in_flight in IN_FLIGHT:
            for system in systems if round_ % 2 == 0 else reversed(systems):
                await system.drive(in_flight, 0.3)
                watch = MachineWatch({**system.pids, "client": os.getpid()})
                latencies, not_ok = await system.drive(in_flight, seconds)
                system.runs.setdefault(in_flight, []).append(_summary(latencies, not_ok, watch.stop()))
        console.print(f"round {round_ + 1} of {rounds} done", style="dim")


def _summary(latencies: list[float], not_ok: int, watched: dict[str, Any]) -> dict[str, Any]:
    ordered = sorted(latencies)
    n = len(ordered)
    p50, p99 = quantile(ordered, 0.5), quantile(ordered, 0.99)
    return {
        "n": n,
        "not_ok": not_ok,
        "per_s": n / watched["wall_s"],
        "p50_ms": None if p50 is None else p50 * 1e3,
        "p99_ms": None if p99 is None else p99 * 1e3,
        "cpu_us": {name: used / n * 1e6 for name, used in watched["cpu_s"].items()},
        "steal": watched["steal"],
        "foreign": watched["foreign"],
    }


def report(systems: list[System]) -> dict[str, Any]:
    """Prints the tables and returns the results for the JSON."""
    results: dict[str, Any] = {}
    for in_flight in IN_FLIGHT:
        table = Table(
            "system", "req/s (min-max)", "p50 ms", "p99 ms", "cpu us/req", "steal", "foreign", "not ok",
            title=f"{in_flight} in flight",
        )  # fmt: skip
        for system in systems:
            runs = system.runs[in_flight]
            middle = _middle(runs)
            results.setdefault(system.name, {})[str(in_flight)] = middle
            table.add_row(
                system.name,
                f"{middle['per_s']:,.0f} ({min(r['per_s'] for r in runs):,.0f}-{max(r['per_s'] for r in runs):,.0f})",
                f"{middle['p50_ms']:.2f}" if middle["p50_ms"] is not None else "-",
                f"{middle['p99_ms']:.2f}" if middle["p99_ms"] is not None else "-",
                " ".join(f"{name}={us:.0f}" for name, us in middle["cpu_us"].items()),
                f"{middle['steal']:.2f}",
                f"{middle['foreign']:.2f}",
                str(sum(run["not_ok"] for run in runs)),
            )
        console.print(table)
    return results


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and the values of each round."""
    keys = ("per_s", "p50_ms", "p99_ms", "steal", "foreign")
    middle: dict[str, Any] = {
        key: median(run[key] for run in runs) if all(run[key] is not None for run in runs) else None for key in keys
    }
    middle["cpu_us"] = {name: median(run["cpu_us"].get(name, 0.0) for run in runs) for name in runs[0]["cpu_us"]}
    middle["runs"] = runs
    return middle


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """The figures with goals: the round trip relative to the echo's, throughput relative to the best peer's."""
    found = {}
    for name in ("gearmesh", "gearmesh compact"):
        beside = name.replace("gearmesh", "beside")
        if beside in results:
            for n in map(str, IN_FLIGHT):
                mine, other = results[name][n], results[beside][n]
                found[f"{name}: req/s at {n} / the other checkout's"] = mine["per_s"] / other["per_s"]
                cpu = _services_us(mine) / _services_us(other)
                found[f"{name}: CPU per request at {n} / the other checkout's"] = cpu
        found[f"{name}: p50 at 1 / echo's"] = results[name]["1"]["p50_ms"] / results["zmq echo"]["1"]["p50_ms"]
        if "mosec msgpack" in results:
            for n in ("16", "64", "256"):
                found[f"{name}: req/s at {n} / mosec's"] = (
                    results[name][n]["per_s"] / results["mosec msgpack"][n]["per_s"]
                )
    return found


def _services_us(result: dict[str, Any]) -> float:
    """CPU per request of all services, microseconds."""
    used: dict[str, float] = result["cpu_us"]
    return sum(us for name, us in used.items() if name != "client")


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts all systems, measures them, and stops them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build_noop(folder / "models", "noop")
        async with AsyncExitStack() as stack:
            systems = [
                await stack.enter_async_context(ours(folder / "models", folder, compact=False)),
                await stack.enter_async_context(ours(folder / "models", folder, compact=True)),
                await stack.enter_async_context(echo()),
            ]
            if arguments.beside is not None:
                for compact in (False, True):
                    other = of_checkout(arguments.beside.resolve(), folder / "models", folder, compact=compact)
                    systems.insert(1 + 2 * compact, await stack.enter_async_context(other))
            if not arguments.without_mosec:
                systems.append(await stack.enter_async_context(mosec(folder)))
            await measure(systems, arguments.rounds, arguments.seconds)
            results = report(systems)
    found = ratios(results)
    for name, ratio in found.items():
        console.print(f"{name}: {ratio:.2f}")
    return {
        "machine": describe(),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "results": results,
        "ratios": found,
    }


def main() -> int:
    """Runs the benchmark. Exit code 0, or 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--without-mosec", action="store_true")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout, with a .venv")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    result = uvloop.run(run(arguments))
    text = json.dumps(result)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return int(
        any(run["not_ok"] for system in result["results"].values() for n in system.values() for run in n["runs"])
    )


if __name__ == "__main__":
    raise SystemExit(main())
