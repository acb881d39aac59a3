"""What the default policy looks at, and what it says to that."""

from collections.abc import Mapping, Sequence

from controller.core.devices.base import RemoteDevice
from controller.core.policies.atc import Atc
from controller.core.policies.base import LoadPlan, Verdict
from controller.core.queues import Request
from controller.core.state import Model
from mesh import wire
from tests.controller.core.controller_builders import Shard, line, request

SECONDS = line(0.5, 0.5, load_s=2.0)  # EXEC of b rows: 0.5 + 0.5 x b seconds; exact in binary
NOW = 100.0


class World:
    """One device (or more) with these models, no delay on the way there, and the policy that looks at it."""

    def __init__(
        self,
        profiles: Mapping[str, wire.Profile] | None = None,
        *,
        resident: Sequence[str] | None = None,
        workers: Sequence[str] = ("w1",),
        pages: int = 8,
        batch_max: int = 8,
        any_batch: bool = True,
    ) -> None:
        self.shard = Shard().serve(
            profiles or {"m:1": SECONDS},
            workers=workers, resident=resident, pages=pages, batch_max=batch_max, any_batch=any_batch, now=NOW,
        )  # fmt: skip
        self.state = self.shard.state
        self.policy = Atc(self.state)
        for device in self.state.devices.values():
            device.dispatch.value_s = 0.0
        self._count = 0

    @property
    def device(self) -> RemoteDevice:
        return self.state.devices["w1"]

    def model(self, ref: str = "m:1") -> Model:
        return self.state.models[ref]

    def waits(
        self, *deadlines_s: float, ref: str = "m:1", rows: int = 1, weight: float = 1.0, slo_s: float | None = None
    ) -> "World":
        """Requests with these deadlines wait; they arrived now, or so long before their deadline."""
        for deadline_s in deadlines_s:
            self._count += 1
            arrived_s = NOW if slo_s is None else deadline_s - slo_s
            self.state.push(
                self.model(ref),
                request(self._count, ref=ref, rows=rows, weight=weight, arrived_s=arrived_s, deadline_s=deadline_s),
            )
            self.state.check()
        return self

    def busy(self, for_s: float) -> "World":
        """The device runs something until so much later."""
        if for_s:
            self.device.exec.add(999, for_s, NOW, NOW)
        return self

    def choose(self, now: float = NOW) -> tuple[str, int, int] | None:
        """(model, requests, heads given up) of the device's next batch."""
        batch = self.policy.choose(self.device, now)
        return None if batch is None else (batch.model.ref, len(batch.requests), len(batch.given_up))

    def loses(self, lost: int, of: int, now: float = NOW) -> "World":
        """So many requests end, so many of them not in time."""
        for i in range(of):
            self.policy.ended(request(), i >= lost, now)
        return self

    def admit(self, budget_s: float, ref: str = "m:1", rows: int = 1, now: float = NOW, age_s: float = 0.0) -> Verdict:
        one = request(1000, ref=ref, rows=rows, arrived_s=now - age_s, deadline_s=now + budget_s - age_s)
        return self.policy.admit(self.model(ref), one, now)

    def load(self, worker: str = "w1", now: float = NOW) -> tuple[str, tuple[str, ...]] | None:
        """(model, evicted) of the device's next LOAD."""
        plan: LoadPlan | None = self.policy.choose_load(self.state.devices[worker], now)
        return None if plan is None else (plan.model.ref, plan.evict)

    def loads(self, ref: str, worker: str) -> None:
        """The LOAD is sent."""
        device = self.state.devices[worker]
        device.residency.loading(ref, device.pages[ref], 1, NOW + device.loads[ref].load_s(), NOW)
        self.state.add_host(self.model(ref), device)


def heads(model: Model) -> list[Request]:
    return model.queue.requests[model.queue.head :]
