"""What planning for black-box containers needs beyond what it needs for devices. Pure.

* A batch is not bound behind a replica that is busy while another is idle, nor behind one that seems stuck; and if it
  is not started in half of the time that it has, it comes back and goes elsewhere.
* A batch that is not full may wait for requests that are expected (delayed batching), where the operator wants that.
* Estimates that are too long must not stand for ever.
"""

import math
from dataclasses import dataclass, field

from controller.core.batching import BlackBoxCurve
from controller.core.policies.base import Batch
from controller.core.state import Device, Model, State

SILENCE_S = 0.5  # without a batch, and with all refused for their deadlines: the estimate may be out of date
STUCK_S_MIN = 0.02  # a batch this long past its expected end, and ...
STUCK_FACTOR = 2.0  # ... this many times its expected duration: nothing is bound behind it
OPEN_DECAY_S = 0.25  # time constant of what is remembered of arrivals, in time with requests open
PEAK_DECAY_S = 1.0  # and of how many were open at once


@dataclass(slots=True)
class Gathering:
    """One model's requests: are others coming while some wait? Learned from arrivals while others were open.

    A client that asks, waits for its answer and asks again is never followed by anybody: it waits for nobody.
    """

    wait_s: float
    open: int = 0  # admitted and not ended
    _peak: float = 0.0  # most that were open at once, decayed
    _waits: bool = False  # a batch is being held back
    _others: float = 0.0  # arrivals while others were open, decayed
    _exposed_s: float = 0.0  # time with requests open, decayed likewise
    _at_s: float = 0.0

    def arrived(self, now: float) -> None:
        """A request waits."""
        self._pass(now)
        if self.open:
            self._others += 1
        self.open += 1
        self._peak = max(self._peak, self.open)

    def ended(self, now: float) -> None:
        """A request has ended."""
        self._pass(now)
        self.open = max(0, self.open - 1)

    def until(self, rows: int, limit: int, first_arrived_s: float, now: float) -> float | None:
        """Until when a batch of so many rows had better wait; None: not at all."""
        self._pass(now)
        ends_s = first_arrived_s + self.wait_s
        waited, self._waits = self._waits, False
        if waited and ends_s <= now:
            self._peak = float(self.open)  # whoever did not come in all that time is not expected any more
        if rows >= limit or ends_s <= now or self.open >= self._peak - 0.5 or self._exposed_s <= 0:
            return None
        self._waits = self._others / self._exposed_s * self.wait_s >= 1.0  # so many are expected
        return ends_s if self._waits else None

    def _pass(self, now: float) -> None:
        passed_s = max(0.0, now - self._at_s)
        self._at_s = now
        self._peak = max(float(self.open), self._peak * math.exp(-passed_s / PEAK_DECAY_S))
        if self.open:
            kept = math.exp(-passed_s / OPEN_DECAY_S)
            self._others *= kept
            self._exposed_s = self._exposed_s * kept + passed_s


@dataclass(slots=True)
class Containers:
    """All containers of the shard."""

    state: State
    _gatherings: dict[str, Gathering] = field(default_factory=dict)  # {ref: what is known of its arrivals}
    _wake_s: float = math.inf  # when the first batch has waited long enough

    def arrived(self, ref: str, now: float) -> None:
        """A request waits."""
        gathering = self._gatherings.get(ref)
        if gathering is not None:
            gathering.arrived(now)

    def ended(self, ref: str, now: float) -> None:
        """A request that once waited has ended."""
        gathering = self._gatherings.get(ref)
        if gathering is not None:
            gathering.ended(now)

    def holds_back(self, device: Device, now: float) -> bool:
        """Whether the container had better not be given its next batch now."""
        ref = device.info.container
        model, curve = self.state.models.get(ref), device.curves.get(ref)
        if model is None or not isinstance(curve, BlackBoxCurve):
            return False
        if len(device.exec):
            return _stuck(device, now) or any(_idle(host) for host in model.hosts.values())
        return curve.wait_s > 0 and len(model.queue) > 0 and self._waits(model, curve, now)

    def latest_s(self, device: Device, batch: Batch) -> float:
        """Until when the batch may start: while there is time for another replica to take it, if there is one."""
        if device.info.container and len(batch.model.hosts) > 1:
            return batch.start_s + max(0.0, batch.latest_s - batch.start_s) / 2
        return batch.latest_s

    def wake_at(self) -> float | None:
        """When a batch has waited long enough, or a device may be seen to be stuck no more."""
        wake_s, self._wake_s = self._wake_s, math.inf
        return wake_s if wake_s < math.inf else None

    def doubt(self, model: Model, now: float) -> bool:
        """Whether the request that was just refused may be let in after all: idle replicas' estimates were out of date.

        An estimate that is too long would otherwise stand for ever, since nobody is let in to show that it is.
        """
        found = False
        for device in model.ready.values():
            curve = device.curves[model.ref]
            if isinstance(curve, BlackBoxCurve) and not len(device.exec) and now - curve.learned_s > SILENCE_S:
                curve.learned_s = now
                curve.forget()
                found = True
        return found

    def _waits(self, model: Model, curve: BlackBoxCurve, now: float) -> bool:
        gathering = self._gatherings.get(model.ref)
        if gathering is None or gathering.wait_s != curve.wait_s:
            gathering = self._gatherings[model.ref] = Gathering(curve.wait_s, len(model.queue), _at_s=now)
        first = model.queue.first()
        until_s = gathering.until(model.queue.rows, curve.batch_max, first.arrived_s, now)
        if until_s is None or until_s + 2 * curve.exec_s(curve.batch_max) > first.deadline_s:
            return False
        self._wake_s = min(self._wake_s, until_s)
        return True


def _idle(device: Device) -> bool:
    return not len(device.exec) and not device.leaving


def _stuck(device: Device, now: float) -> bool:
    """Its oldest batch has taken far longer than expected."""
    for action in device.actions.values():
        if action.kind == "infer":
            return now > action.expected_end_s + max(STUCK_S_MIN, STUCK_FACTOR * action.expected_s)
    return False
