"""The cost of telemetry: the same mesh with logs on, with logs off, and with logs off while a trace is recorded.

    .venv/bin/python scripts/bench_telemetry.py [--rounds 5] [--seconds 2] [--json FILE]

A no-op model on the cpu device, closed loop, all three interleaved in every round. The result is the controller's CPU
time per request, which is steady on a shared machine where throughput is not. The last line is JSON.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from gearmesh.operations.meshes import Mesh, mesh
from gearmesh.telemetry.journals import read_actions, read_requests
from gearmesh.telemetry.machine import describe
from mesh.codes import ErrorCode, RequestOutcome
from scripts import ROOT
from scripts.bench_mesh import IN_FLIGHT, measure, report
from scripts.build_models import build_noop
from scripts.rigs.closed_loops import ZmqDriver
from scripts.rigs.noop_systems import SMALL, System
from scripts.rigs.processes import console

VARIANTS = {"logs on": ("on", False), "logs off": ("off", False), "logs off, traced": ("off", True)}


@asynccontextmanager
async def variant(name: str, repository: Path, folder: Path) -> AsyncIterator[System]:
    """One mesh, each service a process of its own."""
    telemetry, traced = VARIANTS[name]
    async with mesh(repository, folder / name.replace(" ", "-"), telemetry=telemetry) as running:
        driver = ZmqDriver(running.address, SMALL.ask, SMALL.check)
        tracing = Tracing(running, folder / "trace.json", driver)
        try:
            yield System(name, tracing.drive if traced else driver.drive, running.supervisor.pids())
        finally:
            await tracing.stop()
            driver.close()


@dataclass(slots=True)
class Tracing:
    """Drives a mesh while `gearmesh trace` records it; the recording starts with the warm-up."""

    running: Mesh
    file: Path
    driver: ZmqDriver
    process: asyncio.subprocess.Process | None = None

    async def drive(self, in_flight: int, seconds: float) -> tuple[list[float], int]:
        """As ZmqDriver.drive. Every second call ends the recording that the previous call began."""
        began = self.process is None
        if began:
            await self._start()
        found = await self.driver.drive(in_flight, seconds)
        if not began:
            await self.stop()
        return found

    async def _start(self) -> None:
        command = [sys.executable, "-P", "-m", "gearmesh", "trace", str(self.file), "--force", "--seconds", "60"]
        silent = subprocess.DEVNULL
        self.process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=self.running.environment, stdout=silent, stderr=silent
        )
        await asyncio.sleep(1.5)  # it imports modules and finds the controller

    async def stop(self) -> None:
        """Ends the recording."""
        process, self.process = self.process, None
        if process is not None:
            process.terminate()
            await process.wait()


def handing_over() -> dict[str, float]:
    """Microseconds per request in the controller's loop: making the facts and offering them to the journal."""
    from controller.core.queues import Request
    from controller.core.telemetry.totals import Telemetry
    from controller.journal import Journal

    count = 20_000
    telemetry = Telemetry(recording=True)
    silent = Telemetry()
    for kept in (telemetry, silent):
        kept.models.deploy(["m:1"])
    requests = [Request("frontend-1", i, 0, "m:1", 1, 1.0, 2.0, 1.0) for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder), "c", "atc", bytes_max=1 << 30, files=1, pending_max=count)
        times = {}
        for name, kept in (("counted", silent), ("counted and recorded", telemetry)):
            began_s = time.process_time()
            for request in requests:
                kept.refused(request, RequestOutcome.REJECTED, ErrorCode.DEADLINE, 1.5)
            journal.offer(kept.take())
            times[name] = (time.process_time() - began_s) / count * 1e6
        began_s = time.process_time()
        journal.start()
        journal.stop()
        times["written, on the journal's thread"] = (time.process_time() - began_s) / count * 1e6
    return times


async def run(rounds: int, seconds: float) -> dict[str, Any]:
    """Starts all variants, measures them, and stops them."""
    parts = handing_over()
    for name, us in parts.items():
        console.print(f"{name}: {us:.2f} us per request")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build_noop(folder / "models", "noop")
        async with AsyncExitStack() as stack:
            systems = [await stack.enter_async_context(variant(name, folder / "models", folder)) for name in VARIANTS]
            await measure(systems, rounds, seconds)
            results = report(systems)
        logs = folder / "logs-on" / "telemetry"
        lines = [len(log.facts) for found in (read_requests(logs), read_actions(logs)) for log in found]
        dropped = sum(log.dropped for log in read_requests(logs))
        size = sum(path.stat().st_size for path in logs.iterdir())
    console.print(f"log: {sum(lines)} lines, {size / sum(lines):.0f} bytes each, {dropped} dropped")
    for in_flight in IN_FLIGHT:
        controller = {name: results[name][str(in_flight)]["cpu_us"]["controller"] for name in VARIANTS}
        text = ", ".join(f"{name} {us:.1f}" for name, us in controller.items())
        console.print(f"controller's CPU per request at {in_flight}, us: {text}")
    return {
        "machine": describe(),
        "rounds": rounds,
        "seconds": seconds,
        "us": parts,
        "dropped": dropped,
        "results": results,
    }


def main() -> int:
    """Runs the benchmark. Returns exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    text = json.dumps(uvloop.run(run(arguments.rounds, arguments.seconds)))
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
