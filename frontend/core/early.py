"""Requests that arrived before the first routing table, when it is not known yet what exists. Pure."""

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from frontend.core import checks, protocol
from frontend.core.by_client import OpenByClient
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
    header_bytes: int = 0  # of the whole header, with the tensors in it

    @property
    def size(self) -> int:
        """Bytes of its message, all of which is kept."""
        return self.header_bytes + sum(map(len, self.frames))


@dataclass(slots=True)
class EarlyRequests:
    """Requests held until the table arrives or their budget ends, whichever comes first."""

    count_max: int
    bytes_max: int
    slo_ms_max: float
    bytes_held: int = 0  # of their messages
    _held: dict[int, Early] = field(default_factory=dict)  # {number: request}, oldest first
    _numbers: OpenByClient[int] = field(default_factory=OpenByClient)  # of the same, by who asked
    _ends: list[tuple[float, int]] = field(default_factory=list)  # heap of (end, number); may hold some that have left
    _count: int = 0  # requests held so far

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, early: Early) -> None:
        """Holds the request. Raises: RequestRefused, if it will be refused whatever the table says."""
        request = early.request
        if self._numbers.get(early.client, request.id) is not None:
            raise protocol.duplicate(request.id)
        budget_s = HELD_S_MAX
        if isinstance(request, protocol.InferRequest):
            checks.check_names(request)
            budget_s = checks.check_budget(request, min(HELD_S_MAX * 1e3, self.slo_ms_max), self.slo_ms_max)
        if len(self._held) >= self.count_max:
            raise protocol.no_room(len(self._held), request.id)
        if self.bytes_held >= self.bytes_max:
            raise protocol.no_memory(len(self._held), self.bytes_held, request.id)
        self._count += 1
        self._held[self._count] = early
        self._numbers.add(early.client, request.id, self._count)
        self.bytes_held += early.size
        heapq.heappush(self._ends, (early.received_s + budget_s, self._count))

    def release(self) -> list[Early]:
        """Returns all held requests, oldest first; none is held any more."""
        return [self._leave(number) for number in list(self._held)]

    def cancel(self, client: Hashable, request_id: int | str) -> Early | None:
        """The request with this id is held no more, and returned; None if it was not."""
        number = self._numbers.get(client, request_id)
        return None if number is None else self._leave(number)

    def client_gone(self, client: Hashable) -> list[Early]:
        """All requests of this connection are held no more, and returned, oldest first."""
        return [self._leave(number) for number in self._numbers.of(client)]

    def expire(self, now: float) -> list[tuple[Early, RequestRefused]]:
        """Drops requests whose budget has ended. Returns (request, answer) for each."""
        expired = []
        while self._first_end() is not None and self._ends[0][0] <= now:
            early = self._leave(self._ends[0][1])
            text = "this frontend has just started, and the broker has not told it yet which models there are"
            refusal = RequestRefused(
                ErrorCode.NOT_READY, text, None, early.request.id, AnswerStatus.REJECTED, RETRY_AFTER_MS
            )
            expired.append((early, refusal))
        return expired

    def wake_at(self) -> float | None:
        """When the next budget ends; None if nothing is held."""
        return self._first_end()

    def _leave(self, number: int) -> Early:
        """The request of this number is held no more."""
        early = self._held.pop(number)
        self._numbers.remove(early.client, early.request.id)
        self.bytes_held -= early.size
        if len(self._ends) > 64 + 2 * len(self._held):
            self._ends = [end for end in self._ends if end[1] in self._held]
            heapq.heapify(self._ends)
        return early

    def _first_end(self) -> float | None:
        """The end at the head of the heap, which is then of a request that is held."""
        while self._ends and self._ends[0][1] not in self._held:
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else None

    def check(self) -> None:
        """Asserts every invariant."""
        assert len(self._held) <= self.count_max
        assert self.bytes_held == sum(early.size for early in self._held.values())
        self._numbers.check()
        assert len(self._numbers) == len(self._held) <= len(self._ends) <= 65 + 2 * len(self._held)
        assert self._held.keys() <= {number for _, number in self._ends}
        for number, early in self._held.items():
            assert self._numbers.get(early.client, early.request.id) == number
