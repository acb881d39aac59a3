"""Runs of floods.py: several loads at once on a mesh, each from processes of its own."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scripts.rigs.checkouts import HeldMesh
from scripts.rigs.floods import FloodPlan

FLOODS = Path(__file__).with_name("floods.py")
SLO_MS = 100.0
LATE_MS = 20.0  # beyond the deadline: what the mesh promises
PER_PROCESS_MAX = 200_000.0  # requests/s that one process sends
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
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

    left_cpus: float  # of the mesh's processors, without what other programs took
    mesh_cpus: float  # of these, what the mesh took
    frontend_cpus: float  # of these, its frontend
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


@dataclass(frozen=True, slots=True)
class Processors:
    """Who has which: half of them are the clients', the others the mesh's. A machine with one shares that."""

    clients: frozenset[int]
    mesh: frozenset[int]


def processors() -> Processors:
    """This machine's, as far as this process may use them."""
    own = sorted(os.sched_getaffinity(0))
    half = len(own) // 2
    return Processors(frozenset(own[:half] or own), frozenset(own[half:]))


@contextmanager
def pinned(cpus: frozenset[int]) -> Iterator[None]:
    """Processes that are started meanwhile stay on these processors; so does the calling thread."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds by an instant."""

    wall: float
    others: float  # that the mesh's processors gave to anybody but the mesh
    mesh: float
    frontend: float

    @classmethod
    def now(cls, mesh: HeldMesh, cpus: frozenset[int]) -> "CpuTime":
        """By now."""
        busy = 0.0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *ticks = line.split()
            if name in {f"cpu{cpu}" for cpu in cpus}:
                busy += TICK_S * sum(int(each) for i, each in enumerate(ticks[:8]) if i not in (3, 4))  # idle, iowait
        each = {name: _process_cpu_s(pid) for name, pid in mesh.pids.items()}
        return cls(time.monotonic(), busy - sum(each.values()), sum(each.values()), each["frontend"])


async def run_loads(mesh: HeldMesh, loads: Sequence[Load], seconds: float, cpus: Processors) -> dict[str, FloodRun]:
    """{load: what its clients saw}. All begin at once, and last for so long."""
    with pinned(cpus.clients):
        started = [(load, process) for load in loads for process in await _started(mesh, load, seconds)]
    before = CpuTime.now(mesh, cpus.mesh)
    for _, process in started:
        assert process.stdin is not None
        process.stdin.write(b"\n")
    telling = asyncio.gather(*(process.communicate() for _, process in started))
    await asyncio.sleep(seconds)
    after = CpuTime.now(mesh, cpus.mesh)
    seen = [(load, json.loads(out)) for (load, _), (out, _) in zip(started, await telling, strict=True)]
    wall_s = after.wall - before.wall
    left = max(len(cpus.mesh) - (after.others - before.others) / wall_s, TICK_S)
    own, frontend = (after.mesh - before.mesh) / wall_s, (after.frontend - before.frontend) / wall_s
    mib = _resident_mib(mesh.pids["frontend"])
    return {
        load.name: _joined([each for of, each in seen if of is load], FloodRun(left, own, frontend, mib))
        for load in loads
    }


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


def _joined(seen: Sequence[dict[str, object]], run: FloodRun) -> FloodRun:
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


def _process_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return TICK_S * (int(fields[11]) + int(fields[12]))
