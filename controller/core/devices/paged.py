"""A device whose memory is divided into pages: it keeps many models, and is measured before it serves one. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from controller.core.devices.action import Action
from controller.core.devices.base import RemoteDevice, Served
from controller.core.estimation.estimates import LoadEstimate, make_curve
from controller.core.estimation.sized import can_be_sized, make_sized_curve
from controller.core.queues import Request
from mesh import wire

LOAD_S_MIN = 1e-6  # of an estimate


@dataclass(slots=True, eq=False)
class PagedDevice(RemoteDevice):
    """A CPU or GPU, or the emulation of one."""

    def may_hold(self, ref: str, *, contained: bool) -> bool:
        """It may hold whatever containers do not serve."""
        return not contained

    def keeps_unwanted(self) -> bool:
        """It has no memory to give away."""
        return False

    def found_resident(self, hello: wire.WorkerHello) -> Sequence[str]:
        """All that is in its memory."""
        return hello.resident

    def is_whole(self, report: wire.Prepared) -> bool:
        """It has to be measured first."""
        return report.profile is not None and bool(report.profile.exec_s)

    def fault_of(self, report: wire.Prepared) -> str:
        """A version with open dimensions is planned by extents."""
        spec = report.spec
        if spec is None or not spec.dims or not self.is_whole(report) or can_be_sized(report.profile, spec):
            return ""
        return (
            "its profile does not say how long it takes by extents, up to the greatest of each open dimension: "
            "is its worker of an older gearmesh?"
        )

    def add(self, report: wire.Prepared, spec: wire.ModelSpec, others: Iterable[RemoteDevice]) -> None:
        """The version starts from the profile that was measured here."""
        profile = report.profile
        assert profile is not None
        any_batch, term, pace = self.info.any_batch, self.exec_term, self.pace
        if spec.dims:
            self.curves[report.ref] = make_sized_curve(profile, spec, any_batch, term, pace)
        else:
            self.curves[report.ref] = make_curve(profile, spec.batch_max, any_batch, term, pace)
        self.loads[report.ref] = LoadEstimate(max(profile.load_s, LOAD_S_MIN), self.load_term)
        self.changed()

    def failed(self, ref: str) -> bool:
        """It has to prepare the version anew."""
        return True

    def holds_back(self, models: Mapping[str, Served], now: float) -> bool:
        """A batch behind the one that runs keeps it busy: it is never held back."""
        return False

    def next_batch_at(self, at_s: float, now: float) -> float:
        """When the next batch is due; if it is due already, the policy had none for it."""
        return at_s if at_s > now else math.inf

    def latest_s(self, start_s: float, latest_s: float, hosts: int) -> float:
        """While it is of use: lanes work in order, and nothing there hangs unseen."""
        return latest_s

    def doubt(self, request: Request, now: float) -> bool:
        """The curve decides whether the estimate is tried; only an idle device that has the model can show it."""
        ref, extents = request.ref, request.extents
        if ref not in self.residency.models or len(self.exec):
            return False
        curve = self.curves[ref]
        rows = min(request.rows, curve.rows_max)
        return curve.doubt(rows, request.deadline_s - self.start_s(ref, now), now, extents)

    def set_overdue(self, action: Action) -> None:
        """Some time past its expected end."""
        action.overdue_s = action.usual_overdue_s
