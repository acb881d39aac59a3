"""Short ways to say a request, a profile or a worker, and to read what a scheduler ordered."""

from collections.abc import Iterable, Mapping, Sequence

from controller.core.orders import Order, ToBroker, ToFrontend
from controller.core.policies.registry import make_policy
from controller.core.queues import Request
from controller.core.scheduler import Parameters, Scheduler
from controller.core.state import ShardState
from controller.core.versions.preparation import Terms
from mesh import wire
from mesh.codes import ActionCode, ActionKind

PAGE_BYTES = 1 << 20


def request(
    number: int = 1,
    *,
    deadline_s: float = 1.0,
    rows: int = 1,
    weight: float = 1.0,
    arrived_s: float = 0.0,
    ref: str = "m:1",
    frontend: str = "f",
    extents: tuple[int, ...] = (),
    tensors: Sequence[bytes] = (),
    kept: wire.Kept | None = None,
    host: str = "",
) -> Request:
    """A request as the scheduler makes it."""
    return Request(
        frontend, number, 0, ref, rows, arrived_s, deadline_s, weight, extents=extents,
        inline=tuple(map(memoryview, tensors)), kept=kept, host=host,
    )  # fmt: skip


def line(base_s: float, row_s: float, *, sizes: Sequence[int] = (1, 2, 4, 8), load_s: float = 0.005) -> wire.Profile:
    """A profile whose EXEC takes base_s + row_s x batch."""
    return wire.Profile(exec_s={size: base_s + row_s * size for size in sizes}, load_s=load_s)


TEN_MS = line(0.008, 0.002)  # EXEC of 1, 2, 4, 8 rows: 10, 12, 16, 24 ms; LOAD 5 ms


def spec(batch_max: int = 8) -> wire.ModelSpec:
    """One float in, one float out."""
    tensor = wire.TensorSpec(name="x", dtype="float32", shape=(-1, 1))
    return wire.ModelSpec(inputs=(tensor,), outputs=(tensor,), batch_max=batch_max, slo_ms=50.0)


def prepared(
    ref: str = "m:1",
    profile: wire.Profile | None = TEN_MS,
    *,
    pages: int = 2,
    batch_max: int = 8,
    measure: Sequence[tuple[int, int]] = (),
    content: str = "",
) -> wire.Prepared:
    """A worker's good news of one version; without a profile it is to be measured."""
    return wire.Prepared(
        ref=ref,
        ok=True,
        spec=spec(batch_max),
        pages=pages,
        weights_bytes=pages * PAGE_BYTES,
        profile=profile,
        measure=tuple((batch, runs, ()) for batch, runs in measure),
        content=content,
    )


def hello(
    member: str = "w1",
    *reports: wire.Prepared,
    pages: int = 8,
    free_pages: int | None = None,
    any_batch: bool = True,
    resident: Iterable[str] = (),
) -> wire.WorkerHello:
    """A worker's first words."""
    info = wire.DeviceInfo(name=f"test:{member}", kind="test", pages=pages, page_bytes=PAGE_BYTES, any_batch=any_batch)
    return wire.WorkerHello(
        member=member, host="h", device=info, free_pages=pages if free_pages is None else free_pages,
        resident=tuple(resident), prepared=reports,
    )  # fmt: skip


def told(orders: Iterable[Order]) -> list[str]:
    """One line for each order: who is told what."""
    return [_say(order) for order in orders]


def _say(order: Order) -> str:
    message = order.message
    if isinstance(order, ToBroker):
        assert isinstance(message, wire.PrepareReport)
        if message.ok and not message.ready:
            return f"broker: {message.ref} would be {message.content}"
        return f"broker: {message.ref} " + ("is ready" if message.ok else f"failed: {'; '.join(message.faults)}")
    if isinstance(order, ToFrontend):
        if isinstance(message, wire.Serving):
            changes = [*(f"+{ref}" for ref in message.added), *(f"-{ref}" for ref in message.removed)]
            return " ".join([f"{order.frontend}: serving", *(["reset"] if message.reset else []), *changes])
        assert isinstance(message, wire.Refused)
        return f"{order.frontend}: {message.request} {message.status} {message.code}"
    if isinstance(message, wire.Infer):
        parts = " ".join(f"{part.frontend}/{part.request}" for part in message.parts) or "measuring"
        return f"{order.worker}: infer #{message.action} {message.ref} x{message.batch} {parts}"
    if isinstance(message, wire.Revoke):
        return f"{order.worker}: revoke #{message.action}"
    if isinstance(message, wire.Load | wire.Unload):
        return f"{order.worker}: {type(message).__name__.lower()} #{message.action} {message.ref}"
    assert isinstance(message, wire.Prepare | wire.Forget)
    content = f" as {message.content}" if isinstance(message, wire.Prepare) and message.content else ""
    return f"{order.worker}: {type(message).__name__.lower()} {message.ref}{content}"


