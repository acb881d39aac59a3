"""Requests in flight: exactly one answer each. Pure.

A request is one *call* of a client; it is submitted in one or more *parts*, each no larger than the model's largest
batch. The first terminal event of a call wins: all its parts' outputs, one part's refusal, or its deadline.
"""

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh import wire
from mesh.tensors import byte_count

REFUSAL_S = 0.015  # a budget shorter than the way to the controller still gets its refusal, with the reason


@dataclass(slots=True, eq=False)
class Call:
    """One request of one client, until it is answered."""

    client: Hashable  # the connection; (client, id) is unique among the open calls
    id: int | str
    ref: str
    spec: wire.ModelSpec
    rows: int
    received_s: float
    deadline_s: float
    framed: bool  # the answer's tensors travel as frames
    weight: float = 1.0
    parts: list["Part"] = field(default_factory=list)
    size: int = 0  # of its inputs, bytes, once it has parts
    missing: int = 0  # parts without outputs
    answered: bool = False
    ask: int | None = None  # number of the Ask, where an application opened it
    flight: Any = None  # in the prediction cache, if this call leads it


@dataclass(slots=True, eq=False)
class Part:
    """One submission."""

    call: Call
    number: int
    rows: int
    tensors: Sequence[bytes | memoryview]
    controller: str | None = None  # member that has it; None: not submitted, or its controller was lost
    attempt: int = -1  # of the last submission
    outputs: Sequence[Any] | None = None  # one buffer per output


@dataclass(frozen=True, slots=True)
class Completed:
    """A call all of whose outputs are there."""

    call: Call
    batch_size: int
    predicted_s: float
    device: str
    cold: bool = False  # the model of the last part to come was on no device when that arrived
    pieces: Sequence[Sequence[Any]] = field(default=(), compare=False)  # each part's outputs

    def outputs(self) -> list[Any]:
        """One buffer per output, all rows; not copied unless the call was split."""
        if len(self.pieces) == 1:
            return list(self.pieces[0])
        return [b"".join(column) for column in zip(*self.pieces, strict=True)]


