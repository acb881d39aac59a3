"""What surrounds real controllers when they alone are measured: a broker, workers and a frontend that are emulated.

All of them are in this process and speak the mesh's own messages over ZeroMQ. The broker knows one routing table. A
worker computes nothing: an INFER begins when its device is free and its window is open, and its result leaves when the
profile says that it is over. The frontend submits what a schedule says, and keeps when each decision came back.
"""

import asyncio
import heapq
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gearmesh.operations.ports import free_ports
from mesh import wire
from mesh.codes import ActionCode, ActionKind, RequestOutcome
from mesh.net.links import Link
from mesh.net.ports import Port
from mesh.net.transport import Mail
from mesh.process.configuration import read_settings
from mesh.process.ids import host_id
from mesh.process.runtime import Runtime
from mesh.process.settings import without_settings
from mesh.process.timers import Alarm
from mesh.roles import PortKind
from scripts import ROOT

TO_BROKER: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.ToBroker])
TO_WORKER: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.FromControllerToWorker])
TO_FRONTEND: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.FromControllerToFrontend])
OK, LATE = ActionCode.OK, ActionCode.LATE
BATCH_MAX = 16
EXEC_S = {1: 50e-6, 2: 55e-6, 4: 65e-6, 8: 85e-6, 16: 125e-6}  # so quick that controllers are the limit
LOAD_S = 0.002
PAGE_BYTES = 1 << 24
WEIGHTS_PAGES = 1
HOSTS = 4  # devices that have a model's weights from the beginning; together with these, memory is full
SLO_S = 0.1
GRACE_S = 0.02  # so long after its budget a request is given up
OPEN, DECIDED, ENDED = 0, 1, 2  # states of a request
TICK_S = 0.001  # how often the schedule is looked at; what is due by then is submitted together
READY_S = 300.0
SPEC = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="float32", shape=(-1, 16)),),
    outputs=(wire.TensorSpec(name="y", dtype="float32", shape=(-1, 16)),),
    batch_max=BATCH_MAX, slo_ms=SLO_S * 1e3, batch_sizes=tuple(EXEC_S),
)  # fmt: skip
PROFILE = wire.Profile(exec_s=EXEC_S, load_s=LOAD_S, engine="emulated")
ROW = memoryview(np.arange(16, dtype=np.float32).tobytes())


def exec_s(batch: int) -> float:
    """How long a batch takes: the time of the least profiled size that holds it."""
    return next(seconds for size, seconds in EXEC_S.items() if size >= batch)


@dataclass(slots=True)
class Step:
    """What became of the requests of one schedule."""

    first: int = 0  # number of the first request
    sent_s: list[float] = field(default_factory=list)  # of each request, when it was submitted
    state: bytearray = field(default_factory=bytearray)  # of each request: OPEN, DECIDED or ENDED
    decided_s: list[float] = field(default_factory=list)  # seconds from then to the first INFER, or the refusal
    in_time: int = 0
    refused: int = 0
    late: int = 0
    batches: int = 0
    lag_s: float = 0.0  # how far the schedule was behind at most: then this process is the limit
    wall_s: float = 0.0
    _waited: int = 0  # requests before this one have ended

    def submit(self, now: float) -> int:
        """Another request is submitted. Returns its number."""
        self.sent_s.append(now)
        self.state.append(OPEN)
        return self.first + len(self.sent_s) - 1

    def decided(self, number: int, now: float) -> None:
        """An INFER or a refusal of the request has come; the first one counts."""
        at = number - self.first
        if at >= 0 and self.state[at] == OPEN:
            self.state[at] = DECIDED
            self.decided_s.append(now - self.sent_s[at])

    def ended(self, number: int, end_s: float | None) -> None:
        """The outputs of the request are there at that instant; None: it is refused."""
        at = number - self.first
        if at < 0 or self.state[at] == ENDED:
            return  # of an earlier step, or given up
        self.state[at] = ENDED
        if end_s is None:
            self.refused += 1
        elif end_s <= self.sent_s[at] + SLO_S:
            self.in_time += 1
        else:
            self.late += 1

    def overdue(self, now: float) -> list[int]:
        """Requests that nobody waits for any more: they are late. Each is returned once, and in order."""
        found, until_s = [], now - SLO_S - GRACE_S
        while self._waited < len(self.sent_s) and (
            self.state[self._waited] == ENDED or self.sent_s[self._waited] <= until_s
        ):
            if self.state[self._waited] != ENDED:
                self.state[self._waited] = ENDED
                self.late += 1
                found.append(self.first + self._waited)
            self._waited += 1
        return found

    @property
    def submitted(self) -> int:
        """Requests so far."""
        return len(self.sent_s)

    @property
    def open(self) -> int:
        """Requests of which nobody knows yet what became."""
        return self.submitted - self.in_time - self.refused - self.late

    @property
    def share(self) -> float:
        """Requests in time, of all."""
        return self.in_time / max(1, self.submitted)


