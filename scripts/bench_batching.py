"""Adaptive batching of black-box functions under a latency objective, compared with servers that batch by fixed rules.

    .venv/bin/python scripts/bench_batching.py [--seconds 3] [--rounds 3] [--functions noop,linear_svm,...]
        [--replicas 1,2,4] [--without-peers] [--plot FILE.png] [--json FILE]

Every request is one row of 784 floats with a budget of --objective-ms; only answers within it count. One client process
runs a closed loop. Each system is driven with several numbers of requests in flight, and its best goodput counts: what
it reaches under the load that suits it. Caching is off. The last line is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from gearmesh.operations.meshes import Mesh, mesh
from gearmesh.telemetry.machine import MachineWatch, describe, median, quantile
from scripts.rigs import batching_functions
from scripts.rigs.batching_systems import METHODS, System, bentoml, containers, mosec

IN_FLIGHT = (8, 32, 128, 512)
CONVERGENCE_IN_FLIGHT = 512
CONVERGENCE_BUDGET = 50  # x the objective, so that there are always enough requests for a full batch
console = Console(width=None if sys.stdout.isatty() else 140, stderr=False)


async def measure(system: System, seconds: float, objective_ms: float) -> None:
    """One round: measures the system with each number in flight, after a warm-up."""
    for in_flight in IN_FLIGHT:
        await system.drive(in_flight, max(0.5, seconds / 2))
        system.sizes.clear()
        watch = MachineWatch({**system.pids, "client": os.getpid()})
        latencies, not_ok = await system.drive(in_flight, seconds)
        watched = watch.stop()
        ordered = sorted(latencies)
        in_time = sum(latency <= objective_ms / 1e3 for latency in ordered) - not_ok
        p99 = quantile(ordered, 0.99)
        system.runs.setdefault(in_flight, []).append(
            {
                "asked_per_s": len(ordered) / watched["wall_s"],
                "good_per_s": max(0, in_time) / watched["wall_s"],
                "p99_ms": None if p99 is None else p99 * 1e3,
                "batch": median(float(size) for _, size in system.sizes) if system.sizes else None,
                "steal": watched["steal"],
                "foreign": watched["foreign"],
            }
        )
        system.sizes.clear()


def best(system: System) -> tuple[int, dict[str, Any]]:
    """(in flight, medians over the rounds) with the highest goodput."""
    found: dict[int, dict[str, Any]] = {}
    for in_flight, runs in system.runs.items():
        middle: dict[str, Any] = {
            key: median(run[key] for run in runs) if all(run[key] is not None for run in runs) else None
            for key in runs[0]
        }
        middle["min"], middle["max"] = min(r["good_per_s"] for r in runs), max(r["good_per_s"] for r in runs)
        found[in_flight] = middle
    return max(found.items(), key=lambda item: float(item[1]["good_per_s"]))


def report(title: str, systems: list[System]) -> dict[str, Any]:
    """Prints a table and returns the results for the JSON."""
    table = Table(
        "system",
        "good/s (min-max)",
        "of all",
        "p99 ms",
        "batch",
        "in flight",
        "x none",
        "steal",
        "foreign",
        title=title,
    )
    none = next((best(system)[1]["good_per_s"] for system in systems if system.name == "none"), None)
    results = {}
    for system in systems:
        in_flight, found = best(system)
        good = found["good_per_s"]
        table.add_row(
            system.name,
            f"{good:,.0f} ({found['min']:,.0f}-{found['max']:,.0f})",
            f"{good / found['asked_per_s']:.1%}" if found["asked_per_s"] else "-",
            f"{found['p99_ms']:.1f}" if found["p99_ms"] is not None else "-",
            f"{found['batch']:.0f}" if found["batch"] is not None else "-",
            str(in_flight),
            f"{good / none:.1f}" if none else "-",
            f"{found['steal']:.2f}",
            f"{found['foreign']:.2f}",
        )
        results[system.name] = {"in_flight": in_flight, **found, "runs": {str(n): r for n, r in system.runs.items()}}
    console.print(table)
    return results


async def compare(running: Mesh, folder: Path, function: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all systems with one function, interleaved."""
    async with AsyncExitStack() as stack:
        ways = [containers(running, function, method, arguments.objective_ms) for method in METHODS]
        if not arguments.without_peers:
            ways += [mosec(folder, function, 16), mosec(folder, function, 128)]
            ways.append(bentoml(folder, function, arguments.objective_ms))
        systems = [await stack.enter_async_context(way) for way in ways]
        for _ in range(arguments.rounds):
            for system in systems:
                await measure(system, arguments.seconds, arguments.objective_ms)
        return report(f"{function}, {arguments.objective_ms:g} ms", systems)


