"""A container: code of which nothing is known but what clients' own batches show. Pure.

It holds one version, always. A batch is not bound behind a replica that is busy while another one is idle, nor behind
one that seems stuck; a batch that is not started in half of the time it has comes back and goes to another replica. A
batch that is not full may wait for requests that are expected. An estimate that is too long does not stand for ever.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from controller.core.batching import BlackBoxCurve, make_black_box
from controller.core.devices.action import OVERDUE_FACTOR, Action
from controller.core.devices.base import RemoteDevice, Served
from controller.core.estimation.estimates import LoadEstimate
from controller.core.queues import Request
from controller.core.sized_batching import make_sized_black_box
from mesh import wire
from mesh.codes import ActionKind

INFER = ActionKind.INFER
NOISE = 0.3  # relative; a container's times scatter more than a device's, until it is learned how much
LOAD_S = 1e-6  # it loads nothing
SILENCE_S = 0.5  # after so long without a batch, while all are refused for their deadlines, an estimate is out of date
STUCK_S_MIN = 0.02  # a batch this long past its expected end, and ...
STUCK_FACTOR = 2.0  # ... this many times its expected duration, seems stuck
STUCK_LOOK_S = 0.001  # between two looks whether a replica that seemed stuck still does
HANGS_AFTER_S = 1.0  # a batch that runs so long past its last deadline, and 5 x its expected time, hangs
COLD_S = 30.0  # allowed on top to the first batch of a process, which may import, load and compile
LAST_WORD_S = 1.0  # allowed to the worker on top, to say that its code hangs


@dataclass(slots=True, eq=False)
class BlackBox(RemoteDevice):
    """One container of one version."""

    curve: BlackBoxCurve | None = None  # of the process that runs now; None: its version is not ready
    _stopped: BlackBoxCurve | None = None  # of the last process that stopped

    def may_hold(self, ref: str, *, contained: bool) -> bool:
        """It holds its own version and no other."""
        return ref == self.info.container

    def keeps_unwanted(self) -> bool:
        """It is asked for its version when that is wanted."""
        return True

    def found_resident(self, hello: wire.WorkerHello) -> Sequence[str]:
        """Nothing: its version is resident as soon as it is ready."""
        return ()

    def is_whole(self, report: wire.Prepared) -> bool:
        """It is never measured, but it has to say how its batches are sized."""
        return report.batching is not None

    def fault_of(self, report: wire.Prepared) -> str:
        """Nothing need be known of it."""
        return ""

    def add(self, report: wire.Prepared, spec: wire.ModelSpec, others: Iterable[RemoteDevice]) -> None:
        """The version starts from what this container, or another one of the same code, has shown before."""
        assert report.batching is not None
        ref = report.ref
        curve: BlackBoxCurve
        if spec.dims:
            curve = make_sized_black_box(report.batching, spec)
        else:
            curve = make_black_box(report.batching, spec.batch_max)
        replicas = (other.curve for other in others if isinstance(other, BlackBox))
        known = self._stopped or next((known for known in replicas if known is not None), None)
        if known is not None:
            curve.inherit(known)
        self.curve = self.curves[ref] = curve
        self.loads[ref] = LoadEstimate(LOAD_S, self.load_term)
        if ref not in self.residency.models:
            self.residency.place(ref, report.pages, 0.0)
        self.changed()

    def remove(self, ref: str) -> None:
        """The version is not ready here any more."""
        RemoteDevice.remove(self, ref)
        self.curve = None

    def failed(self, ref: str) -> bool:
        """Its code died, or was stopped, and is being started again: what it has shown is kept for then."""
        self._stopped = self.curve or self._stopped
        if not any(action.ref == ref for action in self.actions.values()):
            self.residency.gone(ref)
        return False

    def holds_back(self, models: Mapping[str, Served], now: float) -> bool:
        """Behind a batch that runs: if it seems stuck or a replica is idle. Else: while more requests are expected."""
        self.held_until_s = float("inf")
        curve, served = self.curve, models.get(self.info.container)
        if curve is None or served is None:
            return False
        if len(self.exec):
            return self._seems_stuck(now) or any(_is_idle(host) for host in served.hosts.values())
        return curve.wait_s > 0 and len(served.queue) > 0 and self._waits(curve, served, now)

    def _waits(self, curve: BlackBoxCurve, served: Served, now: float) -> bool:
        """Whether the batch should wait for more requests, which must leave time for two full batches."""
        queue, first = served.queue, served.queue.first()
        delay = served.batch_delay(curve.wait_s, now)
        full = curve.joint_max(first.extents)
        until_s = delay.until(queue.rows, full, first.arrived_s, now)
        if until_s is None or until_s + 2 * curve.exec_s(full, first.extents) > first.deadline_s:
            return False
        self.held_until_s = until_s
        return True

    def _seems_stuck(self, now: float) -> bool:
        """Whether its oldest batch has taken far longer than expected."""
        for action in self.actions.values():
            if action.kind is INFER:
                return now > action.expected_end_s + max(STUCK_S_MIN, STUCK_FACTOR * action.expected_s)
        return False

    def next_batch_at(self, at_s: float, now: float) -> float:
        """When the next batch is due, or in a moment: whether it seems stuck changes with time alone."""
        return max(at_s, now + STUCK_LOOK_S)

    def latest_s(self, start_s: float, latest_s: float, hosts: int) -> float:
        """While there is time for another replica to take the batch, if there is one."""
        return start_s + max(0.0, latest_s - start_s) / 2 if hosts > 1 else latest_s

    def doubt(self, request: Request, now: float) -> bool:
        """After a while of idleness all that was learned of durations is forgotten."""
        curve = self.curve
        if curve is None or len(self.exec) or now - curve.learned_s <= SILENCE_S:
            return False
        curve.learned_s = now
        curve.forget()
        return True

    def set_overdue(self, action: Action) -> None:
        """Some time past the last deadline: its code may do as it likes until then. The worker is the first to judge.

        Whether a batch is the first of its process the worker knows better, because results travel.
        """
        action.overdue_s = action.usual_overdue_s
        if action.requests:
            last_s = max(action.expected_end_s, *(request.deadline_s for request in action.requests))
            action.hangs_s = last_s + HANGS_AFTER_S + OVERDUE_FACTOR * action.expected_s
            action.cold_s = COLD_S
            cold = self.curve is not None and self.curve.cold
            action.overdue_s = action.hangs_s + (COLD_S if cold else 0.0) + LAST_WORD_S


def _is_idle(device: RemoteDevice) -> bool:
    return not len(device.exec) and not device.leaving
