"""A reference for evictions: a policy that evicts the model whose next request is furthest in the future. Pure.

Everything else is the wrapped policy's own: order of work, admission, what is loaded and when. The difference between
its attainment and this run's is what better eviction could gain; it is not an upper bound on anything.

Source: Belady, "A study of replacement algorithms for a virtual-storage computer" (1966); docs/design/bounds.md.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from controller.core.devices.base import RemoteDevice
from controller.core.policies.base import Batch, Lead, LoadPlan, SchedulingPolicy, Verdict
from controller.core.queues import Request
from controller.core.state import Model, ShardState
from gearmesh.simulation.arrivals.loads import Trace


@dataclass(slots=True)
class Clairvoyant:
    """The policy `inner`, with its victims replaced."""

    inner: SchedulingPolicy
    state: ShardState
    asked_s: dict[str, list[float]]  # {ref: arrival times of its requests, sorted}
    lead: Lead  # of the inner policy

    @classmethod
    def of(cls, inner: SchedulingPolicy, state: ShardState, refs: Sequence[str], trace: Trace) -> "Clairvoyant":
        """Wraps `inner` for a trace. `refs`: of the trace's models."""
        order = np.argsort(trace.model, kind="stable")
        edges = np.searchsorted(trace.model[order], np.arange(len(refs) + 1))
        times = trace.time_s[order]
        asked = {ref: times[edges[i] : edges[i + 1]].tolist() for i, ref in enumerate(refs)}
        return cls(inner, state, asked, inner.lead)

    def choose_load(self, device: RemoteDevice, now: float) -> LoadPlan | None:
        """What the inner policy would load, in place of the models whose next requests are furthest away."""
        plan = self.inner.choose_load(device, now)
        if plan is None or not plan.evict:
            return plan
        pages = device.pages[plan.model.ref]
        victims = device.residency.victims(pages, self.state.active.__contains__, lambda ref: -self._next_s(ref, now))
        return plan if victims is None else LoadPlan(plan.model, tuple(victims))

    def _next_s(self, ref: str, now: float) -> float:
        times = self.asked_s[ref]
        position = bisect_right(times, now)
        return times[position] if position < len(times) else inf

    def admit(self, model: Model, request: Request, now: float) -> Verdict:
        """The inner policy's verdict."""
        return self.inner.admit(model, request, now)

    def expired(self, model: Model, now: float) -> int:
        """The inner policy's count of expired requests."""
        return self.inner.expired(model, now)

    def hopeless(self, model: Model, now: float) -> Sequence[Request]:
        """The inner policy's hopeless requests."""
        return self.inner.hopeless(model, now)

    def choose(self, device: RemoteDevice, now: float) -> Batch | None:
        """The inner policy's batch."""
        return self.inner.choose(device, now)

    def arrived(self, model: Model, request: Request, now: float) -> None:
        """Passed on to the inner policy."""
        self.inner.arrived(model, request, now)

    def bound(self, device: RemoteDevice, batch: Batch, now: float) -> None:
        """Passed on to the inner policy."""
        self.inner.bound(device, batch, now)

    def completed(self, device: RemoteDevice, model: Model, requests: Sequence[Request], now: float) -> None:
        """Passed on to the inner policy."""
        self.inner.completed(device, model, requests, now)

    def ended(self, request: Request, in_time: bool, now: float) -> None:
        """Passed on to the inner policy."""
        self.inner.ended(request, in_time, now)

    def withdrawn(self, request: Request, now: float) -> None:
        """Passed on to the inner policy."""
        self.inner.withdrawn(request, now)

    def wake_at(self, now: float) -> float | None:
        """The inner policy's instant."""
        return self.inner.wake_at(now)