class EmulatedWorker:
    """One device of a controller."""

    def __init__(self, rig: "Shard", number: int, refs: Sequence[str], resident: Sequence[str], pages: int) -> None:
        """`resident`: those of the models whose weights are here, in as many of the pages."""
        self.name = f"gpu_worker-{rig.number}e{number:04d}"
        self._rig = rig
        self._refs = refs
        self._free_s = 0.0  # when EXEC is free
        self._loading_s = 0.0  # when LOAD is
        self._loaded = set(resident)
        self._pages = pages
        self._free = pages - len(resident)
        self._link: Link[Any, Any] = Link(
            rig.mesh.runtime.transport, self.name, rig.controller, TO_WORKER, self._received, rig.mesh.lost
        ).call(rig.addresses)
        self.welcomed = False

    def hello(self) -> None:
        prepared = tuple(
            wire.Prepared(
                ref=ref, ok=True, spec=SPEC, pages=WEIGHTS_PAGES, weights_bytes=WEIGHTS_PAGES * PAGE_BYTES,
                profile=PROFILE,
            )
            for ref in self._refs
        )  # fmt: skip
        device = wire.DeviceInfo(
            name=f"emulated:{self.name}", kind="emulated", pages=self._pages, page_bytes=PAGE_BYTES, any_batch=True
        )
        hello = wire.WorkerHello(
            member=self.name, host=host_id(), device=device, free_pages=self._free, resident=tuple(self._loaded),
            prepared=prepared,
        )  # fmt: skip
        self._link.send(hello)

    def _received(self, mail: Mail[Any]) -> None:
        for message in mail.messages:
            if type(message) is wire.Infer:
                self._infer(message, mail.now)
            elif type(message) is wire.Load:
                self._load(message, mail.now)
            elif type(message) is wire.Unload:
                self._unload(message, mail.now)
            elif type(message) is wire.Welcome:
                if not self.welcomed:
                    self.welcomed = True
                    self._rig.next_worker()
            elif type(message) is wire.Introduce and self.welcomed:  # before that its turn is still to come
                self.hello()

    def _infer(self, message: wire.Infer, now: float) -> None:
        step, numbers = self._rig.mesh.step, [part.request for part in message.parts]
        step.batches += 1
        for number in numbers:
            step.decided(number, now)
        begin_s = max(now, self._free_s, message.earliest_s)
        if begin_s > message.latest_s:
            self._send_result(message.action, ActionKind.INFER, LATE, None, None, None, now)
            return
        duration_s = exec_s(message.batch)
        self._free_s = end_s = begin_s + duration_s
        self._rig.mesh.later(end_s, self, message.action, ActionKind.INFER, begin_s, duration_s, numbers, now)

    def _load(self, message: wire.Load, now: float) -> None:
        code = ActionCode.ALREADY_LOADED if message.ref in self._loaded else OK if self._free else ActionCode.NO_PAGES
        if code is not OK:
            self._send_result(message.action, ActionKind.LOAD, code, None, None, None, now)
            return
        begin_s = max(now, self._loading_s, message.earliest_s)
        self._loaded.add(message.ref)
        self._free -= WEIGHTS_PAGES
        self._rig.mesh.loads += 1
        self._loading_s = begin_s + LOAD_S
        self._rig.mesh.later(self._loading_s, self, message.action, ActionKind.LOAD, begin_s, LOAD_S, (), now)

    def _unload(self, message: wire.Unload, now: float) -> None:
        code = OK if message.ref in self._loaded else ActionCode.WEIGHTS_MISSING
        if code is OK:
            self._loaded.remove(message.ref)
            self._free += WEIGHTS_PAGES
        self._send_result(message.action, ActionKind.UNLOAD, code, now, now, 0.0, now)

    def ended(
        self,
        action: int,
        kind: ActionKind,
        begin_s: float,
        duration_s: float,
        numbers: Sequence[int],
        received_s: float,
    ) -> None:
        """An action is over, as the profile says."""
        step, end_s = self._rig.mesh.step, begin_s + duration_s
        for number in numbers:
            step.ended(number, end_s)
        self._send_result(action, kind, OK, begin_s, end_s, duration_s, received_s)

    def _send_result(
        self,
        action: int,
        kind: ActionKind,
        code: ActionCode,
        begin_s: float | None,
        end_s: float | None,
        duration_s: float | None,
        received_s: float,
    ) -> None:
        result = wire.ActionResult(
            action=action, kind=kind, code=code, received_s=received_s, free_pages=self._free, begin_s=begin_s,
            end_s=end_s, duration_s=duration_s, input_s=0.0, output_s=0.0,
        )  # fmt: skip
        self._link.send(result)


