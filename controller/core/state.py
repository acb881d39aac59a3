"""What the scheduler knows and its policy decides on: devices, versions of models, waiting requests. Pure."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from controller.core.devices.base import DISPATCH_S, NOISE, RemoteDevice
from controller.core.devices.batch_delay import BatchDelay, new_delay
from controller.core.queues import Group, ModelQueue, Request, rank_of
from controller.core.residency import Popularity
from mesh import wire
from mesh.sizes import Extents
from mesh.tensors import VARIABLE, byte_count


@dataclass(slots=True, eq=False)
class Model:
    """One version of a model that is served."""

    ref: str
    spec: wire.ModelSpec
    queue: ModelQueue = field(default_factory=ModelQueue)
    popularity: Popularity = field(default_factory=Popularity)
    ready: dict[str, RemoteDevice] = field(default_factory=dict)  # {worker: device} that can serve it, resident or not
    hosts: dict[str, RemoteDevice] = field(default_factory=dict)  # {worker: device} where it is resident or loading
    cost_s: float = 0.0  # EXEC time of all that waits; each host's backlog has an equal share of it
    delay: BatchDelay | None = None  # how long its batches wait for more requests; None: they never had to
    apart: list[Group] = field(default_factory=list)  # groups with requests that wait apart from the queue
    worked_s: float = -math.inf  # when a batch of it last ended well
    lost_idle_s: float = -math.inf  # when a worker that can serve it was last lost while it executed nothing
    open: bool = field(init=False)  # it has open dimensions: its requests have extents, and its curves know them
    input_row_bytes: tuple[int, ...] = field(init=False)  # bytes of one row of each input; with extents of 1 if open
    _one_row_bytes: int = field(init=False)  # of its one input, if its bytes follow from the rows alone; 0: not so
    _measured: tuple[bool, ...] = field(init=False)  # of each input: its bytes follow from rows and extents
    _along: tuple[tuple[int, ...], ...] = field(init=False)  # of each input: its open dimensions, by number

    def __post_init__(self) -> None:
        spec = self.spec
        self.open = bool(spec.dims)
        numbers = {dim.name: number for number, dim in enumerate(spec.dims)}
        self._along = tuple(tuple(numbers[name] for name in tensor.dims if name) for tensor in spec.inputs)
        self._measured = tuple(tensor.dtype not in VARIABLE for tensor in spec.inputs)
        self.input_row_bytes = tuple(
            byte_count(tensor.dtype, [abs(extent) for extent in tensor.shape[1:]]) if measured else 0
            for tensor, measured in zip(spec.inputs, self._measured, strict=True)
        )
        self._one_row_bytes = 0 if self.open or len(spec.inputs) != 1 else self.input_row_bytes[0]

    @property
    def first_device(self) -> RemoteDevice | None:
        """Its first host, or else the first device that is ready to serve it."""
        for device in self.hosts.values():
            return device
        for device in self.ready.values():
            return device
        return None

    def fits(self, message: wire.Submit) -> bool:
        """Whether these are the inputs of so many rows: otherwise rows of a batch's requests would be mixed up.

        How many bytes strings take is not known here: their worker reads where each ends.
        """
        kept, inline = message.kept, message.inline
        if kept is None and len(inline) == 1 and self._one_row_bytes:  # nearly all models have one
            return len(inline[0]) == self._one_row_bytes * message.rows
        sizes = kept.sizes if kept is not None else tuple(map(len, inline))
        if len(sizes) != len(self.input_row_bytes):
            return False
        rows, extents = message.rows, message.extents
        for given, size, measured, along in zip(sizes, self.input_row_bytes, self._measured, self._along, strict=True):
            if measured and given != size * rows * math.prod(extents[number] for number in along):
                return False
        return True

    def extents_fault(self, extents: Extents) -> str:
        """Why no request can have these extents, in a sentence; empty if one can."""
        dims = self.spec.dims
        if len(extents) != len(dims):
            return f"{len(dims)} open dimensions have an extent each; the request has {len(extents)}"
        for dim, extent in zip(dims, extents, strict=True):
            if not dim.least <= extent <= dim.most:
                return f"{dim.name} is {extent}; it is from {dim.least} to {dim.most}"
        return ""

    def batch_delay(self, wait_s: float, now: float) -> BatchDelay:
        """How long its batches wait for more requests, where they may wait for `wait_s`."""
        if self.delay is None or self.delay.wait_s != wait_s:
            self.delay = new_delay(wait_s, len(self.queue), now)
        return self.delay


@dataclass(slots=True)
class ShardState:
    """Everything. The scheduler changes it through these methods; the policy only reads."""

    dispatch_s: float = DISPATCH_S  # what the dispatch margins of new devices start from
    noise: float = NOISE  # what their noise margins start from
    devices: dict[str, RemoteDevice] = field(default_factory=dict)  # {worker: device}
    models: dict[str, Model] = field(default_factory=dict)  # {ref: model}, ready on some device or with requests
    waiting: int = 0  # requests in all queues
    active: dict[str, Model] = field(default_factory=dict)  # {ref: model} with requests that wait
    unplaced: dict[str, None] = field(default_factory=dict)  # refs of active models without a host
    apart: dict[str, Model] = field(default_factory=dict)  # {ref: model} with requests that wait apart
    waiting_apart: int = 0  # requests in all groups
    apart_hopeless_s: float = math.inf  # nobody who waits apart is too late before, even if devices are free
    turn: int = 0  # number of the scheduler's decision; one more where much has changed in it; 0: nobody counts
    shifted: dict[str, RemoteDevice] = field(default_factory=dict)  # {worker: device} whose work changed in this turn;
    # placement, which follows them, empties it

    # -- requests that wait -------------------------------------------------------------------------------------------

    def push(self, model: Model, request: Request) -> None:
        """The request waits."""
        if model.open:
            self._size(model, request)
        model.queue.push(request)
        self.waiting += 1
        self.recount(model)

    def take_first(self, model: Model, count: int) -> list[Request]:
        """The first requests of the queue wait no longer; they are returned."""
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
        if request.group is not None and not request.waiting:
            return self._leave_group(model, request.group, request)
        removed = model.queue.remove(request)
        if removed:
            self.waiting -= 1
            self.recount(model)
        return removed

    def _size(self, model: Model, request: Request) -> None:
        """What the request costs is known, on the model's first host, or else on its first ready device."""
        device = model.first_device
        if device is None:
            request.share_s, request.rank, request.latest_s = 0.0, 0, request.deadline_s
            return
        curve = device.curves[model.ref]
        share_s = curve.share(request.extents)
        request.share_s = share_s * request.rows / curve.scale
        request.rank = rank_of(share_s / request.weight)
        request.latest_s = request.deadline_s - curve.alone_s(request.rows, request.extents)

    # -- requests that wait apart -------------------------------------------------------------------------------------

    def set_apart(self, model: Model, group: Group, request: Request) -> None:
        """The request, which waited nowhere, waits in the group."""
        group.add(request)
        self.waiting_apart += 1
        self.apart_hopeless_s = min(self.apart_hopeless_s, request.deadline_s - self.alone_s(model, request))
        if group not in model.apart:
            model.apart.append(group)
            self._mark_apart(model)

    def take_apart(self, model: Model, group: Group, count: int) -> list[Request]:
        """The first requests of the group wait no longer; they are returned, and stay its own."""
        taken = group.requests[:count]
        del group.requests[:count]
        self._left_group(model, group, len(taken))
        return taken

    def _leave_group(self, model: Model, group: Group, request: Request) -> bool:
        if request not in group.requests:
            return False
        group.requests.remove(request)
        self._left_group(model, group, 1)
        return True

    def _left_group(self, model: Model, group: Group, count: int) -> None:
        self.waiting_apart -= count
        if not group.requests:
            model.apart.remove(group)
            self._mark_apart(model)

    def _mark_apart(self, model: Model) -> None:
        """The sets of models with requests that wait apart follow."""
        if model.apart:
            self.apart[model.ref] = model
            for device in model.hosts.values():
                device.apart[model.ref] = None
                device.touch()
        elif self.apart.pop(model.ref, None) is not None:
            for device in model.hosts.values():
                device.apart.pop(model.ref, None)

    # -- how much waits -----------------------------------------------------------------------------------------------

    def recount(self, model: Model) -> None:
        """Backlogs follow a change of the model's queue."""
        cost_s = self._open_cost_s(model) if model.open else self.cost_s(model, model.queue.rows)
        self._share(model, cost_s - model.cost_s)
        model.cost_s = cost_s
        for worker, device in model.hosts.items():
            self.shifted[worker] = device
        if (len(model.queue) > 0) is not (model.ref in self.active):
            self._mark(model)

    def cost_s(self, model: Model, rows: int) -> float:
        """EXEC time of so many rows in the largest batches, on its first host, or else on its first ready device."""
        if not rows:
            return 0.0
        device = model.first_device
        if device is None:
            return 0.0
        return device.curves[model.ref].total_s(rows)

    def _open_cost_s(self, model: Model) -> float:
        """EXEC time of all that waits: of each request its share of a batch of its like."""
        device = model.first_device
        return model.queue.share_s * device.curves[model.ref].scale if device is not None else 0.0

    def alone_s(self, model: Model, request: Request) -> float:
        """EXEC time of the request alone, on the model's first host, or else on its first ready device."""
        device = model.first_device
        if not model.open or device is None:
            return self.cost_s(model, 1)
        return device.curves[model.ref].alone_s(request.rows, request.extents)

    def is_asked(self, ref: str) -> bool:
        """Whether requests wait for the version, in its queue or apart."""
        return ref in self.active or ref in self.apart

    # -- who serves what ----------------------------------------------------------------------------------------------

    def add_ready(self, device: RemoteDevice, report: wire.Prepared, spec: wire.ModelSpec) -> None:
        """The device can serve the version that it reports, and hosts it if it is resident."""
        ref = report.ref
        model = self.models.get(ref)
        device.add(report, spec, model.ready.values() if model is not None else ())
        if model is None:
            model = self.models[ref] = Model(ref, spec)
        model.ready[device.worker] = device
        if ref in device.residency.models:
            self.add_host(model, device)

    def drop_ready(self, device: RemoteDevice, ref: str) -> None:
        """The device cannot serve the version any more."""
        model = self.models.get(ref)
        if model is not None:
            self.drop_host(model, device)
            model.ready.pop(device.worker, None)
        device.remove(ref)

    def drop_device(self, worker: str) -> RemoteDevice | None:
        """The device is gone; it is returned, and `drop_ready` is to be called for what it serves. None: there is none.

        Whatever is kept by device ends here.
        """
        self.shifted.pop(worker, None)
        return self.devices.pop(worker, None)

    def add_host(self, model: Model, device: RemoteDevice) -> None:
        """The model is on its way to the device, or there."""
        self._share(model, -model.cost_s)
        model.hosts[device.worker] = device
        self._share(model, model.cost_s)
        self._much_changed()
        self._mark(model)
        self._mark_apart(model)

    def drop_host(self, model: Model, device: RemoteDevice) -> None:
        """The model is not on the device any more."""
        if device.worker in model.hosts:
            self._share(model, -model.cost_s)
            del model.hosts[device.worker]
            device.waiting.pop(model.ref, None)
            device.apart.pop(model.ref, None)
            self._share(model, model.cost_s)
            self._mark(model)
            self._much_changed()

    def found_resident(self, device: RemoteDevice, ref: str, now: float) -> None:
        """The version, which is prepared there, is in the device's memory without a LOAD of ours."""
        device.residency.place(ref, device.pages[ref], now)
        model = self.models.get(ref)
        if model is not None and device.worker in model.ready:
            self.add_host(model, device)

    def not_resident(self, device: RemoteDevice, ref: str) -> None:
        """The version turned out not to be in the device's memory."""
        model = self.models.get(ref)
        if model is not None:
            self.drop_host(model, device)
        device.not_resident(ref)

    def drop_idle_models(self, contained: Collection[str]) -> None:
        """Models that are ready nowhere and that nobody waits for are gone. `contained`: refs that containers serve.

        Whoever is bound to a container's batch may have to wait again: a process that dies gives back what it had not
        begun, and another one is started.
        """
        actions = (action for device in self.devices.values() for action in device.actions.values())
        bound = {action.ref for action in actions if action.requests and action.ref in contained}
        kept = {*bound, *(ref for ref, model in self.models.items() if model.ready or self.is_asked(ref))}
        for ref in [ref for ref in self.models if ref not in kept]:
            del self.models[ref]

    def _share(self, model: Model, cost_s: float) -> None:
        """Each host's backlog grows by an equal share."""
        if model.hosts and cost_s:
            share = cost_s / len(model.hosts)
            for device in model.hosts.values():
                backlog_s = device.backlog_s + share
                device.backlog_s = backlog_s if backlog_s > 0.0 else 0.0

    def _mark(self, model: Model) -> None:
        """The sets of models with requests that wait follow."""
        if len(model.queue) and not model.hosts:
            self.unplaced[model.ref] = None
        else:
            self.unplaced.pop(model.ref, None)
        if len(model.queue):
            self.active[model.ref] = model
            for device in model.hosts.values():
                device.waiting[model.ref] = None
                device.touch()
        else:
            self.active.pop(model.ref, None)
            for device in model.hosts.values():
                device.waiting.pop(model.ref, None)

    # -- turns --------------------------------------------------------------------------------------------------------

    def next_turn(self) -> None:
        """The scheduler begins to decide: whoever follows what devices have to do looks at all of them anew."""
        self.turn += 1

    def _much_changed(self) -> None:
        if self.turn:
            self.turn += 1

    def touch_all(self) -> None:
        """Something has changed for which the scheduler has to look at every device."""
        for device in self.devices.values():
            device.touch()

    # -- invariants ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Every invariant holds."""
        assert self.waiting == sum(len(model.queue) for model in self.models.values())
        unplaced = {ref for ref, model in self.models.items() if len(model.queue) and not model.hosts}
        assert self.unplaced.keys() == unplaced
        assert self.active.keys() == {ref for ref, model in self.models.items() if len(model.queue)}
        assert self.apart.keys() == {ref for ref, model in self.models.items() if model.apart}
        assert self.waiting_apart == sum(len(group.requests) for m in self.models.values() for group in m.apart)
        for model in self.models.values():
            model.queue.check()
            _check_apart(model)
            assert model.hosts.keys() <= model.ready.keys(), model.ref
            for worker, device in model.hosts.items():
                assert self.devices[worker] is device
                assert model.ref in device.residency.models
                assert (model.ref in device.waiting) == bool(len(model.queue))
                assert (model.ref in device.apart) == bool(model.apart)
        for device in self.devices.values():
            device.check()
            self._check_backlog(device, self.models.values())

    def _check_backlog(self, device: RemoteDevice, models: Iterable[Model]) -> None:
        total = sum((model.cost_s / len(model.hosts) for model in models if device.worker in model.hosts), 0.0)
        assert abs(total - device.backlog_s) < 1e-6 + 0.01 * total, (device.worker, total, device.backlog_s)


def _check_apart(model: Model) -> None:
    for group in model.apart:
        assert group.requests, "an empty group waits"
        assert group.ref == model.ref
        for request in group.requests:
            assert request.group is group, "a request waits in a group that is not its own"
            assert not request.waiting, "a request waits both in the queue and apart"
            assert not request.closed, "a request waits apart that has ended"