@dataclass(slots=True)
class RequestTable:
    """All calls in flight of one frontend."""

    in_flight_max: int
    bytes_max: int
    bytes_held: int = 0  # of inputs, by open calls that have parts
    _calls: dict[tuple[Hashable, int | str], Call] = field(default_factory=dict)  # open ones
    _parts: dict[int, Part] = field(default_factory=dict)  # {number: part} of open calls, without outputs
    _deadlines: list[tuple[float, int, Call]] = field(default_factory=list)  # heap; answered calls leave it late
    _count: int = 0  # parts ever made
    _opened: int = 0  # calls ever opened
    _stale: int = 0  # answered calls in the heap

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def full(self) -> bool:
        """No further call can be opened."""
        return len(self._calls) >= self.in_flight_max

    @property
    def heavy(self) -> bool:
        """The inputs of the open calls take so much memory that no further one can be opened."""
        return self.bytes_held >= self.bytes_max

    def holds(self, client: Hashable, call_id: int | str) -> bool:
        """A call with this id is open on this connection."""
        return (client, call_id) in self._calls

    def open(self, call: Call, tensors: Sequence[bytes | memoryview]) -> list[Part]:
        """The call is open, and these are its parts, to be submitted. Not `full`, and the id is not in use."""
        self.wait(call)
        return self.start(call, tensors)

    def wait(self, call: Call) -> None:
        """The call is open, without parts: it waits for another one's outputs, until its own deadline."""
        key = (call.client, call.id)
        assert key not in self._calls
        self._calls[key] = call
        self._opened += 1
        expires_s = max(call.deadline_s, call.received_s + REFUSAL_S)
        heapq.heappush(self._deadlines, (expires_s, self._opened, call))

    def start(self, call: Call, tensors: Sequence[bytes | memoryview]) -> list[Part]:
        """An open call without parts has these now, to be submitted."""
        batch_max = call.spec.batch_max
        if call.rows <= batch_max:
            self._add(call, call.rows, tensors)
        else:
            views = [memoryview(tensor) for tensor in tensors]
            widths = [len(view) // call.rows for view in views]
            for start in range(0, call.rows, batch_max):
                rows = min(batch_max, call.rows - start)
                self._add(call, rows, [v[start * w : (start + rows) * w] for v, w in zip(views, widths, strict=True)])
        call.missing = len(call.parts)
        call.size = sum(map(len, tensors))
        self.bytes_held += call.size
        return call.parts

    def settle(self, call: Call) -> None:
        """The call has ended: it got the outputs that it waited for."""
        self._end(call)

    def _add(self, call: Call, rows: int, tensors: Sequence[bytes | memoryview]) -> None:
        self._count += 1
        part = Part(call, self._count, rows, tensors)
        call.parts.append(part)
        self._parts[part.number] = part

    def submitted(self, part: Part, controller: str) -> int:
        """The part goes to this controller. Returns the number of the attempt."""
        part.controller = controller
        part.attempt += 1
        return part.attempt

    def outputs(
        self,
        number: int,
        outputs: Sequence[Any],
        batch_size: int,
        predicted_s: float,
        device: str,
        cold: bool = False,
    ) -> Completed | None:
        """A part's outputs came, of whichever attempt. Returns the call if it is complete with them."""
        part = self._parts.pop(number, None)
        if part is None:
            return None  # answered already
        part.outputs = outputs
        part.call.missing -= 1
        if part.call.missing:
            return None
        pieces = [each.outputs for each in part.call.parts if each.outputs is not None]
        self._end(part.call)
        return Completed(part.call, batch_size, predicted_s, device, cold, pieces)

    def misfit(self, number: int, outputs: Sequence[bytes | memoryview]) -> Call | None:
        """Outputs came for a part: its call, which has ended, if they are not of the model's number and sizes."""
        part = self._parts.get(number)
        if part is None:
            return None
        wanted = part.call.spec.outputs
        if len(outputs) == len(wanted) and all(
            len(data) == byte_count(spec.dtype, (part.rows, *spec.shape[1:]))
            for data, spec in zip(outputs, wanted, strict=True)
        ):
            return None
        self._end(part.call)
        return part.call

    def refused(self, number: int, attempt: int) -> Call | None:
        """A part was refused. Returns its call, which has ended; None for an attempt that does not count any more."""
        part = self._parts.get(number)
        if part is None or attempt < part.attempt:
            return None
        self._end(part.call)
        return part.call

    def close_all(self) -> list[Call]:
        """Every open call has ended; whoever says so answers them."""
        calls = list(self._calls.values())
        for call in calls:
            self._end(call)
        return calls

    def controller_lost(self, controller: str) -> list[Part]:
        """Parts that this controller had; they are to be submitted elsewhere, with what is left of their budget."""
        parts = [part for part in self._parts.values() if part.controller == controller]
        for part in parts:
            part.controller = None
        return parts

    def unsubmitted(self) -> list[Part]:
        """Parts that no controller has, oldest first."""
        return [part for part in self._parts.values() if part.controller is None]

    def expire(self, now: float) -> list[Call]:
        """Calls whose deadline has come; they have ended."""
        expired = []
        heap = self._deadlines
        while heap and (heap[0][2].answered or heap[0][0] <= now):
            call = heapq.heappop(heap)[2]
            if call.answered:
                self._stale -= 1
            else:
                self._stale -= 1  # it has left the heap already
                self._end(call)
                heap = self._deadlines  # it may have been made anew
                expired.append(call)
        return expired

    def wake_at(self) -> float | None:
        """When the next deadline comes."""
        heap = self._deadlines
        while heap and heap[0][2].answered:
            heapq.heappop(heap)
            self._stale -= 1
        return heap[0][0] if heap else None

    def _end(self, call: Call) -> None:
        call.answered = True
        self.bytes_held -= call.size
        del self._calls[(call.client, call.id)]
        for part in call.parts:
            self._parts.pop(part.number, None)
            part.tensors = ()  # the call itself stays in the heap for a while, its memory does not
            if part.outputs is not None:
                part.outputs = ()
        self._stale += 1
        if self._stale > 64 and self._stale > 2 * len(self._calls):
            self._deadlines = [entry for entry in self._deadlines if not entry[2].answered]
            heapq.heapify(self._deadlines)
            self._stale = 0

    def check(self) -> None:
        """Every invariant holds."""
        for key, call in self._calls.items():
            assert key == (call.client, call.id)
            assert not call.answered
            assert call.missing == sum(part.outputs is None for part in call.parts)
            assert call.missing > 0 or not call.parts
        open_parts = {p.number for call in self._calls.values() for p in call.parts if p.outputs is None}
        assert open_parts == self._parts.keys()
        assert self.bytes_held == sum(call.size for call in self._calls.values() if call.parts)
        ended = [part for entry in self._deadlines if entry[2].answered for part in entry[2].parts]
        assert not any(part.tensors or part.outputs for part in ended)
        assert self._stale == sum(entry[2].answered for entry in self._deadlines)
        assert len(self._deadlines) - self._stale == len(self._calls)
