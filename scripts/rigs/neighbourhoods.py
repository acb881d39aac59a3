"""What the benchmark of bad neighbours runs: situations, a mesh with models that can be harmed, and the neighbours."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gearmesh.operations.ports import free_ports
from gpu_worker.packages.export import write_package
from scripts.rigs import neighbour_functions, neighbours
from scripts.rigs.checkouts import HeldMesh, held_mesh, interpreter
from scripts.rigs.containers import SPECS, container
from scripts.rigs.neighbours import Plan
from scripts.rigs.open_loops import Subject

SLO_MS = 1000.0  # of containers, whose batches take 50 ms
DEVICE_SLO_MS, DEVICE_BATCH_MAX = 250.0, 8
IDS, IDS_OF_ROW, WIDTH = 1000, 16, 256  # of the model on a device
ROWS = 16  # that are asked in turn
FUNCTIONS = Path(neighbour_functions.__file__)
NEIGHBOURS = Path(neighbours.__file__)
CONTAINERS = {  # {function, and the model's name: (rows in a batch, containers)}
    "double": (4, 1),  # few, so that 16 clients are too many for it
    "double_and_record": (16, 1),
    "double_or_raise": (8, 1),
    "double_or_end": (8, 2),
}
LEAVERS = "double_and_record"
IMPATIENT, PATIENCE = 16, 0.1  # clients, and the share of their budgets after which they give up


@dataclass(frozen=True, slots=True)
class Situation:
    """One kind of neighbour of a model's clients."""

    name: str
    subject: Subject
    kind: str  # of the neighbours' plan
    first: float  # value of their rows
    plan: dict[str, Any] = field(default_factory=dict)  # what else is in it
    http: bool = False  # of the sound clients, too


def situations(tokens: Subject) -> list[Situation]:
    """All of them. `tokens`: the model on a device."""
    crowded = of_container("double")
    impatient = {"clients": IMPATIENT, "patience_s": PATIENCE * crowded.slo_ms / 1e3}
    return [
        Situation("16 impatient, ZeroMQ", crowded, "impatient", 0.0, impatient),
        Situation("16 impatient, HTTP", crowded, "impatient_http", 0.0, impatient, http=True),
        Situation("bad row, device", tokens, "repeating", IDS),
        Situation("bad row, container raises", of_container("double_or_raise"), "repeating", -1.0),
        Situation("bad row, container ends", of_container("double_or_end"), "repeating", -1.0),
    ]


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """A mesh with all models, and where its containers run."""

    name: str
    held: HeldMesh
    http_port: int
    folder: Path

    def rows_of_leavers(self, since_s: float) -> int:
        """Rows of theirs in batches that began since that instant of time.monotonic()."""
        record = self.folder / neighbour_functions.RECORD
        batches = [line.split() for line in record.read_text().splitlines()] if record.exists() else []
        return sum(int(rows) for began_s, rows in batches if float(began_s) >= since_s)


def of_container(function: str) -> Subject:
    """The model that containers serve with that function."""
    rows = [np.full((1, 4), number, np.float32) for number in range(ROWS)]
    return Subject(function, rows, [row * 2 for row in rows], SLO_MS, *CONTAINERS[function])


def of_device(repository: Path) -> Subject:
    """A model of token ids for a device, which is written here: an id that is not in its table makes it raise."""
    torch.manual_seed(0)
    table, middle = nn.Embedding(IDS, WIDTH), nn.Linear(IDS_OF_ROW * WIDTH, 2048)
    module = nn.Sequential(table, nn.Flatten(), middle, nn.ReLU(), nn.Linear(2048, 16)).eval()
    write_package(
        repository, "tokens", "1", module, inputs={"x": ("int64", (IDS_OF_ROW,))}, outputs=["y"],
        batch_max=DEVICE_BATCH_MAX, slo_ms=DEVICE_SLO_MS,
        example={"x": torch.arange(2 * IDS_OF_ROW).reshape(2, IDS_OF_ROW)},
    )  # fmt: skip
    ids = torch.randint(IDS, (ROWS, 1, IDS_OF_ROW))
    with torch.no_grad():
        expected = [module(row).numpy() for row in ids]
    return Subject("tokens", list(ids.numpy()), expected, DEVICE_SLO_MS, DEVICE_BATCH_MAX)


@asynccontextmanager
async def neighbourhood(name: str, checkout: Path, repository: Path, folder: Path) -> AsyncIterator[Neighbourhood]:
    """A mesh of that checkout with all models and containers, which run in `folder`, until the block ends."""
    shutil.copytree(repository, folder / "models")
    shutil.copy(FUNCTIONS, folder)
    port = free_ports(1)[0]
    async with AsyncExitStack() as stack:
        mesh = held_mesh(checkout, folder / "models", folder / "data", http_port=port, device="cpu")
        held = await stack.enter_async_context(mesh)
        for function, (batch_max, replicas) in CONTAINERS.items():
            options = ["--batching", f"fixed:{batch_max}", "--batch-max", str(batch_max), "--slo-ms", str(SLO_MS)]
            if replicas > 1:
                options += ["--output", "pid:int64:-1"]
            for _ in range(replicas):
                predict = f"{FUNCTIONS.stem}:{function}"
                started = container(held, folder, predict, *SPECS, *options, model=function, checkout=checkout)
                await stack.enter_async_context(started)
        yield Neighbourhood(name, held, port, folder)


class Neighbour:
    """A process of neighbours that has begun, and what it counted."""

    def __init__(self, process: asyncio.subprocess.Process, began_s: float) -> None:
        self._process = process
        self.began_s = began_s  # of time.monotonic(); those that leave have left then
        self.told: dict[str, int] = {}  # once it has ended

    async def end(self) -> None:
        """It has ended, and told its counts."""
        out, _ = await self._process.communicate(b"")  # which closes its standard input
        self.told = json.loads(out or "{}")


@asynccontextmanager
async def neighbour(where: Neighbourhood, plan: Plan) -> AsyncIterator[Neighbour]:
    """Neighbours with that plan, and its checkout's client, until the block ends. Raises: SystemExit."""
    checkout = where.held.checkout
    process = await asyncio.create_subprocess_exec(
        interpreter(checkout), "-P", NEIGHBOURS, json.dumps(asdict(plan)),
        env=where.held.environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise SystemExit(f"the neighbours ({plan.kind}) did not begin; what they said is above")
    running = Neighbour(process, float(line))
    try:
        yield running
    finally:
        await running.end()


def plan_of(where: Neighbourhood, situation: Situation) -> Plan:
    """The neighbours of that situation on that mesh; their budgets are the sound clients', if nothing else is said."""
    subject = situation.subject
    row = np.array(subject.rows[0][0])
    row[0] = situation.first
    fields = {"slo_ms": subject.slo_ms, **situation.plan}
    place = (where.held.address, where.http_port, subject.model)
    return Plan(situation.kind, *place, row.dtype.name, row.tolist(), **fields)
