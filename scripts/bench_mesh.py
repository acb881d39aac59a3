"""The overhead of the mesh: round trips and throughput for a no-op model, compared with a bare ZeroMQ echo and mosec.

    .venv/bin/python scripts/bench_mesh.py [--rounds 5] [--seconds 2] [--payload 64] [--in-flight 1,16,64,256]
        [--without-mosec] [--beside FOLDER] [--json FILE]

All systems run interleaved: every round measures each of them at each number of requests in flight, every other round
in the opposite order; a round that is not counted warms them up. One client process, closed loop, callbacks only.

`--payload`: bytes of each input, and of each output; what is larger than 64 KB travels as a frame of its own, as the
Python clients send it. The unit of CPU time is one echo: what the echo's server uses for one message in the same round.
Ratios are those of single rounds, and their medians are compared with the aims. `--beside` also runs the mesh of
another checkout with a .venv, say of an older commit, and prints ratios of ours to it. The last line is JSON.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop
from rich.table import Table

from gearmesh.telemetry.machine import MachineWatch, describe, quantile
from scripts.build_models import build_noop
from scripts.rigs.noop_systems import ECHO_NAME, MODEL, MOSEC_NAME, NoopRequest, System, echo, mosec, of_checkout, ours
from scripts.rigs.processes import console
from scripts.rigs.spreads import Aim, Spread, aims_table, judged, paired

IN_FLIGHT = (1, 16, 64, 256)
SMALL_BYTES = 64
LARGE_BYTES, LARGE_IN_FLIGHT = 1 << 16, (1, 16)  # from such a payload on, these are enough
WARM_S, SETTLE_S = 0.7, 0.3  # of each system at each number in flight: in the round before the first, and in each
SMALL_AIMS = tuple(
    Aim(f"{name}: {figure}", bound, most)
    for figure, most, bounds in (
        ("p50 at 1 / echo's", True, (4.0, 3.0)),
        ("req/s at 16 / mosec's", False, (0.6, 0.8)),
        ("req/s at 64 / mosec's", False, (0.85, 1.0)),
        ("req/s at 256 / mosec's", False, (1.0, 1.2)),
        ("CPU per request at 64 / echo's", True, (10.0, 8.0)),
    )
    for name, bound in zip(("gearmesh", "gearmesh compact"), bounds, strict=True)
)
LARGE_AIMS = (Aim("gearmesh: req/s at 16 / mosec's", 1.5), Aim("gearmesh compact: req/s at 16 / mosec's", 1.5))


async def measure(systems: list[System], rounds: int, seconds: float, in_flights: Sequence[int] = IN_FLIGHT) -> None:
    """Measures every system at every number in flight, in every round; before the first one it warms them up."""
    for in_flight in in_flights:
        for system in systems:
            await system.drive(in_flight, WARM_S)
    console.print("warm", style="dim")
    for round_ in range(rounds):
        for in_flight in in_flights:
            for system in systems if round_ % 2 == 0 else reversed(systems):
                await system.drive(in_flight, SETTLE_S)
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
    reference = next((system for system in systems if system.name == ECHO_NAME), None)
    for in_flight in systems[0].runs:
        table = Table(
            "system", "req/s (min-max; IQR)", "p50 ms", "p99 ms", "cpu us/req", "echoes", "steal", "foreign", "not ok",
            title=f"{in_flight} in flight",
        )  # fmt: skip
        for system in systems:
            runs = system.runs[in_flight]
            if reference is not None:
                for run, unit in zip(runs, reference.runs[in_flight], strict=True):
                    run["echoes"] = _services_us(run) / _services_us(unit)
            middle = _middle(runs)
            results.setdefault(system.name, {})[str(in_flight)] = middle
            table.add_row(
                system.name,
                Spread.of(run["per_s"] for run in runs).words(0),
                f"{middle['p50_ms']:.2f}" if middle["p50_ms"] is not None else "-",
                f"{middle['p99_ms']:.2f}" if middle["p99_ms"] is not None else "-",
                " ".join(f"{name}={us:.0f}" for name, us in middle["cpu_us"].items()),
                f"{middle['echoes']:.1f}" if reference is not None else "-",
                f"{middle['steal']:.2f}",
                f"{middle['foreign']:.2f}",
                str(sum(run["not_ok"] for run in runs)),
            )
        console.print(table)
    return results


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, their spreads, and the values of each round."""
    keys = [key for key in ("per_s", "p50_ms", "p99_ms", "echoes", "steal", "foreign") if key in runs[0]]
    spreads = {key: Spread.of(run[key] for run in runs) for key in keys if all(run[key] is not None for run in runs)}
    middle: dict[str, Any] = {key: spreads[key].median if key in spreads else None for key in keys}
    names = runs[0]["cpu_us"]
    cpu = {name: Spread.of(run["cpu_us"].get(name, 0.0) for run in runs) for name in names}
    middle["cpu_us"] = {name: found.median for name, found in cpu.items()}
    middle["spreads"] = {
        **{key: found.described() for key, found in spreads.items()},
        "cpu_us": {name: found.described() for name, found in cpu.items()},
    }
    middle["runs"] = runs
    return middle