class Shard:
    """A scheduler with its workers and models; every event is followed by a check of all invariants."""

    def __init__(
        self,
        parameters: Parameters | None = None,
        *,
        lead_ms: float = 1.5,
        policy: Mapping[str, float] | None = None,
        started_s: float = 0.0,
        name: str = "",
        kind: str = "atc",
    ) -> None:
        self.state = ShardState()
        given = {"lead_ms": lead_ms, **(policy or {})} if kind == "atc" else policy
        self.scheduler = Scheduler(
            make_policy(kind, self.state, given), self.state, parameters, name=name, started_s=started_s
        )

    def serve(
        self,
        models: Mapping[str, wire.Profile],
        *,
        workers: Sequence[str] = ("w1",),
        resident: Iterable[str] | None = None,
        pages: int = 8,
        pages_each: int = 2,
        batch_max: int = 8,
        any_batch: bool = True,
        now: float = 0.0,
    ) -> "Shard":
        """These models are wanted, and ready on all of these workers; all of them resident if not said otherwise."""
        self.want(list(models))
        reports = [prepared(ref, profile, pages=pages_each, batch_max=batch_max) for ref, profile in models.items()]
        there = list(models) if resident is None else resident
        for worker in workers:
            self.join(hello(worker, *reports, pages=pages, any_batch=any_batch, resident=there), now=now)
        return self

    def submit(
        self,
        number: int,
        ref: str = "m:1",
        *,
        now: float,
        budget_s: float = 0.1,
        rows: int = 1,
        weight: float = 1.0,
        attempt: int = 0,
        age_s: float = 0.0,
        frontend: str = "f",
        tensors: Sequence[bytes] | None = None,
        kept: wire.Kept | None = None,
        client: int = 0,
        extents: tuple[int, ...] = (),
    ) -> list[str]:
        """A request arrives: with these inputs, or with those that its frontend keeps, or without any."""
        message = wire.Submit(
            request=number, attempt=attempt, ref=ref, rows=rows, budget_s=budget_s, weight=weight,
            inline=tuple(map(memoryview, tensors or ())), client=client, extents=extents, kept=kept,
        )  # fmt: skip
        hollow = tensors is None and kept is None
        return self.checked(self.scheduler.submit(message, frontend, age_s=age_s, now=now, hollow=hollow))

    def wake(self, now: float) -> list[str]:
        """The scheduler decides."""
        return self.checked(self.scheduler.wake(now=now))

    def orders(self, now: float) -> list[Order]:
        """The scheduler decides; the orders themselves."""
        orders = self.scheduler.wake(now=now)
        self.scheduler.check()
        return orders

    def result(
        self,
        action: int,
        kind: str = ActionKind.INFER,
        *,
        now: float,
        worker: str = "w1",
        code: str = ActionCode.OK,
        begin_s: float | None = None,
        end_s: float | None = None,
        duration_s: float | None = None,
        message: str = "",
        fetched_bytes: int = 0,
        fetch_s: float | None = None,
        missing: tuple[int, ...] = (),
        ended: tuple[int, ...] = (),
    ) -> list[str]:
        """A worker reports the end of an action; the orders that follow at once."""
        result = wire.ActionResult(
            action=action, kind=kind, code=code, received_s=now, free_pages=0, message=message,
            begin_s=begin_s, end_s=end_s, duration_s=duration_s, fetched_bytes=fetched_bytes, fetch_s=fetch_s,
            missing=missing, ended=ended,
        )  # fmt: skip
        return self.checked(self.scheduler.result(worker, result, now=now))

    def ran(
        self, action: int, *, begin_s: float, duration_s: float, now: float | None = None, worker: str = "w1"
    ) -> list[str]:
        """An INFER ended well."""
        end_s = begin_s + duration_s
        at = end_s if now is None else now
        return self.result(action, now=at, worker=worker, begin_s=begin_s, end_s=end_s, duration_s=duration_s)

    def loaded(self, action: int, *, now: float, duration_s: float = 0.005, worker: str = "w1") -> list[str]:
        """A LOAD ended well."""
        return self.result(
            action, ActionKind.LOAD, now=now, worker=worker, begin_s=now - duration_s, end_s=now, duration_s=duration_s
        )

    def join(self, words: wire.WorkerHello, *, now: float) -> list[str]:
        """A worker is there."""
        return self.checked(self.scheduler.worker_joined(words, now=now))

    def lose(self, worker: str, *, now: float) -> list[str]:
        """A worker is lost."""
        return self.checked(self.scheduler.worker_lost(worker, now=now))

    def leave(self, worker: str) -> list[str]:
        """A worker says goodbye."""
        return self.checked(self.scheduler.worker_leaving(worker))

    def want(
        self,
        refs: list[str],
        *,
        contained: Sequence[str] = (),
        terms: Mapping[str, Terms] | None = None,
        now: float = 0.0,
    ) -> list[str]:
        """The routing table names these versions; some are served by containers."""
        return self.checked(self.scheduler.want(refs, contained, terms, now=now))

    def report(self, report: wire.Prepared, worker: str = "w1", *, now: float = 100.0) -> list[str]:
        """A worker says how far a version is."""
        return self.checked(self.scheduler.prepared(worker, report, now=now))

    def cancel(self, number: int, frontend: str = "f", *, now: float = 100.0) -> None:
        """A frontend gives a request up."""
        self.scheduler.cancel(frontend, number, now=now)
        self.scheduler.check()

    def lose_frontend(self, frontend: str = "f", *, now: float = 100.0) -> None:
        """A frontend is lost."""
        self.scheduler.frontend_lost(frontend, now=now)
        self.scheduler.check()

    def checked(self, orders: list[Order]) -> list[str]:
        """What was ordered, in words; all invariants hold."""
        self.scheduler.check()
        return told(orders)


def one() -> Shard:
    """One worker with "m:1" in its memory: 10, 12, 16, 24 ms for 1, 2, 4, 8 rows."""
    return Shard().serve({"m:1": TEN_MS})


def wake_at(shard: Shard) -> float:
    """When the shard is to be woken, which it is."""
    at = shard.scheduler.wake_at()
    assert at is not None
    return at


def woken(shard: Shard, until: float) -> list[str]:
    """What is ordered if nothing happens but wakes, each when it was asked for."""
    orders = []
    for _ in range(10_000):
        at = shard.scheduler.wake_at()
        if at is None or at > until:
            return orders
        orders += shard.wake(at)
    raise AssertionError("it wakes without end")
