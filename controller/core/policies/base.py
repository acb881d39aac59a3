"""What a policy decides: the order of EXEC and LOAD on every device, and who is let in. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.core.queues import Request
from controller.core.state import Device, Model

LEAD_FACTOR = 3.0  # x the way to the worker: there, and the last result back, and some room
LEAD_S_MAX = 0.002  # Source: policy_study section 5: 2 ms ahead costs 0.2 points, 5 ms 1.6


@dataclass(frozen=True, slots=True)
class Window:
    """How far ahead of a device work is sent to it."""

    lead_s: float | None  # a device gets its next batch this long before it comes free; None: learned from its delays
    depth: int  # batches at a device
    loads: int  # LOADs at a device
    load_lead_s: float = 0.0  # its next LOAD, likewise
    tries: int = 3  # actions that may take a request up before it is failed

    def lead_of(self, device: Device) -> float:
        """How long before the device comes free its next batch goes out: so that it is there, and no earlier."""
        return min(LEAD_S_MAX, LEAD_FACTOR * device.dispatch.value_s) if self.lead_s is None else self.lead_s


@dataclass(frozen=True, slots=True)
class Verdict:
    """Admission's answer to one request."""

    admitted: bool
    predicted_s: float  # latency from arrival to the end of OUTPUT
    code: str = ""  # why not: "deadline" (not even alone and first) | "overload"
    retry_after_s: float | None = None  # when the same budget would suffice; None: never, as things are


@dataclass(frozen=True, slots=True)
class Batch:
    """What a device executes next: requests of one model, which wait."""

    model: Model
    requests: Sequence[Request]
    given_up: Sequence[Request]  # refused in their favour
    rows: int
    start_s: float  # planned start of EXEC
    expected_s: float  # duration of EXEC
    latest_s: float  # last start that is of use


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What a device loads next."""

    model: Model
    evict: tuple[str, ...]  # refs that make room for it


class Policy(Protocol):
    """One order of work. Made with the state, which it reads and never changes. The hooks at the end may do nothing."""

    window: Window

    def admit(self, model: Model, request: Request, now: float) -> Verdict:
        """Whether to take the request, which has just arrived and is not in the queue yet."""
        ...

    def expired(self, model: Model, now: float) -> int:
        """How many requests at the head of the queue cannot be served in time any more."""
        ...

    def choose(self, device: Device, now: float) -> Batch | None:
        """The device's next batch. It has room for one, by `window`."""
        ...

    def choose_load(self, device: Device, now: float) -> LoadPlan | None:
        """The device's next LOAD. It has room for one, by `window`."""
        ...

    def arrived(self, model: Model, request: Request, now: float) -> None:
        """The request waits: just admitted, or again after its action came to nothing."""

    def bound(self, device: Device, batch: Batch, now: float) -> None:
        """The batch was sent."""

    def completed(self, device: Device, model: Model, requests: Sequence[Request], now: float) -> None:
        """A batch was executed and its outputs are on their way."""

    def ended(self, request: Request, in_time: bool, now: float) -> None:
        """The request has ended: in time, or too late, refused or cancelled."""

    def wake_at(self, now: float) -> float | None:
        """When a decision is due that no event will cause."""
        return None