def ratios(results: dict[str, Any]) -> dict[str, Spread]:
    """Of each mesh to the echo, to the best peer and to the other checkout's; of each round by itself."""
    found: dict[str, Spread] = {}
    for name in ("gearmesh", "gearmesh compact"):
        beside = name.replace("gearmesh", "beside")
        for n, middle in results[name].items():
            mine = middle["runs"]
            if beside in results:
                other = results[beside][n]["runs"]
                found[f"{name}: req/s at {n} / the other checkout's"] = paired(
                    _all(mine, "per_s"), _all(other, "per_s")
                )
                found[f"{name}: CPU per request at {n} / the other checkout's"] = paired(
                    list(map(_services_us, mine)), list(map(_services_us, other))
                )
            if n == "1":
                unit = results[ECHO_NAME][n]["runs"]
                found[f"{name}: p50 at 1 / echo's"] = paired(_all(mine, "p50_ms"), _all(unit, "p50_ms"))
            found[f"{name}: CPU per request at {n} / echo's"] = Spread.of(_all(mine, "echoes"))
            if MOSEC_NAME in results:
                peer = results[MOSEC_NAME][n]["runs"]
                found[f"{name}: req/s at {n} / mosec's"] = paired(_all(mine, "per_s"), _all(peer, "per_s"))
    return found


def _all(runs: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [run[key] for run in runs]


def _services_us(run: dict[str, Any]) -> float:
    """CPU per request of all services in one round, microseconds."""
    used: dict[str, float] = run["cpu_us"]
    return sum(us for name, us in used.items() if name != "client")


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts all systems, measures them, and stops them."""
    request = NoopRequest.of_size(arguments.payload)
    large = arguments.payload >= LARGE_BYTES
    in_flights = arguments.in_flight or (LARGE_IN_FLIGHT if large else IN_FLIGHT)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = folder / "models"
        build_noop(models, MODEL, request.floats)
        async with AsyncExitStack() as stack:
            systems = [
                await stack.enter_async_context(ours(models, folder, compact=False, request=request)),
                await stack.enter_async_context(ours(models, folder, compact=True, request=request)),
                await stack.enter_async_context(echo(request)),
            ]
            if arguments.beside is not None:
                for compact in (False, True):
                    other = of_checkout(arguments.beside.resolve(), models, folder, compact=compact, request=request)
                    systems.insert(1 + 2 * compact, await stack.enter_async_context(other))
            if not arguments.without_mosec:
                systems.append(await stack.enter_async_context(mosec(folder, request)))
            await measure(systems, arguments.rounds, arguments.seconds, in_flights)
            results = report(systems)
    found = ratios(results)
    aims = LARGE_AIMS if large else SMALL_AIMS if arguments.payload == SMALL_BYTES else ()
    console.print(aims_table(aims, found))
    machine = describe()
    console.print(f"{machine['cpu']}, {machine['cores']} cores; the code is {machine['form']}")
    return {
        "machine": machine,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "payload": arguments.payload,
        "results": results,
        "ratios": {name: ratio.median for name, ratio in found.items()},
        "spreads": {name: ratio.described() for name, ratio in found.items()},
        "aims": judged(aims, found),
    }


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=at_least_one, default=5)
    made.add_argument("--seconds", type=float, default=2.0)
    made.add_argument("--payload", type=payload, default=SMALL_BYTES, metavar="BYTES", help="of each input (float32)")
    made.add_argument("--in-flight", type=numbers, metavar="N,N", help="requests in flight")
    made.add_argument("--without-mosec", action="store_true")
    made.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout, with a .venv")
    made.add_argument("--json", type=Path, help="write the result here, too")
    return made


def at_least_one(text: str) -> int:
    """The number. Raises: ArgumentTypeError."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1; got {text!r}")
    return int(text)


def payload(text: str) -> int:
    """The bytes of an input. Raises: ArgumentTypeError."""
    size_bytes = at_least_one(text)
    if size_bytes % 4:
        raise argparse.ArgumentTypeError(f"must be a multiple of 4, since inputs are float32; got {text}")
    return size_bytes


def numbers(text: str) -> list[int]:
    """The numbers between commas. Raises: ArgumentTypeError."""
    return [at_least_one(part.strip()) for part in text.split(",")]


def main() -> int:
    """Runs the benchmark. Exit code 0, or 1 if an answer was wrong."""
    arguments = parser().parse_args()
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
