"""What a policy decides: the order of EXEC and LOAD on every device, and who is let in. Pure."""

from dataclasses import dataclass
from typing import Protocol

from controller.queues import Request
from controller.state import Device, Model, State


@dataclass(frozen=True, slots=True)
class Verdict:
    """Admission's answer to one request."""

    admitted: bool
    predicted_s: float  # latency from arrival to the end of OUTPUT
    code: str = ""  # why not: "deadline" (not even alone and first) | "overload"
    retry_after_s: float | None = None  # when the same budget would suffice; None: never, as things are


@dataclass(frozen=True, slots=True)
class Batch:
    """What a device executes next."""

    model: Model
    count: int  # requests
    rows: int
    skip: int  # requests at the head of the queue that are given up for it
    start_s: float  # planned start of EXEC
    expected_s: float  # duration of EXEC
    latest_s: float  # last start that is of use


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What a device loads next."""

    model: Model
    evict: tuple[str, ...]  # refs that make room for it


class Policy(Protocol):
    """One order of work. Made with the state, which it reads and never changes."""

    def admit(self, model: Model, request: Request, now: float) -> Verdict:
        """Whether to take the request, which has just arrived and is not in the queue yet."""

    def expired(self, model: Model, now: float) -> int:
        """How many requests at the head of the queue cannot be served in time any more."""

    def choose(self, device: Device, now: float) -> Batch | None:
        """The device's next batch, if it is to be sent now."""

    def choose_load(self, device: Device, now: float) -> LoadPlan | None:
        """The device's next LOAD, if one is to be sent now."""

    def answered(self, requests: int, in_time: int, now: float) -> None:
        """So many requests have ended, so many of them in time; the rest were refused or came too late."""

    def wake_at(self, now: float) -> float | None:
        """When a decision is due that no event will cause."""


PolicyMaker = type[Policy]
__all__ = ["Batch", "Device", "LoadPlan", "Model", "Policy", "PolicyMaker", "Request", "State", "Verdict"]