async def scale(running: Mesh, function: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures the same container with a growing number of replicas."""
    systems = []
    for replicas in arguments.replicas:
        async with containers(running, function, "aimd", arguments.objective_ms, replicas) as system:
            for _ in range(arguments.rounds):
                await measure(system, arguments.seconds, arguments.objective_ms)
            systems.append(system)
    return report(f"{function}, replicas ({os.cpu_count()} cores for everything)", systems)


async def converge(running: Mesh, function: str, arguments: argparse.Namespace) -> dict[str, list[list[float]]]:
    """{method: [(seconds since the first answer, batch size)]} of containers just started."""
    found = {}
    for method in ("aimd", "quantile"):
        budget_ms = CONVERGENCE_BUDGET * arguments.objective_ms
        async with containers(running, function, method, arguments.objective_ms, budget_ms=budget_ms) as system:
            await system.drive(CONVERGENCE_IN_FLIGHT, 2 * arguments.seconds)
            first_s = system.sizes[0][0] if system.sizes else 0.0
            points: list[list[float]] = []
            for at_s, size in system.sizes:
                if not points or points[-1][1] != size:
                    points.append([round(at_s - first_s, 4), float(size)])
            found[method] = points
    return found


def plot(file: Path, curves: dict[str, dict[str, list[list[float]]]], objective_ms: float) -> None:
    """Draws the batch sizes over time, one panel per function."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(curves), figsize=(5 * len(curves), 3.2), squeeze=False)
    for panel, (function, methods) in zip(panels[0], curves.items(), strict=True):
        for method, points in methods.items():
            panel.step([p[0] for p in points], [p[1] for p in points], where="post", label=method, linewidth=0.8)
        panel.set(title=function, xlabel="s since the first answer", ylabel="batch size")
        panel.legend(frameon=False)
    figure.suptitle(f"batch sizes from a cold start, {objective_ms:g} ms", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts all systems, measures them, and stops them."""
    results: dict[str, Any] = {"machine": describe(), "objective_ms": arguments.objective_ms, "functions": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        onnx = folder / "mlp.onnx"
        batching_functions.export_onnx(onnx)
        os.environ["BENCH_ONNX"] = str(onnx)
        formation = {"gpu_worker": 0}  # not used here
        async with mesh(folder / "models", folder / "data", formation=formation, ready=False) as running:
            curves = {}
            for function in arguments.functions:
                results["functions"][function] = await compare(running, folder, function, arguments)
                curves[function] = await converge(running, function, arguments)
            results["replicas"] = {
                function: await scale(running, function, arguments) for function in arguments.functions[:2]
            }
            results["convergence"] = curves
            if arguments.plot is not None:
                plot(arguments.plot, curves, arguments.objective_ms)
    return results


def main() -> int:
    """Runs the benchmark. Returns exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--objective-ms", type=float, default=20.0)
    parser.add_argument("--functions", default=",".join(batching_functions.FUNCTIONS))
    parser.add_argument("--replicas", default="1,2,3,4")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    arguments.functions = [name for name in arguments.functions.split(",") if name]
    arguments.replicas = [int(count) for count in arguments.replicas.split(",")]
    unknown = [name for name in arguments.functions if name not in batching_functions.FUNCTIONS]
    if unknown:
        parser.error(f"--functions: {', '.join(unknown)}; there are: {', '.join(batching_functions.FUNCTIONS)}")
    text = json.dumps(uvloop.run(run(arguments)))
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
