"""Texts of unequal length under deadlines: gearmesh beside mosec, LitServe, BentoML and infinity, with one encoder.

    .venv/bin/python -m scripts.bench_sizes [--mixes queries,mixed,passages] [--loads 0.7,1,1.3,2] [--slos 100,250,500]
        [--ours NAMES] [--peers NAMES] [--seconds 5] [--rounds 1] [--json FILE] [--plot FILE.png]

The encoder has 4 layers of width 256; every system has one worker with one thread, and the same largest batch.
A load of 1 is what the bare encoder does if each text is computed in the best batch of its own length. Open loops
(Poisson; latency from when a request was due) and a closed loop of 16 clients. gearmesh is told the objective, the
peers know of none: one run of theirs fills all columns. Every system's answers are first compared with the bare
encoder's. Prints Markdown tables; the last line is JSON.
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

import numpy as np
import uvloop

from gearmesh.telemetry.machine import describe
from scripts.bench_peers import rotated
from scripts.peers import text_tables as tables
from scripts.peers.environments import PeerError, install, version
from scripts.peers.lengths import MIXES, TEXT_PEERS, Words, texts_of
from scripts.peers.text_measuring import (
    LOOSE_SLO_MS,
    OWN,
    build_repositories,
    capacity_per_s,
    measure,
    measure_costs,
    ours,
    theirs,
)
from scripts.rigs.flags import picture

SEED = 7
TEXTS = 2000  # different ones; asked for in turn
CLOSED = "closed"


class Study:
    """The options, and the runs so far."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.folder = folder
        self.pythons: dict[str, Path] = {}
        self.missing: dict[str, str] = {}  # {system: why it is left out}
        self.runs: tables.Runs = {}  # {(mix, load, system): {objective in ms, or 0 for all: its runs}}
        self.capacity: dict[str, float] = {}  # {mix: texts per second}
        self.longest_ms = 0.0  # a lone text of the greatest length
        self.texts: dict[str, list[Words]] = {
            mix: texts_of(mix, TEXTS, np.random.default_rng([SEED, i])) for i, mix in enumerate(arguments.mixes)
        }

    def note(self, mix: str, load: str, system: str, slo_ms: float, run: dict[str, Any]) -> None:
        """Adds a run."""
        self.runs.setdefault((mix, load, system), {}).setdefault(slo_ms, []).append(run)


async def run(study: Study, say: Any) -> None:
    """Runs all rounds."""
    arguments = study.arguments
    for round_ in range(arguments.rounds):
        for mix in arguments.mixes:
            for system in rotated((*arguments.ours, *study.pythons), round_):
                if system in study.missing:
                    continue
                began_s = time.monotonic()
                try:
                    await run_system(study, system, mix, round_)
                except (PeerError, OSError, RuntimeError) as error:
                    study.missing[system] = f"{mix}: {error}"
                    say(f"{system}: {error}")
                    continue
                say(f"round {round_ + 1}: {mix}, {system}: {time.monotonic() - began_s:.0f} s")


async def run_system(study: Study, system: str, mix: str, round_: int) -> None:
    """Measures one system with one mix of lengths."""
    arguments, texts = study.arguments, study.texts[mix]
    if system in OWN:
        held = ours(OWN[system], study.folder, texts)
    else:
        held = theirs(TEXT_PEERS[system], study.pythons[system], texts, arguments.batch_max)
    async with held as served:
        for load in loads_of(arguments):
            shape: Any = arguments.clients
            if load != CLOSED:
                rate = float(load) * study.capacity[mix]
                rng = np.random.default_rng([SEED, round_, int(1000 * rate)])
                shape = np.sort(rng.random(rng.poisson(rate * arguments.seconds)) * arguments.seconds)
            for slo_ms in arguments.slos if system in OWN else [0.0]:
                told_ms = slo_ms or LOOSE_SLO_MS
                slos = [slo_ms] if slo_ms else arguments.slos
                study.note(
                    mix, load, system, slo_ms, await measure(served, texts, shape, arguments.seconds, told_ms, slos)
                )


