"""Models with open dimensions: what workers report of them, and devices that execute their batches in virtual time."""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from controller.core.orders import Order, ToFrontend, ToWorker
from mesh import wire
from mesh.codes import ActionCode
from mesh.sizes import Extents, holds
from tests.controller.core.controller_builders import Shard, hello, prepared

Duration = Callable[[int, Extents], float]  # seconds of (rows, extents)
BATCHES = (1, 2, 4, 8, 16, 32)
SEQ = (wire.Dim(name="seq", least=1, most=512),)
IMAGE = (wire.Dim(name="h", least=32, most=256), wire.Dim(name="w", least=32, most=256))
EDGES = {SEQ: ((16, 64, 128, 256, 512),), IMAGE: ((64, 128, 256), (64, 128, 256))}


def encoder(rows: int, extents: Extents) -> float:
    """An encoder on a CPU. Source: the length study's measurement."""
    (s,) = extents
    return max(8.5, 5.9 + 0.159 * rows * s + 7.9e-6 * rows * s * s) / 1e3


def pixels(rows: int, extents: Extents) -> float:
    """So much for each pixel."""
    return 0.004 + 2e-7 * rows * math.prod(extents)


def open_spec(
    dims: tuple[wire.Dim, ...] = SEQ, *, batch_max: int = 32, exact: bool = False, slo_ms: float = 200.0
) -> wire.ModelSpec:
    """One float at each point in, four floats out."""
    names = tuple(dim.name for dim in dims)
    given = wire.TensorSpec(name="x", dtype="float32", shape=(-1, *(-1 for _ in dims)), dims=names)
    made = wire.TensorSpec(name="y", dtype="float32", shape=(-1, 4))
    return wire.ModelSpec(
        inputs=(given,), outputs=(made,), batch_max=batch_max, slo_ms=slo_ms, dims=dims, exact=exact
    )  # fmt: skip


def sized_profile(
    duration_s: Duration = encoder,
    dims: tuple[wire.Dim, ...] = SEQ,
    *,
    elements_max: float = math.inf,
    batches: Sequence[int] = BATCHES,
    edges: tuple[tuple[int, ...], ...] | None = None,
) -> wire.Profile:
    """What a device measures that has memory for so many elements of a batch."""
    cells = tuple(
        wire.SizeTimes(
            extents=extents,
            exec_s={b: duration_s(b, extents) for b in batches if b == 1 or b * math.prod(extents) <= elements_max},
        )
        for extents in itertools.product(*(edges or EDGES[dims]))
    )
    return wire.Profile(exec_s=cells[-1].exec_s, load_s=0.005, sizes=cells)


def open_prepared(ref: str, spec: wire.ModelSpec, profile: wire.Profile) -> wire.Prepared:
    """A worker's good news of one version with open dimensions."""
    return msgspec.structs.replace(prepared(ref, profile), spec=spec)


@dataclass
class OpenMesh:
    """A scheduler, and devices that execute what they get, one batch after the other."""

    spec: wire.ModelSpec
    profile: wire.Profile
    duration_s: Duration
    kind: str = "atc"
    any_batch: bool = True
    workers: int = 1
    noise: float = 0.0  # of durations, in log units
    batches: list[wire.Infer] = field(default_factory=list)  # as they were sent
    outcomes: dict[int, str] = field(default_factory=dict)  # {request: "ok", "late" or a code}

    def __post_init__(self) -> None:
        self.shard = Shard(kind=self.kind)
        self.scheduler = self.shard.scheduler
        self._rng = random.Random(1)
        self._free_s = {f"w{n}": 0.0 for n in range(self.workers)}
        self._ends: list[tuple[float, int, str, wire.ActionResult]] = []
        self._deadlines: dict[int, float] = {}
        self._order = itertools.count()
        self.shard.want(["m:1"])
        report = open_prepared("m:1", self.spec, self.profile)
        for worker in self._free_s:
            self.shard.join(hello(worker, report, any_batch=self.any_batch, resident=["m:1"]), now=0.0)

    def run(self, asked: Sequence[tuple[float, Extents, int, float]]) -> "OpenMesh":
        """Requests of (arrival, extents, rows, budget) come, and all end."""
        arrivals = list(asked)
        at = 0
        for _ in range(100_000):
            arrival_s = arrivals[at][0] if at < len(arrivals) else math.inf
            wake_s = self.scheduler.wake_at()
            now = min(arrival_s, self._ends[0][0] if self._ends else math.inf, math.inf if wake_s is None else wake_s)
            if at == len(arrivals) and len(self.outcomes) == len(arrivals):
                return self
            while at < len(arrivals) and arrivals[at][0] <= now:
                self._submit(at, *arrivals[at])
                at += 1
            while self._ends and self._ends[0][0] <= now:
                _, _, worker, result = heapq.heappop(self._ends)
                self._end(worker, result, now)
            self._take(self.scheduler.wake(now=now), now)
            self.scheduler.check()
        raise AssertionError("it does not end")

    def _submit(self, number: int, arrived_s: float, extents: Extents, rows: int, budget_s: float) -> None:
        self._deadlines[number] = arrived_s + budget_s
        message = wire.Submit(
            request=number, attempt=0, ref="m:1", rows=rows, budget_s=budget_s, weight=1.0, extents=extents
        )
        self._take(self.scheduler.submit(message, "f", age_s=0.0, now=arrived_s, hollow=True), arrived_s)

    def _take(self, orders: Sequence[Order], now: float) -> None:
        for order in orders:
            if isinstance(order, ToFrontend) and isinstance(order.message, wire.Refused):
                assert order.message.request not in self.outcomes, "a second answer"
                self.outcomes[order.message.request] = order.message.code
            elif isinstance(order, ToWorker) and isinstance(order.message, wire.Infer):
                self._execute(order.worker, order.message, now)

    def _execute(self, worker: str, infer: wire.Infer, now: float) -> None:
        self.batches.append(infer)
        assert infer.parts
        assert all(holds(infer.extents, part.extents) for part in infer.parts)
        assert sum(part.rows for part in infer.parts) <= infer.batch
        begin_s = max(now, self._free_s[worker])
        if begin_s > infer.latest_s:
            code, end_s, duration_s = ActionCode.LATE, begin_s, None
        else:
            noise = math.exp(self._rng.gauss(0.0, self.noise)) if self.noise else 1.0
            code, duration_s = ActionCode.OK, self.duration_s(infer.batch, infer.extents) * noise
            end_s = self._free_s[worker] = begin_s + duration_s
        result = wire.ActionResult(
            action=infer.action, kind="infer", code=code, received_s=now, free_pages=0, begin_s=begin_s,
            end_s=end_s, duration_s=duration_s,
        )  # fmt: skip
        heapq.heappush(self._ends, (end_s, next(self._order), worker, result))

    def _end(self, worker: str, result: wire.ActionResult, now: float) -> None:
        if result.code == ActionCode.OK:
            infer = next(batch for batch in reversed(self.batches) if batch.action == result.action)
            for part in infer.parts:
                assert part.request not in self.outcomes, "a second answer"
                self.outcomes[part.request] = "ok" if now <= self._deadlines[part.request] else "late"
        self._take(self.scheduler.result(worker, result, now=now), now)

    def in_time(self) -> float:
        """Share of the requests that were answered in time."""
        return sum(outcome == "ok" for outcome in self.outcomes.values()) / len(self.outcomes)
