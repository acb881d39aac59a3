"""What the Python clients cost: CPU of a client's process per request, beside a server that answers at once.

    .venv/bin/python scripts/bench_clients.py [--rounds 4] [--requests 4000] [--beside FOLDER]

Every round measures `AsyncClient` (on uvloop) and `Client` at several numbers in flight, each in a process of its own,
every other round in the opposite order. `--beside` measures the client of another checkout in turn, with this Python.
CPU time counts ZeroMQ's thread. The server is a ROUTER that returns the inputs. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gearmesh.operations.ports import free_ports
from gearmesh.telemetry.machine import describe
from scripts import ROOT
from scripts.rigs.processes import start
from scripts.rigs.spreads import Spread

CELLS = (("async", 1), ("async", 16), ("async", 64), ("async", 256), ("blocking", 1), ("blocking", 64))
MEASURED = str(ROOT / "scripts/rigs/measured_clients.py")


def measure(checkouts: Sequence[Path], rounds: int, requests: int) -> dict[str, dict[str, list[float]]]:
    """{cell: {checkout: microseconds of each round}}."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    server = start([sys.executable, MEASURED, "serve", address])
    found: dict[str, dict[str, list[float]]] = {}
    try:
        for round_ in range(rounds):
            for kind, in_flight in CELLS:
                for checkout in checkouts if round_ % 2 == 0 else reversed(checkouts):
                    command = [sys.executable, MEASURED, kind, address, str(in_flight), str(requests)]
                    environment = {**os.environ, "PYTHONPATH": str(checkout)}
                    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
                    cell = found.setdefault(f"{kind}, {in_flight} in flight", {})
                    cell.setdefault(str(checkout), []).append(float(text))
    finally:
        server.kill()
        server.wait()
    return found


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=4)
    made.add_argument("--requests", type=int, default=4000, help="of each cell in each round")
    made.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout")
    return made


def main() -> None:
    """Measures and prints."""
    arguments = parser().parse_args()
    checkouts = [ROOT] if arguments.beside is None else [arguments.beside.resolve(), ROOT]
    found = measure(checkouts, arguments.rounds, arguments.requests)
    print(f"| client | {' | '.join(checkout.name for checkout in checkouts)} |\n|{'---|' * (1 + len(checkouts))}")
    for cell, by_checkout in found.items():
        print(f"| {cell} | {' | '.join(Spread.of(us).words(1) for us in by_checkout.values())} |")
    result: dict[str, Any] = {"machine": describe(), "rounds": arguments.rounds, "cpu_us": found}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
