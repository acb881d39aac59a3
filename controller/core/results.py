"""What the end of an action changes: the device it ran on, the version it concerned, and its requests. Pure."""

from dataclasses import dataclass

from controller.core.actions import Actions
from controller.core.devices.action import Action
from controller.core.devices.base import RemoteDevice
from controller.core.failures import INFER_DIED, INFER_FINAL, INFER_NOT_THERE, LOADED, NOT_PREPARED
from controller.core.isolation.isolation import Isolation
from controller.core.orders import Order
from controller.core.policies.base import SchedulingPolicy
from controller.core.requests import OpenRequests
from controller.core.state import ShardState
from controller.core.telemetry.totals import Counters, Telemetry
from controller.core.versions.readiness import Readiness
from mesh import wire
from mesh.codes import ActionCode, ActionKind, AnswerStatus

OK, CONTAINER_DIED, DEVICE_LOST = ActionCode.OK, ActionCode.CONTAINER_DIED, ActionCode.DEVICE_LOST
NO_MEMORY, INPUTS_MISSING = ActionCode.NO_MEMORY, ActionCode.INPUTS_MISSING
MISSING_TEXT = "its inputs, which its frontend keeps, were not at the worker in time"
INFER, LOAD = ActionKind.INFER, ActionKind.LOAD


