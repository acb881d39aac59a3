"""What ordinary servers do: requests in order of arrival, a fixed batch size, a fixed wait for it to fill. Pure.

Nobody is refused, and nothing is dropped but what a frontend cancels. A batch is padded to its longest request. It
stands for servers such as mosec, or Triton with a dynamic batcher, and is here for comparison.
"""

import math
from collections import deque
from dataclasses import dataclass

from controller.core.devices.base import RemoteDevice
from controller.core.policies.base import Batch, Lead, LoadPlan, SchedulingPolicy, Verdict
from controller.core.policies.by_extents import Together
from controller.core.queues import Request
from controller.core.state import Model, ShardState

FOREVER_S = 3600.0


@dataclass(frozen=True, slots=True)
class FifoParameters:
    """What can be set of the policy. Source of the values: docs/design/policy.md, "What servers do by default"."""

    batch_max: int = 16
    wait_ms: float = 2.0  # from the oldest request's arrival until a batch goes out that is not full
    depth: int = 2  # batches at a device


class Fifo(SchedulingPolicy):
    """First in, first out."""

    def __init__(self, state: ShardState, parameters: FifoParameters | None = None) -> None:
        self.state = state
        self.parameters = p = parameters or FifoParameters()
        self.lead = Lead(exec_s=FOREVER_S, depth=p.depth, loads=1)
        self._order: dict[str, deque[Request]] = {}  # {ref: requests in order of arrival}; taken ones leave it late

    def admit(self, model: Model, request: Request, now: float) -> Verdict:
        """Everybody is let in; the prediction is for the answer alone."""
        device = next(iter(model.hosts.values()), None) or next(iter(model.ready.values()))
        behind_s = device.exec.free_at(now) + device.backlog_s
        return Verdict(True, behind_s + device.curves[model.ref].exec_s(1, request.extents) - now)

    def expired(self, model: Model, now: float) -> int:
        """No request ever is."""
        return 0

    def choose(self, device: RemoteDevice, now: float) -> Batch | None:
        """The model whose oldest request came first, if its batch is full or has waited long enough."""
        best: Model | None = None
        oldest_s = math.inf
        for ref in device.waiting:
            model = self.state.models[ref]
            oldest = self._oldest(ref)
            arrived_s = oldest.arrived_s
            fits = oldest.rows <= device.curves[ref].joint_max(oldest.extents)
            if fits and arrived_s < oldest_s and self._due_s(model, arrived_s) <= now:
                best, oldest_s = model, arrived_s
        return self._batch(device, best, now) if best is not None else None

    def _oldest(self, ref: str) -> Request:
        """The waiting request that arrived first; there is one."""
        order = self._order[ref]
        while not order[0].waiting:
            order.popleft()
        return order[0]

    def _due_s(self, model: Model, arrived_s: float) -> float:
        """When the model's next batch goes out, if its oldest request arrived then."""
        full = model.queue.rows >= self._limit(model)
        return 0.0 if full else arrived_s + self.parameters.wait_ms / 1e3

    def _limit(self, model: Model) -> int:
        return min(self.parameters.batch_max, model.spec.batch_max)

    def _batch(self, device: RemoteDevice, model: Model, now: float) -> Batch:
        order = self._order[model.ref]
        batch = Together(model, device.curves[model.ref], self._limit(model))
        while order and (not order[0].waiting or order[0] in batch.requests or batch.add(order[0])):
            order.popleft()
        start_s = device.start_s(model.ref, now)
        latest_s = now + FOREVER_S
        return Batch(model, batch.requests, (), batch.rows, start_s, batch.exec_s(), latest_s, batch.extents)

    def choose_load(self, device: RemoteDevice, now: float) -> LoadPlan | None:
        """The unplaced model whose oldest request came first; idle models make room, the least recently used first."""
        unplaced = [
            (self._oldest(ref).arrived_s, ref)
            for ref in self.state.unplaced
            if ref in device.curves and ref not in device.residency.models
        ]
        for _, ref in sorted(unplaced):
            evict = device.residency.victims(
                device.pages[ref],
                self.state.is_asked,
                lambda resident: device.residency.models[resident].used_s,
            )
            if evict is not None:
                return LoadPlan(self.state.models[ref], tuple(evict))
        return None

    def arrived(self, model: Model, request: Request, now: float) -> None:
        """The request is the last in its model's order."""
        self._order.setdefault(model.ref, deque()).append(request)

    def wake_at(self, now: float) -> float | None:
        """When the next batch has waited long enough, and a device has room for it."""
        times = []
        for device in self.state.devices.values():
            if device.infers < self.lead.depth:
                times += [self._due_s(self.state.models[ref], self._oldest(ref).arrived_s) for ref in device.waiting]
        return min((time for time in times if time > now), default=None)
