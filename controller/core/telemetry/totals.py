"""What became of requests and actions: totals and rings that are always kept, and facts for whoever records. Pure.

Totals are plain numbers: they are added to as things end, and put together when somebody asks. Facts are made only
while `recording`; the shell takes them once per turn.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.core.devices.action import Action
from controller.core.devices.base import RemoteDevice
from controller.core.queues import Request
from controller.core.telemetry.models import LabelTotals, ModelTable, ModelTotals
from mesh import wire
from mesh.codes import ActionCode, ActionKind, RequestOutcome
from mesh.facts import ActionFact, AmendedFact, Fact, RequestFact, Spread
from mesh.histograms import PENDING_MAX

LOAD, OK, REVOKED, WORKER_LOST = ActionKind.LOAD, ActionCode.OK, ActionCode.REVOKED, ActionCode.WORKER_LOST
IN_TIME, LATE, TIMED_OUT = RequestOutcome.IN_TIME, RequestOutcome.LATE, RequestOutcome.TIMED_OUT
RING = 1024  # latest values that quantiles are taken of: p99 is the tenth largest


def _ring() -> deque[float]:
    return deque(maxlen=RING)


@dataclass(slots=True)
class Counters:
    """Totals since the start, for operators."""

    submitted: int = 0
    in_time: int = 0
    late: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # {code: count}
    batches: int = 0
    batched_rows: int = 0
    loads: int = 0
    unloads: int = 0
    failed_actions: dict[str, int] = field(default_factory=dict)  # {code: count}
    revoked: int = 0  # INFERs that were taken back before they began
    computed_for_nobody: int = 0  # requests that were executed after they had been given up
    rows_for_nobody: int = 0  # rows of these
    left_out: int = 0  # requests without which a batch ran, as their inputs had not come in time; each time counts

    def served(self, in_time: bool) -> None:
        """A request was answered."""
        if in_time:
            self.in_time += 1
        else:
            self.late += 1

    def for_nobody(self, rows: int) -> None:
        """A request of so many rows was executed that had been given up before."""
        self.computed_for_nobody += 1
        self.rows_for_nobody += rows

    def refuse(self, code: str) -> None:
        """A request was refused with this code."""
        self.refused[code] = self.refused.get(code, 0) + 1

    def failed(self, code: str) -> None:
        """An action ended with this code, which is not OK. One that was revoked has not failed."""
        if code == REVOKED:
            self.revoked += 1
            return
        self.failed_actions[code] = self.failed_actions.get(code, 0) + 1


@dataclass(slots=True)
class DeviceTotals:
    """One device's actions, since it joined."""

    exec_busy_s: float = 0.0
    load_busy_s: float = 0.0
    batches: int = 0
    loads: int = 0
    failed: int = 0