@dataclass(slots=True)
class Results:
    """Takes in the results of actions, and goes on without those that do not come."""

    state: ShardState
    policy: SchedulingPolicy
    actions: Actions
    readiness: Readiness
    requests: OpenRequests
    isolation: Isolation
    counters: Counters
    telemetry: Telemetry

    def take(self, worker: str, result: wire.ActionResult, now: float, *, behind: bool = False) -> list[Order]:
        """An action has ended, one way or another. `behind`: it waited behind another that hangs."""
        orders: list[Order] = []
        device = self.state.devices.get(worker)
        action = device.end(result) if device is not None else None
        if device is not None and result.free_pages != device.residency.free and device.misses_pages(result, now):
            orders.extend(self.actions.unload_unknown(device))
        if device is None or action is None:
            return orders
        in_time = self.counters.in_time
        if result.code != OK:
            self.counters.failed(result.code)
        if action.kind is INFER:
            ran = result.code in INFER_DIED and not behind and self._died(device, action, result.code, orders)
            self._inferred(device, action, result, orders, now, ran=ran)
        elif action.kind is LOAD:
            self._loaded(device, action, result, orders, now)
        in_time = self.counters.in_time - in_time
        self.telemetry.ended(device, action, result, in_time=in_time, waiting=self.state.waiting, now=now)
        return orders

    def lose_overdue(self, device: RemoteDevice, orders: list[Order], now: float) -> None:
        """Actions whose result is overdue are taken for lost."""
        executed = device.executed()
        for action in list(device.actions.values()):
            if now >= action.overdue_s:
                text = f"no result for {now - action.sent_s:.1f} s"
                lost = wire.ActionResult(
                    action=action.id, kind=action.kind, code=ActionCode.LOST, received_s=now, free_pages=0, message=text
                )
                behind = executed is not None and executed is not action
                orders.extend(self.take(device.worker, lost, now, behind=behind))
        device.found_overdue()

    def _died(self, device: RemoteDevice, action: Action, code: str, orders: list[Order]) -> bool:
        """Whether this action is the one during which a process died; others waited behind it."""
        if code == CONTAINER_DIED:
            return True  # what waited behind it has another code
        if code != DEVICE_LOST:
            return True
        before = device.executed()
        first = not device.died and (before is None or before.id > action.id)
        device.died = device.died or first
        self.readiness.leaving(device, orders)
        return first

    def _inferred(
        self,
        device: RemoteDevice,
        action: Action,
        result: wire.ActionResult,
        orders: list[Order],
        now: float,
        *,
        ran: bool,
    ) -> None:
        """`ran`: its process died while it executed this action, not one before it."""
        end_s = device.end_s(result, now)
        device.infer_ended(action, end_s)
        if (
            action.requests
            and (result.missing or result.ended or result.fetched_bytes or action.far_bytes)
            and not self._fetched(device, action, result, orders, now)
        ):
            return
        missing = result.code in INFER_NOT_THERE and device.residency.models.get(action.ref) is action.place
        if missing and result.code in NOT_PREPARED:  # it has not left and come again since the action was sent
            orders.extend(self.readiness.contradicted(device, action.ref, now))
        elif missing:
            self.state.not_resident(device, action.ref)
        if not action.requests:
            orders.extend(self.readiness.measured(device, action, result, now))
        elif result.code == OK and result.duration_s is not None:
            if not (result.missing or result.ended):  # otherwise it had fewer rows than were planned
                device.learn(action, result, result.duration_s, now)
            model = self.state.models.get(action.ref)
            if model is not None:
                self.policy.completed(device, model, action.requests, now)
                model.worked_s = now
            self.requests.served(action, device, result, end_s, now)
            if self.isolation.watched:
                self.isolation.served(device, action, now)
        elif result.code == NO_MEMORY and action.extents:
            self._did_not_fit(device, action, result, orders, now)
        elif result.code in INFER_FINAL:
            self.isolation.failed(device, action, result, orders, now)
        elif ran:
            device.blamed = True
            self.isolation.died(action, result.code, result.message, orders, now)
        else:
            self.requests.retry(action, result.code, result.message, orders, now)

    def _fetched(
        self, device: RemoteDevice, action: Action, result: wire.ActionResult, orders: list[Order], now: float
    ) -> bool:
        """Requests that the worker left out of the batch, as it had not their inputs, wait anew; others stay.

        False if none does. It is no request's fault. Of one that has ended, as its frontend says, word is on its way
        here, and that nobody waited for it any more is not the network's fault either.
        """
        device.learn_fetch(action, result)
        none_came = result.code == INPUTS_MISSING
        ended = set(result.ended)
        missing = set(range(len(action.requests))) - ended if none_came else set(result.missing)
        expected = [request for place, request in enumerate(action.requests) if place in missing and not request.closed]
        device.missed_fetch(action, expected, now)
        if result.code == OK:
            self.counters.left_out += len(expected)
        out = ended if none_came else missing | ended
        left_out = [request for place, request in enumerate(action.requests) if place in out]
        if not left_out:
            return True
        action.requests = [request for place, request in enumerate(action.requests) if place not in out]
        self.requests.retry_all(left_out, INPUTS_MISSING, MISSING_TEXT, orders, now)
        return bool(action.requests)

    def _did_not_fit(
        self, device: RemoteDevice, action: Action, result: wire.ActionResult, orders: list[Order], now: float
    ) -> None:
        """The batch was too large, which is no client's fault: its requests go in smaller ones, unless it was one."""
        device.did_not_fit(action)
        if len(action.requests) > 1:
            self.requests.retry(action, result.code, result.message, orders, now)
            return
        (request,) = action.requests
        if not request.closed:
            orders.append(self.requests.refuse(request, AnswerStatus.FAILED, result.code, result.message, now))

    def _loaded(
        self, device: RemoteDevice, action: Action, result: wire.ActionResult, orders: list[Order], now: float
    ) -> None:
        ref, end_s = action.ref, device.end_s(result, now)
        device.load_ended(action, end_s)
        place = device.residency.models.get(ref)
        if result.code in LOADED:
            device.loaded(action, end_s, result.duration_s)
            self.readiness.loaded(device, ref)
        elif place is None or place.loading != action.id:
            pass  # the version has been forgotten since, or is loaded anew
        elif result.code in NOT_PREPARED:
            orders.extend(self.readiness.contradicted(device, ref, now))
        else:
            if result.code == ActionCode.LOST:  # it may have been done all the same
                orders.append(self.actions.unload_lost(device, ref))
            if result.code == ActionCode.NO_PAGES:  # though we counted enough
                orders.extend(self.actions.unload_unknown(device))
            orders.extend(self.readiness.load_failed(device, ref, result, now))
            self.requests.unserved(ref, orders, now)
