"""Requests that arrived before the first routing table, when it is not known yet what exists. Pure."""

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from frontend.core import checks, protocol
from frontend.core.protocol import RequestRefused
from mesh.codes import AnswerStatus, ErrorCode

HELD_S_MAX = 2.0  # of a request without a budget of its own
RETRY_AFTER_MS = 1000.0  # a broker that was killed is mostly back by then


@dataclass(frozen=True, slots=True)
class Early:
    """One held request."""

    client: Hashable
    request: protocol.Asking
    frames: Sequence[Any]
    received_s: float

    @property
    def size(self) -> int:
        """Bytes of its inputs."""
        inside = self.request.inputs if isinstance(self.request, protocol.InferRequest) else ()
        return sum(map(len, self.frames)) + sum(len(tensor.data or b"") for tensor in inside)


@dataclass(slots=True)
class EarlyRequests:
    """Requests held until the table arrives or their budget ends, whichever comes first."""

    count_max: int
    bytes_max: int
    slo_ms_max: float
    bytes_held: int = 0  # of their inputs
    _held: dict[tuple[Hashable, int | str], Early] = field(default_factory=dict)  # {(client, id): it}, oldest first
    _ends: list[tuple[float, int, Early]] = field(default_factory=list)  # heap of the same: (end, number, request)
    _count: int = 0  # requests held so far

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, early: Early) -> None:
        """Holds the request. Raises: RequestRefused, if it will be refused whatever the table says."""
        request = early.request
        key = (early.client, request.id)
        if key in self._held:
            raise protocol.duplicate(request.id)
        budget_s = HELD_S_MAX
        if isinstance(request, protocol.InferRequest):
            checks.check_names(request)
            budget_s = checks.check_budget(request, min(HELD_S_MAX * 1e3, self.slo_ms_max), self.slo_ms_max)
        if len(self._held) >= self.count_max:
            raise protocol.no_room(len(self._held), request.id)
        if self.bytes_held >= self.bytes_max:
            raise protocol.no_memory(len(self._held), self.bytes_held, request.id)
        self._held[key] = early
        self.bytes_held += early.size
        self._count += 1
        heapq.heappush(self._ends, (early.received_s + budget_s, self._count, early))

    def release(self) -> list[Early]:
        """Returns all held requests, oldest first; none is held any more."""
        released = list(self._held.values())
        self._held.clear()
        self._ends.clear()
        self.bytes_held = 0
        return released

    def expire(self, now: float) -> list[tuple[Early, RequestRefused]]:
        """Drops requests whose budget has ended. Returns (request, answer) for each."""
        expired = []
        while self._ends and self._ends[0][0] <= now:
            early = heapq.heappop(self._ends)[2]
            del self._held[(early.client, early.request.id)]
            self.bytes_held -= early.size
            text = "this frontend has just started, and the broker has not told it yet which models there are"
            refusal = RequestRefused(
                ErrorCode.NOT_READY, text, None, early.request.id, AnswerStatus.REJECTED, RETRY_AFTER_MS
            )
            expired.append((early, refusal))
        return expired

    def wake_at(self) -> float | None:
        """When the next budget ends; None if nothing is held."""
        return self._ends[0][0] if self._ends else None

    def check(self) -> None:
        """Asserts every invariant."""
        assert len(self._held) <= self.count_max
        assert self.bytes_held == sum(early.size for early in self._held.values())
        assert sorted(id(entry[2]) for entry in self._ends) == sorted(map(id, self._held.values()))