@dataclass(slots=True)
class Telemetry:
    """The record of one shard."""

    return_allowance_s: float = 0.0  # what the scheduler takes off every deadline for the way back
    recording: bool = False  # somebody takes the facts
    timed_out: int = 0  # given up by their frontends at their deadlines
    cancelled: int = 0  # abandoned for any other reason
    amendments: dict[str, int] = field(default_factory=dict)  # {outcome: requests counted otherwise that ended so}
    cold: int = 0
    elements: int = 0  # rows x extents of executed requests, of models with open dimensions
    elements_computed: int = 0  # the same of their batches: with all padding
    models: ModelTable = field(default_factory=ModelTable)
    devices: dict[str, DeviceTotals] = field(default_factory=dict)  # {worker: totals}, workers that ended an action
    exec_errors: deque[float] = field(default_factory=_ring)  # |actual - predicted| / actual, newest last; so below
    load_errors: deque[float] = field(default_factory=_ring)
    latency_errors: deque[float] = field(default_factory=_ring)
    latencies_s: deque[float] = field(default_factory=_ring)  # of answered requests
    _facts: list[Fact] = field(default_factory=list)  # not taken yet, oldest first; empty unless recording

    def take(self) -> list[Fact]:
        """The facts since the last call, oldest first."""
        facts = self._facts
        if facts:
            self._facts = []
        return facts

    # -- requests -----------------------------------------------------------------------------------------------------

    def served(
        self,
        request: Request,
        action: Action,
        device: RemoteDevice,
        result: wire.ActionResult,
        end_s: float,
        in_time: bool,
    ) -> None:
        """The request's outputs were made, and ended at `end_s`."""
        totals = self._model(request)
        label = totals.label
        if in_time:
            totals.in_time += 1
            label.in_time += 1
        else:
            totals.late += 1
            label.late += 1
        arrived_s = request.arrived_s
        latency_s = end_s - arrived_s
        self.latencies_s.append(latency_s)
        slack_s = request.deadline_s + self.return_allowance_s - end_s
        label.queue_s.pending.append(action.sent_s - arrived_s)  # `ended` sees to it that not too many are pending
        label.slack_s.pending.append(slack_s if slack_s > 0 else 0.0)
        if latency_s > 0:
            error = abs(latency_s - request.predicted_s) / latency_s
            self.latency_errors.append(error)
            label.latency_error.pending.append(error)
        outcome = IN_TIME if in_time else LATE
        if self.recording:
            self._note(request, outcome, "", end_s, action, device, result.duration_s)
        if request.answered is not None and request.answered is not outcome:
            self.amended(request.frontend, request.number, request.answered)

    def refused(self, request: Request, outcome: RequestOutcome, code: str, now: float) -> None:
        """The request was refused with this code. `outcome`: REJECTED or FAILED."""
        self._model(request).refuse()
        if self.recording:
            self._note(request, outcome, code, now)
        if request.answered is not None and request.answered is not outcome:
            self.amended(request.frontend, request.number, request.answered)

    def abandoned(self, request: Request, outcome: RequestOutcome, now: float) -> None:
        """Nobody waits for the request any more. `outcome`: what its client saw, or FRONTEND_LOST."""
        if outcome is TIMED_OUT:
            self.timed_out += 1
            self._model(request).gave_up()
        else:
            self.cancelled += 1
        if self.recording:
            self._note(request, outcome, "", now)
        if request.answered is not None and request.answered is not outcome:
            self.amended(request.frontend, request.number, request.answered)

    def amended(self, frontend: str, number: int, outcome: RequestOutcome) -> None:
        """A request that has ended here ended otherwise for its client: whoever records is told.

        The counts of how requests ended stay, as counts never go back; how many are amended is counted beside them.
        """
        self.amendments[outcome] = self.amendments.get(outcome, 0) + 1
        if self.recording:
            self._facts.append(AmendedFact(frontend=frontend, request=number, outcome=outcome))

    def _model(self, request: Request) -> ModelTotals:
        totals = self.models.totals.get(request.ref) or self.models.of(request.ref)
        if request.cold:
            totals.found_cold()
            self.cold += 1
        return totals

    def _note(
        self,
        request: Request,
        outcome: RequestOutcome,
        code: str,
        end_s: float,
        action: Action | None = None,
        device: RemoteDevice | None = None,
        exec_s: float | None = None,
    ) -> None:
        arrived_s = request.arrived_s
        self._facts.append(
            RequestFact(
                frontend=request.frontend,
                request=request.number,
                ref=request.ref,
                rows=request.rows,
                weight=request.weight,
                arrived_s=arrived_s,
                slo_s=request.deadline_s - arrived_s + self.return_allowance_s,
                outcome=outcome,
                code=code,
                latency_s=end_s - arrived_s,
                predicted_s=request.predicted_s or None,
                queued_s=action.sent_s - arrived_s if action is not None else None,
                exec_s=exec_s,
                batch=action.batch if action is not None else 0,
                device=device.info.name if device is not None else "",
                worker=device.worker if device is not None else "",
                action=action.id if action is not None else 0,
                cold=request.cold,
                tries=request.tries,
                asked_id=request.asked_id,
                call=request.call,
                client=request.client,
                extents=request.extents,
            )
        )

    # -- actions ------------------------------------------------------------------------------------------------------

    def ended(
        self, device: RemoteDevice, action: Action, result: wire.ActionResult, *, in_time: int, waiting: int, now: float
    ) -> None:
        """An action ended. `in_time`: how many of its requests were answered in time; `waiting`: requests in queues."""
        totals = self.devices.get(device.worker)
        if totals is None:
            totals = self.devices[device.worker] = DeviceTotals()
        duration_s = result.duration_s
        if result.code != OK:
            totals.failed += result.code != REVOKED
        elif duration_s is not None:
            error = abs(duration_s - action.expected_s) / duration_s if duration_s > 0 else 0.0
            label = self.models.of(action.ref).label
            if action.kind is LOAD:
                totals.loads += 1
                totals.load_busy_s += duration_s
                self.load_errors.append(error)
                label.load_error.add(error)
            else:
                totals.batches += 1
                totals.exec_busy_s += duration_s
                if action.requests:
                    self.exec_errors.append(error)
                    label.exec_s.add(duration_s)
                    label.exec_error.add(error)
                    if action.extents:
                        self._count_elements(label, action)
                    if len(label.queue_s.pending) >= PENDING_MAX:
                        label.settle()
        if self.recording:
            self._facts.append(_action_fact(device, action, result, in_time, waiting, now))

    def _count_elements(self, label: LabelTotals, action: Action) -> None:
        asked = sum(request.rows * math.prod(request.extents) for request in action.requests)
        computed = action.batch * math.prod(action.extents)
        self.elements += asked
        self.elements_computed += computed
        label.elements += asked
        label.elements_computed += computed

    def lost(self, device: RemoteDevice, actions: Iterable[Action], *, waiting: int, now: float) -> None:
        """A worker is gone, with these actions."""
        for action in actions:
            result = wire.ActionResult(
                action=action.id, kind=action.kind, code=WORKER_LOST, received_s=now + device.offset_s, free_pages=0
            )
            self.ended(device, action, result, in_time=0, waiting=waiting, now=now)
        self.devices.pop(device.worker, None)


