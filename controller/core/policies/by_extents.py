"""What policies ask of the requests of a model with open dimensions: which go together, and who is too late. Pure."""

import math
from collections.abc import Iterable, Sequence

from controller.core.devices.base import RemoteDevice
from controller.core.estimation.estimates import Curve
from controller.core.estimation.fetching import NOTHING
from controller.core.policies.starts import start_of
from controller.core.queues import Request, rank_of
from controller.core.state import Model
from mesh.sizes import Extents, joint


class Together:
    """Requests of one model that are taken into one batch, one after the other, as they come.

    They are padded to the greatest extents among them; where the model pads nothing, all have the same. Of a model
    without open dimensions they have none.
    """

    def __init__(
        self, model: Model, curve: Curve, rows_max: int | None = None, *, exec_s_max: float = math.inf
    ) -> None:
        self.requests: list[Request] = []
        self.rows = 0
        self.extents: Extents = ()
        self._equal = model.spec.exact
        self._curve = curve
        self._rows_max = rows_max  # of a joint batch, besides what fits; None: no other limit
        self._exec_s_max = exec_s_max  # likewise

    def add(self, request: Request) -> bool:
        """Whether the request goes with those that are there, who are then one more. The first always does."""
        if not self.requests:
            self.extents = request.extents
        elif not self._goes(request):
            return False
        elif request.extents:
            self.extents = joint((self.extents, request.extents))
        self.requests.append(request)
        self.rows += request.rows
        return True

    def _goes(self, request: Request) -> bool:
        rows = self.rows + request.rows
        if self._rows_max is not None and rows > self._rows_max:
            return False
        if self._equal and request.extents != self.extents:
            return False
        extents = joint((self.extents, request.extents)) if request.extents else ()
        if rows > self._curve.joint_max(extents):
            return False
        return self._exec_s_max == math.inf or self._curve.exec_s(rows, extents) <= self._exec_s_max

    def exec_s(self) -> float:
        """Expected duration of the batch."""
        return self._curve.exec_s(self.rows, self.extents)


def extents_of(requests: Iterable[Request]) -> Extents:
    """The greatest extents among these requests; there is one."""
    return joint(request.extents for request in requests)


def hopeless(model: Model, now: float) -> Sequence[Request]:
    """Waiting requests that are too late even if each ran next, alone, on the best of its model's devices.

    The others are told by when they have to start, as far as is known now.
    """
    queue = model.queue
    devices = [device for device in (model.hosts or model.ready).values() if not device.leaving]
    starts = [(device, start_of(device, model, now)) for device in devices]
    earliest_s = min((start_s for _, start_s in starts), default=math.inf)
    if earliest_s == math.inf:
        return ()
    late = []
    for request in queue.starts_before(earliest_s):
        end_s, start_s = min(_end(device, request, start_s, now) for device, start_s in starts)
        if end_s > request.deadline_s:
            late.append(request)
        else:
            queue.starts(request, max(request.deadline_s - (end_s - start_s), earliest_s))
    return late


def _end(device: RemoteDevice, request: Request, start_s: float, now: float) -> tuple[float, float]:
    """(end, start) of the request alone; the start of fetching, if its inputs are fetched first."""
    alone_s = device.curves[request.ref].alone_s(request.rows, request.extents)
    if request.kept_bytes:
        size = device.far_bytes((request,))
        if size != NOTHING:
            fetched_s = device.fetched_s(size, now)
            end_s = max(start_s, fetched_s) + alone_s
            return end_s, end_s - alone_s - (fetched_s - now)
    return start_s + alone_s, start_s


def fetched_before_s(device: RemoteDevice, model: Model, request: Request) -> float:
    """How long it takes at least to fetch what waits in the model's queue and goes before the request, by one device.

    Of a model with open dimensions that is taken to be as large a part of the bytes as of the time.
    """
    queue = model.queue
    queued_s = device.fetch.queued_s(device.far_waiting(queue))
    if not model.open or queue.share_s <= 0:
        return queued_s
    rank = rank_of(device.curves[model.ref].share(request.extents) / request.weight)
    return queued_s * min(1.0, queue.share_before(rank, request.deadline_s) / queue.share_s)


def admission_ends(
    device: RemoteDevice, model: Model, request: Request, start_s: float, hosts: int
) -> tuple[float, float]:
    """(end behind what goes before it of its own model, end behind all that waits) if the device serves the request.

    Whoever earns more per second goes before it whatever the deadline, and its equals do if theirs is not later. It
    joins a batch of these, so it adds no more than a share, and ends no earlier than if it ran alone.
    Source: docs/design/policy.md, "Admission".
    """
    curve, queue = device.curves[model.ref], model.queue
    share_s = curve.share(request.extents)
    own_s = curve.alone_s(request.rows, request.extents)
    rank = rank_of(share_s / request.weight)
    before_s = queue.share_before(rank, request.deadline_s) * curve.scale / hosts
    mine_s = model.cost_s / hosts if device.worker in model.hosts else 0.0
    others_s = max(0.0, device.backlog_s - mine_s)
    end_s = start_s + max(own_s, before_s + share_s * request.rows)
    return end_s + own_s * device.margin, end_s + others_s
