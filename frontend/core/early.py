"""Requests that came before the first routing table: what they ask for cannot be judged yet. Pure."""

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from frontend.core import protocol
from frontend.core.protocol import Invalid
from mesh.codes import AnswerStatus, ErrorCode

HELD_S_MAX = 2.0  # of whatever has no budget of its own
RETRY_AFTER_MS = 1000.0  # a broker that was killed is back by then, mostly


@dataclass(frozen=True, slots=True)
class Early:
    """One request that is held."""

    client: Hashable
    request: protocol.Asking
    frames: Sequence[Any]
    received_s: float

    @property
    def size(self) -> int:
        """Of its inputs, bytes."""
        inside = self.request.inputs if isinstance(self.request, protocol.Infer) else ()
        return sum(map(len, self.frames)) + sum(len(tensor.data or b"") for tensor in inside)


@dataclass(slots=True)
class EarlyRequests:
    """Held until the table comes or their budget ends, whichever is first."""

    count_max: int
    bytes_max: int
    slo_ms_max: float
    bytes_held: int = 0  # of inputs
    _held: dict[tuple[Hashable, int | str], Early] = field(default_factory=dict)  # {(client, id): it}, oldest first
    _ends: list[tuple[float, int, Early]] = field(default_factory=list)  # heap of the same: (budget's end, count, it)
    _count: int = 0  # ever held

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, early: Early) -> None:
        """The request is held. Raises: Invalid, if it is refused whatever the table will say."""
        request = early.request
        key = (early.client, request.id)
        if key in self._held:
            raise protocol.duplicate(request.id)
        budget_s = HELD_S_MAX
        if isinstance(request, protocol.Infer):
            protocol.check_names(request)
            budget_s = protocol.check_budget(request, min(HELD_S_MAX * 1e3, self.slo_ms_max), self.slo_ms_max)
        if len(self._held) >= self.count_max:
            raise protocol.no_room(len(self._held), request.id)
        if self.bytes_held >= self.bytes_max:
            raise protocol.no_memory(len(self._held), self.bytes_held, request.id)
        self._held[key] = early
        self.bytes_held += early.size
        self._count += 1
        heapq.heappush(self._ends, (early.received_s + budget_s, self._count, early))

    def release(self) -> list[Early]:
        """All that is held, oldest first; nothing is any more."""
        released = list(self._held.values())
        self._held.clear()
        self._ends.clear()
        self.bytes_held = 0
        return released

    def expire(self, now: float) -> list[tuple[Hashable, Invalid]]:
        """(client, what to answer) for those whose budget has ended; they are not held any more."""
        expired = []
        while self._ends and self._ends[0][0] <= now:
            early = heapq.heappop(self._ends)[2]
            del self._held[(early.client, early.request.id)]
            self.bytes_held -= early.size
            text = "this frontend has just started, and the broker has not told it yet which models there are"
            refusal = Invalid(ErrorCode.NOT_READY, text, None, early.request.id, AnswerStatus.REJECTED, RETRY_AFTER_MS)
            expired.append((early.client, refusal))
        return expired

    def wake_at(self) -> float | None:
        """When the next budget ends."""
        return self._ends[0][0] if self._ends else None

    def check(self) -> None:
        """Every invariant holds."""
        assert len(self._held) <= self.count_max
        assert self.bytes_held == sum(early.size for early in self._held.values())
        assert sorted(id(entry[2]) for entry in self._ends) == sorted(map(id, self._held.values()))