def _action_fact(
    device: RemoteDevice, action: Action, result: wire.ActionResult, in_time: int, waiting: int, now: float
) -> ActionFact:
    offset_s = device.offset_s
    return ActionFact(
        action=action.id,
        type=action.kind,
        code=result.code,
        ref=action.ref,
        worker=device.worker,
        device=device.info.name,
        batch=action.batch,
        requests=len(action.requests),
        in_time=in_time,
        sent_s=action.sent_s,
        earliest_s=action.earliest_s,
        latest_s=action.latest_s,
        expected_begin_s=action.expected_end_s - action.expected_s,
        expected_end_s=action.expected_end_s,
        expected_s=action.expected_s,
        received_s=result.received_s - offset_s,
        begin_s=None if result.begin_s is None else result.begin_s - offset_s,
        end_s=None if result.end_s is None else result.end_s - offset_s,
        duration_s=result.duration_s,
        error_s=None if result.duration_s is None else result.duration_s - action.expected_s,
        input_s=result.input_s,
        output_s=result.output_s,
        result_s=now,
        gathered=result.gathered,
        clock_mhz=result.clock_mhz,
        waiting=waiting,
        free_pages=result.free_pages,
        rows=sum(request.rows for request in action.requests),
        extents=action.extents,
        fetched_bytes=result.fetched_bytes,
        fetch_s=result.fetch_s,
        missing=len(result.missing),
    )


def spread(values: Iterable[float]) -> Spread:
    """Median and 99th percentile, nearest rank."""
    ordered = sorted(values)
    count = len(ordered)
    if not count:
        return Spread(count=0)
    return Spread(count=count, p50=ordered[(count - 1) // 2], p99=ordered[min(count - 1, -(-99 * count // 100) - 1)])
