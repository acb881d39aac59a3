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
from controller.core.policies.by_extents import Together, extents_of
from controller.core.queues import Group, Request
from controller.core.requests import OpenRequests
from controller.core.state import Model, ShardState
from mesh.sizes import holds

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
        sound += self._others(model, watch, batch, sound, now)
        if not sound:
            return None
        rows = sum(request.rows for request in sound)
        extents = extents_of(sound)
        expected_s = device.curves[model.ref].exec_s(rows, extents)
        return replace(batch, requests=sound, rows=rows, expected_s=expected_s, extents=extents)

    def _others(self, model: Model, watch: Watch, batch: Batch, sound: list[Request], now: float) -> list[Request]:
        """Waiting requests that fill the batch beside the sound ones, from its first deadline on.

        None is to be executed apart, and none makes the batch longer.
        """
        others: list[Request] = []
        queue, from_s = model.queue, batch.requests[0].deadline_s
        taken = {id(request) for request in sound}
        room = batch.rows - sum(request.rows for request in sound)
        for request in queue.requests[bisect_left(queue.deadlines, from_s, queue.head) :]:
            if room <= 0:
                break
            if id(request) in taken or request.rows > room or not self._may_join(model, batch, request):
                continue
            if self.isolation.place(watch, request, now) is None:
                others.append(request)
                room -= request.rows
        return others

    def _may_join(self, model: Model, batch: Batch, request: Request) -> bool:
        if model.spec.exact:
            return request.extents == batch.extents
        return holds(batch.extents, request.extents)

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
            alone_s = curve.alone_s(request.rows, request.extents)
            if reason is None and start_s + alone_s <= request.deadline_s:
                break
            self.state.take_apart(model, group, 1)
            orders.append(
                self.requests.untried(request, now) if reason is None else self.requests.reject(request, reason, now)
            )
        if not group.requests:
            return ()
        limit = None
        if group.owner is not None:
            suspect = self.isolation.watched[model.ref].suspects.get(group.owner)
            limit = suspect.limit if suspect is not None else 1
        batch = Together(model, curve, limit, exec_s_max=group.requests[0].deadline_s - start_s)
        for request in group.requests[: 1 if group.trial else None]:
            if not batch.add(request):
                break
        return self.state.take_apart(model, group, len(batch.requests))

    def _batch(self, device: RemoteDevice, model: Model, requests: Sequence[Request], now: float) -> Batch:
        rows = sum(request.rows for request in requests)
        extents = extents_of(requests)
        start_s, expected_s = device.start_s(model.ref, now), device.curves[model.ref].exec_s(rows, extents)
        latest_s = max(start_s, requests[len(requests) // 2].deadline_s - expected_s)
        return Batch(model, requests, (), rows, start_s, expected_s, latest_s, extents)

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
            for group in list(model.apart):
                while group.requests and self._latest_s(model, group.requests[0]) < now:
                    (request,) = self.state.take_apart(model, group, 1)
                    orders.append(self.requests.untried(request, now))
                if group.requests:
                    first_s = min(first_s, self._latest_s(model, group.requests[0]))
        self.state.apart_hopeless_s, self._look_s = first_s, now + LOOK_EVERY_S

    def _latest_s(self, model: Model, request: Request) -> float:
        """By when the request, which waits apart, has to start."""
        return request.deadline_s - self.state.alone_s(model, request)

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
