"""What a policy decides: the order of EXEC and LOAD on every device, and who is let in. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from controller.core.devices.base import RemoteDevice
from controller.core.queues import Request
from controller.core.state import Model
from mesh.codes import ErrorCode
from mesh.sizes import Extents

# Source of both: docs/design/policy.md, "Lead, depth and dispatch"
LEAD_FACTOR = 3.0  # x the way to the worker: the way there, the last result's way back, and some room
LEAD_S_MAX = 0.002


@dataclass(frozen=True, slots=True)
class Lead:
    """How far ahead of a device work is sent to it, and how often a request is tried."""

    exec_s: float | None  # a device gets its next batch this long before it comes free; None: learned from its delays
    depth: int  # most batches at a device
    loads: int  # most LOADs at a device
    load_s: float = 0.0  # a device gets its next LOAD this long before its lane comes free
    tries: int = 3  # most actions that take a request up; then it has failed

    def of(self, device: RemoteDevice) -> float:
        """How long before the device comes free its next batch goes out: so that it is there, and no earlier.

        Earlier if the inputs of its batches have to be fetched.
        """
        lead_s = min(LEAD_S_MAX, LEAD_FACTOR * device.dispatch.value_s) if self.exec_s is None else self.exec_s
        return lead_s + device.ahead_s


class Verdict(NamedTuple):
    """Admission's answer to one request."""

    admitted: bool
    predicted_s: float  # latency from arrival to the end of OUTPUT
    code: ErrorCode | None = None  # why not: DEADLINE (not even alone and first) or OVERLOAD; None if admitted
    retry_after_s: float | None = None  # after how long the same budget would suffice; None: never, as things are


@dataclass(frozen=True, slots=True)
class Batch:
    """What a device executes next: waiting requests of one model."""

    model: Model
    requests: Sequence[Request]
    given_up: Sequence[Request]  # refused in their favour
    rows: int
    start_s: float  # planned start of EXEC
    expected_s: float  # duration of EXEC
    latest_s: float  # last start that is of use
    extents: Extents = ()  # the greatest among its requests, of a model with open dimensions


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What a device loads next."""

    model: Model
    evict: tuple[str, ...]  # refs that make room for it


class SchedulingPolicy(Protocol):
    """One order of work. It is made with the state, which it reads and never changes.

    A policy need not override the methods after `choose_load`.
    """

    lead: Lead

    def admit(self, model: Model, request: Request, now: float) -> Verdict:
        """Whether to take the request, which has just arrived and is not in the queue yet."""
        ...

    def expired(self, model: Model, now: float) -> int:
        """How many of the first requests of the queue cannot be served in time any more."""
        ...

    def hopeless(self, model: Model, now: float) -> Sequence[Request]:
        """Which waiting requests of a model with open dimensions cannot be served in time any more."""
        queue = model.queue
        return queue.requests[queue.head : queue.head + self.expired(model, now)]

    def choose(self, device: RemoteDevice, now: float) -> Batch | None:
        """The device's next batch. Its `lead` allows for one."""
        ...

    def choose_load(self, device: RemoteDevice, now: float) -> LoadPlan | None:
        """The device's next LOAD. Its `lead` allows for one."""
        ...

    def arrived(self, model: Model, request: Request, now: float) -> None:
        """The request waits: it was just admitted, or its action came to nothing."""

    def bound(self, device: RemoteDevice, batch: Batch, now: float) -> None:
        """The batch was sent."""

    def completed(self, device: RemoteDevice, model: Model, requests: Sequence[Request], now: float) -> None:
        """A batch was executed and its outputs are on their way."""

    def ended(self, request: Request, in_time: bool, now: float) -> None:
        """The request has ended: in time, or else too late or refused."""

    def withdrawn(self, request: Request, now: float) -> None:
        """The request has ended, because its client gave it up while it could have been in time: it shows nothing."""

    def wake_at(self, now: float) -> float | None:
        """When a decision is due that no event will cause; None: there is no such time."""
        return None