class Shard:
    """One real controller with its models and its emulated workers."""

    def __init__(self, mesh: "EmulatedMesh", number: int, models: int, devices: int) -> None:
        self.mesh = mesh
        self.number = number
        self.devices = devices
        self.refs = [f"m{number}x{i}:1" for i in range(models)]
        self.controller = ""  # its id, once it has registered
        self.addresses: tuple[str, ...] = ()
        self.serving: set[str] = set()
        self.workers: list[EmulatedWorker] = []
        self.link: Link[Any, Any] | None = None  # the frontend's

    def begin(self, member: wire.Member) -> None:
        """The controller has registered."""
        self.controller, self.addresses = member.id, member.endpoints["control"]
        transport = self.mesh.runtime.transport
        self.link = Link(transport, self.mesh.frontend, member.id, TO_FRONTEND, self._received, self.mesh.lost).call(
            self.addresses
        )
        self._hello()
        hosts = min(self.devices, HOSTS)
        resident: list[list[str]] = [[] for _ in range(self.devices)]
        for number, ref in enumerate(self.refs):
            for i in range(hosts):
                resident[(number * hosts + i) % self.devices].append(ref)
        pages = max(1, *map(len, resident)) * WEIGHTS_PAGES
        self.workers = [EmulatedWorker(self, i, self.refs, resident[i], pages) for i in range(self.devices)]
        self.next_worker()

    def next_worker(self) -> None:
        """The next worker introduces itself: a Hello names every model, and one after the other is taken in."""
        left = next((worker for worker in self.workers if not worker.welcomed), None)
        if left is not None:
            left.hello()

    @property
    def ready(self) -> bool:
        """Whether all its models would be served, by all its devices."""
        return (
            bool(self.workers)
            and len(self.serving) == len(self.refs)
            and all(worker.welcomed for worker in self.workers)
        )

    def _hello(self) -> None:
        assert self.link is not None
        hello = wire.FrontendHello(member=self.mesh.frontend, host=host_id(), results=("tcp://127.0.0.1:9",))
        self.link.send(hello)

    def _received(self, mail: Mail[Any]) -> None:
        step = self.mesh.step
        for message in mail.messages:
            if type(message) is wire.Refused:
                step.decided(message.request, mail.now)
                step.ended(message.request, None)
            elif type(message) is wire.Serving:
                self.serving = (set() if message.reset else self.serving) | set(message.added)
                self.serving -= set(message.removed)
            elif type(message) is wire.Introduce:
                self._hello()


