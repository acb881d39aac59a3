"""Requests for an answer of a model become calls. Pure.

Nearly all requests are plain: one input without open dimensions, a model that is known, nothing unusual, nothing wrong.
`plain` looks at those in one pass. What it does not take is looked at by `checked`, which alone says what is wrong, and
makes the same call of a plain request.
"""

from collections.abc import Hashable, Sequence
from typing import Final

from frontend.core import checks, protocol
from frontend.core.checking import unforeseen
from frontend.core.open_calls import Call
from frontend.core.protocol import InferRequest, RequestRefused
from frontend.core.requests import RequestTable
from frontend.core.targets import BoundVersion, Targets
from mesh import wire

Tensors = Sequence[bytes | memoryview]
BESIDE_MAX: Final = 4096  # bytes of a message beside its tensors, which are kept with these as long as the call is open


class Openings:
    """What a request needs to become a call: a target, a budget, inputs that fit, and room."""

    def __init__(self, table: RequestTable, targets: Targets, slo_ms_max: float) -> None:
        self._table = table
        self.targets = targets
        self._slo_ms_max = slo_ms_max
        self.draining = False  # no call is opened any more

    def plain(
        self, client: Hashable, request: InferRequest, frames: Tensors, size: int, received_s: float, asker: int
    ) -> tuple[Call, Tensors] | None:
        """The call of a plain request, and its inputs. None: it is not plain, or something is wrong with it.

        `size`: bytes of its header. `asker`: who asks, as controllers know it. `received_s`: the deadline counts from
        then.
        """
        if request.app is not None or request.version is not None or request.context is not None:
            return None
        target = self.targets.bound.get(request.model or "")
        if target is None or self.draining:
            return None
        data = target.rules.plain(request, frames)
        if data is None or size > BESIDE_MAX + (0 if frames else len(data)):
            return None
        slo_ms = target.spec.slo_ms if request.slo_ms is None else request.slo_ms
        weight = request.weight
        if not 0.0 < slo_ms <= self._slo_ms_max or not 0.01 <= weight <= 100.0:
            return None
        table = self._table
        if table.full_for(asker, table.in_flight_max) or table.memory_full_for(asker):
            return None
        if table.holds(client, request.id):
            return None
        asked_id = request.asked_id
        if asked_id is not None:
            asked_id = asked_id[: wire.ASKED_ID_MAX]
        call = Call(
            client,
            request.id,
            target.ref,
            target.spec,
            request.inputs[0].shape[0],
            received_s,
            received_s + slo_ms / 1e3,
            len(frames) > 0,
            weight,
            None,
            asked_id,
            asker,
            (),
            target.outputs,
            target.form,
        )
        return call, (data,)

    def checked(
        self,
        client: Hashable,
        request: InferRequest,
        frames: Tensors,
        size: int,
        received_s: float,
        asker: int,
        target: BoundVersion,
    ) -> tuple[Call, Tensors]:
        """The call of any request of this target, and its inputs. Raises: RequestRefused."""
        try:
            budget_s = checks.check_budget(request, target.spec.slo_ms, self._slo_ms_max)
            weight = checks.check_weight(request)
            checked = target.rules.check(request, frames)
        except RequestRefused:
            raise
        except Exception as error:  # nothing has changed
            raise unforeseen(error, request.id) from error
        self.check_room(request, asker)
        tensors: Tensors = checked.tensors
        if not frames and size > BESIDE_MAX + sum(map(len, tensors)):
            tensors = [bytes(data) for data in tensors]  # else the whole message would be kept
        call = Call(
            client,
            request.id,
            target.ref,
            target.spec,
            checked.rows,
            received_s,
            received_s + budget_s,
            bool(frames),
            weight,
            asked_id=request.asked_id and request.asked_id[: wire.ASKED_ID_MAX],
            asker=asker,
            extents=checked.extents,
            rules=target.outputs,
            form=target.form,
        )
        return call, tensors

    def check_question(self, request: InferRequest, frames: Tensors, size: int, asker: int) -> None:
        """Returns if an application may be asked this by this client. Raises: RequestRefused.

        Inputs that are kept then keep no more than themselves of a message that is much larger: they are copied.
        """
        self.check_room(request, asker)
        if frames or size <= BESIDE_MAX + sum(tensor.data_bytes for tensor in request.inputs):
            return
        for tensor in request.inputs:
            if isinstance(tensor.data, memoryview):
                tensor.data = memoryview(bytes(tensor.data))

    def check_room(self, request: InferRequest, asker: int) -> None:
        """Returns if one more call may be opened by this client. Raises: RequestRefused."""
        table = self._table
        if self.draining or table.full_for(asker, table.in_flight_max):
            raise protocol.no_room(len(table), request.id)
        if table.memory_full_for(asker):
            raise protocol.no_memory(len(table), table.bytes_held, request.id)
