"""gearmesh compared with mosec, LitServe, BentoML, Ray Serve and FastAPI: the same torch models, interleaved in one
run.

    .venv/bin/python -m scripts.bench_peers [--parts noop,mlp,m5,goodput] [--peers mosec,ray] [--seconds 3] [--rounds 2]
        [--json FILE] [--plot FILE.png]
    .venv/bin/python -m scripts.bench_peers --parts closed --peers mosec --slos 25,50 --rounds 5

Every round starts each system with each model, checks its answers, measures, and stops it, so that nothing else runs
meanwhile. Each round begins with another system. noop, mlp, m5: closed loops at 1, 16 and 64 in flight. goodput: m5, a
closed loop of 16 clients and open loops (Poisson, latency from when a request was due) at 150, 400 and 1,200
requests/s, with SLOs of 10, 25, 50 and 100 ms. closed: the closed loop alone, and whether its goodput is what is aimed
at, relative to mosec's. Every system has one worker with one torch thread and the same largest
batch. Each peer is installed into .venv-peers/NAME. Prints Markdown tables; the last line is JSON.
"""

import argparse
import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from gearmesh.telemetry.machine import describe
from scripts.peers import plots, tables
from scripts.peers.catalogue import PEERS
from scripts.peers.environments import PeerError, install, version
from scripts.peers.measuring import (
    CLIENTS,
    GOODPUTS,
    OURS,
    Bench,
    build_repository,
    loads_of,
    measure,
    measure_capacity,
    ours,
    theirs,
)
from scripts.rigs.flags import picture
from scripts.rigs.spreads import Aim, judged

PARTS = ("noop", "mlp", "m5", "goodput")
CLOSED = "closed"  # a part of goodput
CLOSED_AIMS = tuple(Aim(tables.closed_figure(system, slo), 1.0) for system in OURS for slo in (25.0, 50.0))


async def run(bench: Bench, say: Any) -> None:
    """Runs all rounds."""
    arguments = bench.arguments
    models = list(dict.fromkeys("m5" if part in GOODPUTS else part for part in arguments.parts))
    for model in models:
        build_repository(bench.repositories, model, arguments.batch_max)
    for round_ in range(arguments.rounds):
        for model in models:
            if model == "m5" and GOODPUTS.intersection(arguments.parts):
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


def rotated(systems: Sequence[str], by: int) -> list[str]:
    """The systems in another order for each round, so that none always runs after the same one."""
    by %= max(1, len(systems))
    return [*systems[by:], *systems[:by]]


def report(bench: Bench) -> str:
    """The tables, and the cells in which a peer is ahead."""
    arguments = bench.arguments
    parts, ahead = [], []
    titles = {"noop": "no-op, 16 floats", "mlp": "MLP 784-512-512-10", "m5": "MLP 64-4480-4480-10 (m5)"}
    for model, title in titles.items():
        if model in arguments.parts and model in bench.runs:
            parts.append(tables.throughput_table(f"{title}, closed loop", bench.runs[model], arguments.in_flight))
            ahead += tables.behind_throughput(title, bench.runs[model], arguments.in_flight)
    if GOODPUTS.intersection(arguments.parts) and "m5" in bench.runs:
        loads = loads_of(arguments)
        for load, shape in loads.items():
            kind = "closed loop" if isinstance(shape, int) else "open loop, Poisson"
            parts.append(tables.goodput_table(f"Goodput on m5, {kind}, {load}", bench.runs["m5"], load, arguments.slos))
        ahead += tables.behind(bench.runs["m5"], list(loads), arguments.slos)
        parts.append(_capacity(bench, list(loads)[-1]))
        closed = tables.closed_ratios(bench.runs["m5"], f"{arguments.clients} clients", arguments.slos)
        parts.append(tables.ratios_table(CLOSED_AIMS if arguments.clients == CLIENTS else (), closed))
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
    made.add_argument("--parts", type=_list_of(str, (*PARTS, CLOSED)), default=list(PARTS))
    made.add_argument("--seconds", type=float, default=3.0, help="of every cell")
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--in-flight", type=_list_of(int), default=[1, 16, 64])
    made.add_argument("--clients", type=int, default=CLIENTS)
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
    if arguments.plot is not None and "m5" in bench.runs and GOODPUTS.intersection(arguments.parts):
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
        "aims": judged(
            CLOSED_AIMS, tables.closed_ratios(bench.runs.get("m5", {}), f"{CLIENTS} clients", arguments.slos)
        ),
    }
    text = json.dumps(result)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return int(bool(bench.missing))


if __name__ == "__main__":
    raise SystemExit(main())