class EmulatedMesh:
    """A broker, a frontend and workers around real controllers. Use `running`."""

    def __init__(self, runtime: Runtime, controllers: int, models: int, devices: int) -> None:
        """`models` and `devices`: of all controllers together."""
        self.runtime = runtime
        self.frontend = "frontend-0e"
        self.step = Step()
        self.shards = [
            Shard(self, number, max(1, models // controllers), max(1, devices // controllers))
            for number in range(controllers)
        ]
        self.loads = 0  # LOADs so far
        self.fault = ""  # why nothing that is measured would be true
        self._broker: Port[Any, Any] = Port(
            runtime.transport, "broker", TO_BROKER, self._registered, self._left, kind=PortKind.BROKER
        )
        self._ends: list[tuple[float, int, EmulatedWorker, tuple[Any, ...]]] = []  # heap of actions that run, by end
        self._count = 0
        self._alarm = Alarm(runtime.hub.loop, self._ring)

    def start(self) -> None:
        """The broker listens."""
        settings = self.runtime.settings
        self._broker.listen(settings.host, settings.broker_port, "GEARMESH_BROKER_PORT")

    def stop(self) -> None:
        """Nothing is sent any more."""
        self._alarm.close()
        self._broker.close()

    def lost(self, peer: str, why: str) -> None:
        """A link of ours was lost: the controller has ended, or does not keep up."""
        self.fault = self.fault or f"{peer} was lost: {why}"

    def later(self, end_s: float, worker: EmulatedWorker, *what: Any) -> None:
        """`worker.ended` is called at that instant."""
        self._count += 1
        heapq.heappush(self._ends, (end_s, self._count, worker, what))
        self._alarm.by(end_s)

    async def until_ready(self) -> None:
        """All models are served. Raises: RuntimeError."""
        until_s = time.monotonic() + READY_S
        while not all(shard.ready for shard in self.shards):
            if self.fault or time.monotonic() > until_s:
                raise RuntimeError(f"the controllers do not serve: {self.fault or 'it takes too long'}")
            await asyncio.sleep(0.02)

    async def play(self, per_s: float, seconds: float, rng: np.random.Generator) -> Step:
        """Requests arrive at this rate, as a Poisson process, each for a model drawn evenly.

        Returns once all have ended. Raises: RuntimeError, if a controller is lost.
        """
        arrivals = np.cumsum(rng.exponential(1.0 / per_s, int(per_s * seconds))).tolist()
        shards = rng.integers(0, len(self.shards), len(arrivals)).tolist()
        draws = rng.random(len(arrivals)).tolist()
        step = self.step = Step(first=self.step.first + self.step.submitted)
        loop, began_s = self.runtime.hub.loop, time.monotonic()
        done = loop.create_future()

        def tick() -> None:
            if self.fault:
                done.set_result(None)
                return
            now = time.monotonic()
            for number in step.overdue(now):
                link = self.shards[shards[number - step.first]].link
                assert link is not None
                link.send(wire.Cancel(request=number, outcome=RequestOutcome.TIMED_OUT))
            at = len(step.sent_s)
            while at < len(arrivals) and began_s + arrivals[at] <= now:
                shard = self.shards[shards[at]]
                ref = shard.refs[int(draws[at] * len(shard.refs))]
                assert shard.link is not None
                number = step.submit(now)
                shard.link.send(wire.Submit(request=number, attempt=0, ref=ref, rows=1, budget_s=SLO_S, inline=(ROW,)))
                step.lag_s = max(step.lag_s, now - began_s - arrivals[at])
                at += 1
            if at == len(arrivals) and not step.open:
                done.set_result(None)
            else:
                loop.call_later(TICK_S, tick)

        tick()
        await done
        step.wall_s = time.monotonic() - began_s
        if self.fault:
            raise RuntimeError(self.fault)
        return step

    def _ring(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            _, _, worker, what = heapq.heappop(self._ends)
            worker.ended(*what)
        self._alarm.by(self._ends[0][0] if self._ends else None)

    def _registered(self, mail: Mail[Any]) -> None:
        for message in mail.messages:
            if type(message) is not wire.Register or message.member.role != "controller":
                continue
            free = next((shard for shard in self.shards if not shard.controller), None)
            if free is not None and all(shard.controller != mail.peer for shard in self.shards):
                free.controller = mail.peer
                self._broker.send(mail.peer, self._table(free))
                free.begin(message.member)

    def _table(self, shard: Shard) -> wire.Table:
        """What this controller has to know: its models and its epoch."""
        models = tuple(
            wire.ModelEntry(
                name=ref.partition(":")[0], current="1", target=None, versions=("1",), owner=shard.controller, spec=SPEC
            )
            for ref in shard.refs
        )
        epoch = shard.number + 1
        return wire.Table(epoch=epoch, members=(), models=models, shards={shard.controller: epoch})

    def _left(self, peer: str, why: str) -> None:
        self.fault = self.fault or f"{peer} has left the broker: {why}"


@contextmanager
def controllers(count: int, folder: Path, settings: dict[str, str]) -> Iterator[list[int]]:
    """Process ids of so many controllers, which call the broker that `settings` name; they end with the block."""
    environment = {
        **without_settings(os.environ),
        "PYTHONPATH": str(ROOT), "GEARMESH_CONTROLLER_PORT": "0", "GEARMESH_DATA_DIR": str(folder), **settings,
    }  # fmt: skip
    log = (folder / "controllers.log").open("ab")
    made = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "controller"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
            env=environment,
        )
        for _ in range(count)
    ]  # fmt: skip
    try:
        yield [process.pid for process in made]
    finally:
        for process in made:
            process.terminate()
        for process in made:
            process.wait()
        log.close()


@contextmanager
def driver(folder: Path, controllers: int, models: int, devices: int) -> Iterator[EmulatedMesh]:
    """The emulated surroundings; their broker listens. On the running loop."""
    (port,) = free_ports(1)
    named = {"BROKER_PORT": str(port), "DATA_DIR": str(folder), "SILENCE_MS_MAX": "10000"}
    settings = read_settings(environment={f"GEARMESH_{name}": value for name, value in named.items()})
    runtime = Runtime(settings)
    made = EmulatedMesh(runtime, controllers, models, devices)
    made.start()
    try:
        yield made
    finally:
        made.stop()
        runtime.transport.close()
        runtime.hub.close()
