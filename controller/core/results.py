"""What the end of an action changes: forecasts, estimates, residency, and how its requests go on. Pure."""

import math
from dataclasses import dataclass

from controller.core.fleet import Fleet
from controller.core.orders import Order
from controller.core.policies.base import Policy
from controller.core.requests import OpenRequests
from controller.core.state import Action, Device, State
from controller.core.telemetry.totals import Counters, Telemetry
from mesh import wire

FINAL = (
    "device_error",
    "model_error",
    "bad_input",
    "bad_batch",
    "rows_changed",
    "bad_outputs",
)  # codes of an INFER that would fail again
NOT_THERE = ("weights_missing", "unknown_model", "wrong_version")  # codes of an INFER whose model was not in place


@dataclass(slots=True)
class Results:
    """Takes in the results of actions, and does without those that do not come."""

    state: State
    policy: Policy
    fleet: Fleet
    requests: OpenRequests
    counters: Counters
    telemetry: Telemetry

    def take(self, worker: str, result: wire.ActionResult, now: float) -> list[Order]:
        """An action has ended, one way or another."""
        device = self.state.devices.get(worker)
        action = device.actions.get(result.action) if device is not None else None
        if device is None or action is None or action.kind != result.kind:
            return []  # of an earlier life of ours, or taken for lost
        del device.actions[action.id]
        orders: list[Order] = []
        in_time = self.counters.in_time
        if result.code != "ok":
            counts = self.counters.failed_actions
            counts[result.code] = counts.get(result.code, 0) + 1
        if action.kind == "infer":
            self._inferred(device, action, result, orders, now)
        elif action.kind == "load":
            self._loaded(device, action, result, orders, now)
        in_time = self.counters.in_time - in_time
        self.telemetry.ended(device, action, result, in_time=in_time, waiting=self.state.waiting, now=now)
        return orders

    def lose_overdue(self, device: Device, orders: list[Order], now: float) -> None:
        """Actions whose result is overdue are taken for lost."""
        for action in list(device.actions.values()):
            if now >= action.overdue_s:
                text = f"no result for {now - action.sent_s:.1f} s"
                lost = wire.ActionResult(
                    action=action.id, kind=action.kind, code="lost", received_s=now, free_pages=0, message=text
                )
                orders.extend(self.take(device.worker, lost, now))
        device.overdue_s = min((action.overdue_s for action in device.actions.values()), default=math.inf)

    def _inferred(
        self, device: Device, action: Action, result: wire.ActionResult, orders: list[Order], now: float
    ) -> None:
        end_s = now if result.end_s is None else min(now, result.end_s - device.offset_s)
        device.exec.ended(action.id, end_s)
        if action.place is not None:
            action.place.bound -= 1
        if result.code in NOT_THERE and device.residency.models.get(action.ref) is action.place:
            self.fleet.not_resident(device, action.ref)  # it has not left and come again since the action was sent
        duration_s = result.duration_s if result.code == "ok" else None
        if not action.requests:
            if result.code in FINAL:
                orders.extend(self.fleet.not_measurable(device, action.ref, result, now))
            else:
                self.fleet.preparations[device.worker].measured(action.ref, action.batch, duration_s, now)
            return
        if duration_s is None:
            self._infer_failed(action, result, orders, now)
            return
        _learn(device, action, result, duration_s, now)
        model = self.state.models.get(action.ref)
        if model is not None:
            self.policy.completed(device, model, action.requests, now)
        for request in action.requests:
            if not request.closed:
                self.requests.served(request, action, device, result, end_s, now)

    def _infer_failed(self, action: Action, result: wire.ActionResult, orders: list[Order], now: float) -> None:
        for request in action.requests:
            if request.closed:
                continue
            if result.code in FINAL:
                orders.append(self.requests.refuse(request, "failed", result.code, result.message, now))
            else:
                self.requests.again(request, result.code, result.message, orders, now)

    def _loaded(
        self, device: Device, action: Action, result: wire.ActionResult, orders: list[Order], now: float
    ) -> None:
        end_s = now if result.end_s is None else min(now, result.end_s - device.offset_s)
        device.load.ended(action.id, end_s)
        device.room_for_more = True
        place = device.residency.models.get(action.ref)
        if result.code in ("ok", "already_loaded"):
            device.load_faults.pop(action.ref, None)
            self.fleet.preparations[device.worker].loaded(action.ref)
            estimate = device.loads.get(action.ref)
            if device.residency.loaded(action.ref, action.id, end_s) and estimate and result.duration_s is not None:
                estimate.learn(result.duration_s)
        elif place is not None and place.loading == action.id:
            self.fleet.not_resident(device, action.ref)
            orders.extend(self.fleet.not_loadable(device, action.ref, result, now))
            self.requests.unserved(action.ref, orders, now)


def _learn(device: Device, action: Action, result: wire.ActionResult, duration_s: float, now: float) -> None:
    """How long EXEC took, and how long after sending it began where nothing but the way was planned to delay it."""
    curve = device.curves.get(action.ref)
    if curve is not None:
        device.pace.seen(result.clock_mhz)
        error = curve.learn(action.batch, duration_s)
        curve.learned_s = now
        device.noise.learn(max(0.0, error))
    if result.begin_s is not None:
        planned_s = action.expected_end_s - action.expected_s - action.sent_s
        if planned_s <= device.dispatch.value_s * 1.5:
            device.dispatch.learn(max(0.0, result.begin_s - device.offset_s - action.sent_s))
