"""Runs of floods.py: several loads at once on a mesh, each from processes of its own."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scripts.rigs.checkouts import HeldMesh
from scripts.rigs.floods import FloodPlan

FLOODS = Path(__file__).with_name("floods.py")
SLO_MS = 100.0
LATE_MS = 20.0  # beyond the deadline: what the mesh promises
PER_PROCESS_MAX = 30_000.0  # requests/s that one process sends
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Load:
    """What is offered at once with others."""

    name: str
    per_s: float
    connections: int = 4
    junk: bool = False
    model: str = "noop"
    floats: int = 16


@dataclass(slots=True)
class FloodRun:
    """What the clients of one load saw, all processes together."""

    left_cpus: float  # of this machine's, without what all loads' processes took
    frontend_mib: float  # resident, at the end
    wall_s: float = 0.0
    sent: int = 0
    unsent: int = 0
    unanswered: int = 0
    doubled: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    ok_ms: list[float] = field(default_factory=list)  # ascending, as the others
    refused_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)

    @property
    def ok(self) -> int:
        """Requests answered in time, by the client's clock and the frontend's tolerance."""
        return sum(ms <= SLO_MS + LATE_MS for ms in self.ok_ms)

    @property
    def ok_per_s(self) -> float:
        """The same, a second."""
        return self.ok / self.wall_s

    @property
    def late(self) -> int:
        """Answers that left later than is promised, by the frontend's clock."""
        return sum(ms > LATE_MS for ms in self.late_ms)


async def run_loads(mesh: HeldMesh, loads: Sequence[Load], seconds: float) -> dict[str, FloodRun]:
    """{load: what its clients saw}. All begin at once, and last for so long."""
    started = [(load, process) for load in loads for process in await _started(mesh, load, seconds)]
    for _, process in started:
        assert process.stdin is not None
        process.stdin.write(b"\n")
    told = await asyncio.gather(*(process.communicate() for _, process in started))
    seen = [(load, json.loads(out)) for (load, _), (out, _) in zip(started, told, strict=True)]
    left = (os.cpu_count() or 1) - sum(each["cpu_s"] / each["wall_s"] for _, each in seen)
    mib = _resident_mib(mesh.pids["frontend"])
    return {load.name: _joined([each for own, each in seen if own is load], left, mib) for load in loads}


async def _started(mesh: HeldMesh, load: Load, seconds: float) -> list[asyncio.subprocess.Process]:
    """Its processes, connected."""
    count = 1 + int(load.per_s / PER_PROCESS_MAX)
    plan = FloodPlan(
        mesh.address, load.model, load.floats, load.per_s / count, seconds, SLO_MS, load.connections, load.junk
    )
    processes = []
    for _ in range(count):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", str(FLOODS), json.dumps(asdict(plan)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 28,
        )  # fmt: skip
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        processes.append(process)
    return processes


def _joined(seen: Sequence[dict[str, object]], left_cpus: float, mib: float) -> FloodRun:
    run = FloodRun(left_cpus, mib)
    for each in seen:
        run.wall_s = max(run.wall_s, float(each["wall_s"]))  # type: ignore[arg-type]
        for name in ("sent", "unsent", "unanswered", "doubled"):
            setattr(run, name, getattr(run, name) + each[name])
        for outcome, count in each["outcomes"].items():  # type: ignore[attr-defined]
            run.outcomes[outcome] = run.outcomes.get(outcome, 0) + count
        for name in ("ok_ms", "refused_ms", "late_ms"):
            getattr(run, name).extend(each[name])
    for values in (run.ok_ms, run.refused_ms, run.late_ms):
        values.sort()
    return run


def _resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / (1 << 20)
