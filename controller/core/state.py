"""What the scheduler knows and its policy decides on: devices, models, waiting requests. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from controller.core.estimation.estimates import Curve, LoadEstimate, Margin, Pace, Term
from controller.core.estimation.forecast import LaneForecast
from controller.core.queues import ModelQueue, Request
from controller.core.residency import Popularity, Residency, Resident
from mesh import wire

LOAD_RETRY_S = 0.01  # after a LOAD that failed, doubled with each
LOAD_RETRY_S_MAX = 1.0
NOISE = 0.05  # EXEC takes so much longer than estimated, now and then, before it is learned
DISPATCH_S = 0.3e-3  # sending an INFER until its EXEC starts on a free device, before it is learned; mesh_prototype


@dataclass(slots=True)
class Action:
    """One action that was sent to a device and has not ended."""

    id: int
    kind: str  # load | unload | infer
    ref: str
    sent_s: float
    expected_s: float  # duration
    expected_end_s: float
    overdue_s: float  # not ended by then: it is taken for lost
    batch: int = 0
    requests: list[Request] = field(default_factory=list)  # of an INFER; none: a measuring run
    earliest_s: float = 0.0  # its window, in our clock
    latest_s: float = 0.0
    place: Resident | None = None  # of an INFER: its model's place on the device, which may be gone by its end


@dataclass(slots=True)
class LoadFault:
    """LOADs of one model on one device have failed."""

    count: int = 0  # in a row
    final: int = 0  # of these, such as another will go as well
    retry_s: float = 0.0  # it is not tried before


@dataclass(slots=True, eq=False)
class Device:
    """One worker's device, as the controller sees it. Instants in the controller's clock."""

    worker: str  # member id
    info: wire.DeviceInfo
    residency: Residency
    exec: LaneForecast = field(default_factory=LaneForecast)
    load: LaneForecast = field(default_factory=LaneForecast)
    actions: dict[int, Action] = field(default_factory=dict)  # {id: action}, sent and not ended, oldest first
    curves: dict[str, Curve] = field(default_factory=dict)  # {ref: EXEC durations}, exactly the versions ready here
    loads: dict[str, LoadEstimate] = field(default_factory=dict)  # {ref: LOAD duration}, the same keys
    pages: dict[str, int] = field(default_factory=dict)  # {ref: pages it needs}, versions prepared here
    waiting: dict[str, None] = field(default_factory=dict)  # refs resident (or loading) here with requests that wait
    noise: Margin = field(default_factory=lambda: Margin(NOISE, limit_s=0.5, step_s=0.001))  # relative, of EXEC
    exec_term: Term = field(default_factory=Term)
    load_term: Term = field(default_factory=Term)
    pace: Pace = field(default_factory=Pace)
    dispatch: Margin = field(default_factory=lambda: Margin(DISPATCH_S))
    offset_s: float = 0.0  # its clock minus ours
    backlog_s: float = 0.0  # its share of the EXEC time of all that waits for models resident here
    busy_until_s: float = 0.0  # last time that a client's batch was planned here to end
    overdue_s: float = math.inf  # no action is overdue before
    load_faults: dict[str, LoadFault] = field(default_factory=dict)  # {ref: ...}, whose last LOAD here failed
    look_s: float = 0.0  # before, it is not looked whether it should have a model that nobody waits for without a host
    leaving: bool = False  # it said goodbye: gets nothing new
    room_for_more: bool = True  # a model that is nowhere may fit here; False: looked, and none does

    @property
    def infers(self) -> int:
        """INFERs sent and not ended."""
        return len(self.exec)

    @property
    def margin(self) -> float:
        """What EXEC may take over its estimate, as a share; 0 if idle: only what is let in then corrects estimates."""
        return self.noise.value_s if len(self.exec) else 0.0

    def load_failed(self, ref: str, now: float, *, final: bool) -> None:
        """A LOAD failed: the next one has to wait, longer with each failure. `final`: it will go as this one did."""
        fault = self.load_faults.setdefault(ref, LoadFault())
        fault.retry_s = now + min(LOAD_RETRY_S_MAX, LOAD_RETRY_S * 2.0**fault.count)
        fault.count += 1
        fault.final += final

    def may_load(self, ref: str, now: float) -> bool:
        """The version is ready here, is not here, and no failed LOAD bars it for now."""
        return ref in self.curves and ref not in self.residency.models and not self.load_barred(ref, now)

    def load_barred(self, ref: str, now: float) -> bool:
        """A LOAD failed so short a time ago that the next one is not due."""
        fault = self.load_faults.get(ref) if self.load_faults else None
        return fault is not None and now < fault.retry_s

    def ready_s(self, ref: str, now: float) -> float:
        """When the weights of `ref`, which is resident or loading here, are there, or are expected to be."""
        place = self.residency.models[ref]
        if place.loading is None or place.ready_s > now:
            return place.ready_s
        return self.load.end_of(place.loading, now)

    def start_s(self, ref: str, now: float) -> float:
        """When EXEC of a batch of `ref`, sent now, would start; it is resident or loading here."""
        start = max(self.exec.free_at(now), now + self.dispatch.value_s)
        return max(start, self.residency.models[ref].ready_s)


@dataclass(slots=True, eq=False)
class Model:
    """One version of a model that is served."""

    ref: str
    spec: wire.ModelSpec
    queue: ModelQueue = field(default_factory=ModelQueue)
    popularity: Popularity = field(default_factory=Popularity)
    ready: dict[str, Device] = field(default_factory=dict)  # {worker: device} that can serve it, resident or not
    hosts: dict[str, Device] = field(default_factory=dict)  # {worker: device} where it is resident or loading
    cost_s: float = 0.0  # EXEC time of all that waits; each host's backlog has an equal share of it


@dataclass(slots=True)
class State:
    """Everything. The scheduler changes it, through these methods; the policy only reads."""

    dispatch_s: float = DISPATCH_S  # what new devices' dispatch margins start from
    noise: float = NOISE  # and their noise
    devices: dict[str, Device] = field(default_factory=dict)  # {worker: device}
    models: dict[str, Model] = field(default_factory=dict)  # {ref: model}, ready on some device or with requests
    waiting: int = 0  # requests in all queues
    active: dict[str, Model] = field(default_factory=dict)  # {ref: model} with requests that wait
    homeless: dict[str, None] = field(default_factory=dict)  # those of them that have no host

    def push(self, model: Model, request: Request) -> None:
        """The request waits."""
        model.queue.push(request)
        self.waiting += 1
        self.recount(model)

    def take_first(self, model: Model, count: int) -> list[Request]:
        """The first requests of the queue wait no longer."""
        taken = model.queue.take(count)
        self.waiting -= len(taken)
        self.recount(model)
        return taken

    def take(self, model: Model, requests: Sequence[Request]) -> None:
        """These requests, which wait, wait no longer. Quick if they are the first of the queue."""
        queue = model.queue
        count = len(requests)
        if queue.requests[queue.head : queue.head + count] == requests:
            queue.take(count)
        else:
            for request in requests:
                queue.remove(request)
        self.waiting -= count
        self.recount(model)

    def remove(self, model: Model, request: Request) -> bool:
        """The request waits no longer. False if it did not."""
        removed = model.queue.remove(request)
        if removed:
            self.waiting -= 1
            self.recount(model)
        return removed

    def add_host(self, model: Model, device: Device) -> None:
        """The model is on its way to the device, or there."""
        self._share(model, -model.cost_s)
        model.hosts[device.worker] = device
        self._share(model, model.cost_s)
        self._mark(model)

    def drop_host(self, model: Model, device: Device) -> None:
        """The model is not on the device any more."""
        if device.worker in model.hosts:
            self._share(model, -model.cost_s)
            del model.hosts[device.worker]
            device.waiting.pop(model.ref, None)
            self._share(model, model.cost_s)
            self._mark(model)

    def recount(self, model: Model) -> None:
        """Backlogs follow a change of the model's queue."""
        cost_s = self.cost_s(model, model.queue.rows)
        self._share(model, cost_s - model.cost_s)
        model.cost_s = cost_s
        self._mark(model)

    def cost_s(self, model: Model, rows: int) -> float:
        """EXEC time of so many rows in the largest batches, on the first of its hosts (or devices that could be)."""
        if not rows:
            return 0.0
        device = next(iter(model.hosts.values()), None) or next(iter(model.ready.values()), None)
        if device is None:
            return 0.0
        return device.curves[model.ref].total_s(rows)

    def _share(self, model: Model, cost_s: float) -> None:
        if model.hosts and cost_s:
            share = cost_s / len(model.hosts)
            for device in model.hosts.values():
                device.backlog_s = max(0.0, device.backlog_s + share)

    def _mark(self, model: Model) -> None:
        if len(model.queue) and not model.hosts:
            self.homeless[model.ref] = None
        else:
            self.homeless.pop(model.ref, None)
        if len(model.queue):
            self.active[model.ref] = model
            for device in model.hosts.values():
                device.waiting[model.ref] = None
        else:
            self.active.pop(model.ref, None)
            for device in model.hosts.values():
                device.waiting.pop(model.ref, None)

    def check(self) -> None:
        """Every invariant holds."""
        assert self.waiting == sum(len(model.queue) for model in self.models.values())
        homeless = {ref for ref, model in self.models.items() if len(model.queue) and not model.hosts}
        assert self.homeless.keys() == homeless
        assert self.active.keys() == {ref for ref, model in self.models.items() if len(model.queue)}
        for model in self.models.values():
            model.queue.check()
            assert model.hosts.keys() <= model.ready.keys(), model.ref
            for worker, device in model.hosts.items():
                assert self.devices[worker] is device
                assert model.ref in device.residency.models
                assert (model.ref in device.waiting) == bool(len(model.queue))
        for device in self.devices.values():
            device.residency.check()
            assert device.curves.keys() == device.loads.keys()
            self._check_backlog(device, self.models.values())
            assert all(device.overdue_s <= action.overdue_s for action in device.actions.values())
            for ref, place in device.residency.models.items():
                assert place.bound == sum(action.place is place for action in device.actions.values()), ref

    def _check_backlog(self, device: Device, models: Iterable[Model]) -> None:
        total = sum(model.cost_s / len(model.hosts) for model in models if device.worker in model.hosts)
        assert abs(total - device.backlog_s) < 1e-6 + 0.01 * total, (device.worker, total, device.backlog_s)
