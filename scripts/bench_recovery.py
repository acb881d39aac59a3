"""How long a service is away that is killed, as its clients see it, and how long a mesh takes to start.

    .venv/bin/python -m scripts.bench_recovery [--kills 20] [--kinds worker controller ...] [--starts 5]
                                               [--beside FOLDER] [--quick] [--json FILE]

A mesh of real processes on the cpu device, with small real models, a gateway, and a container that is kept. Clients ask
all of them all the time, over ZeroMQ and HTTP, with 500 ms to answer. One process of each kind is killed (SIGKILL)
after the other, in turns; before each, all was well for a while. The outage lasts from the kill until the first answer
after which nothing fails for a second, on all paths; where nothing fails, it is the longest that a request waited. The
pause of the supervisor is part of it. `code` is the process of a container's function, `container` the one around it.
`--beside` does the same with another checkout with a .venv, say of an older commit, in turns with ours. The last line
is JSON.
"""

import argparse
import asyncio
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop
from rich.table import Table

from gearmesh.telemetry.machine import MachineWatch, describe, median
from scripts import ROOT
from scripts.build_models import BUILDERS
from scripts.rigs.processes import console
from scripts.rigs.recovery_clients import AGAIN_S, Outage, clients, is_over, outage
from scripts.rigs.recovery_meshes import (
    DIGITS,
    PHOTOS,
    SERVICES,
    SUBJECTS,
    KilledMesh,
    killed_mesh,
    knows_spares,
    starts,
)

LIMIT_S = 60.0  # who is not back then is given up
SETTLES_S = 10.0  # longest wait for a second without a failure before a kill
LIVED_S = 6.0  # a process that lived so long is started again at once by the supervisor
SPARE_S = 12.0  # from a worker's return until another spare is ready
HERE, OTHER = "gearmesh", "the other"


class Kills:
    """The mesh of one checkout, and what became of each kill."""

    def __init__(self, mesh: KilledMesh) -> None:
        self.mesh = mesh
        self.outages: dict[str, list[Outage]] = {}
        self._back_s: dict[str, float] = {}  # when the last of each kind was back
        self._began_s = time.monotonic()

    async def kill(self, kind: str) -> None:
        """One process of that kind is killed while clients ask; all is well again when this returns, or never."""
        rest_s = SPARE_S if kind in ("worker", "container") else LIVED_S
        await asyncio.sleep(self._back_s.get(kind, self._began_s) + rest_s - time.monotonic())
        async with clients(self.mesh.held.address, self.mesh.http_port, SUBJECTS, DIGITS) as paths:
            await is_over(paths, time.monotonic(), SETTLES_S)
            pid = await self.mesh.pid(kind)
            killed_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            await is_over(paths, killed_s, LIMIT_S)
            seen = outage(paths, killed_s)
        self.outages.setdefault(kind, []).append(seen)
        console.print(f"{kind}: {seen.seconds}", style="dim")
        self._back_s[kind] = time.monotonic() - AGAIN_S


def figures(outages: Sequence[Outage]) -> dict[str, Any]:
    """Medians and worst of all kills of one kind."""
    seconds = [LIMIT_S if each.seconds is None else each.seconds for each in outages]
    lost: Counter[str] = Counter()
    for each in outages:
        lost.update(each.lost)
    return {
        "kills": len(outages),
        "median_s": median(seconds),
        "worst_s": max(seconds),
        "never_back": sum(each.seconds is None for each in outages),
        "without_a_failure": sum(not each.lost for each in outages),
        "requests": sum(each.asked for each in outages),
        "lost": dict(lost),
        "seconds": [round(each, 3) for each in seconds],
    }


def show(found: dict[str, dict[str, Any]], began: dict[str, list[float]]) -> None:
    """Prints the tables."""
    table = Table("killed", "mesh", "n", "median s", "worst s", "no failure", "lost", title="outages")
    for kind in SERVICES:
        for name, kinds in found.items():
            if kind in kinds:
                of = kinds[kind]
                lost = ", ".join(f"{outcome} {count}" for outcome, count in sorted(of["lost"].items()))
                table.add_row(
                    kind, name, str(of["kills"]), f"{of['median_s']:.2f}", f"{of['worst_s']:.2f}",
                    str(of["without_a_failure"]), lost or "-",
                )  # fmt: skip
    console.print(table)
    for name, took_s in began.items():
        if took_s:
            console.print(f"{name}: ready after {median(took_s):.2f} s (worst of {len(took_s)}: {max(took_s):.2f} s)")


async def run(arguments: argparse.Namespace, repository: Path, folder: Path) -> dict[str, Any]:
    """Starts the meshes, kills, and stops them."""
    checkouts = {HERE: ROOT} | ({OTHER: arguments.beside.resolve()} if arguments.beside else {})
    spares = {name: arguments.spares if knows_spares(checkout) else None for name, checkout in checkouts.items()}
    watch = MachineWatch({})
    async with AsyncExitStack() as stack:
        meshes = {}
        for name, checkout in checkouts.items():
            mesh = killed_mesh(checkout, repository, folder / name.replace(" ", "-"), spares[name])
            meshes[name] = Kills(await stack.enter_async_context(mesh))
        for number in range(arguments.kills):
            for kills in meshes.values():
                for kind in arguments.kinds:
                    await kills.kill(kind)
            console.print(f"{number + 1} of {arguments.kills} kills of each kind", style="dim")
    began = {}
    for name, checkout in checkouts.items():  # with profiles, and what else the meshes above have left
        data = folder / name.replace(" ", "-") / "data"
        (data / "containers.json").unlink()
        began[name] = await starts(checkout, repository, data, arguments.starts, spares[name])
    found = {
        name: {kind: figures(outages) for kind, outages in kills.outages.items()} for name, kills in meshes.items()
    }
    show(found, began)
    watched = watch.stop()
    return {
        "machine": describe(),
        "steal": watched["steal"],
        "foreign": watched["foreign"],
        "outages": found,
        "starts_s": {name: [round(each, 3) for each in took_s] for name, took_s in began.items()},
    }


def main() -> int:
    """Runs the benchmark. Exit code 0, or 1 if something never came back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=list(SERVICES), default=list(SERVICES))
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--spares", default="gpu_worker", help='as GEARMESH_SPARES; "" for none')
    parser.add_argument("--quick", action="store_true", help="one kill of each kind: only whether everything runs")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout, with a .venv")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.kills, arguments.starts = 1, 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in (DIGITS, PHOTOS):
            BUILDERS[name](folder / "models", name)
        result = uvloop.run(run(arguments, folder / "models", folder))
    text = json.dumps(result)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return int(any(of["never_back"] for kinds in result["outages"].values() for of in kinds.values()))


if __name__ == "__main__":
    raise SystemExit(main())
