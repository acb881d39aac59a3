"""A clairvoyant to hold evictions against: a policy whose victims are those that are asked for last from now on. Pure.

All else is the policy's own: order of work, admission, what is loaded and when. How far its attainment is below that of
this run is what eviction could still gain; it is no upper bound on anything.

Source: Belady, "A study of replacement algorithms for a virtual-storage computer" (1966); gpu_and_literature 2.5.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from controller.core.devices.base import Device
from controller.core.policies.base import Batch, Lead, LoadPlan, Policy, Verdict
from controller.core.queues import Request
from controller.core.state import Model, State
from gearmesh.simulation.arrivals.loads import Trace


@dataclass(slots=True)
class Clairvoyant:
    """The policy `inner`, with other victims."""

    inner: Policy
    state: State
    asked_s: dict[str, list[float]]  # {ref: when its requests arrive, sorted}
    lead: Lead  # the policy's

    @classmethod
    def of(cls, inner: Policy, state: State, refs: Sequence[str], trace: Trace) -> "Clairvoyant":
        """`refs`: of the trace's models."""
        order = np.argsort(trace.model, kind="stable")
        edges = np.searchsorted(trace.model[order], np.arange(len(refs) + 1))
        times = trace.time_s[order]
        asked = {ref: times[edges[i] : edges[i + 1]].tolist() for i, ref in enumerate(refs)}
        return cls(inner, state, asked, inner.lead)

    def choose_load(self, device: Device, now: float) -> LoadPlan | None:
        """What the policy would load, in place of what will not be asked for soon."""
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
        """The policy's."""
        return self.inner.admit(model, request, now)

    def expired(self, model: Model, now: float) -> int:
        """The policy's."""
        return self.inner.expired(model, now)

    def choose(self, device: Device, now: float) -> Batch | None:
        """The policy's."""
        return self.inner.choose(device, now)

    def arrived(self, model: Model, request: Request, now: float) -> None:
        """Told to the policy."""
        self.inner.arrived(model, request, now)

    def bound(self, device: Device, batch: Batch, now: float) -> None:
        """Told to the policy."""
        self.inner.bound(device, batch, now)

    def completed(self, device: Device, model: Model, requests: Sequence[Request], now: float) -> None:
        """Told to the policy."""
        self.inner.completed(device, model, requests, now)

    def ended(self, request: Request, in_time: bool, now: float) -> None:
        """Told to the policy."""
        self.inner.ended(request, in_time, now)

    def wake_at(self, now: float) -> float | None:
        """The policy's."""
        return self.inner.wake_at(now)