def loads_of(arguments: argparse.Namespace) -> list[str]:
    """Names of the loads: shares of the capacity, and the closed loop."""
    return [*(f"{load:g}" for load in arguments.loads), *([CLOSED] if arguments.clients else [])]


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
    made.add_argument("--mixes", type=_list_of(str, list(MIXES)), default=list(MIXES))
    made.add_argument("--ours", type=_list_of(str, list(OWN)), default=list(OWN), help="some of: " + ", ".join(OWN))
    made.add_argument("--peers", type=_list_of(str, list(TEXT_PEERS)), default=list(TEXT_PEERS), help="or ''")
    made.add_argument("--loads", type=_list_of(float), default=[0.5, 0.7, 1.0, 1.3, 2.0], help="in capacities")
    made.add_argument("--slos", type=_list_of(float), default=[100.0, 250.0, 500.0], help="objectives in ms")
    made.add_argument("--clients", type=int, default=16, help="of the closed loop; 0: none")
    made.add_argument("--seconds", type=float, default=5.0, help="of every run")
    made.add_argument("--rounds", type=int, default=1)
    made.add_argument("--batch-max", type=int, default=32, help="largest batch of every system")
    made.add_argument("--json", type=Path, help="write the result here, too; must not exist")
    made.add_argument("--plot", type=picture, help="draw the goodput there: .png, .svg or .pdf")
    return made


def main() -> int:
    """Runs the benchmark. Exit code 0; 1 if a system could not be compared; 2 for wrong flags."""
    flags = parser()
    arguments = flags.parse_args()
    if arguments.json is not None and arguments.json.exists():
        flags.error(f"--json {arguments.json}: it exists already")
    for name in ("loads", "slos", "seconds", "rounds", "batch_max"):
        given = getattr(arguments, name)
        if not all(0 < value < math.inf for value in (given if isinstance(given, list) else [given])):
            flags.error(f"--{name.replace('_', '-')}: must be above 0; got {given}")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="gearmesh-sizes-") as folder:
        study = Study(arguments, Path(folder))
        for name in arguments.peers:
            try:
                study.pythons[name] = install(TEXT_PEERS[name].peer)
            except PeerError as error:
                study.missing[name] = str(error)
                say(f"{name}: {error}")
        if arguments.ours:
            build_repositories(study.folder, arguments.batch_max)
        costs = measure_costs(arguments.batch_max)
        study.capacity = {mix: capacity_per_s(costs, texts) for mix, texts in study.texts.items()}
        study.longest_ms = costs[max(length for length, _ in costs), 1] * 1e3
        say(f"capacity: {study.capacity}; a lone text of the greatest length: {study.longest_ms:.0f} ms")
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # what runs is stopped first
        uvloop.run(run(study, say))
    systems = [*arguments.ours, *study.pythons]
    print(tables.report(study.runs, systems, loads_of(arguments), arguments, study.capacity, study.longest_ms))
    for system, why in study.missing.items():
        print(f"**{system} is not compared (or only in part)**: {why}\n")
    if arguments.plot is not None:
        tables.draw(study.runs, systems, loads_of(arguments), arguments, arguments.plot)
    result = {
        "machine": describe(),
        "peers": {
            n: {"version": version(TEXT_PEERS[n].peer, p), "configuration": TEXT_PEERS[n].peer.configuration}
            for n, p in study.pythons.items()
        },
        "missing": study.missing,
        "flags": {key: str(value) for key, value in vars(arguments).items()},
        "capacity_per_s": study.capacity,
        "costs_s": {f"{length}x{batch}": s for (length, batch), s in costs.items()},
        "runs": {" ".join(key): value for key, value in study.runs.items()},
    }
    text = json.dumps(result)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return int(bool(study.missing))


if __name__ == "__main__":
    raise SystemExit(main())
