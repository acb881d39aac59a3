"""Which model a device loads into free pages, before anybody asks for it there. Pure.

Free pages are filled in proportion to demand, while no request has waited for a LOAD lately. Nobody makes room for such
a model. Where none may be loaded yet, the time at which one may be is waited for; where none fits, nothing is searched
until a version has become ready on the device or left its memory. Source: docs/design/policy.md, "Placement".
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

from controller.core.devices.base import RemoteDevice
from controller.core.policies.base import LoadPlan
from controller.core.state import Model, ShardState

KNOWN_ASKED = 16  # requests per host that show how much a model is asked, even before its LOADs are done
ASKED_MIN = 0.5  # decayed count of requests; models that are asked less come last for free pages
PREFETCH_AFTER = 1.0  # x its LOAD: nobody must have waited for a LOAD for so long before free pages are filled
PREFETCH_MAX = 16  # models listed for free pages, before popularity is looked at anew


@dataclass(slots=True)
class FreePages:
    """What is known of one device's free pages, and of LOADs for them."""

    device: RemoteDevice
    listed: deque[tuple[str, int]] = field(default_factory=deque)  # (ref, hosts) of models for them, best first
    waited_s: float = -math.inf  # the device's last LOAD that requests waited for
    nothing_fits: int = -1  # the device's `changes` when a search found nothing that fits


@dataclass(slots=True)
class Prefetch:
    """Chooses LOADs for the free pages of all devices."""

    state: ShardState
    _pressed_s: float = -math.inf  # the last LOAD, on any device, that could not have waited for another one
    _free: dict[str, FreePages] = field(default_factory=dict)  # {worker: its free pages}
    _put_off: dict[str, float] = field(default_factory=dict)  # {worker: when its next prefetch may be done}

    def waited(self, device: RemoteDevice, now: float, *, pressed: bool) -> None:
        """A LOAD that requests wait for is chosen for the device. `pressed`: it could not have waited for another."""
        self._free_of(device).waited_s = now
        if pressed:
            self._pressed_s = now

    def searched(self, device: RemoteDevice) -> None:
        """A LOAD is searched for the device: nobody need be woken for that any more."""
        self._put_off.pop(device.worker, None)

    def wake_at(self, now: float) -> float:
        """When the next prefetch that is put off may be done; infinity if none is put off.

        That is when its device is looked at for LOADs, and while one is under way there, its end makes that known.
        """
        next_s = math.inf
        for worker, put_off_s in self._put_off.items():
            device = self.state.devices.get(worker)
            if device is not None and not len(device.load):
                at_s = max(put_off_s, device.load_look_s)
                if now < at_s < next_s:
                    next_s = at_s
        return next_s

    def choose(self, device: RemoteDevice, now: float) -> LoadPlan | None:
        """The device's next LOAD for free pages, if a model fits."""
        residency = device.residency
        if len(device.load) or residency.free <= 0:
            return None
        known = self._free_of(device)
        if known.nothing_fits == device.changes:
            return None
        listed = known.listed
        for _ in range(2):  # what is left of the last list; then a new one
            while listed:
                ref, hosts = listed.popleft()
                model = self.state.models.get(ref)
                if model is None or len(model.hosts) > hosts or not device.may_load(ref, now):
                    continue
                if device.pages[ref] <= residency.free:
                    waited_s = max(self._pressed_s, known.waited_s)
                    at_s = waited_s + PREFETCH_AFTER * device.loads[ref].load_s()
                    if now >= at_s or all(self.state.models[other].hosts for other in device.curves):
                        return LoadPlan(model, ())
                    listed.appendleft((ref, hosts))
                    self._put_off[device.worker] = at_s
                    return None
            listed.extend(self._list(device, now))
        barred = [fault.retry_s for ref, fault in device.load_faults.items() if self._is_barred(device, ref, now)]
        if barred:
            self._put_off[device.worker] = min(barred)
        elif not any(pages <= residency.free and device.may_load(ref, now) for ref, pages in device.pages.items()):
            known.nothing_fits = device.changes
        return None  # what fits, but is not known well enough, or barred, may be loaded later

    def _is_barred(self, device: RemoteDevice, ref: str, now: float) -> bool:
        """Whether the model would fit, but its LOAD failed so recently that the next attempt is not due."""
        absent = ref in device.curves and ref not in device.residency.models
        return absent and device.load_barred(ref, now) and device.pages[ref] <= device.residency.free

    def _free_of(self, device: RemoteDevice) -> FreePages:
        """What is known of the device's free pages. Of devices that are gone, all is forgotten when a new one comes."""
        known = self._free.get(device.worker)
        if known is None or known.device is not device:
            devices = self.state.devices
            self._free = {worker: other for worker, other in self._free.items() if worker in devices}
            self._put_off = {worker: at_s for worker, at_s in self._put_off.items() if worker in devices}
            known = self._free[device.worker] = FreePages(device)
        return known

    def _list(self, device: RemoteDevice, now: float) -> list[tuple[str, int]]:
        """Models that are not here and fit, with how many hosts they have: those that are asked most per host first."""
        models, free = self.state.models, device.residency.free
        absent = [models[ref] for ref, pages in device.pages.items() if pages <= free and device.may_load(ref, now)]

        def order(model: Model) -> tuple[bool, float, int, str]:
            asked, hosts = model.popularity.value(now), len(model.hosts)
            return (asked < ASKED_MIN, -asked / (1 + hosts) ** 2, hosts, model.ref)

        known = [model for model in absent if not model.hosts or self._is_known(model, now)]
        return [(model.ref, len(model.hosts)) for model in heapq.nsmallest(PREFETCH_MAX, known, key=order)]

    def _is_known(self, model: Model, now: float) -> bool:
        """Whether it is known well enough how much the model is asked to say if it should have one more host."""
        if model.popularity.value(now) >= KNOWN_ASKED * len(model.hosts):
            return True
        return all(host.residency.models[model.ref].loading is None for host in model.hosts.values())
