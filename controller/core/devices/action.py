"""What a device has under way, and what failed there lately. Pure."""

from dataclasses import dataclass

from controller.core.estimation.fetching import FarBytes
from controller.core.queues import Request
from controller.core.residency import Resident
from mesh.codes import ActionKind
from mesh.sizes import Extents

OVERDUE_S_MIN = 2.0  # an action this long past its expected end is lost, though its worker is alive; or ...
OVERDUE_FACTOR = 5.0  # ... this many times its expected duration past it, if that is more


class Action:
    """One action that was sent to a device and has not ended. Instants are in the controller's clock."""

    __slots__ = (
        "batch", "cold_s", "earliest_s", "expected_end_s", "expected_s", "extents", "far_bytes", "hangs_s", "id",
        "kind", "latest_s", "overdue_s", "place", "ref", "requests", "revoked", "sent_s",
    )  # fmt: skip

    def __init__(
        self, number: int, kind: ActionKind, ref: str, sent_s: float, expected_s: float, requests: list[Request]
    ) -> None:
        self.id = number
        self.kind = kind
        self.ref = ref
        self.sent_s = sent_s
        self.expected_s = expected_s  # duration
        self.requests = requests  # of an INFER; a measuring run has none
        self.expected_end_s = 0.0
        self.overdue_s = 0.0  # if it has not ended by then, it is taken for lost
        self.batch = 0
        self.extents: Extents = ()  # that EXEC computes, in the version's open dimensions
        self.earliest_s = 0.0  # its window
        self.latest_s = 0.0
        self.hangs_s = 0.0  # if EXEC has not ended by then, the worker takes its code for hanging; 0: no such limit
        self.cold_s = 0.0  # added to `hangs_s` for the first batch of a process
        self.far_bytes: FarBytes | None = None  # of its inputs, which the worker has to fetch; None: it has all
        self.revoked = False  # its worker was told that nobody waits for it
        self.place: Resident | None = None  # of an INFER: its model's place on the device, which may be gone by its end

    @property
    def needless(self) -> bool:
        """Whether it is an INFER for clients, and none of them waits for it any more."""
        return bool(self.requests) and all(request.closed for request in self.requests)

    @property
    def usual_overdue_s(self) -> float:
        """When an action whose worker is not asked to watch it is taken for lost."""
        return self.expected_end_s + max(OVERDUE_S_MIN, OVERDUE_FACTOR * self.expected_s)


@dataclass(slots=True)
class LoadFault:
    """The latest LOADs of one version on one device have failed."""

    count: int = 0  # failures in a row
    final: int = 0  # of these, failures that another attempt would repeat
    retry_s: float = 0.0  # no attempt before
