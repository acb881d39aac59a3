"""When requests that wait apart are executed, and on which device. Pure.

Suspects wait in their model's queue like everybody. Only when a batch is bound are they taken out of it, and their
places filled from the queue. What waits apart goes before what else waits: it was chosen before, and its deadlines are
earlier. Of several groups the largest goes first, because that frees most requests; suspects come last, and of these
the one whose failures have cost least.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from controller.core.devices.base import RemoteDevice
from controller.core.isolation.isolation import Isolation
from controller.core.isolation.suspects import Watch
from controller.core.orders import Order
from controller.core.policies.base import Batch
from controller.core.queues import Group, Request
from controller.core.requests import OpenRequests
from controller.core.state import Model, ShardState

LOOK_EVERY_S = 0.0005  # between two looks for requests that have waited apart for too long


@dataclass(slots=True)
class ApartPlanning:
    """Takes requests out of batches, and makes batches of those that wait apart."""

    state: ShardState
    requests: OpenRequests
    isolation: Isolation
    _look_s: float = -math.inf  # no look for those before

    # -- out of the queue ---------------------------------------------------------------------------------------------

    def sort(self, device: RemoteDevice, batch: Batch, orders: list[Order], now: float) -> Batch | None:
        """The batch without those that are to be executed apart, who wait apart now; None if nobody is left."""
        model = batch.model
        watch = self.isolation.watched.get(model.ref)
        if watch is None:
            return batch
        groups = {id(request): self.isolation.place(watch, request, now) for request in batch.requests}
        apart = [request for request in batch.requests if groups[id(request)] is not None]
        if not apart:
            return batch
        self.state.take(model, apart)
        for request in apart:
            group = groups[id(request)]
            reason = self.isolation.refusal(request, now)
            if reason is not None:
                orders.append(self.requests.reject(request, reason, now))
            elif group is not None:
                self.state.set_apart(model, group, request)
        sound = [request for request in batch.requests if groups[id(request)] is None]
        room = batch.rows - sum(request.rows for request in sound)
        sound += self._others(model, watch, batch.requests[0].deadline_s, room, {id(request) for request in sound}, now)
        if not sound:
            return None
        rows = sum(request.rows for request in sound)
        return replace(batch, requests=sound, rows=rows, expected_s=device.curves[model.ref].exec_s(rows))

    def _others(
        self, model: Model, watch: Watch, from_s: float, room: int, taken: set[int], now: float
    ) -> list[Request]:
        """Waiting requests that fill the room, from this deadline on; none that is to be executed apart."""
        others: list[Request] = []
        queue = model.queue
        for request in queue.requests[bisect_left(queue.deadlines, from_s, queue.head) :]:
            if room <= 0:
                break
            if id(request) in taken or request.rows > room:
                continue
            if self.isolation.place(watch, request, now) is None:
                others.append(request)
                room -= request.rows
        return others

    # -- batches ------------------------------------------------------------------------------------------------------

    def holds(self, device: RemoteDevice) -> bool:
        """Whether the device has a request that may end its process: nothing is sent behind it."""
        for action in device.actions.values():
            group = action.requests[0].group if action.requests else None
            if group is not None and group.trial:
                return True
        return False

    def next_batch(self, device: RemoteDevice, orders: list[Order], now: float) -> Batch | None:
        """The device's next batch of requests that wait apart; None if there is none that may be executed now."""
        while True:
            found = self._first(device, now)
            if found is None:
                return None
            model, group = found
            requests = self._take(device, model, group, orders, now)
            if requests:
                return self._batch(device, model, requests, now)

    def _first(self, device: RemoteDevice, now: float) -> tuple[Model, Group] | None:
        best, best_key = None, (math.inf, 0.0, 0, 0.0)
        for ref in device.apart:
            model, watch = self.state.models[ref], self.isolation.watched.get(ref)
            if watch is None or device.residency.models[ref].loading is not None:
                continue
            if not watch.budget.allows(now, suspect=False):
                continue
            suspects_too = watch.budget.allows(now, suspect=True)
            for group in model.apart:
                if group.owner is not None and not suspects_too:
                    continue
                suspect = watch.suspects.get(group.owner) if group.owner is not None else None
                cost_s = suspect.failed_s if suspect is not None else 0.0
                first_s = group.requests[0].deadline_s
                key = (float(group.owner is not None), cost_s, -len(group.requests), first_s)
                if key < best_key:
                    best, best_key = (model, group), key
        return best

    def _take(
        self, device: RemoteDevice, model: Model, group: Group, orders: list[Order], now: float
    ) -> Sequence[Request]:
        """As many of the group as may be executed now, together. Those that cannot be in time any more are refused."""
        curve, start_s = device.curves[model.ref], device.start_s(model.ref, now)
        while group.requests:
            request = group.requests[0]
            reason = self.isolation.refusal(request, now)
            if reason is None and start_s + curve.exec_s(min(request.rows, curve.rows_max)) <= request.deadline_s:
                break
            self.state.take_apart(model, group, 1)
            orders.append(
                self.requests.untried(request, now) if reason is None else self.requests.reject(request, reason, now)
            )
        if not group.requests:
            return ()
        limit = curve.batch_max
        if group.owner is not None:
            suspect = self.isolation.watched[model.ref].suspects.get(group.owner)
            limit = min(limit, suspect.limit if suspect is not None else 1)
        count = rows = 0
        for request in group.requests[: 1 if group.trial else None]:
            rows += request.rows
            if count and (rows > limit or start_s + curve.exec_s(rows) > group.requests[0].deadline_s):
                break
            count += 1
        return self.state.take_apart(model, group, count)

    def _batch(self, device: RemoteDevice, model: Model, requests: Sequence[Request], now: float) -> Batch:
        rows = sum(request.rows for request in requests)
        start_s, expected_s = device.start_s(model.ref, now), device.curves[model.ref].exec_s(rows)
        latest_s = max(start_s, requests[len(requests) // 2].deadline_s - expected_s)
        return Batch(model, requests, (), rows, start_s, expected_s, latest_s)

    # -- time ---------------------------------------------------------------------------------------------------------

    def wake(self, orders: list[Order], now: float) -> None:
        """Nobody waits apart for a device that is gone, or for what has become too late."""
        if self.state.apart:
            self._return(orders, now)
            if now >= max(self._look_s, self.state.apart_hopeless_s):
                self._expire(orders, now)
        self.isolation.forget(now)

    def _return(self, orders: list[Order], now: float) -> None:
        """Where no device has the weights any more, those who wait apart wait in the queue, and are taken out anew."""
        for model in [model for model in self.state.apart.values() if not model.hosts]:
            for group in list(model.apart):
                for request in self.state.take_apart(model, group, len(group.requests)):
                    self.requests.wait(model, request, now)
            self.requests.unserved(model.ref, orders, now)

    def _expire(self, orders: list[Order], now: float) -> None:
        first_s = math.inf
        for model in list(self.state.apart.values()):
            alone_s = self.state.cost_s(model, 1)
            for group in list(model.apart):
                while group.requests and group.requests[0].deadline_s < now + alone_s:
                    (request,) = self.state.take_apart(model, group, 1)
                    orders.append(self.requests.untried(request, now))
                if group.requests:
                    first_s = min(first_s, group.requests[0].deadline_s - alone_s)
        self.state.apart_hopeless_s, self._look_s = first_s, now + LOOK_EVERY_S

    def wake_at(self, now: float) -> float:
        """When somebody will have waited apart for too long, or a budget allows again what it does not now.

        Call it if somebody waits apart.
        """
        times = [max(self._look_s, self.state.apart_hopeless_s)]
        for model in self.state.apart.values():
            watch = self.isolation.watched.get(model.ref)
            for suspect in {group.owner is not None for group in model.apart} if watch is not None else ():
                if watch is not None and not watch.budget.allows(now, suspect=suspect):
                    times.append(watch.budget.allows_at(suspect=suspect))
        return min(times)
